"""Losses of next-item prediction over a whole catalogue or sampled items.

Arrays in, per-position values out: nothing is reduced, no batch, no model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import PRNGKeyArray

# Scores held at once, per device (32 MiB), and bounds of the rows they are
# cut into: short chunks stay in a CPU's cache, none may starve an accelerator.
_SCORES_AT_ONCE = 1 << 23
_MIN_CHUNK, _MAX_CHUNK = 64, 4096


class ItemLoss(NamedTuple):
  """Loss and hit of every predicted position; zero and False where masked."""

  loss: Float[Array, ' P']  # nats
  hit: Bool[Array, ' P']  # no other item scores as high as the label


def rows_at_once(num_items: int, *, devices: int) -> int:
  """Returns the `chunk_size` of `softmax_loss` for a catalogue.

  Args:
    num_items: scored per position (I).
    devices: that the rows of a chunk are split over.
  """
  rows = _SCORES_AT_ONCE // num_items
  return devices * min(max(rows, _MIN_CHUNK), _MAX_CHUNK)


def softmax_loss(
  states: Float[Array, 'P D'],
  table: Float[Array, 'I D'],
  bias: Float[Array, ' I'],
  labels: Int[Array, ' P'],
  mask: Bool[Array, ' P'],
  *,
  chunk_size: int,
  label_smoothing: float = 0.0,
  spread: Callable[[jax.Array], jax.Array] = lambda rows: rows,
) -> ItemLoss:
  """Cross-entropy over all items, in bounded memory.

    s_i = h · e_i + b_i
    loss = -(1 - eps) log softmax(s)_label - eps mean_i log softmax(s)_i

  Masked positions are put last and chunks without any other are skipped, so
  that padding costs nothing; scores are computed once more in the backward
  pass and never kept.  Memory: chunk_size * I floats, a few times.

  Args:
    states: h, one per position. [P, D]
    table: e, item embeddings. [I, D]
    bias: b, one per item. [I]
    labels: the items to predict. [P]
    mask: False: the position counts for nothing. [P]
    chunk_size: positions scored at once.
    label_smoothing: eps in [0, 1).
    spread: asks for axis 0 of a chunk's states to be split over devices.

  Returns:
    Per-position values. [P]
  """
  total = states.shape[0]
  chunk_size = min(chunk_size, total)
  num_chunks = -(-total // chunk_size)
  order = jnp.argsort(~mask, stable=True)
  padded = jnp.pad(order, (0, num_chunks * chunk_size - total))
  real = jnp.arange(num_chunks * chunk_size) < total

  def in_chunks(x: jax.Array) -> jax.Array:
    return x.reshape(num_chunks, chunk_size, *x.shape[1:])

  def scored(
    states: jax.Array, labels: jax.Array, keep: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    logits = jnp.einsum(
      'pd,id->pi', spread(states), table, preferred_element_type=jnp.float32
    )
    logits += bias[None]
    is_label = labels[:, None] == jnp.arange(table.shape[0])[None]
    target = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
    log_norm = jax.nn.logsumexp(logits, axis=-1)
    loss = log_norm - target
    if label_smoothing:
      rest = log_norm - jnp.mean(logits, axis=-1)
      loss = (1 - label_smoothing) * loss + label_smoothing * rest
    hit = jnp.sum(logits >= target[:, None], axis=-1) == 1
    return jnp.where(keep, loss, 0), hit & keep

  def skipped(
    states: jax.Array, labels: jax.Array, keep: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    del states, labels
    return jnp.zeros(keep.shape, jnp.float32), jnp.zeros_like(keep)

  @jax.checkpoint
  def one_chunk(
    chunk: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array]:
    return jax.lax.cond(jnp.any(chunk[2]), scored, skipped, *chunk)

  loss, hit = jax.lax.map(
    one_chunk,
    (
      in_chunks(states[padded]),
      in_chunks(labels[padded]),
      in_chunks(mask[padded] & real),
    ),
  )
  back = jnp.argsort(order)
  return ItemLoss(loss.reshape(-1)[back], hit.reshape(-1)[back])


def binary_loss(
  positive: Float[Array, '*shape'], negatives: Float[Array, '*shape N']
) -> Float[Array, '*shape']:
  """Binary cross-entropy of an item against sampled ones.

    loss = -log σ(s⁺) - Σ_n log(1 - σ(s⁻_n))

  Args:
    positive: scores of the labels, unbounded. [...]
    negatives: scores of the sampled items. [..., N]

  Returns:
    Not reduced. [...]
  Reference: Kang & McAuley 2018, arXiv:1808.09781, eq. 7 and section III-F.
  """
  return jax.nn.softplus(-positive) + jnp.sum(
    jax.nn.softplus(negatives), axis=-1
  )


def draw_negatives(
  positives: Int[Array, '*shape'],
  *,
  num_items: int,
  num_negatives: int,
  key: PRNGKeyArray,
) -> Int[Array, '*shape N']:
  """Returns items drawn uniformly from all but the positive one.

  Args:
    positives: the item that each draw leaves out. [...]
    num_items: size of the catalogue, at least 2.
    num_negatives: draws per positive (N), with repeats.
    key: used once.
  """
  shape = (*positives.shape, num_negatives)
  drawn = jax.random.randint(key, shape, 0, num_items - 1, jnp.int32)
  # Of num_items - 1 numbers, those from the positive on move up by one.
  return drawn + (drawn >= positives[..., None])
