"""Markdown of rankings and session sweeps, from a kept file written by hand."""

import json
import pathlib

import pytest

from experiments import measured_runs
from experiments import results
from experiments import sweep_tables

_KEPT = pathlib.Path(__file__).parent / 'next_item_sweep.json'


@pytest.fixture
def run(monkeypatch, tmp_path):
  kept = json.loads(_KEPT.read_text())
  monkeypatch.setattr(measured_runs, 'FOLDER', tmp_path)
  _save(kept)
  return kept


def _save(run):
  path = measured_runs.FOLDER / 'public_benchmark_beauty.json'
  path.write_text(json.dumps(run))


def _table(*, slices=True):
  return sweep_tables.next_item(
    'public_benchmark_beauty',
    'Beauty',
    recipe='public_benchmark.py:beauty',
    slices=slices,
  )


def test_rows_floors_and_published_figures_stand_in_one_table(run):
  lines = _table().splitlines()
  assert lines[0].startswith('**Beauty.** 22,363 test users, all 12,101 items')
  assert '2 seeds' in lines[0]
  start = lines.index(next(x for x in lines if x.startswith('|  | recall@5')))
  names = [x.split('|')[1].strip() for x in lines[start + 2 : start + 8]]
  assert names == [
    'OneRec', 'SASRec, cross-entropy', 'TIGER', '*TIGER, 2305.05065*',
    'Popularity', 'Co-occurrence',
  ]  # fmt: skip
  assert (
    '| *TIGER, 2305.05065* | *0.0454* | *0.0321* | *0.0648* | *0.0384* |  |'
  ) in lines
  # Two seeds 0.002 apart: a standard deviation of 0.002 / sqrt(2).
  assert lines[start + 2] == (
    '| OneRec | **0.0600** | **0.0420** | **0.0900 (0.0870–0.0930)** |'
    ' **0.0520 (0.0490–0.0550)** | 0.0014 |'
  )


def test_slices_and_budget_follow_with_what_nobody_was_asked(run):
  text = _table()
  assert '| training frequency of the target: 0 | 0 | no users |' in text
  assert (
    '| order of the original ids: smaller or equal | 6,432 | 0.0800 | 0.0795 |'
    ' 0.0545 | 0.0680 |'
  ) in text
  assert (
    '| TIGER | 4,850,000 | 30,000 | 20,000 | 7,680,000 | 3.3 | 98.5 % |'
    ' 98.5 % |'
  ) in text
  # Item-level models generate no IDs.
  assert '| 1.0 |  |  |' in text


def test_slices_can_be_left_out(run):
  short = _table(slices=False)
  assert 'by slice' in _table() and 'by slice' not in short
  assert '| budget of a seed |' in short


def test_verdicts_and_where_it_came_from_end_the_block(run):
  text = _table()
  assert '- OneRec is above TIGER: **holds**' in text
  assert text.endswith(
    '15 minutes for all rows on NVIDIA H200.'
    ' `experiments/public_benchmark.py:beauty`, commit abc1234.'
  )


def test_no_minutes_are_told_where_reused_stages_were_not_counted(run):
  del run['sweep']['seconds']
  _save(run)
  assert 'Run on NVIDIA H200. `experiments' in _table()
  assert 'minutes for all rows' not in _table()


def test_a_changed_figure_changes_the_block(run):
  before = _table()
  run['sweep']['floors'][0]['figures']['recall@5']['mean'] += 0.001
  _save(run)
  assert _table() != before


def test_a_kept_file_without_floors_makes_no_table(run):
  run['sweep']['floors'] = []
  _save(run)
  with pytest.raises(ValueError, match='no counting floors'):
    _table()


def test_the_page_gets_the_block_and_says_what_was_not_measured(run):
  names = ('public_benchmark_beauty', 'public_benchmark_sports')
  page = results.render(
    ''.join(f'<!-- results:{n} -->\n<!-- /results:{n} -->\n' for n in names)
  )
  assert '| Co-occurrence |' in page
  assert '**Amazon Sports and Outdoors 2014**: not measured.' in page


# --- Sessions ---------------------------------------------------------------


