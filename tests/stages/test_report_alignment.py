"""Report of a run with preference alignment: tables, pictures, sentences."""

import html.parser
import io
import json
import math

import numpy as np
import pytest
from matplotlib import colors
from matplotlib import image

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report
from onerec_jax.stages import report_alignment
from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_page
from onerec_jax.stages import report_reward
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_words

PNG = b'\x89PNG\r\n\x1a\n'
TARGETS = ('swt', 'vtr', 'wtr', 'ltr')
_MEANS = {'reward': 0.72, 'swt': 0.1, 'vtr': 0.6, 'wtr': 0.0035, 'ltr': 0.036}


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
  monkeypatch.setattr(report_canvas, 'DPI', 40)


def columns(*, truth: bool) -> list[str]:
  """Column names as the stage writes them."""
  names = [f'{t}_{p}' for t in ('reward', *TARGETS) for p in ('mean', 'max')]
  return [*names, *(f'true_{n}' for n in names if truth)]


def figure(column: str, factor: float) -> dict[str, float]:
  """A figure with its ± and interval."""
  mean = _MEANS[column.removeprefix('true_').rpartition('_')[0]] * factor
  mean *= 1.4 if column.endswith('max') else 1.0
  return {
    'mean': mean, 'std': 0.08 * mean, 'low': 0.97 * mean, 'high': 1.03 * mean,
  }  # fmt: skip


# Gains of alignment; the true ltr falls: the reward model is fooled there.
_GAINS = {'reward': 0.1, 'swt': 0.06, 'vtr': 0.02, 'wtr': 0.01, 'ltr': 0.3}
_TRUE_GAINS = {**_GAINS, 'reward': 0.04, 'swt': 0.05, 'ltr': -0.1}


def gain(column: str) -> float:
  """Share by which alignment changes a column."""
  gains = _TRUE_GAINS if column.startswith('true_') else _GAINS
  return gains[column.removeprefix('true_').rpartition('_')[0]]


def method(names, *, aligned: bool) -> dict:
  """One model of `session_rewards`."""
  factors = {c: 1 + gain(c) * aligned for c in names}
  difference = {}
  for c in names:
    change = figure(c, factors[c])['mean'] - figure(c, 1.0)['mean']
    spread = 0.02 * figure(c, 1.0)['mean'] * aligned
    difference[c] = {
      'mean': change, 'low': change - spread, 'high': change + spread,
      'share_above_zero': 1.0,
    }  # fmt: skip
  return {
    'figures': {c: figure(c, factors[c]) for c in names},
    'users': 480,
    'users_without_session': 3 * aligned,
    'difference': difference,
    'legality': {'free_sessions': 0.85 + 0.05 * aligned, 'free_items': 0.97},
  }


def session_rewards(*, truth: bool = True, codes: int = 12) -> dict:
  """`session_rewards` of the stage `evaluate`."""
  rng = np.random.default_rng(0)
  names = columns(truth=truth)

  def softmax(sharpness: float, code: int) -> list[float]:
    logits = sharpness * rng.normal(size=codes)
    logits[code] = 1.5 * sharpness
    return (np.exp(logits) / np.exp(logits).sum()).tolist()

  return {
    'targets': list(TARGETS),
    'columns': names,
    'base': 'pretrained',
    'sessions_per_user': 8,
    'items_per_session': 5,
    'resamples': 20,
    'methods': {
      'onerec': method(names, aligned=True),
      'pretrained': method(names, aligned=False),
    },
    'dynamics': [
      {
        'item': f'Item <{u}>',
        'reward': 0.8,
        'codes': [3, 0, codes - 1],
        'probabilities': {
          'onerec': [softmax(1.5, 3), softmax(2.5, 0), softmax(5, codes - 1)],
          'pretrained': [softmax(1, 3), softmax(2, 0), softmax(4, codes - 1)],
        },
      }
      for u in range(4)
    ],
  }


def evaluated(**options) -> dict:
  """Result of the stage `evaluate`, as far as these sections read it."""
  return {
    'methods': {
      'onerec': {'title': 'OneRec + IPA', 'description': ''},
      'pretrained': {'title': 'OneRec, pre-trained', 'description': ''},
    },
    'session_rewards': session_rewards(**options),
  }


