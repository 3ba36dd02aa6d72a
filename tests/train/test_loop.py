import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax.objectives import base
from onerec_jax.train import checkpoints
from onerec_jax.train import log
from onerec_jax.train import loop
from onerec_jax.train import preemption


def _same_bits(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class Stopping:
  """Batches that call `action` just before batch `number` is handed out."""

  def __init__(self, batches, number, action):
    self.batches, self.number, self.action = batches, number, action

  def __next__(self):
    if self.batches.get_state()['next_index'] == self.number:
      self.action()
    return next(self.batches)

  def get_state(self):
    return self.batches.get_state()

  def set_state(self, state):
    self.batches.set_state(state)


def test_the_objective_is_traced_once(toy, tmp_path):
  traced = []

  def objective(*arguments):
    traced.append(arguments)
    return toy.objective(*arguments)

  job, state = toy.make_job(
    tmp_path,
    train=toy.config_with(num_steps=2, evaluate_every_steps=0),
    valid_batches=None,
  )
  loop.train(dataclasses.replace(job, objective=objective), state)
  assert (
    len(traced) == 1
  )  # neither for the shapes of its metrics nor to compile


def test_a_three_parameter_model_is_fitted(toy, tmp_path):
  result = toy.run(
    tmp_path, train=toy.config_with(num_steps=60, checkpoint_every_steps=60)
  )
  records = toy.records(tmp_path)
  losses = [r['loss'] for r in records]
  assert losses[-1] < 0.1 * losses[0]
  # Truth: w = (2, -1), b = 0.5; noise of 0.1 stays.
  np.testing.assert_allclose(result.state.params['w'], [2, -1], atol=0.2)
  assert result.counts == {'examples': 480.0}
  assert [r['step'] for r in records] == list(range(5, 61, 5))
  assert {r['step'] for r in records if 'valid/loss' in r} == {
    *range(10, 61, 10)
  }


def test_metrics_are_means_over_all_steps_since_the_last_line(toy, tmp_path):
  every = toy.run(tmp_path / 'every', train=toy.config_with(log_every_steps=1))
  toy.run(tmp_path / 'five', train=toy.config_with(log_every_steps=5))
  losses = [r['loss'] for r in toy.records(tmp_path / 'every')]
  means = np.reshape(losses, (4, 5)).mean(axis=1)
  got = [r['loss'] for r in toy.records(tmp_path / 'five')]
  np.testing.assert_allclose(got, means, rtol=1e-5)
  assert every.final['learning_rate'] == pytest.approx(0.1)


def test_stopped_and_continued_equals_uninterrupted(
  toy, tmp_path, without_times
):
  train = toy.config_with(ema_decay=0.9, log_every_steps=4)
  whole = toy.run(tmp_path / 'whole', train=train)

  def fail():
    raise KeyboardInterrupt

  # Step 12 is lost: the last checkpoint is that of step 10, between two log
  # lines (8 and 12), whose sums must continue as well.
  with pytest.raises(KeyboardInterrupt):
    toy.run(
      tmp_path / 'cut',
      train=train,
      batches=Stopping(toy.make_batches(8), 12, fail),
    )
  cut = toy.run(tmp_path / 'cut', train=train)
  _same_bits(whole.state, cut.state)
  assert whole.best == cut.best
  assert whole.counts == cut.counts
  assert without_times(toy.records(tmp_path / 'whole')) == without_times(
    toy.records(tmp_path / 'cut')
  )


def test_a_finished_run_returns_at_once(toy, tmp_path):
  first = toy.run(tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text()
  second = toy.run(
    tmp_path, batches=Stopping(toy.make_batches(8), 0, pytest.fail)
  )
  _same_bits(first.state, second.state)
  assert second.final == first.final
  assert (tmp_path / 'metrics.jsonl').read_text() == lines


def test_sigterm_saves_and_the_run_continues(toy, tmp_path, caplog):
  train = toy.config_with(checkpoint_every_steps=100)
  whole = toy.run(tmp_path / 'whole', train=train)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(preemption.Preempted) as stopped:
    toy.run(
      tmp_path / 'cut',
      train=train,
      batches=Stopping(
        toy.make_batches(8), 7, lambda: os.kill(os.getpid(), signal.SIGTERM)
      ),
    )
  assert stopped.value.code == preemption.PREEMPTED_STATUS
  assert signal.getsignal(signal.SIGTERM) is before
  job, _ = toy.make_job(tmp_path / 'cut', train=train)
  with checkpoints.Checkpointer(job.folder, job.contract, keep=2) as saver:
    assert saver.latest_step() == 8  # the step in progress was completed
  cut = toy.run(tmp_path / 'cut', train=train)
  _same_bits(whole.state, cut.state)


def test_sigterm_while_validating_validates_again(toy, tmp_path, without_times):
  whole = toy.run(tmp_path / 'whole')
  calls = []

  def valid_batches():
    calls.append(1)
    for i in range(10_000, 10_002):
      if len(calls) == 1 and i == 10_001:
        os.kill(os.getpid(), signal.SIGTERM)
      yield toy.Source(8)[i]

  with pytest.raises(preemption.Preempted):
    toy.run(tmp_path / 'cut', valid_batches=valid_batches)
  assert [r['step'] for r in toy.records(tmp_path / 'cut')] == [5]
  cut = toy.run(tmp_path / 'cut')
  _same_bits(whole.state, cut.state)
  assert whole.best == cut.best
  assert without_times(toy.records(tmp_path / 'whole')) == without_times(
    toy.records(tmp_path / 'cut')
  )


def test_a_non_finite_loss_names_the_step_and_the_culprit(toy, tmp_path):
  # Batch 12 (step 13) holds a NaN; the loop looks at step 15.
  with pytest.raises(loop.NonFinite) as error:
    toy.run(tmp_path, bad=12)
  text = str(error.value)
  assert text.startswith('Step 13 is not finite. Metrics: gradient_norm, loss.')
  assert 'Gradients: b, w. Parameters before the step: none.' in text
  assert 'The checkpoint of step 10 is good.' in text
  assert 'pretrain.optimizer.peak_learning_rate' in text
  # Nothing non-finite was saved, and the run repeats from step 10.
  assert sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()) == [
    5,
    10,
  ]
  with pytest.raises(loop.NonFinite, match='Step 13 '):
    toy.run(tmp_path, bad=12)
  result = toy.run(tmp_path, bad=None)
  assert int(result.state.step) == 20


def test_a_non_finite_parameter_is_named(toy, tmp_path):
  job, state = toy.make_job(tmp_path, train=toy.config_with())
  state = dataclasses.replace(
    state, params={**state.params, 'w': jnp.array([0.0, jnp.inf])}
  )
  with pytest.raises(loop.NonFinite) as error:
    loop.train(job, state)
  assert 'Step 1 is not finite' in str(error.value)
  assert 'Parameters before the step: w.' in str(error.value)
  assert 'No checkpoint was written yet.' in str(error.value)


def _steps(folder):
  return sorted(int(p.name) for p in (folder / 'checkpoints').iterdir())


@pytest.mark.parametrize(
  ('mode', 'best'), [('max', 4), ('min', 2)], ids=['max', 'min']
)
def test_the_best_checkpoint_is_kept_beside_the_last(toy, tmp_path, mode, best):
  values = iter([0.5, 0.2, 0.7, 0.9, 0.6, 0.4, 0.6, 0.6, 0.6, 0.6])
  # Validation every 1st step, 10 steps; best of 'max' is the 4th value.
  result = toy.run(
    tmp_path,
    train=toy.config_with(
      num_steps=10, evaluate_every_steps=1, checkpoint_every_steps=3
    ),
    evaluate=lambda params, model_state, poll: {
      'valid/recall@10': next(values)
    },
    best_metric='valid/recall@10',
    best_mode=mode,
  )
  assert result.best['step'] == best
  # Scheduled: 3, 6, 9 and the last, 10.  Two are kept, and the best.
  assert _steps(tmp_path) == [best, 9, 10]
  assert result.best['values']['valid/recall@10'] == result.best['value']


def test_without_validation_the_best_is_the_last(toy, tmp_path):
  result = toy.run(tmp_path, train=toy.config_with(evaluate_every_steps=0))
  assert result.best is None
  assert _steps(tmp_path) == [15, 20]


def test_a_best_metric_that_nobody_measures_is_an_error(toy, tmp_path):
  with pytest.raises(ValueError, match='valid/recall@10=None') as error:
    toy.run(tmp_path, best_metric='valid/recall@10')
  assert 'valid/loss' in str(error.value)
  assert 'Set pretrain.evaluate_every_steps=0' in str(error.value)


def test_the_average_follows_the_parameters(toy, tmp_path):
  # Three steps by hand: e <- 0.5 e + 0.5 p, from e_0 = p_0 = 0.
  parameters = []
  for steps in (1, 2, 3):
    result = toy.run(
      tmp_path / str(steps),
      train=toy.config_with(num_steps=steps, ema_decay=0.5),
    )
    parameters.append(np.asarray(result.state.params['w']))
  expected = 0.5 * (0.5 * (0.5 * parameters[0]) + 0.5 * parameters[1])
  expected = expected + 0.5 * parameters[2]
  np.testing.assert_allclose(result.state.ema_params['w'], expected, rtol=1e-6)
  # Validation sees the average, not the parameters.
  x = [toy.Source(8)[i].x for i in range(10_000, 10_002)]
  mean = np.mean(
    np.concatenate(x) @ expected + np.asarray(result.state.ema_params['b'])
  )
  np.testing.assert_allclose(
    toy.records(tmp_path / '3')[-1]['valid/prediction'], mean, rtol=1e-4
  )


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)])
def test_every_mesh_gives_the_same_parameters(toy, tmp_path, shape):
  one = toy.run(tmp_path / 'one')
  mesh = meshes.make_mesh(config.MeshConfig(*shape))
  many = toy.run(tmp_path / 'many', mesh=mesh)
  for name in ('w', 'b'):
    np.testing.assert_allclose(
      many.state.params[name], one.state.params[name], rtol=1e-5
    )


