"""Counting floors: popularity, Markov chains and co-occurrence."""

import numpy as np
import pytest

from onerec_jax import metrics
from onerec_jax.data import baselines

NONE = metrics.NO_ITEM


def _csr(sequences):
  lengths = [len(s) for s in sequences]
  return (
    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    np.array([i for s in sequences for i in s], np.int64),
  )


def _floors(sequences, num_items):
  floors = baselines.fit_floors(*_csr(sequences), num_items=num_items)
  return {floor.name: floor for floor in floors}


def _recommend(floor, histories, top_k=3, exclude_history=True):
  return floor.recommend(
    *_csr(histories), top_k=top_k, exclude_history=exclude_history
  )


def _random_sequences(seed, users=30, items=12, longest=9):
  rng = np.random.default_rng(seed)
  return [
    rng.integers(0, items, rng.integers(0, longest)).tolist()
    for _ in range(users)
  ]


def test_popularity_ranks_by_training_count_then_index_without_seen_items():
  floor = _floors([[2, 1], [2, 3], [2, 1], [3, 0]], 5)['popularity']
  # Counts: item 2: 3, items 1 and 3: 2, item 0: 1, item 4: 0.
  np.testing.assert_array_equal(
    _recommend(floor, [[], [2]], top_k=5),
    [[2, 1, 3, 0, 4], [1, 3, 0, 4, NONE]],
  )


def test_markov_takes_what_followed_the_last_item_then_popularity():
  floor = _floors([[0, 1], [0, 1], [0, 2], [3, 4], [3, 4], [3, 4]], 6)['markov']
  # After 0: item 1 twice, item 2 once; then popularity 3 (3), 4 (3), 5 (0).
  np.testing.assert_array_equal(
    _recommend(floor, [[4, 0]], top_k=5), [[1, 2, 3, 5, NONE]]
  )


def test_users_without_history_get_popularity():
  floors = _floors([[0, 1], [1, 2], [1, 0]], 3)
  for floor in floors.values():
    np.testing.assert_array_equal(_recommend(floor, [[]]), [[1, 0, 2]])


def test_seen_items_come_back_when_history_is_not_excluded():
  floor = _floors([[0, 0], [0, 0], [0, 1]], 2)['markov']
  np.testing.assert_array_equal(
    _recommend(floor, [[0]], top_k=2, exclude_history=False), [[0, 1]]
  )
  np.testing.assert_array_equal(_recommend(floor, [[0]], top_k=2), [[1, NONE]])


def test_transition_counts_by_hand():
  counts = baselines.transition_counts(
    *_csr([[0, 1, 2], [1, 2]]), num_items=3, window=2, decay=0.5
  )
  # 0->1 once at distance 1; 1->2 twice; 0->2 once at distance 2.
  np.testing.assert_array_equal(
    counts.toarray(), [[0, 1, 0.5], [0, 0, 2], [0, 0, 0]]
  )


@pytest.mark.parametrize('window', [1, 3, 20])
def test_transition_counts_equal_a_loop_and_never_cross_users(window):
  sequences = _random_sequences(0)
  expected = np.zeros((12, 12))
  for sequence in sequences:
    for i, source in enumerate(sequence):
      for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
        expected[source, sequence[j]] += 0.7 ** (j - i - 1)
  counts = baselines.transition_counts(
    *_csr(sequences), num_items=12, window=window, decay=0.7
  )
  np.testing.assert_allclose(counts.toarray(), expected)


def test_transition_counts_of_nothing_are_zero():
  counts = baselines.transition_counts(
    *_csr([[], [3]]), num_items=4, window=5, decay=0.7
  )
  assert counts.nnz == 0


def _slow_scores(name, train, history, num_items):
  """The same floors as plain loops over pairs of events."""
  pop = np.zeros(num_items)
  for sequence in train:
    for item in sequence:
      pop[item] += 1
  scores = np.zeros(num_items)
  window = 5 if name.startswith('cooccurrence') else 1
  recent = {'markov': 1, 'markov_10': 10}.get(name, 5)
  for age, seen in enumerate(history[::-1][:recent]):
    for sequence in train:
      for i, source in enumerate(sequence):
        if source != seen:
          continue
        for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
          weight = 0.7 ** (j - i - 1)
          if name == 'cooccurrence':
            weight /= np.sqrt(pop[sequence[j]])
          elif name == 'cooccurrence_source':
            weight /= np.sqrt(pop[source])
          scores[sequence[j]] += weight * 0.7**age
  return scores, pop


