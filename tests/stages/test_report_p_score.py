"""Report on the P-Score model and on item alignment, from hand-made JSON."""

import json
import os

import pytest

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report_figures
from onerec_jax.stages import report_items
from onerec_jax.stages import report_p_score

PNG = b'\x89PNG\r\n\x1a\n'


pytestmark = pytest.mark.usefixtures('coarse_pictures')


def interval(value, spread=0.01):
  """A figure with its bounds; None: not known."""
  if value is None:
    return {'value': None, 'low': None, 'high': None}
  return {'value': value, 'low': value - spread, 'high': value + spread}


def part(auc, grouped):
  """What `reward_quality.tower_quality` says, as far as the page reads it."""
  return {
    'auc': interval(auc),
    'grouped_auc': interval(grouped, 0.02),
    'sessions': 2000,
    'positive_share': 0.25,
    'calibration': [
      {'mean_prediction': 0.1 * b, 'mean_label': 0.12 * b, 'count': 200}
      for b in range(1, 6)
    ],
  }


def gain(auc, grouped):
  """What `p_score_quality.gains` says."""
  return {'auc': interval(auc), 'grouped_auc': interval(grouped)}


def tower(name, *, tower_gain=0.03, p_score_gain=0.02):
  """One tower of the result of the stage `p_score`.

  Against the regression with past rates, both gains are 0.025 less.
  """
  less = lambda value: None if value is None else value - 0.025  # noqa: E731
  return {
    'name': name,
    'column': f'is_{name}',
    'threshold': 0.0,
    'weight': 2.0,
    'definition': f'is_{name} > 0',
    'train_impressions_known': 9000,
    'train_known_share': 0.9,
    'train_mean_label': 0.2401,
    'strengths': {'logistic': 1.0, 'logistic_rates': 0.1},
    'held_out': {
      'tower': part(0.73, 0.66),
      'p_score': part(0.72, 0.65),
      'logistic': part(0.70, 0.64),
      'logistic_rates': part(0.725, 0.645),
      'tower_over_logistic': gain(tower_gain, 0.02),
      'tower_over_logistic_rates': gain(less(tower_gain), 0.015),
      'p_score_over_logistic': gain(p_score_gain, 0.005),
      'p_score_over_logistic_rates': gain(less(p_score_gain), 0.0),
    },
  }


def p_score_result(*towers) -> dict:
  """Result of the stage `p_score`."""
  return {
    'steps': 300,
    'num_parameters': 52_000,
    'training_seconds': 75.0,
    'towers': list(towers),
    'impressions': {
      'train': 20_000,
      'train_users': 540,
      'held_out': 2_400,
      'held_out_users': 60,
      'held_out_judged': 2_000,
      'held_out_users_judged': 50,
    },
  }


def cells_of(table: dict, row: int = 0) -> list:
  """A row's cells as text, with what stands small below."""
  return [
    c if isinstance(c, str) else (c['text'], c['small'])
    for c in table['rows'][row]['cells']
  ]


# --- P-Score ----------------------------------------------------------------


def test_the_tables_hold_what_the_stage_has_measured(pictures):
  section = report_p_score.section(
    p_score_result(tower('ltr')), [{'step': 1, 'loss': 2.0}], pictures
  )
  assert cells_of(section['labels']) == [
    'ltr', 'is_ltr > 0', '2', '90.0 %', '0.2401', '2,000', '25.0 %',
  ]  # fmt: skip
  assert section['auc']['columns'] == [
    'objective', 'tower', 'P-Score', 'logistic regression', '… with past rates',
    'tower over regression', 'tower over regression with past rates',
    'P-Score over regression', 'P-Score over regression with past rates',
  ]  # fmt: skip
  assert cells_of(section['auc']) == [
    'ltr',
    ('0.730', '0.720 to 0.740'),
    ('0.720', '0.710 to 0.730'),
    ('0.700', '0.690 to 0.710'),
    ('0.725', '0.715 to 0.735'),
    ('+0.0300', '+0.0200 to +0.0400'),
    ('+0.0050', '−0.0050 to +0.0150'),
    ('+0.0200', '+0.0100 to +0.0300'),
    ('−0.0050', '−0.0150 to +0.0050'),
  ]
  assert cells_of(section['gauc'])[1] == ('0.660', '0.640 to 0.680')
  assert cells_of(section['gauc'])[7] == ('+0.0050', '−0.0050 to +0.0150')
  # Bold: what is above a regression for sure.
  cells = section['auc']['rows'][0]['cells']
  assert [c['best'] for c in cells[5:]] == [True, False, True, False]
  assert not section['gauc']['rows'][0]['cells'][7]['best']
  assert '20,000 impressions of 540 users' in section['summary']
  assert '2,000 impressions of 50 other users' in section['summary']
  assert sorted(pictures.found) == ['p_score_calibration', 'p_score_loss']


