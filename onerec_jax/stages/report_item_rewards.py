"""The report's section on generated items, before and after reinforcement.

Turns `item_rewards` of the stage `evaluate` into tables, sentences and a
picture; computes nothing but ratios.
"""

from collections.abc import Mapping
from typing import Any

from onerec_jax.stages import predictions
from onerec_jax.stages import report_reinforce_figures as figures
from onerec_jax.stages import report_reward_table as reward_table
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_words as words

_PREDICTED, _TRUE = 'p_score_mean', 'true_p_score_mean'
_NAMES = {_PREDICTED: 'predicted P-Score', _TRUE: 'true P-Score'}
_VERBS = {1: 'raised', -1: 'lowered', 0: 'did not clearly change'}


def section(
  evaluated: Mapping[str, Any] | None,
  pictures: words.Pictures,
  *,
  cause: str = 'Further training',
) -> dict[str, Any] | None:
  """Returns what the section on generated items shows; adds its picture.

  Args:
    evaluated: result of the stage `evaluate`.
    pictures: of the page.
    cause: what happened between the two models, as a sentence begins.
  """
  found = (evaluated or {}).get('item_rewards')
  if not evaluated or not found:
    return None
  titles = reward_table.titles(evaluated, found)
  _pass_picture(found, titles, pictures)
  is_true = report_session_rewards.is_true
  predicted = [c for c in found['columns'] if not is_true(c)]
  true = [c for c in found['columns'] if is_true(c)]
  return {
    'protocol': _protocol(found, has_truth=bool(true)),
    'verdict': _verdict(found, cause),
    'warning': _warning(found),
    'tables': [
      reward_table.table(
        found,
        titles,
        columns,
        caption=caption,
        name=_name,
        left_out=('users_without_session', 'a legal item among the first K'),
      )
      for caption, columns in (
        ('Predicted by the P-Score model', predicted),
        ('True, by the law of the world', true),
      )
      if columns
    ],
    'legality': _legality(found, titles),
  }


def cards(
  evaluated: Mapping[str, Any] | None, *, cause: str = 'Further training'
) -> list[dict[str, str]]:
  """Returns what changed of the P-Score, predicted and true; none if unknown.

  Args:
    evaluated: result of the stage `evaluate`.
    cause: see `section`.
  """
  found = (evaluated or {}).get('item_rewards')
  changes = reward_table.changes(found) if found else {}
  return [
    {
      'label': label,
      'value': reward_table.percents(changes[column]['mean']),
      'note': f'{reward_table.percents(changes[column]["low"])} to'
      f' {reward_table.percents(changes[column]["high"])} by {cause.lower()}',
    }
    for column, label in (
      (_PREDICTED, 'Predicted P-Score'),
      (_TRUE, 'True P-Score'),
    )
    if column in changes
  ]


def _name(column: str) -> str:
  """Returns 'P-Score pass@8' for 'p_score_pass@8' and its true column."""
  return predictions.reward_name(column.removeprefix('true_'))


def _protocol(found: Mapping[str, Any], *, has_truth: bool) -> str:
  sizes = ', '.join(str(k) for k in found['pass_at'])
  return (
    f'For every user, the {found["items_per_user"]:,} best items of the model'
    ' are generated and judged by the P-Score model: “mean” is the average of'
    f' the legal ones, “pass@K” the best of the first K ({sizes}). “P-Score”'
    ' is the one score of all objectives, the other names are single'
    ' objectives.'
    + (
      ' True figures are probabilities by the law of the simulated world; the'
      ' true P-Score is their weighted mean.'
      if has_truth
      else ''
    )
  )


def _difference(found: Mapping[str, Any], column: str) -> Any:
  """Returns our difference in a column, None where there is none."""
  if reward_table.base_of(found) is None:
    return None
  difference = found['methods'][predictions.OURS]['difference'].get(column)
  return (
    difference if difference and words.is_known(difference['mean']) else None
  )


def _verdict(found: Mapping[str, Any], cause: str) -> str:
  """Returns a sentence on the true P-Score, else on the predicted one."""
  for column in (_TRUE, _PREDICTED):
    difference = _difference(found, column)
    if difference is not None:
      return (
        f'{cause} {_VERBS[words.direction(difference)]} the {_NAMES[column]}'
        f' of generated items: {reward_table.moved(found, column)} (paired over'
        ' users).'
      )
  return ''


def _warning(found: Mapping[str, Any]) -> str:
  """Returns a sentence where only the prediction rose; '' elsewhere."""
  predicted, true = (_difference(found, c) for c in (_PREDICTED, _TRUE))
  if predicted is None or true is None:
    return ''
  if words.direction(predicted) <= 0 or words.direction(true) > 0:
    return ''
  fell = words.direction(true) < 0
  return (
    'The predicted P-Score rose'
    f' ({reward_table.moved(found, _PREDICTED)}) while the true one'
    f' {"fell" if fell else "did not clearly change"}'
    f' ({reward_table.moved(found, _TRUE)}): the model'
    f' {"exploits" if fell else "may exploit"} errors of the P-Score model'
    ' (reward hacking).'
  )


def _pass_picture(
  found: Mapping[str, Any],
  titles: Mapping[str, str],
  pictures: words.Pictures,
) -> None:
  """Adds the best P-Score of the first K items over K."""
  models, base = reward_table.order(found), reward_table.base_of(found)
  sizes = sorted(found['pass_at'])
  panels, texts = {}, []
  for target, name in (('p_score', 'predicted'), ('true_p_score', 'true')):
    columns = [f'{target}_pass@{k}' for k in sizes]
    if not columns or any(c not in found['columns'] for c in columns):
      continue
    lines = {
      m: [found['methods'][m]['figures'][c] for c in columns] for m in models
    }
    if not any(words.is_known(v['mean']) for l in lines.values() for v in l):
      continue
    panels[name] = {titles[m]: values for m, values in lines.items()}
    texts += [
      f'{titles[m]}, {name}: '
      + ', '.join(
        f'{words.fixed(v["mean"])} at K = {k}'
        for k, v in zip(sizes, values, strict=True)
      )
      for m, values in lines.items()
    ]
  if not panels:
    return
  pictures.add(
    'pass_at_k',
    figures.pass_at(sizes, panels, before=titles[base] if base else None),
    alt='Best P-Score of the first K items. ' + '; '.join(texts),
    caption=(
      'Pass@K: the best P-Score among the first K generated items, mean over'
      ' users with 95 % intervals.'
      + (' Indigo: predicted, teal: true.' if len(panels) > 1 else '')
    ),
  )


def _legality(
  found: Mapping[str, Any], titles: Mapping[str, str]
) -> dict[str, Any] | None:
  """Returns the share of legal items of free decoding."""
  rows = [
    {
      'ours': method == predictions.OURS,
      'cells': [
        titles[method],
        words.percent(found['methods'][method]['legality']['free_items'], 2),
      ],
    }
    for method in reward_table.order(found)
    if (found['methods'][method].get('legality') or {}).get('free_items')
    is not None
  ]
  if not rows:
    return None
  return {
    'caption': (
      'Legality when decoding is free (no trie): the share of generated IDs'
      ' that belong to an item'
    ),
    'columns': ['method', 'legal items'],
    'rows': rows,
  }