def reward_result() -> dict:
  """Result of the stage `reward`."""
  bins = np.linspace(0.5, 1.5, 10)
  targets = []
  for name in TARGETS:
    mean = _MEANS[name]
    targets.append(
      {
        'name': name,
        'weight': 1.0,
        'definition': f'1 if any item has {name} > 0',
        'train_known_share': 0.98,
        'train_mean_label': mean,
        'held_out': {
          'auc': {'value': 0.74, 'low': 0.72, 'high': 0.76},
          'grouped_auc': {'value': 0.61, 'low': 0.58, 'high': 0.64},
          'bce': {'value': 0.21, 'low': 0.2, 'high': 0.22},
          'bce_constant': 0.25,
          'positive_share': mean,
          'sessions': 900,
          'calibration': [
            {
              'mean_prediction': mean * b,
              'mean_label': mean * (b + 0.1 * math.sin(9 * b)),
              'count': 90,
            }
            for b in bins
          ],
        },
      }
    )
  return {
    'steps': 400,
    'num_parameters': 120_000,
    'training_seconds': 31.0,
    'targets': targets,
    'sessions': {
      'train': 9000,
      'train_users': 800,
      'held_out_judged': 900,
      'held_out_users': 90,
      'items_per_session': 5,
    },
  }


def align_round(number: int, *, truth: bool = True) -> dict:
  """Result of one round of the stage `align`."""
  pairs, legal = 40 + number, 500
  rollouts = {
    'users': 50,
    'pairs': pairs,
    'skipped': {'equal_rewards': 3, 'same_session': 0},
    'candidates': 512,
    'legal': legal,
    'reward_sum': (0.70 + 0.03 * number) * legal,
    'chosen_reward_sum': (0.95 + 0.02 * number) * pairs,
    'rejected_reward_sum': 0.5 * pairs,
    'seconds': {'generate': 6.2, 'score': 1.1, 'reference': 0.9},
  }
  if truth:
    rollouts |= {
      'true_reward_sum': (0.69 + 0.01 * number) * legal,
      'true_chosen_reward_sum': 0.8 * pairs,
      'true_rejected_reward_sum': 0.6 * pairs,
    }
  return {
    'round': number,
    'steps': 30,
    'samples': 3000,
    'rollouts': rollouts,
    'final': {'preference/loss': 0.61, 'preference/accuracy': 0.7},
    'training_seconds': 12.5,
  }


def align_result(num_rounds: int = 3) -> dict:
  """Result of the stage `align`."""
  return {
    'loss': 'dpo',
    'pairs': 'beam_rm',
    'rounds': [align_round(n) for n in range(1, num_rounds + 1)],
  }


def write_rounds(workdir, num_rounds: int = 3) -> None:
  """Writes plan and log of every round."""
  rng = np.random.default_rng(1)
  for number in range(1, num_rounds + 1):
    folder = workdir.folder('align') / f'round_{number:02d}'
    folder.mkdir(parents=True, exist_ok=True)
    workdir_lib.write_json(folder / 'plan.json', {'num_steps': 30})
    lines = [
      json.dumps(
        {
          'step': step,
          'loss': 9 - 0.01 * step + rng.normal(0, 0.05),
          'token_loss': 2 - 0.002 * step + rng.normal(0, 0.01),
          'preference/loss': 0.69 - 0.004 * step + rng.normal(0, 0.01),
          'preference/accuracy': 0.5 + 0.01 * step,
          'preference/margin': 0.01 * step,
          **({'valid/reward_mean': 0.7 + 0.01 * number} if step == 30 else {}),
          **({'valid/reward_max': 0.9 + 0.02 * number} if step == 30 else {}),
        }
      )
      for step in range(2, 31, 2)
    ]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def pictures(tmp_path):
  folder = workdir_lib.Workdir(tmp_path).stage('report')
  return report_words.Pictures(folder)


@pytest.fixture
def aligned(tmp_path):
  """A work directory in which three rounds were logged."""
  workdir = workdir_lib.Workdir(tmp_path)
  write_rounds(workdir)
  return workdir


