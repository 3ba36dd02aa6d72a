"""Stage report: complete, self-contained, and never in the way."""

import dataclasses
import json
import re

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import evaluate
from onerec_jax.stages import report
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_words

PNG = b'\x89PNG\r\n\x1a\n'
_RECORDS = [
  {
    'step': step,
    'loss': 5.0 / step,
    'router/load': [[0.5, 0.5], [0.9, 0.1]],
    'router/max_violation': 0.4,
    **(
      {
        'valid/loss': 6.0 / step,
        'valid/recall@10': 0.01 * step,
        'valid/accuracy/level_0': 0.1,
        'valid/accuracy/level_1': 0.2,
      }
      if step % 2 == 0
      else {}
    ),
  }
  for step in range(1, 7)
]


@pytest.fixture(scope='module')
def full_page(tiny_run, read_page):
  """(workdir, result, page) of a run in which every stage has a result."""
  experiment, workdir = tiny_run
  workdir.finish('evaluate', evaluate.run(experiment, workdir))
  workdir.finish('pretrain', {'steps': 6, 'num_parameters': 2_431_232})
  lines = ''.join(json.dumps(r) + '\n' for r in _RECORDS)
  (workdir.root / 'pretrain' / 'metrics.jsonl').write_text(lines)
  result = report.run(experiment, workdir)
  text = (workdir.root / 'report' / 'report.html').read_text()
  yield workdir, result, read_page(text)
  for stage in ('evaluate', 'pretrain'):
    (workdir.root / stage / 'result.json').unlink()


def test_the_page_is_well_formed_and_holds_every_picture(full_page):
  workdir, result, page = full_page
  assert page.open == []
  assert result['pictures'] == [
    'accuracy',
    'codes',
    'entropy',
    'load',
    'loss',
    'recall',
    'recall_curve',
    'slice_0',
    *(['slice_1'] if 'slice_1' in result['pictures'] else []),
    'violation',
  ]
  assert len(page.pictures) == len(result['pictures'])
  for name in result['pictures']:
    data = (workdir.root / 'report' / f'{name}.png').read_bytes()
    assert data.startswith(PNG)


def test_the_page_refers_to_nothing_outside(full_page):
  workdir, _, page = full_page
  text = (workdir.root / 'report' / 'report.html').read_text()
  assert not re.search(r'https?://|file:|<script|@import|url\(', text)
  for link in page.links:
    assert link.startswith(('data:image/png;base64,', '#'))


def test_every_picture_has_a_text_in_its_place(full_page):
  _, _, page = full_page
  for picture in page.pictures:
    assert len(picture['alt']) > 20


def test_the_page_shows_figures_users_and_times(full_page):
  workdir, _, page = full_page
  result = workdir.result('evaluate')
  recall = result['metrics']['onerec']['recall@10']
  assert f'{recall["mean"]:.4f}' in page.text
  for method in result['methods'].values():
    assert method['title'] in page.text
  for user in result['examples']:
    for shown in (*user['history'], *user['targets'], *user['recommended']):
      assert shown['title'] in page.text
  assert '2.43 M' in page.text  # parameters
  assert '1.5 s' in page.text  # seconds of the stage prepare
  assert 'Not run' not in page.text


def test_a_second_report_is_the_same_but_for_nothing(tiny_run, full_page):
  experiment, workdir = tiny_run
  path = workdir.root / 'report' / 'loss.png'
  before = path.read_bytes()
  report.run(experiment, workdir)
  assert path.read_bytes() == before


def test_an_empty_work_directory_gives_a_page_that_says_so(
  tiny_run, tmp_path, read_page
):
  experiment, _ = tiny_run
  result = report.run(experiment, workdir_lib.Workdir(tmp_path))
  page = read_page((tmp_path / 'report' / 'report.html').read_text())
  assert result['pictures'] == []
  assert page.open == []
  for stage in ('evaluate', 'pretrain', 'tokenize', 'prepare'):
    assert f'from the stage {stage}' in page.text