def test_a_batch_that_does_not_fit_the_mesh_is_refused(toy, tmp_path):
  with pytest.raises(ValueError, match=r'use pretrain\.batch_size=8 or 16'):
    toy.run(
      tmp_path,
      mesh=meshes.make_mesh(config.MeshConfig()),
      train=toy.config_with(batch_size=12),
    )


def test_the_device_is_not_asked_between_log_lines(toy, tmp_path, monkeypatch):
  fetched = []
  original = jax.device_get
  monkeypatch.setattr(
    jax, 'device_get', lambda x: (fetched.append(1), original(x))[1]
  )
  quiet = {'evaluate_every_steps': 0, 'checkpoint_every_steps': 100}
  toy.run(
    tmp_path / 'rare',
    train=toy.config_with(num_steps=40, log_every_steps=40, **quiet),
  )
  rare = len(fetched)
  fetched.clear()
  toy.run(
    tmp_path / 'often',
    train=toy.config_with(num_steps=40, log_every_steps=1, **quiet),
  )
  assert rare <= 4 < 40 <= len(fetched)


def test_model_flops_give_a_rate_but_no_utilisation_on_an_unknown_device(
  toy, tmp_path
):
  toy.run(tmp_path, flops=lambda batch: 1e3)
  record = toy.records(tmp_path)[0]
  assert record['mfu'] is None
  np.testing.assert_allclose(
    record['model_flops_per_second'],
    1e3 * record['steps_per_second'],
    rtol=1e-5,
  )


