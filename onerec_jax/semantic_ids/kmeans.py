"""Plain k-means (Lloyd) and the parts that every quantizer here shares.

Rows are visited in chunks, so that no array of num_points x num_clusters ever
exists.  Pure JAX on arrays that fit one device; sums are additive over shards.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

# Largest distance tile, elements: 8 MB in float32, near the size of a CPU
# core's cache, and still hundreds of rows with 8192 clusters.
_TILE_ELEMENTS = 2**21
# k-means++ is sequential in the clusters; it looks at this many points each.
_PLUS_PLUS_POINTS_PER_CLUSTER = 16


class Nearest(NamedTuple):
  labels: Int[Array, ' I']  # index of the nearest centroid; ties: the lowest
  squared_distances: Float[Array, ' I']  # to it, up to rounding, >= 0


class ClusterSums(NamedTuple):
  """Per-cluster statistics of some points; add them over shards (psum)."""

  sums: Float[Array, 'C D']
  counts: Float[Array, ' C']


class Clustering(NamedTuple):
  centroids: Float[Array, 'C D']  # means of the labels below
  labels: Int[Array, ' I']  # int32
  inertia: float  # mean squared distance of a point to its label's centroid
  iterations: int  # assignments made
  inertias: tuple[float, ...]  # after each iteration


# A rule that labels points, given centroids.
Assign = Callable[[Float[Array, 'I D'], Float[Array, 'C D']], Int[Array, ' I']]


def rows_per_chunk(num_points: int, num_clusters: int) -> int:
  """Returns how many points to compare with all clusters at once."""
  return max(1, min(num_points, max(128, _TILE_ELEMENTS // num_clusters)))


def relative_distances(
  points: Float[Array, 'I D'], centroids: Float[Array, 'C D']
) -> Float[Array, 'I C']:
  """Returns how much nearer each centroid is than the mean of all centroids.

    |x - c|^2 - |x - m|^2,  m = Σ_k c_k / C

  The second part is the same for all choices of a point and keeps numbers
  small and independent of the origin.

  Args:
    points: [I, D]
    centroids: [C, D]
  """
  middle = jnp.mean(centroids, 0)
  shifted = centroids - middle[None]
  # Full float32: the default precision of TPUs (bfloat16) flips neighbours.
  products = jnp.einsum(
    'id,cd->ic', points, shifted, precision=jax.lax.Precision.HIGHEST
  )
  constants = jnp.sum(shifted * (shifted + 2 * middle[None]), 1)
  return constants[None] - 2 * products


def argmin_rows(
  values: Float[Array, 'I C'],
) -> tuple[Int[Array, ' I'], Float[Array, ' I']]:
  """Returns the position (lowest at ties) and value of each row's minimum."""
  # Two vectorised reductions: twice as fast on CPU as jnp.argmin.
  least = jnp.min(values, 1)
  columns = jnp.arange(values.shape[1], dtype=jnp.int32)
  position = jnp.min(
    jnp.where(values == least[:, None], columns[None], values.shape[1]), 1
  )
  return position, least


@functools.partial(jax.jit, static_argnames='chunk')
def nearest(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  chunk: int | None = None,
) -> Nearest:
  """Finds the nearest centroid of each point.

    label_i = argmin_k |x_i - c_k|^2

  Args:
    points: [I, D]
    centroids: [C, D]
    chunk: points compared at a time; None: chosen by size. Changes memory,
      not labels.

  Reference: arXiv:2502.18965, eq. 2 (nearest code of a residual).
  """
  num_points = points.shape[0]
  rows = min(chunk or rows_per_chunk(num_points, len(centroids)), num_points)
  middle = jnp.mean(centroids, 0)

  def visit(start, result):
    part = jax.lax.dynamic_slice_in_dim(points, start, rows)
    labels, least = argmin_rows(relative_distances(part, centroids))
    squared = jnp.maximum(least + jnp.sum((part - middle[None]) ** 2, 1), 0)
    return Nearest(
      jax.lax.dynamic_update_slice_in_dim(result.labels, labels, start, 0),
      jax.lax.dynamic_update_slice_in_dim(
        result.squared_distances, squared, start, 0
      ),
    )

  return for_chunks(
    num_points,
    rows,
    visit,
    Nearest(
      jnp.zeros(num_points, jnp.int32), jnp.zeros(num_points, jnp.float32)
    ),
  )