def evaluate_result(**options) -> dict:
  """A whole result of `evaluate`: ours, ours before alignment, one floor."""
  scores = {'onerec': 0.30, 'pretrained': 0.08, 'popularity': 0.10}
  titles = {
    'onerec': 'OneRec + IPA',
    'pretrained': 'OneRec, pre-trained',
    'popularity': 'Popularity',
  }
  names = ('recall@10', 'ndcg@10', 'mrr@10')
  figures_of = {
    m: {n: {'mean': v, 'low': v - 0.02, 'high': v + 0.02} for n in names}
    for m, v in scores.items()
  }
  change = {'mean': -0.01, 'low': -0.03, 'high': 0.01}
  return {
    'split': 'test',
    'users': 500,
    'candidates': 200,
    'history_excluded': True,
    'num_beams': 20,
    'constrained': 'trie',
    'headline_k': 10,
    'methods': {
      m: {'title': t, 'description': f'about {m}'} for m, t in titles.items()
    },
    'metrics': figures_of,
    'metrics_by_id': figures_of,
    'list_quality': {m: {'coverage@10': 0.5} for m in scores},
    'best_floor': 'popularity',
    'difference_to_best_floor': {
      n: {'mean': 0.2, 'low': 0.18, 'high': 0.22} for n in names
    },
    'difference_to_before': {n: change for n in names},
    'legality': 1.0,
    'legality_by_model': {'onerec': 1.0, 'pretrained': 0.9912},
    'hypotheses': 4000,
    'empty_results': 0,
    'short_results': 0,
    'entropy_per_level': [2.0, 1.0, 0.5],
    'codes_per_level': [12, 12, 12],
    'slices': {
      'age': [{'slice': 'all', 'users': 500, 'methods': figures_of}],
    },
    'examples': [],
    'session_rewards': session_rewards(**options),
  }


class _Page(html.parser.HTMLParser):
  """Collects headings, pictures and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.pictures, self.words, self.open, self.headings = [], [], [], []
    self.feed(text)
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attributes):
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    if tag == 'img':
      self.pictures.append(dict(attributes))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self.words.append(data)
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)


@pytest.fixture
def page_of(tiny_run, tmp_path):
  """Function: results by stage -> the run's page."""
  experiment, _ = tiny_run
  workdir = workdir_lib.Workdir(tmp_path)

  def make(**results):
    for stage, result in results.items():
      workdir.stage(stage)
      workdir_lib.write_json(workdir.folder(stage) / 'result.json', result)
    report.run(experiment, workdir)
    return _Page((tmp_path / 'report' / 'report.html').read_text())

  return make


def has_colour(png: bytes, colour: str) -> bool:
  """Whether any pixel of a picture has this colour."""
  pixels = image.imread(io.BytesIO(png))[..., :3]
  return bool((abs(pixels - colors.to_rgb(colour)).max(axis=-1) < 0.02).any())


# --- The page ---------------------------------------------------------------


