"""How much of a history its clusters keep, against keeping its last events.

Pure functions of arrays and of `lifelong.Snapshots`; writes nothing.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.data import event_table
from onerec_jax.data import lifelong

# Events of a history whose nearest kept item is looked for.
_HISTORY_EVENTS = 200
# Later positive events that are looked for.
_LATER_EVENTS = 20
_METHODS = ('clusters', 'last_same_number', 'last_full_length')


def unit_rows(
  vectors: Float[np.ndarray, 'I D'],
) -> Float[np.ndarray, 'I D']:
  """Returns rows of length 1; zero rows stay zero."""
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.where(length > 0, length, 1)


def nearest_cosine(
  kept: Int[np.ndarray, ' k'],
  wanted: Int[np.ndarray, ' n'],
  units: Float[np.ndarray, 'I D'],
) -> float:
  """Returns the mean cosine of wanted items to the nearest kept item.

  1: every wanted item (or its like) is kept.

  Args:
    kept: items; none: 0.
    wanted: items, at least one.
    units: item vectors of length 1. [I, D]
  """
  if not len(kept):
    return 0.0
  distinct = units[np.unique(kept)]
  return float((units[wanted] @ distinct.T).max(axis=1).mean())


def compare(
  events: event_table.EventTable,
  snapshots: lifelong.Snapshots,
  vectors: Float[np.ndarray, 'I D'],
  *,
  length: int,
  max_snapshots: int,
  seed: int,
) -> dict[str, Any]:
  """Compares clusters with the last events of the same histories.

  For a random snapshot per draw, with c clusters: `clusters` keeps the
  representatives, `last_same_number` the last c events (what the same number
  of tokens would hold without clustering), `last_full_length` the last
  `length` events (what the pathway could hold at most).  Of each: the mean
  cosine of events of the whole history ('history'), and of the user's next
  positive events ('later_positives'), to the nearest kept item.

  Args:
    events: of all users.
    snapshots: of these events.
    vectors: of all items. [I, D]
    length: of the pathway, clusters.
    max_snapshots: compared.
    seed: of the choice of snapshots and events.

  Returns:
    JSON-able: 'snapshots', and per measure the mean of each method; None
    where no user has a later positive event.
  """
  random = np.random.default_rng(seed)
  units = unit_rows(np.asarray(vectors, np.float32))
  count = min(max_snapshots, snapshots.num_snapshots)
  chosen = random.choice(snapshots.num_snapshots, count, replace=False)
  found: dict[str, list[list[float]]] = {'history': [], 'later_positives': []}
  for number in chosen.tolist():
    user, position = snapshots.owner(number)
    start, end = events.offsets[user : user + 2].tolist()
    items = events.items[start : start + position]
    clusters = snapshots.representatives(number)
    kept = (
      items[clusters],
      items[max(0, position - len(clusters)) :],
      items[max(0, position - length) :],
    )
    history = items[random.integers(len(items), size=_HISTORY_EVENTS)]
    later = events.positive[start + position : end]
    later = np.flatnonzero(later)[:_LATER_EVENTS] + start + position
    for name, wanted in (
      ('history', history),
      ('later_positives', events.items[later]),
    ):
      if len(wanted):
        found[name].append([nearest_cosine(k, wanted, units) for k in kept])
  return {
    'snapshots': count,
    **{
      name: dict(zip(_METHODS, np.mean(rows, axis=0).tolist(), strict=True))
      if rows
      else None
      for name, rows in found.items()
    },
  }
