"""Rows of a sweep's tables, and which columns belong together.

Reads the JSON of `sweep`; knows neither terminal nor page.
"""

import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import published
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_words as words

# Columns that stand for all targets together.
TOTALS = ('reward', 'true_reward', 'p_score', 'true_p_score')
# 'IPA r=1%', 'IPA beta = 0.1', 'r_DPO 3%': a setting and its number.
_OVERRIDE = re.compile(r'^(.*?)[\s,:]*\b(\w+)\s*[= ]\s*([\d.]+)\s*(%?)$')


def judged(result: Mapping[str, Any]) -> str:
  """Returns what the variants generated: 'session' or 'item'."""
  return 'item' if result.get('judge') == 'items' else 'session'


def target_of(column: str) -> str:
  """Returns 'swt' for 'swt_mean'."""
  return column.rpartition('_')[0]


def reward_rows(
  result: Mapping[str, Any], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields every variant's figures and, below it, the published ones."""
  best, digits = {}, {}
  for column in columns:
    means = [r['figures'][column]['mean'] for r in result['rows']]
    best[column] = max((m for m in means if words.is_known(m)), default=None)
    digits[column] = words.decimals(means)
  for row in result['rows']:
    cells: list[Any] = [row['name']]
    for column in columns:
      figure = row['figures'][column]
      cells.append(
        words.cell(
          words.fixed(figure['mean'], digits[column]),
          words.plus_minus(figure['std'], digits[column]),
          best=best[column] is not None and figure['mean'] == best[column],
        )
      )
    yield {'cells': cells, 'base': row['name'] == result['base']}
    if not row.get('published'):
      continue
    name = published.find(row['published'])
    found = published.TABLE_1[name] if name else {}
    shown = (name or f'{row["published"]} (unknown)').removeprefix(
      published.BASE + '+'
    )
    cells = [f'paper: {"+" if "+" in (name or "") else ""}{shown}']
    for column in columns:
      value, spread = found.get(column, (None, None))
      # The paper gives three decimals of ±.
      cells.append(
        words.UNKNOWN
        if value is None
        else words.cell(
          words.fixed(value, digits[column]), words.plus_minus(spread, 3)
        )
      )
    yield {'cells': cells, 'dim': True}


def difference_columns(result: Mapping[str, Any]) -> list[str]:
  """Returns what is compared: rewards, or without truth the maxima too."""
  totals = [c for c in result['columns'] if target_of(c) in TOTALS]
  if any(map(report_session_rewards.is_true, totals)):
    return totals
  maxima = [
    c
    for c in result['columns']
    if c.endswith('_max') and target_of(c) not in TOTALS
  ]
  return [*totals, *maxima]


def difference_rows(
  result: Mapping[str, Any], columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields every variant's legality and its differences to the base."""
  digits = {
    c: words.decimals(r['figures'][c]['mean'] for r in result['rows'])
    for c in columns
  }
  for row in result['rows']:
    legal = [
      words.percent(_mean_legality(row, kind))
      for kind in ('free_sessions', 'free_items')
    ]
    cells: list[Any] = [
      row['name'],
      words.UNKNOWN if set(legal) == {words.UNKNOWN} else ' / '.join(legal),
    ]
    for column in columns:
      if row['name'] == result['base']:
        cells.append('base')
        continue
      difference = row['difference'][column]
      cells.append(
        words.cell(
          words.difference(difference, digits[column]),
          words.difference_bounds(difference, digits[column]),
          best=words.direction(difference) > 0,
        )
      )
    yield {'cells': cells, 'base': row['name'] == result['base']}


def _mean_legality(row: Mapping[str, Any], kind: str) -> float | None:
  known = [s[kind] for s in row.get('legality') or () if kind in (s or {})]
  return sum(known) / len(known) if known else None


def series(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the rows that differ in one number of their names, by number.

  'IPA r=1%' ... 'IPA r=5%' are one series: {'prefix': 'IPA', 'key': 'r',
  'unit': '%', 'values': [1.0, ...], 'rows': [...]}; three rows at least.
  """
  found: dict[tuple[str, str, str], list[tuple[float, Any]]] = {}
  for row in result['rows']:
    match = _OVERRIDE.match(row['name'])
    if match:
      prefix, key, number, unit = match.groups()
      found.setdefault((prefix, key, unit), []).append((float(number), row))
  return [
    {
      'prefix': prefix,
      'key': key,
      'unit': unit,
      'values': [v for v, _ in sorted(rows, key=lambda r: r[0])],
      'rows': [r for _, r in sorted(rows, key=lambda r: r[0])],
    }
    for (prefix, key, unit), rows in found.items()
    if len(rows) > 2
  ]