def test_an_aligned_run_shows_every_section_and_all_pictures(
  page_of, aligned, tmp_path
):
  page = page_of(
    evaluate=evaluate_result(), align=align_result(), reward=reward_result()
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


def test_the_model_before_alignment_is_no_floor(page_of):
  page = page_of(evaluate=evaluate_result())
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


def test_a_run_without_alignment_shows_none_of_it(page_of):
  result = evaluate_result()
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


# --- Session rewards --------------------------------------------------------


def test_changes_are_shown_relative_to_before(pictures):
  found = evaluated()
  section = report_session_rewards.section(found, pictures)
  predicted, true = section['tables']
  assert predicted['columns'] == [
    'reward',
    'OneRec, pre-trained',
    'OneRec + IPA',
    'difference',
    'relative',
  ]
  rows = {r['cells'][0]: r['cells'] for r in predicted['rows']}
  # 0.1 and a gain of 6 %, ± 8 % of the mean, interval ± 2 % of before.
  assert rows['swt mean'][1]['text'] == '0.1000'
  assert rows['swt mean'][2] == {
    'text': '0.1060',
    'small': '± 0.0085',
    'best': False,
  }
  assert rows['swt mean'][3]['text'] == '+0.0060'
  assert rows['swt mean'][3]['small'] == '+0.0040 to +0.0080'
  assert rows['swt mean'][4] == '+6.0 %'
  # Small figures keep three digits, and the true ltr falls.
  assert rows['wtr mean'][1]['text'] == '0.00350'
  rows = {r['cells'][0]: r['cells'] for r in true['rows']}
  assert rows['ltr mean'][4] == '−10.0 %'
  assert 'without a legal session: OneRec + IPA: 3' in true['caption']


def test_the_verdict_follows_the_interval(pictures):
  found = evaluated()
  changed = found['session_rewards']['methods']['onerec']['difference']
  changed['reward_mean'] |= {'low': -0.01, 'high': 0.02}
  changed['true_reward_mean'] |= {'mean': -0.1, 'low': -0.12, 'high': -0.08}
  verdict = report_session_rewards.section(found, pictures)['verdict']
  assert verdict.startswith(
    'Alignment did not clearly change the predicted reward (+0.0720, +10.0 %;'
  )
  assert 'and lowered the true reward (−0.1000, −13.9 %;' in verdict


@pytest.mark.parametrize(
  ('truth', 'labels'),
  [
    (True, ['Predicted reward', 'True reward']),
    (False, ['Predicted reward', 'Best session’s reward']),
  ],
)
def test_two_cards_tell_what_alignment_changed(truth, labels):
  cards = report_session_rewards.cards(evaluated(truth=truth))
  assert [c['label'] for c in cards] == labels
  assert cards[0]['value'] == '+10.0 %'
  assert cards[0]['note'] == '+8.0 % to +12.0 % by alignment'


def test_a_run_with_a_reward_model_only_has_no_differences(pictures):
  found = evaluated()
  del found['session_rewards']['methods']['pretrained']
  found['session_rewards']['base'] = 'onerec'
  section = report_session_rewards.section(found, pictures)
  assert section['verdict'] == ''
  assert section['tables'][0]['columns'] == ['reward', 'OneRec + IPA']
  assert report_session_rewards.cards(found) == []
  assert pictures.found == {}


@pytest.mark.parametrize('unknown', [None, math.nan])
def test_unknown_figures_become_dashes(unknown, pictures):
  found = evaluated()
  for method in found['session_rewards']['methods'].values():
    method['legality'] = {}
    for kind in ('figures', 'difference'):
      for values in method[kind].values():
        values.update(dict.fromkeys(values, unknown))
  section = report_session_rewards.section(found, pictures)
  cells = section['tables'][0]['rows'][0]['cells']
  assert [c if isinstance(c, str) else c['text'] for c in cells] == [
    'reward mean', '–', '–', '–', '–',
  ]  # fmt: skip
  assert 'nan' not in report_page.render(
    'report_template.html', {'rewards': section, 'results': {}}
  )
  assert section['legality'] is None
  assert pictures.found == {}


def test_entropy_is_that_of_the_softmax():
  p = np.random.default_rng(0).dirichlet(np.ones(7))
  expected = -sum(v * math.log(v) for v in p)
  assert figures.entropy(p.tolist()) == pytest.approx(expected, rel=1e-12)
  assert figures.entropy([0.25] * 4) == pytest.approx(math.log(4))
  assert figures.entropy([0.0, 1.0, 0.0]) == 0.0


def test_the_likeliest_codes_are_shown_and_always_the_items_own():
  rng = np.random.default_rng(0)
  before, after = rng.dirichlet(np.ones(500), size=2)
  own = int(np.argmin(before + after))
  shown = figures._shown_codes([before.tolist(), after.tolist()], own)
  assert len(shown) == figures.MAX_CODES
  assert own in shown
  assert (np.diff(shown) > 0).all()
  top = np.maximum(before, after)
  hidden = np.setdiff1d(np.arange(500), shown)
  assert top[hidden].max() <= np.delete(top[shown], shown == own).min()


def test_dynamics_tell_probability_and_entropy_in_words(pictures):
  found = evaluated()
  entry = found['session_rewards']['dynamics'][0]
  entry['probabilities']['pretrained'][0] = [1 / 12] * 12
  del found['session_rewards']['dynamics'][1:]
  section = report_session_rewards.dynamics(found, pictures)
  assert section == {'names': ['dynamics_0']}
  alt = pictures.found['dynamics_0']['alt']
  # The model before comes first, whatever the order in the file.
  assert alt.startswith(
    'Codes of Item <0>: before: level 1 probability 0.083, entropy 2.48 nats'
  )
  assert '; after: level 1 ' in alt


# --- Alignment --------------------------------------------------------------


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
  aligned, pictures
):
  section = report_alignment.section(aligned, align_result(), pictures)
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


