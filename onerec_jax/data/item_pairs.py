"""Pairs (trigger, target) of items that belong together, and their batches.

Pairs come from training positives alone.  Batches are a pure function of
(seed, number), so that any process count sees the same ones.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Int32
from scipy import sparse

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import captions as captions_lib
from onerec_jax.data import item_tokens
from onerec_jax.data import swing

_TARGETS_AT_ONCE = 1024  # bounds the memory of `user_to_item`

# (items [n], items [n]) -> how alike the pairs are [n]
Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ItemPairs(NamedTuple):
  """Pairs of different items; a pair that is met often is there often."""

  triggers: Int32[np.ndarray, ' P']
  targets: Int32[np.ndarray, ' P']
  user_to_item: int  # the first so many pairs
  item_to_item: int  # the others


# --- Making pairs -----------------------------------------------------------


def cosine_of(vectors: Float[np.ndarray, 'I D']) -> Similarity:
  """Returns the cosine of two items' vectors; 0 with a vector of zeros."""
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
  return lambda a, b: np.einsum('nd,nd->n', unit[a], unit[b])


def user_to_item(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' E'],
  *,
  window: int,
  similarity: Similarity,
) -> tuple[Int32[np.ndarray, ' P'], Int32[np.ndarray, ' P']]:
  """Returns for every positive the most similar of those shortly before it.

    target_e = x_e,  trigger_e = argmax_{x_d : e - window <= d < e} s(x_d, x_e)

  within each user; the latest of equally similar ones, never the target
  itself.  A window of 1 pairs neighbours in time.

  Args:
    offsets: user u's items are items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: positives, oldest first. [E]
    window: positives looked back at.
    similarity: s; asked about these pairs only, so that nothing of the size
      of the catalogue squared is ever made.

  Returns:
    Triggers and targets, in the order of the events.
  Reference: QARM, arXiv:2411.11739, user-to-item pairs.
  """
  items = np.asarray(items, np.int32)
  place = np.arange(len(items)) - np.repeat(offsets[:-1], np.diff(offsets))
  events = np.flatnonzero(place > 0)
  back = np.arange(1, window + 1)[None, :]  # latest first: argmax takes it
  triggers, targets = [items[:0]], [items[:0]]
  for first in range(0, len(events), _TARGETS_AT_ONCE):
    e = events[first : first + _TARGETS_AT_ONCE, None]
    candidates = items[np.maximum(e - back, 0)]  # [n, window]
    keep = (back <= place[e]) & (candidates != items[e])
    value = np.full(keep.shape, -np.inf)
    value[keep] = similarity(
      candidates[keep], np.broadcast_to(items[e], keep.shape)[keep]
    )
    best = np.argmax(value, axis=1)
    found = np.flatnonzero(keep.any(axis=1))
    triggers.append(candidates[found, best[found]])
    targets.append(items[e[found, 0]])
  return np.concatenate(triggers), np.concatenate(targets)


def item_to_item(
  similarity: sparse.csr_matrix, *, neighbours: int
) -> tuple[Int32[np.ndarray, ' P'], Int32[np.ndarray, ' P']]:
  """Returns every item with its most similar ones.

  Args:
    similarity: positive, sparse, without a diagonal, e.g. Swing. [I, I]
    neighbours: per item, at most; of equal ones the first items.

  Returns:
    Triggers and targets, by trigger, most similar target first.
  """
  starts = np.asarray(similarity.indptr)
  rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
  order = np.lexsort((similarity.indices, np.negative(similarity.data), rows))
  rank = np.arange(len(order)) - starts[rows[order]]
  order = order[rank < neighbours]
  return rows[order].astype(np.int32), similarity.indices[order].astype(
    np.int32
  )


