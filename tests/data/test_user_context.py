"""Contexts against a loop over single events, and that nothing leaks."""

import dataclasses

import jax
import numpy as np
import pytest

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features
from onerec_jax.data import user_context

PATHWAYS = config.PathwaysConfig(
  user_features=(config.UserFeature(column='age'),),
  event_features=(
    config.EventFeature(column='play_time', buckets=5),
    config.EventFeature(column='pause', buckets=3),
  ),
  labels=('is_like', 'is_follow', 'play_time'),
  age_buckets=16,
  short_length=4,
  positive_length=6,
)
EDGES = (np.array([0.5, 1.0, 1.5, 2.0]), np.array([0.7, 1.4]))


def make_events(seed=0, num_users=12):
  """Users with 0..14 events, some without a positive one."""
  random = np.random.default_rng(seed)
  lengths = random.integers(0, 15, num_users)
  lengths[:3] = 0, 1, 14
  offsets = np.concatenate(([0], np.cumsum(lengths)))
  count = int(offsets[-1])
  positive = random.random(count) < 0.5
  positive[offsets[2] : offsets[3]] = False

  def number():
    values = random.exponential(2.0, count).astype(np.float32)
    values[random.random(count) < 0.2] = 0
    values[random.random(count) < 0.3] = np.nan
    return values

  return event_table.EventTable(
    offsets=offsets,
    items=random.integers(0, 50, count).astype(np.int32),
    timestamps=np.cumsum(random.integers(0, 10**11, count)),
    exact_time=random.random(count) < 0.7,
    positive=positive,
    split=np.zeros(count, np.int8),
    feedback={
      name: number() for name in ('play_time', 'pause', 'is_like', 'is_follow')
    },
  )


EVENTS = make_events()


def make_features(num_users=12):
  return features.Features(
    users=np.arange(1, num_users + 1, dtype=np.int32)[:, None],
    items=batch.ItemFeatures(()),
    sizes=batch.FeatureSizes(50, (num_users + 1,), ()),
    edges=EDGES,
  )


def make_contexts(events=EVENTS, lifelong=None, **changes):
  pathways = dataclasses.replace(PATHWAYS, **changes)
  return user_context.ContextMaker(pathways, make_features(), events, lifelong)


def all_requests(events=EVENTS):
  """Every position of every user, the end of his events included."""
  lengths = np.diff(events.offsets)
  users = np.repeat(np.arange(events.num_users), lengths + 1)
  positions = np.concatenate([np.arange(n + 1) for n in lengths])
  return users, positions


def reference(places, request, length, *, events=EVENTS):
  """One row of an EventSequence, event by event."""
  places = places[-length:]
  row = {
    'items': np.zeros(length, int),
    'mask': np.zeros(length, bool),
    'age': np.zeros(length, int),
    'numbers': np.zeros((length, 2), int),
    'labels': np.zeros((length, 3)),
    'label_mask': np.zeros((length, 3), bool),
  }
  for slot, place in enumerate(places, start=length - len(places)):
    row['items'][slot] = events.items[place]
    row['mask'][slot] = True
    if (
      request is not None
      and events.exact_time[request]
      and events.exact_time[place]
    ):
      age = events.timestamps[request] - events.timestamps[place]
      row['age'][slot] = features.age_ids(
        np.array([age]), np.array([True]), num_buckets=16
      )[0]
    for f, name in enumerate(('play_time', 'pause')):
      value = events.feedback[name][place]
      if not np.isnan(value):
        row['numbers'][slot, f] = 1 + sum(np.log1p(value) >= EDGES[f])
    for a, name in enumerate(PATHWAYS.labels):
      value = events.feedback[name][place]
      row['label_mask'][slot, a] = not np.isnan(value)
      row['labels'][slot, a] = value > 0
  return row


def assert_rows(sequence, rows):
  for name in ('items', 'mask', 'age', 'numbers', 'labels', 'label_mask'):
    np.testing.assert_array_equal(
      getattr(sequence, name), np.stack([r[name] for r in rows]), err_msg=name
    )


def test_contexts_equal_a_loop_over_single_events():
  users, positions = all_requests()
  got = make_contexts()(users, positions)
  short, positive = [], []
  for user, position in zip(users, positions, strict=True):
    first, end = EVENTS.offsets[user : user + 2]
    before = np.arange(first, first + position)
    request = first + position if first + position < end else None
    short.append(reference(before, request, 4))
    positive.append(reference(before[EVENTS.positive[before]], request, 6))
  assert_rows(got.short, short)
  assert_rows(got.positive, positive)
  np.testing.assert_array_equal(got.features[:, 0], users + 1)
  # The cases that matter occur: padded, full, with and without an age.
  assert 0 < got.short.mask.mean() < 1 and got.positive.mask.all(1).any()
  assert (got.short.age[got.short.mask] == 0).any()
  assert len(np.unique(got.short.age)) > 4
  assert (got.short.mask[..., None] & ~got.short.label_mask).any()