def test_a_table_says_what_the_users_own_taste_can_add(pictures):
  result = p_score_result(tower('ltr'))
  assert report_p_score.section(result, [], pictures)['personalisation'] is None
  figures = {
    'all_items': 0.2, 'one_list': 0.4, 'own_list': 0.41,
    'gain': interval(0.025),
  }  # fmt: skip
  result['personalisation'] = {
    'users': 100,
    'items': 6712,
    'items_per_list': 32,
    'scores': {'p_score': figures, 'ltr': figures},
  }
  table = report_p_score.section(result, [], pictures)['personalisation']
  assert cells_of(table) == [
    'P-Score', '0.2000', '0.4000', '0.4100', ('2.5 %', '1.5 % to 3.5 %'),
  ]  # fmt: skip
  assert table['rows'][1]['cells'][0] == 'ltr'
  assert '32 items, the best for all of 100 held-out users' in table['caption']


def test_the_verdict_counts_the_objectives_that_are_clearly_above(pictures):
  towers = [
    tower('lvtr'),  # both above
    tower('ltr', p_score_gain=0.005),  # the P-Score not clearly
    tower('wtr', tower_gain=-0.005, p_score_gain=-0.02),
    tower('cmtr', tower_gain=None, p_score_gain=None),  # one class only
  ]
  verdict = report_p_score.section(p_score_result(*towers), [], pictures)[
    'verdict'
  ]
  plain, rated = verdict.split('Against one that reads past rates')
  assert (
    'the P-Score is clearly above for 1 of 3 objectives (lvtr) and clearly'
    ' below for 1 (wtr)'
  ) in plain
  assert (
    'own tower is clearly above for 2 of 3 objectives (lvtr, ltr) and clearly'
    ' below for 0.'
  ) in plain
  # Gains of 0.005, 0.005 and -0.03, the intervals 0.01 to each side.
  assert (
    'own tower is clearly above for 0 of 3 objectives and clearly below for 1'
    ' (wtr).'
  ) in rated
  unknown = p_score_result(towers[-1])
  assert report_p_score.section(unknown, [], pictures)['verdict'] == ''


def test_a_tower_without_labels_is_dashes_and_not_in_the_picture(pictures):
  bare = tower('wtr')
  nothing = {'sessions': 0, 'users': 0, 'known_share': 0.0}
  for key in bare['held_out']:
    undefined = {'auc': interval(None)}
    bare['held_out'][key] = undefined if '_over_' in key else nothing
  section = report_p_score.section(
    p_score_result(bare, tower('ltr')), [], pictures
  )
  assert cells_of(section['auc']) == ['wtr', *[('–', '')] * 8]
  assert cells_of(section['labels'])[5:] == ['0', '–']
  alt = pictures.found['p_score_calibration']['alt']
  assert alt == (
    'Calibration of the towers: ltr: predictions 0.1 to 0.5, labels 0.12 to 0.6'
  )


def test_a_p_score_training_that_was_cut_off_shows_its_curve(pictures):
  records = [{'step': 5, 'loss': 2.0}, {'step': 10, 'valid/loss': 1.5}]
  section = report_p_score.section(None, records, pictures)
  assert section == {'summary': 'The stage is not finished.'}
  alt = pictures.found['p_score_loss']['alt']
  assert alt.endswith('Last values: training 2, validation 1.5')
  assert report_p_score.section(None, [], pictures) is None


# --- Item alignment ---------------------------------------------------------


def rates(hit, *, share=0.5):
  """Hit rates of one kind of vectors."""
  return {
    'valid': {'examples': 900, 'hit@10': 0.9 * hit, 'ndcg@10': 0.5 * hit},
    'test': {'examples': 1000, 'hit@10': hit, 'ndcg@10': 0.6 * hit},
    'neighbour_category_share': share,
  }


def embed_result(ratio=(1.42, 1.31, 1.55)) -> dict:
  """Result of the stage `embed` with an alignment."""
  found = ratio and dict(zip(('ratio', 'low', 'high'), ratio, strict=True))
  return {
    'num_items': 120,
    'dim': 64,
    'alignment': {
      'pairs': {'user_to_item': 750, 'item_to_item': 250},
      'captions': {'used': True, 'items': 110, 'vocabulary': 512},
      'training': {
        'steps': 200,
        'epochs': 12.5,
        'batch_size': 256,
        'num_parameters': 34_000,
        'training_seconds': 61.0,
        'final': {'contrastive': 1.25, 'caption': 3.5, 'accuracy': 0.4},
        'best': None,
      },
      'quality': {
        'vectors': {
          'unaligned': rates(0.0567, share=0.61),
          'aligned': rates(0.0805, share=0.58),
          'part 0: text': rates(0.05, share=None),
        },
        'aligned_over_unaligned': {'valid': found, 'test': found},
        'neighbours': [
          {
            'item': 'Soap <1>',
            'unaligned': ['Soap 2', 'Soap 3'],
            'aligned': ['Towel 1', 'Soap 2'],
            'part 0: text': ['Soap 9'],
          }
        ],
      },
    },
  }


