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


def _quickstart(run):
  return run['stages']['evaluate']['metrics']['onerec']['recall@10'], 'mean'


def _alignment(run):
  quality = run['stages']['embed']['alignment']['quality']
  return quality['vectors']['aligned']['test'], 'hit@10'


def _swt(run):
  return run['sweep']['rows'][0]['figures']['swt_mean'], 'mean'


@pytest.mark.parametrize(
  ('table', 'name', 'figure'),
  [
    (results.ranking, 'quickstart', _quickstart),
    (results.item_alignment, 'item_alignment_beauty', _alignment),
    (results.table_1, 'table1_synthetic_full', _swt),
  ],
)
def test_a_changed_figure_changes_the_table(monkeypatch, table, name, figure):
  run = json.loads((results._RUNS / f'{name}.json').read_text())
  monkeypatch.setattr(results, '_run', lambda _: run)
  before = table(name, 'x')
  place, key = figure(run)
  place[key] += 0.01
  assert table(name, 'x') != before


@pytest.mark.parametrize(
  'table',
  [
    results.ranking, results.session_rewards, results.table_1,
    results.item_sweep, results.p_score_model, results.item_alignment,
  ],
)  # fmt: skip
def test_a_run_that_was_not_made_is_called_not_measured(monkeypatch, table):
  monkeypatch.setattr(results, '_run', lambda name: None)
  assert 'not measured' in table('any', 'x')


def test_nothing_that_is_kept_names_a_folder_or_a_title():
  for path in results._RUNS.glob('*.json'):
    text = path.read_text()
    assert '/tmp' not in text
    assert '"neighbours"' not in text
