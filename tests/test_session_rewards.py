"""Mean and best rewards of generated sessions, and their spread."""

import numpy as np
import pytest

from onerec_jax import session_rewards

COLUMNS = ('swt_mean', 'swt_max')


def summarize(values, **changes):
  knobs = {
    'columns': COLUMNS[: values.shape[1]],
    'resamples': 20,
    'resample_users': 30,
    'bootstrap_samples': 300,
    'seed': 0,
  }
  return session_rewards.summarize(values, **{**knobs, **changes})


def test_columns_are_target_by_target():
  assert session_rewards.column_names(['swt', 'ltr']) == (
    'swt_mean',
    'swt_max',
    'ltr_mean',
    'ltr_max',
  )


def test_mean_and_best_by_hand():
  predictions = np.array(
    [
      [[0.2, 0.9], [0.4, 0.1], [0.9, 0.2]],
      [[0.5, 0.5], [0.1, 0.3], [0.7, 0.8]],
    ]
  )
  mask = np.array([[True, True, True], [True, True, False]])
  got = session_rewards.user_rewards(predictions, mask)
  # Row 0: 1.5 / 3 and 0.9; 1.2 / 3 and 0.9.  Row 1 without its third session:
  # 0.6 / 2 and 0.5; 0.8 / 2 and 0.5.
  np.testing.assert_allclose(
    got, [[0.5, 0.9, 0.4, 0.9], [0.3, 0.5, 0.4, 0.5]], rtol=1e-12
  )


def test_masked_sessions_have_no_influence_and_order_has_none():
  random = np.random.default_rng(0)
  predictions = random.random((5, 6, 3)).astype(np.float32)
  mask = np.ones((5, 6), bool)
  mask[:, [0, 3]] = False
  want = session_rewards.user_rewards(
    predictions[:, [5, 1, 4, 2]], np.ones((5, 4), bool)
  )
  predictions[:, 0], predictions[:, 3] = np.nan, np.inf
  got = session_rewards.user_rewards(predictions, mask)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_users_without_a_session_are_counted_and_left_out():
  predictions = np.full((4, 2, 1), 0.5)
  mask = np.ones((4, 2), bool)
  mask[[1, 3]] = False
  values = session_rewards.user_rewards(predictions, mask)
  np.testing.assert_array_equal(np.isnan(values).all(axis=1), [0, 1, 0, 1])
  row = summarize(values)
  assert (row.num_users, row.num_without_session) == (2, 2)
  # With zeros in their place the mean were 0.25.
  assert row.figures['swt_mean'].mean == 0.5
  none = summarize(np.full((3, 2), np.nan))
  assert (none.num_users, none.num_without_session) == (0, 3)
  assert none.users_per_resample == 0
  assert np.isnan(none.figures['swt_max']).all()
  empty = session_rewards.user_rewards(np.zeros((2, 0, 1)), mask[:2, :0])
  assert empty.shape == (2, 2) and np.isnan(empty).all()


def test_a_reward_of_nan_is_refused_and_named():
  predictions = np.full((3, 2, 1), 0.5)
  predictions[2, 1] = np.nan
  with pytest.raises(ValueError, match='first: session 1 of row 2'):
    session_rewards.user_rewards(predictions, np.ones((3, 2), bool))


def test_spread_of_resamples_is_that_of_draws_without_replacement():
  random = np.random.default_rng(1)
  values = random.normal(3, 2, (400, 1))
  row = summarize(values, resamples=4000, resample_users=100)
  figure = row.figures['swt_mean']
  assert row.users_per_resample == 100
  assert figure.mean == pytest.approx(values.mean(), rel=1e-12)
  # s / √100 · √(1 - 100 / 400); 4,000 draws know it to 1 / √8000 = 1.1 %.
  want = values.std(ddof=1) / 10 * 0.75**0.5
  assert figure.std == pytest.approx(want, rel=0.05)
  # The interval is of the mean over all 400: ± 1.96 s / √400.
  half = 1.96 * values.std() / 20
  assert figure.high - figure.low == pytest.approx(2 * half, rel=0.2)
  assert figure.low < figure.mean < figure.high


def test_few_users_are_halved_instead_of_drawn_again_and_again():
  values = np.random.default_rng(2).random((10, 2))
  row = summarize(values, resample_users=200)
  assert row.users_per_resample == 5
  assert row.figures['swt_mean'].std > 0


def test_two_resamples_of_two_users_by_hand():
  # Each draws one of 0 and 1: the means agree, or differ with std 1 / √2.
  values = np.array([[0.0], [1.0]])
  stds = {
    round(summarize(values, resamples=2, seed=s).figures['swt_mean'].std, 9)
    for s in range(20)
  }
  assert stds == {0.0, round(0.5**0.5, 9)}
  single = summarize(values, resamples=1).figures['swt_mean']
  assert np.isnan(single.std) and single.mean == 0.5


def test_the_seed_alone_decides_the_draws():
  values = np.random.default_rng(3).random((50, 2))
  assert summarize(values) == summarize(values)
  other = summarize(values, seed=1).figures['swt_mean']
  assert other.std != summarize(values).figures['swt_mean'].std


def test_differences_are_paired_over_the_users_of_both_models():
  random = np.random.default_rng(4)
  base = random.normal(0, 10, (300, 2))
  # The model adds 1 ± 0.1 for every user: invisible unless paired.
  values = base + random.normal(1, 0.1, (300, 2))
  values[:20], base[10:30] = np.nan, np.nan
  got = session_rewards.compare(
    values, base, columns=COLUMNS, bootstrap_samples=500, seed=0
  )
  assert got.num_users == 270
  for f, name in enumerate(COLUMNS):
    difference = got.differences[name]
    want = (values - base)[30:, f].mean()
    assert difference.mean == pytest.approx(want, rel=1e-12)
    # 1.96 · 0.1 / √270 = 0.012 on each side.
    assert 0.98 < difference.low < difference.high < 1.02
    assert difference.share_above_zero == 1


def test_models_that_share_no_user_have_no_difference():
  values = np.ones((4, 2))
  base = np.full((4, 2), np.nan)
  got = session_rewards.compare(
    values, base, columns=COLUMNS, bootstrap_samples=10, seed=0
  )
  assert got.num_users == 0
  assert np.isnan(got.differences['swt_mean']).all()


def test_rows_of_different_users_or_columns_are_refused():
  knobs = {'columns': COLUMNS, 'bootstrap_samples': 10, 'seed': 0}
  with pytest.raises(ValueError, match='same test users'):
    session_rewards.compare(np.ones((4, 2)), np.ones((5, 2)), **knobs)
  with pytest.raises(ValueError, match='column_names'):
    summarize(np.ones((4, 2)), columns=('swt_mean',))
