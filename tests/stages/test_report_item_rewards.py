"""Report on generated items before and after training, from hand-made JSON."""

import io
import math

import pytest
import rich.console
from matplotlib import colors
from matplotlib import image

from onerec_jax.stages import predictions
from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_item_rewards
from onerec_jax.stages import report_page
from onerec_jax.stages import report_reinforce_figures as figures

PNG = b'\x89PNG\r\n\x1a\n'
SIZES = (1, 8, 32)
_BEFORE = {'p_score': 0.4, 'ltr': 0.05}  # means; pass@K is K·2 % above


pytestmark = pytest.mark.usefixtures('coarse_pictures')


def columns(*, truth: bool) -> list[str]:
  """Columns in the order of `item_evaluation.Judge.columns`."""
  names = [
    f'{name}{part}'
    for name in _BEFORE
    for part in ('_mean', *(f'_pass@{k}' for k in SIZES))
  ]
  return [*names, *(f'true_{n}' for n in names if truth)]


def mean_before(column: str) -> float:
  """A column's mean before training went on."""
  name, _, part = column.removeprefix('true_').rpartition('_')
  _, _, size = part.partition('@')
  return _BEFORE[name] * (1 + 0.02 * int(size or 0))


def item_rewards(
  *, predicted=0.1, true=0.05, spread=0.02, truth=True, compared=True
) -> dict:
  """`item_rewards` of the stage `evaluate`; gains as shares of before."""
  names = columns(truth=truth)

  def gain(column):
    return true if column.startswith('true_') else predicted

  def method(after: bool):
    means = {c: mean_before(c) * (1 + gain(c) * after) for c in names}
    return {
      'figures': {
        c: {'mean': m, 'std': 0.1 * m, 'low': 0.9 * m, 'high': 1.1 * m}
        for c, m in means.items()
      },
      'users': 480,
      'users_without_session': 2 * after,
      'difference': {
        c: {
          'mean': mean_before(c) * gain(c) * after,
          'low': mean_before(c) * (gain(c) - spread) * after,
          'high': mean_before(c) * (gain(c) + spread) * after,
          'share_above_zero': 0.9,
        }
        for c in names
      },
      'legality': {'free_items': 0.91 + 0.05 * after},
    }

  return {
    'targets': list(_BEFORE),
    'columns': names,
    'base': 'pretrained' if compared else 'onerec',
    'items_per_user': 32,
    'pass_at': list(SIZES),
    'resamples': 20,
    'methods': {
      'onerec': method(after=compared),
      **({'pretrained': method(after=False)} if compared else {}),
    },
  }


def evaluated(**options) -> dict:
  """Result of the stage `evaluate`, as far as this section reads it."""
  return {
    'methods': {
      'onerec': {'title': 'OneRec + ECPO', 'description': ''},
      'pretrained': {'title': 'OneRec, pre-trained', 'description': ''},
    },
    'item_rewards': item_rewards(**options),
  }


def rows_of(table: dict) -> dict:
  """Rows by name, each cell as text or with what stands small below."""
  return {
    r['cells'][0]: [
      c if isinstance(c, str) else (c['text'], c['small'])
      for c in r['cells'][1:]
    ]
    for r in table['rows']
  }


# --- Tables and sentences ---------------------------------------------------


