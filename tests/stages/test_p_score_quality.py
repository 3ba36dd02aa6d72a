"""Gains of one prediction over another: by hand, paired, edges."""

import numpy as np
import pytest

from onerec_jax import metrics
from onerec_jax.stages import p_score_quality


def _gains(ours, theirs, labels, users, samples=50):
  return p_score_quality.gains(
    np.asarray(ours, np.float64),
    np.asarray(theirs, np.float64),
    np.asarray(labels, np.float64),
    np.asarray(users, np.int64),
    samples=samples,
    seed=0,
  )


def test_gains_by_hand():
  # All pairs (positive, negative): 2 x 2.  Ours wins all four (AUC 1), theirs
  # one (0.25).  Per user, user 0 (2 impressions) gains 1 - 0, user 1 (2)
  # gains 1 - 0; user 2 has one class and counts for nothing there.
  labels = [1, 0, 0, 1]
  found = _gains(
    [0.9, 0.1, 0.2, 0.8], [0.3, 0.4, 0.2, 0.1], labels, [0, 0, 1, 1]
  )
  assert found['auc']['value'] == 1 - 0.25
  assert found['grouped_auc']['value'] == 1
  third = _gains(
    [0.9, 0.1, 0.2, 0.8, 0.5],
    [0.3, 0.4, 0.2, 0.1, 0.5],
    [*labels, 1],
    [0, 0, 1, 1, 2],
  )
  assert third['grouped_auc']['value'] == 1


def test_gains_are_differences_of_the_aucs_and_unknown_labels_are_left_out():
  rng = np.random.default_rng(0)
  count = 400
  users = rng.permutation(np.repeat(np.arange(20), 20))
  labels = rng.integers(0, 2, count).astype(np.float64)
  labels[rng.random(count) < 0.3] = np.nan
  ours = rng.random(count) + 0.3 * np.nan_to_num(labels)
  theirs = rng.random(count)
  found = _gains(ours, theirs, labels, users, samples=100)
  known = np.isfinite(labels)
  for name, figure in (
    ('auc', lambda x: metrics.auc(x[known], labels[known] == 1)),
    (
      'grouped_auc',
      lambda x: metrics.grouped_auc(x[known], labels[known] == 1, users[known]),
    ),
  ):
    np.testing.assert_allclose(
      found[name]['value'], figure(ours) - figure(theirs), rtol=1e-9
    )
    assert 0 < found[name]['low'] < found[name]['value'] < found[name]['high']


def test_equal_predictions_gain_exactly_nothing():
  rng = np.random.default_rng(1)
  values = rng.random(60)
  found = _gains(
    values, values, rng.integers(0, 2, 60), np.repeat(np.arange(6), 10)
  )
  for figure in found.values():
    assert figure == {'value': 0, 'low': 0, 'high': 0}


def test_undefined_gains_are_none():
  nothing = {'value': None, 'low': None, 'high': None}
  for labels in ([np.nan] * 3, [1, 1, 1]):
    found = _gains([0.1, 0.2, 0.3], [0.3, 0.1, 0.2], labels, [0, 0, 1])
    assert found == {'auc': nothing, 'grouped_auc': nothing}


def test_quality_names_every_prediction_and_its_gain_over_each_baseline():
  rng = np.random.default_rng(2)
  labels = rng.integers(0, 2, 200).astype(np.float64)
  good = np.clip(0.25 + 0.5 * labels + rng.normal(0, 0.1, 200), 0, 1)
  random = rng.random(200)
  found = p_score_quality.quality(
    p_score_quality.Predictions(
      tower=good, p_score=random, logistic=random, logistic_rates=good
    ),
    labels,
    np.repeat(np.arange(20), 10),
    constant=0.5,
    samples=30,
    seed=0,
  )
  assert set(found) == {
    'tower', 'p_score', 'logistic', 'logistic_rates',
    'tower_over_logistic', 'tower_over_logistic_rates',
    'p_score_over_logistic', 'p_score_over_logistic_rates',
  }  # fmt: skip
  assert found['tower']['auc']['value'] > 0.9
  assert found['tower_over_logistic']['auc']['low'] > 0.2
  assert found['tower_over_logistic_rates']['auc']['value'] == 0
  assert found['p_score_over_logistic']['auc']['value'] == 0
  assert found['p_score_over_logistic_rates']['auc']['high'] < -0.2
  assert found['tower']['calibration']


# --- Own lists ----------------------------------------------------------------


def _lists(scores, count=1):
  return p_score_quality.personalisation(
    np.asarray(scores, np.float64), list_items=count, samples=50, seed=0
  )


def test_own_lists_by_hand():
  # Means over users: 0.5, 0.45, 0.3: one list is item 0, worth 0.5; own lists
  # are worth 0.8 and 0.7.
  found = _lists([[0.8, 0.2, 0.3], [0.2, 0.7, 0.3]])
  assert found['one_list'] == pytest.approx(0.5)
  assert found['own_list'] == pytest.approx(0.75)
  assert found['all_items'] == pytest.approx(2.5 / 6)
  assert found['gain']['value'] == pytest.approx(0.5)
  # Two items: 0 and 1 for all, worth 0.5 and 0.45.
  both = _lists([[0.8, 0.2, 0.3], [0.2, 0.7, 0.3]], count=2)
  assert both['one_list'] == pytest.approx(0.475)
  assert both['own_list'] == pytest.approx((0.55 + 0.5) / 2)


def test_users_who_agree_on_the_order_gain_nothing_by_own_lists():
  rng = np.random.default_rng(0)
  user, item = rng.normal(size=(30, 1)), rng.normal(size=(1, 12))
  found = _lists(1 / (1 + np.exp(-user - item)), count=3)
  # Sums in another order: re-associated in f64.
  assert list(found['gain'].values()) == pytest.approx([0, 0, 0], abs=1e-12)
  # A list of all items is the same for all.
  whole = _lists(rng.random((5, 4)), count=9)
  assert whole['gain']['value'] == pytest.approx(0, abs=1e-12)


def test_the_gain_of_own_lists_has_an_interval_over_users():
  scores = np.random.default_rng(1).random((40, 20))
  gain = _lists(scores, count=2)['gain']
  assert 0 < gain['low'] < gain['value'] < gain['high']
