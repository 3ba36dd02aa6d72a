"""What item vectors are worth by their nearest neighbours.

Next items, categories, titles; nothing of the size of the catalogue squared
is held.  Makes no vectors.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import metrics
from onerec_jax.data import examples
from onerec_jax.data import pipeline

_ROWS_AT_ONCE = 256  # of [rows, items] cosines in memory
# A category of more items than this share, such as the department that all
# belong to, tells nothing.
_MAX_CATEGORY_SHARE = 0.5


class Transitions(NamedTuple):
  """Users' last history items and the items that followed."""

  sources: Int32[np.ndarray, ' n']
  targets: Int32[np.ndarray, ' n']
  # What users had seen, the source included; of transition i:
  # seen[seen_offsets[i]:seen_offsets[i + 1]].
  seen: Int32[np.ndarray, ' S']
  seen_offsets: Int[np.ndarray, ' n1']


def read_transitions(
  store: examples.ExampleStore, *, max_examples: int | None
) -> Transitions:
  """Returns the transition into the first target of the examples of a split.

  Args:
    store: its examples.
    max_examples: so many, evenly spaced over the file; None: all.
  """
  none = np.zeros(0, np.int32)
  sources, targets, seen = [none], [none], []
  for batch in pipeline.eval_batches(
    store,
    batch_size=_ROWS_AT_ONCE,
    history_length=1,
    items_per_session=1,
    max_examples=max_examples,
  ):
    keep = (batch.history_mask & batch.target_mask)[:, 0]
    sources.append(batch.history_items[keep, 0])
    targets.append(batch.target_items[keep, 0])
    rows = pipeline.seen_items(store, batch)
    seen += [row for row, kept in zip(rows, keep, strict=True) if kept]
  lengths = [len(row) for row in seen]
  return Transitions(
    np.concatenate(sources),
    np.concatenate(targets),
    np.concatenate([none, *seen]).astype(np.int32),
    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
  )


def target_ranks(
  vectors: Float[np.ndarray, 'I D'], transitions: Transitions
) -> Int[np.ndarray, ' n']:
  """Returns the rank of each target among the unseen items near its source.

    rank = #{j unseen: cos(source, j) >= cos(source, target)}

  which counts the target itself; ties count against it.

  Args:
    vectors: one row per item; zero: no vector. [I, D]
    transitions: from `read_transitions`. [n]

  Returns:
    1-based; metrics.NOT_RANKED where the source or the target has no vector
    or the target had been seen. [n]
  """
  unit, known = _unit(vectors)
  ranks = np.full(len(transitions.sources), metrics.NOT_RANKED, np.int64)
  offsets = transitions.seen_offsets
  for rows in _chunks(len(ranks)):
    s, t = transitions.sources[rows], transitions.targets[rows]
    cosine = unit[s] @ unit.T
    place = np.arange(len(s))
    reached = cosine[place, t]
    first, last = offsets[rows.start], offsets[rows.stop]
    counts = np.diff(offsets[rows.start : rows.stop + 1])
    cosine[np.repeat(place, counts), transitions.seen[first:last]] = -np.inf
    usable = known[s] & known[t] & np.isfinite(cosine[place, t])
    as_near = (cosine >= reached[:, None]).sum(axis=1)
    ranks[rows] = np.where(usable, as_near, metrics.NOT_RANKED)
  return ranks


def nearest_items(
  vectors: Float[np.ndarray, 'I D'], items: Int[np.ndarray, ' n'], *, top_k: int
) -> Int[np.ndarray, 'n K']:
  """Returns the other items with the largest cosine, nearest first.

  Args:
    vectors: one row per item; zero: no vector. [I, D]
    items: whose neighbours. [n]
    top_k: number of neighbours, less than I.

  Returns:
    metrics.NO_ITEM for all neighbours of an item without a vector. [n, K]
  """
  unit, known = _unit(vectors)
  result = np.full((len(items), top_k), metrics.NO_ITEM, np.int64)
  for rows in _chunks(len(items)):
    cosine = unit[items[rows]] @ unit.T
    place = np.arange(len(cosine))[:, None]
    cosine[place[:, 0], items[rows]] = -np.inf
    cosine[:, ~known] = -np.inf
    near = np.argpartition(-cosine, top_k - 1, axis=1)[:, :top_k]
    near = near[place, np.argsort(-cosine[place, near], axis=1, kind='stable')]
    found = known[items[rows]][:, None] & np.isfinite(cosine[place, near])
    result[rows] = np.where(found, near, metrics.NO_ITEM)
  return result


def category_share(
  neighbours: Int[np.ndarray, 'n K'],
  items: Int[np.ndarray, ' n'],
  categories: Sequence[Sequence[str]],
) -> float | None:
  """Returns the share of neighbours that have a category of the item.

  Categories of more than half of the items do not count.  Items without any
  other category are left out, and so are neighbours that do not exist.

  Args:
    neighbours: from `nearest_items`. [n, K]
    items: [n]
    categories: names of each item of the catalogue. [I]

  Returns:
    In 0..1; None when nothing can be compared.
  """
  counts: dict[str, int] = {}
  for row in categories:
    for name in set(row):
      counts[name] = counts.get(name, 0) + 1
  limit = _MAX_CATEGORY_SHARE * len(categories)
  kept = [{name for name in row if counts[name] <= limit} for row in categories]
  agreeing = compared = 0
  for item, near in zip(items.tolist(), neighbours.tolist(), strict=True):
    if kept[item]:
      real = [j for j in near if j != metrics.NO_ITEM]
      compared += len(real)
      agreeing += sum(not kept[item].isdisjoint(kept[j]) for j in real)
  return agreeing / compared if compared else None


def _unit(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
  return unit, norms[:, 0] > 0


def _chunks(total: int) -> Iterator[slice]:
  for first in range(0, total, _ROWS_AT_ONCE):
    yield slice(first, min(first + _ROWS_AT_ONCE, total))