def test_predicted_and_true_columns_stand_in_tables_of_their_own(pictures):
  section = report_item_rewards.section(evaluated(), pictures)
  predicted, true = section['tables']
  assert predicted['columns'] == [
    'reward', 'OneRec, pre-trained', 'OneRec + ECPO', 'difference', 'relative',
  ]  # fmt: skip
  rows = rows_of(predicted)
  assert list(rows) == [
    'P-Score mean', 'P-Score pass@1', 'P-Score pass@8', 'P-Score pass@32',
    'ltr mean', 'ltr pass@1', 'ltr pass@8', 'ltr pass@32',
  ]  # fmt: skip
  # 0.4 before, 10 % more after, interval ± 2 % of before.
  assert rows['P-Score mean'] == [
    ('0.4000', '± 0.0400'),
    ('0.4400', '± 0.0440'),
    ('+0.0400', '+0.0320 to +0.0480'),
    '+10.0 %',
  ]
  assert rows_of(true)['ltr pass@8'][-1] == '+5.0 %'
  assert true['caption'].startswith('True, by the law of the world; 480 users')
  assert (
    'a legal item among the first K: OneRec + ECPO: 2' in (predicted['caption'])
  )
  assert section['legality']['rows'] == [
    {'ours': False, 'cells': ['OneRec, pre-trained', '91.00 %']},
    {'ours': True, 'cells': ['OneRec + ECPO', '96.00 %']},
  ]
  assert 'the 32 best items' in section['protocol']
  assert 'first K (1, 8, 32)' in section['protocol']


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({}, 'Reinforcement raised the true P-Score of generated items: +0.0200,'
     ' +5.0 %; 95 % interval +0.0120 to +0.0280 (paired over users).'),
    ({'true': 0.01}, 'Reinforcement did not clearly change the true P-Score'),
    ({'true': -0.1}, 'Reinforcement lowered the true P-Score of generated'
     ' items: −0.0400, −10.0 %;'),
    ({'truth': False}, 'Reinforcement raised the predicted P-Score of generated'
     ' items: +0.0400, +10.0 %;'),
  ],
)  # fmt: skip
def test_the_verdict_follows_the_interval_of_the_true_score(
  options, expected, pictures
):
  section = report_item_rewards.section(
    evaluated(**options), pictures, cause='Reinforcement'
  )
  assert section['verdict'].startswith(expected)


@pytest.mark.parametrize(
  ('predicted', 'true', 'expected'),
  [
    (0.1, 0.05, None),
    (0.1, 0.01, 'true one did not clearly change (+0.0040, +1.0 %;'),
    (0.1, -0.1, 'true one fell (−0.0400, −10.0 %;'),
    (0.01, -0.1, None),  # nothing was promised
    (-0.1, -0.1, None),
  ],
)
def test_a_warning_stands_where_only_the_prediction_rose(
  predicted, true, expected, pictures
):
  found = evaluated(predicted=predicted, true=true)
  warning = report_item_rewards.section(found, pictures)['warning']
  if expected is None:
    assert warning == ''
    return
  assert expected in warning
  assert warning.startswith(
    'The predicted P-Score rose (+0.0400, +10.0 %; 95 % interval +0.0320 to'
    ' +0.0480)'
  )
  assert ('may exploit' in warning) == (true > 0)


def test_without_a_known_law_there_is_no_warning(pictures):
  section = report_item_rewards.section(evaluated(truth=False), pictures)
  assert section['warning'] == ''
  assert len(section['tables']) == 1
  assert 'law' not in section['protocol']


def test_cards_tell_the_change_of_both_scores():
  cards = report_item_rewards.cards(evaluated(), cause='Reinforcement')
  assert cards == [
    {
      'label': 'Predicted P-Score',
      'value': '+10.0 %',
      'note': '+8.0 % to +12.0 % by reinforcement',
    },
    {
      'label': 'True P-Score',
      'value': '+5.0 %',
      'note': '+3.0 % to +7.0 % by reinforcement',
    },
  ]
  assert len(report_item_rewards.cards(evaluated(truth=False))) == 1
  for nothing in (None, {}, {'item_rewards': None}):
    assert report_item_rewards.cards(nothing) == []


def test_a_run_without_reinforcement_has_no_differences(pictures):
  found = evaluated(compared=False)
  section = report_item_rewards.section(found, pictures)
  assert section['verdict'] == section['warning'] == ''
  assert section['tables'][0]['columns'] == ['reward', 'OneRec + ECPO']
  assert report_item_rewards.cards(found) == []
  assert 'pass_at_k' in pictures.found


@pytest.mark.parametrize('unknown', [None, math.nan])
def test_unknown_figures_become_dashes(unknown, pictures):
  found = evaluated()
  for method in found['item_rewards']['methods'].values():
    method['legality'] = {}
    for kind in ('figures', 'difference'):
      for values in method[kind].values():
        values.update(dict.fromkeys(values, unknown))
  section = report_item_rewards.section(found, pictures)
  assert rows_of(section['tables'][0])['ltr mean'] == [
    ('–', ''), ('–', ''), ('–', ''), '–',
  ]  # fmt: skip
  assert section['verdict'] == section['warning'] == ''
  assert section['legality'] is None
  assert pictures.found == {}
  assert 'nan' not in report_page.render(
    'report_template.html', {'items': section, 'results': {}}
  )