def for_chunks(
  num_points: int,
  rows: int,
  visit: Callable[[Array, Any], Any],
  carry: Any,
) -> Any:
  """Returns `carry` after `visit(start, carry)` for each chunk of `rows`.

  The last chunk starts early enough to be whole, so that points need no
  padded copy; its first rows are visited twice.
  """
  count = -(-num_points // rows)
  return jax.lax.fori_loop(
    0,
    count,
    lambda i, c: visit(jnp.minimum(i * rows, num_points - rows), c),
    carry,
  )


def cluster_sums(
  points: Float[Array, 'I D'], labels: Int[Array, ' I'], *, num_clusters: int
) -> ClusterSums:
  """Returns the sum and the number of the points of each cluster."""
  ones = jnp.ones(points.shape[0], jnp.float32)
  return ClusterSums(
    jax.ops.segment_sum(points, labels, num_clusters),
    jax.ops.segment_sum(ones, labels, num_clusters),
  )


def means(
  sums: ClusterSums, previous: Float[Array, 'C D']
) -> Float[Array, 'C D']:
  """Returns the cluster means; an empty cluster keeps its old centroid."""
  return jnp.where(
    sums.counts[:, None] > 0,
    sums.sums / jnp.maximum(sums.counts, 1)[:, None],
    previous,
  )


def mean_squared_error(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  labels: Int[Array, ' I'],
) -> Float[Array, '']:
  """Returns the mean squared distance of points to their label's centroid."""
  return jnp.mean(jnp.sum((points - centroids[labels]) ** 2, 1))


@functools.partial(jax.jit, static_argnames=('num_clusters', 'method'))
def initial_centroids(
  points: Float[Array, 'I D'],
  *,
  num_clusters: int,
  method: Literal['random', 'kmeans++'],
  key: jax.Array,
) -> Float[Array, 'C D']:
  """Chooses the points that the centroids start from.

  random: distinct points, uniformly.  kmeans++: each next point with
  probability proportional to its squared distance from those chosen, among
  at most 16 * num_clusters points drawn first.

  Args:
    points: [I, D]
    num_clusters: C, at most I.
    key: random key, used once.

  Reference: arXiv:2502.18965, Algorithm 1 (random selection); Arthur and
    Vassilvitskii 2007 (k-means++).
  """
  num_points = points.shape[0]
  draw_key, plus_plus_key = jax.random.split(key)
  if method == 'random':
    chosen = jax.random.choice(
      draw_key, num_points, (num_clusters,), replace=False
    )
    return points[chosen]
  drawn = min(num_points, _PLUS_PLUS_POINTS_PER_CLUSTER * num_clusters)
  sample = points[
    jax.random.choice(draw_key, num_points, (drawn,), replace=False)
  ]

  def choose(i, state):
    chosen, distances = state
    weights = jnp.where(jnp.all(distances <= 0), 1.0, distances)
    pick = jax.random.categorical(
      jax.random.fold_in(plus_plus_key, i), jnp.log(weights)
    )
    new = jnp.sum((sample - sample[pick][None]) ** 2, 1)
    return chosen.at[i].set(pick), jnp.minimum(distances, new)

  first = jax.random.randint(plus_plus_key, (), 0, drawn)
  chosen = jnp.zeros(num_clusters, jnp.int32).at[0].set(first)
  distances = jnp.sum((sample - sample[first][None]) ** 2, 1)
  chosen, _ = jax.lax.fori_loop(1, num_clusters, choose, (chosen, distances))
  return sample[chosen]


@jax.jit
def reseed_empty(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  labels: Int[Array, ' I'],
  counts: Float[Array, ' C'],
) -> Float[Array, 'C D']:
  """Moves each empty cluster to one of the worst-represented points.

  Args:
    points: [I, D]
    centroids: [C, D], C <= I
    labels: [I]
    counts: points per cluster; 0 marks the empty ones. [C]
  """
  errors = jnp.sum((points - centroids[labels]) ** 2, 1)
  _, farthest = jax.lax.top_k(errors, centroids.shape[0])
  empty = counts == 0
  nth_empty = jnp.cumsum(empty) - 1
  return jnp.where(empty[:, None], points[farthest[nth_empty]], centroids)


@jax.jit
def _update(points, labels, centroids):
  sums = cluster_sums(points, labels, num_clusters=centroids.shape[0])
  updated = means(sums, centroids)
  return updated, sums.counts, mean_squared_error(points, updated, labels)


def iterate(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  assign: Assign,
  max_iterations: int,
  tolerance: float,
) -> Clustering:
  """Alternates assignment and means until nothing moves.

  Args:
    points: [I, D]
    centroids: where to start. [C, D]
    assign: labels points, given centroids.
    max_iterations: most assignments, at least 1.
    tolerance: stop when the inertia changes by less than this share.

  Returns:
    The clustering; its centroids are the means of its labels.

  Raises:
    ValueError: fewer points than clusters, no iterations, or values that are
      not finite.
  """
  check(points, num_clusters=centroids.shape[0])
  if max_iterations < 1:
    raise ValueError(f'max_iterations={max_iterations} must be at least 1.')
  labels = None
  inertias = []
  for iteration in range(max_iterations):
    previous = labels
    labels = assign(points, centroids)
    centroids, counts, inertia = _update(points, labels, centroids)
    inertias.append(float(inertia))
    if previous is not None and bool(jnp.all(labels == previous)):
      break
    if (
      len(inertias) > 1
      and abs(inertias[-2] - inertias[-1]) <= tolerance * inertias[-2]
    ):
      break
    # Not after the last assignment: centroids stay the means of the labels.
    if iteration + 1 < max_iterations and bool(jnp.any(counts == 0)):
      centroids = reseed_empty(points, centroids, labels, counts)
  assert labels is not None
  return Clustering(
    centroids, labels, inertias[-1], len(inertias), tuple(inertias)
  )


def fit_kmeans(
  points: Float[Array, 'I D'],
  *,
  num_clusters: int,
  key: jax.Array,
  init: Literal['random', 'kmeans++'] = 'random',
  max_iterations: int = 50,
  tolerance: float = 1e-4,
) -> Clustering:
  """Fits plain k-means (Lloyd); empty clusters move to the farthest points.

  Args:
    points: [I, D], I >= num_clusters
    num_clusters: C
    key: random key of the initial centroids.
    init: see `initial_centroids`.
    max_iterations: most assignments.
    tolerance: stop when the inertia changes by less than this share.

  Raises:
    ValueError: see `iterate`.

  Reference: arXiv:2506.13695, section 2.1.2 (RQ-Kmeans).
  """
  check(points, num_clusters=num_clusters)
  centroids = initial_centroids(
    points, num_clusters=num_clusters, method=init, key=key
  )
  return iterate(
    points,
    centroids,
    assign=lambda p, c: nearest(p, c).labels,
    max_iterations=max_iterations,
    tolerance=tolerance,
  )


def check(points: Float[Array, 'I D'], *, num_clusters: int) -> None:
  """Raises ValueError unless `points` can be cut into `num_clusters`."""
  if num_clusters < 1 or points.shape[0] < num_clusters:
    raise ValueError(
      f'{points.shape[0]} points cannot fill {num_clusters} clusters: set'
      f' tokenizer.codes_per_level to at most {points.shape[0]} (and at'
      ' least 1).'
    )
  # 16: room for |x - c|^2 of two such points; the rounds of balanced k-means
  # would never end on distances that are not finite.
  finite = np.asarray(jnp.isfinite(16 * jnp.sum(points**2, 1)))
  if not finite.all():
    raise ValueError(
      f'{int((~finite).sum())} of {len(finite)} points hold values that are'
      f' NaN, infinite or beyond 1e18, first in row {int(np.argmin(finite))}:'
      ' clean the embeddings.'
    )
