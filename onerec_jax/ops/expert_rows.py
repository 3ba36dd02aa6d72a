"""Feed-forward of rows sorted by expert: only each row's own expert is run.

`lax.ragged_dot` on accelerators; on CPU, where that computes every row with
every expert, loops over blocks of rows.  Pure array functions.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

Activation = Callable[[jax.Array], jax.Array]

# Rows multiplied at once on CPU, falling: a group takes blocks of 256 and then
# the one that just holds its rest, because every block reads and packs the
# matrices again, which costs about 30 rows' worth.
_BLOCKS = (256, 192, 128, 96, 64, 32, 0)


class ExpertWeights(NamedTuple):
  """Two- or (gated) three-matrix feed-forward networks, one per expert."""

  wi: Float[Array, 'E D F']
  wg: Float[Array, 'E D F'] | None  # gate branch of swiglu
  wo: Float[Array, 'E F D']


class RowOrder(NamedTuple):
  """Slots (token-major, R per token) sorted by expert; a slot's row is where
  it lands."""

  slots: Int[Array, ' N']  # slot of each row; token = slot // R
  rows: Int[Array, ' N']  # row of each slot: the inverse permutation
  sizes: Int[Array, ' E']  # rows of each expert; the rest, at the end, is idle


def feed_forward(
  x: Float[Array, 'T D'],
  weights: ExpertWeights,
  order: RowOrder,
  *,
  activation: Activation,
  kind: Literal['auto', 'ragged', 'blocks'],
) -> Float[Array, 'N D']:
  """Runs each row's token through the row's expert.

    y[n] = FFN_e(x[slots[n] // R])  for rows n of expert e

  Args:
    x: tokens. [T, D]
    weights: of E experts.
    order: N = T R rows.
    activation: element-wise, in the middle.
    kind: 'ragged' uses lax.ragged_dot; 'blocks' loops over row blocks (fast
      on CPU); 'auto' takes 'blocks' on CPU and 'ragged' elsewhere.  Equal up to
      rounding, gradients included.

  Returns:
    Rows in expert order; idle rows are arbitrary. [N, D]
  """
  ragged = functools.partial(_ragged, activation)
  blocks = functools.partial(_blocks, activation)
  if kind == 'auto':
    return jax.lax.platform_dependent(
      x, weights, order, cpu=blocks, default=ragged
    )
  return (ragged if kind == 'ragged' else blocks)(x, weights, order)


def _top_k(x: jax.Array, order: RowOrder) -> int:
  return order.slots.shape[0] // x.shape[0]


def _sum_slots(dx_rows: jax.Array, order: RowOrder, top_k: int) -> jax.Array:
  """Returns the gradient of tokens from that of rows: a gather, no scatter."""
  slots = dx_rows[order.rows].reshape(-1, top_k, dx_rows.shape[-1])
  return jnp.sum(slots, axis=1)


# --- Accelerators -----------------------------------------------------------


@jax.custom_vjp
def _dispatch(x, order) -> jax.Array:
  """Returns the token of every row."""
  return x[order.slots // _top_k(x, order)]


def _dispatch_forward(x, order):
  inside = jnp.arange(order.slots.shape[0]) < jnp.sum(order.sizes)
  return _dispatch(x, order), (order, inside, jnp.zeros_like(x[:, :0]))


def _dispatch_backward(residuals, gradient):
  order, inside, like = residuals
  # ragged_dot promises nothing about idle rows.
  gradient = jnp.where(inside[:, None], gradient, 0)
  return _sum_slots(gradient, order, _top_k(like, order)), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


def _ragged(activation, x, weights, order):
  rows = _dispatch(x, order)
  hidden = activation(
    jax.lax.ragged_dot(
      rows, weights.wi if weights.wg is None else weights.wg, order.sizes
    )
  )
  if weights.wg is not None:
    hidden = hidden * jax.lax.ragged_dot(rows, weights.wi, order.sizes)
  return jax.lax.ragged_dot(hidden, weights.wo, order.sizes)


# --- CPU --------------------------------------------------------------------


def largest_block(num_rows: int) -> int:
  """Returns the largest block that a group of `num_rows` rows could take."""
  return next(b for b in reversed(_BLOCKS) if b >= min(num_rows, _BLOCKS[0]))


def _for_each_block(order, load, update, carry):
  """Calls `update` for every block of rows of every expert.

  Args:
    order: of the rows.
    load: expert -> what its blocks read.
    update: (size, e, row, end, local, carry) -> carry; rows from `end` on
      belong to others: they may be written (their expert comes later) but must
      not be read.
    carry: arrays that all experts write to.
  """
  ends = jnp.cumsum(order.sizes)
  largest = largest_block(order.slots.shape[0])

  def expert(e, carry):
    local = load(e)

    def blocks(size, smaller, state):
      def body(state):
        row, carry = state
        return row + size, update(size, e, row, ends[e], local, carry)

      # A loop also where it turns once: `lax.cond` would copy the carry.
      return jax.lax.while_loop(
        lambda state: state[0] + smaller < ends[e], body, state
      )

    state = ends[e] - order.sizes[e], carry
    for size, smaller in itertools.pairwise(_BLOCKS):
      if size <= largest:
        state = blocks(size, smaller, state)
    return state[1]

  return jax.lax.fori_loop(0, ends.shape[0], expert, carry)


def _take(array, row, size):
  return jax.lax.dynamic_slice_in_dim(array, row, size)


def _put(array, block, row):
  return jax.lax.dynamic_update_slice_in_dim(array, block, row, 0)


def _contract(a, b, axes):
  return jax.lax.dot_general(a, b, ((axes[:1], axes[1:]), ((), ())))


def _inside(size, row, end, block):
  return jnp.where((row + jnp.arange(size) < end)[:, None], block, 0)


def _middle(activation, pre):
  """Hidden units from the products with (wi, wg)."""
  wi, wg = pre
  return activation(wi) if wg is None else activation(wg) * wi


def _padded_tokens(x, order):
  # The last block may reach past the last row.
  beyond = largest_block(order.slots.shape[0])
  return jnp.pad(order.slots // _top_k(x, order), (0, beyond))


def _blocks_forward(activation, x, weights, order, *, keep):
  """Returns y and, if `keep`, each row's products before the activation."""
  tokens = _padded_tokens(x, order)
  num_rows, hidden = tokens.shape[0], weights.wi.shape[-1]

  def empty(width):
    return jnp.zeros((num_rows, width), x.dtype)

  pre = None
  if keep:
    pre = empty(hidden), None if weights.wg is None else empty(hidden)

  def load(e):
    return jax.tree.map(lambda w: w[e], weights)

  def update(size, e, row, end, local, carry):
    del e
    y, pre = carry
    block = _inside(size, row, end, x[_take(tokens, row, size)])
    inner = jax.tree.map(
      lambda w: _contract(block, w, (1, 0)), (local.wi, local.wg)
    )
    out = _contract(_middle(activation, inner), local.wo, (1, 0))
    if keep:
      pre = jax.tree.map(lambda a, b: _put(a, b, row), pre, inner)
    return _put(y, out, row), pre

  return _for_each_block(order, load, update, (empty(x.shape[1]), pre))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(activation, x, weights, order):
  y, _ = _blocks_forward(activation, x, weights, order, keep=False)
  return y[: order.slots.shape[0]]


def _blocks_with_residuals(activation, x, weights, order):
  y, pre = _blocks_forward(activation, x, weights, order, keep=True)
  return y[: order.slots.shape[0]], (x, weights, order, pre)


def _blocks_backward(activation, residuals, dy):
  x, weights, order, pre = residuals
  tokens = _padded_tokens(x, order)
  dy = jnp.pad(dy, ((0, tokens.shape[0] - dy.shape[0]), (0, 0)))

  def load(e):
    return jax.tree.map(lambda w: w[e], weights)

  def update(size, e, row, end, local, carry):
    dx, dweights = carry
    block = _inside(size, row, end, x[_take(tokens, row, size)])
    dout = _inside(size, row, end, _take(dy, row, size))
    inner = jax.tree.map(lambda a: _take(a, row, size), pre)
    hidden, pull = jax.vjp(functools.partial(_middle, activation), inner)
    (dinner,) = pull(_contract(dout, local.wo, (1, 1)))
    dwi, dwg = jax.tree.map(lambda d: _contract(block, d, (0, 0)), dinner)
    here = ExpertWeights(dwi, dwg, _contract(hidden, dout, (0, 0)))
    dblock = jax.tree.map(
      lambda d, w: _contract(d, w, (1, 1)), dinner, (local.wi, local.wg)
    )
    dblock = sum(jax.tree.leaves(dblock))
    dweights = jax.tree.map(lambda a, b: a.at[e].add(b), dweights, here)
    return _put(dx, dblock, row), dweights

  zeros = jnp.zeros((tokens.shape[0], x.shape[1]), x.dtype)
  carry = (zeros, jax.tree.map(jnp.zeros_like, weights))
  dx, dweights = _for_each_block(order, load, update, carry)
  return _sum_slots(dx, order, _top_k(x, order)), dweights, None


_blocks.defvjp(_blocks_with_residuals, _blocks_backward)