def test_the_section_is_absent_without_item_rewards(pictures):
  for nothing in (None, {}, {'item_rewards': None}):
    assert report_item_rewards.section(nothing, pictures) is None


# --- Pass@K -----------------------------------------------------------------


def test_the_picture_shows_the_best_of_the_first_k(pictures, monkeypatch):
  drawn = {}

  def pass_at(sizes, panels, *, before):
    drawn.update(sizes=sizes, panels=panels, before=before)
    return PNG

  monkeypatch.setattr(figures, 'pass_at', pass_at)
  report_item_rewards.section(evaluated(), pictures)
  assert drawn['sizes'] == [1, 8, 32]
  assert drawn['before'] == 'OneRec, pre-trained'
  assert list(drawn['panels']) == ['predicted', 'true']
  # 2 % more per item: 0.4 · 1.02, 0.4 · 1.16, 0.4 · 1.64.
  means = {
    kind: {n: [v['mean'] for v in values] for n, values in panel.items()}
    for kind, panel in drawn['panels'].items()
  }
  assert means['predicted']['OneRec, pre-trained'] == pytest.approx(
    [0.408, 0.464, 0.656]
  )
  assert means['true']['OneRec + ECPO'] == pytest.approx(
    [0.4284, 0.4872, 0.6888]
  )
  alt = pictures.found['pass_at_k']['alt']
  assert 'OneRec, pre-trained, predicted: 0.4080 at K = 1, 0.4640 at K' in alt


def test_true_scores_are_teal_and_what_was_before_is_light():
  values = [{'mean': m, 'low': m, 'high': m} for m in (0.1, 0.2)]
  models = {'before': values, 'ours': values[::-1]}

  def tones(panels, before):
    png = figures.pass_at([8, 32], panels, before=before)
    assert png.startswith(PNG)
    pixels = image.imread(io.BytesIO(png))[..., :3]
    return {
      colour
      for colour in (
        report_canvas.ACCENT,
        report_canvas.BEFORE,
        report_canvas.TRUTH,
        figures.TRUTH_BEFORE,
      )
      if (abs(pixels - colors.to_rgb(colour)).max(axis=-1) < 0.02).any()
    }

  indigo = {report_canvas.ACCENT, report_canvas.BEFORE}
  teal = {report_canvas.TRUTH, figures.TRUTH_BEFORE}
  assert tones({'predicted': models}, 'before') == indigo
  assert tones({'true': models}, 'before') == teal
  assert tones({'predicted': models, 'true': models}, 'before') == (
    indigo | teal
  )


def test_pictures_of_one_k_and_of_unknown_values_are_drawn():
  unknown = {'mean': None, 'low': None, 'high': None}
  known = {'mean': 0.0, 'low': 0.0, 'high': 0.0}
  for values in ([unknown], [known]):
    png = figures.pass_at([8], {'predicted': {'a': values}}, before=None)
    assert png.startswith(PNG)


# --- Terminal ---------------------------------------------------------------


def printed(print_rewards, result) -> str:
  """What a function prints on a wide terminal."""
  console = rich.console.Console(width=140, file=io.StringIO())
  print_rewards(result, console)
  return console.file.getvalue()


def test_the_terminal_shows_items_and_their_differences():
  text = printed(predictions.print_item_rewards, evaluated())
  assert 'P-Scores of 32 generated items per user, mean over users' in text
  lines = [line.split() for line in text.splitlines()]
  row = next(line for line in lines if line[:2] == ['P-Score', 'pass@8'])
  # After (ours is first in the file), before, and the difference.
  assert row[2:] == [
    '0.5104', '±', '0.0510', '0.4640', '±', '0.0464', '+0.0464', '(+0.0371',
    'to', '+0.0557)',
  ]  # fmt: skip
  assert ['true', 'ltr', 'mean'] in [line[:3] for line in lines]


def test_the_terminal_shows_sessions_by_the_same_table():
  result = evaluated()
  found = result.pop('item_rewards')
  result['session_rewards'] = {
    **found, 'sessions_per_user': 8, 'items_per_session': 5,
  }  # fmt: skip
  text = printed(predictions.print_session_rewards, result)
  assert 'Rewards of 8 generated sessions of 5 items, mean over users' in text
  assert 'difference (95 %)' in text
  alone = evaluated(compared=False)
  assert 'difference' not in printed(predictions.print_item_rewards, alone)
