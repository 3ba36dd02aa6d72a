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
  """{name: run} that stands for all kept runs; Sports has one of each."""
  real = measured_runs.read
  names = ('onerec_amazon_sports', 'sasrec_sports')
  runs = {name: real(name) for name in names}
  monkeypatch.setattr(measured_runs, 'read', runs.get)
  return runs


def _sweep():
  run = json.loads(_KEPT.read_text())
  first, second = run['sweep']['rows'][0]['training']
  first['curve'] = [[1, 10, 0.2], [2, 20, 0.4], [3, 30, 0.6]]
  second['curve'] = [[1, 10, 0.4], [2, 20, 0.6]]
  return run


def test_runs_of_each_recipe_are_one_seed(kept):
  found = amazon_figures.read('Sports')
  assert found is not None
  assert found.seeds == 1
  assert list(found.ours) == ['OneRec + transitions', 'OneRec alone']
  assert list(found.sasrec) == ['SASRec + transitions', 'SASRec alone']
  assert 'Popularity' in found.floors
  assert not set(found.floors) & {*found.ours, *found.sasrec}
  evaluated = kept['onerec_amazon_sports']['stages']['evaluate']
  assert found.best_floor() == evaluated['metrics'][evaluated['best_floor']]
  assert list(found.curves) == ['OneRec', 'SASRec']


def test_without_the_baseline_there_are_no_figures_of_it(kept):
  kept['sasrec_sports'] = None
  found = amazon_figures.read('Sports')
  assert found is not None
  assert not found.sasrec
  assert list(found.curves) == ['OneRec']


@pytest.mark.parametrize(
  'name', ['public_benchmark_sports', 'public_benchmark_sports_cpu']
)
def test_the_sweep_over_seeds_goes_before_single_runs(kept, name):
  kept[name] = _sweep()
  found = amazon_figures.read('Sports')
  assert found is not None
  assert found.seeds == 2
  rows = {r['name']: r['figures'] for r in kept[name]['sweep']['rows']}
  assert found.ours == {'OneRec + transitions': rows['OneRec']}
  assert found.sasrec == {'SASRec alone': rows['SASRec, cross-entropy']}
  assert list(found.floors) == ['Popularity', 'Co-occurrence']
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


def test_what_was_not_measured_has_no_figures(kept):
  assert kept.get('onerec_amazon_beauty') is None
  assert amazon_figures.read('Beauty') is None
