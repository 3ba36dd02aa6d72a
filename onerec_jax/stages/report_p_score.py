"""The report's section on the P-Score model and its towers.

Turns what the stage `p_score` has written into tables, a sentence and
pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

# What predicts a label: key in the result -> column of the table.
_PREDICTORS = {
  'tower': 'tower',
  'p_score': 'P-Score',
  'baseline': 'logistic regression',
}


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
      'AUC on held-out users. The regression has the same features, and the'
      ' penalty that is best for these very impressions. Bold: a gain over it'
      ' whose 95 % interval is above 0',
    ),
    'gauc': _auc_table(
      towers,
      'grouped_auc',
      'The same within a user (GAUC), averaged over the users whose impressions'
      ' are of both kinds',
    ),
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
  """Returns for how many objectives the scores beat the regression."""
  counts = []
  for part, name in (
    ('p_score', 'the P-Score'),
    ('tower', 'an objective’s own tower'),
  ):
    gains = {t['name']: _figure(t, f'{part}_gain', 'auc') for t in towers}
    known = {n: g for n, g in gains.items() if words.is_known(g['value'])}
    if not known:
      continue
    above = [n for n, g in known.items() if words.direction(g) > 0]
    below = [n for n, g in known.items() if words.direction(g) < 0]
    counts.append(
      f'{name} is clearly above for {len(above)} of {len(known)} objectives'
      f'{_listed(above)} and clearly below for {len(below)}{_listed(below)}'
    )
  if not counts:
    return ''
  return (
    'Against a logistic regression on the same features, by the AUC on held-out'
    f' users, {"; ".join(counts)}. “Clearly”: the 95 % interval of the'
    ' difference excludes 0.'
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
    for part in ('tower', 'p_score'):
      gain = _figure(tower, f'{part}_gain', figure)
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
      'objective', *_PREDICTORS.values(), 'tower’s gain', 'P-Score’s gain',
    ],
    'rows': rows,
  }  # fmt: skip


def _cell(interval: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a figure with its bounds; three decimals, as of all AUCs."""
  value, low, high = (
    words.fixed(interval[key], 3) for key in ('value', 'low', 'high')
  )
  return words.cell(value, f'{low} to {high}')