def _session_sweep():
  columns = ['reward_mean', 'reward_max']

  def row(name, mean):
    return {
      'name': name,
      'users': 1500,
      'legality': [{'free_sessions': 0.8}, {'free_sessions': 1.0}],
      'figures': {c: {'mean': mean, 'std': 0.01} for c in columns},
      'difference': {
        c: {'mean': mean - 0.5, 'low': mean - 0.6, 'high': mean - 0.4}
        for c in columns
      },
    }

  return {
    'machine': '2 CPU cores',
    'commit': 'abc1234',
    'config': {'evaluate': {'split': 'valid'}},
    'sweep': {
      'base': 'm = 1',
      'seconds': 120.0,
      'seeds': [0, 1, 2],
      'columns': columns,
      'sessions_per_user': 8,
      'items_per_session': 5,
      'rows': [row('m = 1', 0.5), row('m = 5', 0.75)],
    },
  }


def test_sweeps_of_sessions_are_compared_with_the_base(monkeypatch):
  monkeypatch.setattr(measured_runs, 'read', lambda name: _session_sweep())
  lines = sweep_tables.sessions('any', 'x', recipe='a.py:b').splitlines()
  assert '3 seeds, each of 500 validation users' in lines[0]
  assert '| m = 1 | 0.500 ± 0.010 | 0.500 ± 0.010 |  | 90.0 % |' in lines
  # +0.25 (+0.15 to +0.35) over a base of 0.5; legality is that of two seeds.
  assert (
    '| m = 5 | 0.750 ± 0.010 | 0.750 ± 0.010 | +50.0 % (+30.0 to +70.0) |'
    ' 90.0 % |'
  ) in lines
  assert '`experiments/a.py:b`' in lines[-1]


def _item_sweep(*curves):
  figures = {'p_score_mean': {'mean': 0.5}, 'p_score_pass@1': {'mean': 0.6}}
  moved = {'p_score_mean': {'mean': 0.1, 'low': 0.0, 'high': 0.2}}
  rows = [
    {
      'name': f'row {n}',
      'figures': figures,
      'difference': moved,
      'legality': [{'free_items': 0.9}],
      'users': 500,
      'training': [{'curve': curve}] if curve else [None],
    }
    for n, curve in enumerate(curves)
  ]
  return {
    'config': {'evaluate': {'p_score': {'pass_at': [1]}}},
    'machine': 'CPU',
    'commit': 'abc1234',
    'sweep': {
      'rows': rows, 'seeds': [0], 'base': 'row 0', 'items_per_user': 32,
      'columns': list(figures),
    },
  }  # fmt: skip


@pytest.mark.parametrize(
  ('curves', 'cells'),
  [
    (([[1, 10, 0.4], [2, 20, 0.3]], [[1, 10, 0.2]]), ['0.400', '0.200']),
    (([[1, 10, 0.4]], [[1, 10, 0.4]]), None),  # the same pre-trained model
    (([[1, 10, 0.4]], None), None),
  ],
)
def test_items_stand_beside_recall_where_rows_were_pre_trained_apart(
  monkeypatch, curves, cells
):
  monkeypatch.setattr(measured_runs, 'read', lambda name: _item_sweep(*curves))
  text = sweep_tables.item_sweep('any', 'x', recipe='a.py:b')
  lines = [x for x in text.splitlines() if x.startswith('| row ')]
  # 0.5 over a base of 0.4.
  assert '+25.0 % (+0.0 to +50.0) | 90.0 %' in lines[1]
  if cells is None:
    assert 'recall@10' not in text and lines[0].endswith('| 90.0 % |')
  else:
    assert [x.split('|')[-2].strip() for x in lines] == cells


@pytest.mark.parametrize(
  'table', [sweep_tables.next_item, sweep_tables.sessions]
)
def test_a_sweep_that_was_not_run_is_called_not_measured(monkeypatch, table):
  monkeypatch.setattr(measured_runs, 'read', lambda name: None)
  assert table('any', 'x', recipe='a.py:b') == '**x**: not measured.'


# --- Where it ran -----------------------------------------------------------


@pytest.mark.parametrize(
  ('devices', 'machine'),
  [(['NVIDIA H200', 'NVIDIA H200'], 'NVIDIA H200'), (['cpu'], 'CPU cores')],
)
def test_a_kept_sweep_names_the_devices_that_trained(
  tmp_path, monkeypatch, devices, machine
):
  result = {'rows': [{'training': [{'device': d} for d in devices] + [None]}]}
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep' / 'result.json').write_text(json.dumps(result))
  config = {'name': 'x', 'data': {'path': '/a'}, 'embed': {'parts': []}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  monkeypatch.setattr(measured_runs, 'FOLDER', tmp_path / 'measured')
  kept = json.loads(measured_runs.collect(tmp_path).read_text())
  assert machine in kept['machine']
  assert kept['config']['data']['path'] is None
