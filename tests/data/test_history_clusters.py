"""Hierarchical k-means of a history: sizes, representatives, averages."""

import numpy as np
import pytest

from onerec_jax.data import history_clusters as lib


def _random(seed=0):
  return np.random.default_rng(seed)


def _cluster(items, vectors, *, size, iterations=5, seed=0):
  return lib.cluster_history(
    np.asarray(items),
    np.asarray(vectors, np.float32),
    max_cluster_size=size,
    iterations=iterations,
    random=_random(seed),
  )


# --- Clusters ---------------------------------------------------------------

# Three groups far apart, on a line: items 0-2 near 0, 3-4 near 100, 5 at 900.
_LINE = np.array([[-2.0], [0.0], [3.0], [99.0], [101.0], [900.0]])


def test_groups_far_apart_become_clusters_around_their_middle():
  # 8 events, M = 4: k = 2 parts the 900s or the 100s from the rest, whatever
  # the first centres, and what stays too large is parted again.
  items = [0, 5, 1, 3, 2, 4, 5, 1]
  found = _cluster(items, _LINE, size=4)
  groups = {frozenset(np.flatnonzero(found.labels == c)) for c in range(3)}
  assert groups == {
    frozenset({0, 2, 4, 7}), frozenset({3, 5}), frozenset({1, 6})
  }  # fmt: skip
  # Means: (-2 + 0 + 3 + 0) / 4 = 0.25, nearest are the events of item 1, the
  # later one 7.  100: items 3 and 4 are equally near, the later event is 5.
  # Both events of item 5 are equal: 6.
  np.testing.assert_array_equal(found.representatives, [5, 6, 7])
  np.testing.assert_array_equal(found.labels, [2, 1, 2, 0, 2, 0, 1, 2])


@pytest.mark.parametrize('size', [1, 7, 50])
def test_clusters_are_small_enough_and_hold_every_event(size):
  rng = _random()
  vectors = rng.normal(size=(300, 8))
  items = rng.integers(300, size=900)
  found = _cluster(items, vectors, size=size)
  sizes = np.bincount(found.labels)
  assert sizes.sum() == 900 and sizes.min() > 0 and sizes.max() <= size
  # The representative is of the cluster it stands for.
  np.testing.assert_array_equal(
    found.labels[found.representatives], np.arange(len(sizes))
  )
  assert (np.diff(found.representatives) > 0).all()


def test_the_representative_is_the_nearest_event_to_the_mean():
  rng = _random(1)
  vectors = rng.normal(size=(80, 4)).astype(np.float32)
  items = rng.permutation(80)
  found = _cluster(items, vectors, size=10)
  for c, representative in enumerate(found.representatives):
    events = np.flatnonzero(found.labels == c)
    mine = vectors[items[events]].astype(np.float64)
    distance = np.linalg.norm(mine - mine.mean(axis=0), axis=1)
    assert events[distance.argmin()] == representative


def test_equal_vectors_are_cut_evenly_in_time():
  # No k-means can part them: 10 events in ceil(10 / 4) = 3 pieces.
  for items in (np.zeros(10, int), np.arange(10)):
    found = _cluster(items, np.ones((10, 3)), size=4)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(found.representatives, [3, 6, 9])


def test_one_item_seen_all_the_time_does_not_swallow_the_others():
  # 1 of 500 is another item: centres drawn from events would all be the first.
  items = np.zeros(500, int)
  items[250] = 1
  found = _cluster(items, [[0.0, 0.0], [5.0, 5.0]], size=100)
  assert np.flatnonzero(found.labels == found.labels[250]).tolist() == [250]
  assert np.bincount(found.labels).max() <= 100


def test_a_history_that_fits_is_one_cluster():
  found = _cluster([3, 1, 2], np.eye(4), size=3)
  np.testing.assert_array_equal(found.labels, [0, 0, 0])
  assert len(found.representatives) == 1
  assert len(_cluster([2], np.eye(4), size=3).representatives) == 1


def test_alike_events_share_clusters_more_than_chance():
  rng = _random()
  topic = np.repeat(np.arange(20), 50)
  vectors = 3 * rng.normal(size=(20, 16))[topic] + rng.normal(size=(1000, 16))
  items = rng.permutation(1000)
  found = _cluster(items, vectors, size=50)
  pure = sum(
    np.bincount(topic[items[found.labels == c]]).max()
    for c in range(len(found.representatives))
  )
  assert pure > 0.9 * 1000


def test_the_same_seed_gives_the_same_clusters():
  rng = _random()
  vectors, items = rng.normal(size=(200, 8)), rng.integers(200, size=400)
  first, again, other = (
    _cluster(items, vectors, size=20, seed=s) for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.labels, again.labels)
  assert not np.array_equal(first.labels, other.labels)


# --- Averages ---------------------------------------------------------------


def _compress(history, vectors, categories=(), *, size, clusters=100):
  return lib.compress(
    history,
    np.asarray(vectors, np.float32),
    categories,
    max_cluster_size=size,
    iterations=5,
    max_clusters=clusters,
    random=_random(),
  )


