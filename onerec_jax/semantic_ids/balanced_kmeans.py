"""Balanced k-means: every cluster has floor(N/K) or ceil(N/K) points, always.

Two assignment rules: the literal Algorithm 1 of arXiv:2502.18965 (cluster by
cluster) and parallel rounds (nearer to the optimum).  Both are compiled, never
hold an array of num_points x num_clusters, and label points that are split over
devices (`shards`) as they label them on one.
"""

import functools
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import kmeans
from onerec_jax.semantic_ids import point_shards
from onerec_jax.semantic_ids import seeding

# Nearest clusters kept per point and pass.  It changes speed, not labels: a
# point whose candidates have all filled up looks again at what is open.
_NUM_CANDIDATES = 4
# Once this share of the points is free, rounds go on with those alone: a late
# round then need not sort all points.  Small problems stay in one piece, as
# the second piece doubles the time to compile.
_LATE_SHARE = 1 / 8
_SMALLEST_TO_SPLIT = 8192
# Algorithm 1 holds the distances of this many (point, cluster) pairs.
_SEQUENTIAL_ELEMENTS = 2**24


def cluster_sizes(
  order: Int[Array, ' C'], *, num_points: int
) -> Int[Array, ' C']:
  """Returns exact sizes; the first N mod K clusters of `order` get one more.

  Args:
    order: a permutation of the clusters. [C]
    num_points: N

  Returns:
    size of each cluster, summing to num_points. int32 [C]
  """
  num_clusters = order.shape[0]
  small, extra = divmod(num_points, num_clusters)
  sizes = small + (jnp.arange(num_clusters) < extra).astype(jnp.int32)
  return jnp.zeros(num_clusters, jnp.int32).at[order].set(sizes)


# --- Algorithm 1 ------------------------------------------------------------


@functools.partial(jax.jit, static_argnames='shards')
def assign_sequentially(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  shards: kmeans.Shards | None = None,
) -> Int[Array, ' I']:
  """Labels points cluster by cluster, each taking its nearest free points.

  for k = 1..K: V_k = the w_k free points nearest to c_k, w_k = ceil(N/K) for
  k <= N mod K, else floor(N/K).  (Updating c_k inside the sweep, as printed,
  is the same: no later cluster looks at it.)  Ties go to the lower row.

  Args:
    points: [I, D]
    centroids: [C, D], C <= I
    shards: where the points are; None: on one device.

  Returns:
    labels with exact cluster sizes. int32 [I]

  Reference: arXiv:2502.18965, Algorithm 1.
  """
  if shards is None:
    everyone = jnp.ones(points.shape[0], bool)
    return _sweep(everyone, points, centroids, None)
  return point_shards.on_shards(
    functools.partial(_sweep, shards=shards),
    shards,
    in_rows='rw',
    out_rows='r',
  )(points, centroids)


