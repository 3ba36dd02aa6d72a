"""The training loop; every stage that trains goes through it.

Nothing in it knows a model or a data set: a stage hands it an objective, an
iterator and callbacks.  It waits for the device only to log, validate or save,
and where it would run far ahead of it (train/backlog.py).
"""

import math
import os
from collections.abc import Mapping
from typing import Any
from typing import NoReturn

import jax
from absl import logging

from onerec_jax import sharding
from onerec_jax.train import backlog
from onerec_jax.train import checkpoints
from onerec_jax.train import goodput
from onerec_jax.train import job as job_lib
from onerec_jax.train import log
from onerec_jax.train import preemption
from onerec_jax.train import profile
from onerec_jax.train import running_totals
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib


class NonFinite(FloatingPointError):
  """A loss or gradient was not finite."""


def _new_progress() -> dict[str, Any]:
  """Returns the bookkeeping that checkpoints carry; JSON values only."""
  return {
    'finished_step': True,  # False: logging and validation of it are due
    'counts': {},
    'totals': None,  # sums since the last log line
    'best': None,
    'last_record': {},
  }


def train(job: job_lib.Job, state: state_lib.TrainState) -> job_lib.Result:
  """Trains until `job.train.num_steps`, continuing from the last checkpoint.

  Killed at any moment and called again, it ends with the same bits as an
  uninterrupted run.

  Args:
    job: what to do.
    state: step 0, on the mesh; donated.

  Raises:
    NonFinite: names the step and what was not finite; the checkpoints remain.
    preemption.Preempted: after SIGTERM, once the state is saved.
    contract.Mismatch: the folder holds another run.
  """
  with (
    checkpoints.Checkpointer(
      job.folder, job.contract, keep=job.train.keep_checkpoints
    ) as saver,
    preemption.StopSignal() as stop,
  ):
    return _Loop(job, state, saver, stop).run()


