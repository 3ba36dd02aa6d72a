"""Command compare: paired differences by hand, runs that do not match."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
import rich.console

from onerec_jax import config
from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import compare_figures
from onerec_jax.stages import compare_runs
from onerec_jax.stages import evaluate

_NOT = metrics.NOT_RANKED
_BOOT = {'samples': 200, 'seed': 0}


def _made(ranks, **changes):
  """A run of eight users with one target each."""
  users = len(ranks)
  made = compare_runs.Run(
    path='runs/a',
    title='OneRec',
    name='a',
    step=10,
    protocol={'split': 'test', 'candidates': 50, 'history_excluded': True},
    top_k=(1, 2, 10),
    keys=np.array([f'u{i}\tt{i}' for i in range(users)]),
    train_counts=np.arange(users),
    seen_items=np.arange(users) * 4,
    ranks=np.array(ranks)[:, None],
    target_mask=np.ones((users, 1), bool),
  )
  return dataclasses.replace(made, **changes)


def _printed(found):
  text = io.StringIO()
  console = rich.console.Console(file=text, width=140)
  compare_runs.print_table(found, console)
  return text.getvalue()


_BASE = _made([1, 2, 2, _NOT, 1, 3, 11, 4])
_OTHER = _made([1, _NOT, 12, _NOT, 1, 3, 11, 4], path='runs/b', top_k=(2, 10))


def test_differences_are_those_of_each_user():
  found = compare_runs.compare(_BASE, [_OTHER], **_BOOT)
  # Six of eight are in the first ten, against four; users 1 and 2 at rank 2.
  ours, theirs = (run['metrics'] for run in found['runs'])
  assert ours['recall@10']['mean'] == 6 / 8
  assert theirs['recall@10']['mean'] == 4 / 8
  assert 'recall@1' not in ours  # the other was not asked for it
  difference = found['differences'][0]
  assert difference['recall@10']['mean'] == pytest.approx(2 / 8)
  assert difference['ndcg@10']['mean'] == pytest.approx(2 / np.log2(3) / 8)
  assert found['users'] == 8 and found['headline_k'] == 10


def test_slices_hold_their_own_users():
  found = compare_runs.compare(_BASE, [_OTHER], **_BOOT)
  rows = {
    row['slice']: row
    for row in found['slices']['training frequency of the target']
  }
  assert {name: row['users'] for name, row in rows.items()} == {
    '0': 1,
    '1-5': 5,
    '6-20': 2,
  }
  assert rows['1-5']['means'][0]['recall@10'] == 4 / 5
  assert rows['1-5']['differences'][0]['recall@10']['mean'] == pytest.approx(
    2 / 5
  )
  seen = found['slices']['items before the target']
  assert [(r['slice'], r['users']) for r in seen] == [
    ('0-4', 2),
    ('5-9', 1),
    ('10-19', 2),
    ('> 19', 3),
  ]
  assert seen[0]['differences'][0]['recall@10']['mean'] == 1 / 2


def test_the_difference_is_paired_where_the_intervals_overlap():
  """Both runs are as likely to hit easy users; one hits four users more."""
  rng = np.random.default_rng(0)
  theirs = np.where(rng.random(400) < 0.3, 1, _NOT)
  ours = theirs.copy()
  ours[np.flatnonzero(theirs == _NOT)[:8]] = 1
  found = compare_runs.compare(_made(ours), [_made(theirs)], **_BOOT)
  first, second = (run['metrics']['recall@10'] for run in found['runs'])
  assert first['low'] < second['high']
  difference = found['differences'][0]['recall@10']
  assert difference['mean'] == pytest.approx(8 / 400)
  assert difference['low'] > 0


def test_lists_of_no_common_length_are_refused():
  with pytest.raises(ValueError, match=r'evaluate.top_k=\(1, 2, 10\)'):
    compare_runs.compare(_BASE, [_made([1] * 8, top_k=(5,))], **_BOOT)


def test_the_table_says_who_is_above():
  text = _printed(compare_runs.compare(_BASE, [_OTHER, _BASE], **_BOOT))
  assert 'test: 8 users, all 50 items ranked' in text
  assert '+0.2500' in text
  assert 'OneRec (runs/a), against OneRec (runs/b): ' in text
  # Two users of 0 to 4 items: ours finds both, the other one of them.
  row = next(x for x in text.splitlines() if 'the target: 0-4' in x)
  assert row.split()[5:9] == ['2', '1.0000', '0.5000', '+0.5000']
  assert 'level with by recall@10, level with by ndcg@10.' in text  # itself


@pytest.mark.parametrize(
  ('place', 'sentence'),
  [(0, 'above by recall@10'), (1, 'below by recall@10')],
)
def test_a_clear_difference_is_called_so(place, sentence):
  runs = [_made([1] * 40), _made([_NOT] * 40)]
  if place:
    runs = runs[::-1]
  found = compare_runs.compare(runs[0], runs[1:], **_BOOT)
  assert sentence in _printed(found)


def test_the_picture_has_a_panel_for_every_run_and_metric():
  found = compare_runs.compare(_BASE, [_OTHER, _BASE], **_BOOT)
  one = compare_figures.differences(found, ['recall@10'])
  assert one[1:4] == b'PNG'
  moved = {**found, 'differences': found['differences'][::-1]}
  assert compare_figures.differences(moved, ['recall@10']) != one


# --- On disk ----------------------------------------------------------------


@pytest.fixture
def pair(tiny_run, copied, tmp_path):
  """Two evaluated copies of one run, which tests may change."""
  experiment, workdir = tiny_run
  first = copied(workdir, tmp_path / 'first')
  first.write_config(config.to_dict(experiment))
  first.finish('evaluate', evaluate.run(experiment, first))
  return first, copied(first, tmp_path / 'second')


def _rewrite(workdir, change):
  """Changes the columns of a run's predictions."""
  path = workdir.root / 'evaluate' / 'predictions.parquet'
  catalog.write_predictions(path, change(catalog.read_predictions(path)))


