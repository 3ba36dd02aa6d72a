"""SIGKILL at any moment, then the same command again: the same bits."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import table
from onerec_jax.stages import prepare
from onerec_jax.train import log

_CHILD = pathlib.Path(__file__).parent / 'resume_child.py'
_ROOT = pathlib.Path(__file__).parent.parent.parent


def _run(folder, output, *kill):
  environment = {**os.environ, 'PYTHONPATH': str(_ROOT)}
  return subprocess.run(
    [sys.executable, str(_CHILD), str(folder), str(output), *kill],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def _records(folder):
  return log.read_metrics(epath.Path(folder) / 'pretrain' / log.METRICS)


@pytest.mark.slow
def test_killed_three_times_and_continued_gives_the_same_bits(
  tmp_path, load_module, without_times
):
  experiment = load_module(_CHILD).experiment()
  whole = workdir_lib.Workdir(tmp_path / 'whole')
  prepare.run(experiment, whole)
  num_items = catalog.num_items(whole.data)
  codes = np.stack([np.arange(num_items) // 6, np.arange(num_items) % 6], 1)
  ids = table.from_codes(
    codes.astype(np.int32),
    codes_per_level=(8, 6),
    popularity=catalog.train_counts(whole.data),
  )
  whole.tokenizer.mkdir(parents=True)
  catalog.write_semantic_ids(
    whole.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(whole.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')

  done = _run(tmp_path / 'whole', tmp_path / 'whole.npz')
  assert done.returncode == 0, done.stderr[-3000:]
  # Before any checkpoint; while one is written; between two.
  for kill in ('fetch:4', 'save:10', 'fetch:17'):
    done = _run(tmp_path / 'cut', tmp_path / 'cut.npz', kill)
    assert done.returncode == -9, (kill, done.stderr[-3000:])
    assert not (tmp_path / 'cut.npz').exists()
  done = _run(tmp_path / 'cut', tmp_path / 'cut.npz')
  assert done.returncode == 0, done.stderr[-3000:]

  with (
    np.load(tmp_path / 'whole.npz') as expected,
    np.load(tmp_path / 'cut.npz') as got,
  ):
    # step, parameters, both moments, bias, average
    assert len(expected.files) > 40
    assert got.files == expected.files
    for name in expected.files:
      assert expected[name].tobytes() == got[name].tobytes(), name
  records = _records(tmp_path / 'cut')
  assert without_times(records) == without_times(_records(tmp_path / 'whole'))
  assert [r['step'] for r in records] == [*range(3, 19, 3), 20]
