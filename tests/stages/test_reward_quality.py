"""Figures of a reward tower against independent computations."""

import itertools
import json

import numpy as np
import pytest

from onerec_jax.stages import reward_quality

_SETTINGS = {'threshold': 0.5, 'constant': 0.4, 'samples': 200, 'seed': 0}


def _case(users=30, sessions=300, seed=0):
  random = np.random.default_rng(seed)
  predictions = np.round(random.random(sessions), 2)  # with ties
  labels = (random.random(sessions) < predictions).astype(float)
  return predictions, labels, random.integers(0, users, sessions)


def _auc_of_pairs(predictions, labels):
  pairs = itertools.product(
    predictions[labels > 0.5], predictions[labels <= 0.5]
  )
  return np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])


def test_figures_equal_their_definitions():
  predictions, labels, users = _case()
  got = reward_quality.tower_quality(predictions, labels, users, **_SETTINGS)
  np.testing.assert_allclose(
    got['auc']['value'], _auc_of_pairs(predictions, labels), rtol=1e-9
  )
  total = weight = 0.0
  for user in range(30):
    mine = users == user
    if 0 < labels[mine].sum() < mine.sum():
      total += mine.sum() * _auc_of_pairs(predictions[mine], labels[mine])
      weight += mine.sum()
  np.testing.assert_allclose(
    got['grouped_auc']['value'], total / weight, rtol=1e-9
  )
  p = np.clip(predictions, 1e-7, 1 - 1e-7)
  loss = -labels * np.log(p) - (1 - labels) * np.log(1 - p)
  constant = -labels * np.log(0.4) - (1 - labels) * np.log(0.6)
  np.testing.assert_allclose(got['bce']['value'], loss.mean(), rtol=1e-9)
  np.testing.assert_allclose(got['bce_constant'], constant.mean(), rtol=1e-9)
  np.testing.assert_allclose(
    got['bce_gain']['value'], (constant - loss).mean(), rtol=1e-9
  )
  assert (got['sessions'], got['users']) == (300, 30)
  for name in ('auc', 'grouped_auc', 'bce', 'bce_gain'):
    figure = got[name]
    assert figure['low'] < figure['value'] < figure['high']
  json.dumps(got, allow_nan=False)


def test_a_resampled_auc_is_the_auc_of_repeated_sessions():
  predictions, labels, _ = _case(sessions=40)
  counts = np.random.default_rng(1).integers(0, 4, 40)
  auc = reward_quality._WeightedAuc(predictions, labels > 0.5)
  want = _auc_of_pairs(
    np.repeat(predictions, counts), np.repeat(labels, counts)
  )
  np.testing.assert_allclose(auc(counts.astype(float)), want, rtol=1e-9)
  assert np.isnan(auc(labels))  # only positives have weight


def test_intervals_are_as_wide_as_the_spread_between_samples_of_users():
  # Sessions of a user share their label: 30 users, not 300 sessions, decide.
  def draw(seed):
    random = np.random.default_rng(seed)
    label = random.random(30) < 0.5
    users = np.repeat(np.arange(30), 10)
    prediction = np.clip(
      0.5 + 0.2 * (label - 0.5) + random.normal(size=30), 0, 1
    )
    return prediction[users], label[users].astype(float), users

  figures = [
    reward_quality.tower_quality(*draw(s), **_SETTINGS)['auc']
    for s in range(40)
  ]
  spread = np.std([f['value'] for f in figures])
  width = np.mean([f['high'] - f['low'] for f in figures])
  # A 95 % interval is 2 * 1.96 standard deviations wide; per session it would
  # be sqrt(10) times too narrow.
  assert 0.6 < width / (2 * 1.96 * spread) < 1.6


def test_unknown_labels_are_left_out():
  predictions, labels, users = _case()
  known = np.arange(300) % 3 > 0
  some = np.where(known, labels, np.nan)
  got = reward_quality.tower_quality(predictions, some, users, **_SETTINGS)
  want = reward_quality.tower_quality(
    predictions[known], labels[known], users[known], **_SETTINGS
  )
  assert got.pop('known_share') == pytest.approx(2 / 3)
  assert want.pop('known_share') == 1
  assert got == want


def test_labels_of_one_class_have_no_auc_but_a_loss():
  predictions, _, users = _case()
  got = reward_quality.tower_quality(
    predictions, np.zeros(300), users, **_SETTINGS
  )
  assert got['auc'] == {'value': None, 'low': None, 'high': None}
  assert got['grouped_auc']['value'] is None
  assert got['users_in_grouped_auc'] == 0
  assert got['bce']['value'] > 0
  json.dumps(got, allow_nan=False)


def test_no_known_label_is_counted_not_an_error():
  got = reward_quality.tower_quality(
    np.full(3, 0.5), np.full(3, np.nan), np.arange(3), **_SETTINGS
  )
  assert got == {'sessions': 0, 'users': 0, 'known_share': 0.0}


def test_calibration_bins_hold_equal_counts_in_order_of_prediction():
  predictions = np.arange(25)[::-1] / 25
  bins = reward_quality.calibration(predictions, predictions**2)
  assert [b['count'] for b in bins] == [3] * 5 + [2] * 5
  # The lowest three predictions: 0, 1/25 and 2/25.
  assert bins[0]['mean_prediction'] == pytest.approx(1 / 25)
  assert bins[0]['mean_label'] == pytest.approx((0 + 1 + 4) / 625 / 3)
  means = [b['mean_prediction'] for b in bins]
  assert means == sorted(means)
  assert len(reward_quality.calibration(predictions[:4], predictions[:4])) == 4


@pytest.mark.parametrize(
  ('labels', 'threshold'),
  [
    ([0.0, 0.0, 0.0, 1.0], 0.5),  # 0/1 labels, whatever the median
    ([0.0, 1.0, 1.0, 1.0], 0.5),
    ([0.1, 0.2, 0.4, 0.8, 1.0], 0.4),
    # The median is the maximum: nothing lies above it.
    ([0.2, 0.5, 1.0, 1.0, 1.0], 0.5),
  ],
)
def test_soft_labels_are_split_at_the_training_median(labels, threshold):
  got, rule = reward_quality.positive_threshold(np.array(labels))
  assert got == pytest.approx(threshold)
  assert 0 < np.mean(np.array(labels) > got) < 1
  assert ('median' in rule) == (threshold != 0.5 or 0.5 in labels)
