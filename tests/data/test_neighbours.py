"""Ranks, neighbours and categories of item vectors."""

import numpy as np
import pytest

from onerec_jax import metrics
from onerec_jax.data import examples
from onerec_jax.data import neighbours


@pytest.fixture(scope='module')
def fan():
  """Five items on a half circle, and one without a vector."""
  angles = np.radians([0, 10, 30, 80, 180])
  vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
  return np.concatenate([3 * vectors, np.zeros((1, 2))])


def _transitions(rows):
  """From (source, target, seen) triples."""
  sources, targets, seen = zip(*rows, strict=True)
  return neighbours.Transitions(
    np.array(sources, np.int32),
    np.array(targets, np.int32),
    np.array([i for s in seen for i in s], np.int32),
    np.cumsum([0, *map(len, seen)]),
  )


def test_ranks_leave_out_what_was_seen(fan):
  # From item 0 the order is 1, 2, 3, (5 without a vector), 4.
  rows = [
    (0, 1, [0]),
    (0, 2, [0]),
    (0, 2, [1, 0]),
    (0, 4, [1, 2, 0]),  # 3 and the zero vector before it
    (0, 3, [3, 0]),  # seen: not recommended
    (0, 5, [0]),  # no vector
    (5, 0, [5]),
  ]
  missing = metrics.NOT_RANKED
  ranks = neighbours.target_ranks(fan, _transitions(rows))
  assert ranks.tolist() == [1, 2, 1, 3, missing, missing, missing]


def test_equal_vectors_do_not_hit_by_luck():
  ranks = neighbours.target_ranks(
    np.ones((20, 3)), _transitions([(0, 7, [0, 3])])
  )
  assert ranks.tolist() == [18]


def test_ranks_and_neighbours_do_not_depend_on_the_chunk(monkeypatch):
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((30, 4), np.float32)
  rows = [
    (int(s), int(t), [int(s), *rng.integers(0, 30, 3).tolist()])
    for s, t in rng.integers(0, 30, (40, 2))
  ]
  items = np.arange(30)
  results = []
  for size in (7, 256):
    monkeypatch.setattr(neighbours, '_ROWS_AT_ONCE', size)
    results.append(
      (
        neighbours.target_ranks(vectors, _transitions(rows)),
        neighbours.nearest_items(vectors, items, top_k=5),
      )
    )
  for a, b in zip(*results, strict=True):
    np.testing.assert_array_equal(a, b)
  # And against a sort of all cosines.
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  cosine = unit @ unit.T
  np.fill_diagonal(cosine, -2)
  np.testing.assert_array_equal(
    results[0][1], np.argsort(-cosine, axis=1)[:, :5]
  )
  for (source, target, seen), rank in zip(rows, results[0][0], strict=True):
    order = [j for j in np.argsort(-cosine[source]) if j not in seen]
    expected = metrics.NOT_RANKED
    if target in order:
      expected = order.index(target) + 1
    assert rank == expected


def test_neighbours_have_vectors(fan):
  found = neighbours.nearest_items(fan, np.array([0, 4, 5]), top_k=3)
  none = metrics.NO_ITEM
  assert found.tolist() == [[1, 2, 3], [3, 2, 1], [none, none, none]]
  # Only four others have one.
  assert neighbours.nearest_items(fan, np.array([0]), top_k=5)[0, 4] == none


def test_category_share_counts_telling_categories():
  categories = [['all', 'a'], ['all', 'a'], ['all', 'b'], ['all'], ['b', 'all']]
  near = np.array([[1, 2], [0, metrics.NO_ITEM], [4, 0], [0, 1]])
  items = np.array([0, 1, 2, 3])
  # 'all' says nothing: (1 of 2) + (1 of 1) + (1 of 2); item 3 has no other.
  assert neighbours.category_share(near, items, categories) == 3 / 5
  assert neighbours.category_share(near, items, [['all']] * 5) is None
  assert neighbours.category_share(near, items, [[]] * 5) is None


def test_transitions_are_the_last_positive_and_the_first_target(tmp_path):
  positive = np.array([1, 1, 0, 1, 1], bool)
  records = [
    examples.UserRecord(
      user=user,
      items=(10 * user + np.arange(5)).astype(np.int32),
      positive=positive,
      timestamps=np.arange(5),
      target_starts=np.array([3], np.int32),
      target_lengths=np.array([2], np.int32),
    )
    for user in range(3)
  ]
  path = tmp_path / 'valid.arrayrecord'
  examples.write_examples(path, records)
  store = examples.ExampleStore(path)
  found = neighbours.read_transitions(store, max_examples=None)
  assert found.sources.tolist() == [1, 11, 21]
  assert found.targets.tolist() == [3, 13, 23]
  assert found.seen.tolist() == [0, 1, 10, 11, 20, 21]
  assert found.seen_offsets.tolist() == [0, 2, 4, 6]
  assert len(neighbours.read_transitions(store, max_examples=2).targets) == 2
