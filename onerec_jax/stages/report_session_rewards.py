"""The report's sections on generated sessions, before and after alignment.

Turns `session_rewards` of the stage `evaluate` into tables, sentences and
pictures; computes nothing but ratios.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import predictions
from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_reward_table as reward_table
from onerec_jax.stages import report_words as words

_TRUE = 'true_'


def is_true(column: str) -> bool:
  """Returns whether a column holds true rewards, not predicted ones."""
  return column.startswith(_TRUE)


def section(
  evaluated: Mapping[str, Any] | None, pictures: words.Pictures
) -> dict[str, Any] | None:
  """Returns what the section on session rewards shows; adds its pictures."""
  found = (evaluated or {}).get('session_rewards')
  if not evaluated or not found:
    return None
  columns = found['columns']
  changes = reward_table.changes(found)
  if changes:
    predicted, true = (
      {_shown(c): v for c, v in changes.items() if is_true(c) == wanted}
      for wanted in (False, True)
    )
    pictures.add(
      'session_rewards',
      figures.relative_changes(predicted, true, label='change by alignment'),
      alt='Change of the rewards by alignment: '
      + ', '.join(
        f'{c.replace("_", " ")} {100 * v["mean"]:+.1f} %'
        for c, v in changes.items()
      ),
      caption=(
        'Change of every reward by alignment, in percents of its mean before,'
        ' with 95 % intervals (paired over users).'
        + (' Indigo: predicted, teal: true.' if true else '')
      ),
    )
  titles = reward_table.titles(evaluated, found)
  return {
    'protocol': (
      f'For every user, {found["sessions_per_user"]} sessions of'
      f' {found["items_per_session"]} items are generated and judged by the'
      ' reward model: “mean” is their average, “max” the best of them.'
      ' “reward” is the weighted sum of the targets.'
      + (
        ' True rewards are expectations by the law of the simulated world.'
        if any(map(is_true, columns))
        else ''
      )
    ),
    'verdict': _verdict(found),
    'tables': [
      reward_table.table(
        found,
        titles,
        chosen,
        caption=caption,
        name=_shown,
        left_out=('users_without_session', 'a legal session'),
      )
      for caption, chosen in (
        (
          'Predicted by the reward model',
          [c for c in columns if not is_true(c)],
        ),
        ('True, by the law of the world', [c for c in columns if is_true(c)]),
      )
      if chosen
    ],
    'legality': _legality(found, titles),
  }


def cards(evaluated: Mapping[str, Any] | None) -> list[dict[str, str]]:
  """Returns two cards: what alignment changed; none without alignment."""
  found = (evaluated or {}).get('session_rewards')
  changes = reward_table.changes(found) if found else {}
  wanted = ('reward_mean', 'true_reward_mean', 'reward_max')
  names = {
    'reward_mean': 'Predicted reward',
    'true_reward_mean': 'True reward',
    'reward_max': 'Best session’s reward',
  }
  return [
    {
      'label': names[column],
      'value': reward_table.percents(changes[column]['mean']),
      'note': f'{reward_table.percents(changes[column]["low"])} to'
      f' {reward_table.percents(changes[column]["high"])} by alignment',
    }
    for column in [c for c in wanted if c in changes][:2]
  ]


def _shown(column: str) -> str:
  """Returns 'swt mean' for 'swt_mean' and for 'true_swt_mean'."""
  return column.removeprefix(_TRUE).replace('_', ' ')


def _verdict(found: Mapping[str, Any]) -> str:
  """Returns a sentence on the mean reward, predicted and true."""
  if reward_table.base_of(found) is None:
    return ''
  parts = []
  for column, name in (
    ('reward_mean', 'predicted'),
    ('true_reward_mean', 'true'),
  ):
    difference = found['methods'][predictions.OURS]['difference'].get(column)
    if difference is None:
      continue
    verb = {1: 'raised', -1: 'lowered', 0: 'did not clearly change'}
    parts.append(
      f'{verb[words.direction(difference)]} the {name} reward'
      f' ({reward_table.moved(found, column)})'
    )
  return f'Alignment {" and ".join(parts)}.' if parts else ''


def _legality(
  found: Mapping[str, Any], titles: Mapping[str, str]
) -> dict[str, Any] | None:
  """Returns the shares of legal sessions and items of free decoding."""
  rows = [
    {
      'ours': method == predictions.OURS,
      'cells': [
        titles[method],
        words.percent(legality.get('free_sessions'), 2),
        words.percent(legality.get('free_items'), 2),
      ],
    }
    for method, entry in found['methods'].items()
    if (legality := entry.get('legality'))
  ]
  if not rows:
    return None
  return {
    'caption': (
      'Legality when decoding is free (no trie): the share of generated IDs'
      ' that belong to an item'
    ),
    'columns': ['method', 'whole sessions', 'items'],
    'rows': rows,
  }


# --- Prediction dynamics ----------------------------------------------------


def dynamics(
  evaluated: Mapping[str, Any] | None, pictures: words.Pictures
) -> dict[str, Any] | None:
  """Returns the names of the pictures of every kept user; adds them."""
  found = (evaluated or {}).get('session_rewards') or {}
  entries: Sequence[Mapping[str, Any]] = found.get('dynamics') or []
  names = []
  for number, entry in enumerate(entries):
    probabilities = entry.get('probabilities') or {}
    base = found.get('base')
    order = [m for m in probabilities if m == base]
    order += [m for m in probabilities if m != base]
    if not order:
      continue
    short = {m: _short(m, compared=len(order) > 1) for m in order}
    codes = entry['codes']
    name = f'dynamics_{number}'
    pictures.add(
      name,
      figures.code_probabilities(
        {short[m]: probabilities[m] for m in order}, codes
      ),
      alt=f'Codes of {entry["item"]}: '
      + '; '.join(
        f'{short[m]}: '
        + ', '.join(
          f'level {l + 1} probability {probabilities[m][l][code]:.3f}, entropy'
          f' {figures.entropy(probabilities[m][l]):.2f} nats'
          for l, code in enumerate(codes)
        )
        for m in order
      ),
      caption=(
        f'{entry["item"]}; its session has reward'
        f' {words.fixed(entry["reward"])}.'
      ),
    )
    names.append(name)
  return {'names': names} if names else None


def _short(method: str, *, compared: bool) -> str:
  if not compared:
    return 'probability'
  return {predictions.BEFORE: 'before', predictions.OURS: 'after'}.get(
    method, method
  )
