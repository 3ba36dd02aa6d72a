"""Scalar rewards and the choice of preference pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import preference_pairs

Reason = preference_pairs.PairReason
KINDS = ('zscore_sum', 'sum', 'product')


def aggregate(predictions, mask=None, *, weights=None, kind='zscore_sum'):
  predictions = jnp.asarray(predictions, jnp.float32)
  if mask is None:
    mask = np.ones(predictions.shape[:2], bool)
  if weights is None:
    weights = (1.0,) * predictions.shape[2]
  return preference_pairs.aggregate_rewards(
    predictions, jnp.asarray(mask), weights=weights, kind=kind
  )


def choose(rewards, legal=None, sessions=None, *, num_rejected=1, gap=1e-6):
  rewards = jnp.asarray(rewards, jnp.float32)
  if legal is None:
    legal = np.ones(rewards.shape, bool)
  if sessions is None:  # all different
    sessions = np.arange(rewards.size * 2).reshape(*rewards.shape, 2)
  return preference_pairs.choose_pairs(
    rewards,
    jnp.asarray(legal),
    jnp.asarray(sessions),
    num_rejected=num_rejected,
    min_gap=gap,
  )


# --- Scalar rewards ---------------------------------------------------------


def test_rewards_by_hand():
  # Target 0: 0.1, 0.3, mean 0.2, std 0.1 -> z = -1, 1.  Target 1: 0.8, 0.4,
  # mean 0.6, std 0.2 -> z = 1, -1.
  predictions = [[[0.1, 0.8], [0.3, 0.4]]]
  weights = (2.0, 0.5)
  # -2 + 0.5 and 2 - 0.5; 0.2 + 0.4 and 0.6 + 0.2; 0.1² √0.8 and 0.3² √0.4
  wants = {
    'zscore_sum': [[-1.5, 1.5]],
    'sum': [[0.6, 0.8]],
    'product': [[0.01 * 0.8**0.5, 0.09 * 0.4**0.5]],
  }
  for kind, want in wants.items():
    got = aggregate(predictions, weights=weights, kind=kind)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_standardised_rewards_equal_numpy_over_the_legal_candidates():
  random = np.random.default_rng(0)
  predictions = random.random((20, 9, 3)).astype(np.float32)
  mask = random.random((20, 9)) < 0.7
  mask[:, :2] = True
  weights = (1.0, 0.3, 2.0)
  got = aggregate(predictions, mask, weights=weights)
  for b in range(20):
    legal = predictions[b, mask[b]].astype(np.float64)
    z = (legal - legal.mean(axis=0)) / legal.std(axis=0)
    np.testing.assert_allclose(got[b][mask[b]], z @ weights, rtol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_masked_candidates_have_no_influence(kind):
  random = np.random.default_rng(1)
  predictions = random.random((4, 6, 2)).astype(np.float32)
  mask = np.ones((4, 6), bool)
  mask[:, [1, 4]] = False
  want = aggregate(predictions[:, [0, 2, 3, 5]], kind=kind)
  predictions[:, 1], predictions[:, 4] = np.nan, 1e30
  got = aggregate(predictions, mask, kind=kind)
  np.testing.assert_allclose(got[:, np.array([0, 2, 3, 5])], want, rtol=1e-5)
  assert (np.asarray(got)[~mask] == -np.inf).all()


@pytest.mark.parametrize('kind', KINDS)
def test_a_user_without_candidates_has_no_finite_reward(kind):
  got = aggregate(np.full((1, 3, 2), 0.5), np.zeros((1, 3), bool), kind=kind)
  assert (np.asarray(got) == -np.inf).all()


def test_a_target_on_which_all_candidates_agree_adds_nothing():
  random = np.random.default_rng(2)
  predictions = random.random((5, 7, 2)).astype(np.float32)
  want = aggregate(predictions[:, :, :1])
  # Equal up to the last bits of float32: the noise must not become the signal.
  noise = 1 + 1e-7 * random.integers(-1, 2, (5, 7))
  predictions[:, :, 1] = 0.123 * noise
  np.testing.assert_allclose(aggregate(predictions), want, rtol=1e-5)
  predictions[:, :, 1] = 0.0
  np.testing.assert_allclose(aggregate(predictions), want, rtol=1e-5)


def test_rare_events_count_as_much_as_frequent_ones_when_standardised():
  random = np.random.default_rng(3)
  predictions = random.random((5, 7, 2)).astype(np.float32)
  rare = predictions * np.asarray([1, 1e-3], np.float32)[None, None]
  np.testing.assert_allclose(
    aggregate(rare), aggregate(predictions), rtol=1e-4, atol=1e-5
  )


def test_the_product_of_a_zero_is_zero_and_weight_zero_leaves_it_out():
  predictions = [[[0.0, 0.5], [0.2, 0.5]]]
  got = aggregate(predictions, kind='product')
  np.testing.assert_allclose(got, [[0, 0.1]], rtol=1e-6)
  got = aggregate(predictions, weights=(0.0, 1.0), kind='product')
  np.testing.assert_allclose(got, [[0.5, 0.5]], rtol=1e-6)


def test_a_missing_weight_is_refused():
  with pytest.raises(ValueError, match='1 weights for 2 predicted targets'):
    aggregate(np.zeros((1, 2, 2)), weights=(1.0,))


# --- Pairs ------------------------------------------------------------------


def test_best_and_worst_by_hand():
  got = choose([[0.2, 0.9, -0.5, 0.1], [3.0, 1.0, 2.0, 4.0]])
  np.testing.assert_array_equal(got.indices, [[1, 2], [3, 1]])
  assert got.valid.all() and (np.asarray(got.reason) == Reason.OK).all()
  three = choose([[0.2, 0.9, -0.5, 0.1]], num_rejected=3)
  np.testing.assert_array_equal(three.indices, [[1, 2, 3, 0]])


def test_pairs_equal_numpy_on_random_users():
  random = np.random.default_rng(4)
  # Few values: many ties.
  rewards = random.integers(0, 6, (200, 8)).astype(np.float32)
  legal = random.random((200, 8)) < 0.7
  got = choose(rewards, legal, num_rejected=2)
  for b in range(200):
    places = [w for w in range(8) if legal[b, w]]
    if len(places) < 3:
      assert got.reason[b] == Reason.TOO_FEW_CANDIDATES and not got.valid[b]
      continue
    best = min(places, key=lambda w: (-rewards[b, w], w))
    places.remove(best)
    worst = sorted(places, key=lambda w: (rewards[b, w], w))[:2]
    np.testing.assert_array_equal(got.indices[b], [best, *worst])
    distinct = rewards[b, best] > rewards[b, worst].max()
    assert bool(got.valid[b]) == distinct
    assert got.reason[b] == (Reason.OK if distinct else Reason.EQUAL_REWARDS)


def test_illegal_candidates_are_never_chosen_whatever_they_earn():
  rewards = np.array([[np.inf, 0.5, -np.inf, 0.1, np.nan]])
  legal = np.array([[False, True, False, True, False]])
  got = choose(rewards, legal)
  np.testing.assert_array_equal(got.indices, [[1, 3]])
  assert got.valid[0]


def test_every_reason_to_skip_is_told_apart():
  rewards = np.array(
    [
      [0.1, 0.5, 0.9],  # fine
      [0.1, 0.5, 0.9],  # one legal candidate
      [0.1, 0.5, 0.9],  # none
      [0.1, np.nan, 0.9],
      [0.4, 0.4, 0.4],
      [0.1, 0.5, 0.9],  # best and worst are the same session
      [0.8999, 0.8998, 0.9],  # nearer than the gap of 0.01
    ]
  )
  legal = np.ones((7, 3), bool)
  legal[1, 1:] = legal[2] = False
  sessions = np.arange(7 * 3 * 2).reshape(7, 3, 2)
  sessions[5, 2] = sessions[5, 0]
  got = choose(rewards, legal, sessions, gap=0.01)
  np.testing.assert_array_equal(
    got.reason,
    [
      Reason.OK,
      Reason.TOO_FEW_CANDIDATES,
      Reason.TOO_FEW_CANDIDATES,
      Reason.NOT_FINITE,
      Reason.EQUAL_REWARDS,
      Reason.SAME_SESSION,
      Reason.EQUAL_REWARDS,
    ],
  )
  np.testing.assert_array_equal(got.valid, np.arange(7) == 0)
  # Rows without a pair can still be gathered.
  indices = np.asarray(got.indices)
  assert ((indices >= 0) & (indices < 3)).all()


def test_the_nearest_rejected_session_must_keep_the_gap():
  rewards = [[0.9, 0.895, 0.1]]
  assert choose(rewards, gap=0.01).valid[0]
  got = choose(rewards, num_rejected=2, gap=0.01)
  assert got.reason[0] == Reason.EQUAL_REWARDS


def test_equal_rewards_are_no_preference_even_without_a_gap():
  assert choose([[0.4, 0.4]], gap=0.0).reason[0] == Reason.EQUAL_REWARDS


def test_another_order_of_the_same_items_is_another_session():
  sessions = np.array([[[1, 2, 3], [3, 2, 1]], [[1, 2, 3], [1, 2, 3]]])
  got = choose([[0.9, 0.1], [0.9, 0.1]], None, sessions)
  np.testing.assert_array_equal(got.reason, [Reason.OK, Reason.SAME_SESSION])
  # One code of one item is enough to differ; two are the same.
  codes = np.zeros((2, 2, 3, 4), int)
  codes[0, 0, 2, 3] = 1
  got = choose([[0.9, 0.1], [0.9, 0.1]], None, codes)
  np.testing.assert_array_equal(got.reason, [Reason.OK, Reason.SAME_SESSION])


def test_order_of_the_users_and_compilation_change_nothing():
  random = np.random.default_rng(5)
  rewards = jnp.asarray(random.random((30, 6)), jnp.float32)
  legal = jnp.asarray(random.random((30, 6)) < 0.6)
  sessions = jnp.asarray(random.integers(0, 2, (30, 6, 2)))
  compiled = jax.jit(
    lambda *x: preference_pairs.choose_pairs(*x, num_rejected=2, min_gap=0.1)
  )
  want = choose(rewards, legal, sessions, num_rejected=2, gap=0.1)
  got = compiled(rewards[::-1], legal[::-1], sessions[::-1])
  for a, b in zip(want, got, strict=True):
    np.testing.assert_array_equal(a, b[::-1])
  assert len(np.unique(want.reason)) >= 3  # the case is not trivial


def test_more_rejected_sessions_than_candidates_are_refused():
  with pytest.raises(ValueError, match=r'num_rejected=3 must lie in 1\.\.2'):
    choose(np.zeros((1, 3)), num_rejected=3)
  with pytest.raises(ValueError, match='min_gap=-1'):
    choose(np.zeros((1, 3)), gap=-1.0)
