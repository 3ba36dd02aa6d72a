"""A process begins again with huge pages, once, in its own place."""

import os
import pathlib
import subprocess
import sys

import pytest

from onerec_jax import huge_pages

_ROOT = pathlib.Path(__file__).parent.parent
_SET = 'glibc.malloc.hugetlb=1'
_SCRIPT = """
import os, sys
print('began', os.getpid(), os.environ.get('GLIBC_TUNABLES'), flush=True)
from onerec_jax import huge_pages
huge_pages.restart_with()
print('went on', os.getpid(), *sys.argv[1:])
"""


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (None, _SET),
    ('', _SET),
    ('glibc.malloc.arena_max=1', f'glibc.malloc.arena_max=1:{_SET}'),
    (_SET, _SET),
    ('glibc.malloc.hugetlb=0', 'glibc.malloc.hugetlb=0'),
  ],
)
def test_the_setting_is_added_to_what_is_there(given, wanted):
  before = {'HOME': '/'}
  if given is not None:
    before['GLIBC_TUNABLES'] = given
  found = huge_pages.environment_with(before)
  assert found == {'HOME': '/', 'GLIBC_TUNABLES': wanted}


@pytest.mark.parametrize(
  ('name', 'known'),
  [
    ('glibc 2.35', True),
    ('glibc 2.41', True),
    ('glibc 3.1', True),
    ('glibc 2.34', False),
    ('NPTL 2.40', False),
    (None, False),
  ],
)
def test_older_and_other_c_libraries_do_not_know_it(monkeypatch, name, known):
  monkeypatch.setattr(os, 'confstr_names', {'CS_GNU_LIBC_VERSION': 2})
  monkeypatch.setattr(os, 'confstr', lambda _: name)
  assert huge_pages._is_known() == known


def test_systems_without_such_a_name_do_not_know_it(monkeypatch):
  monkeypatch.setattr(os, 'confstr_names', {})
  assert not huge_pages._is_known()


def _run(tmp_path, *, before='', **environment):
  script = tmp_path / 'script.py'
  script.write_text(before + _SCRIPT)
  kept = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  finished = subprocess.run(
    [sys.executable, '-W', 'error', str(script), 'run', '--x=a b'],
    env={**kept, 'PYTHONPATH': str(_ROOT), **environment},
    capture_output=True,
    text=True,
    check=True,
  )
  return finished.stdout.splitlines()


@pytest.mark.skipif(
  not huge_pages._is_known(), reason='the C library knows no huge pages'
)
def test_a_process_begins_again_once_with_its_arguments(tmp_path):
  first, second, last = _run(tmp_path)
  process = first.split()[1]
  assert first == f'began {process} None'
  assert second == f'began {process} {_SET}'
  assert last == f'went on {process} run --x=a b'


def test_whoever_says_no_is_left_alone(tmp_path):
  first, last = _run(tmp_path, GLIBC_TUNABLES='glibc.malloc.hugetlb=0')
  assert first.startswith('began')
  assert last.startswith('went on')


def test_a_process_in_a_debugger_is_left_alone(tmp_path):
  traced = 'import sys\nsys.settrace(lambda *_: None)\n'
  first, last = _run(tmp_path, before=traced)
  assert first.startswith('began')
  assert last.startswith('went on')
