"""Experts that live on several devices: tokens travel to them and back.

Runs any function of `moe` on each device's own experts, over a mesh axis.
Drops a token's slot only where a bucket is full, and counts it.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax.ops import moe

# Rows of a bucket are padded to whole sublanes of a TPU register.
_CAPACITY_MULTIPLE = 8


class ShardedOutput(NamedTuple):
  """What the experts gave, and what did not reach them."""

  y: Float[Array, 'T D']
  dropped: Float[Array, '']  # slots of unmasked tokens, over all devices


def capacity(
  num_tokens: int,
  *,
  top_k: int,
  devices: int,
  experts_per_device: int,
  factor: float,
) -> int:
  """Returns the rows that a device may send to each device of its group.

    min(factor · T R / devices, T min(R, experts_per_device)), rounded up to a
    multiple of 8; the second is the most that can be needed

  Args:
    num_tokens: T, tokens of the device.
    top_k: R, experts per token.
    devices: of the expert axis.
    experts_per_device: experts that share the rows.
    factor: room over the mean load, at least 1.
  """
  mean = num_tokens * top_k / devices
  wanted = min(
    math.ceil(factor * mean), num_tokens * min(top_k, experts_per_device)
  )
  return -(-wanted // _CAPACITY_MULTIPLE) * _CAPACITY_MULTIPLE


def sharded_experts(
  x: Float[Array, 'T D'],
  routing: moe.Routing,
  weights: moe.ExpertWeights,
  token_mask: Bool[Array, ' T'],
  *,
  mesh: jax.sharding.Mesh,
  batch_axes: tuple[str, ...],
  expert_axis: str,
  run: Callable[..., jax.Array],
  exchange: Literal['all_gather', 'all_to_all'],
  capacity_factor: float,
) -> ShardedOutput:
  """Runs experts where their weights live; tokens move, weights do not.

  all_gather: tokens are gathered along `expert_axis`, each device runs its own
  experts on them, partial outputs are summed and scattered back.  Dropless.

  all_to_all: each device sends every token to the devices of its experts and
  gets the outputs back.  A device has room for `capacity` rows from each other
  one, shared by its experts; it is given to first choices before second ones,
  in the order of tokens, and never to masked tokens.  A slot without room adds
  nothing to its token, and is counted.

  Args:
    x: tokens; T divides the devices of `batch_axes`. [T, D]
    routing: global expert numbers.
    weights: E divides the size of `expert_axis`.
    token_mask: False: the output is zero. [T]
    mesh: the device mesh.
    batch_axes: mesh axes the tokens are sharded over; contains `expert_axis`.
    expert_axis: mesh axis the experts are sharded over.
    run: `moe.dense_experts` or `moe.grouped_experts` with its options bound.
    exchange: how tokens and experts meet.
    capacity_factor: read by all_to_all only; see `capacity`.

  Returns:
    y [T, D], sharded as `x`, and the number of slots dropped [].
  Raises:
    ValueError: a size does not divide.
  """
  shards = 1
  for axis in batch_axes:
    shards *= mesh.shape[axis]
  num_tokens, num_experts = x.shape[0], weights.wi.shape[0]
  devices = mesh.shape[expert_axis]
  if num_tokens % shards:
    raise ValueError(
      f'{num_tokens} tokens do not divide over {shards} devices'
      f' {dict(mesh.shape)}; make the batch size a multiple of {shards}.'
    )
  if num_experts % devices:
    raise ValueError(
      f'model.moe.num_experts={num_experts} does not divide over'
      f' mesh.{expert_axis}={devices}.'
    )
  rows = capacity(
    num_tokens // shards,
    top_k=routing.experts.shape[1],
    devices=devices,
    experts_per_device=num_experts // devices,
    factor=capacity_factor,
  )

  def local(x, experts, gates, weights, token_mask):
    routing = moe.Routing(experts, gates)
    if devices == 1:  # every expert is here
      return run(x, routing, weights, token_mask), jnp.zeros(())
    if exchange == 'all_gather':
      y = _run_gathered(x, routing, weights, token_mask, run, expert_axis)
      return y, jnp.zeros(())
    y, dropped = _run_exchanged(
      x, routing, weights, token_mask, run, expert_axis, devices, rows
    )
    return y, jax.lax.psum(dropped, batch_axes)

  tokens, sharded = P(batch_axes), P(expert_axis)
  return ShardedOutput(
    *jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(tokens, tokens, tokens, sharded, tokens),
      out_specs=(tokens, P()),
      check_vma=False,  # while loops of the CPU path start from constants
    )(x, routing.experts, routing.gates, weights, token_mask)
  )


def _run_gathered(x, routing, weights, token_mask, run, axis):
  gather = functools.partial(jax.lax.all_gather, axis_name=axis, tiled=True)
  here = weights.wi.shape[0]
  # Other devices' experts fall outside 0..here-1 and are skipped by `run`.
  experts = gather(routing.experts) - jax.lax.axis_index(axis) * here
  y = run(
    gather(x),
    moe.Routing(experts, gather(routing.gates)),
    weights,
    gather(token_mask),
  )
  return jax.lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)


def _run_exchanged(x, routing, weights, token_mask, run, axis, devices, rows):
  """Returns the outputs and how many slots of these tokens were dropped."""
  num_tokens, top_k = routing.experts.shape
  here = weights.wi.shape[0]
  # Slots in the order in which they get room: choice by choice.
  experts = routing.experts.T.reshape(-1)
  real = jnp.tile(token_mask, top_k)
  hits = real[:, None] & (
    experts[:, None] // here == jnp.arange(devices)[None, :]
  )
  place = jnp.sum(jnp.where(hits, jnp.cumsum(hits, axis=0) - 1, 0), axis=1)
  kept = real & (place < rows)
  num_slots, num_rows = experts.shape[0], devices * rows
  # Row of each slot and slot of each row; beyond the end: none.
  there = jnp.where(kept, experts // here * rows + place, num_rows)
  back = (
    jnp.full(num_rows, num_slots, there.dtype)
    .at[there]
    .set(jnp.arange(num_slots, dtype=there.dtype), mode='drop')
  )
  swap = functools.partial(
    jax.lax.all_to_all, axis_name=axis, split_axis=0, concat_axis=0, tiled=True
  )
  slots = jnp.broadcast_to(x[None], (top_k, *x.shape)).reshape(-1, x.shape[1])
  received = swap(_move(slots, back, there))
  own = (experts % here).at[back].get(mode='fill', fill_value=-1)
  own = swap(own)
  y = run(
    received,
    moe.Routing(own[:, None], jnp.ones((num_rows, 1), jnp.float32)),
    weights,
    own >= 0,
  )
  y = _move(swap(y), there, back).reshape(top_k, num_tokens, -1)
  gates = jnp.where(kept.reshape(top_k, -1), routing.gates.T, 0)
  y = jnp.einsum('rtd,rt->td', y, gates.astype(y.dtype))
  return y, jnp.sum(real & ~kept, dtype=jnp.float32)


@jax.custom_vjp
def _move(x, source, target) -> jax.Array:
  """Returns x[source], 0 where source is beyond the end.

  Args:
    x: rows. [N, D]
    source: distinct rows, or N. [M]
    target: the inverse: where row n goes, or M. [N]
  """
  return x.at[source].get(mode='fill', fill_value=0)


def _move_forward(x, source, target):
  return _move(x, source, target), (source, target)


def _move_backward(residuals, gradient):
  source, target = residuals
  # A gather; autodiff would write a scatter-add.
  return _move(gradient, target, source), None, None


_move.defvjp(_move_forward, _move_backward)
