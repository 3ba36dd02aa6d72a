"""Snapshots of users' compressed histories, looked up by user and position.

A history is clustered anew each time it has grown by `snapshot_events`
events; whoever reads a user at a position gets the last snapshot at or before
it, so no cluster knows a later event.  lifelong_shards.py writes them.
"""

import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import history_clusters
from onerec_jax.data import lifelong_shards


class Snapshots:
  """All snapshots of a data set, in memory.

  Args:
    folder: of the stage `lifelong`.
    pathways: of the model that reads them.
    features: of the same pathways.
    events: of the same data set.

  Raises:
    FileNotFoundError: the stage has not run to its end.
    ValueError: it ran with other features, a shorter length or other data.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    pathways: config.PathwaysConfig,
    features: features_lib.Features,
    events: event_table.EventTable,
  ):
    folder = epath.Path(folder)
    meta = workdir_lib.read_json(folder / lifelong_shards.META)
    if meta is None:
      raise FileNotFoundError(
        f'{folder / lifelong_shards.META} is missing; it is written by the'
        " stage 'lifelong'. Run that stage with the same --workdir first."
      )
    _check_meta(meta, pathways, events)
    self._pathways, self._features, self._events = pathways, features, events
    self._step = int(meta['snapshot_events'])
    counts = lifelong_shards.snapshot_counts(events, self._step)
    self._first = np.concatenate([[0], np.cumsum(counts)])
    shards = [
      _read(lifelong_shards.shard_path(folder, meta['digest'], number))
      for number in range(meta['shards'])
    ]
    arrays: dict[str, Any] = {
      name: np.concatenate([shard[name] for shard in shards])
      for name in (*history_clusters.Compressed._fields, 'counts')
    }
    counts = arrays.pop('counts')
    self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # Of all snapshots, one after the other; by user, then position.
    self.clusters = history_clusters.Compressed(**arrays)
    self._numbers = np.zeros(self.clusters.numbers.shape, np.int32)
    for f, edges in enumerate(features.edges):
      self._numbers[:, f] = features_lib.number_ids(
        self.clusters.numbers[:, f], edges
      )

  @property
  def num_snapshots(self) -> int:
    return len(self.offsets) - 1

  def owner(self, number: int) -> tuple[int, int]:
    """Returns the user of a snapshot and the events of him it knows."""
    user = int(np.searchsorted(self._first, number, side='right')) - 1
    return user, (number - int(self._first[user]) + 1) * self._step

  def representatives(self, number: int) -> Int[np.ndarray, ' C']:
    """Returns the positions of the events that a snapshot keeps, rising."""
    first, end = self.offsets[number : number + 2].tolist()
    return self.clusters.representatives[first:end]

  def lookup(
    self,
    users: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, ' B'],
    length: int,
  ) -> batch.EventSequence:
    """Returns the last snapshots at or before positions, right-aligned.

    Items and labels are those of the representatives; numbers, times and
    averaged features those of the whole clusters.  Ages are counted to the
    event at the position, whose time is that of the request.

    Args:
      users: dense; -1 makes a masked row. [B]
      positions: events of the user before the request. [B]
      length: clusters, the latest; at most those that are stored.
    """
    events, p = self._events, self._pathways
    real = (users >= 0) & (positions >= self._step)
    user = np.where(real, users, 0).astype(np.int64)
    number = self._first[user] + positions // self._step - 1
    number = np.where(real, number, 0)
    bounds = self.offsets if self.num_snapshots else np.zeros(2, np.int64)
    first, end = bounds[number], bounds[number + 1]
    places = end[:, None] - length + np.arange(length)
    mask = (places >= first[:, None]) & real[:, None]
    places = np.where(mask, places, 0)

    def taken(values: np.ndarray) -> np.ndarray:
      if not len(values):
        return np.zeros((*places.shape, *values.shape[1:]), values.dtype)
      where = mask.reshape(mask.shape + (1,) * (values.ndim - 1))
      return values[places] * where

    c = self.clusters
    event = np.where(
      mask, events.offsets[user][:, None] + taken(c.representatives), 0
    )
    labels = [
      events.column(a, 'model.pathways.labels')[event] for a in p.labels
    ]
    stacked = np.stack(labels, -1) if labels else np.zeros((*mask.shape, 0))
    logged = np.isfinite(stacked) & mask[..., None]
    categories: dict[str, np.ndarray] = {}
    if c.categories.shape[1]:
      categories['categories'] = taken(c.categories)
      categories['category_weights'] = taken(c.category_weights)
    return batch.EventSequence(
      items=(events.items[event] * mask).astype(np.int32),
      mask=mask,
      age=self._ages(user, positions, real, taken(c.times), taken(c.timed)),
      numbers=taken(self._numbers),
      labels=(logged & (stacked > 0)).astype(np.float32),
      label_mask=logged,
      **categories,
    )

  def _ages(
    self,
    user: np.ndarray,
    positions: np.ndarray,
    real: np.ndarray,
    times: np.ndarray,
    timed: np.ndarray,
  ) -> np.ndarray:
    """Returns the buckets of the clusters' mean ages; 0 where unknown."""
    events, p = self._events, self._pathways
    if not p.age_dim:
      return np.zeros(times.shape, np.int32)
    place = events.offsets[user] + positions
    known = real & (place < events.offsets[user + 1])
    place = np.where(known, place, 0)
    known &= events.exact_time[place]
    return features_lib.age_ids(
      events.timestamps[place][:, None] - times,
      known[:, None] & timed.astype(bool),
      num_buckets=p.age_buckets,
    )


def _check_meta(
  meta: dict[str, Any],
  pathways: config.PathwaysConfig,
  events: event_table.EventTable,
) -> None:
  wanted = {
    'numbers': [feature.column for feature in pathways.event_features],
    'features': [f.name for f in pathways.item_features if f.average],
    'users': events.num_users,
    'events': events.num_events,
  }
  other = [
    f'{name} {meta[name]}, now {value}'
    for name, value in wanted.items()
    if meta[name] != value
  ]
  if pathways.lifelong_length > meta['max_clusters']:
    other.append(
      f'{meta["max_clusters"]} clusters, now model.pathways.lifelong_length='
      f'{pathways.lifelong_length}'
    )
  if other:
    raise ValueError(
      f"The stage 'lifelong' ran with other settings: {'; '.join(other)}. Run"
      ' it again.'
    )


def _read(path: epath.Path) -> dict[str, np.ndarray]:
  with path.open('rb') as file, np.load(file) as stored:
    return {name: stored[name] for name in stored.files}