@pytest.mark.parametrize(
  'name', ['markov', 'markov_10', 'cooccurrence', 'cooccurrence_source']
)
def test_floors_equal_plain_loops(name):
  train = _random_sequences(1)
  histories = _random_sequences(2, users=8)
  floor = _floors(train, 12)[name]
  got = _recommend(floor, histories, top_k=4)
  for row, history in zip(got, histories, strict=True):
    scores, pop = _slow_scores(name, train, history, 12)
    allowed = [i for i in range(12) if i not in history]
    order = sorted(allowed, key=lambda i: (-round(scores[i], 9), -pop[i], i))
    assert row.tolist() == order[:4]


def test_chunks_of_users_do_not_change_the_lists(monkeypatch):
  train, histories = _random_sequences(3), _random_sequences(4)
  for floor in _floors(train, 12).values():
    whole = _recommend(floor, histories, top_k=5)
    with monkeypatch.context() as patch:
      patch.setattr(baselines, '_CELLS_AT_ONCE', 12 * 7)
      np.testing.assert_array_equal(
        _recommend(floor, histories, top_k=5), whole
      )


def test_permuting_users_permutes_the_lists():
  train, histories = _random_sequences(5), _random_sequences(6)
  order = np.random.default_rng(0).permutation(len(histories))
  for floor in _floors(train, 12).values():
    whole = _recommend(floor, histories)
    np.testing.assert_array_equal(
      _recommend(floor, [histories[i] for i in order]), whole[order]
    )


def test_order_of_the_training_sequences_does_not_matter():
  train, histories = _random_sequences(7), _random_sequences(8)
  forward, backward = _floors(train, 12), _floors(train[::-1], 12)
  for name, floor in forward.items():
    np.testing.assert_array_equal(
      _recommend(floor, histories), _recommend(backward[name], histories)
    )


def test_floors_know_nothing_but_the_training_sequences():
  # Item 5 is in no training sequence: whatever histories and targets hold,
  # it can only come last, by popularity 0.
  train = [[0, 1, 2], [2, 3, 4]]
  histories = [[0, 5], [5], [2, 5, 0]]
  for floor in _floors(train, 6).values():
    assert floor.popularity[5] == 0
    assert floor.transitions is None or (
      floor.transitions[5].nnz == 0 and floor.transitions[:, [5]].nnz == 0
    )
    lists = _recommend(floor, histories, top_k=6, exclude_history=False)
    np.testing.assert_array_equal(lists[:, -1], [5, 5, 5])


def test_a_slice_of_a_larger_array_of_sequences_is_fitted_alone():
  offsets, items = _csr([[3, 3, 3], [0, 1], [0, 1], [0, 2]])
  floors = baselines.fit_floors(offsets[1:], items, num_items=4)
  np.testing.assert_array_equal(floors[0].popularity, [3, 2, 1, 0])


def _sequence_file(path):
  return [
    [int(i) - 1 for i in line.split()[1:]]
    for line in path.read_text().splitlines()
  ]


@pytest.mark.slow
def test_floors_reach_the_known_figures_on_beauty(real_data_root):
  """Full ranking, leave-one-out, history excluded; known Recall@10."""
  path = real_data_root / 'amazon2014' / 'Beauty.sequences.txt'
  sequences = _sequence_file(path)
  floors = _floors([s[:-2] for s in sequences], 12_101)
  sample = sequences[::1]
  targets = np.array([[s[-1]] for s in sample])
  # Both are published by others for this split.
  for name, expected in (
    ('popularity', 0.0115),
    ('markov', 0.0667),
  ):
    lists = _recommend(floors[name], [s[:-1] for s in sample], top_k=10)
    ranks = metrics.target_ranks(lists, targets)
    recall = metrics.recall_at_k(ranks, k=10).mean()
    assert recall == pytest.approx(expected, abs=1.5e-4), name
