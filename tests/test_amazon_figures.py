"""The figures that headline and picture take are those of the best source."""

import json
import pathlib

import pytest

from experiments import amazon_figures
from experiments import headlines
from experiments import measured_runs

_KEPT = pathlib.Path(__file__).parent / 'next_item_sweep.json'


@pytest.fixture(name='kept')
def fixture_kept(monkeypatch):
  """{name: run} that stands for all kept runs, empty."""
  runs = {}
  monkeypatch.setattr(measured_runs, 'read', runs.get)
  return runs


def _sweep():
  run = json.loads(_KEPT.read_text())
  first, second = run['sweep']['rows'][0]['training']
  first['curve'] = [[1, 10, 0.2], [2, 20, 0.4], [3, 30, 0.6]]
  second['curve'] = [[1, 10, 0.4], [2, 20, 0.6]]
  return run


@pytest.mark.parametrize(
  'name', ['public_benchmark_sports', 'public_benchmark_sports_cpu']
)
def test_figures_are_those_of_the_sweep(kept, name):
  kept[name] = _sweep()
  found = amazon_figures.read('Sports')
  assert found is not None
  assert found.seeds == 2
  rows = {r['name']: r['figures'] for r in kept[name]['sweep']['rows']}
  assert found.ours == {'OneRec + transitions': rows['OneRec']}
  assert found.sasrec == {'SASRec alone': rows['SASRec, cross-entropy']}
  assert list(found.floors) == ['Popularity', 'Co-occurrence']
  assert found.best_floor() == max(
    found.floors.values(), key=lambda f: f['recall@10']['mean']
  )
  assert list(found.curves) == ['OneRec', 'SASRec']
  examples, recalls = found.curves['OneRec']
  assert examples == [10, 20]
  assert recalls == pytest.approx([0.3, 0.5])
  line = next(x for x in headlines.table().splitlines() if 'Sports' in x)
  assert line.endswith('2 seeds |')


def test_the_whole_benchmark_goes_before_that_of_a_cpu(kept):
  kept['public_benchmark_sports'] = _sweep()
  kept['public_benchmark_sports_cpu'] = _sweep()
  kept['public_benchmark_sports']['sweep']['seeds'] = [0, 1, 2]
  found = amazon_figures.read('Sports')
  assert found is not None
  assert found.seeds == 3


def test_without_the_baseline_there_are_no_figures_of_it(kept):
  run = kept['public_benchmark_sports'] = _sweep()
  rows = run['sweep']['rows']
  rows[:] = [row for row in rows if not row['name'].startswith('SASRec')]
  found = amazon_figures.read('Sports')
  assert found is not None
  assert not found.sasrec
  assert list(found.curves) == ['OneRec']


@pytest.mark.usefixtures('kept')
def test_what_was_not_measured_has_no_figures():
  assert amazon_figures.read('Beauty') is None
