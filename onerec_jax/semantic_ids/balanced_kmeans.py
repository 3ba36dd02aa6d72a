"""Balanced k-means: every cluster has floor(N/K) or ceil(N/K) points, always.

Two assignment rules: the literal Algorithm 1 of arXiv:2502.18965 (cluster by
cluster) and parallel rounds (nearer to the optimum).  Both are compiled and
never hold an array of num_points x num_clusters.
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


@jax.jit
def assign_sequentially(
  points: Float[Array, 'I D'], centroids: Float[Array, 'C D']
) -> Int[Array, ' I']:
  """Labels points cluster by cluster, each taking its nearest free points.

  for k = 1..K: V_k = the w_k free points nearest to c_k, w_k = ceil(N/K) for
  k <= N mod K, else floor(N/K).  (Updating c_k inside the sweep, as printed,
  is the same: no later cluster looks at it.)  Ties go to the lower row.

  Args:
    points: [I, D]
    centroids: [C, D], C <= I

  Returns:
    labels with exact cluster sizes. int32 [I]

  Reference: arXiv:2502.18965, Algorithm 1.
  """
  num_points, num_clusters = points.shape[0], centroids.shape[0]
  most = -(-num_points // num_clusters)
  block = max(1, min(num_clusters, 64, _SEQUENTIAL_ELEMENTS // num_points))
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
      _, rows = jax.lax.top_k(closeness, most)
      taken = jnp.arange(most) < sizes[cluster]
      return labels.at[jnp.where(taken, rows, num_points)].set(
        cluster, mode='drop'
      )

    return jax.lax.fori_loop(0, block, take, labels)

  return jax.lax.fori_loop(
    0, num_blocks, take_block, jnp.full(num_points, -1, jnp.int32)
  )


# --- Parallel rounds --------------------------------------------------------


@functools.partial(jax.jit, static_argnames=('num_candidates', 'chunk'))
def assign_in_rounds(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  num_candidates: int = _NUM_CANDIDATES,
  chunk: int | None = None,
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

  Returns:
    labels with exact cluster sizes. int32 [I]
  """
  num_points, num_clusters = points.shape[0], centroids.shape[0]
  width = min(num_candidates, num_clusters)
  rows = min(
    chunk or kmeans.rows_per_chunk(num_points, num_clusters), num_points
  )
  costs, clusters = _candidates(points, centroids, width, rows)
  demand = jnp.zeros(num_clusters, jnp.int32).at[clusters[:, 0]].add(1)
  room = cluster_sizes(jnp.argsort(-demand), num_points=num_points)
  state = _Proposals(jnp.full(num_points, -1, jnp.int32), room, costs, clusters)
  split = num_points >= _SMALLEST_TO_SPLIT
  late = int(num_points * _LATE_SHARE) if split else 0
  everyone = jnp.arange(num_points, dtype=jnp.int32)
  state = _rounds(state, points, everyone, centroids, rows, until=late)
  if not split:
    return state.labels
  (who,) = jnp.nonzero(state.labels < 0, size=late, fill_value=num_points)
  inside = jnp.minimum(who, num_points - 1)
  rest = _Proposals(
    jnp.where(who < num_points, -1, 0),
    state.room,
    state.costs[inside],
    state.clusters[inside],
  )
  rest = _rounds(rest, points, inside, centroids, rows, until=0)
  return state.labels.at[who].set(rest.labels, mode='drop')


class _Proposals(NamedTuple):
  """Where the rounds stand, for some points."""

  labels: Int[Array, ' S']  # -1: free
  room: Int[Array, ' C']  # free places of each cluster
  costs: Float[Array, 'S m']  # of the candidates, rising; inf: none
  clusters: Int[Array, 'S m']  # candidates


def _rounds(
  state: _Proposals,
  points: Float[Array, 'I D'],
  who: Int[Array, ' S'],
  centroids: Float[Array, 'C D'],
  rows: int,
  *,
  until: int,
) -> _Proposals:
  """Runs rounds for points[who] until at most `until` of them are free."""
  return jax.lax.while_loop(
    lambda s: jnp.sum(s.room) > until,
    lambda s: _round(s, points, who, centroids, rows),
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


def _round(state, points, who, centroids, rows):
  """Returns the state after one round of proposals by the free points."""
  labels, room, _, _ = state
  costs, clusters = _refill(state, points, who, centroids, rows)
  open_ = (room[clusters] > 0) & (costs < jnp.inf)
  first = jnp.argmax(open_, 1)[:, None]
  cluster = jnp.where(
    labels < 0,
    jnp.take_along_axis(clusters, first, 1)[:, 0],
    centroids.shape[0],
  )
  cost = jnp.take_along_axis(costs, first, 1)[:, 0]
  accepted, room = _accept(cluster, cost, room)
  return _Proposals(jnp.where(accepted, cluster, labels), room, costs, clusters)


def _refill(state, points, who, centroids, rows):
  """Returns candidates; free points that had none open get open ones."""
  labels, room, costs, clusters = state
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
  cluster: Int[Array, ' S'], cost: Float[Array, ' S'], room: Int[Array, ' C']
) -> tuple[Bool[Array, ' S'], Int[Array, ' C']]:
  """Accepts the cheapest proposals of each cluster, up to its room.

  The only step that compares points with each other.  For sharded points the
  same choice is a cost threshold per cluster, found from counts alone.

  Args:
    cluster: proposed cluster; C means no proposal. [S]
    cost: lower is better; ties go to the earlier row. [S]
    room: free places. [C]

  Returns:
    accepted proposals [S] and the room that is left [C].
  """
  size, num_clusters = cluster.shape[0], room.shape[0]
  by_cluster, _, row = jax.lax.sort(
    (cluster, cost, jnp.arange(size, dtype=jnp.int32)), num_keys=2
  )
  counts = jnp.zeros(num_clusters + 1, jnp.int32).at[cluster].add(1)
  starts = jnp.cumsum(counts) - counts
  place = jnp.arange(size, dtype=jnp.int32) - starts[by_cluster]
  fits = place < jnp.append(room, 0)[by_cluster]
  accepted = jnp.zeros(size, bool).at[row].set(fits)
  return accepted, jnp.maximum(room - counts[:-1], 0)


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
) -> kmeans.Clustering:
  """Fits k-means whose clusters have equal size at every iteration.

  Args:
    points: [I, D], I >= num_clusters
    num_clusters: C
    key: random key of the initial centroids.
    assignment: rounds (nearer to the optimum) or sequential (Algorithm 1).
    init: see `kmeans.initial_centroids`.
    max_iterations: most assignments; neither rule is sure to converge.
    tolerance: stop when the inertia changes by less than this share.

  Raises:
    ValueError: see `kmeans.iterate`.

  Reference: arXiv:2502.18965, Algorithm 1.
  """
  kmeans.check(points, num_clusters=num_clusters)
  centroids = kmeans.initial_centroids(
    points, num_clusters=num_clusters, method=init, key=key
  )
  rules = {'rounds': assign_in_rounds, 'sequential': assign_sequentially}
  return kmeans.iterate(
    points,
    centroids,
    assign=rules[assignment],
    max_iterations=max_iterations,
    tolerance=tolerance,
  )
