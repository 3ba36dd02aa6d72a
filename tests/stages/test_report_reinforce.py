"""Report on reinforcement, and the page of the technical report's system."""

import dataclasses
import json
import math

import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_reinforce
from onerec_jax.stages import report_reinforce_figures as figures

PNG = b'\x89PNG\r\n\x1a\n'
SETTINGS = config.ReinforceConfig(
  group_size=32, user_share=0.25, sync_every_steps=10, rsft_column='watch_time'
)
EXPERIMENT = config.Experiment(
  name='tiny',
  stages=config.TR_STAGES,
  reinforcement=SETTINGS,
  reinforce=config.TrainConfig(batch_size=64, num_steps=40),
)


pytestmark = pytest.mark.usefixtures('coarse_pictures')


def valid(step: int, *, truth: bool = True) -> dict:
  """What validation says: legality falls, then returns."""
  return {
    'valid/legality': {0: 0.97, 20: 0.6, 40: 0.955}[step],
    'valid/users_with_item': 1.0,
    'valid/p_score_mean': 0.3 + 0.001 * step,
    'valid/p_score_pass@8': 0.4 + 0.001 * step,
    'valid/p_score_pass@32': 0.5 + 0.001 * step,
    'valid/ltr_mean': 0.05,
    **({'valid/true_p_score_mean': 0.3 - 0.001 * step} if truth else {}),
  }


def records(**options) -> list[dict]:
  """metrics.jsonl of the stage; the names of objectives/reinforce.py."""
  return [
    {
      'step': step,
      'loss': 1.0,
      'token_loss': 2.0 - 0.01 * step,
      'policy/objective': 0.01,
      'policy/format_objective': 0.9,
      'policy/clip_share': 0.01 * step,
      'policy/early_clip_share': 0.002 * step,
      'policy/zero_advantage_share': 0.1,
      'policy/ratio_mean': 1.0,
      'policy/ratio_p99': 1.0 + 0.1 * step,
      'policy/ratio_max': 1.0 + 10.0 * step,
      'policy/kl_mean': 0.01,
      'policy/kl_p99': 0.2,
      'policy/kl_max': 2.0,
      'policy/log_prob': -6.0,
      'group/legality': 0.96 - 0.005 * step,
      'group/distinct_items': 30.0 - 0.1 * step,
      'group/reward': 0.31,
      'group/best_reward': 0.45,
      'group/true_reward': 0.29,
      'group/reward_std': 0.05,
      **({'valid/token_loss': 1.9} if step % 20 == 0 else {}),
      **(valid(step, **options) if step % 20 == 0 else {}),
    }
    for step in (10, 20, 30, 40)
  ]


def intervals(*, industrial: bool = False) -> list[dict]:
  """What `group_supply` keeps of every sync interval."""
  return [
    {
      'first_step': first,
      'stop_step': first + 10,
      'groups': 160,
      'seconds': {'generate': 2.0, 'log_probs': 1.0, 'score': 0.5},
      'figures': {
        'legality': 0.9,
        'reward': {
          'p_score': {'mean': 0.3 + 0.003 * first, 'best': 0.5},
          'ltr': {'mean': 0.05, 'best': 0.2},
        },
        **(
          {'industrial': {'share': 0.2, 'groups_suppressed': 0.5}}
          if industrial
          else {}
        ),
      },
    }
    for first in (0, 10, 20, 30)
  ]


def reinforce_result() -> dict:
  """Result of the stage `reinforce`, as far as the page reads it."""
  return {
    'loss': 'ecpo',
    'reward': 'p_score',
    'steps': 40,
    'rsft': {'column': 'watch_time', 'examples_before': 900, 'examples': 450},
    'training_seconds': 20.0,
    'compile_seconds': 5.0,
    'validation_seconds': 1.0,
  }


def write_training(workdir, *, made=True, **options) -> None:
  """Writes what the stage leaves while it runs."""
  folder = workdir.stage('reinforce')
  lines = ''.join(json.dumps(r) + '\n' for r in records(**options))
  (folder / 'metrics.jsonl').write_text(lines)
  workdir_lib.write_json(folder / 'before.json', valid(0, **options))
  if made:
    workdir_lib.write_json(folder / 'rollouts.json', {'intervals': intervals()})


