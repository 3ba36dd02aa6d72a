"""Mixture of experts: routing, and three equal ways to run the experts.

Dense (every expert on every token: the oracle), grouped (dropless: sort by
expert, grouped matmul) and sharded over a mesh axis.  Pure array functions: no
Flax, no config.
"""

import functools
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.ops import expert_rows

Activation = expert_rows.Activation
ExpertWeights = expert_rows.ExpertWeights


class Routing(NamedTuple):
  """Where each token goes and with what weight."""

  experts: Int[Array, 'T R']  # distinct experts of a token, best first
  gates: Float[Array, 'T R']  # weight of each expert's output


def route(
  logits: Float[Array, 'T E'],
  bias: Float[Array, ' E'],
  *,
  top_k: int,
  gate: Literal['softmax', 'sigmoid'],
  normalize: bool,
) -> Routing:
  """Chooses the experts of every token.

    s = softmax(logits) or sigmoid(logits);  chosen = top_k(s + bias);
    gate_i = s_i for chosen i (divided by their sum if `normalize`)

  The bias only selects: it never enters a gate and gets no gradient.  Ties go
  to the lower expert number.

  Args:
    logits: router scores, float32. [T, E]
    bias: loss-free balancing bias. [E]
    top_k: experts per token, 1..E.
    gate: affinity function.
    normalize: whether kept gates sum to 1.

  Returns:
    Experts and gates. [T, R]
  Reference: Wang et al. 2024, arXiv:2408.15664, eq. 3; 2502.18965 eq. 5.
  """
  scores = (
    jax.nn.softmax(logits, axis=-1)
    if gate == 'softmax'
    else jax.nn.sigmoid(logits)
  )
  left = jax.lax.stop_gradient(scores + bias[None, :])
  columns = jnp.arange(logits.shape[-1])[None, :]
  experts, gates = [], []
  # R passes of argmax: on TPU lax.top_k becomes a full sort for some shapes.
  for _ in range(top_k):
    best = jnp.argmax(left, axis=-1)
    hit = columns == best[:, None]
    experts.append(best.astype(jnp.int32))
    gates.append(jnp.sum(jnp.where(hit, scores, 0), axis=-1))
    left = jnp.where(hit, -jnp.inf, left)
  kept = jnp.stack(gates, axis=-1)
  if normalize:
    # 1e-9: all-zero sigmoid gates give zeros and finite gradients (its square
    # is still a normal float32).
    kept = kept / (jnp.sum(kept, axis=-1, keepdims=True) + 1e-9)
  return Routing(jnp.stack(experts, axis=-1), kept)


def expert_load(
  experts: Int[Array, 'T R'],
  token_mask: Bool[Array, ' T'],
  *,
  num_experts: int,
) -> Float[Array, ' E']:
  """Returns how many unmasked tokens each expert receives, float32."""
  hits = experts[..., None] == jnp.arange(num_experts)[None, None, :]
  hits = hits & token_mask[:, None, None]
  return jnp.sum(hits, axis=(0, 1), dtype=jnp.float32)


def dense_experts(
  x: Float[Array, 'T D'],
  routing: Routing,
  weights: ExpertWeights,
  token_mask: Bool[Array, ' T'],
  *,
  activation: Activation,
) -> Float[Array, 'T D']:
  """Runs every expert on every token: E / R times the work; the oracle.

    y_t = sum_r gate[t, r] FFN_{expert[t, r]}(x_t)

  Args:
    x: tokens. [T, D]
    routing: experts outside 0..E-1 contribute nothing.
    weights: of E experts.
    token_mask: False: the output is zero. [T]
    activation: element-wise, in the middle.

  Returns:
    [T, D]
  """
  num_experts = weights.wi.shape[0]
  hits = routing.experts[..., None] == jnp.arange(num_experts)[None, None, :]
  combine = jnp.einsum(
    'tr,tre->te', routing.gates * token_mask[:, None], hits.astype(x.dtype)
  )
  hidden = jnp.einsum('td,edf->etf', x, weights.wi)
  if weights.wg is None:
    hidden = activation(hidden)
  else:
    gate = jnp.einsum('td,edf->etf', x, weights.wg)
    hidden = activation(gate) * hidden
  y = jnp.einsum('etf,efd->etd', hidden, weights.wo)
  return jnp.einsum('etd,te->td', y, combine.astype(x.dtype))


@jax.custom_vjp
def _undo(y, order) -> jax.Array:
  """Returns rows in slot order, a permutation."""
  return y[order.rows]


def _undo_forward(y, order):
  return _undo(y, order), order


def _undo_backward(order, gradient):
  # A gather; autodiff would write a scatter-add.
  return gradient[order.slots], None


_undo.defvjp(_undo_forward, _undo_backward)