def test_a_run_that_was_cut_off_shows_the_curves_it_has(tiny_run, tmp_path):
  experiment, _ = tiny_run
  workdir = workdir_lib.Workdir(tmp_path)
  lines = json.dumps({'step': 1, 'loss': 2.0}) + '\n{"step": 2, "lo'
  (workdir.stage('pretrain') / 'metrics.jsonl').write_text(lines)
  assert report.run(experiment, workdir)['pictures'] == ['loss']


def test_only_stages_of_the_experiment_are_listed(
  tiny_run, tmp_path, read_page
):
  experiment, _ = tiny_run
  text = {}
  for name, stages in (
    ('without', config.BASE_STAGES),
    ('with', config.V1_STAGES),
  ):
    workdir = workdir_lib.Workdir(tmp_path / name)
    report.run(dataclasses.replace(experiment, stages=stages), workdir)
    page = read_page((tmp_path / name / 'report' / 'report.html').read_text())
    text[name] = page.text
  for stage in ('reward', 'align'):
    assert f'{stage} not run' not in text['without']
    assert f'{stage} not run' in text['with']
  assert 'pretrain not run' in text['without']


def test_titles_cannot_inject_markup(tiny_run, full_page, tmp_path):
  experiment, whole = tiny_run
  workdir = workdir_lib.Workdir(tmp_path)
  result = whole.result('evaluate')
  result['examples'][0]['history'][0]['title'] = '<script>alert(1)</script>'
  workdir.finish('evaluate', result)
  report.run(experiment, workdir)
  text = (tmp_path / 'report' / 'report.html').read_text()
  assert '<script>' not in text
  assert '&lt;script&gt;' in text


def test_a_model_that_ranks_items_has_neither_levels_nor_hypotheses(
  tiny_run, full_page, tmp_path, read_page
):
  experiment, whole = tiny_run
  workdir = workdir_lib.Workdir(tmp_path)
  workdir.finish(
    'evaluate', {**whole.result('evaluate'), 'entropy_per_level': []}
  )
  result = report.run(experiment, workdir)
  page = read_page((tmp_path / 'report' / 'report.html').read_text())
  assert 'entropy' not in result['pictures'] and 'recall' in result['pictures']
  assert 'Every item of the catalogue was ranked' in page.text
  assert 'hypotheses' not in page.text
  assert page.open == []


@pytest.mark.parametrize(
  ('value', 'expected'),
  [(None, '–'), (999, '999'), (2_431_232, '2.43 M'), (1.2e9, '1.2 G')],
)
def test_large_numbers_are_shortened(value, expected):
  assert report_words.compact(value) == expected


@pytest.mark.parametrize(
  ('metric', 'expected'),
  [('recall@10', 'Recall@10'), ('ndcg@5', 'NDCG@5'), ('mrr@1', 'MRR@1')],
)
def test_metrics_are_named_as_in_papers(metric, expected):
  assert report_words.label(metric) == expected


def test_pictures_survive_flat_empty_and_single_values():
  zero = {'mean': 0.0, 'low': 0.0, 'high': 0.0}
  pictures = [
    report_figures.curves({'a': ([1], [0.0])}, label='y'),
    report_figures.curves({'a': ([1, 2], [0.0, 1.0])}, label='y', breaks=[1]),
    report_figures.method_bars([('a', zero)], ours='a', label='x'),
    report_figures.slice_bars(
      [{'slice': '0', 'users': 0, 'methods': {}}],
      methods={'a': 'A'},
      metric='recall@10',
      label='y',
    ),
    report_figures.code_usage([[0, 0], [3, 1]]),
    report_figures.expert_load(np.zeros((1, 2)).tolist()),
    report_figures.entropy_bars([0.0], [4]),
  ]
  for png in pictures:
    assert png.startswith(PNG)
