import numpy as np
import pytest

from onerec_jax.data import swing


def brute_force(sequences, num_items, alpha):
  """The printed double sum, term by term."""
  sets = [set(s) for s in sequences]
  result = np.zeros((num_items, num_items))
  for i in range(num_items):
    for j in range(num_items):
      both = [u for u, s in enumerate(sets) if i in s and j in s]
      for u in both:
        for v in both:
          if u != v and i != j:
            result[i, j] += 1 / (
              np.sqrt(len(sets[u]) * len(sets[v]))
              * (alpha + len(sets[u] & sets[v]))
            )
  return result


def ragged(sequences):
  offsets = np.cumsum([0, *map(len, sequences)])
  return offsets, np.array([i for s in sequences for i in s], np.int32)


def random_sequences(num_users, num_items, seed):
  rng = np.random.default_rng(seed)
  return [
    rng.integers(0, num_items, rng.integers(0, 8)).tolist()
    for _ in range(num_users)
  ]


def test_two_users_who_share_two_items_give_the_hand_value():
  # Users {0, 1} and {0, 1, 2}: w = 1/sqrt 2, 1/sqrt 3; 2 items shared; the
  # pair counts as (u, v) and (v, u): 2 / (sqrt 6 * (1 + 2)).
  got = swing.swing_similarity(
    *ragged([[0, 1], [0, 1, 2]]), num_items=3
  ).toarray()
  expected = 2 / (np.sqrt(6) * 3)
  np.testing.assert_allclose(got[0, 1], expected, rtol=1e-6)
  assert np.count_nonzero(got) == 2  # (0, 1) and (1, 0) alone


@pytest.mark.parametrize('alpha', [0.5, 1.0])
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('events_at_once', [7, 20_000])
def test_similarity_equals_the_double_sum(
  monkeypatch, alpha, seed, events_at_once
):
  monkeypatch.setattr(swing, '_EVENTS_AT_ONCE', events_at_once)
  sequences = random_sequences(40, 12, seed)
  got = swing.swing_similarity(*ragged(sequences), num_items=12, alpha=alpha)
  np.testing.assert_allclose(
    got.toarray(), brute_force(sequences, 12, alpha), rtol=1e-5
  )


def test_renaming_users_changes_nothing():
  sequences = random_sequences(30, 10, 3)
  a = swing.swing_similarity(*ragged(sequences), num_items=10)
  b = swing.swing_similarity(*ragged(sequences[::-1]), num_items=10)
  np.testing.assert_allclose(a.toarray(), b.toarray(), rtol=1e-5)


def test_capped_users_keep_the_sum_unbiased():
  sequences = [[0, 1, 2 + u % 3] for u in range(24)]
  exact = swing.swing_similarity(*ragged(sequences), num_items=5).toarray()
  draws = np.stack(
    [
      swing.swing_similarity(
        *ragged(sequences), num_items=5, max_users_per_item=12, seed=seed
      ).toarray()
      for seed in range(40)
    ]
  )
  assert draws.std(0)[0, 2] > 0  # the cap does something
  np.testing.assert_allclose(draws.mean(0)[0, 1], exact[0, 1], rtol=0.02)
  np.testing.assert_allclose(draws.mean(0)[0, 2], exact[0, 2], rtol=0.2)
  np.testing.assert_allclose(draws, draws.transpose(0, 2, 1), rtol=1e-6)


def test_only_the_nearest_neighbours_are_kept():
  sequences = random_sequences(60, 12, 5)
  exact = swing.swing_similarity(*ragged(sequences), num_items=12).toarray()
  got = swing.swing_similarity(
    *ragged(sequences), num_items=12, max_neighbours=2
  ).toarray()
  np.testing.assert_array_equal(got, got.T)
  assert np.count_nonzero(got) < np.count_nonzero(exact)
  for i in range(12):
    best = exact[i].argmax()
    np.testing.assert_allclose(got[i, best], exact[i, best], rtol=1e-6)


@pytest.mark.parametrize('sequences', [[], [[]], [[3]], [[1, 1, 1], [1]]])
def test_nothing_shared_gives_no_similarity(sequences):
  got = swing.swing_similarity(*ragged(sequences), num_items=4)
  assert got.shape == (4, 4)
  assert got.nnz == 0
