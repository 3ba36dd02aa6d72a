"""The report's sections on generated sessions, before and after alignment.

Turns `session_rewards` of the stage `evaluate` into tables, sentences and
pictures; computes nothing but ratios.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import predictions
from onerec_jax.stages import report_alignment_figures as figures
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
  ours, base = predictions.OURS, found['base']
  compared = base != ours and base in found['methods']
  columns = found['columns']
  changes = _changes(found, ours, base) if compared else {}
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
  titles = {m: _title(evaluated, m) for m in found['methods']}
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
    'verdict': _verdict(found, ours, base) if compared else '',
    'tables': [
      _table(found, titles, chosen, ours=ours, base=base, caption=caption)
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
  if not found or found['base'] == predictions.OURS:
    return []
  ours, base = predictions.OURS, found['base']
  changes = _changes(found, ours, base)
  wanted = ('reward_mean', 'true_reward_mean', 'reward_max')
  names = {
    'reward_mean': 'Predicted reward',
    'true_reward_mean': 'True reward',
    'reward_max': 'Best session’s reward',
  }
  return [
    {
      'label': names[column],
      'value': _percents(changes[column]['mean']),
      'note': f'{_percents(changes[column]["low"])} to'
      f' {_percents(changes[column]["high"])} by alignment',
    }
    for column in [c for c in wanted if c in changes][:2]
  ]


def _shown(column: str) -> str:
  """Returns 'swt mean' for 'swt_mean' and for 'true_swt_mean'."""
  return column.removeprefix(_TRUE).replace('_', ' ')


def _percents(share: float) -> str:
  return f'{100 * share:+.1f} %'.replace('-', '−')


def _title(evaluated: Mapping[str, Any], method: str) -> str:
  known = (evaluated.get('methods') or {}).get(method) or {}
  return known.get('title', method)


def _changes(
  found: Mapping[str, Any], ours: str, base: str
) -> dict[str, dict[str, float]]:
  """Returns the differences as shares of the mean before, where it is > 0."""
  changes = {}
  for column in found['columns']:
    difference = found['methods'][ours]['difference'].get(column) or {}
    before = found['methods'][base]['figures'][column]['mean']
    bounds = [difference.get(k) for k in ('mean', 'low', 'high')]
    if (
      words.is_known(before) and before > 0 and all(map(words.is_known, bounds))
    ):
      changes[column] = {
        k: v / before
        for k, v in zip(('mean', 'low', 'high'), bounds, strict=True)
      }
  return changes


def _verdict(found: Mapping[str, Any], ours: str, base: str) -> str:
  """Returns a sentence on the mean reward, predicted and true."""
  parts = []
  for column, name in (
    ('reward_mean', 'predicted'),
    ('true_reward_mean', 'true'),
  ):
    difference = found['methods'][ours]['difference'].get(column)
    if difference is None:
      continue
    verb = {1: 'raised', -1: 'lowered', 0: 'did not clearly change'}
    before = found['methods'][base]['figures'][column]['mean']
    parts.append(
      f'{verb[words.direction(difference)]} the {name} reward'
      f' ({words.difference(difference)},'
      f' {words.relative(difference, before)}; 95 % interval'
      f' {words.difference_bounds(difference)})'
    )
  return f'Alignment {" and ".join(parts)}.' if parts else ''


def _table(
  found: Mapping[str, Any],
  titles: Mapping[str, str],
  columns: Sequence[str],
  *,
  ours: str,
  base: str,
  caption: str,
) -> dict[str, Any]:
  """Returns one row per reward, one column per model."""
  order = [base, *(m for m in found['methods'] if m != base)]
  compared = [m for m in order if m == ours and m != base]
  rows = []
  for column in columns:
    cells = {m: found['methods'][m]['figures'][column] for m in order}
    digits = words.decimals(c['mean'] for c in cells.values())
    row = [
      _shown(column),
      *(
        words.cell(
          words.fixed(c['mean'], digits), words.plus_minus(c['std'], digits)
        )
        for c in cells.values()
      ),
    ]
    for method in compared:
      difference = found['methods'][method]['difference'][column]
      row += [
        words.cell(
          words.difference(difference, digits),
          words.difference_bounds(difference, digits),
        ),
        words.relative(difference, cells[base]['mean']),
      ]
    rows.append({'cells': row})
  without = [
    f'{titles[m]}: {found["methods"][m].get("users_without_session", 0):,}'
    for m in order
    if found['methods'][m].get('users_without_session')
  ]
  users = found['methods'][ours].get('users')
  return {
    'sticky': True,
    'caption': (
      f'{caption}; {words.count(users)} users, ± over'
      f' {words.count(found.get("resamples"))} resamples'
      + (
        f'; users without a legal session: {", ".join(without)}'
        if without
        else ''
      )
    ),
    'columns': [
      'reward',
      *(titles[m] for m in order),
      *(('difference', 'relative') if compared else ()),
    ],
    'rows': rows,
  }


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