class _Loop:
  """The state of one call of `train`."""

  def __init__(
    self,
    job: job_lib.Job,
    state: state_lib.TrainState,
    saver: checkpoints.Checkpointer,
    stop: preemption.StopSignal,
  ):
    sharding.check_batch_size(
      job.mesh, job.train.batch_size, f'{job.contract.stage}.batch_size'
    )
    self._job = job
    self._saver = saver
    self._stop = stop
    self._state = state
    self._progress = _new_progress()
    self._backlog = backlog.Backlog()
    self._profile = profile.Window(job.folder, job.train.profile_steps)
    update = step_lib.make_update(
      job.objective,
      job.optimizer,
      seed=job.seed,
      ema_decay=job.train.ema_decay,
    )
    self._totals = running_totals.RunningTotals(
      update, job.mesh, clock=job.clock
    )
    self._train_step = step_lib.CompiledPerShape(
      step_lib.make_train_step(
        update, shardings=state_lib.shardings_of(state), mesh=job.mesh
      ),
      clock=job.clock,
    )
    self._eval_step = step_lib.CompiledPerShape(
      step_lib.make_eval_step(job.objective, mesh=job.mesh), clock=job.clock
    )
    self._book = goodput.Book(
      job.clock,
      began=job.began,
      compiled=lambda: (
        self._totals.seconds
        + self._train_step.seconds
        + self._eval_step.seconds
      ),
    )

  # --- The loop ---

  def run(self) -> job_lib.Result:
    job = self._job
    step = self._resume()
    self._writer = log.MetricsWriter(
      job.folder,
      resume_step=step if self._progress['finished_step'] else step - 1,
      enabled=jax.process_index() == 0,
    )
    self._book.begin(self._writer.last_wall_seconds)
    try:
      if not self._progress['finished_step']:
        self._finish_step(step)
      while step < job.train.num_steps:
        self._profile.before(step + 1, self._state.params)
        try:
          self._one_step()
        except preemption.StopRequested:
          self._preempt(step)
        step += 1
        self._finish_step(step)
        if self._stop.requested():
          self._preempt(step)
      with self._book.spending('checkpoint'):
        self._saver.wait()
      self._book.measure_wall()
    finally:
      self._profile.close()
      self._writer.close()
      goodput.claim()
    return job_lib.Result(
      state=self._state,
      final=self._progress['last_record'],
      best=self._progress['best'],
      counts=self._progress['counts'],
      seconds=self._book.seconds,
    )

  def _resume(self) -> int:
    if self._saver.latest_step() is None:
      return 0
    saved = self._saver.restore(self._state)
    for note in saved.notes:
      logging.info('continuing with a changed setting: %s', note)
    self._state = saved.state
    self._job.batches.set_state(saved.data)
    self._progress = saved.progress
    self._book.restore(
      self._progress.pop('seconds'), self._progress.pop('interval')
    )
    step = int(saved.state.step)
    logging.info('continuing from the checkpoint of step %d', step)
    return step

  def _one_step(self) -> None:
    job, book = self._job, self._book
    self._prepare()
    with book.spending('train'):
      with book.spending('wait'):
        local = next(job.batches)
      batch = sharding.place_batch(local, job.mesh)
      self._begin_totals(batch)
      if job.flops is not None:
        book.interval['flops'] += job.flops(local) * jax.process_count()
      self._state, self._totals.now = self._train_step(
        self._state, self._totals.now, job.frozen, batch
      )
      # A number of its own: what a step gives is donated to the next one.
      self._backlog.add(self._state.step + 0)

  def _prepare(self) -> None:
    if self._job.prepare is not None:
      with self._book.spending('rollout'):
        self._job.prepare(self._state, self._stop.poll)

  def _begin_totals(self, batch: Any) -> None:
    """Begins the sums of this process, unless they are begun."""
    if self._totals.now is None:
      self._totals.begin(
        self._state,
        self._job.frozen,
        batch,
        saved=self._progress['totals'],
      )

  # --- What follows a step ---

  def _finish_step(self, step: int) -> None:
    """Logs, validates and saves as far as they are due after `step` steps."""
    train = self._job.train
    last = step == train.num_steps
    log_due = last or step % train.log_every_steps == 0
    every = train.evaluate_every_steps
    validate_due = every > 0 and (last or step % every == 0)
    save_due = last or step % train.checkpoint_every_steps == 0
    if not (log_due or validate_due or save_due):
      return
    host = self._fetch_totals()
    record: dict[str, Any] = {}
    if validate_due:
      try:
        record.update(self._validate(step))
      except preemption.StopRequested:
        self._preempt(step, finished=False)
    if log_due:
      record = {**self._log_record(step, host), **record}
    if record:
      self._write(step, record)
    if log_due:
      self._show_progress(step, record)
    improved = validate_due and self._note_best(step, record)
    if save_due or improved:
      self._save(step)

  def _fetch_totals(self) -> step_lib.Totals:
    """Waits for the device and returns the sums; raises on a bad step."""
    batches = self._job.batches
    if self._totals.now is None:  # nothing has run since the restart
      self._prepare()
    with self._book.spending('train'):
      if self._totals.now is None:
        # The last step of the process before is still to be logged or
        # validated, but only a batch shows the shapes of its saved sums: that
        # of the next step is looked at and put back.
        position = batches.get_state()
        self._begin_totals(sharding.place_batch(next(batches), self._job.mesh))
        batches.set_state(position)
      host = jax.device_get(self._totals.now)
    if int(host.bad_step):
      self._stop_non_finite(host)
    return host

  def _stop_non_finite(self, host: step_lib.Totals) -> NoReturn:
    saved = self._saver.latest_step()
    kept = (
      'No checkpoint was written yet.'
      if saved is None
      else f'The checkpoint of step {saved} is good.'
    )
    raise NonFinite(
      f'{step_lib.describe_bad_step(host, self._state.params)} {kept} Lower'
      f' {self._job.contract.stage}.optimizer.peak_learning_rate, raise'
      ' warmup_steps, or look for bad values in the data.'
    )

  def _log_record(self, step: int, host: step_lib.Totals) -> dict[str, Any]:
    """Returns the record of the interval that ends, and begins another."""
    job, progress, interval = self._job, self._progress, self._book.interval
    for name, value in host.counts.items():
      progress['counts'][name] = progress['counts'].get(name, 0.0) + float(
        value
      )
    record = {
      **log.summarize(host.metrics),
      'learning_rate': float(job.optimizer.learning_rate(step - 1)),
      **log.rates(host.counts, interval, steps=int(host.steps)),
    }
    if job.flops is not None:
      record |= log.model_speed(
        interval['flops'],
        interval['train'],
        device_kind=job.mesh.devices.flat[0].device_kind,
        num_devices=job.mesh.size,
      )
    if job.batches_per_epoch:
      record['epoch'] = step / job.batches_per_epoch
    self._book.end_interval()
    record['goodput'] = goodput.share(self._book.seconds)
    record['wall_seconds'] = self._book.seconds['wall']
    progress['totals'] = None
    self._totals.begin_anew()
    return record

  def _write(self, step: int, record: dict[str, Any]) -> None:
    progress = self._progress
    progress['last_record'] = {**progress['last_record'], **record}
    self._writer.write(step, record)

  def _show_progress(self, step: int, record: Mapping[str, Any]) -> None:
    """Prints a line; the record is that of a log line."""
    total = self._job.train.num_steps
    eta = (total - step) / max(record['steps_per_second'], 1e-9)
    logging.info('%s', log.progress_line(step, total, record, eta_seconds=eta))

  def _validate(self, step: int) -> dict[str, Any]:
    """Returns validation figures, of the averaged parameters if there are."""
    job, state = self._job, self._state
    params = state.params if state.ema_params is None else state.ema_params
    record: dict[str, Any] = {}
    with self._book.spending('validate'):
      if job.valid_batches is not None:
        record.update(self._validation_loss(params))
      if job.evaluate is not None:
        record.update(job.evaluate(params, state.model_state, self._stop.poll))
    if not math.isfinite(record.get(job.best_metric, math.nan)):
      raise ValueError(
        f'Validation at step {step} gave {job.best_metric}='
        f'{record.get(job.best_metric)}, which cannot choose the best'
        f' checkpoint; there are {sorted(record)}. Set'
        f' {job.contract.stage}.evaluate_every_steps=0 to train without'
        ' validation and keep the last one.'
      )
    return record

  def _validation_loss(self, params: Any) -> dict[str, Any]:
    job = self._job
    assert job.valid_batches is not None
    totals = self._totals.empty()
    for local in job.valid_batches():
      self._stop.poll()
      totals = self._eval_step(
        totals,
        params,
        self._state.model_state,
        job.frozen,
        sharding.place_batch(local, job.mesh),
      )
    found = log.summarize(jax.device_get(totals).metrics)
    return {f'valid/{name}': value for name, value in found.items()}

  def _note_best(self, step: int, record: Mapping[str, Any]) -> bool:
    job, best = self._job, self._progress['best']
    value = record[job.best_metric]
    better = best is None or (
      value > best['value'] if job.best_mode == 'max' else value < best['value']
    )
    if better:
      self._progress['best'] = {
        'step': step,
        'metric': job.best_metric,
        'value': value,
        'values': {k: v for k, v in record.items() if k.startswith('valid/')},
      }
    return better

  # --- Saving and stopping ---

  def _save(self, step: int, *, finished: bool = True) -> None:
    with self._book.spending('checkpoint'):
      totals = self._totals.to_json()  # waits for the device
      # A restart from this checkpoint must find the lines before it.
      self._writer.flush()
      self._book.measure_wall()
      progress = {
        **self._progress,
        'seconds': self._book.seconds,  # of the whole run
        'interval': self._book.interval,
        'finished_step': finished,
        'totals': totals,
      }
      self._saver.save(
        step,
        self._state,
        data=self._job.batches.get_state(),
        progress=progress,
        best_step=(self._progress['best'] or {}).get('step'),
      )

  def _preempt(self, step: int, *, finished: bool = True) -> NoReturn:
    if self._totals.now is not None:  # else nothing was done since the restart
      self._fetch_totals()
      self._save(step, finished=finished)
      self._saver.wait()
    logging.warning(
      'SIGTERM: stopped at step %d of %d, saved in %s. Run the same command'
      ' again to continue.',
      step,
      self._job.train.num_steps,
      os.fspath(self._job.folder),
    )
    raise preemption.Preempted(preemption.PREEMPTED_STATUS)
