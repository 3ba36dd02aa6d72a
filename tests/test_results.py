"""The tables of the README are those of the committed result files."""

import json

import pytest

from experiments import results


def test_every_table_of_the_pages_equals_its_result_file():
  stale = results.stale_pages(write=False)
  assert not stale, f'run `make results` and look at the change of {stale}'


def test_unknown_table_is_an_error():
  with pytest.raises(SystemExit, match='nonsense'):
    results.render('<!-- results:nonsense -->\n<!-- /results:nonsense -->')


def test_a_changed_figure_changes_the_table(monkeypatch):
  kept = sorted(results._RUNS.glob('*.json'))
  assert kept, 'there is no committed run'
  run = json.loads(kept[0].read_text())
  monkeypatch.setattr(results, '_run', lambda name: run)
  before = results.ranking(run['config']['name'], 'x')
  run['stages']['evaluate']['metrics']['onerec']['recall@10']['mean'] += 0.01
  assert results.ranking(run['config']['name'], 'x') != before


def test_a_run_that_was_not_made_is_called_not_measured(monkeypatch):
  monkeypatch.setattr(results, '_run', lambda name: None)
  assert 'not measured' in results.ranking('quickstart', 'x')
