import dataclasses
import math

import jax.numpy as jnp
import pytest

from onerec_jax.objectives import base
from onerec_jax.train import goodput
from onerec_jax.train import loop


class Clock:
  """Time that passes only where the test says so; seconds."""

  def __init__(self, now=0.0):
    self.now = now

  def __call__(self):
    return self.now

  def spend(self, seconds):
    self.now += seconds


class SlowBatches:
  """Batches that take 2 s each, and 0.5 s to say where they are.

  `action` is called before batch `number` is handed out.
  """

  def __init__(self, batches, clock, number=-1, action=None):
    self._batches, self._clock = batches, clock
    self._number, self._action = number, action

  def __next__(self):
    if self._batches.get_state()['next_index'] == self._number:
      self._action()
    self._clock.spend(2.0)
    return next(self._batches)

  def get_state(self):
    self._clock.spend(0.5)
    return self._batches.get_state()

  def set_state(self, state):
    self._batches.set_state(state)


def _slow_objective(clock):
  def objective(params, model_state, frozen, batch, key):
    clock.spend(10.0)  # only while it is traced
    error = jnp.square(batch.x @ params['w'] + params['b'] - batch.y)
    loss = base.mean_of(error, jnp.ones(error.shape, bool))
    return base.LossOutput(loss, {}, model_state)

  return objective


def _train(toy, folder, clock, *, began=0.0, num_steps=4, **stop):
  """Four steps: logged, validated and saved after each second one."""
  train = toy.config_with(
    num_steps=num_steps,
    log_every_steps=2,
    evaluate_every_steps=2,
    checkpoint_every_steps=2,
  )

  def valid_batches():
    clock.spend(5.0)
    yield toy.Source(8)[10_000]

  def flops(batch):
    clock.spend(1.0)  # what a step takes
    return 1.0

  job, state = toy.make_job(
    folder,
    train=train,
    batches=SlowBatches(toy.make_batches(8), clock, **stop),
    valid_batches=valid_batches,
    prepare=lambda state, poll: clock.spend(3.0),
    flops=flops,
    clock=clock,
    began=began,
    evaluate=lambda *_: {'valid/constant': 0.0},
    best_metric='valid/constant',
  )
  job = dataclasses.replace(job, objective=_slow_objective(clock))
  return loop.train(job, state)


def test_the_seconds_of_a_run_are_booked_where_they_were_spent(toy, tmp_path):
  clock = Clock(7.0)  # the process is 7 s old
  result = _train(toy, tmp_path, clock)
  seconds = dict(result.seconds)
  # Traced by the step (once, for the shapes of its sums too) and by the
  # validation: 10 s each.
  assert seconds.pop('compile') == 20.0
  expected = {
    'start': 7.0,
    'rollout': 4 * 3.0,
    'wait': 4 * 2.0,
    'train': 4 * (2.0 + 1.0),
    'validate': 2 * 5.0,
    'checkpoint': 2 * 0.5,
    'lost': 0.0,
    'earlier': 0.0,
  }
  wall = seconds.pop('wall')
  assert seconds == expected
  assert wall == clock.now == 7 + 20 + 12 + 12 + 10 + 1
  # Trained 4 s, made the batches 12 s.
  assert goodput.productive(result.seconds) == 16.0
  assert goodput.share(result.seconds) == pytest.approx(16 / 62)


def test_every_log_line_has_the_share_so_far(toy, tmp_path):
  _train(toy, tmp_path, Clock(7.0))
  first, second = toy.records(tmp_path)
  # start 7, two steps of 3 + 2 + 1, 20 to compile, 5 to validate.
  assert first['wall_seconds'] == 7 + 2 * 6 + 20 + 5
  assert first['goodput'] == pytest.approx(2 * 4 / 44, abs=1e-6)
  # ... 0.5 for the checkpoint, two steps and a validation.
  assert second['wall_seconds'] == 44 + 0.5 + 2 * 6 + 5
  assert second['goodput'] == pytest.approx(4 * 4 / 61.5, abs=1e-6)


def test_a_restart_counts_what_was_lost_and_its_own_start(toy, tmp_path):
  # Killed when it draws the batch of step 6: after the log line of step 4,
  # whose checkpoint never reached the disk.
  clock = Clock(7.0)

  def killed():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _train(toy, tmp_path, clock, num_steps=8, number=5, action=killed)
  assert [r['step'] for r in toy.records(tmp_path)] == [2, 4]
  (tmp_path / 'checkpoints' / '4').rename(tmp_path / 'gone')
  # It goes on an hour later, in a process that is 20 s old; the hour, in which
  # nothing ran, is not counted.
  clock = Clock(3620.0)
  result = _train(toy, tmp_path, clock, began=3600.0, num_steps=8)
  seconds = result.seconds
  # The run was 44 s old when step 2 was saved and 61.5 s at its last line.
  assert seconds['lost'] == 61.5 - 44
  # 7 s before; 20 s until it continued.
  assert seconds['start'] == 27.0
  # Steps 3 to 8, once: what was lost is not productive.
  assert goodput.productive(seconds) == 8 * 4.0
  spent_now = clock.now - 3600.0
  assert seconds['earlier'] == 61.5
  assert seconds['wall'] == 61.5 + spent_now
  # The second process compiled as well, and saved three times.
  assert spent_now == 20 + 6 * 6 + 20 + 3 * 5 + 3 * 0.5
  assert goodput.share(seconds) == pytest.approx(32 / (61.5 + 92.5))


def test_a_clean_restart_loses_nothing_but_its_start(toy, tmp_path):
  before = _train(toy, tmp_path, Clock(7.0)).seconds
  clock = Clock(5.0)
  seconds = _train(toy, tmp_path, clock, num_steps=6).seconds
  assert seconds['lost'] == 0.0
  # A checkpoint cannot know what its own half second will be.
  assert seconds['earlier'] == before['wall'] - 0.5
  assert seconds['wall'] == seconds['earlier'] + clock.now
  # A third process counts both.
  third = _train(toy, tmp_path, Clock(1.0), num_steps=8).seconds
  assert third['earlier'] == seconds['wall'] - 0.5
  assert seconds['start'] == 12.0
  assert goodput.productive(seconds) == 6 * 4.0


def test_no_time_no_share():
  assert goodput.share(goodput.none_spent()) is None
  assert goodput.figures(goodput.none_spent())['goodput'] is None


def test_the_first_training_of_a_process_begins_with_it():
  before = goodput.unclaimed_since()
  goodput.claim()
  assert goodput.unclaimed_since() > before
  # Reading it claims nothing.
  assert goodput.unclaimed_since() == goodput.unclaimed_since()
  assert math.isfinite(before)


def test_a_run_without_a_given_beginning_takes_what_nobody_claimed(
  toy, tmp_path
):
  goodput.claim()
  since = goodput.unclaimed_since()
  seconds = toy.run(tmp_path).seconds
  assert goodput.unclaimed_since() - since >= seconds['wall'] > 0
  assert 0 < goodput.share(seconds) < 1
