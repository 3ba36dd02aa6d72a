"""Feed-forward of rows sorted by expert: only each row's own expert is run.

`lax.ragged_dot` on accelerators; on CPU, where that computes every row with
every expert, loops over blocks of rows.  Pure array functions.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

Activation = Callable[[jax.Array], jax.Array]

# Rows multiplied at once on CPU, falling: a group takes the largest blocks and
# then the one that just holds its rest, because every block reads and packs the
# matrices again, which costs about 30 rows' worth.
_BLOCKS = (256, 192, 128, 96, 64, 32)
# Where an expert's mean share of the rows is less than the largest, most need
# one block: sizes near it, as multiples of it.
_OF_MEAN = (1.75, 1.5, 1.25, 1.0, 0.875, 0.625)
_MULTIPLE = 16
# Columns of hidden units that are multiplied at once where their transpose is:
# packing long rows by column misses the caches.
_COLUMNS = 256


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


def block_sizes(num_rows: int, num_experts: int) -> tuple[int, ...]:
  """Returns the rows of the blocks that groups are cut into, falling.

  Args:
    num_rows: of all experts; no block is larger than these need.
    num_experts: among which they are more or less even.
  """
  mean = num_rows / num_experts
  sizes = _BLOCKS
  if mean < _BLOCKS[0]:
    near = {min(_multiple(mean * share), _BLOCKS[0]) for share in _OF_MEAN}
    sizes = tuple(sorted(near, reverse=True))
    while len(sizes) < len(_BLOCKS) and sizes[-1] > _MULTIPLE:
      sizes = (*sizes, _multiple(sizes[-1] / 2))
    # A few rows, as of one user's beams, may all go to one expert.
    while len(sizes) < len(_BLOCKS) and sizes[0] < _BLOCKS[0]:
      sizes = (min(2 * sizes[0], _BLOCKS[0]), *sizes)
  enough = min((s for s in sizes if s >= num_rows), default=sizes[0])
  return tuple(s for s in sizes if s <= enough)


def _multiple(rows: float) -> int:
  return _MULTIPLE * math.ceil(rows / _MULTIPLE)


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
  sizes = _sizes(order)

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
    for size, smaller in itertools.pairwise((*sizes, 0)):
      state = blocks(size, smaller, state)
    return state[1]

  return jax.lax.fori_loop(0, ends.shape[0], expert, carry)


def _sizes(order: RowOrder) -> tuple[int, ...]:
  return block_sizes(order.slots.shape[0], order.sizes.shape[0])


def _take(array, row, size):
  return jax.lax.dynamic_slice_in_dim(array, row, size)


def _put(array, block, row):
  return jax.lax.dynamic_update_slice_in_dim(array, block, row, 0)


def _contract(a, b, axes):
  return jax.lax.dot_general(a, b, ((axes[:1], axes[1:]), ((), ())))


def _transposed_product(a, b):
  """Returns a^T b, which is the faster the fewer columns `a` has at once."""
  columns = range(0, a.shape[1], _COLUMNS)
  parts = [_contract(a[:, c : c + _COLUMNS], b, (0, 0)) for c in columns]
  return jnp.concatenate(parts)


def _inside(size, row, end, block):
  return jnp.where((row + jnp.arange(size) < end)[:, None], block, 0)


def _middle(activation, pre):
  """Hidden units from the products with (wi, wg)."""
  wi, wg = pre
  return activation(wi) if wg is None else activation(wg) * wi


def _padded_tokens(x, order):
  # The last block may reach past the last row.
  return jnp.pad(order.slots // _top_k(x, order), (0, _sizes(order)[0]))


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
    here = ExpertWeights(dwi, dwg, _transposed_product(hidden, dout))
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
