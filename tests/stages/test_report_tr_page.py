"""Page of a run of the technical report's system."""

import dataclasses

import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report

pytestmark = pytest.mark.usefixtures('coarse_pictures')


@pytest.fixture
def page_of(read_page, reinforced_run):
  """Function: work directory, results by stage -> the run's page."""

  def make(workdir, **results):
    for stage, result in results.items():
      workdir.stage(stage)
      workdir_lib.write_json(workdir.folder(stage) / 'result.json', result)
    report.run(reinforced_run.EXPERIMENT, workdir)
    return read_page((workdir.folder('report') / 'report.html').read_text())

  return make


def test_the_page_has_every_section_and_every_picture(
  reinforced_run, tmp_path, page_of
):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_logs(workdir)
  page = page_of(
    workdir,
    evaluate=reinforced_run.evaluate_result(),
    p_score=reinforced_run.p_score_result(),
    embed=reinforced_run.embed_result(),
    reinforce=reinforced_run.reinforce_result(),
  )
  assert page.open == []
  assert page.headings == [
    'Results',
    'Generated items',
    'Slices',
    'Example users',
    'Reinforcement',
    'P-Score model',
    'Training',
    'Item alignment',
    'Semantic IDs',
    'Data',
    'Run',
  ]
  assert page.jumps == page.sections
  written = list((tmp_path / 'report').glob('*.png'))
  assert len(page.pictures) == len(written)
  assert {p.stem for p in written} >= {
    'pass_at_k',
    'p_score_loss',
    'item_losses',
    'reinforce_legality',
  }
  assert all(len(p['alt']) > 20 for p in page.pictures)
  assert 'A <b>' in page.text  # escaped, not a tag
  # 0.1 and 0 of 0.5 before, ± 0.01.
  assert (
    'Predicted P-Score +20.0 % +18.0 % to +22.0 % by reinforcement' in page.text
  )
  assert 'True P-Score +0.0 % −2.0 % to +2.0 % by reinforcement' in page.text
  assert 'Reinforcement did not clearly change the true P-Score' in page.text
  assert 'warning The predicted P-Score rose' in page.text


def test_an_interrupted_run_has_a_page_with_its_curves(
  reinforced_run, tmp_path, page_of
):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_logs(workdir)
  page = page_of(workdir)
  assert page.open == []
  for heading in ('Reinforcement', 'P-Score model', 'Item alignment'):
    assert heading in page.headings
  assert 'Generated items' not in page.headings
  assert page.jumps == page.sections
  assert page.text.count('not finished') == 3
  assert 'P-Score +' not in page.text  # no card


def test_an_experiment_without_these_stages_shows_none_of_them(
  tmp_path, page_of
):
  page = page_of(workdir_lib.Workdir(tmp_path))
  assert page.headings == [
    'Results', 'Slices', 'Example users', 'Training', 'Semantic IDs', 'Data',
    'Run',
  ]  # fmt: skip
  assert page.pictures == []


@pytest.mark.parametrize(
  ('stages', 'expected'),
  [
    (config.TR_STAGES, 'Reinforcement'),
    (config.V1_STAGES, 'Alignment'),
    ((*config.V1_STAGES, 'reinforce'), 'Alignment and reinforcement'),
    (config.BASE_STAGES, 'Further training'),
  ],
)
def test_what_changed_the_model_is_named_by_the_stages(
  reinforced_run, stages, expected
):
  experiment = dataclasses.replace(reinforced_run.EXPERIMENT, stages=stages)
  assert report._cause(experiment) == expected