def make_pairs(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' E'],
  *,
  num_items: int,
  vectors: Float[np.ndarray, 'I D'],
  alignment: config.ItemAlignmentConfig,
  seed: int,
) -> ItemPairs:
  """Returns the pairs that the settings ask for.

  Args:
    offsets: of the training positives. [U + 1]
    items: training positives, oldest first. [E]
    num_items: size of the catalogue.
    vectors: what user-to-item similarity is the cosine of. [I, D]
    alignment: which pairs, and their settings.
    seed: of the users that Swing draws.

  Raises:
    ValueError: there is not a single pair.
  """
  none = np.zeros(0, np.int32)
  from_users, from_items = (none, none), (none, none)
  if alignment.user_to_item:
    from_users = user_to_item(
      offsets,
      items,
      window=alignment.user_to_item_window,
      similarity=cosine_of(vectors),
    )
  if alignment.item_to_item_neighbours:
    similarity = swing.swing_similarity(
      offsets,
      items,
      num_items=num_items,
      alpha=alignment.swing_alpha,
      max_users_per_item=alignment.swing_max_users,
      max_neighbours=alignment.item_to_item_neighbours,
      seed=seed,
    )
    from_items = item_to_item(
      similarity, neighbours=alignment.item_to_item_neighbours
    )
  counts = len(from_users[0]), len(from_items[0])
  if not sum(counts):
    raise ValueError(
      'embed.alignment has no pair of items to learn from: user_to_item='
      f'{alignment.user_to_item} (window {alignment.user_to_item_window}) and'
      f' item_to_item_neighbours={alignment.item_to_item_neighbours} found'
      f' none in {len(items)} training positives of {len(offsets) - 1} users.'
      ' Turn one of them on, lower data.min_user_positives, or set'
      ' embed.alignment.enabled=False.'
    )
  return ItemPairs(
    np.concatenate([from_users[0], from_items[0]]),
    np.concatenate([from_users[1], from_items[1]]),
    *counts,
  )


# --- Batches ----------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemPairBatch:
  """Pairs with the tokens of both items; trigger and target on axis 1.

  T tokens of width d per item, W words of the trigger's caption.
  """

  items: batch.Leaf  # int32 [B, 2]
  mask: batch.Leaf  # bool [B]; False: filler row that completes a batch
  tokens: batch.Leaf  # float32 [B, 2, T, d]
  token_mask: batch.Leaf  # bool [B, 2, T]
  words: batch.Leaf = None  # int32 [B, W]; None: no captions
  word_mask: batch.Leaf = None  # bool [B, W]


class ItemPairBatches:
  """Endless iterator over pairs, in a new order each epoch.

  An epoch visits every pair once; its last batch is completed with filler
  rows.  The state is {'next_index': number of the next global batch}.

  Args:
    pairs: at least one.
    tokens: of all items.
    captions: of all items, or None.
    batch_size: global: summed over all processes.
    seed: of the order.
    own_rows: from batch_size to the rows that this process makes.
  """

  def __init__(
    self,
    pairs: ItemPairs,
    tokens: item_tokens.ItemTokens,
    captions: captions_lib.Captions | None,
    *,
    batch_size: int,
    seed: int,
    own_rows: batch_plan.OwnRows = np.arange,
  ):
    self._items = np.stack([pairs.triggers, pairs.targets], axis=1)
    self._tokens = tokens
    self._captions = captions
    self._batch_size = batch_size
    self._seed = seed
    self._rows = own_rows(batch_size)
    self.batches_per_epoch = -(-len(self._items) // batch_size)
    self._next = 0
    self._epoch: tuple[int, np.ndarray] | None = None

  def _order(self, epoch: int) -> np.ndarray:
    if self._epoch is None or self._epoch[0] != epoch:
      bits = batch_plan.random_bits(
        np.arange(len(self._items)), key=(self._seed, epoch)
      )
      self._epoch = epoch, np.argsort(bits, kind='stable')
    return self._epoch[1]

  def __iter__(self) -> 'ItemPairBatches':
    return self

  def __next__(self) -> ItemPairBatch:
    epoch, place = divmod(self._next, self.batches_per_epoch)
    self._next += 1
    first = place * self._batch_size
    chosen = np.full(self._batch_size, -1)
    taken = self._order(epoch)[first : first + self._batch_size]
    chosen[: len(taken)] = taken
    chosen = chosen[self._rows]
    mask = chosen >= 0
    items = np.where(mask[:, None], self._items[chosen], 0).astype(np.int32)
    words = word_mask = None
    if self._captions is not None:
      words = self._captions.words[items[:, 0]]
      word_mask = self._captions.mask[items[:, 0]] & mask[:, None]
    return ItemPairBatch(
      items=items,
      mask=mask,
      tokens=self._tokens.values[items],
      token_mask=self._tokens.mask[items] & mask[:, None, None],
      words=words,
      word_mask=word_mask,
    )

  def get_state(self) -> dict[str, int]:
    """Returns the position; JSON values only."""
    return {'next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position that `get_state` returned."""
    self._next = state['next_index']
