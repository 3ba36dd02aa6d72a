"""Two real processes of four CPU devices each: the whole system as one job."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
from etils import epath

from onerec_jax import meshes
from onerec_jax.data import preference_pairs
from onerec_jax.train import log

_HERE = pathlib.Path(__file__).parent
_ROOT = _HERE.parent.parent
_CONFIG = _HERE / 'tiny_experiment.py'
_TIMEOUT = 400  # seconds; a job that hangs fails


def _environment(devices):
  return {
    **os.environ,
    'PYTHONPATH': str(_ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
  }


def _free_port():
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


class _Job:
  """Processes that were started together; their output is in files."""

  def __init__(self, commands, logs, *, devices):
    self.logs = logs
    self.processes = []
    for command, path in zip(commands, logs, strict=True):
      with path.open('w') as file:
        self.processes.append(
          subprocess.Popen(
            command,
            cwd=_ROOT,
            env=_environment(devices),
            stdout=file,
            stderr=subprocess.STDOUT,
          )
        )

  def wait(self):
    """Returns the exit statuses; kills what does not end."""
    end = time.monotonic() + _TIMEOUT
    try:
      return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def wait_for(self, text):
    """Waits until process 0 has printed a text."""
    end = time.monotonic() + _TIMEOUT
    while text not in self.logs[0].read_text():
      assert self.processes[0].poll() is None, self.output()
      assert time.monotonic() < end, self.output()
      time.sleep(0.02)

  def output(self, number=0):
    return self.logs[number].read_text()


def _start(command, workdir, *options, processes=2, devices=4):
  """Starts a command of the program in several processes."""
  base = [
    sys.executable, '-m', 'onerec_jax.main', command, f'--config={_CONFIG}',
    f'--workdir={workdir}', *options,
  ]  # fmt: skip
  if processes == 1:
    commands = [[*base, '--distributed=off']]
  else:
    port = _free_port()
    commands = [
      [
        *base,
        f'--coordinator=localhost:{port}',
        f'--num_processes={processes}',
        f'--process_id={number}',
      ]
      for number in range(processes)
    ]
  logs = [
    workdir.parent / f'{workdir.name}.{command}.{time.monotonic_ns()}.{n}.log'
    for n in range(processes)
  ]
  return _Job(commands, logs, devices=devices)


def _finish(job):
  statuses = job.wait()
  assert statuses == [0] * len(statuses), job.output()[-6000:]
  return job


def _copy(workdir, name, *without):
  """Returns a copy of a work directory that lacks some stages."""
  copy = workdir.parent / name
  shutil.copytree(workdir, copy)
  for stage in without:
    shutil.rmtree(copy / stage)
  return copy


class _Stopped(NamedTuple):
  """A job that got SIGTERM."""

  workdir: pathlib.Path  # as it was left
  statuses: list[int]
  outputs: list[str]
  steps: list[list[str]]  # that each process says it stopped at


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run of two processes, one of which gets SIGTERM while they train."""
  root = tmp_path_factory.mktemp('multihost')
  job = _start('run', root / 'whole', _num_steps(1_000_000))
  job.wait_for('\nstep 5/')
  job.processes[1].send_signal(signal.SIGTERM)
  statuses = job.wait()
  outputs = [job.output(n) for n in range(2)]
  shutil.copytree(root / 'whole', root / 'stopped')
  found = [
    re.findall(r'SIGTERM: stopped at step (\d+) of', text) for text in outputs
  ]
  return _Stopped(root / 'stopped', statuses, outputs, found)


def _num_steps(number):
  return f'--config.pretrain.num_steps={number}'


@pytest.fixture(scope='module')
def steps(stopped):
  """Option that ends a training some steps after SIGTERM stopped the first."""
  assert stopped.steps[0], stopped.outputs
  return _num_steps(int(stopped.steps[0][0]) + 7)


@pytest.fixture(scope='module')
def whole(stopped, steps):
  """Work directory of the run that was stopped and went on to its end."""
  workdir = stopped.workdir.parent / 'whole'
  begun = time.monotonic()
  job = _start('run', workdir, steps)
  job.wait_for('continuing from the checkpoint of step')
  job.wait_for('\nstep ')  # at most five steps later
  print(f'resumed in {time.monotonic() - begun:.1f} s')
  _finish(job)
  return workdir


def _records(workdir):
  return log.read_metrics(epath.Path(workdir) / 'pretrain' / log.METRICS)


def _result(workdir, stage):
  return json.loads((workdir / stage / 'result.json').read_text())


def _parameters(workdir):
  """Returns the last parameters of a pre-training, by name."""
  import jax

  from onerec_jax import config
  from onerec_jax.train import checkpoints

  found = checkpoints.restore_for_evaluation(
    epath.Path(workdir / 'pretrain'),
    which='latest',
    mesh=meshes.make_mesh(config.MeshConfig()),
  )
  leaves = jax.tree_util.tree_leaves_with_path(found.params)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


# --- Training ---------------------------------------------------------------


def test_two_processes_train_as_one_with_as_many_devices(whole, steps):
  workdir = _copy(whole, 'one_process', 'pretrain')
  _finish(_start('pretrain', workdir, steps, processes=1, devices=8))
  one, two = _records(workdir), _records(whole)
  assert [r['step'] for r in one] == [r['step'] for r in two]
  assert len(one) > 2
  # Sums over devices are taken in another order between processes.
  for name in ('loss', 'gradient_norm'):
    expected, found = ([r[name] for r in records] for records in (one, two))
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_process_0_alone_speaks_and_writes(stopped):
  assert '\nstep 5/' in stopped.outputs[0]
  assert '\nstep 5/' not in stopped.outputs[1]
  assert len(list((stopped.workdir / 'pretrain').glob('events.*'))) == 1


