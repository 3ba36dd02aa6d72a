"""Impressions: labels, held-out users, batches that can be resumed."""

import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import impressions as lib
from onerec_jax.data import reward_examples

_USERS = 12
_LENGTHS = np.arange(_USERS) % 4 + 3  # events of each user
_TRAINED = _LENGTHS - 2  # one validation and one test event each


def _events(**feedback):
  offsets = np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int64)
  count = int(offsets[-1])
  place = np.arange(count) - np.repeat(offsets[:-1], _LENGTHS)
  left = np.repeat(_LENGTHS, _LENGTHS) - place
  rng = np.random.default_rng(0)
  columns = {
    'is_like': rng.integers(0, 2, count).astype(np.float32),
    'watch_time': rng.exponential(10, count).astype(np.float32),
  }
  columns['watch_time'][::5] = np.nan
  columns.update(feedback)
  return event_table.EventTable(
    offsets=offsets,
    items=rng.integers(0, 50, count).astype(np.int32),
    timestamps=np.arange(count, dtype=np.int64),
    exact_time=np.ones(count, bool),
    positive=np.ones(count, bool),
    split=np.select([left > 2, left == 2], [0, 1], 2).astype(np.int8),
    feedback=columns,
  )


_TOWERS = (
  config.PScoreTower(name='ltr', column='is_like'),
  config.PScoreTower(name='lvtr', column='watch_time', threshold=8.0),
)
_MODEL = config.PScoreConfig(towers=_TOWERS, held_out_share=0.25)
_TRAIN = config.TrainConfig(
  batch_size=5, pipeline=config.PipelineConfig(prefetch_batches=2)
)


def _contexts(users, positions):
  """Stands for a ContextMaker: it hands on what it was asked."""
  return batch_lib.UserContext(
    np.stack([users, positions], axis=1).astype(np.int32), None, None, None
  )


# --- Events -------------------------------------------------------------------


def test_every_event_of_the_training_stretch_is_one_impression():
  events = _events()
  parts = lib.read(events, model=_MODEL, seed=0)
  seen = sorted(
    (int(u), int(p), int(i))
    for part in parts
    for u, p, i in zip(part.users, part.positions, part.items, strict=True)
  )
  wanted = [
    (u, p, int(events.items[events.offsets[u] + p]))
    for u in range(_USERS)
    for p in range(_TRAINED[u])
  ]
  assert seen == wanted


def test_events_without_any_label_are_left_out():
  events = _events()
  events.feedback['is_like'][::3] = np.nan
  known = np.isfinite(events.feedback['is_like'])
  known |= np.isfinite(events.feedback['watch_time'])
  parts = lib.read(events, model=_MODEL, seed=0)
  assert not known.all()
  assert sum(len(p.users) for p in parts) == (known & (events.split == 0)).sum()
  # Positions still count all events.
  place = events.offsets[parts.train.users] + parts.train.positions
  np.testing.assert_array_equal(events.items[place], parts.train.items)


def test_labels_are_above_the_threshold_and_unknown_ones_stay_unknown():
  events = _events()
  train, _ = lib.read(events, model=_MODEL, seed=0)
  place = events.offsets[train.users] + train.positions
  like = events.feedback['is_like'][place]
  watch = events.feedback['watch_time'][place]
  assert np.isnan(watch).any() and (watch <= 8).any() and (watch > 8).any()
  np.testing.assert_array_equal(train.labels[:, 0], like)
  np.testing.assert_array_equal(
    train.labels[:, 1], np.where(np.isnan(watch), np.nan, watch > 8)
  )


def test_held_out_users_are_those_of_the_reward_model_and_never_train():
  train, held_out = lib.read(_events(), model=_MODEL, seed=3)
  wanted = reward_examples.held_out_users(
    np.arange(_USERS, dtype=np.int32), share=0.25, seed=3
  )
  assert len(wanted) == 3
  np.testing.assert_array_equal(np.unique(held_out.users), wanted)
  assert not set(train.users) & set(held_out.users)


def test_every_bad_tower_is_named_with_what_to_change():
  count = _events().num_events
  events = _events(
    never=np.zeros(count, np.float32), void=np.full(count, np.nan, np.float32)
  )
  towers = tuple(
    config.PScoreTower(name=name, column=column)
    for name, column in (('a', 'missing'), ('b', 'never'), ('c', 'void'))
  )
  model = config.PScoreConfig(towers=(*towers, *_TOWERS), held_out_share=0.25)
  with pytest.raises(ValueError) as raised:
    lib.read(events, model=model, seed=0)
  lines = str(raised.value).splitlines()[1:]
  assert len(lines) == 3
  assert "no feedback column 'missing'; there are ['is_like', " in lines[0]
  assert "'never' > 0 is False in all" in lines[1]
  assert 'change threshold' in lines[1]
  assert "column 'void' is unknown in all" in lines[2]


def test_columns_without_any_value_are_named():
  events = _events()
  for values in events.feedback.values():
    values[:] = np.nan
  with pytest.raises(ValueError, match="'is_like' is unknown in all"):
    lib.read(events, model=_MODEL, seed=0)


