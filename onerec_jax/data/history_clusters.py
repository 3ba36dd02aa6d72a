"""Hierarchical k-means of one user's history, and what its clusters average.

Pure NumPy on plain arrays, so that a worker process needs nothing else.
Reads no files and knows no models; lifelong.py decides what is compressed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

# Points per cluster that a k-means is fitted on; the others are assigned once.
_FIT_POINTS = 256
# Values of an averaged item feature that a cluster keeps.
TOP_VALUES = 8


class Clusters(NamedTuple):
  """Clusters of a history, in the order of their representatives."""

  labels: Int[np.ndarray, ' n']  # cluster of each event
  representatives: Int[np.ndarray, ' C']  # event nearest the centre, rising


class Compressed(NamedTuple):
  """What is kept of some clusters: C clusters, F numbers, Q item features."""

  representatives: Int[np.ndarray, ' C']  # position of the event
  sizes: Int[np.ndarray, ' C']  # events
  times: Int[np.ndarray, ' C']  # mean over the events with an exact time
  timed: Bool[np.ndarray, ' C']  # False: no event has one
  numbers: Float[np.ndarray, 'C F']  # mean over the known values; NaN: none
  categories: Int[np.ndarray, 'C Q K']
  category_weights: Float[np.ndarray, 'C Q K']  # sum to 1; 0: unknown


class History(NamedTuple):
  """Events of one user, oldest first."""

  items: Int[np.ndarray, ' n']  # rows of the item vectors
  timestamps: Int[np.ndarray, ' n']
  exact_time: Bool[np.ndarray, ' n']
  numbers: Float[np.ndarray, 'n F']  # NaN: unknown


# --- Clustering -------------------------------------------------------------


def cluster_history(
  items: Int[np.ndarray, ' n'],
  vectors: Float[np.ndarray, 'I D'],
  *,
  max_cluster_size: int,
  iterations: int,
  random: np.random.Generator,
) -> Clusters:
  """Splits a history into clusters of at most `max_cluster_size` events.

    split(D): |D| <= M: one cluster; else k-means of D with
              k = max(2, ⌊|D|^(1/3)⌋) centres, and split each part

  Events of one item have one vector and stay together, as long as they fit;
  what k-means cannot part (equal vectors) is cut evenly in time.  Of events
  equally near the centre the latest represents the cluster.

  Args:
    items: of the events, oldest first. [n]
    vectors: of all items. [I, D]
    max_cluster_size: M, events.
    iterations: of each k-means.
    random: draws the first centres.

  Reference: technical report arXiv:2506.13695, section 2.2.1.
  """
  distinct, place, counts = np.unique(
    items, return_inverse=True, return_counts=True
  )
  place = place.reshape(-1)
  points = np.asarray(vectors[distinct], np.float32)
  leaf = np.zeros(len(distinct), np.int64)
  num_leaves, too_large = 0, []
  waiting = [np.arange(len(distinct))]
  while waiting:
    node = waiting.pop()
    size = int(counts[node].sum())
    parts = []
    if size > max_cluster_size:
      # The cube root of a cube is often just below a whole number.
      wanted = max(2, int(np.cbrt(size) + 1e-6))
      parts = _split(points[node], counts[node], wanted, iterations, random)
    if len(parts) > 1:
      waiting += [node[part] for part in parts]
      continue
    leaf[node] = num_leaves
    if size > max_cluster_size:
      too_large.append(num_leaves)
    num_leaves += 1
  labels = leaf[place]
  for number in too_large:
    events = np.flatnonzero(labels == number)
    cut = np.array_split(events, -(-len(events) // max_cluster_size))
    for piece in cut[1:]:
      labels[piece] = num_leaves
      num_leaves += 1
  nearest = _representatives(points, place, labels, num_leaves)
  order = np.argsort(nearest)
  rank = np.empty(num_leaves, np.int64)
  rank[order] = np.arange(num_leaves)
  return Clusters(rank[labels], nearest[order])


def _split(
  points: Float[np.ndarray, 'm D'],
  weights: Int[np.ndarray, ' m'],
  num_clusters: int,
  iterations: int,
  random: np.random.Generator,
) -> list[np.ndarray]:
  """Returns the places of the points in each cluster that has any."""
  labels = _kmeans(points, weights, num_clusters, iterations, random)
  order = np.argsort(labels, kind='stable')
  starts = np.flatnonzero(np.diff(labels[order])) + 1
  return np.split(order, starts)


def _kmeans(
  points: np.ndarray,
  weights: np.ndarray,
  num_clusters: int,
  iterations: int,
  random: np.random.Generator,
) -> np.ndarray:
  """Returns labels of a weighted k-means; some clusters may be empty."""
  count = len(points)
  if count <= num_clusters:
    return np.arange(count)
  sample, mass = points, weights.astype(np.float32)
  if count > num_clusters * _FIT_POINTS:
    chosen = random.choice(count, num_clusters * _FIT_POINTS, replace=False)
    sample, mass = points[chosen], mass[chosen]
  centres = sample[random.choice(len(sample), num_clusters, replace=False)]
  for _ in range(iterations):
    labels = _nearest(sample, centres)
    member = np.zeros((len(sample), num_clusters), np.float32)
    member[np.arange(len(sample)), labels] = mass
    total = member.sum(axis=0)
    means = (member.T @ sample) / np.maximum(total, 1)[:, None]
    # An empty cluster waits where it is.
    centres = np.where(total[:, None] > 0, means, centres)
  return _nearest(points, centres)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Returns argmin_k |x - c_k|² = argmax_k x · c_k - |c_k|² / 2."""
  half = 0.5 * np.einsum('kd,kd->k', centres, centres)
  return np.argmax(points @ centres.T - half, axis=1)