def test_a_run_is_level_with_itself_in_any_order(pair, capsys):
  first, second = pair
  _rewrite(second, lambda c: {name: v[::-1] for name, v in c.items()})
  found = compare_runs.run(first, [second.root])
  values = found['differences'][0].values()
  assert {(v['mean'], v['low'], v['high']) for v in values} == {(0, 0, 0)}
  evaluated = first.result('evaluate')
  assert evaluated is not None
  for run in found['runs']:
    for name, value in evaluated['metrics']['onerec'].items():
      assert run['metrics'][name]['mean'] == pytest.approx(value['mean'])
  assert 'level with' in capsys.readouterr().out


def test_what_is_written_is_what_was_returned(pair, tmp_path):
  first, second = pair
  found = compare_runs.run(first, [second.root], output=tmp_path / 'x.json')
  kept = first.root / 'evaluate' / compare_runs.RESULT
  assert json.loads(kept.read_text()) == found
  assert json.loads((tmp_path / 'x.json').read_text()) == found
  picture = first.root / 'evaluate' / compare_runs.PICTURE
  assert picture.read_bytes()[1:4] == b'PNG'


def test_items_and_users_are_matched_by_their_original_ids(pair):
  """The second run numbers users and items the other way round."""
  first, second = pair
  count = catalog.num_items(second.data)
  path = second.data / 'items.parquet'
  items = catalog.read_items(second.data)
  items.reverse().with_columns(items['item']).write_parquet(os.fspath(path))
  flip = np.vectorize(lambda i: count - 1 - i if i >= 0 else i)
  _rewrite(
    second,
    lambda c: {
      **c,
      'user': c['user'][::-1],
      'target_items': flip(c['target_items']),
      'items': flip(c['items']),
    },
  )
  found = compare_runs.run(first, [second.root])
  assert found['differences'][0]['recall@10']['mean'] == 0


def test_other_users_are_refused_by_name(pair):
  first, second = pair
  kept = catalog.read_predictions(
    first.root / 'evaluate' / 'predictions.parquet'
  )
  _rewrite(second, lambda c: {name: v[1:] for name, v in c.items()})
  with pytest.raises(ValueError, match='1 and 0 are not in the other') as error:
    compare_runs.run(first, [second.root])
  assert f'{kept["user_id"][0]} -> ' in str(error.value)
  assert 'evaluate.max_examples' in str(error.value)


def test_another_protocol_is_refused(pair):
  first, second = pair
  path = second.root / 'evaluate' / workdir_lib.RESULT
  evaluated = json.loads(path.read_text())
  path.write_text(json.dumps({**evaluated, 'history_excluded': False}))
  with pytest.raises(ValueError, match='history_excluded is True and False'):
    compare_runs.run(first, [second.root])


def test_a_run_without_evaluation_says_which_stage(pair, tmp_path):
  first, _ = pair
  with pytest.raises(FileNotFoundError, match="by the stage 'evaluate'"):
    compare_runs.run(first, [tmp_path / 'nothing'])


def test_what_is_missing_on_the_command_line_is_named(pair):
  first, second = pair
  with pytest.raises(ValueError, match='--against=FOLDER,FOLDER'):
    compare_runs.run(first, [])
  with pytest.raises(ValueError, match=r'must end with \.json'):
    compare_runs.run(first, [second.root], output='x.csv')