def test_vectors_are_compared_with_the_aligned_ones_first(pictures):
  section = report_items.section(embed_result(), [], pictures)
  table = section['hits']
  assert table['columns'] == [
    'vectors', 'Hit@10, test', 'NDCG@10, test', 'Hit@10, validation',
    'NDCG@10, validation', 'of a shared category',
  ]  # fmt: skip
  assert '1,000 test and 900 validation examples' in table['caption']
  assert [cells_of(table, r) for r in range(3)] == [
    ['aligned', '0.0805', '0.0483', '0.0725', '0.0403', '58.0 %'],
    ['all parts, before alignment', '0.0567', '0.0340', '0.0510', '0.0284',
     '61.0 %'],
    ['part 0: text', '0.0500', '0.0300', '0.0450', '0.0250', '–'],
  ]  # fmt: skip
  assert [r['ours'] for r in table['rows']] == [True, False, False]
  pairs = {r['cells'][0]: r['cells'][1] for r in section['pairs']['rows']}
  assert pairs['pairs from users'] == ('750 (75.0 %)')
  assert pairs['items with a caption'] == '110'
  assert (
    'At the end: contrastive loss 1.250, caption loss per word 3.500'
    in (section['summary'])
  )
  assert section['neighbours'] == [
    {
      'item': 'Soap <1>',
      'lists': [
        {'title': 'before', 'items': ['Soap 2', 'Soap 3']},
        {'title': 'aligned', 'items': ['Towel 1', 'Soap 2']},
      ],
    }
  ]


@pytest.mark.parametrize(
  ('ratio', 'expected'),
  [
    ((1.42, 1.31, 1.55), 'Alignment raised the hit rate of the vectors, 1.42'),
    ((1.1, 0.95, 1.2), 'Alignment did not clearly change the hit rate'),
    ((0.7, 0.6, 0.8), 'Alignment lowered the hit rate of the vectors, 0.70'),
    (None, 'the vectors before never hit.'),
  ],
)
def test_the_verdict_on_vectors_follows_the_ratio(ratio, expected, pictures):
  verdict = report_items.section(embed_result(ratio), [], pictures)['verdict']
  assert expected in verdict
  assert 'Hit@10 of the next item 0.0567 before and 0.0805 after' in verdict


def test_without_test_examples_validation_is_told(pictures):
  result = embed_result()
  quality = result['alignment']['quality']
  del quality['aligned_over_unaligned']['test']
  for entry in quality['vectors'].values():
    del entry['test']
  section = report_items.section(result, [], pictures)
  assert (
    '0.0510 before and 0.0725 after, validation split' in (section['verdict'])
  )
  assert section['hits']['columns'][1] == 'Hit@10, validation'
  quality['aligned_over_unaligned'].clear()
  assert report_items.section(result, [], pictures)['verdict'] == ''


def test_alignment_is_absent_where_it_is_off_even_beside_an_old_log(pictures):
  records = [{'step': 1, 'contrastive': 2.0}]
  assert report_items.section({'num_items': 3}, records, pictures) is None
  assert report_items.section(None, [], pictures) is None
  assert pictures.found == {}


def test_an_alignment_that_was_cut_off_shows_its_losses(pictures, monkeypatch):
  drawn = {}

  def curves(series, **options):
    drawn[options['label']] = series
    return PNG

  monkeypatch.setattr(report_figures, 'curves', curves)
  records = [
    {'step': 10, 'contrastive': 4.0, 'caption': 6.0},
    {'step': 20, 'contrastive': 3.0, 'caption': 5.0, 'valid/hit@10': 0.07},
  ]
  section = report_items.section(None, records, pictures)
  assert section == {'summary': 'The stage embed is not finished.'}
  assert drawn == {
    'loss': {'pairs': ([10, 20], [4.0, 3.0]), 'captions': ([10, 20], [6, 5])},
    'Hit@10': {'Hit@10': ([20], [0.07])},
  }


def test_the_records_are_those_of_the_last_training(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path)
  assert report_items.training_records(workdir) == []
  # Names in an order that is not that of the times.
  for name, loss, seconds in (('b', 1.0, 10), ('a', 2.0, 30), ('c', 3.0, 20)):
    folder = workdir.stage('embed') / 'alignment' / name
    folder.mkdir(parents=True)
    path = folder / 'metrics.jsonl'
    path.write_text(json.dumps({'step': 1, 'contrastive': loss}) + '\n')
    os.utime(path, (seconds, seconds))
  assert report_items.training_records(workdir) == [
    {'step': 1, 'contrastive': 2.0}
  ]


def test_codes_are_compared_to_categories_level_by_level():
  levels = [
    {
      'category_agreement': 0.4,
      'category_information': {
        'items': 100, 'categories': 8, 'nmi': 0.5, 'purity': 0.6,
        'largest': 0.2,
      },
    },
    {'category_agreement': None, 'category_information': None},
  ]  # fmt: skip
  table = report_items.categories(
    {'quality': {'levels': levels, 'category_agreement_of_all_pairs': 0.125}}
  )
  assert '(0.125 of any two)' in table['caption']
  assert [cells_of(table, r) for r in range(2)] == [
    ['level 1', '0.400', '0.500', '60.0 %', '20.0 %'],
    ['level 2', '–', '–', '–', '–'],
  ]
  for nothing in (None, {}, {'quality': {'levels': levels[1:]}}):
    assert report_items.categories(nothing) is None
