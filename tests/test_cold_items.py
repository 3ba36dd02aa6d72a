"""Items taken out of Beauty: nothing of them is seen before they are added."""

import json

import numpy as np
import pytest

from experiments import cold_items
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog

_USERS, _ITEMS = 40, 60


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A small Beauty: items of three kinds, users who stay with one."""
  folder = tmp_path_factory.mktemp('beauty')
  rng = np.random.default_rng(0)
  lines = []
  for user in range(1, _USERS + 1):
    own = np.arange(user % 3, _ITEMS, 3) + 1
    items = rng.permutation(own)[:8]
    lines.append(' '.join(map(str, [user, *items.tolist()])))
  (folder / 'Beauty.sequences.txt').write_text('\n'.join(lines))
  words = ('lipstick gloss', 'hair comb', 'nail polish')
  rows = [
    {
      'id': i,
      'asin': f'B{i:03d}',
      'title': f'{words[(i - 1) % 3]} number{i % 5}',
      'categories': ['Beauty'],
    }
    for i in range(1, _ITEMS + 1)
  ]
  (folder / 'Beauty.items.jsonl').write_text(
    '\n'.join(json.dumps(row) for row in rows)
  )
  return folder


def test_what_is_taken_out_is_in_no_file_but_the_table(source, tmp_path):
  cases = cold_items.split(source, tmp_path, seed=0)
  table = cold_items.pl.read_parquet(tmp_path / 'new.parquet')
  new = set(table['item_id'].to_list())
  assert len(new) == _ITEMS // 10
  assert table['text'].null_count() == 0
  for name in ('Beauty.sequences.txt', 'Beauty.items.jsonl'):
    text = (tmp_path / name).read_text()
    assert not any(item in text for item in new)
  assert len(cases.cold) + len(cases.warm) == _USERS
  assert {case.target for case in cases.cold} <= new
  assert not {case.target for case in cases.warm} & new
  whole = dict(
    line.split(' ', 1)
    for line in (source / 'Beauty.sequences.txt').read_text().splitlines()
  )
  reduced = (tmp_path / 'Beauty.sequences.txt').read_text().splitlines()
  for line, case in zip(reduced, _in_order(cases, whole), strict=True):
    user, *items = line.split(' ')
    names = [f'B{int(i):03d}' for i in whole[user].split(' ')]
    assert items == [i for i in names if i not in new]
    assert case.target == names[-1]
    assert case.history == [i for i in names[:-1] if i not in new]


def _in_order(cases, whole):
  """Returns the cases in the order of the users."""
  by_target = {(c.target, *c.history): c for g in cases for c in g}
  new = {c.target for c in cases.cold}
  for items in whole.values():
    names = [f'B{int(i):03d}' for i in items.split(' ')]
    key = next(
      k
      for k in by_target
      if k[0] == names[-1] and set(k[1:]) <= set(names[:-1])
    )
    assert (key[0] in new) == (by_target[key] in cases.cold)
    yield by_target[key]


def test_figures_are_of_the_right_users():
  cases = cold_items.Cases(
    cold=[cold_items.Case(['a'], 'n1'), cold_items.Case(['b'], 'n2')],
    warm=[cold_items.Case(['a'], 'c')],
  )
  tail = [f'x{i}' for i in range(20)]
  lists = cold_items.Lists(
    cold=[['n1', 'c'], [*tail, 'n2']], warm=[['n1', 'd', 'n2', *tail]]
  )
  found = cold_items.figures(lists, cases, {'n1', 'n2'})
  means = {name: figure['mean'] for name, figure in found.items()}
  assert means == {
    'cold/recall@10': 0.5,
    'cold/recall@50': 1.0,
    'warm/recall@10': 0.0,
    'warm/recall@50': 0.0,
    'warm/new@10': 2.0,
  }


def test_every_way_is_measured_from_end_to_end(source, tmp_path):
  found = cold_items.measure(source, tmp_path, steps=2, seed=0, toy=True)
  ways = found['figures']
  assert list(ways) == ['before', 'shared', 'own', 'nearest']
  # What was not added is never listed.
  for name in ('cold/recall@10', 'cold/recall@50', 'warm/new@10'):
    assert ways['before'][name]['mean'] == 0
  for way in ('shared', 'own', 'nearest'):
    assert ways[way]['warm/new@10']['mean'] > 0
  # Three kinds of some twenty items: the nearest are of the right kind.
  assert ways['nearest']['cold/recall@50']['mean'] > 0.5
  assert found['new_items'] == 6
  workdir = workdir_lib.Workdir(tmp_path)
  assert found['items'] == catalog.num_items(workdir.data)
  assert found['users']['cold'] + found['users']['warm'] == _USERS
