"""Plain k-means against brute-force NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.semantic_ids import kmeans
from onerec_jax.semantic_ids import seeding


def _points(num_points=300, dim=5, seed=0):
  return np.random.default_rng(seed).normal(size=(num_points, dim)).astype('f4')


def _squared(points, centroids):
  difference = points[:, None].astype('f8') - centroids[None]
  return (difference**2).sum(-1)


@pytest.mark.parametrize('chunk', [1, 7, 300, 1000, None])
def test_nearest_is_the_brute_force_argmin_for_any_chunk(chunk):
  points, centroids = _points() + 3, _points(17, seed=1) + 3
  found = kmeans.nearest(points, centroids, chunk=chunk)
  distances = _squared(points, centroids)
  np.testing.assert_array_equal(found.labels, distances.argmin(1))
  # f32 sums of squares of values near 3 in 5 dimensions.
  np.testing.assert_allclose(
    found.squared_distances, distances.min(1), rtol=1e-4, atol=1e-4
  )


def test_nearest_breaks_ties_towards_the_lower_code():
  centroids = np.array([[1.0], [-1.0], [1.0]], 'f4')
  found = kmeans.nearest(np.array([[0.0], [2.0]], 'f4'), centroids)
  np.testing.assert_array_equal(found.labels, [0, 0])


def test_cluster_sums_add_up_over_shards():
  points = jnp.asarray(_points(40))
  labels = jnp.asarray(np.random.default_rng(2).integers(0, 6, 40))
  whole = kmeans.cluster_sums(points, labels, num_clusters=6)
  parts = [
    kmeans.cluster_sums(points[s], labels[s], num_clusters=6)
    for s in (slice(0, 15), slice(15, 40))
  ]
  np.testing.assert_array_equal(whole.counts, np.bincount(labels, minlength=6))
  added = jax.tree.map(lambda a, b: a + b, *parts)
  np.testing.assert_allclose(whole.sums, added.sums, rtol=1e-5, atol=1e-5)


def test_an_empty_cluster_keeps_its_centroid_in_the_means():
  sums = kmeans.cluster_sums(
    jnp.array([[1.0], [3.0]]), jnp.array([0, 0]), num_clusters=2
  )
  previous = jnp.array([[9.0], [7.0]])
  np.testing.assert_array_equal(kmeans.means(sums, previous), [[2.0], [7.0]])


def test_fit_follows_numpy_lloyd_exactly():
  points = _points(120, 3)
  start = points[:4]
  fitted = kmeans.iterate(
    jnp.asarray(points),
    jnp.asarray(start),
    assign=lambda p, c: kmeans.nearest(p, c).labels,
    max_iterations=5,
    tolerance=0.0,
  )
  centroids = start.astype('f8')
  for _ in range(5):
    labels = _squared(points, centroids).argmin(1)
    centroids = np.stack([points[labels == k].mean(0) for k in range(4)])
  np.testing.assert_array_equal(fitted.labels, labels)
  np.testing.assert_allclose(fitted.centroids, centroids, rtol=1e-5, atol=1e-6)
  inertia = _squared(points, centroids)[np.arange(120), labels].mean()
  np.testing.assert_allclose(fitted.inertia, inertia, rtol=1e-5)
  assert fitted.iterations == len(fitted.inertias) == 5


@pytest.mark.parametrize('init', ['random', 'kmeans++'])
def test_inertia_never_rises_and_every_code_is_used(init):
  fitted = kmeans.fit_kmeans(
    jnp.asarray(_points()),
    num_clusters=20,
    key=jax.random.key(0),
    init=init,
    tolerance=0.0,
  )
  assert np.all(np.diff(fitted.inertias) <= 1e-6)
  assert len(np.unique(fitted.labels)) == 20


@pytest.mark.parametrize('init', ['random', 'kmeans++'])
def test_initial_centroids_are_distinct_points(init):
  points = _points(50)
  chosen = seeding.initial_centroids(
    jnp.asarray(points), num_clusters=50, method=init, key=jax.random.key(3)
  )
  # All 50 of 50 distinct points: the same set.
  np.testing.assert_array_equal(
    np.unique(np.asarray(chosen), axis=0), np.unique(points, axis=0)
  )


def test_plus_plus_finds_separated_groups():
  # Five groups 1000 apart: a second pick inside a group has probability
  # about (0.01 / 1000)^2, so all five are found.
  groups = np.repeat(np.arange(5), 20)
  points = 1000.0 * groups[:, None] + 0.01 * _points(100, 1)
  chosen = seeding.initial_centroids(
    jnp.asarray(points, jnp.float32),
    num_clusters=5,
    method='kmeans++',
    key=jax.random.key(0),
  )
  np.testing.assert_allclose(
    np.sort(np.asarray(chosen)[:, 0]), 1000.0 * np.arange(5), atol=1
  )


def test_empty_clusters_move_to_the_farthest_points():
  points = jnp.array([[0.0], [1.0], [50.0], [9.0]])
  moved = seeding.reseed_empty(
    points,
    centroids=jnp.array([[0.0], [100.0], [200.0]]),
    labels=jnp.zeros(4, jnp.int32),
    counts=jnp.array([4.0, 0.0, 0.0]),
  )
  np.testing.assert_array_equal(moved, [[0.0], [50.0], [9.0]])


def test_reseeding_uses_all_codes_where_lloyd_would_leave_one_empty():
  # From these starts the third centroid never wins a point.
  points = np.array([[0.0], [1.0], [10.0], [11.0], [20.0]], 'f4')
  fitted = kmeans.iterate(
    jnp.asarray(points),
    jnp.array([[0.5], [10.0], [1e4]]),
    assign=lambda p, c: kmeans.nearest(p, c).labels,
    max_iterations=10,
    tolerance=0.0,
  )
  assert sorted(np.bincount(fitted.labels, minlength=3)) == [1, 2, 2]


def test_constant_points_and_nan_and_too_many_codes_are_handled():
  same = jnp.ones((6, 2))
  fitted = kmeans.fit_kmeans(
    same, num_clusters=3, key=jax.random.key(0), init='kmeans++'
  )
  assert fitted.inertia == 0 and np.isfinite(fitted.centroids).all()
  with pytest.raises(ValueError, match='at most 6'):
    kmeans.fit_kmeans(same, num_clusters=7, key=jax.random.key(0))
  with pytest.raises(ValueError, match=r'1 of 6 points.*row 4'):
    kmeans.fit_kmeans(
      same.at[4, 1].set(jnp.nan), num_clusters=2, key=jax.random.key(0)
    )
  with pytest.raises(ValueError, match='beyond 1e18, first in row 5'):
    kmeans.fit_kmeans(  # finite, but its squared length is not
      same.at[5, 0].set(1e19), num_clusters=2, key=jax.random.key(0)
    )
  with pytest.raises(ValueError, match='max_iterations=0'):
    kmeans.fit_kmeans(
      same, num_clusters=2, key=jax.random.key(0), max_iterations=0
    )
