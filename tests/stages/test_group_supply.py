"""Groups come from the current policy, once, and survive a restart."""

import json

import numpy as np
import pytest
from etils import epath

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import item_rewards
from onerec_jax.data import examples
from onerec_jax.data import group_batches
from onerec_jax.stages import group_supply
from onerec_jax.train import preemption
from onerec_jax.train import state

_G, _L, _STEPS, _SYNC, _SAVE = 3, 2, 20, 4, 2


class _Sessions:
  """Endless stand-in for the batches of samples."""

  def __init__(self):
    self.number = 0

  def __next__(self):
    self.number += 1
    return batch_lib.SessionBatch(*[np.array(self.number - 1)] * 7)

  def get_state(self):
    return self.number

  def set_state(self, number):
    self.number = number


class _Maker:
  """Rewards of a group: its number, or the share of the class so far; old
  log-probabilities: the policy's."""

  rows = 2

  def __init__(self, industrial=None, teaches=True):
    self.industrial = industrial
    self.teaches = teaches
    self.calls = []
    self.fails_at = None

  def __call__(self, numbers, example_ids, *, params, router_bias):
    if self.fails_at is not None and len(self.calls) == self.fails_at:
      raise KeyboardInterrupt
    self.calls.append((numbers.tolist(), params))
    count = len(numbers)
    shape, flat = (count, _G, _L), (count, _G)
    rewards = np.repeat(numbers[:, None], _G, 1).astype(np.float32)
    if self.industrial is not None:
      # Every fourth group is of the class: its share goes up and down.
      items = np.where(numbers % 4, 1, 0)[:, None] + np.zeros(flat, np.int64)
      found = self.industrial(rewards, items)
      rewards = np.repeat(found.share[:, None], _G, 1).astype(np.float32)
    groups = group_batches.Groups(
      example_ids=example_ids,
      codes=np.zeros(shape, np.int32),
      old_log_probs=np.full(shape, params + router_bias, np.float32),
      reference_log_probs=np.zeros(shape, np.float32),
      rewards=rewards,
      legal=np.ones(flat, bool),
      format_mask=np.zeros(flat, bool),
      true_rewards=np.zeros(flat, np.float32),
    )
    report = dict.fromkeys(
      ('groups', 'outputs', 'legal', 'items', 'distinct_items',
       'groups_with_item', 'format_chosen', 'format_legal'), count,
    )  # fmt: skip
    report['groups_with_advantage'] = count * self.teaches
    return groups, {**report, 'seconds': {'generate': 0.5}}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  path = tmp_path_factory.mktemp('supply') / 'train.arrayrecord'
  examples.write_examples(
    path,
    [
      examples.UserRecord(
        user=u,
        items=np.arange(4, dtype=np.int32),
        positive=np.ones(4, bool),
        timestamps=np.arange(4),
        target_starts=np.array([1, 2], np.int32),
        target_lengths=np.ones(2, np.int32),
      )
      for u in range(4)
    ],
  )
  return examples.ExampleStore(path)


class _Run:
  """The part of a training loop that the supply sees."""

  def __init__(self, store, folder, maker=None, **changes):
    self.folder = epath.Path(folder)
    self.poll = lambda: None
    self.maker = maker or _Maker()
    rate = changes.pop('rate', 3.0)
    plan = group_batches.GroupPlan(
      store.index.num_examples, batch_size=4, user_share=rate / 4, seed=0
    )
    self.batches = group_batches.GroupBatches(
      _Sessions(), store, plan, history_length=2, multiple=1
    )
    settings = {
      'num_steps': _STEPS,
      'sync_every_steps': _SYNC,
      'checkpoint_every_steps': _SAVE,
      'generator': None,
      'needs_advantage': False,
      'digest': 'abc',
      **changes,
    }
    self.supply = group_supply.GroupSupply(
      self.maker,
      self.batches,
      plan,
      self.folder,
      group_size=_G,
      levels=_L,
      **settings,
    )

  def steps(self, count):
    """Takes steps; the parameters are the number of the step."""
    found = []
    for _ in range(count):
      step = self.batches.next_step
      self.supply.prepare(
        state.TrainState(
          step=np.int32(step),
          params=float(step),
          opt_state=None,
          model_state=0.25,
          ema_params=None,
        ),
        self.poll,
      )
      found.append(next(self.batches).groups)
    return found

  def goes_on_from(self, step):
    self.batches.set_state({'sessions': step, 'next_step': step})
    return self

  def intervals(self):
    return sorted(
      tuple(int(n) for n in p.name.split('_')[1:3])
      for p in (self.folder / group_supply.FOLDER).glob('steps_*')
    )


def _real(batches):
  """Rewards and old log-probabilities of the groups that are no filler."""
  result = []
  for b in batches:
    real = np.asarray(b.session.example_mask)
    result.append((b.rewards[real].tolist(), b.old_log_probs[real].tolist()))
  return result


def test_each_interval_is_made_by_the_policy_at_its_beginning(store, tmp_path):
  run = _Run(store, tmp_path)
  for step, groups in enumerate(run.steps(_STEPS)):
    real = groups.session.example_mask
    assert real.sum() == 3
    sync = step // _SYNC * _SYNC
    assert (groups.old_log_probs[real] == sync + 0.25).all()
    assert groups.rewards[real, 0].tolist() == [3 * step + k for k in range(3)]
  history = run.supply.history()
  assert [r['first_step'] for r in history] == [0, 4, 8, 12, 16]
  assert [r['groups'] for r in history] == [12] * 5
  assert history[0]['figures']['legality'] == 1
  assert history[0]['seconds'] == {'generate': 3.0}  # six batches of two