def test_only_reasons_that_occurred_are_columns(aligned, pictures):
  section = report_alignment.section(aligned, align_result(), pictures)
  assert section['skips']['columns'] == ['round', 'equal rewards']
  result = align_result()
  for found in result['rounds']:
    found['rollouts']['skipped'] = {'equal_rewards': 0}
  assert report_alignment.section(aligned, result, pictures)['skips'] is None


def test_logged_pairs_have_no_picture_of_rewards(aligned, pictures):
  result = align_result()
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


def test_true_rewards_of_rounds_are_drawn_where_known(aligned, pictures):
  report_alignment.section(aligned, align_result(), pictures)
  assert (
    'candidates (true) 0.700, 0.710, 0.720'
    in (pictures.found['round_rewards']['alt'])
  )
  result = {**align_result(), 'rounds': [align_round(1, truth=False)]}
  report_alignment.section(aligned, result, pictures)
  assert 'true' not in pictures.found['round_rewards']['alt']


def test_curves_of_rounds_follow_each_other_without_a_line_between(
  aligned, pictures, monkeypatch
):
  drawn = {}

  def curves(series, *, breaks, **options):
    drawn.setdefault(options['label'], (series, breaks))
    return PNG

  monkeypatch.setattr(report_figures, 'curves', curves)
  report_alignment.section(aligned, align_result(), pictures)
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


def test_a_stage_that_was_cut_off_shows_the_rounds_it_has(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  write_rounds(workdir, 2)
  workdir_lib.write_json(
    workdir.folder('align') / 'round_01' / 'result.json', align_round(1)
  )
  section = report_alignment.section(workdir, None, pictures)
  assert section['summary'].startswith('1 round(s) done')
  assert len(section['rounds']['rows']) == 1
  assert 'preference_loss' in pictures.found


def test_an_align_result_of_few_keys_does_not_crash(tmp_path, pictures):
  workdir = workdir_lib.Workdir(tmp_path)
  section = report_alignment.section(workdir, {'rounds': [{}]}, pictures)
  assert section['rounds']['rows'][0]['cells'][:3] == ['1', '–', '–']


# --- Reward model -----------------------------------------------------------


def test_towers_are_told_with_their_intervals(pictures):
  records = [{'step': 1, 'loss': 2.0, 'valid/loss': 2.1}]
  section = report_reward.section(reward_result(), records, pictures)
  table = section['towers']
  row = table['rows'][2]
  assert row['note'] == '1 if any item has wtr > 0'
  assert row['cells'] == [
    'wtr', '1', '98.0 %', '0.0035', '0.4 %', '0.740', '0.720–0.760', '0.610',
    '0.580–0.640', '0.2100', '0.2500',
  ]  # fmt: skip
  assert sorted(pictures.found) == ['calibration', 'reward_loss']


def test_a_tower_without_labels_or_with_one_class_is_dashes(pictures):
  result = reward_result()
  one, other = result['targets'][:2]
  one['held_out'] = {'sessions': 0, 'users': 0, 'known_share': 0.0}
  undefined = {'value': None, 'low': None, 'high': None}
  other['held_out'] |= {'auc': undefined, 'grouped_auc': undefined}
  rows = report_reward.section(result, [], pictures)['towers']['rows']
  assert rows[0]['cells'][5:] == ['–', '', '–', '', '–', '–']
  assert rows[1]['cells'][5:9] == ['–', '', '–', '']
  assert 'swt' not in pictures.found['calibration']['alt']


# --- Pictures ---------------------------------------------------------------


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
