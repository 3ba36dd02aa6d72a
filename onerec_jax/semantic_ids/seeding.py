"""Where clusters start, and where empty ones start again.

Pure JAX; points on one device or split over several give the same choice.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import point_shards

Shards = point_shards.Shards

# k-means++ is sequential in the clusters; it looks at this many points each.
_PLUS_PLUS_POINTS_PER_CLUSTER = 16


@functools.partial(
  jax.jit, static_argnames=('num_clusters', 'method', 'shards')
)
def initial_centroids(
  points: Float[Array, 'I D'],
  *,
  num_clusters: int,
  method: Literal['random', 'kmeans++'],
  key: jax.Array,
  shards: Shards | None = None,
) -> Float[Array, 'C D']:
  """Chooses the points that the centroids start from.

  random: distinct points, uniformly.  kmeans++: each next point with
  probability proportional to its squared distance from those chosen, among
  at most 16 * num_clusters points drawn first.

  Args:
    points: [I, D]
    num_clusters: C, at most I.
    key: random key, used once.
    shards: where the points are; None: on one device.

  Reference: arXiv:2502.18965, Algorithm 1 (random selection); Arthur and
    Vassilvitskii 2007 (k-means++).
  """
  num_points = points.shape[0] if shards is None else shards.num_points
  draw_key, plus_plus_key = jax.random.split(key)
  if method == 'random':
    chosen = jax.random.choice(
      draw_key, num_points, (num_clusters,), replace=False
    )
    return point_shards.take(points, chosen, shards)
  drawn = min(num_points, _PLUS_PLUS_POINTS_PER_CLUSTER * num_clusters)
  sample = point_shards.take(
    points,
    jax.random.choice(draw_key, num_points, (drawn,), replace=False),
    shards,
  )

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


@functools.partial(jax.jit, static_argnames='shards')
def reseed_empty(
  points: Float[Array, 'I D'],
  centroids: Float[Array, 'C D'],
  labels: Int[Array, ' I'],
  counts: Float[Array, ' C'],
  *,
  shards: Shards | None = None,
) -> Float[Array, 'C D']:
  """Moves each empty cluster to one of the worst-represented points.

  Args:
    points: [I, D]
    centroids: [C, D], C <= I
    labels: [I]
    counts: points per cluster; 0 marks the empty ones. [C]
    shards: where the points are; None: on one device.
  """
  num_clusters = centroids.shape[0]
  if shards is None:
    _, farthest = jax.lax.top_k(
      _errors(points, centroids, labels), num_clusters
    )
  else:

    def local(real, points, centroids, labels):
      errors = jnp.where(real, _errors(points, centroids, labels), -1)
      return point_shards.largest(errors, count=num_clusters, shards=shards)

    run = point_shards.on_shards(local, shards, in_rows='rwr', out_rows='ww')
    _, farthest = run(points, centroids, labels)
  empty = counts == 0
  nth_empty = jnp.cumsum(empty) - 1
  moved = point_shards.take(points, farthest[nth_empty], shards)
  return jnp.where(empty[:, None], moved, centroids)


def _errors(points, centroids, labels):
  return jnp.sum((points - centroids[labels]) ** 2, 1)