def changed(**settings) -> config.Experiment:
  """The experiment with other settings of reinforcement."""
  return dataclasses.replace(
    EXPERIMENT, reinforcement=dataclasses.replace(SETTINGS, **settings)
  )


# --- Pictures ---------------------------------------------------------------


def test_the_pictures_show_what_was_logged(tmp_path, pictures, monkeypatch):
  drawn = {}

  def lines(series, *, label, **options):
    drawn[label, *sorted(series)] = (
      {n: (list(s), list(v)) for n, (s, v, _) in series.items()},
      options,
    )
    return PNG

  monkeypatch.setattr(figures, 'lines', lines)
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir)
  section = report_reinforce.section(
    EXPERIMENT, workdir, reinforce_result(), pictures
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
  tmp_path, pictures, monkeypatch
):
  drawn = {}

  def curves(series, **options):
    drawn[options['label']] = series
    return PNG

  monkeypatch.setattr(report_figures, 'curves', curves)
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir, made=False)
  made = [
    # Nobody of the first interval had a group.
    {'first_step': 0, 'stop_step': 10, 'groups': 0, 'figures': {}},
    *intervals()[1:],
  ]
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json', {'intervals': made}
  )
  report_reinforce.section(EXPERIMENT, workdir, None, pictures)
  assert list(drawn['multiple']) == ['P-Score', 'ltr']
  steps, values = drawn['multiple']['P-Score']
  assert steps == [10, 20, 30]
  assert values == pytest.approx([1, 0.36 / 0.33, 0.39 / 0.33])
  assert drawn['multiple']['ltr'][1] == [1, 1, 1]


def test_suppression_is_shown_where_there_is_any(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir)
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json',
    {'intervals': intervals(industrial=True)},
  )
  section = report_reinforce.section(EXPERIMENT, workdir, None, pictures)
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


