"""The report's section on the session reward model.

Turns what the stage `reward` has written into tables and pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_words as words
from onerec_jax.train import log


def section(
  result: Mapping[str, Any] | None,
  records: Sequence[Mapping[str, Any]],
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what the section on the reward model shows; adds its pictures.

  Args:
    result: of the stage `reward`.
    records: of its training.
    pictures: of the page.
  """
  if not result:
    return None
  towers = [
    (t['name'], t['held_out']['calibration'])
    for t in result.get('targets', ())
    if (t.get('held_out') or {}).get('calibration')
  ]
  if towers:
    pictures.add(
      'calibration',
      figures.calibration(towers),
      alt='Calibration of '
      + ', '.join(
        f'{name}: predictions {b[0]["mean_prediction"]:.3g} to'
        f' {b[-1]["mean_prediction"]:.3g}, labels {b[0]["mean_label"]:.3g} to'
        f' {b[-1]["mean_label"]:.3g}'
        for name, b in towers
      ),
      caption=(
        'Calibration on held-out users: mean label against mean prediction in'
        ' ten parts of equal size. On the dashed line predictions are right'
        ' on average.'
      ),
    )
  report_curves.add_curves(
    [(0, records)],
    {'training': 'loss', 'validation': 'valid/loss'},
    pictures,
    'reward_loss',
    caption='Loss of the reward model (nats, summed over the towers).',
    label='loss',
    emphasis='validation',
  )
  return {
    'summary': _reward_summary(result),
    'towers': tower_table(result.get('targets') or ()),
  }


def _reward_summary(result: Mapping[str, Any]) -> str:
  sessions = result.get('sessions') or {}
  parts = [
    f'{words.compact(result.get("num_parameters"))} parameters,'
    f' {words.count(result.get("steps"))} steps in'
    f' {log.duration(float(result.get("training_seconds") or 0))}'
  ]
  if sessions:
    parts.append(
      f'trained on {words.count(sessions.get("train"))} sessions of'
      f' {words.count(sessions.get("train_users"))} users and judged on'
      f' {words.count(sessions.get("held_out_judged"))} sessions of'
      f' {words.count(sessions.get("items_per_session"))} items of'
      f' {words.count(sessions.get("held_out_users"))} other users'
    )
  return '; '.join(parts) + '.'


def tower_table(targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns one row per target: labels, AUCs and loss on held-out users."""
  rows = []
  for target in targets:
    found = target.get('held_out') or {}
    rows.append(
      {
        'note': target.get('definition', ''),
        'cells': [
          target['name'],
          words.number(target.get('weight'), 'g'),
          words.percent(target.get('train_known_share')),
          words.fixed(target.get('train_mean_label')),
          words.percent(found.get('positive_share')),
          *_with_interval(found.get('auc')),
          *_with_interval(found.get('grouped_auc')),
          words.fixed((found.get('bce') or {}).get('value')),
          words.fixed(found.get('bce_constant')),
        ],
      }
    )
  return {
    'caption': (
      'Towers on held-out users. GAUC is the AUC within a user, averaged over'
      ' the users whose sessions are of both kinds; the loss of a constant is'
      ' that of predicting the mean label'
    ),
    'columns': [
      'target', 'weight', 'label known', 'mean label', 'positive', 'AUC',
      '95 %', 'GAUC', '95 %', 'loss', 'constant',
    ],
    'rows': rows,
  }  # fmt: skip


def _with_interval(figure: Mapping[str, Any] | None) -> tuple[str, str]:
  """Returns 'value' and its bounds as two cells."""
  if not figure or not words.is_known(figure.get('value')):
    return words.UNKNOWN, ''
  if not words.is_known(figure.get('low')):
    return words.fixed(figure['value'], 3), ''
  return words.fixed(figure['value'], 3), words.bounds(figure)
