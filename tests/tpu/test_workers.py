"""A job on its node, for real: boots, preemptions, restarts, the end."""

import json
import os
import pathlib
import signal
import subprocess

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_JOB = 'jobs/run1/20260102-030405'


def _environment(cloud, home: pathlib.Path, **more: str) -> dict[str, str]:
  return {
    **cloud.environment,
    'HOME': str(home),
    'METADATA_URL': f'file://{home}/metadata',
    'RESTART_SECONDS': '0',
    **more,
  }


def _supervise(cloud, home, *command, **settings) -> subprocess.Popen[str]:
  return subprocess.Popen(
    ['bash', str(_ROOT / 'tpu' / 'supervise.sh'), *command],
    env=_environment(cloud, home, **settings),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _end(node: subprocess.Popen[str]) -> tuple[int, str]:
  """Exit status and output of a process, when it has ended."""
  output, _ = node.communicate(timeout=30)
  return node.returncode, output


# --- submit.sh -> startup.sh -> supervise.sh ---


@pytest.fixture
def boot(cloud, home):
  """Submits program.py; the function boots the node, with its startup.sh."""
  done = cloud.run('submit.sh', 'python', str(home / 'program.py'), str(home))
  assert done.returncode == 0, done.stderr
  create = cloud.calls()[-1]
  metadata = next(w for w in create if w.startswith('--metadata=onerec-job='))
  script = next(w for w in create if w.startswith('--metadata-from-file='))
  (home / 'metadata' / 'onerec-job').write_text(metadata.split('=', 2)[2])

  def boot(**settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      ['bash', script.removeprefix('--metadata-from-file=startup-script=')],
      env=_environment(
        cloud, home, ONEREC_HOME=str(home / 'onerec_jax'), **settings
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return boot


def test_preempted_program_runs_again_and_ends_as_if_nothing_had_been(
  cloud, home, boot
):
  node = boot()
  os.kill(int(cloud.wait_for(home / 'ready')), signal.SIGTERM)
  status, output = _end(node)
  assert status == 0, output
  # 0 + 1 + ... + 9, each step once.
  assert (home / 'total').read_text() == '45'
  assert 'ended with 42; restart 1 of at most 20' in output
  assert cloud.bucket(f'{_JOB}/status/s0-w0').read_text() == '0\n'
  (log,) = cloud.bucket(f'{_JOB}/logs').glob('s0-w0-*.log')
  assert log.read_text().index('saved at step 5') < log.read_text().index(
    'total 45'
  )


def test_sigterm_of_the_node_reaches_the_program_and_the_next_boot_goes_on(
  cloud, home, boot
):
  node = boot()
  cloud.wait_for(home / 'ready')
  node.send_signal(signal.SIGTERM)
  status, output = _end(node)
  # Saved, and not run again: the machine is about to go.
  assert status == 42, output
  assert json.loads((home / 'saved.json').read_text()) == [5, 10]
  assert not cloud.bucket(f'{_JOB}/status').exists()
  assert not (home / 'total').exists()

  node = boot()
  status, output = _end(node)
  assert status == 0, output
  assert (home / 'total').read_text() == '45'


def test_reboot_after_the_end_does_not_run_the_job_again(cloud, home, boot):
  node = boot()
  os.kill(int(cloud.wait_for(home / 'ready')), signal.SIGTERM)
  _end(node)
  (home / 'total').unlink()
  node = boot()
  status, output = _end(node)
  assert status == 0
  assert 's0-w0 has ended already, exit status 0' in output
  assert not (home / 'total').exists()


def test_node_that_cannot_begin_tells_whoever_watches(cloud, home, boot):
  cloud.bucket(f'{_JOB}/code.tar.gz').write_text('not an archive')
  node = boot()
  assert _end(node)[0] != 0
  (status,) = cloud.bucket(f'{_JOB}/status').glob('startup-*')
  assert status.read_text() == '1\n'


# --- supervise.sh ---


@pytest.mark.parametrize('status', [42, 134])
def test_restarts_are_bounded(cloud, home, status):
  command = f'echo run >> {home}/runs; exit {status}'
  node = _supervise(
    cloud,
    home,
    *('bash', '-c', command),
    MAX_RESTARTS='2',
    JOB=f'gs://my-bucket/{_JOB}',
  )
  ended, output = _end(node)
  assert ended == status
  assert 'after 2 restarts, the most allowed' in output
  assert (home / 'runs').read_text().count('run') == 3
  # Final: whoever watches need not wait for it.
  assert cloud.bucket(f'{_JOB}/status/s0-w0').read_text() == f'{status}\n'


@pytest.mark.parametrize('status', [0, 1, 2, 41, 43, 127])
def test_error_of_the_program_is_not_repeated(cloud, home, status):
  command = f'echo run >> {home}/runs; exit {status}'
  node = _supervise(cloud, home, 'bash', '-c', command)
  assert _end(node)[0] == status
  assert (home / 'runs').read_text() == 'run\n'


def test_program_outlives_the_connection(cloud, home):
  program = ('python', str(home / 'program.py'), str(home))
  node = _supervise(cloud, home, *program, MAX_RESTARTS='1')
  pid = int(cloud.wait_for(home / 'ready'))
  assert node.stdout is not None
  node.stdout.close()
  node.send_signal(signal.SIGHUP)
  os.kill(pid, signal.SIGTERM)
  assert node.wait(timeout=30) == 0
  assert (home / 'total').read_text() == '45'


def test_second_job_on_a_worker_is_refused_until_the_first_is_stopped(
  cloud, home
):
  node = _supervise(cloud, home, 'python', str(home / 'program.py'), str(home))
  cloud.wait_for(home / 'ready')
  status, output = _end(_supervise(cloud, home, 'true'))
  assert status == 2
  assert 'Stop it: tpu/run.sh --stop' in output

  assert _end(_supervise(cloud, home, '--stop')) == (0, '')
  assert _end(node)[0] == 42
  assert json.loads((home / 'saved.json').read_text()) == [5, 10]
  # Nothing runs: stopping it is no error, and the next job may begin.
  assert _end(_supervise(cloud, home, '--stop')) == (0, '')
  assert _end(_supervise(cloud, home, 'true'))[0] == 0


def test_number_left_by_a_machine_that_died_does_not_block_the_next_job(
  cloud, home
):
  # The number of a process that lives, but is no job.
  (home / 'onerec_jax' / 'supervise.pid').write_text(str(os.getpid()))
  assert _end(_supervise(cloud, home, 'true'))[0] == 0
