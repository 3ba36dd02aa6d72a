"""The tables of the pages are those of the committed result files."""

import functools
import json

import pytest

from experiments import headlines
from experiments import measured_runs
from experiments import result_pictures
from experiments import result_tables
from experiments import results
from experiments import reward_tables
from experiments import sweep_tables


def test_every_table_of_the_pages_equals_its_result_file():
  stale = results.stale_pages(write=False)
  assert not stale, f'run `make results` and look at the change of {stale}'


def test_every_picture_was_drawn_from_the_kept_figures():
  stale = results.stale_pictures(write=False)
  assert not stale, f'run `make results` and look at {stale}'


def test_a_picture_of_other_figures_is_found_and_drawn_anew(
  monkeypatch, tmp_path
):
  for path in measured_runs.FOLDER.glob('*.json'):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  monkeypatch.setattr(measured_runs, 'FOLDER', tmp_path)
  names = list(result_pictures.PICTURES)
  assert results.stale_pictures(write=True) == names
  for name in names:
    assert (tmp_path / name).read_bytes()[1:4] == b'PNG'
  assert not results.stale_pictures(write=False)
  path = tmp_path / 'public_benchmark_beauty_cpu.json'
  run = json.loads(path.read_text())
  run['sweep']['rows'][0]['figures']['recall@10']['mean'] += 0.001
  path.write_text(json.dumps(run))
  assert results.stale_pictures(write=True) == ['next_item.png']
  assert not results.stale_pictures(write=False)


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
    (reward_tables.p_score_model, 'onerec_tr_kuairand_full', _past_rates),
    (reward_tables.p_score_model, 'onerec_tr_kuairand_full', _own_lists),
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
    reward_tables.session_rewards,
    sweep_tables.table_1,
    functools.partial(sweep_tables.item_sweep, recipe='a.py:b'),
    reward_tables.p_score_model,
    result_tables.item_alignment,
  ],
)
def test_a_run_that_was_not_made_is_called_not_measured(monkeypatch, table):
  monkeypatch.setattr(measured_runs, 'read', lambda name: None)
  assert 'not measured' in table('any', 'x')


def test_headlines_have_a_line_for_what_was_measured_only(monkeypatch):
  assert 'Amazon Beauty: recall@10' in headlines.table()
  monkeypatch.setattr(measured_runs, 'read', lambda name: None)
  lines = headlines.table().splitlines()
  assert all('Speed' in line for line in lines[2:])


def test_a_headline_has_the_change_over_the_base(monkeypatch):
  run = json.loads((measured_runs.FOLDER / 'tr_ablations_rl.json').read_text())
  row = next(r for r in run['sweep']['rows'] if r['name'] == 'ECPO')
  row['figures']['true_p_score_mean']['mean'] = 0.4
  row['difference']['true_p_score_mean'] = {
    'mean': 0.2, 'low': 0.1, 'high': 0.3
  }  # fmt: skip
  monkeypatch.setattr(
    measured_runs, 'read', lambda n: run if n == 'tr_ablations_rl' else None
  )
  assert (
    '| ECPO, simulated world: true P-Score of an item | **+100.0 % (+50.0 to'
    ' +150.0)** | RSFT alone; 1 seed |'
  ) in headlines.table()


def test_nothing_that_is_kept_names_a_folder_or_a_title():
  for path in measured_runs.FOLDER.glob('*.json'):
    text = path.read_text()
    assert '/tmp' not in text
    assert '"neighbours"' not in text


# --- Runs beside each other -------------------------------------------------


def _difference(mean):
  return {'mean': mean, 'low': mean - 0.001, 'high': mean + 0.001}


@pytest.fixture
def compared():
  metrics = {n: {'mean': 0.5} for n in ('recall@10', 'ndcg@10')}
  return {
    'headline_k': 10,
    'runs': [
      {'title': 'OneRec', 'path': '/a', 'metrics': metrics},
      {'title': 'SASRec', 'path': '/b', 'experiment': 's', 'step': 2000},
    ],
    'differences': [
      {'recall@10': _difference(0.004), 'ndcg@10': _difference(-0.002)}
    ],
  }


def test_a_table_says_how_a_run_differs_from_those_it_was_compared_with(
  monkeypatch, compared
):
  run = measured_runs.read('quickstart')
  assert run is not None
  assert ' over SASRec' not in result_tables.ranking('quickstart', 'x')
  monkeypatch.setattr(
    measured_runs, 'read', lambda name: {**run, 'compared': compared}
  )
  assert (
    'OneRec over SASRec (`s`, step 2,000): recall@10 +0.0040 (+0.0030 to'
    ' +0.0050), ndcg@10 -0.0020 (-0.0030 to -0.0010). Paired over users, 95 %.'
  ) in result_tables.ranking('quickstart', 'x').splitlines()


# The second: the same mean, added up in another order.
@pytest.mark.parametrize('mean', [0.5, 0.5 + 1e-12, 0.4])
def test_a_comparison_is_kept_with_its_evaluation_only(
  tmp_path, monkeypatch, compared, mean
):
  ours = {n: {'mean': mean} for n in ('recall@10', 'ndcg@10')}
  files = {
    'config.json': {
      'name': 'x',
      'stages': ['evaluate'],
      'data': {'path': '/a'},
      'embed': {'parts': []},
    },
    'embed/result.json': {},
    'evaluate/result.json': {'metrics': {'onerec': ours}},
    'evaluate/compared.json': compared,
  }
  for name, value in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(value))
  monkeypatch.setattr(measured_runs, 'FOLDER', tmp_path / 'measured')
  if mean == 0.4:
    with pytest.raises(SystemExit, match='earlier evaluation'):
      measured_runs.collect(tmp_path)
    return
  kept = json.loads(measured_runs.collect(tmp_path).read_text())['compared']
  assert kept['differences'] == compared['differences']
  assert not any('path' in run for run in kept['runs'])
