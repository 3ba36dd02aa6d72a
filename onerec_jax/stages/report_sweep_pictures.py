"""The pictures of a sweep's page: from its JSON to what is drawn.

Computes nothing but ratios; leaves out what was not recorded.
"""

import itertools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import published
from onerec_jax.stages import report_alignment
from onerec_jax.stages import report_reinforce_figures as lines
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_sweep_figures as figures
from onerec_jax.stages import report_sweep_rows as sweep_rows
from onerec_jax.stages import report_words as words

# One line per variant, in this order.
_TONES = (
  lines.OTHER, lines.BAD, lines.MAIN, lines.TRUE, lines.LIGHT,
  lines.PREDICTED_BEST, lines.TRUE_BEST,
)  # fmt: skip


def _dots(result: Mapping[str, Any], column: str) -> list[figures.Dot]:
  found = []
  for row in result['rows']:
    figure = row['figures'][column]
    found.append(
      figures.Dot(
        *(
          figure[k] if words.is_known(figure[k]) else float('nan')
          for k in ('mean', 'low', 'high')
        ),
        direction=words.direction(row['difference'][column]),
        seeds=[
          s[column]
          for s in row.get('seeds') or ()
          if words.is_known(s.get(column))
        ],
      )
    )
  return found


def dot_pictures(
  result: Mapping[str, Any], pictures: words.Pictures
) -> list[str]:
  """Adds one picture per target; true rewards per target are in the table."""
  targets = dict.fromkeys(
    sweep_rows.target_of(c)
    for c in result['columns']
    if sweep_rows.target_of(c) in sweep_rows.TOTALS
    or not report_session_rewards.is_true(c)
  )
  names = [r['name'] for r in result['rows']]
  added = []
  for target in targets:
    chosen = [c for c in result['columns'] if sweep_rows.target_of(c) == target]
    # Of many Pass@K the first and the last: more panels cannot be read.
    chosen = [*chosen[:2], *chosen[2:][-1:]]
    columns = {c.replace('_', ' '): _dots(result, c) for c in chosen}
    pictures.add(
      f'dots_{target}',
      figures.dots(names, columns, base=result['base']),
      alt='; '.join(
        f'{title}: '
        + ', '.join(
          f'{n} {words.fixed(d.mean)}' for n, d in zip(names, dots, strict=True)
        )
        for title, dots in columns.items()
      ),
      caption=(
        f'{target.replace("_", " ").capitalize()}: average and best'
        f' {sweep_rows.judged(result)}.'
      ),
    )
    added.append(f'dots_{target}')
  return added


def _changes(
  result: Mapping[str, Any], column: str
) -> dict[str, figures.Dot] | None:
  """Returns differences to the base as shares of it; None: it is not > 0."""
  base = next(r for r in result['rows'] if r['name'] == result['base'])
  before = base['figures'][column]['mean']
  if not words.is_known(before) or before <= 0:
    return None
  found = {}
  for row in result['rows']:
    d = row['difference'][column]
    if row['name'] == result['base']:
      found[row['name']] = figures.Dot(0.0, 0.0, 0.0, 0)
    elif all(words.is_known(d[k]) for k in ('mean', 'low', 'high')):
      found[row['name']] = figures.Dot(
        d['mean'] / before,
        d['low'] / before,
        d['high'] / before,
        words.direction(d),
      )
  return found


def _is_aligned(row: Mapping[str, Any]) -> bool:
  return any(row.get('rounds') or ())


def truth_picture(
  result: Mapping[str, Any], pictures: words.Pictures
) -> list[str]:
  """Adds true over predicted reward of aligned rows, where truth is known."""
  total = 'p_score' if sweep_rows.judged(result) == 'item' else 'reward'
  if f'true_{total}_mean' not in result['columns']:
    return []
  predicted = _changes(result, f'{total}_mean')
  true = _changes(result, f'true_{total}_mean')
  if predicted is None or true is None:
    return []
  aligned = {r['name'] for r in result['rows'] if _is_aligned(r)}
  if aligned:  # other models are far away and would crowd them
    aligned.add(result['base'])
    predicted = {n: d for n, d in predicted.items() if n in aligned}
  names = [n for n in predicted if n in true]
  pictures.add(
    'predicted_against_true',
    figures.predicted_against_true(
      names,
      [predicted[n] for n in names],
      [true[n] for n in names],
      base=result['base'],
    ),
    alt=f'Change against {result["base"]}, predicted and true: '
    + ', '.join(
      f'{n} {100 * predicted[n].mean:+.1f} % and {100 * true[n].mean:+.1f} %'
      for n in names
    ),
    caption=(
      'True against predicted reward (means, relative to the base). Below the'
      ' dashed line the reward model promises more than is true; right of and'
      ' below the origin it is being fooled.'
    ),
  )
  return ['predicted_against_true']


