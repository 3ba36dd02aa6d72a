"""Section of a report on reinforcement."""

import math

import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_reinforce
from onerec_jax.stages import report_reinforce_figures as figures

PNG = b'\x89PNG\r\n\x1a\n'

pytestmark = pytest.mark.usefixtures('coarse_pictures')


# --- Pictures ---------------------------------------------------------------


def test_the_pictures_show_what_was_logged(
  reinforced_run, tmp_path, pictures, monkeypatch
):
  drawn = {}

  def lines(series, *, label, **options):
    drawn[label, *sorted(series)] = (
      {n: (list(s), list(v)) for n, (s, v, _) in series.items()},
      options,
    )
    return PNG

  monkeypatch.setattr(figures, 'lines', lines)
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir)
  section = report_reinforce.section(
    reinforced_run.EXPERIMENT,
    workdir,
    reinforced_run.reinforce_result(),
    pictures,
  )
  assert section['names'] == [
    'reinforce_legality',
    'reinforce_reward',
    'reinforce_group_reward',
    'reinforce_components',
    'reinforce_clip',
    'reinforce_ratio',
    'reinforce_kl',
    'reinforce_distinct',
    'reinforce_loss',
  ]
  found = {key[1:]: series for key, (series, _) in drawn.items()}
  # Validation begins with the model before.
  legality = found['groups', 'validation, free decoding']
  assert legality['validation, free decoding'] == (
    [0, 20, 40],
    [0.97, 0.6, 0.955],
  )
  assert legality['groups'][0] == [10, 20, 30, 40]
  reward = found['mean', 'mean, true', 'pass@32']
  assert reward['mean'][1] == pytest.approx([0.3, 0.32, 0.34])
  assert reward['mean, true'][1] == pytest.approx([0.3, 0.28, 0.26])
  assert reward['pass@32'][1] == pytest.approx([0.5, 0.52, 0.54])
  clip = found['clipped', 'early-clipped (A < 0)', 'groups without spread']
  assert clip['clipped'][1] == pytest.approx([0.1, 0.2, 0.3, 0.4])
  assert clip['early-clipped (A < 0)'][1][-1] == pytest.approx(0.08)
  assert clip['groups without spread'][1] == [0.1] * 4
  ratio, options = drawn['ratio', '99th percentile', 'largest', 'mean']
  assert ratio['largest'][1][-1] == 401.0
  assert ratio['99th percentile'][1][-1] == 5.0
  assert options['levels'] == {'1 + ε = 1.2': 1.2}
  assert found['99th percentile', 'largest', 'mean'] is not None
  assert found[('distinct items',)]['distinct items'][1][-1] == 26.0
  assert found['training', 'validation']['validation'] == (
    [20, 40],
    [1.9, 1.9],
  )
  alt = pictures.found['reinforce_legality']['alt']
  assert alt.endswith(
    'groups 0.91 and 0.76, validation, free decoding 0.97 and 0.955'
  )


def test_components_are_multiples_of_the_first_groups(
  reinforced_run, tmp_path, pictures, monkeypatch
):
  drawn = {}

  def curves(series, **options):
    drawn[options['label']] = series
    return PNG

  monkeypatch.setattr(report_figures, 'curves', curves)
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir, made=False)
  made = [
    # Nobody of the first interval had a group.
    {'first_step': 0, 'stop_step': 10, 'groups': 0, 'figures': {}},
    *reinforced_run.intervals()[1:],
  ]
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json', {'intervals': made}
  )
  report_reinforce.section(reinforced_run.EXPERIMENT, workdir, None, pictures)
  assert list(drawn['multiple']) == ['P-Score', 'ltr']
  steps, values = drawn['multiple']['P-Score']
  assert steps == [10, 20, 30]
  assert values == pytest.approx([1, 0.36 / 0.33, 0.39 / 0.33])
  assert drawn['multiple']['ltr'][1] == [1, 1, 1]


def test_suppression_is_shown_where_there_is_any(
  reinforced_run, tmp_path, pictures
):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir)
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json',
    {'intervals': reinforced_run.intervals(industrial=True)},
  )
  section = report_reinforce.section(
    reinforced_run.EXPERIMENT, workdir, None, pictures
  )
  assert section['names'][-1] == 'reinforce_industrial'
  alt = pictures.found['reinforce_industrial']['alt']
  assert 'share of generated items 0.2 and 0.2' in alt


def test_lines_far_apart_have_a_log_axis():
  assert figures._spans([1.0, 40.0])
  assert not figures._spans([1.0, 20.0])
  assert not figures._spans([0.0, 40.0])
  assert not figures._spans([None, math.nan])


def test_pictures_survive_single_flat_and_unknown_values():
  tone = figures.MAIN
  for values in ([0.0], [None], [1e-6], [5e8]):
    assert figures.lines({'a': ([1], values, tone)}, label='y').startswith(PNG)
  png = figures.lines(
    {'a': ([1, 2], [1.0, 1e6], tone), 'b': ([1], [2.0], figures.TRUE_BEST)},
    label='y',
    levels={'1 + ε': 1.2},
  )
  assert png.startswith(PNG)


# --- Words and tables -------------------------------------------------------


