"""Compiler flags and accelerator facts, as the launch scripts read them."""

import importlib.util
import json
import pathlib
import re
import shlex

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_FILES = sorted((_ROOT / 'tpu' / 'flags').glob('*.env'))
_TABLE = json.loads((_ROOT / 'onerec_jax' / 'accelerators.json').read_text())
_LINE = re.compile(r'^LIBTPU_INIT_ARGS\+=" (--\w+=\S+)"  # (\S.+)$')


def _flags(path: pathlib.Path) -> list[str]:
  lines = [x for x in path.read_text().splitlines() if not x.startswith('#')]
  matches = [_LINE.match(line) for line in lines]
  assert all(matches), [x for x, m in zip(lines, matches, strict=True) if not m]
  return [match.group(1) for match in matches if match]


def test_each_rented_generation_has_its_flags():
  assert [path.stem for path in _FILES] == ['tpu7x', 'v5e', 'v5p', 'v6e']
  assert {path.stem for path in _FILES} <= set(_TABLE['generations'])


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_each_line_is_one_flag_with_its_reason_and_none_is_repeated(path):
  names = [flag.split('=')[0] for flag in _flags(path)]
  assert names
  assert len(names) == len(set(names))


@pytest.mark.parametrize('path', _FILES, ids=lambda path: path.stem)
def test_job_gets_the_flags_of_its_generation_after_those_of_the_user(
  cloud, path
):
  name = next(
    name
    for name, found in _TABLE['slices'].items()
    if found['generation'] == path.stem
  )
  done = cloud.run(
    *('gke/xpk.sh', 'true'),
    **{'DRY_RUN': '1', 'ACCELERATOR': name, 'IMAGE': 'i', 'CLUSTER': 'c'},
    FLAGS_FILE='',
    LIBTPU_INIT_ARGS='--mine=1',
  )
  assert done.returncode == 0, done.stderr
  expected = ' '.join(['--mine=1', *_flags(path)])
  assert f'--env=LIBTPU_INIT_ARGS={expected}' in shlex.split(done.stdout)


def test_generation_without_a_file_runs_without_flags(cloud):
  done = cloud.run(
    'run.sh', 'true', DRY_RUN='1', ACCELERATOR='v4-8', FLAGS_FILE=''
  )
  assert done.returncode == 0, done.stderr
  command = shlex.split(done.stdout)[-1]
  assert ' LIBTPU_INIT_ARGS= ' in command


@pytest.fixture(scope='module')
def facts_of():
  """Prints what the scripts know of a slice: tpu/accelerator.py."""
  path = _ROOT / 'tpu' / 'accelerator.py'
  spec = importlib.util.spec_from_file_location('accelerator', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.main


@pytest.mark.parametrize('name', _TABLE['slices'])
def test_facts_of_every_slice_fit_together(facts_of, capsys, name):
  facts_of(name)
  lines = capsys.readouterr().out.splitlines()
  facts = dict(shlex.split(line)[0].split('=', 1) for line in lines)
  edges = [int(edge) for edge in facts['TOPOLOGY'].split('x')]
  chips = 1
  for edge in edges:
    chips *= edge
  assert int(facts['HOSTS']) * int(facts['CHIPS_PER_HOST']) == chips
  per_chip = 2 if facts['GENERATION'] == 'tpu7x' else 1
  assert int(facts['DEVICES']) == chips * per_chip
  # Rented as a TPU VM: then both are known.
  assert bool(facts['GCLOUD_TYPE']) == bool(facts['DEFAULT_RUNTIME_VERSION'])
