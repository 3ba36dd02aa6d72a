"""What a worker process of the stage `lifelong` does: one shard of users.

Imports little, as every process pays for it, and writes no files: lifelong.py
does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import threadpoolctl
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.data import history_clusters


class Task(NamedTuple):
  """Histories of the users of one shard, one after the other."""

  first_user: int
  offsets: Int[np.ndarray, ' U1']  # of the users' events in `history`
  history: history_clusters.History
  snapshot_events: int
  max_events: int
  max_cluster_size: int
  iterations: int
  max_clusters: int
  seed: int


# What every task of a process reads, handed over once.
_shared: tuple[np.ndarray, Sequence[np.ndarray]] | None = None


def start(
  vectors: Float[np.ndarray, 'I D'],
  categories: Sequence[Int[np.ndarray, 'I V']],
) -> None:
  """Begins a worker process."""
  global _shared
  _shared = vectors, categories
  # One core per process, or the processes fight over all of them.
  threadpoolctl.threadpool_limits(1)


def work(task: Task) -> dict[str, np.ndarray]:
  """Returns `compress_shard` with what `start` was given."""
  assert _shared is not None
  return compress_shard(task, *_shared)


def compress_shard(
  task: Task,
  vectors: Float[np.ndarray, 'I D'],
  categories: Sequence[Int[np.ndarray, 'I V']],
) -> dict[str, np.ndarray]:
  """Returns the snapshots of a shard's users.

  Snapshot j of a user is of his first j · snapshot_events events, of which
  the latest max_events are read.

  Args:
    task: histories and settings.
    vectors: of all items. [I, D]
    categories: values of each averaged item feature. [I, V] each

  Returns:
    Arrays by name: those of `Compressed`, all snapshots one after the other,
    and 'counts', the clusters of each snapshot.
  """
  # A first part without clusters gives every array its shape and type.
  parts = [
    history_clusters.nothing(task.history.numbers.shape[1], len(categories))
  ]
  for user in range(len(task.offsets) - 1):
    begin, end = task.offsets[user : user + 2].tolist()
    for position in range(
      task.snapshot_events, end - begin + 1, task.snapshot_events
    ):
      first = begin + max(0, position - task.max_events)
      found = history_clusters.compress(
        history_clusters.History(
          *(values[first : begin + position] for values in task.history)
        ),
        vectors,
        categories,
        max_cluster_size=task.max_cluster_size,
        iterations=task.iterations,
        max_clusters=task.max_clusters,
        random=np.random.default_rng(
          [task.seed, task.first_user + user, position]
        ),
      )
      moved = (found.representatives + (first - begin)).astype(np.int32)
      parts.append(found._replace(representatives=moved))
  arrays = {
    name: np.concatenate([getattr(part, name) for part in parts])
    for name in history_clusters.Compressed._fields
  }
  arrays['counts'] = np.array([len(p.sizes) for p in parts[1:]], np.int64)
  return arrays