def test_the_verdict_tells_first_and_last_validation(
  reinforced_run, tmp_path, pictures
):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir)
  verdict = report_reinforce.section(
    reinforced_run.EXPERIMENT, workdir, None, pictures
  )['verdict']
  assert verdict == (
    'Free decoding for validation users: legality fell from 97.0 % (step 0) to'
    ' 95.5 % (step 40); the predicted reward rose from 0.3000 (step 0) to'
    ' 0.3400 (step 40); the true reward fell from 0.3000 (step 0) to 0.2600'
    ' (step 40). Step 0 is the model before.'
  )
  # Another reward, no law, and no validation before training.
  reinforced_run.write_training(workdir, truth=False)
  (workdir.folder('reinforce') / 'before.json').unlink()
  section = report_reinforce.section(
    reinforced_run.changed(reward='ltr'), workdir, None, pictures
  )
  assert section['verdict'] == (
    'Free decoding for validation users: legality rose from 60.0 % (step 20) to'
    ' 95.5 % (step 40); the predicted reward stayed from 0.0500 (step 20) to'
    ' 0.0500 (step 40).'
  )


def settings_of(experiment, workdir, pictures, result=None) -> dict:
  """The table of settings by name; what stands small in brackets."""
  table = report_reinforce.section(experiment, workdir, result, pictures)[
    'settings'
  ]
  return {
    name: f'{cell["text"]} ({cell["small"]})' if cell['small'] else cell['text']
    for name, cell in (row['cells'] for row in table['rows'])
  }


def test_the_settings_that_matter_are_told(reinforced_run, tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir)
  rows = settings_of(
    reinforced_run.EXPERIMENT,
    workdir,
    pictures,
    reinforced_run.reinforce_result(),
  )
  assert list(rows.items()) == [
    ('policy loss', 'ECPO (ratio per sequence, ε = 0.2, δ = 0.1)'),
    ('reward', 'P-Score'),
    ('weights', 'λ_rl = 1, λ_fmt = 1'),
    ('groups', '32 items (for 25 % of the samples)'),
    ('rollouts', 'the best by beam search'),
    ('constraint', 'none (illegal IDs are seen)'),
    ('generator', 'current policy (synchronised every 10 steps)'),
    ('format reward', '5 of 32 (at random)'),
    ('RSFT drops', 'lowest 50 % of sessions (by watch_time)'),
    ('RSFT examples', '450 of 900'),
    ('training', '40 steps of 64 samples (learning rate 0.0002)'),
  ]
  other = reinforced_run.changed(
    loss='grpo', kl_weight=0.1, rollouts='sample', sample_top_k=20,
    sample_top_p=0.9, temperature=0.8, constrain='trie',
    generator='pretrained', format_weight=0.0, rsft_column=None,
    reward='ltr', industrial=config.IndustrialRewardConfig(categories=('ad',)),
  )  # fmt: skip
  rows = settings_of(other, workdir, pictures)
  assert list(rows.items()) == [
    ('policy loss', 'GRPO (ratio per sequence, ε = 0.2, β = 0.1)'),
    ('reward', 'ltr'),
    ('weights', 'λ_rl = 1, λ_fmt = 0'),
    ('groups', '32 items (for 25 % of the samples)'),
    ('rollouts', 'drawn at random (temperature 0.8, top-k 20, top-p 0.9)'),
    ('constraint', 'trie'),
    ('generator', 'the model before (off-policy)'),
    ('format reward', 'none'),
    ('RSFT drops', 'nothing'),
    ('suppressed: ad', 'reward × 0.5 (above a share of 10 %)'),
    ('training', '40 steps of 64 samples (learning rate 0.0002)'),
  ]
  rows = settings_of(reinforced_run.changed(loss='gbpo'), workdir, pictures)
  assert rows['policy loss'] == 'GBPO (ratio per sequence)'
  rows = settings_of(
    reinforced_run.changed(format_choice='top'), workdir, pictures
  )
  assert rows['format reward'] == '5 of 32 (the most probable)'


def test_seconds_are_split_by_kind(reinforced_run, tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  reinforced_run.write_training(workdir)
  section = report_reinforce.section(
    reinforced_run.EXPERIMENT,
    workdir,
    reinforced_run.reinforce_result(),
    pictures,
  )
  # Four intervals of 2, 1 and 0.5 s; 20, 5 and 1 s; 40 s in all.
  assert [r['cells'] for r in section['seconds']['rows']] == [
    ['rollouts: generate', '8.0 s', '20.0 %'],
    ['rollouts: log-probs', '4.0 s', '10.0 %'],
    ['rollouts: score', '2.0 s', '5.0 %'],
    ['training', '20.0 s', '50.0 %'],
    ['compile', '5.0 s', '12.5 %'],
    ['validation', '1.0 s', '2.5 %'],
  ]
  assert section['summary'] == (
    '40 of 40 steps; 640 groups of 32 items, made in 0:14.'
  )
  rows = {r['cells'][0]: r['cells'][1:] for r in section['last']['rows']}
  assert rows['groups without spread'] == ['10.0 %', '10.0 %']
  assert rows['distinct IDs per group of 32'] == ['29.0', '26.0']
  assert rows['log-probability of an output, nats'] == ['−6.00', '−6.00']


def test_a_reinforcement_that_was_cut_off_shows_what_it_has(
  reinforced_run, tmp_path, pictures
):
  workdir = workdir_lib.Workdir(tmp_path)
  assert (
    report_reinforce.section(reinforced_run.EXPERIMENT, workdir, None, pictures)
    is None
  )
  # The first groups are made, no step is logged yet.
  workdir.stage('reinforce')
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json',
    {'intervals': reinforced_run.intervals()[:1]},
  )
  section = report_reinforce.section(
    reinforced_run.EXPERIMENT, workdir, None, pictures
  )
  assert section['summary'] == (
    '0 of 40 steps; 160 groups of 32 items, made in 0:04; the stage is not'
    ' finished.'
  )
  assert section['verdict'] == ''
  assert section['last'] is None
  assert section['names'] == ['reinforce_components']