def grouped_experts(
  x: Float[Array, 'T D'],
  routing: Routing,
  weights: ExpertWeights,
  token_mask: Bool[Array, ' T'],
  *,
  activation: Activation,
  matmul: Literal['auto', 'ragged', 'blocks'] = 'auto',
) -> Float[Array, 'T D']:
  """Runs only the chosen experts: sort by expert, grouped matmul, undo.

  Dropless: equal to `dense_experts` for any load.  Masked tokens and experts
  outside 0..E-1 are sorted behind all groups, where nothing is computed on
  CPU.

  Args:
    x: tokens. [T, D]
    routing: experts outside 0..E-1 contribute nothing.
    weights: of E experts.
    token_mask: False: the output is zero. [T]
    activation: element-wise, in the middle.
    matmul: see `expert_rows.feed_forward`.

  Returns:
    [T, D]
  """
  num_experts = weights.wi.shape[0]
  num_tokens, top_k = routing.experts.shape
  valid = token_mask[:, None] & (
    (routing.experts >= 0) & (routing.experts < num_experts)
  )
  experts = jnp.where(valid, routing.experts, num_experts).reshape(-1)
  # Stable and by comparison of small integers: equal experts keep token order.
  slots = jnp.argsort(experts, stable=True)
  rows = (
    jnp.zeros_like(slots)
    .at[slots]
    .set(jnp.arange(slots.shape[0]), unique_indices=True)
  )
  sizes = jnp.sum(
    experts[:, None] == jnp.arange(num_experts)[None, :],
    axis=0,
    dtype=jnp.int32,
  )

  order = expert_rows.RowOrder(slots, rows, sizes)
  y = expert_rows.feed_forward(
    x, weights, order, activation=activation, kind=matmul
  )
  y = _undo(y, order).reshape(num_tokens, top_k, -1)
  y = jnp.where(valid[..., None], y, 0)  # idle rows are arbitrary
  gates = jnp.where(valid, routing.gates, 0).astype(x.dtype)
  return jnp.einsum('trd,tr->td', y, gates)


def sharded_experts(
  x: Float[Array, 'T D'],
  routing: Routing,
  weights: ExpertWeights,
  token_mask: Bool[Array, ' T'],
  *,
  mesh: jax.sharding.Mesh,
  batch_axes: tuple[str, ...],
  expert_axis: str,
  run: Callable[..., jax.Array],
) -> Float[Array, 'T D']:
  """Runs experts where their weights live; tokens move, weights do not.

  Tokens, sharded over `batch_axes`, are gathered along `expert_axis`; each
  device runs its own experts on them; partial outputs are summed and scattered
  back.  Dropless.

  Args:
    x: tokens; T divides the devices of `batch_axes`. [T, D]
    routing: global expert numbers.
    weights: E divides the size of `expert_axis`.
    token_mask: False: the output is zero. [T]
    mesh: the device mesh.
    batch_axes: mesh axes the tokens are sharded over; contains `expert_axis`.
    expert_axis: mesh axis the experts are sharded over.
    run: `dense_experts` or `grouped_experts` with its options bound.

  Returns:
    [T, D], sharded as `x`.
  Raises:
    ValueError: a size does not divide.
  """
  shards = 1
  for axis in batch_axes:
    shards *= mesh.shape[axis]
  num_tokens, num_experts = x.shape[0], weights.wi.shape[0]
  if num_tokens % shards:
    raise ValueError(
      f'{num_tokens} decoder tokens do not divide over {shards} devices'
      f' {dict(mesh.shape)}; make the batch size a multiple of {shards}.'
    )
  if num_experts % mesh.shape[expert_axis]:
    raise ValueError(
      f'model.moe.num_experts={num_experts} does not divide over'
      f' mesh.{expert_axis}={mesh.shape[expert_axis]}.'
    )

  def local(x, experts, gates, weights, token_mask):
    gather = functools.partial(
      jax.lax.all_gather, axis_name=expert_axis, tiled=True
    )
    x, experts, gates = gather(x), gather(experts), gather(gates)
    token_mask = gather(token_mask)
    here = weights.wi.shape[0]
    # Other devices' experts fall outside 0..here-1 and are skipped by `run`.
    experts = experts - jax.lax.axis_index(expert_axis) * here
    y = run(x, Routing(experts, gates), weights, token_mask)
    return jax.lax.psum_scatter(y, expert_axis, scatter_dimension=0, tiled=True)

  tokens, sharded = P(batch_axes), P(expert_axis)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(tokens, tokens, tokens, sharded, tokens),
    out_specs=tokens,
    check_vma=False,  # while loops of the CPU path start from constants
  )(x, routing.experts, routing.gates, weights, token_mask)