@pytest.mark.parametrize('seed', range(5))
def test_nothing_at_or_after_the_position_is_read_but_the_requests_time(seed):
  events = make_events(seed)
  random = np.random.default_rng([seed, 1])
  users, positions = all_requests(events)
  chosen = random.permutation(len(users))[:40]
  for user, position in zip(users[chosen], positions[chosen], strict=True):
    first, end = events.offsets[user : user + 2]
    place = first + position
    # All else is drawn anew, of other users too.
    draw = lambda old: random.permutation(old) + 1  # noqa: E731
    keep = (np.arange(events.num_events) >= first) & (
      np.arange(events.num_events) < place
    )

    def mix(old, new, keep=keep):
      return np.where(keep, old, new).astype(old.dtype)

    timed = keep.copy()
    if place < end:
      timed[place] = True
    other = dataclasses.replace(
      events,
      items=mix(events.items, draw(events.items)),
      timestamps=mix(events.timestamps, draw(events.timestamps), timed),
      exact_time=mix(events.exact_time, ~events.exact_time, timed),
      positive=mix(events.positive, ~events.positive),
      split=mix(events.split, 2),
      feedback={
        name: mix(old, np.nan_to_num(draw(old), nan=3.0))
        for name, old in events.feedback.items()
      },
    )
    ask = np.array([user]), np.array([position])
    want, got = make_contexts(events)(*ask), make_contexts(other)(*ask)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_event_before_the_position_is_read():
  # Or else the test above would hold for a maker that reads nothing.
  user = 2
  count = int(np.diff(EVENTS.offsets)[user])
  ask = np.array([user]), np.array([count])
  want = make_contexts()(*ask)
  for name, change in (
    ('items', lambda x: x + 1),
    ('positive', lambda x: ~x),
    ('timestamps', lambda x: x + 1),
  ):
    values = getattr(EVENTS, name).copy()
    place = EVENTS.offsets[user] + count - 1
    values[place] = change(values[place])
    got = make_contexts(dataclasses.replace(EVENTS, **{name: values}))(*ask)
    same = [
      np.array_equal(a, b)
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    ]
    # At the end of the events nobody knows the age: a time changes nothing.
    assert all(same) == (name == 'timestamps')


def test_filler_rows_are_masked_and_change_no_other_row():
  busy = 3 + int(np.diff(EVENTS.offsets)[3:].argmax())
  users, positions = np.array([2, -1, busy]), np.array([2, 999, 1])
  maker = make_contexts()
  got = maker(users, positions)
  alone = maker(users[[0, 2]], positions[[0, 2]])
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a[[0, 2]], b), got, alone
  )
  for leaf in jax.tree.leaves(got):
    assert not leaf[1].any()


def test_arrays_have_the_stated_types():
  got = make_contexts()(np.array([3]), np.array([0]))
  types = {
    f.name: getattr(got.short, f.name).dtype.name
    for f in dataclasses.fields(got.short)
    if getattr(got.short, f.name) is not None
  }
  assert types == {
    'items': 'int32', 'mask': 'bool', 'age': 'int32', 'numbers': 'int32',
    'labels': 'float32', 'label_mask': 'bool',
  }  # fmt: skip
  assert got.features.dtype == np.int32


def test_pathways_of_length_zero_are_none_and_ages_may_be_left_out():
  got = make_contexts(short_length=0, age_dim=0)(*all_requests())
  assert got.short is None and got.lifelong is None
  assert not got.positive.age.any() and got.positive.mask.any()


def test_events_without_any_positive_one_give_padding():
  events = dataclasses.replace(EVENTS, positive=np.zeros_like(EVENTS.positive))
  got = make_contexts(events)(*all_requests())
  assert not got.positive.mask.any() and got.short.mask.any()


class _Clusters:
  """Returns what it was asked for."""

  def lookup(self, users, positions, length):
    shape = len(users), length
    ints = np.zeros(shape, np.int32)
    return batch.EventSequence(
      items=ints + users[:, None].astype(np.int32),
      mask=np.ones(shape, bool),
      age=ints + positions[:, None].astype(np.int32),
      numbers=np.zeros((*shape, 2), np.int32),
      labels=np.zeros((*shape, 3), np.float32),
      label_mask=np.zeros((*shape, 3), bool),
    )


def test_clusters_are_looked_up_by_user_and_position():
  maker = make_contexts(lifelong=_Clusters(), lifelong_length=3)
  got = maker(np.array([2, -1]), np.array([5, 9])).lifelong
  assert got.items.tolist() == [[2] * 3, [-1] * 3]
  assert got.age.tolist() == [[5] * 3, [0] * 3]
  with pytest.raises(ValueError, match="stage 'lifelong'"):
    make_contexts(lifelong_length=3)


@pytest.mark.parametrize('position', [-1, 15])
def test_a_position_beyond_the_events_is_refused(position):
  with pytest.raises(ValueError, match=r'user 2, who has 14 events.*0\.\.14'):
    make_contexts()(np.array([1, 2]), np.array([0, position]))


def test_a_label_column_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match=r"labels\[0\] names 'is_hate'"):
    make_contexts(labels=('is_hate',))
