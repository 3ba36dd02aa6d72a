"""Logistic baseline: rates and histories that leak nothing, regression."""

import jax
import numpy as np
import pytest
from sklearn import exceptions

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import impressions as impressions_lib
from onerec_jax.data import logistic_baseline as lib
from onerec_jax.data import rated_contexts
from onerec_jax.data import user_context
from onerec_jax.model import linear_part

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


# --- Features ---------------------------------------------------------------

_PATHWAYS = config.PathwaysConfig(
  user_features=(config.UserFeature('gender', dim=4),),
  item_features=(config.ItemFeature('tag', max_values=2, dim=4),),
  event_features=(config.EventFeature('play', buckets=2),),
  labels=('like', 'follow'),
  age_buckets=3,
  short_length=4,
  positive_length=0,
)
_EVENTS_PER_USER = 6
_CODES = np.array([[0, 1], [1, 0], [1, 2], [0, 0], [2, 1], [1, 1]], np.int32)
_TAGS = np.array([[1, 2], [0, 0], [2, 0], [1, 0], [2, 1], [0, 0]], np.int32)


def _feedback(seed=0):
  rng = np.random.default_rng(seed)
  likes, follows = rng.integers(0, 2, (2, 3 * _EVENTS_PER_USER)).astype('f4')
  follows[rng.random(len(follows)) < 0.4] = np.nan
  plays = rng.integers(0, 9, len(likes)).astype(np.float32)
  return {'like': likes, 'follow': follows, 'play': plays}


def _contexts(feedback, items):
  """Three users of six events each, one every hour."""
  count = len(items)
  user = np.repeat(np.arange(3), _EVENTS_PER_USER)
  offsets = np.arange(4) * _EVENTS_PER_USER
  events = event_table.EventTable(
    offsets=offsets,
    items=items.astype(np.int32),
    timestamps=np.arange(count, dtype=np.int64) * 3_600_000_000,
    exact_time=np.ones(count, bool),
    positive=np.ones(count, bool),
    split=np.zeros(count, np.int8),
    feedback=feedback,
  )
  assert np.array_equal(events.user, user)
  features = features_lib.Features(
    users=np.array([[1], [2], [0]], np.int32),
    items=batch_lib.ItemFeatures((_TAGS,)),
    sizes=batch_lib.FeatureSizes(_ITEMS, (3,), (3,)),
    edges=(np.log1p([3.0]),),
  )
  return rated_contexts.RatedContexts(
    user_context.ContextMaker(_PATHWAYS, features, events),
    (('like', feedback['like']), ('follow', feedback['follow'])),
    dim=4,
  )


def _shown():
  """Every event of the three users, whatever its label."""
  count = 3 * _EVENTS_PER_USER
  return impressions_lib.Impressions(
    np.repeat(np.arange(3, dtype=np.int32), _EVENTS_PER_USER),
    np.tile(np.arange(_EVENTS_PER_USER, dtype=np.int32), 3),
    np.arange(count, dtype=np.int32) * 5 % _ITEMS,
    np.ones((count, 2), np.float32),
  )


def _designed(feedback):
  shown = _shown()
  return lib.Design(_contexts(feedback, shown.items), _CODES)(shown).toarray()


def test_items_are_one_hot_by_id_feature_and_code():
  rows = _designed(_feedback())
  item = _shown().items[7]
  wanted = np.zeros(_ITEMS + 3 + 4 + 4)
  wanted[item] = 1
  wanted[_ITEMS + _TAGS[item][_TAGS[item] > 0]] = 1  # 0 is unknown
  wanted[_ITEMS + 3 + 1 + _CODES[item, 0]] = 1
  wanted[_ITEMS + 3 + 4 + 1 + _CODES[item, 1]] = 1
  np.testing.assert_array_equal(rows[7, : len(wanted)], wanted)


def test_users_are_one_hot_by_what_the_towers_read():
  feedback = _feedback()
  contexts = _contexts(feedback, _shown().items)
  read = contexts(np.arange(3), np.full(3, 5)).features
  sizes = contexts.sizes.users
  first = _ITEMS + 3 + 4 + 4
  rows = _designed(feedback)[5::_EVENTS_PER_USER, first : first + sum(sizes)]
  starts = np.cumsum([0, *sizes[:-1]])
  wanted = np.zeros((3, sum(sizes)))
  for user, values in enumerate(read):
    for start, value in zip(starts, values, strict=True):
      wanted[user, start + value] = value > 0
  # The rates of like and follow and the number of events are among them.
  assert read.shape == (3, 4) and (read[:, 1:] > 0).any()
  np.testing.assert_array_equal(rows, wanted)