def test_the_verdict_tells_first_and_last_validation(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir)
  verdict = report_reinforce.section(EXPERIMENT, workdir, None, pictures)[
    'verdict'
  ]
  assert verdict == (
    'Free decoding for validation users: legality fell from 97.0 % (step 0) to'
    ' 95.5 % (step 40); the predicted reward rose from 0.3000 (step 0) to'
    ' 0.3400 (step 40); the true reward fell from 0.3000 (step 0) to 0.2600'
    ' (step 40). Step 0 is the model before.'
  )
  # Another reward, no law, and no validation before training.
  write_training(workdir, truth=False)
  (workdir.folder('reinforce') / 'before.json').unlink()
  section = report_reinforce.section(
    changed(reward='ltr'), workdir, None, pictures
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


def test_the_settings_that_matter_are_told(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir)
  rows = settings_of(EXPERIMENT, workdir, pictures, reinforce_result())
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
  other = changed(
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
  rows = settings_of(changed(loss='gbpo'), workdir, pictures)
  assert rows['policy loss'] == 'GBPO (ratio per sequence)'
  rows = settings_of(changed(format_choice='top'), workdir, pictures)
  assert rows['format reward'] == '5 of 32 (the most probable)'


def test_seconds_are_split_by_kind(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  write_training(workdir)
  section = report_reinforce.section(
    EXPERIMENT, workdir, reinforce_result(), pictures
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


def test_a_reinforcement_that_was_cut_off_shows_what_it_has(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  assert report_reinforce.section(EXPERIMENT, workdir, None, pictures) is None
  # The first groups are made, no step is logged yet.
  workdir.stage('reinforce')
  workdir_lib.write_json(
    workdir.folder('reinforce') / 'rollouts.json',
    {'intervals': intervals()[:1]},
  )
  section = report_reinforce.section(EXPERIMENT, workdir, None, pictures)
  assert section['summary'] == (
    '0 of 40 steps; 160 groups of 32 items, made in 0:04; the stage is not'
    ' finished.'
  )
  assert section['verdict'] == ''
  assert section['last'] is None
  assert section['names'] == ['reinforce_components']


# --- The page ---------------------------------------------------------------


@pytest.fixture
def page_of(read_page):
  """Function: work directory, results by stage -> the run's page."""

  def make(workdir, **results):
    for stage, result in results.items():
      workdir.stage(stage)
      workdir_lib.write_json(workdir.folder(stage) / 'result.json', result)
    report.run(EXPERIMENT, workdir)
    return read_page((workdir.folder('report') / 'report.html').read_text())

  return make


def figure(mean: float) -> dict:
  return {'mean': mean, 'std': 0.01, 'low': mean - 0.01, 'high': mean + 0.01}


def evaluate_result() -> dict:
  """Result of `evaluate`: ours, ours before, one floor, items of both."""
  titles = {'onerec': 'OneRec + ECPO', 'pretrained': 'OneRec, pre-trained'}
  titles['popularity'] = 'Popularity'
  scores = {
    m: {f'{n}@10': figure(0.2) for n in ('recall', 'ndcg', 'mrr')}
    for m in titles
  }
  columns = {'p_score_mean': 0.1, 'p_score_pass@8': 0.2}
  columns |= {f'true_{c}': 0.0 for c in columns}

  def items(after: int) -> dict:
    return {
      'figures': {c: figure(0.5 + gain * after) for c, gain in columns.items()},
      'difference': {c: figure(gain * after) for c, gain in columns.items()},
      'users': 50,
      'users_without_session': 0,
      'legality': {'free_items': 0.9},
    }

  return {
    'split': 'test',
    'users': 50,
    'candidates': 120,
    'history_excluded': True,
    'num_beams': 20,
    'constrained': 'trie',
    'headline_k': 10,
    'methods': {m: {'title': t, 'description': ''} for m, t in titles.items()},
    'metrics': scores,
    'metrics_by_id': scores,
    'list_quality': {m: {'coverage@10': 0.5} for m in titles},
    'best_floor': 'popularity',
    'difference_to_best_floor': scores['onerec'],
    'difference_to_before': scores['onerec'],
    'legality': 1.0,
    'hypotheses': 400,
    'empty_results': 0,
    'short_results': 0,
    'entropy_per_level': [2.0, 1.0],
    'codes_per_level': [12, 12],
    'slices': {},
    'examples': [],
    'session_rewards': None,
    'item_rewards': {
      'targets': ['p_score'],
      'columns': list(columns),
      'base': 'pretrained',
      'items_per_user': 8,
      'pass_at': [8],
      'resamples': 20,
      'methods': {'onerec': items(1), 'pretrained': items(0)},
    },
  }


def p_score_result() -> dict:
  """Result of `p_score` with a tower that nothing is known of."""
  return {
    'steps': 10,
    'towers': [{'name': 'ltr', 'held_out': {}}],
    'impressions': {},
  }


def embed_result() -> dict:
  """Result of `embed` with an alignment."""
  vectors = {
    name: {'valid': {'examples': 5, 'hit@10': hit, 'ndcg@10': 0.1}}
    for name, hit in (('unaligned', 0.1), ('aligned', 0.2))
  }
  return {
    'alignment': {
      'pairs': {'user_to_item': 3, 'item_to_item': 1},
      'captions': {'used': False},
      'training': {'steps': 10, 'final': {}},
      'quality': {
        'vectors': vectors,
        'aligned_over_unaligned': {
          'valid': {'ratio': 2.0, 'low': 1.5, 'high': 2.5}
        },
        'neighbours': [
          {'item': 'A <b>', 'unaligned': ['B'], 'aligned': ['C', 'D']}
        ],
      },
    },
  }


def write_logs(workdir) -> None:
  """Writes the logs of all trainings, as an interrupted run leaves them."""
  write_training(workdir)
  (workdir.stage('p_score') / 'metrics.jsonl').write_text(
    '{"step": 5, "loss": 2.0}\n{"step": 10, "lo'
  )
  folder = workdir.stage('embed') / 'alignment' / 'abc'
  folder.mkdir(parents=True)
  (folder / 'metrics.jsonl').write_text('{"step": 5, "contrastive": 2.0}\n')


def test_the_page_has_every_section_and_every_picture(tmp_path, page_of):
  workdir = workdir_lib.Workdir(tmp_path)
  write_logs(workdir)
  page = page_of(
    workdir,
    evaluate=evaluate_result(),
    p_score=p_score_result(),
    embed=embed_result(),
    reinforce=reinforce_result(),
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


def test_an_interrupted_run_has_a_page_with_its_curves(tmp_path, page_of):
  workdir = workdir_lib.Workdir(tmp_path)
  write_logs(workdir)
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
def test_what_changed_the_model_is_named_by_the_stages(stages, expected):
  experiment = dataclasses.replace(EXPERIMENT, stages=stages)
  assert report._cause(experiment) == expected
