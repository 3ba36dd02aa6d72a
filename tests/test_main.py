"""Command line: what a user types wrong is answered in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent


def _run(*args: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, '-m', 'onerec_jax.main', *args],
    cwd=_ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'Expected one command out of prepare'),
    (('trian',), 'got trian'),
    (('run',), 'pass --config=experiments/quickstart.py'),
    (('run', '--workdir=/nonexistent/run'), 'config.json is missing'),
    (
      ('compare', '--config=experiments/smoke.py', '--workdir=/nonexistent/a'),
      'Say with what: --against=FOLDER,FOLDER',
    ),
    (
      ('run', '--config=experiments/smoke.py'),
      'run needs --workdir, e.g. runs/smoke',
    ),
    (
      (
        'run',
        '--config=experiments/smoke.py',
        '--config.model.moe.top_k=9',
        '--workdir=/nonexistent/run',
      ),
      'model.moe.top_k=9 must lie in 1..model.moe.num_experts=4',
    ),
  ],
)
def test_wrong_input_exits_with_2_and_one_message(args, message):
  done = _run(*args)
  assert done.returncode == 2, done.stderr
  assert 'error: ' in done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


def test_unknown_override_names_the_nearest_key():
  done = _run('run', '--config=experiments/smoke.py', '--config.model.dim=3')
  assert done.returncode != 0
  assert 'dim' in done.stderr


_HOLD = """
import sys
from onerec_jax import workdir
with workdir.Workdir(sys.argv[1]).exclusive():
  print('held', flush=True)
  sys.stdin.read()
"""


def test_a_second_run_in_one_workdir_is_refused_until_the_first_ends(tmp_path):
  """Also where the first was killed and could not tidy up."""
  prepare = (
    'prepare', '--config=experiments/smoke.py', f'--workdir={tmp_path}',
  )  # fmt: skip
  with subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(tmp_path)],
    cwd=_ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as first:
    assert first.stdout is not None
    assert first.stdout.readline() == 'held\n'
    refused = _run(*prepare)
    assert refused.returncode == 2, refused.stderr
    assert f'{tmp_path} is in use by process {first.pid} on' in refused.stderr
    assert 'Traceback' not in refused.stderr
    assert not (tmp_path / 'data').exists()
    first.kill()
  assert _run(*prepare).returncode == 0
  assert (tmp_path / 'data' / 'result.json').exists()