def test_histories_are_shares_of_the_events_the_towers_see():
  feedback = _feedback()
  shown = _shown()
  row = _EVENTS_PER_USER + 5  # sixth event of user 1: four of five are seen
  seen = np.arange(row - 4, row)
  codes = _CODES[shown.items[seen]]
  likes, follows = feedback['like'][seen], feedback['follow'][seen]
  known = np.isfinite(follows)
  assert 0 < known.sum() < 4
  wanted = np.concatenate(
    [
      np.bincount(codes[:, 0], minlength=3) / 4,
      np.bincount(codes[:, 1], minlength=3) / 4,
      # Bucket 1 below 3, bucket 2 from there on.
      np.bincount(1 + (feedback['play'][seen] >= 3), minlength=3) / 4,
    ]
  )
  got = _designed(feedback)[row]
  labels = [likes.mean(), follows[known].mean(), 1, known.mean()]
  np.testing.assert_allclose(got[-4:], labels, rtol=1e-6)
  first = len(got) - 4 - (_PATHWAYS.age_buckets + 1) - len(wanted)
  np.testing.assert_allclose(got[first : first + len(wanted)], wanted)
  ages = got[first + len(wanted) : -4]
  assert ages.sum() == 1 and ages[0] == 0  # all times are exact
  # Nothing is known of a user before his first event.
  assert not _designed(feedback)[_EVENTS_PER_USER, first:].any()


def test_tables_add_up_to_features_times_coefficients():
  feedback, shown = _feedback(), _shown()
  contexts = _contexts(feedback, shown.items)
  design = lib.Design(contexts, _CODES)
  rows = design(shown).toarray()
  coefficients = np.random.default_rng(0).normal(size=(2, rows.shape[1]))
  tables = design.tables(coefficients)
  tables['bias'] = np.zeros((2, 1), np.float32)
  context = contexts(shown.users, shown.positions)
  part = linear_part.LinearPart(2, contexts.pathways, contexts.sizes)
  logits = jax.jit(part.apply)(
    {'params': tables}, context.features, context.short, shown.items[:, None]
  )
  np.testing.assert_allclose(
    logits[:, 0], rows @ coefficients.T, rtol=1e-5, atol=1e-5
  )


def test_no_feature_depends_on_the_own_label_or_on_what_comes_later():
  before, items = _feedback(), _shown().items
  place = _EVENTS_PER_USER + 2  # third event of user 1
  after = {name: values.copy() for name, values in before.items()}
  for values in after.values():
    values[place] = np.where(values[place] == 1, 0, 1)
  base, other = _contexts(before, items), _contexts(after, items)
  # What is fitted on all training events stays as it was.
  other._edges, other._means = base._edges, base._means
  read, moved = (
    lib.Design(contexts, _CODES)(_shown()).toarray()
    for contexts in (base, other)
  )
  later = np.arange(place + 1, 2 * _EVENTS_PER_USER)
  np.testing.assert_array_equal(
    np.flatnonzero((read != moved).any(axis=1)), later[: _PATHWAYS.short_length]
  )


def test_impressions_in_groups_have_the_same_features(monkeypatch):
  feedback = _feedback()
  whole = _designed(feedback)
  monkeypatch.setattr(lib, '_CONTEXT_ROWS', 5)
  np.testing.assert_array_equal(_designed(feedback), whole)


def test_numbers_stand_beside_the_features():
  read = lib.sparse.csr_matrix(np.eye(3))
  numbers = np.arange(6.0).reshape(3, 2)
  both = lib.with_numbers(read, numbers).toarray()
  np.testing.assert_array_equal(both[:, :2], numbers)
  np.testing.assert_array_equal(both[:, 2:], np.eye(3))


# --- Regression -------------------------------------------------------------


def test_regression_finds_the_law_that_made_the_labels():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4000, 2))
  p = 1 / (1 + np.exp(-(1.5 * x[:, 0] - 1)))
  y = (rng.random(4000) < p).astype(np.float32)
  y[::7] = np.nan
  other = rng.normal(size=(500, 2))
  matrix = lib.sparse.csr_matrix
  found = list(lib.predictions(matrix(x), y, matrix(other)))
  assert tuple(f.strength for f in found) == lib.STRENGTHS
  wanted = 1 / (1 + np.exp(-(1.5 * other[:, 0] - 1)))
  assert np.abs(found[-1].values - wanted).max() < 0.06
  # A stronger penalty pulls the predictions together; each is of its own fit,
  # not of the fit before.
  spread = [f.values.std() for f in found]
  assert spread == sorted(spread) and len(set(spread)) == len(spread)


def test_one_class_only_is_predicted_as_it_is():
  matrix = lib.sparse.csr_matrix(np.eye(3))
  (only,) = lib.predictions(matrix, np.float32([1, np.nan, 1]), matrix)
  np.testing.assert_array_equal(only.values, [1, 1, 1])


def test_quiet_fits_may_end_early_and_leave_no_setting_behind(monkeypatch):
  monkeypatch.setattr(lib, 'MAX_ITERATIONS', 1)
  x = lib.sparse.csr_matrix(np.random.default_rng(0).normal(size=(50, 4)))
  y = np.arange(50, dtype=np.float32) % 2
  before = lib.warnings.filters[:]
  with lib.quietly():
    assert len(list(lib.predictions(x, y, x))) == len(lib.STRENGTHS)
  assert lib.warnings.filters == before
  with pytest.warns(exceptions.ConvergenceWarning):
    list(lib.predictions(x, y, x))