def _sweep(real, points, centroids, shards):
  size, num_clusters = points.shape[0], centroids.shape[0]
  num_points = size if shards is None else shards.num_points
  most = -(-num_points // num_clusters)
  block = max(1, min(num_clusters, 64, _SEQUENTIAL_ELEMENTS // size))
  num_blocks = -(-num_clusters // block)
  padding = num_blocks * block - num_clusters
  sizes = cluster_sizes(jnp.arange(num_clusters), num_points=num_points)
  sizes = jnp.pad(sizes, (0, padding))  # padded clusters take nothing
  blocks = jnp.pad(centroids, ((0, padding), (0, 0)))
  norms = jnp.sum(points**2, 1)

  def take_block(b, labels):
    part = jax.lax.dynamic_slice_in_dim(blocks, b * block, block)
    distances = (
      norms[None]
      + jnp.sum(part**2, 1)[:, None]
      - 2
      * jnp.einsum(
        'cd,id->ci', part, points, precision=jax.lax.Precision.HIGHEST
      )
    )

    def take(j, labels):
      cluster = b * block + j
      closeness = jnp.where(labels < 0, -distances[j], -jnp.inf)
      if shards is None:
        _, rows = jax.lax.top_k(closeness, most)
      else:
        _, rows = point_shards.largest(closeness, count=most, shards=shards)
        rows = rows - point_shards.first_row(shards, size)
      taken = (jnp.arange(most) < sizes[cluster]) & (rows >= 0)
      return labels.at[jnp.where(taken, rows, size)].set(cluster, mode='drop')

    return jax.lax.fori_loop(0, block, take, labels)

  return jax.lax.fori_loop(
    0, num_blocks, take_block, jnp.where(real, jnp.int32(-1), 0)
  )


# --- Parallel rounds --------------------------------------------------------


@functools.partial(
  jax.jit, static_argnames=('num_candidates', 'chunk', 'shards')
)
def assign_in_rounds(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  num_candidates: int = _NUM_CANDIDATES,
  chunk: int | None = None,
  shards: kmeans.Shards | None = None,
) -> Int[Array, ' I']:
  """Labels points in rounds of proposals, until all have a place.

  Each round, every free point proposes to its nearest cluster that has room,
  and each cluster accepts proposals up to its room, lowest first by

    |x - c|^2 - |x - m|^2,  m = Σ_k c_k / C

  (what the point gains over the middle of all clusters; 1 % less inertia than
  accepting the nearest).  The clusters nearest to most points take the
  N mod K extra places.  Ties go to the lower row.

  Args:
    points: [I, D]
    centroids: [C, D], C <= I
    num_candidates: clusters remembered per point; speed only.
    chunk: points compared with all clusters at a time; memory only.
    shards: where the points are; None: on one device.

  Returns:
    labels with exact cluster sizes. int32 [I]
  """
  run = functools.partial(
    _label_in_rounds, width=num_candidates, chunk=chunk, shards=shards
  )
  if shards is None:
    return run(jnp.ones(points.shape[0], bool), points, centroids)
  return point_shards.on_shards(run, shards, in_rows='rw', out_rows='r')(
    points, centroids
  )


def _label_in_rounds(real, points, centroids, *, width, chunk, shards):
  size, num_clusters = points.shape[0], centroids.shape[0]
  width = min(width, num_clusters)
  rows = min(chunk or kmeans.rows_per_chunk(size, num_clusters), size)
  costs, clusters = _candidates(points, centroids, width, rows)
  wanted = jnp.where(real, clusters[:, 0], num_clusters)
  demand = jnp.zeros(num_clusters, jnp.int32).at[wanted].add(1, mode='drop')
  if shards is not None:
    demand = jax.lax.psum(demand, shards.axes)
  room = cluster_sizes(
    jnp.argsort(-demand),
    num_points=size if shards is None else shards.num_points,
  )
  labels = jnp.where(real, jnp.int32(-1), 0)
  state = _Proposals(labels, room, _waiting(labels, shards), costs, clusters)
  split = size >= _SMALLEST_TO_SPLIT
  late = int(size * _LATE_SHARE) if split else 0
  everyone = jnp.arange(size, dtype=jnp.int32)
  run = functools.partial(
    _rounds, points=points, centroids=centroids, rows=rows, shards=shards
  )
  state = run(state, who=everyone, until=late)
  if not split:
    return state.labels
  (who,) = jnp.nonzero(state.labels < 0, size=late, fill_value=size)
  inside = jnp.minimum(who, size - 1)
  rest = _Proposals(
    jnp.where(who < size, -1, 0),
    state.room,
    state.waiting,
    state.costs[inside],
    state.clusters[inside],
  )
  rest = run(rest, who=inside, until=0)
  return state.labels.at[who].set(rest.labels, mode='drop')


class _Proposals(NamedTuple):
  """Where the rounds stand, for some points."""

  labels: Int[Array, ' S']  # -1: free
  room: Int[Array, ' C']  # free places of each cluster
  waiting: Int[Array, '']  # free points of the device that has most of them
  costs: Float[Array, 'S m']  # of the candidates, rising; inf: none
  clusters: Int[Array, 'S m']  # candidates


def _waiting(labels, shards):
  free = jnp.sum(labels < 0, dtype=jnp.int32)
  return free if shards is None else jax.lax.pmax(free, shards.axes)


def _rounds(
  state: _Proposals,
  *,
  points: Float[Array, 'I D'],
  who: Int[Array, ' S'],
  centroids: Float[Array, 'C D'],
  rows: int,
  shards: kmeans.Shards | None,
  until: int,
) -> _Proposals:
  """Runs rounds for points[who] until at most `until` of them are free."""
  return jax.lax.while_loop(
    lambda s: s.waiting > until,
    lambda s: _round(s, points, who, centroids, rows, shards),
    state,
  )


def _candidates(points, centroids, width, rows):
  """Returns the `width` lowest relative distances and their clusters."""
  num_points = points.shape[0]

  def visit(start, result):
    part = jax.lax.dynamic_slice_in_dim(points, start, rows)
    found = _lowest(kmeans.relative_distances(part, centroids), width)
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(old, new, start, 0)
      for old, new in zip(result, found, strict=True)
    )

  return kmeans.for_chunks(
    num_points,
    rows,
    visit,
    (
      jnp.zeros((num_points, width), jnp.float32),
      jnp.zeros((num_points, width), jnp.int32),
    ),
  )


def _lowest(values, width):
  negative, position = jax.lax.top_k(-values, width)
  return -negative, position.astype(jnp.int32)


def _round(state, points, who, centroids, rows, shards):
  """Returns the state after one round of proposals by the free points."""
  labels, room = state.labels, state.room
  costs, clusters = _refill(state, points, who, centroids, rows)
  open_ = (room[clusters] > 0) & (costs < jnp.inf)
  first = jnp.argmax(open_, 1)[:, None]
  cluster = jnp.where(
    labels < 0,
    jnp.take_along_axis(clusters, first, 1)[:, 0],
    centroids.shape[0],
  )
  cost = jnp.take_along_axis(costs, first, 1)[:, 0]
  accepted, room = _accept(cluster, cost, room, shards)
  labels = jnp.where(accepted, cluster, labels)
  return _Proposals(labels, room, _waiting(labels, shards), costs, clusters)


def _refill(state, points, who, centroids, rows):
  """Returns candidates; free points that had none open get open ones."""
  labels, room, _, costs, clusters = state
  size, width = costs.shape
  block = min(rows, size)

  open_ = (room[clusters] > 0) & (costs < jnp.inf)
  lacks = (labels < 0) & ~jnp.any(open_, 1)

  def fill(carry):
    lacks, costs, clusters = carry
    (index,) = jnp.nonzero(lacks, size=block, fill_value=size)
    part = points[who[jnp.minimum(index, size - 1)]]
    distances = kmeans.relative_distances(part, centroids)
    found = _lowest(jnp.where(room[None] > 0, distances, jnp.inf), width)
    return (
      lacks.at[index].set(False, mode='drop'),
      costs.at[index].set(found[0], mode='drop'),
      clusters.at[index].set(found[1], mode='drop'),
    )

  _, costs, clusters = jax.lax.while_loop(
    lambda carry: jnp.any(carry[0]), fill, (lacks, costs, clusters)
  )
  return costs, clusters


def _accept(
  cluster: Int[Array, ' S'],
  cost: Float[Array, ' S'],
  room: Int[Array, ' C'],
  shards: kmeans.Shards | None,
) -> tuple[Bool[Array, ' S'], Int[Array, ' C']]:
  """Accepts the cheapest proposals of each cluster, up to its room.

  The only step that compares points with each other.

  Args:
    cluster: proposed cluster; C means no proposal. [S]
    cost: lower is better; ties go to the earlier row. [S]
    room: free places. [C]
    shards: where the points are; None: on one device.

  Returns:
    accepted proposals [S] and the room that is left [C].
  """
  size, num_clusters = cluster.shape[0], room.shape[0]
  by_cluster, by_cost, row = jax.lax.sort(
    (cluster, cost, jnp.arange(size, dtype=jnp.int32)), num_keys=2
  )
  counts = jnp.zeros(num_clusters + 1, jnp.int32).at[cluster].add(1)
  starts = jnp.cumsum(counts) - counts
  place = jnp.arange(size, dtype=jnp.int32) - starts[by_cluster]
  limit, total = room, counts[:-1]
  if shards is not None:
    limit, total = point_shards.limits(
      by_cost, starts[:-1], counts[:-1], room, shards
    )
  fits = place < jnp.append(limit, 0)[by_cluster]
  accepted = jnp.zeros(size, bool).at[row].set(fits)
  return accepted, jnp.maximum(room - total, 0)


# --- Fit --------------------------------------------------------------------


def fit_balanced_kmeans(
  points: Float[Array, 'I D'],
  *,
  num_clusters: int,
  key: jax.Array,
  assignment: Literal['rounds', 'sequential'] = 'rounds',
  init: Literal['random', 'kmeans++'] = 'random',
  max_iterations: int = 50,
  tolerance: float = 1e-4,
  shards: kmeans.Shards | None = None,
) -> kmeans.Clustering:
  """Fits k-means whose clusters have equal size at every iteration.

  Args:
    points: [I, D], I >= num_clusters
    num_clusters: C
    key: random key of the initial centroids.
    assignment: rounds (nearer to the optimum) or sequential (Algorithm 1).
    init: see `seeding.initial_centroids`.
    max_iterations: most assignments; neither rule is sure to converge.
    tolerance: stop when the inertia changes by less than this share.
    shards: where the points are; None: on one device.

  Raises:
    ValueError: see `kmeans.iterate`.

  Reference: arXiv:2502.18965, Algorithm 1.
  """
  kmeans.check(points, num_clusters=num_clusters, shards=shards)
  centroids = seeding.initial_centroids(
    points, num_clusters=num_clusters, method=init, key=key, shards=shards
  )
  rules = {'rounds': assign_in_rounds, 'sequential': assign_sequentially}
  return kmeans.iterate(
    points,
    centroids,
    assign=functools.partial(rules[assignment], shards=shards),
    max_iterations=max_iterations,
    tolerance=tolerance,
    shards=shards,
  )
