"""Windows of shown items, their labels, held-out users and batches."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import reward_examples
from onerec_jax.data import reward_labels

_NAN = float('nan')


def _cut(user, positive, session=None, *, m):
  windows = reward_labels.cut_windows(
    np.array(user, np.int64),
    np.array(positive, bool),
    None if session is None else np.array(session),
    items_per_session=m,
  )
  return list(
    zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True)
  )


# --- Windows ------------------------------------------------------------------


def test_windows_follow_each_other_after_the_first_positive():
  # User 0 has a positive at 1: windows of 2 from 2, the single rest is left
  # out.  User 1 begins at 7 with a positive; 8, 9 and 10 follow.
  user = [0] * 7 + [1] * 4
  positive = [0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0]
  assert _cut(user, positive, m=2) == [(2, 2), (4, 2), (8, 2)]


def test_a_shorter_rest_is_kept_from_two_items_on():
  user, positive = [0] * 7, [1] + [0] * 6
  assert _cut(user, positive, m=4) == [(1, 4), (5, 2)]
  assert _cut(user, positive, m=5) == [(1, 5)]
  # Single items are sessions only where sessions have one item.
  assert _cut(user, positive, m=1) == [(k, 1) for k in range(1, 7)]


def test_windows_do_not_cross_sessions_and_skip_events_without_one():
  user, positive = [0] * 9, [1] + [0] * 8
  session = [3, 3, 3, 3, -1, 5, 5, 6, 6]
  assert _cut(user, positive, session, m=2) == [(1, 2), (5, 2), (7, 2)]
  assert _cut(user, positive, session, m=4) == [(1, 3), (5, 2), (7, 2)]


def test_a_session_number_does_not_join_two_users():
  assert _cut([0, 0, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1], [0] * 6, m=5) == [
    (1, 2),
    (4, 2),
  ]


def test_users_without_a_positive_have_no_window():
  assert _cut([0, 0, 0, 1, 1], [0, 0, 0, 0, 1], m=2) == []
  assert _cut([], [], m=2) == []


@pytest.mark.parametrize('with_sessions', [False, True])
@pytest.mark.parametrize('m', [1, 2, 3, 5])
def test_windows_equal_a_walk_over_the_events(with_sessions, m):
  random = np.random.default_rng(m)
  user = np.sort(random.integers(0, 12, 200))
  positive = random.random(200) < 0.3
  session = None
  if with_sessions:
    session = np.cumsum(random.random(200) < 0.3)
    session[random.random(200) < 0.1] = -1
  want = []
  for u in range(12):
    seen, run, last = False, [], None
    runs = []
    for e in np.flatnonzero(user == u):
      now = None if session is None else session[e]
      usable = seen and now != -1
      if not usable or now != last or not run:
        runs.append(run)
        run = []
      if usable:
        run.append(e)
      last = now if usable else None
      seen = seen or positive[e]
    for whole in [*runs, run]:
      for k in range(0, len(whole), m):
        length = len(whole[k : k + m])
        if length >= min(2, m):
          want.append((int(whole[k]), length))
  assert _cut(user, positive, session, m=m) == want


# --- Labels -------------------------------------------------------------------

# Four windows of three, three, two and three events.
_WINDOWS = reward_labels.Windows(np.array([0, 3, 6, 9]), np.array([3, 3, 2, 3]))
_VALUES = np.array(
  [[0.0, 2.0, 0.0], [_NAN, 4.0, 1.0], [0.5, 0.0, 9.0], [0.0, _NAN, 0.0]]
).reshape(-1)  # the 9 is in no window


@pytest.mark.parametrize(
  ('label', 'threshold', 'want'),
  [
    ('any', 0.0, [1, 1, 1, _NAN]),  # an event is known in spite of the gap
    ('any', 1.0, [1, 1, 0, _NAN]),
    ('any', 2.0, [0, 1, 0, _NAN]),  # above, not at, the threshold
    ('mean', 0.0, [1 / 3, _NAN, 1 / 2, _NAN]),
    ('mean', 0.5, [1 / 3, _NAN, 0, _NAN]),
    ('saturating_sum', 0.0, [2, _NAN, 0.5, _NAN]),
  ],
)
def test_labels_by_hand(label, threshold, want):
  target = config.RewardTarget(label=label, threshold=threshold)
  got = reward_labels.window_labels(_VALUES, _WINDOWS, target)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_sum_saturates_at_its_quantile():
  target = config.RewardTarget(label='saturating_sum')
  got = reward_labels.window_labels(_VALUES, _WINDOWS, target, quantile=1.6)
  np.testing.assert_allclose(got, [1, _NAN, 0.3125, _NAN])


def _frame(**columns):
  return pl.DataFrame({'user': [0], 'item': [0], 'split': ['train']}).join(
    pl.DataFrame(columns), how='cross'
  )


def _fit(target, values, training):
  """Labels of windows of two events each."""
  windows = reward_labels.Windows(
    np.arange(0, len(values), 2), np.full(len(values) // 2, 2)
  )
  return reward_labels.make_labels(
    _frame(x=values), windows, np.array(training), (target,)
  )


def test_the_quantile_is_of_the_training_windows_only():
  target = config.RewardTarget(
    name='swt', column='x', label='saturating_sum', percentile=50.0
  )
  # Sums 1, 3, 5 and a held-out 100: their median is 3, not 4.
  values = [0.0, 1.0, 3.0, 0.0, 2.5, 2.5, 50.0, 50.0]
  labels = _fit(target, values, [True, True, True, False])
  assert labels.quantiles == (3.0,)
  np.testing.assert_allclose(labels.values[:, 0], [1 / 3, 1, 1, 1])


def test_unknown_values_leave_the_others_their_label():
  target = config.RewardTarget(column='x', label='mean')
  labels = _fit(target, [1.0, None, 1.0, 0.0, 1.0, 1.0], [True] * 3)
  np.testing.assert_allclose(labels.values[:, 0], [_NAN, 0.5, 1])
  assert labels.quantiles == (None,)


@pytest.mark.parametrize(
  ('changes', 'values', 'match'),
  [
    ({'column': 'likes'}, [0.0, 1.0] * 3, r"no feedback column 'likes'.*'x'"),
    ({'column': 'item'}, [0.0, 1.0] * 3, r"no feedback column 'item'.*'x'"),
    ({}, [None] * 6, 'unknown values in every training session'),
    ({}, [0.0] * 6, "'any' of 'x' is 0 in all 2 training sessions"),
    ({}, [0.0, 1.0] * 3, "'any' of 'x' is 1 in all 2 .* threshold=0"),
    # The held-out window differs, the training windows do not.
    ({}, [1.0] * 4 + [0.0] * 2, "'any' of 'x' is 1 in all 2"),
    ({'label': 'saturating_sum'}, [0.0] * 6, 'percentile of the sums .* is 0'),
    ({'label': 'saturating_sum'}, [1.0] * 4 + [-1] * 2, 'sums to -2'),
    ({'label': 'saturating_sum'}, [1.0] * 6, 'is 1 in all 2 .* percentile'),
  ],
)
def test_labels_that_cannot_be_learnt_are_refused(changes, values, match):
  target = config.RewardTarget(**{'name': 'ltr', 'column': 'x', **changes})
  with pytest.raises(ValueError, match=match) as error:
    _fit(target, pl.Series(values, dtype=pl.Float32), [True, True, False])
  assert 'reward_model.targets[0] (ltr)' in str(error.value)


def test_all_bad_targets_are_named_at_once():
  windows = reward_labels.Windows(np.array([0]), np.array([2]))
  targets = tuple(config.RewardTarget(n, column=n) for n in ('ltr', 'wtr'))
  with pytest.raises(ValueError, match=r'(?s)\(ltr\).*\(wtr\)'):
    reward_labels.make_labels(
      _frame(x=[0.0, 1.0]), windows, np.array([True]), targets
    )


# --- Held-out users -----------------------------------------------------------


def test_held_out_users_are_a_random_share_that_the_seed_decides():
  users = np.arange(5, 205)

  def chosen(seed, users=users):
    return reward_examples.held_out_users(users, share=0.2, seed=seed).tolist()

  assert len(chosen(0)) == 40
  assert set(chosen(0)) < set(users.tolist())
  assert chosen(0) == chosen(0, users[::-1])
  assert chosen(0) != chosen(1)
  # Spread over all users: the expected 20 +- 3.2 (hypergeometric) per half.
  assert abs(sum(u < 105 for u in chosen(0)) - 20) < 12


@pytest.mark.parametrize(('count', 'share'), [(3, 0.1), (2, 0.9), (1, 0.5)])
def test_too_few_users_to_hold_out_are_refused(count, share):
  with pytest.raises(ValueError, match='both need one'):
    reward_examples.held_out_users(np.arange(count), share=share, seed=0)


# --- Files and batches --------------------------------------------------------

_MODEL = config.RewardModelConfig(
  targets=(
    config.RewardTarget(name='odd', column='is_odd', label='mean'),
    config.RewardTarget(name='swt', column='time', label='saturating_sum'),
  ),
  items_per_session=3,
  held_out_share=0.25,
)
_DATA = config.DataConfig(history_length=4)
_TRAIN = config.TrainConfig(
  batch_size=8, pipeline=config.PipelineConfig(length_buckets=(2, 4))
)


def _interactions(num_users=20):
  """Events whose feedback is a function of the item; some are not known."""
  random = np.random.default_rng(0)
  rows = []
  for user in range(3, 3 + num_users):
    count = int(random.integers(6, 30))
    for place in range(count):
      # Items never repeat, so that an item tells its event.
      rows.append((user, 100 * user + place, place, place < count - 2))
  user, item, time, train = (np.array(x) for x in zip(*rows, strict=True))
  # Held-out events would be seen in any label or history.
  odd = np.where(train, item % 2, 77).astype(np.float32)
  watched = np.where(item % 10 == 9, np.nan, item % 7).astype(np.float32)
  return pl.DataFrame(
    {
      'user': user.astype(np.int32),
      'item': item.astype(np.int32),
      'timestamp': time,
      'positive': item % 3 > 0,
      'split': np.where(train, 'train', 'test'),
      'is_odd': odd,
      'time': watched,
    }
  ).with_columns(pl.col('time').fill_nan(None))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('reward') / 'examples'
  return reward_examples.write_reward_examples(
    folder, _interactions(), model=_MODEL, seed=0
  ), folder


def _check(batch, quantile):
  """Every label is what the items of its own row say."""
  session = batch.session
  for row in np.flatnonzero(session.example_mask):
    items = session.target_items[row][session.target_mask[row]]
    assert len(items) >= 2
    assert (np.diff(items) == 1).all()  # consecutive events of one user
    history = session.history_items[row][session.history_mask[row]]
    assert len(history) and (history < items[0]).all()
    before = np.arange(100 * session.user[row], items[0])
    np.testing.assert_array_equal(
      history, before[before % 3 > 0][-_DATA.history_length :]
    )
    np.testing.assert_allclose(batch.labels[row, 0], (items % 2).mean())
    unknown = (items % 10 == 9).any()
    assert batch.label_mask[row].tolist() == [True, not unknown]
    want = 0 if unknown else min(1, (items % 7).sum() / quantile)
    np.testing.assert_allclose(batch.labels[row, 1], want, rtol=1e-6)
  filler = ~np.asarray(session.example_mask)
  assert not batch.label_mask[filler].any()
  assert np.isfinite(batch.labels).all()


def test_labels_follow_their_sessions_through_shuffling(written):
  train = written[0].train
  settings = {'model': _MODEL, 'data': _DATA, 'train': _TRAIN, 'seed': 3}
  plan = reward_examples.labelled_plan(train, **settings)
  batches = reward_examples.labelled_batches(train, **settings)
  for _ in range(2):
    seen = []
    for _ in range(plan.batches_per_epoch):
      batch = next(batches)
      assert batch.labels.shape == (8, 2)
      _check(batch, written[0].quantiles[1])
      seen += batch.session.example_id[batch.session.example_mask].tolist()
    # Windows of kind 'next_items' are not thinned out.
    assert sorted(seen) == list(range(train.store.index.num_examples))
    assert seen != sorted(seen)


def test_batches_go_on_bit_identically_from_a_saved_position(written):
  settings = {'model': _MODEL, 'data': _DATA, 'train': _TRAIN, 'seed': 3}
  batches = reward_examples.labelled_batches(written[0].train, **settings)
  next(batches)
  state = batches.get_state()
  want = [next(batches) for _ in range(3)]
  again = reward_examples.labelled_batches(written[0].train, **settings)
  again.set_state(state)
  for batch in want:
    other = next(again)
    np.testing.assert_array_equal(batch.labels, other.labels)
    np.testing.assert_array_equal(
      batch.session.target_items, other.session.target_items
    )


def test_evaluation_sees_every_held_out_window_once(written):
  held_out = written[0].held_out
  batches = list(
    reward_examples.labelled_eval_batches(
      held_out, model=_MODEL, batch_size=8, history_length=4
    )
  )
  for batch in batches:
    _check(batch, written[0].quantiles[1])
  ids = np.concatenate([b.session.example_id for b in batches])
  assert ids[ids >= 0].tolist() == list(range(len(held_out.labels)))


def test_no_user_trains_and_is_held_out(written):
  trained, held = (
    set(part.store.index.users.tolist())
    for part in (written[0].train, written[0].held_out)
  )
  assert trained and held and not trained & held
  assert len(held) == 5  # a quarter of the 20 users


def test_events_after_the_training_stretch_are_never_read(written):
  frame = _interactions().filter(pl.col('split') == 'train')
  last = dict(frame.group_by('user').agg(pl.col('item').max()).iter_rows())
  for part in (written[0].train, written[0].held_out):
    for row in range(len(part.store)):
      record = part.store[row]
      assert record.items.max() == last[record.user]
  assert written[0].events == len(frame)


def test_what_was_written_can_be_opened_again(written):
  part = reward_examples.open_part(written[1], 'train', model=_MODEL)
  np.testing.assert_array_equal(part.labels, written[0].train.labels)
  other = dataclasses.replace(_MODEL, targets=_MODEL.targets[:1])
  with pytest.raises(ValueError, match='Run the stage `reward` again'):
    reward_examples.open_part(written[1], 'train', model=other)


def test_sessions_that_are_too_short_are_refused(tmp_path):
  frame = _interactions(4)
  frame = frame.with_columns(session=pl.int_range(len(frame)).cast(pl.Int64))
  with pytest.raises(ValueError, match='None of the 4 users has a session'):
    reward_examples.write_reward_examples(tmp_path, frame, model=_MODEL, seed=0)
