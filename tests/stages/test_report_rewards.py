"""Report of rewards: of generated sessions, and of the model that judges."""

import math

import numpy as np
import pytest

from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_page
from onerec_jax.stages import report_reward
from onerec_jax.stages import report_session_rewards

pytestmark = pytest.mark.usefixtures('coarse_pictures')


def test_changes_are_shown_relative_to_before(aligned_run, pictures):
  found = aligned_run.evaluated()
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


def test_the_verdict_follows_the_interval(aligned_run, pictures):
  found = aligned_run.evaluated()
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
def test_two_cards_tell_what_alignment_changed(aligned_run, truth, labels):
  cards = report_session_rewards.cards(aligned_run.evaluated(truth=truth))
  assert [c['label'] for c in cards] == labels
  assert cards[0]['value'] == '+10.0 %'
  assert cards[0]['note'] == '+8.0 % to +12.0 % by alignment'


def test_a_run_with_a_reward_model_only_has_no_differences(
  aligned_run, pictures
):
  found = aligned_run.evaluated()
  del found['session_rewards']['methods']['pretrained']
  found['session_rewards']['base'] = 'onerec'
  section = report_session_rewards.section(found, pictures)
  assert section['verdict'] == ''
  assert section['tables'][0]['columns'] == ['reward', 'OneRec + IPA']
  assert report_session_rewards.cards(found) == []
  assert pictures.found == {}


@pytest.mark.parametrize('unknown', [None, math.nan])
def test_unknown_figures_become_dashes(aligned_run, unknown, pictures):
  found = aligned_run.evaluated()
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


def test_dynamics_tell_probability_and_entropy_in_words(aligned_run, pictures):
  found = aligned_run.evaluated()
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


# --- Reward model -------------------------------------------------------------


def test_towers_are_told_with_their_intervals(aligned_run, pictures):
  records = [{'step': 1, 'loss': 2.0, 'valid/loss': 2.1}]
  section = report_reward.section(
    aligned_run.reward_result(), records, pictures
  )
  table = section['towers']
  row = table['rows'][2]
  assert row['note'] == '1 if any item has wtr > 0'
  assert row['cells'] == [
    'wtr', '1', '98.0 %', '0.0035', '0.4 %', '0.740', '0.720–0.760', '0.610',
    '0.580–0.640', '0.2100', '0.2500',
  ]  # fmt: skip
  assert sorted(pictures.found) == ['calibration', 'reward_loss']


def test_a_tower_without_labels_or_with_one_class_is_dashes(
  aligned_run, pictures
):
  result = aligned_run.reward_result()
  one, other = result['targets'][:2]
  one['held_out'] = {'sessions': 0, 'users': 0, 'known_share': 0.0}
  undefined = {'value': None, 'low': None, 'high': None}
  other['held_out'] |= {'auc': undefined, 'grouped_auc': undefined}
  rows = report_reward.section(result, [], pictures)['towers']['rows']
  assert rows[0]['cells'][5:] == ['–', '', '–', '', '–', '–']
  assert rows[1]['cells'][5:9] == ['–', '', '–', '']
  assert 'swt' not in pictures.found['calibration']['alt']
