"""OneRec v1 from raw events to recommendations, through the command line."""

import json

import pytest


@pytest.mark.slow
def test_raw_events_become_recommendations_and_a_second_run_skips(
  onerec, smoke_recipe, tmp_path
):
  run = (
    'run',
    f'--config={smoke_recipe}:v1',
    '--config.pretrain.num_steps=20',
    '--config.pretrain.evaluate_every_steps=20',
    '--config.pretrain.checkpoint_every_steps=10',
    '--workdir=relative/run',  # as in the README, not absolute
  )
  onerec(*run, folder=tmp_path)
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

  again = onerec(*run, folder=tmp_path)
  assert again.count('already complete, skipped') == 7

  shown = onerec(
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
