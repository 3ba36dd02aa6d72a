"""Report of a run with preference alignment: its rounds, and its page."""

import io
import math

import pytest
from matplotlib import colors
from matplotlib import image

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report
from onerec_jax.stages import report_alignment
from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_reward
from onerec_jax.stages import report_session_rewards

PNG = b'\x89PNG\r\n\x1a\n'
pytestmark = pytest.mark.usefixtures('coarse_pictures')


@pytest.fixture
def aligned(tmp_path, aligned_run):
  """A work directory in which three rounds were logged."""
  workdir = workdir_lib.Workdir(tmp_path)
  aligned_run.write_rounds(workdir)
  return workdir


@pytest.fixture
def page_of(tiny_run, tmp_path, read_page):
  """Function: results by stage -> the run's page."""
  experiment, _ = tiny_run
  workdir = workdir_lib.Workdir(tmp_path)

  def make(**results):
    for stage, result in results.items():
      workdir.stage(stage)
      workdir_lib.write_json(workdir.folder(stage) / 'result.json', result)
    report.run(experiment, workdir)
    return read_page((tmp_path / 'report' / 'report.html').read_text())

  return make


def has_colour(png: bytes, colour: str) -> bool:
  """Whether any pixel of a picture has this colour."""
  pixels = image.imread(io.BytesIO(png))[..., :3]
  return bool((abs(pixels - colors.to_rgb(colour)).max(axis=-1) < 0.02).any())


# --- The page -----------------------------------------------------------------


def test_an_aligned_run_shows_every_section_and_all_pictures(
  aligned_run, page_of, aligned, tmp_path
):
  page = page_of(
    evaluate=aligned_run.evaluate_result(),
    align=aligned_run.align_result(),
    reward=aligned_run.reward_result(),
  )
  assert page.open == []
  assert page.headings == [
    'Results',
    'Session rewards',
    'Prediction dynamics',
    'Slices',
    'Example users',
    'Alignment',
    'Reward model',
    'Training',
    'Semantic IDs',
    'Data',
    'Run',
  ]
  written = sorted(p.stem for p in (tmp_path / 'report').glob('*.png'))
  assert written == [
    'align_loss',
    'align_reward',
    'calibration',
    'dynamics_0',
    'dynamics_1',
    'dynamics_2',
    'dynamics_3',
    'entropy',
    'preference_accuracy',
    'preference_loss',
    'preference_margin',
    'recall',
    'round_rewards',
    'round_seconds',
    'session_rewards',
    'slice_0',
  ]
  assert len(page.pictures) == len(written)
  assert all(len(p['alt']) > 20 for p in page.pictures)
  assert 'Item <2>' in page.text  # escaped, not a tag


def test_the_model_before_alignment_is_no_floor(aligned_run, page_of):
  page = page_of(evaluate=aligned_run.evaluate_result())
  assert 'OneRec + IPA is above the best counting floor (Popularity)' in (
    page.text
  )
  assert 'Further training did not clearly change Recall@10: −0.0100' in (
    page.text
  )
  assert 'trie), 99.12 % before further training.' in page.text
  # Its place in the table is below ours, above any floor.
  first, second, third = (
    page.text.index(f'about {m}') for m in ('onerec', 'pretrained', 'popular')
  )
  assert first < second < third


def test_the_model_before_alignment_has_a_colour_of_its_own():
  interval = {'mean': 0.5, 'low': 0.4, 'high': 0.6}
  rows = [(n, interval) for n in ('ours', 'before', 'floor')]
  options = {'ours': 'ours', 'label': 'x'}
  light = report_canvas.BEFORE
  assert has_colour(
    report_figures.method_bars(rows, before='before', **options), light
  )
  assert not has_colour(report_figures.method_bars(rows, **options), light)


