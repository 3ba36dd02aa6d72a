"""The technical report's system from raw events, through the command line."""

import json

import pytest


@pytest.mark.slow
def test_the_technical_reports_system_runs_from_raw_events(
  onerec, smoke_recipe, tmp_path
):
  run = (
    'run',
    f'--config={smoke_recipe}:tr',
    '--workdir=run',
  )
  onerec(*run, folder=tmp_path, quick=True)
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

  again = onerec(*run, folder=tmp_path, quick=True)
  assert again.count('already complete, skipped') == 8

  shown = onerec(
    'recommend', '--workdir=run', '--users=user1', '--top_k=3',
    folder=tmp_path, quick=True,
  )  # fmt: skip
  assert 'User user1' in shown
