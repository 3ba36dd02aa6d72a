"""Balanced assignment: exact sizes, the printed algorithm, no N x K array."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.semantic_ids import balanced_kmeans
from onerec_jax.semantic_ids import kmeans

RULES = {
  'rounds': balanced_kmeans.assign_in_rounds,
  'sequential': balanced_kmeans.assign_sequentially,
}


def _points(num_points, dim=4, seed=0):
  """Zipf-sized groups, so that nearest labels are far from balanced."""
  rng = np.random.default_rng(seed)
  share = 1 / np.arange(1, 9)
  group = rng.choice(8, num_points, p=share / share.sum())
  centres = 3 * rng.normal(size=(8, dim))
  return (centres[group] + rng.normal(size=(num_points, dim))).astype('f4')


def _squared(points, centroids):
  difference = points[:, None].astype('f8') - centroids[None]
  return (difference**2).sum(-1)


def _cost(points, centroids, labels):
  return _squared(points, centroids)[np.arange(len(points)), labels].sum()


def _assert_exact_sizes(labels, num_clusters):
  sizes = np.bincount(np.asarray(labels), minlength=num_clusters)
  small, extra = divmod(len(labels), num_clusters)
  expected = [small] * (num_clusters - extra) + [small + 1] * extra
  np.testing.assert_array_equal(np.sort(sizes), expected)


# --- Golden -----------------------------------------------------------------

_TOY = jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0], [20.0]])
_TOY_START = jnp.array([[0.0], [2.0], [10.0]])


def test_algorithm_1_gives_the_published_toy_result():
  # Worked by hand: cluster 0 takes {0, 1}, cluster 1 {2, 10}, cluster 2 the
  # rest; means 0.5, 6, 15.5; the second sweep changes nothing.
  fitted = kmeans.iterate(
    _TOY,
    _TOY_START,
    assign=balanced_kmeans.assign_sequentially,
    max_iterations=50,
    tolerance=0.0,
  )
  np.testing.assert_array_equal(fitted.labels, [0, 0, 1, 1, 2, 2])
  np.testing.assert_allclose(fitted.centroids[:, 0], [0.5, 6.0, 15.5])
  assert fitted.iterations == 2


def test_the_nearest_code_of_a_point_may_differ_from_its_balanced_label():
  nearest = kmeans.nearest(_TOY, jnp.array([[0.5], [6.0], [15.5]])).labels
  assert nearest[2] == 0  # |2 - 0.5| < |2 - 6|; balanced label is 1


def test_rounds_follow_the_hand_worked_toy():
  # Nearest of 0,1,2,10,11,20 to 0,2,10 (1 is a tie: lower code): loads 2,1,3.
  # Cluster 2 (room 2) accepts 20 and 11, which gain most over the middle
  # (4): -2 x (10-4) + const falls with x.  10 takes the open cluster 1.
  labels = balanced_kmeans.assign_in_rounds(_TOY, _TOY_START)
  np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])


# --- References -------------------------------------------------------------


def _sequential_reference(points, centroids):
  distances = _squared(points, centroids)
  num_clusters = len(centroids)
  small, extra = divmod(len(points), num_clusters)
  labels = np.full(len(points), -1)
  for k in range(num_clusters):
    free = np.flatnonzero(labels < 0)
    order = free[np.argsort(distances[free, k], kind='stable')]
    labels[order[: small + (k < extra)]] = k
  return labels


def _rounds_reference(points, centroids):
  middle = centroids.mean(0)
  gain = _squared(points, centroids) - _squared(points, middle[None])
  num_clusters = len(centroids)
  small, extra = divmod(len(points), num_clusters)
  demand = np.bincount(gain.argmin(1), minlength=num_clusters)
  room = np.full(num_clusters, small)
  room[np.argsort(-demand, kind='stable')[:extra]] += 1
  labels = np.full(len(points), -1)
  while (labels < 0).any():
    free = np.flatnonzero(labels < 0)
    wish = np.where(room > 0, gain[free], np.inf).argmin(1)
    for k in range(num_clusters):
      mine = free[wish == k]
      order = mine[np.argsort(gain[mine, k], kind='stable')][: room[k]]
      labels[order] = k
      room[k] -= len(order)
  return labels


@pytest.mark.parametrize(
  ('rule', 'reference'),
  [('rounds', _rounds_reference), ('sequential', _sequential_reference)],
)
@pytest.mark.parametrize('size', [(203, 10), (70, 70)])
def test_labels_equal_the_numpy_reference(rule, reference, size):
  points, centroids = _points(size[0]), _points(size[1], seed=1)
  labels = RULES[rule](jnp.asarray(points), jnp.asarray(centroids))
  np.testing.assert_array_equal(labels, reference(points, centroids))


@pytest.mark.parametrize('rule', RULES)
def test_rules_are_near_the_best_of_all_balanced_labelings(rule):
  # 1680 ways to cut 9 points in three: the exhaustive optimum.  Both rules
  # are greedy; the bounds are what they are known for, not tolerances.
  for seed in range(5):
    points, centroids = _points(9, seed=seed), _points(3, seed=seed + 50)
    best = min(
      _cost(points, centroids, np.array(labels))
      for labels in set(itertools.permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    )
    labels = np.asarray(RULES[rule](jnp.asarray(points), centroids))
    cost = _cost(points, centroids, labels)
    assert best * (1 - 1e-6) <= cost <= 1.5 * best


# --- Properties -------------------------------------------------------------


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('size', [(1, 1), (64, 7), (99, 98), (9000, 33)])
def test_sizes_are_exact(rule, size):
  points = _points(size[0], 3, seed=sum(size))
  labels = RULES[rule](jnp.asarray(points), jnp.asarray(points[: size[1]]))
  _assert_exact_sizes(labels, size[1])


@pytest.mark.parametrize('rule', RULES)
def test_sizes_are_exact_for_duplicate_and_constant_points(rule):
  duplicates = jnp.asarray(np.repeat(_points(20), 4, axis=0))
  _assert_exact_sizes(RULES[rule](duplicates, duplicates[:13]), 13)
  constant = jnp.full((50, 3), 1e4)
  _assert_exact_sizes(RULES[rule](constant, constant[:7]), 7)


@pytest.mark.parametrize('rule', RULES)
def test_every_iteration_is_balanced(rule):
  points = jnp.asarray(_points(301))
  seen = []

  def assign(p, c):
    seen.append(RULES[rule](p, c))
    return seen[-1]

  kmeans.iterate(
    points, points[:12], assign=assign, max_iterations=8, tolerance=0.0
  )
  assert len(seen) >= 3
  for labels in seen:
    _assert_exact_sizes(labels, 12)


def test_rounds_do_not_depend_on_candidates_or_chunks():
  points, centroids = jnp.asarray(_points(9000, 6)), jnp.asarray(_points(40, 6))
  expected = balanced_kmeans.assign_in_rounds(points, centroids)
  # One candidate: every closed cluster makes its proposers look again.
  labels = balanced_kmeans.assign_in_rounds(
    points, centroids, num_candidates=1, chunk=997
  )
  np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize('rule', RULES)
def test_permuting_points_permutes_labels(rule):
  points, centroids = _points(180), jnp.asarray(_points(11, seed=4))
  order = np.random.default_rng(0).permutation(180)
  labels = RULES[rule](jnp.asarray(points), centroids)
  permuted = RULES[rule](jnp.asarray(points[order]), centroids)
  np.testing.assert_array_equal(permuted, np.asarray(labels)[order])


@pytest.mark.parametrize('rule', RULES)
def test_moving_the_origin_changes_no_label(rule):
  points, centroids = _points(180), _points(11, seed=4)
  labels = RULES[rule](jnp.asarray(points), jnp.asarray(centroids))
  moved = RULES[rule](jnp.asarray(points + 8), jnp.asarray(centroids + 8))
  np.testing.assert_array_equal(labels, moved)


def test_rounds_beat_algorithm_1_on_skewed_data():
  points = jnp.asarray(_points(2000, 8))
  inertia = {}
  for rule in RULES:
    fitted = balanced_kmeans.fit_balanced_kmeans(
      points,
      num_clusters=32,
      key=jax.random.key(0),
      assignment=rule,
      max_iterations=10,
    )
    _assert_exact_sizes(fitted.labels, 32)
    inertia[rule] = fitted.inertia
  assert inertia['rounds'] < inertia['sequential']


def test_fewer_points_than_codes_is_refused():
  with pytest.raises(ValueError, match='3 points cannot fill 4 clusters'):
    balanced_kmeans.fit_balanced_kmeans(
      jnp.ones((3, 2)), num_clusters=4, key=jax.random.key(0)
    )


@pytest.mark.parametrize('rule', ['rounds', 'sequential', 'nearest'])
def test_no_array_of_points_times_clusters_is_ever_made(rule):
  num_points, num_clusters = 200_000, 2048
  function = RULES.get(rule, kmeans.nearest)
  compiled = jax.jit(function).lower(
    jax.ShapeDtypeStruct((num_points, 4), jnp.float32),
    jax.ShapeDtypeStruct((num_clusters, 4), jnp.float32),
  )
  memory = compiled.compile().memory_analysis()
  # All N x K distances would be 1.6 GB; a tile is 8 MB (64 MB: sequential),
  # and lists of N are 0.8 MB each.
  assert memory.temp_size_in_bytes < num_points * num_clusters * 4 / 10