def test_a_run_without_alignment_shows_none_of_it(aligned_run, page_of):
  result = aligned_run.evaluate_result()
  for key in (
    'session_rewards',
    'difference_to_before',
    'legality_by_model',
  ):
    del result[key]
  for key in ('methods', 'metrics', 'metrics_by_id', 'list_quality'):
    result[key].pop('pretrained', None)  # two are one object
  page = page_of(evaluate=result)
  assert page.headings == [
    'Results',
    'Slices',
    'Example users',
    'Training',
    'Semantic IDs',
    'Data',
    'Run',
  ]
  for word in ('lignment', 'reward', 'Light:', 'dynamics'):
    assert word not in page.text.partition('All settings')[0]


def test_sections_are_absent_where_nothing_has_run(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path / 'empty')
  assert report_reward.section(None, [], pictures) is None
  assert report_alignment.section(workdir, None, pictures) is None
  for result in (None, {}, {'session_rewards': None}):
    assert report_session_rewards.section(result, pictures) is None
    assert report_session_rewards.dynamics(result, pictures) is None
    assert report_session_rewards.cards(result) == []
  assert pictures.found == {}


# --- Alignment ----------------------------------------------------------------


def test_mean_rewards_divide_by_what_was_summed():
  means = report_alignment.round_means(
    {
      'legal': 10,
      'pairs': 4,
      'reward_sum': 5.0,
      'chosen_reward_sum': 4.0,
      'rejected_reward_sum': 1.0,
      'true_reward_sum': 2.0,
    }
  )
  assert means == {'chosen': 1.0, 'candidates': 0.5, 'rejected': 0.25}
  true = report_alignment.round_means(
    {'legal': 10, 'pairs': 4, 'true_reward_sum': 2.0}, prefix='true_'
  )
  assert true == {'chosen': None, 'candidates': 0.2, 'rejected': None}
  nothing = report_alignment.round_means({'legal': 0, 'reward_sum': 0.0})
  assert nothing['candidates'] is None


def test_rounds_are_told_in_a_table_with_the_split_of_their_time(
  aligned_run, aligned, pictures
):
  section = report_alignment.section(
    aligned, aligned_run.align_result(), pictures
  )
  table = section['rounds']
  row = dict(zip(table['columns'], table['rows'][1]['cells'], strict=True))
  assert row['pairs'] == '42'
  assert row['legal'] == '97.66 %'  # 500 of 512
  assert row['reward'] == '0.7600'
  assert row['chosen'] == '0.9900'
  assert row['generate'] == '6.2 s'
  assert row['training'] == '12.5 s'
  # 126 pairs of 9000 samples; 3 · 8.2 s and 3 · 12.5 s.
  assert '126 pairs for 9,000 training samples (1.4 %)' in section['summary']
  assert 'Making the pairs took 0:25, training 0:38.' in section['summary']


def test_only_reasons_that_occurred_are_columns(aligned_run, aligned, pictures):
  section = report_alignment.section(
    aligned, aligned_run.align_result(), pictures
  )
  assert section['skips']['columns'] == ['round', 'equal rewards']
  result = aligned_run.align_result()
  for found in result['rounds']:
    found['rollouts']['skipped'] = {'equal_rewards': 0}
  assert report_alignment.section(aligned, result, pictures)['skips'] is None


def test_logged_pairs_have_no_picture_of_rewards(
  aligned_run, aligned, pictures
):
  result = aligned_run.align_result()
  for found in result['rounds']:
    found['rollouts'] = {
      k: found['rollouts'][k] for k in ('users', 'pairs', 'skipped', 'seconds')
    }
  section = report_alignment.section(
    aligned, {**result, 'pairs': 'logged'}, pictures
  )
  assert 'round_rewards' not in pictures.found
  assert 'sessions of other users' in section['summary']
  assert section['rounds']['rows'][0]['cells'][3] == '–'  # legal


