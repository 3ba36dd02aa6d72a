"""Logistic baseline: rates that leak nothing, features, regression."""

import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax.data import features as features_lib
from onerec_jax.data import impressions as impressions_lib
from onerec_jax.data import logistic_baseline as lib

_ITEMS = 6


def _impressions(users, *, seed):
  rng = np.random.default_rng(seed)
  users = np.sort(np.asarray(users, np.int32))
  labels = rng.integers(0, 2, (len(users), 2)).astype(np.float32)
  labels[rng.random(labels.shape) < 0.2] = np.nan
  return impressions_lib.Impressions(
    users,
    np.arange(len(users), dtype=np.int32),
    rng.integers(0, _ITEMS, len(users)).astype(np.int32),
    labels,
  )


def _parts():
  return impressions_lib.Parts(
    _impressions(np.repeat(np.arange(40), 6), seed=0),
    _impressions(np.repeat(np.arange(50, 55), 6), seed=1),
  )


def _raw(parts):
  """Rates without standardisation, one impression at a time."""
  train, held_out = parts
  mean = np.nanmean(train.labels.astype(np.float64), axis=0)

  def log_odds(labels):
    positive = (labels == 1).sum(axis=0)
    rate = (positive + 10 * mean) / (np.isfinite(labels).sum(axis=0) + 10)
    return np.log(rate / (1 - rate))

  result = []
  for row in range(len(held_out.users)):
    user = held_out.users[row]
    mine = held_out.labels[:row][held_out.users[:row] == user]
    same = train.labels[train.items == held_out.items[row]]
    result.append(
      [
        *log_odds(mine),
        *log_odds(same),
        np.log1p(len(mine)),
        np.log1p(len(same)),
      ]
    )
  return np.array(result)


def test_rates_of_held_out_users_equal_counting_one_by_one():
  parts = _parts()
  numbers = lib.past_rates(parts, num_items=_ITEMS, seed=0)
  raw = _raw(parts)
  # Standardised by the training impressions: a straight line per column.
  for got, wanted in zip(numbers.held_out.T, raw.T, strict=True):
    slope, start = np.polyfit(wanted, got, 1)
    assert slope > 0
    np.testing.assert_allclose(got, start + slope * wanted, atol=1e-9)
  np.testing.assert_allclose(numbers.train.mean(axis=0), 0, atol=1e-9)
  np.testing.assert_allclose(numbers.train.std(axis=0), 1, rtol=1e-4)


def test_no_number_depends_on_the_own_label_or_on_the_users_future():
  parts = _parts()
  before = lib.past_rates(parts, num_items=_ITEMS, seed=0)
  flipped = parts.train.labels.copy()
  row = 9 * 6 + 3  # fourth impression of user 9
  flipped[row] = 1 - np.nan_to_num(flipped[row])
  train = parts.train._replace(labels=flipped)
  after = lib.past_rates(parts._replace(train=train), num_items=_ITEMS, seed=0)
  # Means and spreads move by a trifle; a rate moves by about 1 / 16.
  moved = np.abs(after.train - before.train).max(axis=1) > 0.1
  same_item = parts.train.items == parts.train.items[row]
  later = (parts.train.users == 9) & (np.arange(len(moved)) > row)
  assert not moved[row]
  assert not moved[parts.train.users == 9][:4].any()
  assert moved[later].any()
  assert not (moved & ~later & ~same_item).any()


def test_held_out_users_give_nothing_to_the_training_rates():
  parts = _parts()
  other = parts.held_out._replace(labels=1 - parts.held_out.labels)
  numbers = lib.past_rates(parts, num_items=_ITEMS, seed=0)
  after = lib.past_rates(
    parts._replace(held_out=other), num_items=_ITEMS, seed=0
  )
  np.testing.assert_array_equal(numbers.train, after.train)
  # Nor to the item rates of each other.
  np.testing.assert_array_equal(numbers.held_out[:, 2:], after.held_out[:, 2:])


def test_features_are_one_hot_without_the_unknown():
  features = features_lib.Features(
    users=np.array([[1, 0], [2, 3]], np.int32),
    items=batch_lib.ItemFeatures((np.array([[1, 2], [0, 0]], np.int32),)),
    sizes=batch_lib.FeatureSizes(2, users=(3, 4), items=(3,)),
    edges=(),
  )
  tables = lib.feature_tables(features, np.array([[0], [1]], np.int32))
  np.testing.assert_array_equal(
    tables.users.toarray(), [[0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1]]
  )
  np.testing.assert_array_equal(
    tables.items.toarray(), [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
  )
  impressions = impressions_lib.Impressions(
    np.int32([1, 0]), np.int32([0, 0]), np.int32([0, 1]), np.ones((2, 1), 'f4')
  )
  read = lib.design(impressions, np.array([[0.5], [-1.0]]), tables)
  np.testing.assert_array_equal(
    read.toarray(),
    [
      [0.5, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0],
      [-1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ],
  )


def test_without_any_feature_the_numbers_are_left():
  features = features_lib.Features(
    users=np.zeros((3, 0), np.int32),
    items=batch_lib.ItemFeatures(()),
    sizes=batch_lib.FeatureSizes(_ITEMS, (), ()),
    edges=(),
  )
  tables = lib.feature_tables(features, np.zeros((_ITEMS, 0), np.int32))
  impressions = _impressions(np.array([0, 0, 2]), seed=0)
  numbers = np.arange(6.0).reshape(3, 2)
  read = lib.design(impressions, numbers, tables)
  np.testing.assert_array_equal(read.toarray(), numbers)


def test_regression_finds_the_law_that_made_the_labels():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 2))
  p = 1 / (1 + np.exp(-(1.5 * x[:, 0] - 1)))
  y = (rng.random(4000) < p).astype(np.float32)
  y[::7] = np.nan
  other = rng.normal(size=(500, 2))
  matrix = lib.sparse.csr_matrix
  got = lib.predict(matrix(x), y, matrix(other), strength=1.0)
  wanted = 1 / (1 + np.exp(-(1.5 * other[:, 0] - 1)))
  assert np.abs(got - wanted).max() < 0.06


def test_one_class_only_is_predicted_as_it_is():
  matrix = lib.sparse.csr_matrix(np.eye(3))
  got = lib.predict(matrix, np.float32([1, np.nan, 1]), matrix, strength=1.0)
  np.testing.assert_array_equal(got, [1, 1, 1])