# --- Everything after training ----------------------------------------------


def _figures(value):
  """Returns all numbers of a nested result, by path, without times."""
  if isinstance(value, dict):
    return {
      f'{k}/{path}': number
      for k, inner in value.items()
      if 'second' not in k and 'peak_memory' not in k
      for path, number in _figures(inner).items()
    }
  if isinstance(value, list):
    return _figures({str(i): inner for i, inner in enumerate(value)})
  if isinstance(value, bool) or not isinstance(value, int | float):
    return {}
  return {'': value}


def test_pairs_and_groups_of_two_processes_are_those_of_one(whole):
  _finish(_children('generate', whole))
  _finish(_children('generate', whole, processes=1, devices=8))
  one, two = (dict(np.load(whole / f'generated_{n}.npz')) for n in (1, 2))
  assert one.keys() == two.keys()
  assert len(two['pairs/example_ids']) > 20 and two['legal'] > 40
  assert two['groups_1/legal'].any()
  for name, value in one.items():
    np.testing.assert_allclose(two[name], value, rtol=1e-5, err_msg=name)
  # Process 0 wrote them, for a run that is killed now.
  chunk = whole / 'generated_2/rollouts/chunk_00000.npz'
  kept = preference_pairs.read(epath.Path(chunk))
  np.testing.assert_array_equal(kept.items, one['pairs/items'])


def test_one_device_evaluates_the_checkpoint_of_two_processes_alike(
  whole, steps
):
  workdir = _copy(whole, 'one_device', 'evaluate')
  _finish(_start('evaluate', workdir, steps, processes=1, devices=1))
  one, two = (_figures(_result(w, 'evaluate')) for w in (workdir, whole))
  assert one.keys() == two.keys()
  assert len(one) > 100
  different = [
    (name, one[name], two[name])
    for name in one
    if not np.isclose(one[name], two[name], rtol=1e-4, atol=1e-5)
  ]
  assert not different


# --- Preemption -------------------------------------------------------------


def test_sigterm_to_one_process_stops_both_at_the_same_step(stopped):
  assert stopped.statuses == [42, 42], stopped.outputs
  assert len(stopped.steps[0]) == 1
  assert stopped.steps[0] == stopped.steps[1]
  folder = stopped.workdir / 'pretrain' / 'checkpoints'
  saved = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
  assert saved == [int(stopped.steps[0][0])]


def test_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(
  whole, steps, without_times
):
  workdir = _copy(whole, 'uninterrupted', 'pretrain')
  _finish(_start('pretrain', workdir, steps))
  expected, found = _parameters(workdir), _parameters(whole)
  assert expected.keys() == found.keys() and len(expected) > 5
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  assert without_times(_records(whole)) == without_times(_records(workdir))


# --- The processes themselves -----------------------------------------------


def _children(name, folder, *, processes=2, devices=4):
  port = _free_port()
  commands = [
    [
      sys.executable,
      str(_HERE / 'child.py'),
      name,
      str(port),
      str(processes),
      str(n),
      str(folder),
    ]
    for n in range(processes)
  ]
  logs = [folder / f'{name}.{processes}.{n}.log' for n in range(processes)]
  return _Job(commands, logs, devices=devices)


def test_processes_share_rows_and_examples_without_loss_or_repetition(tmp_path):
  _finish(_children('share', tmp_path))
  parts = [
    json.loads((tmp_path / f'share_{n}.json').read_text()) for n in range(2)
  ]
  own = [p['own'] for p in parts]
  # The mesh takes devices of both processes in turn, two rows on each.
  assert own[0] == [0, 1, 4, 5, 8, 9, 12, 13]
  assert sorted(own[0] + own[1]) == list(range(16))
  for part in parts:
    assert part['gathered'] == [2 * row for row in range(16)]
    assert part['whole'] == list(range(8))
    assert part['broadcast'] == [0.1] * 3
    assert part['agreed'] == [0, 'é' * 300]
  # 37 users with one to three examples each.
  examples = sum(1 + user % 3 for user in range(37))
  for epoch in range(2):
    read = [i for p in parts for i in p['epochs'][epoch] if i >= 0]
    assert sorted(read) == list(range(examples))
  assert parts[0]['epochs'][0] != parts[0]['epochs'][1]


@pytest.mark.parametrize('name', ['fail_1', 'fail_alone'])
def test_an_error_in_one_process_ends_the_other(name, tmp_path):
  job = _children(name, tmp_path)
  assert job.wait() == [2, 2], job.output() + job.output(1)
  failed = 1 if name == 'fail_1' else 0
  assert 'error: the disk is full' in job.output(failed)
  assert re.search(
    f'process {1 - failed} ends because process {failed} failed: error: the'
    ' disk is full',
    job.output(1 - failed),
  )


def test_a_work_directory_that_is_not_shared_is_refused(tmp_path):
  for number in range(2):
    (tmp_path / str(number)).mkdir()
  job = _children('apart', tmp_path)
  statuses = job.wait()
  assert 0 not in statuses
  assert 'the processes [1] of 2 do not see it' in job.output(1)