def test_true_rewards_of_rounds_are_drawn_where_known(
  aligned_run, aligned, pictures
):
  report_alignment.section(aligned, aligned_run.align_result(), pictures)
  assert (
    'candidates (true) 0.700, 0.710, 0.720'
    in (pictures.found['round_rewards']['alt'])
  )
  result = {
    **aligned_run.align_result(),
    'rounds': [aligned_run.align_round(1, truth=False)],
  }
  report_alignment.section(aligned, result, pictures)
  assert 'true' not in pictures.found['round_rewards']['alt']


def test_curves_of_rounds_follow_each_other_without_a_line_between(
  aligned_run, aligned, pictures, monkeypatch
):
  drawn = {}

  def curves(series, *, breaks, **options):
    drawn.setdefault(options['label'], (series, breaks))
    return PNG

  monkeypatch.setattr(report_figures, 'curves', curves)
  report_alignment.section(aligned, aligned_run.align_result(), pictures)
  series, breaks = drawn['margin']
  steps, values = series['margin']
  assert breaks == [30, 60]
  assert len(steps) == 3 * 15 + 2
  assert steps[14:17] == [30, 32, 32]  # the gap stands at the new round
  assert math.isnan(values[15])
  assert values[16] == pytest.approx(0.02)
  # Validation figures can be compared between rounds.
  steps, values = drawn['reward'][0]['mean session']
  assert steps == [30, 60, 90]
  assert values == pytest.approx([0.71, 0.72, 0.73])


def test_a_stage_that_was_cut_off_shows_the_rounds_it_has(
  aligned_run, tmp_path, pictures
):
  workdir = workdir_lib.Workdir(tmp_path)
  aligned_run.write_rounds(workdir, 2)
  workdir_lib.write_json(
    workdir.folder('align') / 'round_01' / 'result.json',
    aligned_run.align_round(1),
  )
  section = report_alignment.section(workdir, None, pictures)
  assert section['summary'].startswith('1 round(s) done')
  assert len(section['rounds']['rows']) == 1
  assert 'preference_loss' in pictures.found


def test_an_align_result_of_few_keys_does_not_crash(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  section = report_alignment.section(workdir, {'rounds': [{}]}, pictures)
  assert section['rounds']['rows'][0]['cells'][:3] == ['1', '–', '–']


# --- Pictures -----------------------------------------------------------------


def test_pictures_survive_single_and_flat_values():
  zero = {'mean': 0.0, 'low': 0.0, 'high': 0.0}
  flat = [{'mean_prediction': 0.0, 'mean_label': 0.0, 'count': 1}]
  made = [
    *(figures.calibration([('a', flat)] * n) for n in (1, 2, 3, 5)),
    figures.relative_changes({'a': zero}, {}, label='x'),
    figures.relative_changes({'a': zero}, {'a': zero, 'b': zero}, label='x'),
    figures.round_rewards({'candidates': [None, 0.5]}, {}, label='y'),
    figures.seconds_bars([{'generate': 0.0, 'training': 0.0}]),
    figures.code_probabilities({'one': [[1.0]]}, [0]),
    figures.code_probabilities(
      {'before': [[0.5, 0.5]] * 4, 'after': [[0.0, 0.0]] * 4}, [0, 1, 0, 1]
    ),
  ]
  for png in made:
    assert png.startswith(PNG)


def test_true_rewards_are_teal_in_every_picture():
  value = {'mean': 0.5, 'low': 0.2, 'high': 0.8}
  for png, expected in (
    (figures.relative_changes({'a': value}, {'a': value}, label='x'), True),
    (figures.relative_changes({'a': value}, {}, label='x'), False),
    (figures.round_rewards({'chosen': [1.0, 2.0]}, {}, label='x'), False),
    (
      figures.round_rewards(
        {'chosen': [1.0, 2.0]}, {'candidates': [0.5, 1.0]}, label='x'
      ),
      True,
    ),
  ):
    assert has_colour(png, report_canvas.TRUTH) == expected
