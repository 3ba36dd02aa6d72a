"""Writes snapshots of users' compressed histories, in shards of users.

Many processes work on it, and an interrupted call is continued by another.
Clustering is history_clusters.py's; lifelong.py reads what is written.
"""

import hashlib
import multiprocessing
import os
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import history_clusters
from onerec_jax.data import lifelong_worker

META = 'snapshots.json'
# Events that are clustered (over all snapshots) for one shard: some seconds.
_SHARD_WORK = 1_000_000


# --- What is compressed -----------------------------------------------------


class Plan(NamedTuple):
  """Everything that decides what the snapshots hold."""

  settings: config.LifelongConfig
  max_clusters: int  # kept per snapshot, the latest
  numbers: tuple[str, ...]  # feedback columns that are averaged
  features: tuple[str, ...]  # item features that are averaged
  seed: int
  digest: str  # of all this and of the data


def make_plan(
  events: event_table.EventTable,
  vectors: Float[np.ndarray, 'I D'],
  *,
  settings: config.LifelongConfig,
  pathways: config.PathwaysConfig,
  features: features_lib.Features,
  seed: int,
) -> Plan:
  """Returns the plan of the snapshots that `pathways` reads.

  Raises:
    ValueError: there is no lifelong pathway, or a length is not positive.
  """
  if pathways.lifelong_length < 1:
    raise ValueError(
      "The stage 'lifelong' has nothing to do, as model.pathways."
      f'lifelong_length={pathways.lifelong_length}: set it (papers: 2000), or'
      " take 'lifelong' out of stages."
    )
  for name in ('max_events', 'max_cluster_size', 'snapshot_events'):
    if getattr(settings, name) < 1:
      raise ValueError(
        f'lifelong.{name}={getattr(settings, name)} must be at least 1.'
      )
  numbers = tuple(feature.column for feature in pathways.event_features)
  averaged = tuple(f.name for f in pathways.item_features if f.average)
  known = config.to_dict(settings)
  known.pop('workers')  # changes the speed only
  hashed = hashlib.sha256(
    repr((known, pathways.lifelong_length, numbers, averaged, seed)).encode()
  )
  for array in (
    events.offsets,
    events.items,
    events.timestamps,
    events.exact_time,
    vectors,
    *(events.feedback[name] for name in numbers),
    *_averaged_values(pathways, features),
  ):
    hashed.update(np.ascontiguousarray(array).data)
  return Plan(
    settings=settings,
    max_clusters=pathways.lifelong_length,
    numbers=numbers,
    features=averaged,
    seed=seed,
    digest=hashed.hexdigest()[:16],
  )


def _averaged_values(
  pathways: config.PathwaysConfig, features: features_lib.Features
) -> tuple[np.ndarray, ...]:
  return tuple(
    values
    for feature, values in zip(
      pathways.item_features, features.items.values, strict=True
    )
    if feature.average
  )


def snapshot_counts(
  events: event_table.EventTable, snapshot_events: int
) -> Int[np.ndarray, ' U']:
  """Returns the number of snapshots of each user."""
  return np.diff(events.offsets) // snapshot_events


