"""The whole pipeline through the command line, as a new user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent


def _onerec(*args: str, folder: pathlib.Path) -> str:
  done = subprocess.run(
    [sys.executable, '-m', 'onerec_jax.main', *args],
    cwd=folder,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout + done.stderr


@pytest.mark.slow
def test_raw_events_become_recommendations_and_a_second_run_skips(tmp_path):
  run = (
    'run',
    f'--config={_ROOT / "experiments" / "smoke.py"}:v1',
    '--config.pretrain.num_steps=20',
    '--config.pretrain.evaluate_every_steps=20',
    '--config.pretrain.checkpoint_every_steps=10',
    '--workdir=relative/run',  # as in the README, not absolute
  )
  _onerec(*run, folder=tmp_path)
  folder = tmp_path / 'relative' / 'run'
  results = {
    path.parent.name: json.loads(path.read_text())
    for path in folder.glob('*/result.json')
  }
  assert set(results) == {
    'data', 'embed', 'tokenizer', 'pretrain', 'reward', 'align', 'evaluate',
    'report',
  }  # fmt: skip
  assert results['pretrain']['steps'] == 20
  assert results['evaluate']['legality'] == 1.0
  assert len(results['align']['rounds']) == 2
  assert set(results['evaluate']['session_rewards']['methods']) == {
    'onerec',
    'pretrained',
  }
  assert 'popularity' in results['evaluate']['metrics']
  assert '<html' in (folder / 'report' / 'report.html').read_text()

  again = _onerec(*run, folder=tmp_path)
  assert again.count('already complete, skipped') == 7

  shown = _onerec(
    'recommend',
    '--workdir=relative/run',
    '--users=user1',
    '--top_k=3',
    '--output=answer.jsonl',
    folder=tmp_path,
  )
  rows = [
    json.loads(line)
    for line in (tmp_path / 'answer.jsonl').read_text().splitlines()
  ]
  assert [row['rank'] for row in rows] == [1, 2, 3]
  assert all(row['item_id'] in shown for row in rows)


@pytest.mark.slow
def test_the_technical_reports_system_runs_from_raw_events(tmp_path):
  run = (
    'run',
    f'--config={_ROOT / "experiments" / "smoke.py"}:tr',
    '--workdir=run',
  )
  _onerec(*run, folder=tmp_path)
  folder = tmp_path / 'run'
  results = {
    path.parent.name: json.loads(path.read_text())
    for path in folder.glob('*/result.json')
  }
  assert set(results) == {
    'data', 'embed', 'tokenizer', 'lifelong', 'pretrain', 'p_score',
    'reinforce', 'evaluate', 'report',
  }  # fmt: skip
  assert results['embed']['alignment']['quality']
  assert results['reinforce']['rollouts']['groups'] == 20 * 16
  found = results['evaluate']['item_rewards']
  assert set(found['methods']) == {'onerec', 'pretrained'}
  assert 'true_p_score_pass@8' in found['columns']
  page = (folder / 'report' / 'report.html').read_text()
  for title in ('P-Score model', 'Generated items', 'Reinforcement'):
    assert title in page

  again = _onerec(*run, folder=tmp_path)
  assert again.count('already complete, skipped') == 8

  shown = _onerec(
    'recommend', '--workdir=run', '--users=user1', '--top_k=3', folder=tmp_path
  )
  assert 'User user1' in shown
