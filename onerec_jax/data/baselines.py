"""Counting floors: popularity, Markov chains, item-item co-occurrence.

Fitted on training sequences only; nothing is learnt.  A model that does not
beat them has learnt little, so every evaluation prints them.  Scores whole
catalogues in chunks of users; holds no N x N matrix.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse

from onerec_jax import metrics

# Popularity decides only where the counts do not: scores are divided by the
# row's maximum first, and no two different scores of a floor are this close.
_TIE_WEIGHT = 1e-9
# What is near an item: so many places apart, and so many last items of a
# history that are looked at; what is one place further counts less.
NEAR = 5
NEAR_DECAY = 0.7
_NEARNESS = f'window {NEAR}, decay {NEAR_DECAY}'
_CELLS_AT_ONCE = 2**23  # users x items scored at once: 64 MiB of float64


@dataclasses.dataclass(frozen=True, eq=False)
class CountingFloor:
  """Scores = decayed sum of the transition rows of the last history items.

    score(u, j) = sum_{a=0}^{n-1} history_decay^a * transitions[h_a, j]

  h_a is the item `a` places before the end of the history.  Ties, and users
  whose history leads nowhere, are ranked by training popularity, then by item
  index.
  """

  name: str  # key in result files
  title: str  # in tables and pictures
  description: str
  popularity: np.ndarray  # float64 [num_items], training events per item
  transitions: sparse.csr_matrix | None  # [num_items, num_items] from, to
  history_items: int = 1  # n: how many of the last items are looked at
  history_decay: float = 1.0  # weight of an item one place further back

  @property
  def num_items(self) -> int:
    return self.popularity.size

  def scores(
    self, offsets: Int[np.ndarray, ' B1'], history: Int[np.ndarray, ' n']
  ) -> Float[np.ndarray, 'B num_items']:
    """Returns the score of every item, seen items included; higher is better.

    Args:
      offsets: history of row b is history[offsets[b]:offsets[b + 1]]. [B + 1]
      history: item indices, oldest first, all rows one after another.
    """
    rows = offsets.size - 1
    by_popularity = np.empty(self.num_items)
    order = np.lexsort((np.arange(self.num_items), -self.popularity))
    by_popularity[order] = np.arange(self.num_items, 0, -1) / self.num_items
    if self.transitions is None:
      return np.broadcast_to(by_popularity, (rows, self.num_items)).copy()
    row = np.repeat(np.arange(rows), np.diff(offsets))
    age = offsets[1:][row] - 1 - np.arange(offsets[0], offsets[-1])
    recent = age < self.history_items
    weights = sparse.csr_matrix(
      (
        self.history_decay ** age[recent].astype(np.float64),
        (row[recent], history[offsets[0] : offsets[-1]][recent]),
      ),
      shape=(rows, self.num_items),
    )
    result = sparse.csr_matrix(weights @ self.transitions).toarray()
    highest = result.max(axis=1, keepdims=True)
    result /= np.where(highest > 0, highest, 1.0)
    result += _TIE_WEIGHT * by_popularity[None]
    return result

  def recommend(
    self,
    offsets: Int[np.ndarray, ' B1'],
    history: Int[np.ndarray, ' n'],
    *,
    top_k: int,
    exclude_history: bool,
  ) -> Int[np.ndarray, 'B K']:
    """Returns the best `top_k` items per row, best first.

    Args:
      offsets: history of row b is history[offsets[b]:offsets[b + 1]]. [B + 1]
      history: item indices, oldest first, all rows one after another.
      top_k: K, length of a list; metrics.NO_ITEM fills lists that run short.
      exclude_history: items of the row's history are not recommended.
    """
    num_rows = offsets.size - 1
    result = np.full((num_rows, top_k), metrics.NO_ITEM, np.int64)
    kept = min(top_k, self.num_items)
    step = max(1, _CELLS_AT_ONCE // self.num_items)
    for start in range(0, num_rows, step):
      part = offsets[start : start + step + 1]
      scores = self.scores(part, history)
      if exclude_history:
        row = np.repeat(np.arange(part.size - 1), np.diff(part))
        scores[row, history[part[0] : part[-1]]] = -np.inf
      best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
      best_scores = np.take_along_axis(scores, best, axis=1)
      order = np.argsort(-best_scores, axis=1, kind='stable')
      best = np.take_along_axis(best, order, axis=1)
      allowed = np.isfinite(np.take_along_axis(best_scores, order, axis=1))
      result[start : start + step, :kept] = np.where(
        allowed, best, metrics.NO_ITEM
      )
    return result


def transition_counts(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' n'],
  *,
  num_items: int,
  window: int,
  decay: float,
) -> sparse.csr_matrix:
  """Ordered co-occurrence of items in the same sequence.

    counts[i, j] = sum_{d=1}^{window} decay^(d-1) * #{i followed by j after d}

  Args:
    offsets: sequence u is items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: item indices, oldest first, all sequences one after another.
    num_items: size of the catalogue.
    window: how far apart two items may be.
    decay: weight lost per place.
  """
  sequence = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
  items = items[offsets[0] : offsets[-1]]
  counts = sparse.csr_matrix((num_items, num_items), dtype=np.float64)
  for distance in range(1, min(window, items.size - 1) + 1):
    same = sequence[:-distance] == sequence[distance:]
    pair = (items[:-distance][same], items[distance:][same])
    weight = np.full(pair[0].size, decay ** (distance - 1))
    counts += sparse.csr_matrix((weight, pair), shape=counts.shape)
  return counts


def fit_floors(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' n'],
  *,
  num_items: int,
) -> tuple[CountingFloor, ...]:
  """Fits all floors on training sequences.

  The settings are fixed in advance, equal for all data sets, and not tuned.

  Args:
    offsets: sequence u is items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: TRAINING items only, oldest first, one sequence after another.
    num_items: size of the catalogue.
  """
  popularity, nearby = _popularity_and_nearby(offsets, items, num_items)
  following = transition_counts(
    offsets, items, num_items=num_items, window=1, decay=1.0
  )
  return (
    CountingFloor(
      name='popularity',
      title='Popularity',
      description='most frequent training items',
      popularity=popularity,
      transitions=None,
    ),
    CountingFloor(
      name='markov',
      title='Markov chain',
      description='what followed the last item, then popularity',
      popularity=popularity,
      transitions=following,
    ),
    CountingFloor(
      name='markov_10',
      title='Markov chain, last 10',
      description='what followed each of the last 10 items, decay 0.7',
      popularity=popularity,
      transitions=following,
      history_items=10,
      history_decay=0.7,
    ),
    CountingFloor(
      name='cooccurrence',
      title='Co-occurrence',
      description=f'{_NEARNESS}, divided by sqrt of target popularity',
      popularity=popularity,
      transitions=sparse.csr_matrix(nearby @ _damping(popularity)),
      history_items=NEAR,
      history_decay=NEAR_DECAY,
    ),
    # Scored higher than the previous row on every set it was measured on, so
    # leaving it out would flatter the model.
    source_cooccurrence(offsets, items, num_items=num_items),
  )


def source_cooccurrence(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' n'],
  *,
  num_items: int,
) -> CountingFloor:
  """Returns what is near an item per square root of how often that occurs.

  Args:
    offsets: sequence u is items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: TRAINING items only, oldest first, one sequence after another.
    num_items: size of the catalogue.
  """
  popularity, nearby = _popularity_and_nearby(offsets, items, num_items)
  return CountingFloor(
    name='cooccurrence_source',
    title='Co-occurrence by source',
    description=f'{_NEARNESS}, divided by sqrt of source popularity',
    popularity=popularity,
    transitions=sparse.csr_matrix(_damping(popularity) @ nearby),
    history_items=NEAR,
    history_decay=NEAR_DECAY,
  )


def _popularity_and_nearby(
  offsets: np.ndarray, items: np.ndarray, num_items: int
) -> tuple[np.ndarray, sparse.csr_matrix]:
  """Returns the events of every item, and what is near it how often."""
  events = items[offsets[0] : offsets[-1]]
  popularity = np.bincount(events, minlength=num_items).astype(np.float64)
  nearby = transition_counts(
    offsets, items, num_items=num_items, window=NEAR, decay=NEAR_DECAY
  )
  return popularity, nearby


def _damping(popularity: np.ndarray) -> Any:
  """Returns a diagonal matrix, 1 / sqrt of each item's events."""
  return sparse.diags(1 / np.sqrt(np.maximum(popularity, 1)))