def _history(items, **changes):
  count = len(items)
  values = {
    'items': np.asarray(items),
    # Some 1.7e15 microseconds: sums of them need more than 53 bits.
    'timestamps': 1_700_000_000_000_000 + np.arange(count, dtype=np.int64) ** 2,
    'exact_time': np.ones(count, bool),
    'numbers': np.zeros((count, 0)),
    **changes,
  }
  return lib.History(**values)


def test_times_and_numbers_are_means_over_what_is_known():
  # Two clusters of M = 3: events 0-2 of item 0, events 3-5 of item 1.
  numbers = np.array(
    [[1.0, np.nan], [2.0, np.nan], [6.0, np.nan],
     [1.0, 5.0], [np.nan, 7.0], [3.0, np.nan]]
  )  # fmt: skip
  exact = np.array([1, 0, 1, 0, 0, 0], bool)
  found = _compress(
    _history([0, 0, 0, 1, 1, 1], numbers=numbers, exact_time=exact),
    np.eye(2),
    size=3,
  )
  np.testing.assert_array_equal(found.representatives, [2, 5])
  np.testing.assert_array_equal(found.sizes, [3, 3])
  np.testing.assert_array_equal(found.numbers, [[3, np.nan], [2, 6]])
  np.testing.assert_array_equal(found.timed, [True, False])
  # Events 0 and 2 have exact times 0 and 4 after the first.
  assert found.times[0] == 1_700_000_000_000_000 + 2


def test_categories_are_averaged_over_the_events_that_have_any():
  # Item 0 has values 1 and 2, item 1 value 2, item 2 none.
  table = np.array([[1, 2], [2, 0], [0, 0]], np.int32)
  found = _compress(_history([0, 1, 2, 1]), np.ones((3, 2)), (table,), size=4)
  # Weights: 1/2 of value 1; 1/2 + 1 + 1 of value 2; 3 events have any.
  np.testing.assert_array_equal(found.categories[0, 0, :3], [2, 1, 0])
  np.testing.assert_allclose(
    found.category_weights[0, 0, :3], [2.5 / 3, 0.5 / 3, 0], rtol=1e-6
  )
  none = _compress(_history([2, 2]), np.ones((3, 2)), (table,), size=4)
  assert not none.categories.any() and not none.category_weights.any()


def test_only_the_most_frequent_values_are_kept_and_add_up_to_one():
  count = lib.TOP_VALUES + 3
  table = np.arange(1, count + 1, dtype=np.int32)[:, None]
  items = np.repeat(np.arange(count), np.arange(1, count + 1))
  found = _compress(_history(items), np.ones((count, 2)), (table,), size=1000)
  np.testing.assert_array_equal(
    found.categories[0, 0], np.arange(count, count - lib.TOP_VALUES, -1)
  )
  np.testing.assert_allclose(found.category_weights.sum(), 1, rtol=1e-6)


def test_averages_equal_a_loop_over_random_clusters():
  rng = _random(3)
  vectors, items = rng.normal(size=(60, 4)), rng.integers(60, size=240)
  numbers = np.where(rng.random((240, 2)) < 0.3, np.nan, rng.random((240, 2)))
  history = _history(items, numbers=numbers)
  table = rng.integers(0, 6, (60, 3)).astype(np.int32)
  found = _compress(history, vectors, (table,), size=20)
  labels = _cluster(items, vectors, size=20).labels
  assert len(found.sizes) == labels.max() + 1 > 10
  for c in range(len(found.sizes)):
    mine = labels == c
    np.testing.assert_allclose(
      found.times[c], np.round(history.timestamps[mine].mean()), atol=1
    )
    np.testing.assert_allclose(
      found.numbers[c], np.nanmean(numbers[mine], axis=0), rtol=1e-6
    )
    weight = np.zeros(6)
    for item in items[mine]:
      known = table[item][table[item] > 0]
      for value in known:
        weight[value] += 1 / len(known)
    got = np.zeros(6)
    got[found.categories[c, 0]] = found.category_weights[c, 0]
    np.testing.assert_allclose(got[1:], (weight / weight.sum())[1:], atol=1e-6)


def test_the_latest_clusters_are_kept():
  rng = _random()
  vectors, items = rng.normal(size=(90, 4)), np.arange(90)
  whole = _compress(_history(items), vectors, size=5)
  part = _compress(_history(items), vectors, size=5, clusters=4)
  for a, b in zip(whole, part, strict=True):
    assert len(b) == 4
    np.testing.assert_array_equal(a[-4:], b)


def test_no_clusters_have_the_shapes_and_types_of_some():
  table = np.ones((3, 1), np.int32)
  history = _history([0, 1], numbers=np.zeros((2, 5)))
  some = _compress(history, np.eye(3), (table, table), size=4)
  none = lib.nothing(5, 2)
  for a, b in zip(some, none, strict=True):
    assert a.dtype == b.dtype and a.shape[1:] == b.shape[1:] and len(b) == 0