def test_a_fixed_generator_makes_every_interval(store, tmp_path):
  run = _Run(store, tmp_path, generator=group_supply.Policy(-7.0, 0.5))
  for groups in run.steps(10):
    assert (groups.old_log_probs[groups.session.example_mask] == -6.5).all()


def test_a_run_killed_in_an_interval_reads_its_groups_again(store, tmp_path):
  whole = _real(_Run(store, tmp_path / 'whole').steps(_STEPS))
  first = _Run(store, tmp_path / 'cut')
  first.steps(11)
  again = _Run(store, tmp_path / 'cut').goes_on_from(6)
  assert _real(again.steps(_STEPS - 6)) == whole[6:]
  # Steps 6..11 came from files; only 12 and later were made anew.
  assert min(n for numbers, _ in again.maker.calls for n in numbers) == 36
  assert [r['first_step'] for r in again.supply.history()] == [0, 4, 8, 12, 16]


def test_a_run_killed_while_making_groups_goes_on_with_the_rest(
  store, tmp_path, monkeypatch
):
  monkeypatch.setattr(group_supply, '_BATCHES_PER_PART', 2)
  whole = _real(_Run(store, tmp_path / 'whole').steps(8))
  maker = _Maker()
  maker.fails_at = 5  # in the third part of the first interval
  first = _Run(store, tmp_path / 'cut', maker)
  with pytest.raises(KeyboardInterrupt):
    first.steps(1)
  again = _Run(store, tmp_path / 'cut')
  assert _real(again.steps(8)) == whole
  # Two parts of two batches of two groups were there.
  assert again.maker.calls[0][0] == [8, 9]


def test_files_are_deleted_once_no_restart_can_need_them(store, tmp_path):
  run = _Run(store, tmp_path)
  run.steps(9)
  # Step 8: a checkpoint of step 4 is whole at step 6, so [0, 4) may be needed
  # up to step 4 + 2 * 2.
  assert run.intervals() == [(0, 4), (4, 8), (8, 12)]
  run.steps(4)
  assert run.intervals() == [(4, 8), (8, 12), (12, 16)]


def test_a_lengthened_run_goes_on_where_its_last_interval_was_cut_off(
  store, tmp_path
):
  _Run(store, tmp_path, num_steps=6).steps(6)
  longer = _Run(store, tmp_path, num_steps=10).goes_on_from(6)
  found = longer.steps(4)
  assert (found[0].old_log_probs[0] == 6.25).all()  # by the policy of step 6
  assert found[0].rewards[:, 0].tolist() == [18, 19, 20]
  assert (found[2].old_log_probs[0] == 8.25).all()


def test_lost_groups_of_a_begun_interval_are_an_error(store, tmp_path):
  run = _Run(store, tmp_path)
  run.steps(6)
  (tmp_path / group_supply.FOLDER).rename(tmp_path / 'elsewhere')
  again = _Run(store, tmp_path).goes_on_from(6)
  with pytest.raises(ValueError, match='groups of step 6 are gone'):
    again.steps(1)


def test_groups_made_with_other_settings_are_not_taken(store, tmp_path):
  _Run(store, tmp_path).steps(2)
  other = _Run(store, tmp_path, digest='def')
  other.steps(1)
  assert other.maker.calls


@pytest.mark.parametrize('fails_at', [6, 8])  # at and in the second interval
def test_the_window_of_suppressed_items_goes_on_over_restarts(
  store, tmp_path, monkeypatch, fails_at
):
  monkeypatch.setattr(group_supply, '_BATCHES_PER_PART', 1)

  def maker():
    return _Maker(
      item_rewards.IndustrialReward(
        np.array([True, False]), config.IndustrialRewardConfig(window=1000)
      )
    )

  whole = _real(_Run(store, tmp_path / 'whole', maker()).steps(8))
  shares = [group[0] for rewards, _ in whole for group in rewards]
  assert len(set(shares)) > 10
  cut = maker()
  cut.fails_at = fails_at
  with pytest.raises(KeyboardInterrupt):
    _Run(store, tmp_path / 'cut', cut).steps(8)
  again = _Run(store, tmp_path / 'cut', maker()).goes_on_from(4)
  assert _real(again.steps(4)) == whole[4:]


def test_groups_that_teach_nothing_are_an_error_where_it_matters(
  store, tmp_path
):
  run = _Run(store, tmp_path / 'a', _Maker(teaches=False))
  run.steps(1)  # the format reward still teaches
  run = _Run(store, tmp_path / 'b', _Maker(teaches=False), needs_advantage=True)
  with pytest.raises(
    ValueError, match=r'None of the 12 groups of steps 0\.\.3'
  ):
    run.steps(1)


def test_an_interval_without_groups_is_no_error(store, tmp_path):
  run = _Run(store, tmp_path, rate=0.1, needs_advantage=True)
  found = run.steps(12)
  counts = [int(g.session.example_mask.sum()) for g in found]
  assert sum(counts) == 2 and counts[0] == 1  # steps 0 and 10 of 12


def test_after_the_last_step_only_the_shape_is_asked_for(store, tmp_path):
  run = _Run(store, tmp_path, num_steps=4)
  run.steps(4)
  (groups,) = run.steps(1)
  assert not groups.session.example_mask.any()
  assert len(run.supply.history()) == 1


def test_a_request_to_stop_while_groups_are_made_stops_at_once(store, tmp_path):
  def stop():
    raise preemption.StopRequested

  run = _Run(store, tmp_path)
  run.poll = stop
  with pytest.raises(preemption.StopRequested):
    run.steps(1)
  assert not run.maker.calls


def test_reports_are_json(store, tmp_path):
  run = _Run(store, tmp_path)
  run.steps(1)
  (path,) = (tmp_path / group_supply.FOLDER).glob('steps_*/report.json')
  assert json.loads(path.read_text())['window'] is None
