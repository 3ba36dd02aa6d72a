"""Self-attention of whole sequences in one TPU kernel (Pallas).

Equal to `attention.attend` with relative positions, a key mask and hashed
dropout, but scores stay on the chip: no [B, H, S, S] array exists, forward or
backward.  A row of scores must fit at once, which bounds the length.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import UInt32

from onerec_jax.ops import attention
from onerec_jax.ops import dropout

_LANES = 128  # of a TPU register: head_dim and lengths are padded to multiples
_ROWS = 256  # queries whose scores are computed at once
# Keys that only pad the length: below every real key, masked ones included,
# so that a row without real keys still gives the mean of the given values.
_ABSENT = -2e38
# Position biases are read whole per head and their gradient is summed on the
# chip: 2 x 2 x 4 S^2 bytes, with S = 1280 26 MB of the 64 MB asked for.
MAX_LENGTH = 1280
_VMEM_BYTES = 64 * 2**20


class _Settings(NamedTuple):
  """What a kernel is specialised to."""

  heads: int
  length: int  # S, without padding
  rate: float  # of dropout
  interpret: bool


def fits(*, num_keys: int) -> bool:
  """Returns whether the kernel takes sequences of this length."""
  return num_keys <= MAX_LENGTH


def self_attention(
  queries: Float[Array, 'B S H K'],
  keys: Float[Array, 'B S H K'],
  values: Float[Array, 'B S H K'],
  mask: Bool[Array, 'B S'],
  distances: Float[Array, 'H 2*S-1'] | None,
  *,
  seed: UInt32[Array, '2'] | None,
  rate: float,
  mesh: jax.sharding.Mesh | None,
  interpret: bool = False,
) -> Float[Array, 'B S H K']:
  """Multi-head self-attention without an array of scores.

    out = dropout(softmax(q k^T + distances[s - t + S - 1] + mask)) v

  A head narrower than a register is padded with zeros: as the matrix unit
  works on whole registers it takes no longer, but queries, keys and values
  take the memory of the padded width.

  Args:
    queries: already scaled. [B, S, H, K]
    keys: [B, S, H, K]
    values: [B, S, H, K]
    mask: False: a key not to attend to. [B, S]
    distances: float32 bias of each distance key - query; None: none.
    seed: of the weights' dropout, as `dropout.drop` with 'hash'; None: none.
    rate: of the dropout.
    mesh: the batch is split over all its axes; None: one device.
    interpret: run on any device, slowly; for tests.

  Returns:
    In the dtype of `values`. [B, S, H, K]
  Raises:
    ValueError: the sequences are too long.
  """
  rows, length, heads, head_dim = queries.shape
  if not fits(num_keys=length):
    raise ValueError(
      f'Fused attention takes at most {MAX_LENGTH} tokens, not {length}: use'
      ' `attention.attend` for them.'
    )
  if seed is None:
    seed, rate = jnp.zeros(2, jnp.uint32), 0.0
  settings = _Settings(heads, length, rate, interpret)
  run = functools.partial(_local, settings)

  def flatten(x: jax.Array) -> jax.Array:
    padding = [(0, 0)] * 3 + [(0, -head_dim % _LANES)]
    return jnp.pad(x, padding).reshape(rows, length, -1)

  arguments = (
    flatten(queries), flatten(keys), flatten(values),
    attention.key_bias(mask)[:, 0], distances, seed,
  )  # fmt: skip
  if mesh is None or mesh.size == 1:
    out = run(*arguments, jnp.zeros(1, jnp.uint32))
  else:
    # First global row of every device: dropout does not depend on the mesh.
    first = jnp.arange(0, rows, rows // mesh.size, dtype=jnp.uint32)
    batch = jax.sharding.PartitionSpec(mesh.axis_names)
    whole = jax.sharding.PartitionSpec()
    out = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(batch, batch, batch, batch, whole, whole, batch),
      out_specs=batch,
      check_vma=False,  # Pallas calls declare no varying axes
    )(*arguments, first)
  return out.reshape(rows, length, heads, -1)[..., :head_dim]


def _local(
  settings: _Settings,
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  key_bias: jax.Array,
  distances: jax.Array | None,
  seed: jax.Array,
  first_row: jax.Array,
) -> jax.Array:
  """Pads to whole registers, and calls the kernel."""
  length = settings.length
  padded = -(-length // _LANES) * _LANES
  extra = padded - length

  def pad(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, extra), (0, 0)))

  key_bias = jnp.pad(
    key_bias, ((0, 0), (0, 0), (0, extra)), constant_values=_ABSENT
  )
  positions = None
  if distances is not None:
    positions = attention.expand_distances(distances, padded)
  words = jnp.concatenate([seed, first_row])
  out: jax.Array = _attend(
    settings, pad(queries), pad(keys), pad(values), key_bias,
    positions, words,
  )  # fmt: skip
  return out[:, :length]


# --- Kernels ----------------------------------------------------------------


def _keep(
  settings: _Settings, words: Any, row: Any, head: Any, start: int,
  shape: tuple[int, ...],
) -> jax.Array:  # fmt: skip
  """Returns `dropout.keep_mask` of [B, H, S, S] for some queries of a head."""
  length = settings.length
  query = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) + np.uint32(start)
  key = jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
  before = (words[2] + row.astype(jnp.uint32)) * np.uint32(settings.heads)
  before = (before + head.astype(jnp.uint32)) * np.uint32(length)
  index = (before + query) * np.uint32(length) + key
  return dropout.keep_by_number(index, words[0], words[1], rate=settings.rate)


def _weights(
  settings: _Settings, queries: Any, keys: Any, bias: Any
) -> jax.Array:
  """Returns softmax(q k^T + bias), float32."""
  del settings
  scores = jax.lax.dot_general(
    queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  scores = scores + bias
  scores = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
  return scores / jnp.sum(scores, axis=1, keepdims=True)


def _blocks(padded: int) -> list[tuple[int, int]]:
  """Returns start and size of the query blocks."""
  return [
    (start, min(_ROWS, padded - start)) for start in range(0, padded, _ROWS)
  ]


def _forward_kernel(settings, has_positions, words, *refs):
  if has_positions:
    queries, keys, values, key_bias, positions, out = refs
  else:
    (queries, keys, values, key_bias, out), positions = refs, None
  head, row = pl.program_id(0), pl.program_id(1)
  for start, size in _blocks(queries.shape[1]):
    at = slice(start, start + size)
    bias = key_bias[0]
    if positions is not None:
      bias = bias + positions[0, at, :]
    weights = _weights(settings, queries[0, at, :], keys[0], bias)
    if settings.rate:
      keep = _keep(settings, words, row, head, start, weights.shape)
      weights = jnp.where(keep, weights * (1 / (1 - settings.rate)), 0)
    out[0, at, :] = jnp.dot(
      weights.astype(values.dtype),
      values[0],
      preferred_element_type=jnp.float32,
    ).astype(out.dtype)


def _backward_kernel(settings, has_positions, words, *refs):
  if has_positions:
    (queries, keys, values, key_bias, positions, gradient,
     d_queries, d_keys, d_values, d_positions) = refs  # fmt: skip
  else:
    (queries, keys, values, key_bias, gradient,
     d_queries, d_keys, d_values) = refs  # fmt: skip
    positions = d_positions = None
  head, row = pl.program_id(0), pl.program_id(1)
  key_sum = jnp.zeros(keys.shape[1:], jnp.float32)
  value_sum = jnp.zeros(values.shape[1:], jnp.float32)
  scale = 1 / (1 - settings.rate)
  rows = (((0,), (0,)), ((), ()))  # contract the queries
  for start, size in _blocks(queries.shape[1]):
    at = slice(start, start + size)
    bias = key_bias[0]
    if positions is not None:
      bias = bias + positions[0, at, :]
    q, g = queries[0, at, :], gradient[0, at, :]
    weights = _weights(settings, q, keys[0], bias)
    d_weights = jax.lax.dot_general(
      g, values[0], (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    dropped = weights
    if settings.rate:
      keep = _keep(settings, words, row, head, start, weights.shape)
      dropped = jnp.where(keep, weights * scale, 0)
      d_weights = jnp.where(keep, d_weights * scale, 0)
    value_sum += jax.lax.dot_general(
      dropped.astype(g.dtype), g, rows, preferred_element_type=jnp.float32
    )
    mean = jnp.sum(d_weights * weights, axis=1, keepdims=True)
    d_scores = weights * (d_weights - mean)
    if d_positions is not None:

      @pl.when(row == 0)
      def _begin(at=at, d_scores=d_scores):
        d_positions[0, at, :] = d_scores

      @pl.when(row > 0)
      def _add(at=at, d_scores=d_scores):
        d_positions[0, at, :] += d_scores

    d_scores = d_scores.astype(q.dtype)
    d_queries[0, at, :] = jnp.dot(
      d_scores, keys[0], preferred_element_type=jnp.float32
    ).astype(d_queries.dtype)
    key_sum += jax.lax.dot_general(
      d_scores, q, rows, preferred_element_type=jnp.float32
    )
  d_keys[0] = key_sum.astype(d_keys.dtype)
  d_values[0] = value_sum.astype(d_values.dtype)


def _specs(padded: int, head_dim: int) -> tuple[Any, Any, Any]:
  """Returns the blocks of one head and row: states, key bias, positions."""
  states = pl.BlockSpec((1, padded, head_dim), lambda h, b, _: (b, 0, h))
  key_bias = pl.BlockSpec((1, 1, padded), lambda h, b, _: (b, 0, 0))
  # The same block for all rows of a head: fetched, and written, once.
  positions = pl.BlockSpec((1, padded, padded), lambda h, b, _: (h, 0, 0))
  return states, key_bias, positions


def _call(
  kernel: Any, settings: _Settings, like: Any, positions: Any, *,
  in_specs: Any, out_specs: Any, out_shape: Any,
) -> Any:  # fmt: skip
  rows = like.shape[0]
  return pl.pallas_call(
    functools.partial(kernel, settings, positions is not None),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(settings.heads, rows),
      in_specs=in_specs,
      out_specs=out_specs,
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
      vmem_limit_bytes=_VMEM_BYTES,
    ),
    interpret=settings.interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, queries, keys, values, key_bias, positions, words):
  _, padded, width = queries.shape
  states, mask, table = _specs(padded, width // settings.heads)
  extra = () if positions is None else (positions,)
  return _call(
    _forward_kernel, settings, queries, positions,
    in_specs=[states, states, states, mask, *[table for _ in extra]],
    out_specs=states,
    out_shape=jax.ShapeDtypeStruct(queries.shape, values.dtype),
  )(words, queries, keys, values, key_bias, *extra)  # fmt: skip


def _attend_forward(settings, *arguments):
  return _attend(settings, *arguments), arguments


def _attend_backward(settings, arguments, gradient):
  queries, keys, values, key_bias, positions, words = arguments
  _, padded, width = queries.shape
  states, mask, table = _specs(padded, width // settings.heads)
  extra = () if positions is None else (positions,)
  shapes = [
    jax.ShapeDtypeStruct(x.shape, x.dtype)
    for x in (queries, keys, values, *extra)
  ]
  found = _call(
    _backward_kernel, settings, queries, positions,
    in_specs=[states, states, states, mask, *[table for _ in extra], states],
    out_specs=[states, states, states, *[table for _ in extra]],
    out_shape=shapes,
  )(words, queries, keys, values, key_bias, *extra, gradient)  # fmt: skip
  d_positions = found[3] if extra else None
  # The mask is no parameter: nothing asks for its gradient.
  return (*found[:3], jnp.zeros_like(key_bias), d_positions, None)


_attend.defvjp(_attend_forward, _attend_backward)
