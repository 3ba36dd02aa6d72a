"""The report's section on the P-Score model and its towers.

Turns what the stage `p_score` has written into tables, a sentence and
pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import p_score_quality
from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

# What predicts a label: key in the result -> column of the table.
_PREDICTORS = {
  'tower': 'tower',
  'p_score': 'P-Score',
  'logistic': 'logistic regression',
  'logistic_rates': '… with past rates',
}
# Whose gains over both regressions are shown: key in the result -> its words.
_MODELS = {
  'p_score': ('P-Score', 'the P-Score'),
  'tower': ('tower', 'an objective’s own tower'),
}
_BASELINES = {
  'logistic': 'regression',
  'logistic_rates': 'regression with past rates',
}
_GAINS = tuple(
  (model, baseline) for model in ('tower', 'p_score') for baseline in _BASELINES
)


def section(
  result: Mapping[str, Any] | None,
  records: Sequence[Mapping[str, Any]],
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what the section on the P-Score model shows; adds its pictures.

  A training that is not finished shows its curve.

  Args:
    result: of the stage `p_score`.
    records: of its training.
    pictures: of the page.
  """
  if not result and not records:
    return None
  report_curves.add_curves(
    [(0, records)],
    {'training': 'loss', 'validation': 'valid/loss'},
    pictures,
    'p_score_loss',
    caption=(
      'Loss of the P-Score model (nats, summed over the towers and the fused'
      ' score).'
    ),
    label='loss',
    emphasis='validation',
  )
  if not result:
    return {'summary': 'The stage is not finished.'}
  towers = result.get('towers') or ()
  _calibration(towers, pictures)
  return {
    'summary': _summary(result),
    'verdict': _verdict(towers),
    'labels': _labels(towers),
    'auc': _auc_table(
      towers,
      'auc',
      'AUC on held-out users. The regressions read what the towers read, in'
      ' linear form, the second one past rates of user and item as well; their'
      ' penalties are the best for these very impressions. Bold: a gain whose'
      ' 95 % interval is above 0',
    ),
    'gauc': _auc_table(
      towers,
      'grouped_auc',
      'The same within a user (GAUC), averaged over the users whose impressions'
      ' are of both kinds',
    ),
    'personalisation': _personalisation(result),
  }


def _summary(result: Mapping[str, Any]) -> str:
  sizes = result.get('impressions') or {}
  parts = [
    f'{words.compact(result.get("num_parameters"))} parameters,'
    f' {words.count(result.get("steps"))} steps in'
    f' {log.duration(float(result.get("training_seconds") or 0))}'
  ]
  if sizes:
    parts.append(
      f'trained on {words.count(sizes.get("train"))} impressions of'
      f' {words.count(sizes.get("train_users"))} users and judged on'
      f' {words.count(sizes.get("held_out_judged"))} impressions of'
      f' {words.count(sizes.get("held_out_users_judged"))} other users'
    )
  return '; '.join(parts) + '.'


def _figure(
  tower: Mapping[str, Any], part: str, figure: str
) -> Mapping[str, Any]:
  """Returns {'value', 'low', 'high'}, each None where it is not known."""
  found = (tower.get('held_out') or {}).get(part) or {}
  return found.get(figure) or dict.fromkeys(('value', 'low', 'high'))


def _verdict(towers: Sequence[Mapping[str, Any]]) -> str:
  """Returns for how many objectives the scores beat each regression."""
  sentences = []
  for baseline, name in (
    ('logistic', 'a logistic regression on what the towers read'),
    ('logistic_rates', 'one that reads past rates of user and item as well'),
  ):
    counts = [
      words_of
      for model, (_, title) in _MODELS.items()
      if (words_of := _counts(towers, model, baseline, title))
    ]
    if counts:
      sentences.append(
        f'Against {name}, by the AUC on held-out users, {"; ".join(counts)}.'
      )
  if not sentences:
    return ''
  return (
    ' '.join(sentences)
    + ' “Clearly”: the 95 % interval of the difference excludes 0.'
  )


def _counts(
  towers: Sequence[Mapping[str, Any]], model: str, baseline: str, title: str
) -> str:
  """Returns where one model is above and below one baseline."""
  key = p_score_quality.gain_key(model, baseline)
  gains = {t['name']: _figure(t, key, 'auc') for t in towers}
  known = {n: g for n, g in gains.items() if words.is_known(g['value'])}
  if not known:
    return ''
  above = [n for n, g in known.items() if words.direction(g) > 0]
  below = [n for n, g in known.items() if words.direction(g) < 0]
  return (
    f'{title} is clearly above for {len(above)} of {len(known)} objectives'
    f'{_listed(above)} and clearly below for {len(below)}{_listed(below)}'
  )


