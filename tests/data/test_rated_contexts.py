"""Counters of users: rates before a position, buckets, no leakage."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import rated_contexts
from onerec_jax.data import user_context

_LENGTHS = np.array([40, 25, 0, 60])
_PATHWAYS = config.PathwaysConfig(
  user_features=(config.UserFeature('gender', dim=4),),
  short_length=3,
  positive_length=0,
)


def _events():
  count = int(_LENGTHS.sum())
  offsets = np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int64)
  return event_table.EventTable(
    offsets=offsets,
    items=np.arange(count, dtype=np.int32) % 7,
    timestamps=np.arange(count, dtype=np.int64),
    exact_time=np.ones(count, bool),
    positive=np.ones(count, bool),
    split=(np.random.default_rng(3).random(count) < 0.2).astype(np.int8),
    feedback={},
  )


def _labels(count, seed=0):
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 2, (count, 2)).astype(np.float32)
  values[rng.random(values.shape) < 0.4] = np.nan
  values[:45, 1] = np.nan  # unknown to users 0 and (at first) 1
  return values


def _contexts(labels=None):
  events = _events()
  if labels is None:
    labels = _labels(events.num_events)
  features = features_lib.Features(
    users=np.array([[1], [2], [0], [1]], np.int32),
    items=batch_lib.ItemFeatures(()),
    sizes=batch_lib.FeatureSizes(7, (3,), ()),
    edges=(),
  )
  return rated_contexts.RatedContexts(
    user_context.ContextMaker(_PATHWAYS, features, events),
    (('ltr', labels[:, 0]), ('wtr', labels[:, 1])),
    dim=6,
  )


def test_features_equal_counting_the_events_before_one_by_one():
  contexts, events = _contexts(), _events()
  labels = _labels(events.num_events)
  training = events.split == 0
  mean = np.array(
    [
      np.nanmean(labels[training & np.isfinite(labels[:, x]), x].astype(float))
      for x in range(2)
    ]
  )

  def rates(user, position):
    begin = events.offsets[user]
    mine = labels[begin : begin + position]
    known = np.isfinite(mine).sum(axis=0)
    positive = (mine == 1).sum(axis=0)
    return np.where(known > 0, (positive + 10 * mean) / (known + 10), np.nan)

  pairs = [(u, p) for u, n in enumerate(_LENGTHS) for p in range(n + 1)]
  users, positions = np.array(pairs).T
  got = contexts(users, positions).features
  assert got.dtype == np.int32 and got.shape == (len(pairs), 4)
  np.testing.assert_array_equal(got[:, 0], np.array([1, 2, 0, 1])[users])
  found = np.array([rates(*pair) for pair in pairs])
  fitted = [
    np.array(
      [
        rates(u, p)
        for u, n in enumerate(_LENGTHS)
        for p in range(n)
        if training[events.offsets[u] + p]
      ]
    )
  ][0]
  for x in range(2):
    mine, rate = fitted[:, x], found[:, x]
    edges = np.unique(np.quantile(mine[~np.isnan(mine)], np.arange(1, 16) / 16))
    wanted = np.where(
      np.isnan(rate), 0, 1 + (edges[None] <= rate[:, None] + 1e-12).sum(axis=1)
    )
    np.testing.assert_array_equal(got[:, 1 + x], wanted)
    assert len(np.unique(wanted)) > 5
  # 0, 1-2, 3-6, 7-14, ... events.
  np.testing.assert_array_equal(
    got[:5, 3], 1 + np.floor(np.log2([1, 2, 3, 4, 5]))
  )


def test_the_event_itself_and_later_ones_are_not_counted():
  count = int(_LENGTHS.sum())
  before, labels = _contexts(), _labels(count)
  changed = labels.copy()
  changed[65 + 30 :] = 1 - np.nan_to_num(
    changed[65 + 30 :]
  )  # user 3 from 30 on
  after = _contexts(changed)
  # Buckets are fitted on all training events: compare with the same ones.
  after._edges, after._means = before._edges, before._means
  users = np.full(2, 3)
  a, b = (c(users, np.array([30, 45])).features for c in (before, after))
  np.testing.assert_array_equal(a[0], b[0])
  assert (a[1] != b[1]).any()


def test_sizes_and_settings_name_the_added_features():
  contexts = _contexts()
  names = [feature.column for feature in contexts.pathways.user_features]
  assert names == [
    'gender', 'rate of ltr', 'rate of wtr', 'number of events'
  ]  # fmt: skip
  assert [f.dim for f in contexts.pathways.user_features] == [4, 6, 6, 6]
  assert len(contexts.sizes.users) == 4 and contexts.sizes.num_items == 7
  users = np.repeat(np.arange(4), _LENGTHS + 1)
  positions = np.concatenate([np.arange(n + 1) for n in _LENGTHS])
  largest = contexts(users, positions).features.max(axis=0)
  assert (largest < contexts.sizes.users).all()


def test_nobody_is_known_nothing_of():
  got = _contexts()(np.array([-1, 2]), np.array([0, 0]))
  np.testing.assert_array_equal(got.features, [[0, 0, 0, 0], [0, 0, 0, 1]])
  assert not got.short.mask.any()


def test_everything_else_of_the_context_is_kept():
  contexts = _contexts()
  users, positions = np.array([0, 3]), np.array([5, 60])
  got, plain = contexts(users, positions), contexts._contexts(users, positions)
  for field in dataclasses.fields(got.short):
    np.testing.assert_array_equal(
      getattr(got.short, field.name), getattr(plain.short, field.name)
    )


def test_a_label_that_is_never_known_has_no_rate():
  labels = np.full((int(_LENGTHS.sum()), 2), np.nan, np.float32)
  labels[:, 0] = 1
  contexts = _contexts(labels)
  got = contexts(np.array([3]), np.array([60])).features
  assert got[0, 2] == 0 and contexts.sizes.users[2] == 2


def test_a_position_beyond_the_events_is_an_error():
  with pytest.raises(ValueError, match='Position 41 of user 0'):
    _contexts()(np.array([0]), np.array([41]))
