"""Mixture of experts: routing, and two equal ways to run the experts.

Dense (every expert on every token: the oracle) and grouped (dropless: sort by
expert, grouped matmul).  Pure array functions: no Flax, no config, no mesh.
"""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
  Reference: Wang et al. 2024, arXiv:2408.15664, eq. 3; 2502.18965 eq. 2.
  """
  scores = (
    jax.nn.softmax(logits, axis=-1)
    if gate == 'softmax'
    else jax.nn.sigmoid(logits)
  )
  left = jax.lax.stop_gradient(scores + bias[None, :])
  columns = jnp.arange(logits.shape[-1])[None, :]
  experts, gates = [], []
  # R passes: on TPU lax.top_k becomes a full sort for some shapes.
  for _ in range(top_k):
    # Four times faster than argmax on CPU; "not less" keeps a NaN visible.
    less = left < jnp.max(left, axis=-1, keepdims=True)
    best = jnp.min(jnp.where(less, logits.shape[-1], columns), axis=-1)
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
  num_slots = num_tokens * top_k
  if num_slots * (num_experts + 1) >= 2**31:
    raise ValueError(
      f'{num_slots} slots (tokens x top_k) of {num_experts} experts are more'
      ' than 32-bit keys can sort; make the batch smaller.'
    )
  # Expert and slot in one key: faster than argsort, and equal experts keep the
  # order of tokens.
  keys = experts * num_slots + jnp.arange(num_slots, dtype=jnp.int32)
  slots = jnp.sort(keys) % num_slots
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
