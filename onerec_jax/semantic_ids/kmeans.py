"""Plain k-means (Lloyd) and the parts that every quantizer here shares.

Rows are visited in chunks, so that no array of num_points x num_clusters ever
exists.  Points may be split over devices (`shards`): labels are then those of
one device up to the order in which floats are summed into centroids.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import point_shards
from onerec_jax.semantic_ids import seeding

Shards = point_shards.Shards

# Largest distance tile, elements: 8 MB in float32, near the size of a CPU
# core's cache, and still hundreds of rows with 8192 clusters.
_TILE_ELEMENTS = 2**21


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


@functools.partial(jax.jit, static_argnames=('chunk', 'shards'))
def nearest(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  chunk: int | None = None,
  shards: Shards | None = None,
) -> Nearest:
  """Finds the nearest centroid of each point.

    label_i = argmin_k |x_i - c_k|^2

  Args:
    points: [I, D]
    centroids: [C, D]
    chunk: points compared at a time; None: chosen by size. Changes memory,
      not labels.
    shards: where the points are; None: on one device.  Rows that fill up get
      label 0.

  Reference: arXiv:2502.18965, section 3.1 (nearest code of a residual).
  """
  if shards is not None:

    def local(real, points, centroids):
      labels, squared = nearest(points, centroids, chunk=chunk)
      return point_shards.mask_rows(labels, real), squared

    run = point_shards.on_shards(local, shards, in_rows='rw', out_rows='rr')
    return Nearest(*run(points, centroids))
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


@functools.partial(jax.jit, static_argnames='shards')
def _update(points, labels, centroids, *, shards):
  """Returns the means of the labels, their counts, and the inertia."""
  num_clusters = centroids.shape[0]
  if shards is None:
    sums = cluster_sums(points, labels, num_clusters=num_clusters)
    updated = means(sums, centroids)
    return updated, sums.counts, mean_squared_error(points, updated, labels)

  def local(
    real: Bool[Array, ' I'],
    points: Float[Array, 'I D'],
    labels: Int[Array, ' I'],
    centroids: Float[Array, 'C D'],
  ):
    inside = jnp.where(real, labels, num_clusters)  # beyond: left out
    sums = jax.lax.psum(
      cluster_sums(points, inside, num_clusters=num_clusters), shards.axes
    )
    updated = means(sums, centroids)
    errors = jnp.sum((points - updated[labels]) ** 2, 1)
    total = jax.lax.psum(jnp.sum(jnp.where(real, errors, 0)), shards.axes)
    return updated, sums.counts, total / shards.num_points

  return point_shards.on_shards(local, shards, in_rows='rrw', out_rows='www')(
    points, labels, centroids
  )


@functools.partial(jax.jit, static_argnames='shards')
def residuals(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  labels: Int[Array, ' I'],
  *,
  shards: Shards | None = None,
) -> Float[Array, 'I D']:
  """Returns what each point's centroid leaves over; split as the points."""
  if shards is None:
    return points - centroids[labels]
  run = point_shards.on_shards(
    lambda real, points, labels, centroids: points - centroids[labels],
    shards,
    in_rows='rrw',
    out_rows='r',
  )
  return run(points, labels, centroids)


def iterate(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  *,
  assign: Assign,
  max_iterations: int,
  tolerance: float,
  shards: Shards | None = None,
) -> Clustering:
  """Alternates assignment and means until nothing moves.

  Args:
    points: [I, D]
    centroids: where to start. [C, D]
    assign: labels points, given centroids.
    max_iterations: most assignments, at least 1.
    tolerance: stop when the inertia changes by less than this share.
    shards: where the points are; None: on one device.

  Returns:
    The clustering; its centroids are the means of its labels, which lie where
    the points do.

  Raises:
    ValueError: fewer points than clusters, no iterations, or values that are
      not finite.
  """
  check(points, num_clusters=centroids.shape[0], shards=shards)
  if max_iterations < 1:
    raise ValueError(f'max_iterations={max_iterations} must be at least 1.')
  labels = None
  inertias = []
  for iteration in range(max_iterations):
    previous = labels
    labels = assign(points, centroids)
    centroids, counts, inertia = _update(
      points, labels, centroids, shards=shards
    )
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
      centroids = seeding.reseed_empty(
        points, centroids, labels, counts, shards=shards
      )
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
  shards: Shards | None = None,
) -> Clustering:
  """Fits plain k-means (Lloyd); empty clusters move to the farthest points.

  Args:
    points: [I, D], I >= num_clusters
    num_clusters: C
    key: random key of the initial centroids.
    init: see `seeding.initial_centroids`.
    max_iterations: most assignments.
    tolerance: stop when the inertia changes by less than this share.
    shards: where the points are; None: on one device.

  Raises:
    ValueError: see `iterate`.

  Reference: arXiv:2506.13695, section 2.1.2 (RQ-Kmeans).
  """
  check(points, num_clusters=num_clusters, shards=shards)
  centroids = seeding.initial_centroids(
    points, num_clusters=num_clusters, method=init, key=key, shards=shards
  )
  return iterate(
    points,
    centroids,
    assign=lambda p, c: nearest(p, c, shards=shards).labels,
    max_iterations=max_iterations,
    tolerance=tolerance,
    shards=shards,
  )


def check(
  points: Float[Array, 'I D'],
  *,
  num_clusters: int,
  shards: Shards | None = None,
) -> None:
  """Raises ValueError unless `points` can be cut into `num_clusters`."""
  num_points = points.shape[0] if shards is None else shards.num_points
  if num_clusters < 1 or num_points < num_clusters:
    raise ValueError(
      f'{num_points} points cannot fill {num_clusters} clusters: set'
      f' tokenizer.codes_per_level to at most {num_points} (and at least 1).'
    )
  count, first = _not_finite(points)
  if int(count):
    raise ValueError(
      f'{int(count)} of {num_points} points hold values that are'
      f' NaN, infinite or beyond 1e18, first in row {int(first)}:'
      ' clean the embeddings.'
    )


@jax.jit
def _not_finite(points):
  # 16: room for |x - c|^2 of two such points; the rounds of balanced k-means
  # would never end on distances that are not finite.
  bad = ~jnp.isfinite(16 * jnp.sum(points**2, 1))
  return jnp.sum(bad), jnp.argmax(bad)
