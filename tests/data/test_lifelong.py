"""Snapshots: what they know, what is looked up, resuming, processes."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import history_clusters
from onerec_jax.data import lifelong
from onerec_jax.data import lifelong_quality
from onerec_jax.data import lifelong_shards
from onerec_jax.data import lifelong_worker
from onerec_jax.data import user_context

_LENGTHS = np.array([35, 4, 0, 61, 20])
_ITEMS = 30
_SETTINGS = config.LifelongConfig(
  max_cluster_size=4, snapshot_events=10, workers=1
)
_PATHWAYS = config.PathwaysConfig(
  item_features=(
    config.ItemFeature('tag', average=True),
    config.ItemFeature('author'),
  ),
  event_features=(config.EventFeature('play', buckets=4),),
  labels=('like',),
  short_length=0,
  positive_length=0,
  lifelong_length=6,
)


def _events():
  rng = np.random.default_rng(0)
  count = int(_LENGTHS.sum())
  play = rng.exponential(50, count).astype(np.float32)
  like = rng.integers(0, 2, count).astype(np.float32)
  play[::7] = like[::5] = np.nan
  return event_table.EventTable(
    offsets=np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int64),
    items=rng.integers(0, _ITEMS, count).astype(np.int32),
    timestamps=np.arange(count, dtype=np.int64) * 3_600_000_000,
    exact_time=rng.random(count) < 0.9,
    positive=rng.random(count) < 0.5,
    split=np.zeros(count, np.int8),
    feedback={'play': play, 'like': like},
  )


_FEATURES = features_lib.Features(
  users=np.zeros((len(_LENGTHS), 0), np.int32),
  items=batch_lib.ItemFeatures(
    (
      np.random.default_rng(1).integers(0, 5, (_ITEMS, 2)).astype(np.int32),
      np.ones((_ITEMS, 1), np.int32),
    )
  ),
  sizes=batch_lib.FeatureSizes(_ITEMS, (), (5, 2)),
  edges=(np.array([2.0, 3.0, 4.0]),),
)
_VECTORS = np.random.default_rng(2).normal(size=(_ITEMS, 6)).astype(np.float32)


def _write(folder, events=None, pathways=_PATHWAYS, seed=0, **settings):
  events = events or _events()
  plan = lifelong_shards.make_plan(
    events,
    _VECTORS,
    settings=dataclasses.replace(_SETTINGS, **settings),
    pathways=pathways,
    features=_FEATURES,
    seed=seed,
  )
  return lifelong_shards.write_snapshots(
    folder, events, _VECTORS, plan, pathways=pathways, features=_FEATURES
  )


def _open(folder, events=None, pathways=_PATHWAYS):
  return lifelong.Snapshots(folder, pathways, _FEATURES, events or _events())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('lifelong')
  _write(folder)
  return folder


def _lookup(snapshots, pairs, length=6):
  users, positions = np.array(pairs, np.int64).T
  return snapshots.lookup(users, positions, length)


# --- What is looked up ------------------------------------------------------


def test_snapshots_are_taken_each_so_many_events(folder):
  snapshots = _open(folder)
  assert snapshots.num_snapshots == sum(_LENGTHS // 10) == 3 + 0 + 0 + 6 + 2
  owners = [snapshots.owner(n) for n in range(snapshots.num_snapshots)]
  assert owners == [
    (u, p) for u, n in enumerate(_LENGTHS) for p in range(10, n + 1, 10)
  ]


def test_a_lookup_equals_compressing_the_events_of_the_last_snapshot(folder):
  events = _events()
  snapshots = _open(folder)
  for user, position in ((0, 10), (0, 19), (3, 59), (4, 20)):
    taken = position // 10 * 10
    begin = events.offsets[user]
    stretch = slice(begin, begin + taken)
    found = history_clusters.compress(
      history_clusters.History(
        events.items[stretch],
        events.timestamps[stretch],
        events.exact_time[stretch],
        events.feedback['play'][stretch, None],
      ),
      _VECTORS,
      _FEATURES.items.values[:1],
      max_cluster_size=4,
      iterations=5,
      max_clusters=6,
      random=np.random.default_rng([0, user, taken]),
    )
    count = len(found.sizes)
    got = _lookup(snapshots, [(user, position)])
    np.testing.assert_array_equal(got.mask[0], np.arange(6) >= 6 - count)
    event = begin + found.representatives
    np.testing.assert_array_equal(
      got.items[0, 6 - count :], events.items[event]
    )
    like = events.feedback['like'][event]
    known = got.label_mask[0, 6 - count :, 0]
    np.testing.assert_array_equal(known, np.isfinite(like))
    np.testing.assert_array_equal(
      got.labels[0, 6 - count :, 0], np.nan_to_num(like) * known
    )
    np.testing.assert_array_equal(
      got.numbers[0, 6 - count :],
      features_lib.number_ids(found.numbers, _FEATURES.edges[0]),
    )
    np.testing.assert_array_equal(
      got.categories[0, 6 - count :], found.categories
    )
    np.testing.assert_array_equal(
      got.category_weights[0, 6 - count :], found.category_weights
    )
    request = events.timestamps[begin + position :][:1]
    known = found.timed & events.exact_time[begin + position :][:1].any()
    if position < _LENGTHS[user]:
      np.testing.assert_array_equal(
        got.age[0, 6 - count :],
        features_lib.age_ids(request - found.times, known, num_buckets=64),
      )
    else:  # nobody knows when the request is made
      assert not got.age.any()


def test_before_the_first_snapshot_and_for_nobody_all_is_masked(folder):
  got = _lookup(_open(folder), [(0, 9), (1, 4), (2, 0), (-1, 0)])
  for field in dataclasses.fields(got):
    assert not np.any(getattr(got, field.name)), field.name


def test_ages_are_unknown_where_the_time_of_the_request_is(folder):
  events = _events()
  inexact = np.flatnonzero(~events.exact_time)
  users = events.user[inexact]
  positions = inexact - events.offsets[users]
  late = positions >= 10
  assert late.any()
  snapshots = _open(folder)
  got = _lookup(snapshots, np.stack([users[late], positions[late]], axis=1))
  assert got.mask.any() and not got.age.any()
  # One event on, the time of the request is known again.
  assert events.exact_time[inexact[late][0] + 1]
  after = _lookup(snapshots, [(users[late][0], positions[late][0] + 1)])
  assert after.age.any()


def test_a_shorter_lookup_holds_the_latest_clusters(folder):
  snapshots = _open(folder)
  wide, narrow = (_lookup(snapshots, [(3, 60)], length=n) for n in (6, 2))
  assert wide.mask.all()
  for field in dataclasses.fields(wide):
    np.testing.assert_array_equal(
      getattr(wide, field.name)[:, -2:], getattr(narrow, field.name)
    )


def test_padding_is_zero(folder):
  got = _lookup(_open(folder), [(0, 10), (3, 60)])
  assert not got.mask[0].all()
  for field in dataclasses.fields(got):
    values = getattr(got, field.name)
    assert not np.any(values[~got.mask]), field.name


def test_no_lookup_knows_an_event_at_or_after_its_position(folder, tmp_path):
  events = _events()
  place = np.arange(events.num_events) - events.offsets[events.user]
  later = (events.user == 3) & (place >= 37)
  changed = dataclasses.replace(
    events,
    items=np.where(later, (events.items + 11) % _ITEMS, events.items).astype(
      np.int32
    ),
    exact_time=np.where(later & (place > 37), False, events.exact_time),
    feedback={
      name: np.where(later, 1 - values, values).astype(np.float32)
      for name, values in events.feedback.items()
    },
  )
  _write(tmp_path, changed)
  before, after = _open(folder), _open(tmp_path, changed)
  a, b = (_lookup(s, [(3, 37), (3, 40)]) for s in (before, after))
  for field in dataclasses.fields(a):
    np.testing.assert_array_equal(
      getattr(a, field.name)[0], getattr(b, field.name)[0], err_msg=field.name
    )
  assert (a.items[1] != b.items[1]).any()


def test_contexts_hold_the_clusters(folder):
  events, snapshots = _events(), _open(folder)
  contexts = user_context.ContextMaker(_PATHWAYS, _FEATURES, events, snapshots)
  got = contexts(np.array([3, -1, 0]), np.array([33, 0, 5]))
  wanted = _lookup(snapshots, [(3, 33), (-1, 0), (0, 5)])
  assert got.lifelong.mask[0].any() and not got.lifelong.mask[1:].any()
  for field in dataclasses.fields(wanted):
    np.testing.assert_array_equal(
      getattr(got.lifelong, field.name), getattr(wanted, field.name)
    )


# --- Writing ----------------------------------------------------------------


def _arrays(folder):
  return {
    path.name: dict(np.load(path).items()) for path in folder.glob('*.npz')
  }


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    for key in a[name]:
      np.testing.assert_array_equal(a[name][key], b[name][key])


def test_an_interrupted_run_makes_only_the_missing_shards(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(lifelong_shards, '_SHARD_WORK', 30)
  calls = []
  compress = lifelong_worker.compress_shard

  def counted(task, *shared):
    calls.append(task.first_user)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return compress(task, *shared)

  monkeypatch.setattr(lifelong_worker, 'compress_shard', counted)
  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path)
  assert len(_arrays(tmp_path)) == 1
  with pytest.raises(FileNotFoundError, match="stage 'lifelong'"):
    _open(tmp_path)
  written = _write(tmp_path)
  total = len(_arrays(tmp_path))
  assert written.shards == total - 1 > 1
  assert calls[0] not in calls[2:] and calls[1] in calls[2:]
  # The split into shards changes nothing.
  a, b = _open(folder), _open(tmp_path)
  for x, y in zip(a.clusters, b.clusters, strict=True):
    np.testing.assert_array_equal(x, y)
  np.testing.assert_array_equal(a.offsets, b.offsets)
  assert _write(tmp_path).shards == 0


def test_several_processes_write_the_same_shards(tmp_path, monkeypatch):
  monkeypatch.setattr(lifelong_shards, '_SHARD_WORK', 100)
  _write(tmp_path / 'one')
  written = _write(tmp_path / 'two', workers=2)
  assert written.shards > 1 and written.users == len(_LENGTHS)
  _assert_same(_arrays(tmp_path / 'one'), _arrays(tmp_path / 'two'))


def test_other_settings_replace_the_shards(tmp_path):
  _write(tmp_path)
  first = set(_arrays(tmp_path))
  assert _write(tmp_path, workers=2).shards == 0
  assert _write(tmp_path, seed=1).shards == len(first)
  assert not first & set(_arrays(tmp_path))


def test_only_the_latest_events_are_compressed(tmp_path):
  _write(tmp_path, max_events=15)
  snapshots = _open(tmp_path)
  for number in range(snapshots.num_snapshots):
    _, position = snapshots.owner(number)
    kept = snapshots.representatives(number)
    assert (kept >= position - 15).all() and (kept < position).all()
  assert snapshots.clusters.sizes.max() <= 4


def test_shards_begin_with_the_first_user_and_hold_similar_work():
  counts = np.array([0, 0, 3, 50, 0, 1, 2, 400])
  bounds = lifelong_shards.shard_bounds(
    counts, snapshot_events=100, max_events=100_000
  )
  assert bounds[0] == 0 and bounds[-1] == len(counts)
  assert (np.diff(bounds) > 0).all()
  # 100 · 400 · 401 / 2 = 8 million events: the last user is alone.
  assert bounds[-2] == 7


def test_users_without_a_snapshot_leave_empty_snapshots(tmp_path):
  _write(tmp_path, snapshot_events=1000)
  snapshots = _open(tmp_path)
  assert snapshots.num_snapshots == 0
  got = _lookup(snapshots, [(3, 61), (0, 1)])
  assert got.items.shape == (2, 6) and not got.mask.any()
  assert got.categories.shape == (2, 6, 1, history_clusters.TOP_VALUES)


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'lifelong_length': 7}, 'lifelong_length=7'),
    ({'event_features': ()}, r"numbers \['play'\], now \[\]"),
    ({'item_features': ()}, r"features \['tag'\], now \[\]"),
  ],
)
def test_other_pathways_need_the_stage_again(folder, changes, message):
  pathways = dataclasses.replace(_PATHWAYS, **changes)
  with pytest.raises(ValueError, match=message) as raised:
    _open(folder, pathways=pathways)
  assert 'Run it again' in str(raised.value)


@pytest.mark.parametrize(
  ('pathways', 'settings', 'message'),
  [
    ({'lifelong_length': 0}, {}, "take 'lifelong' out of stages"),
    ({}, {'snapshot_events': 0}, r'lifelong\.snapshot_events=0'),
    ({}, {'max_cluster_size': 0}, r'lifelong\.max_cluster_size=0'),
  ],
)
def test_bad_settings_are_named(tmp_path, pathways, settings, message):
  with pytest.raises(ValueError, match=message):
    _write(
      tmp_path, pathways=dataclasses.replace(_PATHWAYS, **pathways), **settings
    )


# --- Quality ----------------------------------------------------------------


def test_nearest_cosine_by_hand():
  units = lifelong_quality.unit_rows(
    np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.0]])
  )
  half = 0.5**0.5
  # Item 2 lies between items 0 and 1; item 0 is kept; item 3 is unknown.
  found = lifelong_quality.nearest_cosine(
    np.array([0, 1]), np.array([2, 0, 3]), units
  )
  np.testing.assert_allclose(found, (half + 1 + 0) / 3, rtol=1e-6)
  nothing = np.zeros(0, np.int64)
  assert lifelong_quality.nearest_cosine(nothing, np.array([1]), units) == 0


def test_keeping_the_whole_history_keeps_all_of_it(folder):
  events = _events()
  found = lifelong_quality.compare(
    events,
    _open(folder),
    _VECTORS,
    length=1000,
    max_snapshots=100,
    seed=0,
  )
  assert found['snapshots'] == 11
  history = found['history']
  np.testing.assert_allclose(history['last_full_length'], 1, rtol=1e-5)
  assert 0 < history['clusters'] < 1
  assert 0 < history['last_same_number'] < 1
  later = found['later_positives']
  assert later['last_full_length'] >= later['last_same_number']