def test_too_few_users_to_hold_out_names_the_setting():
  model = config.PScoreConfig(towers=_TOWERS, held_out_share=0.01)
  with pytest.raises(ValueError, match=r'p_score_model\.held_out_share=0\.01'):
    lib.read(_events(), model=model, seed=0)


def test_judged_users_are_whole_and_fit_the_limit():
  train, _ = lib.read(_events(), model=_MODEL, seed=0)
  total = len(train.users)
  rows = lib.of_whole_users(train, max_impressions=total // 2, seed=0)
  users, counts = np.unique(train.users[rows], return_counts=True)
  assert 0 < len(rows) <= total // 2
  np.testing.assert_array_equal(counts, _TRAINED[users])
  assert len(lib.of_whole_users(train, max_impressions=total, seed=0)) == total
  assert len(lib.of_whole_users(train, max_impressions=0, seed=0)) > 0
  other = lib.of_whole_users(train, max_impressions=total // 2, seed=1)
  assert rows.tolist() != other.tolist()


def test_evenly_spaced_rows_reach_both_halves_and_never_repeat():
  rows = lib.evenly_spaced(100, max_impressions=7)
  assert len(set(rows.tolist())) == 7 and rows[0] == 0 and rows[-1] > 80
  np.testing.assert_array_equal(
    lib.evenly_spaced(3, max_impressions=7), np.arange(3)
  )


# --- Batches ------------------------------------------------------------------


def _train():
  return lib.read(_events(), model=_MODEL, seed=0).train


def _flat(batches):
  """(user, position) of all real rows."""
  return [
    (int(u), int(p))
    for b in batches
    for (u, p), real in zip(
      b.session.context.features, b.session.example_mask, strict=True
    )
    if real
  ]


def test_an_epoch_visits_every_impression_once_in_another_order_each_time():
  train = _train()
  plan = lib.train_plan(train, train=_TRAIN, seed=0)
  source = lib.train_batches(train, _contexts, train=_TRAIN, seed=0)
  epochs = [
    _flat(next(source) for _ in range(plan.batches_per_epoch)) for _ in range(2)
  ]
  wanted = sorted(
    zip(train.users.tolist(), train.positions.tolist(), strict=True)
  )
  assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
  assert epochs[0] != epochs[1]


def test_batches_hold_the_item_its_labels_and_the_context_before_it():
  train = _train()
  for labelled in lib.eval_batches(train, _contexts, batch_size=4):
    session = labelled.session
    ids, real = session.example_id, session.example_mask
    # Filler rows ask for no user at all.
    users, positions = session.context.features.T
    assert (users[~real] == -1).all() and (ids[~real] == -1).all()
    np.testing.assert_array_equal(users[real], train.users[ids[real]])
    np.testing.assert_array_equal(positions[real], train.positions[ids[real]])
    np.testing.assert_array_equal(session.user[real], users[real])
    np.testing.assert_array_equal(
      session.target_items[real, 0], train.items[ids[real]]
    )
    labels = train.labels[np.where(real, ids, 0)]
    known = np.isfinite(labels) & real[:, None]
    np.testing.assert_array_equal(labelled.label_mask, known)
    np.testing.assert_array_equal(labelled.labels[known], labels[known])
    assert np.isfinite(labelled.labels).all()


def test_one_pass_for_evaluation_is_in_order_and_ends_with_filler_rows():
  train = _train()
  batches = list(lib.eval_batches(train, _contexts, batch_size=4))
  np.testing.assert_array_equal(
    [i for b in batches for i in b.session.example_id if i >= 0],
    np.arange(len(train.users)),
  )
  assert all(len(b.session.user) == 4 for b in batches)


def test_a_restored_iterator_goes_on_with_the_same_batches():
  def start():
    return lib.train_batches(_train(), _contexts, train=_TRAIN, seed=0)

  source = start()
  for _ in range(7):
    next(source)
  state = source.get_state()
  assert state['next_index'] == 7
  wanted = [next(source) for _ in range(9)]
  resumed = start()
  resumed.set_state(state)
  got = [next(resumed) for _ in range(9)]
  for a, b in zip(wanted, got, strict=True):
    np.testing.assert_array_equal(a.session.example_id, b.session.example_id)
    np.testing.assert_array_equal(a.labels, b.labels)


def test_processes_share_each_global_batch():
  train = config.TrainConfig(batch_size=6)
  whole = lib.train_batches(_train(), _contexts, train=train, seed=0)
  parts = [
    lib.train_batches(
      _train(),
      _contexts,
      train=train,
      seed=0,
      own_rows=lambda size, index=index: np.split(np.arange(size), 3)[index],
    )
    for index in range(3)
  ]
  for _ in range(12):
    np.testing.assert_array_equal(
      next(whole).session.example_id,
      np.concatenate([next(p).session.example_id for p in parts]),
    )


def test_nothing_to_train_on_is_an_error():
  with pytest.raises(ValueError, match='no impression'):
    lib.ImpressionPlan(0, batch_size=4, seed=0)
