"""The tables of the README are those of the committed result files."""

import json

import pytest

from experiments import measured_runs
from experiments import result_tables
from experiments import results
from experiments import sweep_tables


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


def _past_rates(run):
  tower = run['stages']['p_score']['towers'][0]['held_out']
  return tower['tower_over_logistic_rates']['auc'], 'low'


def _own_lists(run):
  scores = run['stages']['p_score']['personalisation']['scores']
  return scores['p_score']['gain'], 'value'


def _swt(run):
  return run['sweep']['rows'][0]['figures']['swt_mean'], 'mean'


@pytest.mark.parametrize(
  ('table', 'name', 'figure'),
  [
    (result_tables.ranking, 'quickstart', _quickstart),
    (result_tables.item_alignment, 'item_alignment_beauty', _alignment),
    (result_tables.p_score_model, 'onerec_tr_kuairand_full', _past_rates),
    (result_tables.p_score_model, 'onerec_tr_kuairand_full', _own_lists),
    (sweep_tables.table_1, 'table1_synthetic_full', _swt),
  ],
)
def test_a_changed_figure_changes_the_table(monkeypatch, table, name, figure):
  run = json.loads((measured_runs.FOLDER / f'{name}.json').read_text())
  monkeypatch.setattr(measured_runs, 'read', lambda _: run)
  before = table(name, 'x')
  place, key = figure(run)
  place[key] += 0.01
  assert table(name, 'x') != before


@pytest.mark.parametrize(
  'table',
  [
    result_tables.ranking,
    result_tables.session_rewards,
    sweep_tables.table_1,
    sweep_tables.item_sweep,
    result_tables.p_score_model,
    result_tables.item_alignment,
  ],
)
def test_a_run_that_was_not_made_is_called_not_measured(monkeypatch, table):
  monkeypatch.setattr(measured_runs, 'read', lambda name: None)
  assert 'not measured' in table('any', 'x')


def test_nothing_that_is_kept_names_a_folder_or_a_title():
  for path in measured_runs.FOLDER.glob('*.json'):
    text = path.read_text()
    assert '/tmp' not in text
    assert '"neighbours"' not in text