def _per_round(found: Mapping[str, Any]) -> tuple[Any, Any]:
  """Returns predicted and true reward of a round; None where not recorded.

  Of sessions for validation users after the round, or else of the candidates
  for training users before it.
  """
  final = found.get('final') or {}
  both = final.get('valid/reward_mean'), final.get('valid/true_reward_mean')
  if all(map(words.is_known, both)):
    return both
  rollouts = found.get('rollouts') or {}
  return (
    report_alignment.round_means(rollouts)['candidates'],
    report_alignment.round_means(rollouts, prefix='true_')['candidates'],
  )


def round_picture(
  result: Mapping[str, Any], pictures: words.Pictures
) -> list[str]:
  """Adds predicted and true reward per round, where both are recorded."""
  rows = {}
  for row in result['rows']:
    seeds = [
      [_per_round(r) for r in seed]
      for seed in row.get('rounds') or ()
      if seed and len(seed) > 1
    ]
    if seeds and all(v is not None for s in seeds for r in s for v in r):
      rows[row['name']] = tuple(
        [[r[i] for r in seed] for seed in seeds] for i in (0, 1)
      )
  if not rows:
    return []
  pictures.add(
    'rounds',
    figures.rounds(rows, label='reward'),
    alt='Predicted and true reward per round: '
    + '; '.join(
      f'{name}: {", ".join(words.fixed(v, 3) for v in p[0])} and'
      f' {", ".join(words.fixed(v, 3) for v in t[0])}'
      for name, (p, t) in rows.items()
    ),
    caption=(
      'Predicted and true reward per round of alignment, one line per seed.'
      ' Lines that drift apart show a reward model that is being fooled.'
    ),
  )
  return ['rounds']


def legality_picture(
  result: Mapping[str, Any], pictures: words.Pictures
) -> list[str]:
  """Adds legality over the steps of reinforcement, of the first seed."""
  curves = {
    row['name']: row['legality_curves'][0]
    for row in result['rows']
    if (row.get('legality_curves') or [None])[0]
  }
  if not curves:
    return []
  pictures.add(
    'legality',
    lines.lines(
      {
        name: ([s for s, _ in curve], [v for _, v in curve], tone)
        for (name, curve), tone in zip(
          curves.items(), itertools.cycle(_TONES), strict=False
        )
      },
      label='legal IDs, free decoding',
      percent=True,
    ),
    alt='Legality over the steps: '
    + '; '.join(
      f'{name}: {words.percent(curve[0][1])} to {words.percent(curve[-1][1])}'
      for name, curve in curves.items()
    ),
    caption=(
      'Share of generated IDs that belong to an item, validation users, free'
      ' decoding, over the steps of reinforcement.'
    ),
  )
  return ['legality']


def series_pictures(
  result: Mapping[str, Any],
  found: Sequence[Mapping[str, Any]],
  pictures: words.Pictures,
) -> list[str]:
  """Adds figures over each setting, beside Figure 4 where it is r_DPO."""
  added = []
  for number, one in enumerate(found):
    part = {**result, 'rows': one['rows']}
    columns = [
      c
      for c in result['columns']
      if sweep_rows.target_of(c) == 'true_reward'
      or not report_session_rewards.is_true(c)
    ]
    dots = {c: _dots(part, c) for c in columns}
    dots = {
      c.replace('_', ' '): d
      for c, d in dots.items()
      if all(v.mean > 0 for v in d)
    }
    if not dots:
      continue
    same = one['key'] in ('r', 'r_DPO') and tuple(one['values']) == (
      published.FIGURE_4_PERCENT
    )
    known = {c.replace('_', ' '): v for c, v in published.FIGURE_4.items()}
    label = f'{one["key"]}{", %" if one["unit"] else ""} ({one["prefix"]})'
    pictures.add(
      f'series_{number}',
      figures.override_lines(
        one['values'], dots, label=label, published=known if same else {}
      ),
      alt=f'Over {label}: '
      + '; '.join(
        f'{c} {", ".join(words.fixed(v.mean) for v in d)}'
        for c, d in dots.items()
      ),
      caption=(
        f'Change of every reward with {one["key"]}, relative to its value at'
        f' {one["values"][0]:g}{one["unit"]}; band: 95 % interval.'
        + (
          ' Dashed: Figure 4 of the paper, where the order of its labels is'
          ' certain.'
          if same
          else ''
        )
      ),
    )
    added.append(f'series_{number}')
  return added
