"""Rows of a ranking sweep, and what follows from them, in words and numbers.

Reads the JSON of `sweep`; knows neither terminal nor page.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from onerec_jax.stages import published
from onerec_jax.stages import report_claims
from onerec_jax.stages import report_words as words

Row = Mapping[str, Any]
_VERDICTS: Mapping[int, report_claims.Verdict] = {
  1: 'holds',
  0: 'not clear',
  -1: 'does not hold',
}


def subtitle(result: Mapping[str, Any]) -> str:
  """Returns who was asked and how often."""
  seeds = len(result['seeds'])
  history = 'excluded' if result['history_excluded'] else 'not excluded'
  return (
    f'{result["users"]:,} {result["split"]} users, all'
    f' {result["candidates"]:,} items ranked, history {history}, hits counted'
    f' by item; {seeds} seed{"s" if seeds > 1 else ""}'
  )


# --- Rows -------------------------------------------------------------------


def best_floor(result: Mapping[str, Any]) -> Row:
  """Returns the floor with the highest headline recall.

  Raises:
    ValueError: the table has none, and a table without them hides what
      counting reaches.
  """
  if not result.get('floors'):
    raise ValueError(
      f'The sweep {result.get("title")!r} has no counting floors, and no table'
      ' is made without them: run `python -m onerec_jax.main sweep` again on'
      ' its work directory, which trains nothing that is finished.'
    )
  headline = f'recall@{result["headline_k"]}'
  return max(result['floors'], key=lambda row: row['figures'][headline]['mean'])


def published_figures(row: Row) -> tuple[str, Mapping[str, float]] | None:
  """Returns name and figures of the published row beside a row, or None."""
  name = published.find(row.get('published'), published.NEXT_ITEM)
  return None if name is None else (name, published.NEXT_ITEM[name])


def columns(result: Mapping[str, Any]) -> list[str]:
  """Returns the titles of `ranking_rows`."""
  headline = f'recall@{result["headline_k"]}'
  return [
    'method',
    *map(words.label, result['columns']),
    f'{words.label(headline)} − {result["base"]}',
  ]


def ranking_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Yields trained rows with the published ones below them, then floors."""
  k = result['headline_k']
  wide = (f'recall@{k}', f'ndcg@{k}')  # with their intervals
  every = [*result['rows'], *result['floors']]
  best = {
    c: max(r['figures'][c]['mean'] for r in every) for c in result['columns']
  }
  for row in every:
    cells: list[Any] = [row['name']]
    for column in result['columns']:
      found = row['figures'][column]
      cells.append(
        words.cell(
          words.four(found['mean']),
          bounds(found) if column in wide else '',
          best=found['mean'] == best[column],
        )
      )
    is_base = row['name'] == result['base']
    moved = row['difference'][wide[0]]
    cells.append(
      'base'
      if is_base
      else words.cell(words.difference(moved), words.difference_bounds(moved))
    )
    yield {
      'cells': cells,
      'base': is_base,
      'note': row.get('description'),
    }
    beside = published_figures(row)
    if beside is not None:
      shown = [words.number(beside[1].get(c), '.4f') for c in result['columns']]
      yield {
        'cells': [f'paper: {beside[0].partition("/")[2]}', *shown, ''],
        'dim': True,
      }


def bounds(found: Mapping[str, Any]) -> str:
  """Returns an interval in words, as a cell's small line."""
  return f'{words.four(found["low"])} to {words.four(found["high"])}'


def mean_over_seeds(row: Row, name: str) -> float | None:
  """Returns the mean of a figure of `training`, None: it is not known."""
  known = [
    t[name] for t in row['training'] if t and words.is_known(t.get(name))
  ]
  return float(np.mean(known)) if known else None


def mean_curve(row: Row) -> tuple[list[int], list[float]] | None:
  """Returns examples seen and validation recall, averaged over the seeds.

  As far as all seeds have come; None: no curve was kept.
  """
  curves = [t['curve'] for t in row['training'] if t and t['curve']]
  if not curves:
    return None
  shared = min(map(len, curves))
  return (
    [point[1] for point in curves[0][:shared]],
    [float(np.mean([c[place][2] for c in curves])) for place in range(shared)],
  )


def mean_legality(row: Row, name: str) -> float | None:
  """Returns a row's share of legal IDs over seeds, None: it has no IDs."""
  known = [found[name] for found in row['legality'] if name in (found or {})]
  return float(np.mean(known)) if known else None


# --- Claims -----------------------------------------------------------------


def claims(result: Mapping[str, Any]) -> list[report_claims.Claim]:
  """Returns whether rows reach what was published, and the base the others.

  By recall and NDCG at the headline's K: a claim holds if both say so, and does
  not if one clearly contradicts it.  A row is at or above a published figure if
  its whole interval is, below if all of it is below.  The base is above a
  method if the paired difference is, with its whole interval.
  """
  best_floor(result)
  k = result['headline_k']
  headlines = (f'recall@{k}', f'ndcg@{k}')
  found = []
  for row in result['rows']:
    beside = published_figures(row)
    if beside is None:
      continue
    given = [name for name in headlines if name in beside[1]]
    if given:
      found.append(
        report_claims.Claim(
          f'{row["name"]} is at or above the published'
          f' {beside[0].partition("/")[2]}',
          _VERDICTS[
            min(_reaches(row['figures'][n], beside[1][n]) for n in given)
          ],
          '; '.join(_beside(row, name, beside[1][name]) for name in given),
        )
      )
  for row in (*result['rows'], *result['floors']):
    if row['name'] == result['base']:
      continue
    moved = row['difference']
    found.append(
      report_claims.Claim(
        f'{result["base"]} is above {row["name"]}',
        _VERDICTS[min(-words.direction(moved[name]) for name in headlines)],
        f'difference of {row["name"]}: '
        + '; '.join(
          f'{words.label(name)} {words.difference(moved[name])}'
          f' ({words.difference_bounds(moved[name])})'
          for name in headlines
        ),
      )
    )
  return found


def _reaches(ours: Mapping[str, Any], value: float) -> int:
  """Returns 1 if all of an interval is at a value or above, -1 below it."""
  return int(ours['low'] >= value) - int(ours['high'] < value)


def _beside(row: Row, name: str, value: float) -> str:
  ours = row['figures'][name]
  return (
    f'{words.label(name)} {words.four(ours["mean"])} ({words.bounds(ours)}),'
    f' published {words.four(value)}'
  )