def test_tensorboard_gets_the_same_figures(toy, tmp_path):
  toy.run(tmp_path)
  assert [p for p in tmp_path.iterdir() if p.name.startswith('events')]


def test_progress_is_logged(toy, tmp_path, caplog):
  logging.set_verbosity(logging.INFO)
  try:
    with caplog.at_level('INFO', logger='absl'):
      toy.run(tmp_path)
  finally:
    logging.set_verbosity(logging.WARNING)
  lines = [m for m in caplog.messages if m.startswith('step ')]
  assert len(lines) == 4
  assert lines[1].startswith('step 10/20 · loss ')
  assert 'valid loss' in lines[1]
  # Orbax's sixty lines per checkpoint are not shown.
  assert len(caplog.messages) < 20


def test_the_key_of_a_step_depends_on_seed_and_step_alone(toy, tmp_path):
  def objective(params, model_state, frozen, batch, key):
    draw = jnp.zeros(()) if key is None else jax.random.uniform(key)
    loss = batch_lib.Mean(jnp.sum(jnp.square(params['w'])), jnp.ones(()))
    metrics = {'draw': batch_lib.Mean(draw, jnp.ones(()))}
    return base.LossOutput(loss, metrics, model_state)

  job, state = toy.make_job(
    tmp_path, train=toy.config_with(num_steps=3, log_every_steps=1)
  )
  loop.train(dataclasses.replace(job, objective=objective), state)
  keys = [jax.random.fold_in(jax.random.key(job.seed), s) for s in range(3)]
  np.testing.assert_allclose(
    [r['draw'] for r in toy.records(tmp_path)],
    [float(jax.random.uniform(key)) for key in keys],
    rtol=1e-6,
  )


def test_an_objective_without_state_or_counts_trains(toy, tmp_path):
  def objective(params, model_state, frozen, batch, key):
    error = jnp.square(batch.x @ params['w'] + params['b'] - batch.y)
    loss = base.mean_of(error, jnp.ones(error.shape, bool))
    return base.LossOutput(loss, {}, model_state)

  job, state = toy.make_job(tmp_path, train=toy.config_with())
  job = dataclasses.replace(job, objective=objective)
  state = dataclasses.replace(state, model_state=None)
  loop.train(job, state)
  job, state = toy.make_job(tmp_path, train=toy.config_with(num_steps=25))
  job = dataclasses.replace(job, objective=objective)
  result = loop.train(job, dataclasses.replace(state, model_state=None))
  assert int(result.state.step) == 25
  assert result.state.model_state is None
  assert json.loads(json.dumps(result.final))


def test_metrics_are_in_the_bucket_before_the_checkpoint(
  toy, tmp_path, monkeypatch
):
  # A restart drops what was logged after its checkpoint, not before it.
  calls = []
  save = checkpoints.Checkpointer.save
  monkeypatch.setattr(
    checkpoints.Checkpointer,
    'save',
    lambda self, step, *a, **k: (
      calls.append(f'save {step}'), save(self, step, *a, **k),
    )[1],
  )  # fmt: skip
  monkeypatch.setattr(
    log.MetricsWriter, 'flush', lambda self: calls.append('flush')
  )
  toy.run(tmp_path, train=toy.config_with(num_steps=10))
  # The last one is that of closing.
  assert calls == ['flush', 'save 5', 'flush', 'save 10', 'flush']