def _listed(names: Sequence[str]) -> str:
  return f' ({", ".join(names)})' if names else ''


def _calibration(
  towers: Sequence[Mapping[str, Any]], pictures: words.Pictures
) -> None:
  """Adds the calibration of the towers; the P-Score estimates no one label."""
  known = [
    (t['name'], bins)
    for t in towers
    if (bins := (t.get('held_out') or {}).get('tower', {}).get('calibration'))
  ]
  if not known:
    return
  pictures.add(
    'p_score_calibration',
    figures.calibration(known),
    alt='Calibration of the towers: '
    + ', '.join(
      f'{name}: predictions {bins[0]["mean_prediction"]:.3g} to'
      f' {bins[-1]["mean_prediction"]:.3g}, labels {bins[0]["mean_label"]:.3g}'
      f' to {bins[-1]["mean_label"]:.3g}'
      for name, bins in known
    ),
    caption=(
      'Calibration of the towers on held-out users: mean label against mean'
      ' prediction in ten parts of equal size. On the dashed line predictions'
      ' are right on average.'
    ),
  )


def _labels(towers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what every tower learns from."""
  rows = []
  for tower in towers:
    judged = (tower.get('held_out') or {}).get('tower') or {}
    rows.append(
      {
        'cells': [
          tower['name'],
          tower.get('definition', words.UNKNOWN),
          words.number(tower.get('weight'), 'g'),
          words.percent(tower.get('train_known_share')),
          words.fixed(tower.get('train_mean_label')),
          words.count(judged.get('sessions')),
          words.percent(judged.get('positive_share')),
        ]
      }
    )
  return {
    'caption': (
      'Objectives: what an impression’s label is, its weight in the P-Score,'
      ' and how often it is known and true'
    ),
    'columns': [
      'objective', 'label is 1 if', 'weight', 'label known', 'mean label',
      'held-out labels', 'of these positive',
    ],
    'rows': rows,
  }  # fmt: skip


def _auc_table(
  towers: Sequence[Mapping[str, Any]], figure: str, caption: str
) -> dict[str, Any]:
  """Returns one row per objective: all predictors, and gains of ours.

  Args:
    towers: of the result.
    figure: 'auc' or 'grouped_auc'.
    caption: of the table.
  """
  rows = []
  for tower in towers:
    cells: list[Any] = [tower['name']]
    for part in _PREDICTORS:
      cells.append(_cell(_figure(tower, part, figure)))
    for model, baseline in _GAINS:
      gain = _figure(tower, p_score_quality.gain_key(model, baseline), figure)
      change = {**gain, 'mean': gain['value']}
      cells.append(
        words.cell(
          words.difference(change),
          words.difference_bounds(change),
          best=words.direction(change) > 0,
        )
      )
    rows.append({'cells': cells})
  return {
    'sticky': True,
    'caption': caption,
    'columns': [
      'objective', *_PREDICTORS.values(),
      *(
        f'{_MODELS[model][0]} over {_BASELINES[baseline]}'
        for model, baseline in _GAINS
      ),
    ],
    'rows': rows,
  }  # fmt: skip


def _personalisation(result: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns what lists made for one user are worth beside one for all."""
  found = result.get('personalisation')
  if not found:
    return None
  rows = []
  for name, worth in found['scores'].items():
    gain = worth['gain']
    rows.append(
      {
        'cells': [
          'P-Score' if name == 'p_score' else name,
          *(
            words.fixed(worth[key])
            for key in ('all_items', 'one_list', 'own_list')
          ),
          words.cell(
            words.percent(gain['value']),
            f'{words.percent(gain["low"])} to {words.percent(gain["high"])}',
          ),
        ]
      }
    )
  return {
    'caption': (
      'How much of a score is the user’s own taste:'
      f' {words.count(found["items_per_list"])} items, the best for all of'
      f' {words.count(found["users"])} held-out users together, and the best'
      ' for each. The gain bounds what any knowledge of users can add to the'
      ' scores of generated items'
    ),
    'columns': ['score', 'all items', 'one list', 'own lists', 'gain'],
    'rows': rows,
  }


def _cell(interval: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a figure with its bounds; three decimals, as of all AUCs."""
  value, low, high = (
    words.fixed(interval[key], 3) for key in ('value', 'low', 'high')
  )
  return words.cell(value, f'{low} to {high}')