def _representatives(
  points: np.ndarray, place: np.ndarray, labels: np.ndarray, num_leaves: int
) -> np.ndarray:
  """Returns the event nearest the mean of each cluster's events."""
  order = np.argsort(labels, kind='stable')
  starts = np.searchsorted(labels[order], np.arange(num_leaves))
  mine = points[place[order]]
  sizes = np.diff(np.append(starts, len(order)))
  centres = np.add.reduceat(mine, starts, axis=0) / sizes[:, None]
  mine -= np.repeat(centres, sizes, axis=0)
  squared = np.einsum('nd,nd->n', mine, mine)
  least = np.minimum.reduceat(squared, starts)
  best = order[squared == np.repeat(least, sizes)]
  result = np.full(num_leaves, -1)
  np.maximum.at(result, labels[best], best)
  return result


# --- Averages ---------------------------------------------------------------


def compress(
  history: History,
  vectors: Float[np.ndarray, 'I D'],
  categories: Sequence[Int[np.ndarray, 'I V']],
  *,
  max_cluster_size: int,
  iterations: int,
  max_clusters: int,
  random: np.random.Generator,
) -> Compressed:
  """Clusters a history and returns the latest clusters with their averages.

  Args:
    history: all events to be compressed.
    vectors: of all items. [I, D]
    categories: values of each averaged item feature, 0: none. [I, V] each
    max_cluster_size: M, events.
    iterations: of each k-means.
    max_clusters: kept, the latest by their representative.
    random: draws the first centres.
  """
  clusters = cluster_history(
    history.items,
    vectors,
    max_cluster_size=max_cluster_size,
    iterations=iterations,
    random=random,
  )
  labels, count = clusters.labels, len(clusters.representatives)
  exact = history.exact_time
  # From the first event on: sums of microseconds since 1970 are inexact.
  base = history.timestamps[0]
  times, timed = _means(
    labels[exact], (history.timestamps - base)[exact], count
  )
  numbers = np.full((count, history.numbers.shape[1]), np.nan)
  for f, values in enumerate(history.numbers.T):
    known = np.isfinite(values)
    mean, found = _means(labels[known], values[known], count)
    numbers[found, f] = mean[found]
  shape = count, len(categories), TOP_VALUES
  values, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for q, table in enumerate(categories):
    values[:, q], weights[:, q] = _top_values(
      labels, table[history.items], count
    )
  first = max(0, count - max_clusters)
  return Compressed(
    representatives=clusters.representatives[first:].astype(np.int32),
    sizes=np.bincount(labels, minlength=count)[first:].astype(np.int32),
    times=(base + np.round(times).astype(np.int64))[first:],
    timed=timed[first:],
    numbers=numbers[first:].astype(np.float32),
    categories=values[first:],
    category_weights=weights[first:],
  )


def nothing(num_numbers: int, num_categories: int) -> Compressed:
  """Returns no clusters, with the shapes and types of `compress`."""
  shape = 0, num_categories, TOP_VALUES
  return Compressed(
    representatives=np.zeros(0, np.int32),
    sizes=np.zeros(0, np.int32),
    times=np.zeros(0, np.int64),
    timed=np.zeros(0, bool),
    numbers=np.zeros((0, num_numbers), np.float32),
    categories=np.zeros(shape, np.int32),
    category_weights=np.zeros(shape, np.float32),
  )


def _means(
  labels: np.ndarray, values: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean of each cluster, and which clusters have a value."""
  number = np.bincount(labels, minlength=count)
  total = np.bincount(labels, weights=values, minlength=count)
  return total / np.maximum(number, 1), number > 0


def _top_values(
  labels: np.ndarray, values: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each cluster's most frequent values and their shares.

  An event spreads a weight of 1 over its known values.
  """
  known = values > 0
  share = known / np.maximum(known.sum(axis=1, keepdims=True), 1)
  event, place = np.nonzero(known)
  span = int(values.max(initial=0)) + 1
  keys, of_key = np.unique(
    labels[event] * span + values[event, place], return_inverse=True
  )
  total = np.bincount(of_key.reshape(-1), weights=share[event, place])
  cluster, value = np.divmod(keys, span)
  order = np.lexsort((value, -total, cluster))
  cluster, value, total = cluster[order], value[order], total[order]
  rank = np.arange(len(order)) - np.searchsorted(cluster, cluster)
  kept = rank < TOP_VALUES
  top = np.zeros((count, TOP_VALUES), np.int32)
  weights = np.zeros((count, TOP_VALUES))
  top[cluster[kept], rank[kept]] = value[kept]
  weights[cluster[kept], rank[kept]] = total[kept]
  whole = weights.sum(axis=1, keepdims=True)
  return top, (weights / np.where(whole > 0, whole, 1)).astype(np.float32)
