"""The committed reports of the recipes, and the table made of them."""

import json

import pytest

from experiments import paper_sizes
from onerec_jax import accelerators
from onerec_jax.aot import flags
from onerec_jax.aot import table

_REPORTS = table.read(sorted(table.FOLDER.glob('*.json')))


def _name(report):
  return f'{report["experiment"]}-{report["mode"]}-{report["topology"]}'


def test_reports_are_of_published_sizes():
  published = {name.replace(':', '_') for name in paper_sizes.published()}
  assert {report['experiment'] for report in _REPORTS} <= published


@pytest.mark.parametrize('report', _REPORTS, ids=_name)
def test_a_recipe_fits_and_does_nothing_that_it_should_not(report):
  found = report['findings']
  assert report['fits']
  assert report['memory']['used'] < report['hbm_bytes']
  assert not found['expert_weight_gathers']
  assert not found['score_arrays']
  assert not found['beam_state_arrays']
  assert not found['wide_float_sorts']
  assert not found['unknown_loops']


@pytest.mark.parametrize('report', _REPORTS, ids=_name)
def test_a_report_was_made_with_flags_that_are_shipped(report):
  generation = accelerators.tpu_slice(report['topology']).generation
  assert report['flags']
  assert report['flags'].items() <= flags.read(generation.name).items()


def test_reports_are_read_recipe_by_recipe_small_sizes_first(tmp_path):
  def put(name, **changes):
    (tmp_path / name).write_text(json.dumps(_REPORTS[0] | changes))

  put('a.json', experiment='x_paper_1b', num_parameters=10, mode='dpo')
  put('b.json', experiment='x_paper_0.1b', num_parameters=1, mode='train')
  put('c.json', experiment='x_paper_1b', num_parameters=10, mode='train')
  put('d.json', experiment='w_paper_2b', num_parameters=20, mode='train')
  got = table.read(tmp_path.glob('*.json'))
  assert [(r['experiment'], r['mode']) for r in got] == [
    ('w_paper_2b', 'train'),
    ('x_paper_0.1b', 'train'),
    ('x_paper_1b', 'train'),
    ('x_paper_1b', 'dpo'),
  ]


def test_a_compilation_that_optimises_less_says_so():
  row = table.markdown([_REPORTS[0] | {'optimization_level': 'O1'}])
  assert ' s, O1 |' in row
