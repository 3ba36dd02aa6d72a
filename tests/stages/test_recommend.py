"""Command recommend: known users, new histories, files, unknown ids."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from onerec_jax.data import catalog
from onerec_jax.stages import recommend


def _run(tiny_run, **changes):
  experiment, workdir = tiny_run
  arguments = {'users': None, 'history': None, 'top_k': 4, 'output': None}
  return recommend.run(experiment, workdir, **{**arguments, **changes})


@pytest.fixture(scope='module')
def names(tiny_run):
  """(user ids, item ids, positives per dense user)."""
  _, workdir = tiny_run
  frame = catalog.read_interactions(workdir.data)
  positives = {
    user: frame.filter((frame['user'] == user) & frame['positive'])[
      'item'
    ].to_list()
    for user in frame['user'].unique().to_list()
  }
  return (
    catalog.read_users(workdir.data)['user_id'].to_list(),
    catalog.item_ids(workdir.data).tolist(),
    positives,
  )


@pytest.fixture(scope='module')
def two_users(tiny_run, names):
  """Rows for the last and the first user, in that order."""
  users, _, _ = names
  return _run(tiny_run, users=[users[-1], users[0]])


def test_known_users_get_ranked_items_in_the_order_asked(two_users, names):
  users, items, _ = names
  assert [r['user_id'] for r in two_users] == [users[-1]] * 4 + [users[0]] * 4
  assert [r['rank'] for r in two_users] == [1, 2, 3, 4] * 2
  assert {r['item_id'] for r in two_users} <= set(items)
  for start in (0, 4):
    scores = [r['score'] for r in two_users[start : start + 4]]
    assert scores == sorted(scores, reverse=True)


def test_nothing_a_user_has_met_is_recommended(two_users, names):
  users, items, positives = names
  for row in two_users:
    met = positives[users.index(row['user_id'])]
    assert items.index(row['item_id']) not in met


def test_a_history_answers_and_prints_like_the_user_who_has_it(
  tiny_run, two_users, names, capsys
):
  # The model has no user token, so that only the history counts.
  _, items, positives = names
  rows = _run(tiny_run, history=[items[i] for i in positives[0]])
  of_user = [r for r in two_users if r['user_id'] != two_users[0]['user_id']]
  assert {r['user_id'] for r in rows} == {recommend.NEW_USER}
  assert [r['item_id'] for r in rows] == [r['item_id'] for r in of_user]
  np.testing.assert_allclose(
    [r['score'] for r in rows], [r['score'] for r in of_user], rtol=1e-5
  )
  shown = capsys.readouterr().out
  for row in rows:
    assert row['item_id'] in shown
    assert f'{row["score"]:.3f}' in shown


@pytest.mark.parametrize('suffix', ['.parquet', '.csv', '.jsonl'])
def test_files_hold_the_returned_rows(tmp_path, suffix):
  rows = [
    {
      'user_id': 'u1',
      'rank': rank,
      'item_id': f'i{rank}',
      'title': 'A "quoted", title, é',
      'score': -0.5 * rank,
    }
    for rank in (1, 2)
  ]
  path = tmp_path / 'new' / f'rows{suffix}'
  recommend.write_rows(path, rows)
  if suffix == '.parquet':
    columns = catalog.read_predictions(path)
    found = [
      {name: type(rows[0][name])(values[i]) for name, values in columns.items()}
      for i in range(2)
    ]
  elif suffix == '.csv':
    with path.open() as file:
      found = [
        {**r, 'rank': int(r['rank']), 'score': float(r['score'])}
        for r in csv.DictReader(file)
      ]
  else:
    found = [json.loads(line) for line in path.read_text().splitlines()]
  assert found == rows


def test_an_unknown_user_is_named_with_the_nearest_known_ones(tiny_run, names):
  users, _, _ = names
  with pytest.raises(ValueError, match='Unknown user id') as error:
    _run(tiny_run, users=[users[3] + 'x'])
  assert f'near: {users[3]}' in str(error.value)


def test_an_unknown_item_is_named_with_the_nearest_known_ones(tiny_run, names):
  _, items, _ = names
  with pytest.raises(ValueError, match='Unknown item id') as error:
    _run(tiny_run, history=[items[0], items[7] + '_'])
  assert repr(items[7] + '_') in str(error.value)
  assert repr(items[0]) not in str(error.value)
  assert items[7] in str(error.value).split('near: ')[1]


@pytest.fixture(scope='module')
def every_item(tiny_run):
  """(experiment whose beams hold the whole catalogue, workdir)."""
  experiment, workdir = tiny_run
  evaluate = dataclasses.replace(
    experiment.evaluate,
    decoding=dataclasses.replace(experiment.evaluate.decoding, num_beams=32),
  )
  return dataclasses.replace(experiment, evaluate=evaluate), workdir


@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_only_listed_items_come(every_item, names, tmp_path, weight):
  """Items 0 and 1 share an ID: to have met 1, unlisted, does not use up 0."""
  _, items, _ = names
  experiment, workdir = every_item
  decoding = dataclasses.replace(
    experiment.evaluate.decoding, transition_weight=weight
  )
  evaluate = dataclasses.replace(experiment.evaluate, decoding=decoding)
  run = dataclasses.replace(experiment, evaluate=evaluate), workdir
  listed = [items[0], *items[5:20:2]]
  file = tmp_path / 'stock.txt'
  file.write_text('\n'.join([*reversed(listed), '', 'not_there_yet']) + '\n')
  asked = {'history': [items[1], items[7], items[8]], 'top_k': len(items)}
  whole = [r['item_id'] for r in _run(run, **asked)]
  found = [r['item_id'] for r in _run(run, **asked, items=file)]
  assert sorted(found) == sorted(set(listed) - {items[7]})
  if not weight:  # counts and model are weighed among what is listed
    assert found == [i for i in whole if i in listed]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, r'missing; expected a text file with an item id a line'),
    ('', r'names none of the 30 items.*it is empty'),
    ('a\nb\n', r'names none of the 30 items of the run, but 2 others \(a, b'),
  ],
)
def test_a_list_of_items_that_says_nothing_is_refused(
  tiny_run, names, tmp_path, text, message
):
  file = tmp_path / 'stock.txt'
  if text is not None:
    file.write_text(text)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    _run(tiny_run, history=names[1][:1], items=file)


def test_free_decoding_cannot_keep_to_a_list(tiny_run, names, tmp_path):
  experiment, workdir = tiny_run
  free = dataclasses.replace(experiment.evaluate.decoding, constrain='none')
  evaluate = dataclasses.replace(experiment.evaluate, decoding=free)
  file = tmp_path / 'stock.txt'
  file.write_text(names[1][3])
  with pytest.raises(ValueError, match=r'decoding\.constrain=trie'):
    _run(
      (dataclasses.replace(experiment, evaluate=evaluate), workdir),
      history=names[1][:1],
      items=file,
    )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, '--users'),
    ({'users': ['a'], 'history': ['b']}, 'one of the two'),
    ({'users': ['a'], 'top_k': 0}, 'top_k=0'),
    ({'users': ['a'], 'output': 'gcs://b/rows.csv'}, r'gcs://, expected'),
    ({'users': ['a'], 'output': 'rows.txt'}, r'\.parquet, \.csv, \.jsonl'),
  ],
)
def test_bad_arguments_say_what_to_type(tiny_run, arguments, message):
  with pytest.raises(ValueError, match=message):
    _run(tiny_run, **arguments)