def shard_bounds(
  counts: Int[np.ndarray, ' U'], *, snapshot_events: int, max_events: int
) -> Int[np.ndarray, ' S1']:
  """Returns the users at which shards begin, and the number of users.

  Shards are alike in the events that are clustered for them.
  """
  # Events of the snapshots 1..c of a user, each at most max_events long.
  whole = np.minimum(counts, max_events // snapshot_events)
  work = snapshot_events * whole * (whole + 1) // 2
  work = np.cumsum(work + (counts - whole) * max_events)
  shard = np.maximum(work - 1, 0) // _SHARD_WORK
  starts = np.flatnonzero(np.diff(shard, prepend=-1)) if len(work) else []
  return np.append(starts, len(counts)).astype(np.int64)


# --- Writing ----------------------------------------------------------------


class Written(NamedTuple):
  """What one call of `write_snapshots` made."""

  shards: int
  users: int


def write_snapshots(
  folder: str | os.PathLike[str],
  events: event_table.EventTable,
  vectors: Float[np.ndarray, 'I D'],
  plan: Plan,
  *,
  pathways: config.PathwaysConfig,
  features: features_lib.Features,
  report: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
  """Compresses all histories; shards that are there already are kept.

  Args:
    folder: of the stage; an interrupted call is continued by another.
    events: of all users.
    vectors: of all items, near where items are alike. [I, D]
    plan: of `make_plan`.
    pathways: which item features are averaged.
    features: of the same pathways.
    report: called with the number of shards that are done, and of all.

  Returns:
    What this call made; shards that were there are not counted.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / META).unlink(missing_ok=True)
  settings = plan.settings
  bounds = shard_bounds(
    snapshot_counts(events, settings.snapshot_events),
    snapshot_events=settings.snapshot_events,
    max_events=settings.max_events,
  )
  total = len(bounds) - 1
  missing = [
    s for s in range(total) if not shard_path(folder, plan.digest, s).exists()
  ]
  made, users = 0, 0
  categories = _averaged_values(pathways, features)
  for number, arrays in _computed(
    events, vectors.astype(np.float32), categories, plan, bounds, missing
  ):
    _write(shard_path(folder, plan.digest, number), arrays)
    made += 1
    users += int(bounds[number + 1] - bounds[number])
    report(total - len(missing) + made, total)
  workdir_lib.write_json(
    folder / META,
    {
      'digest': plan.digest,
      'shards': total,
      'snapshot_events': settings.snapshot_events,
      'max_clusters': plan.max_clusters,
      'numbers': list(plan.numbers),
      'features': list(plan.features),
      'users': events.num_users,
      'events': events.num_events,
    },
  )
  for path in folder.glob('*.npz'):
    if not path.name.startswith(plan.digest):
      path.unlink()  # of another plan, which nothing can read any more
  return Written(made, users)


def _computed(
  events: event_table.EventTable,
  vectors: np.ndarray,
  categories: tuple[np.ndarray, ...],
  plan: Plan,
  bounds: np.ndarray,
  missing: list[int],
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields shard numbers and their arrays, as they are done."""
  tasks = {s: _task(events, plan, *bounds[s : s + 2].tolist()) for s in missing}
  workers = min(plan.settings.workers or os.cpu_count() or 1, len(missing))
  if workers <= 1:
    for number, task in tasks.items():
      yield number, lifelong_worker.compress_shard(task, vectors, categories)
    return
  with futures.ProcessPoolExecutor(
    workers,
    # Forked processes of a program with threads (JAX has some) may hang.
    mp_context=multiprocessing.get_context('spawn'),
    initializer=lifelong_worker.start,
    initargs=(vectors, categories),
  ) as pool:
    waiting = {
      pool.submit(lifelong_worker.work, task): s for s, task in tasks.items()
    }
    for done in futures.as_completed(waiting):
      yield waiting[done], done.result()


def _task(
  events: event_table.EventTable, plan: Plan, first: int, end: int
) -> lifelong_worker.Task:
  """Returns the task of users first..end-1."""
  places = slice(int(events.offsets[first]), int(events.offsets[end]))
  count = places.stop - places.start
  numbers = [events.feedback[name][places] for name in plan.numbers]
  return lifelong_worker.Task(
    first_user=first,
    offsets=events.offsets[first : end + 1] - events.offsets[first],
    history=history_clusters.History(
      items=events.items[places],
      timestamps=events.timestamps[places],
      exact_time=events.exact_time[places],
      numbers=np.stack(numbers, axis=1) if numbers else np.zeros((count, 0)),
    ),
    snapshot_events=plan.settings.snapshot_events,
    max_events=plan.settings.max_events,
    max_cluster_size=plan.settings.max_cluster_size,
    iterations=plan.settings.iterations,
    max_clusters=plan.max_clusters,
    seed=plan.seed,
  )


def shard_path(folder: epath.Path, digest: str, number: int) -> epath.Path:
  """Returns the file of a shard of the plan with this digest."""
  return folder / f'{digest}-{number:05d}.npz'


def _write(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a shard so that a reader sees no file or the whole one."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  with temporary.open('wb') as file:
    np.savez(file, **arrays)  # type: ignore[arg-type] # names are no keywords
  temporary.replace(path)
