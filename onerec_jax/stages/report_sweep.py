"""The table and the page of a sweep, beside the published figures.

Reads the JSON of `sweep` alone; computes nothing but ratios and verdicts.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.markup
import rich.table
from etils import epath

from onerec_jax.stages import published
from onerec_jax.stages import report_claims
from onerec_jax.stages import report_page
from onerec_jax.stages import report_reward
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_sweep_pictures as sweep_pictures
from onerec_jax.stages import report_sweep_rows as sweep_rows
from onerec_jax.stages import report_words as words

_TEMPLATE = 'report_sweep.html'

# --- Terminal ---------------------------------------------------------------


def print_table(
  result: Mapping[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints a result of `sweep.run`: rewards, differences, legality, claims.

  Tables are cut between columns so that each fits into the console.
  """
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:  # a log file has no width of its own
      console = rich.console.Console(width=100)
  console.print(f'[bold]{rich.markup.escape(_title(result))}[/bold]')
  console.print(_subtitle(result), style='dim')
  own = [
    c
    for c in result['columns']
    if sweep_rows.target_of(c) not in sweep_rows.TOTALS
  ]
  own = [c for c in own if not report_session_rewards.is_true(c)]
  totals = [
    c for c in result['columns'] if sweep_rows.target_of(c) in sweep_rows.TOTALS
  ]
  for chosen in (totals, own):
    rows = list(sweep_rows.reward_rows(result, chosen))
    for part in _parts(rows, chosen, console.width, group=2):
      console.print(_grid(rows, [chosen[i] for i in part], part))
  chosen = sweep_rows.difference_columns(result)
  rows = list(sweep_rows.difference_rows(result, chosen))
  console.print(
    f'Difference to {result["base"]} with 95 % intervals (paired over users)',
    highlight=False,
  )
  titles = ['legal sess./items', *chosen]
  for part in _parts(rows, titles, console.width, group=1):
    console.print(_grid(rows, [titles[i] for i in part], part))
  claims = report_claims.judge(result, sweep_rows.series(result))
  if claims:
    console.print('Claims of the paper on these data (evidence: report.html)')
  for claim in claims:
    console.print(f'  {claim.verdict:13}  {claim.claim}', highlight=False)


def _grid(
  rows: Sequence[Mapping[str, Any]],
  titles: Sequence[str],
  places: Sequence[int],
) -> rich.table.Table:
  grid = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
  grid.add_column('variant', no_wrap=True)
  for title in titles:
    grid.add_column(title.replace('_', ' '), justify='right', no_wrap=True)
  for row in rows:
    cells = [row['cells'][1 + i] for i in places]
    if row.get('dim') and not any(_text(c).strip(words.UNKNOWN) for c in cells):
      continue  # the paper has none of these columns
    grid.add_row(
      rich.markup.escape(('  ' if row.get('dim') else '') + row['cells'][0]),
      *(
        f'[bold]{_text(c)}[/bold]'
        if isinstance(c, Mapping) and c['best']
        else _text(c)
        for c in cells
      ),
      style='dim' if row.get('dim') else None,
    )
  return grid


def _text(cell: str | Mapping[str, Any]) -> str:
  if isinstance(cell, str):
    return cell
  if ' to ' in cell['small']:
    return f'{cell["text"]} ({cell["small"]})'
  return f'{cell["text"]} {cell["small"]}'.rstrip()


def _parts(
  rows: Sequence[Mapping[str, Any]],
  titles: Sequence[str],
  width: int,
  *,
  group: int,
) -> Iterator[list[int]]:
  """Yields places of columns that fit into `width` beside the names.

  Args:
    rows: with 'cells', the name first.
    titles: of the columns beside the name.
    width: characters.
    group: neighbouring columns that stay together.
  """
  sizes = [
    max(len(title), *(len(_text(row['cells'][1 + i])) for row in rows)) + 2
    for i, title in enumerate(titles)
  ]
  names = max(len(row['cells'][0]) for row in rows) + 5
  part: list[int] = []
  for first in range(0, len(titles), group):
    fresh = list(range(first, min(first + group, len(titles))))
    if part and names + sum(sizes[i] for i in (*part, *fresh)) > width:
      yield part
      part = []
    part += fresh
  if part:
    yield part


# --- Page -------------------------------------------------------------------


def write(result: Mapping[str, Any], folder: epath.Path) -> epath.Path:
  """Writes report.html, self-contained, and its pictures beside it.

  Args:
    result: of `sweep.run`.
    folder: must exist.

  Returns:
    Path of the page.
  """
  pictures = words.Pictures(folder)
  groups = _groups(result)
  found = sweep_rows.series(result)
  names = {
    'rewards': sweep_pictures.dot_pictures(result, pictures),
    'truth': [
      *sweep_pictures.truth_picture(result, pictures),
      *sweep_pictures.round_picture(result, pictures),
    ],
    'legality': sweep_pictures.legality_picture(result, pictures),
    'series': sweep_pictures.series_pictures(result, found, pictures),
  }
  page = {
    'title': _title(result),
    'subtitle': _subtitle(result),
    'what': sweep_rows.judged(result),
    'best': 'pass@K: of the first K' if _of_items(result) else 'max',
    'meta': [
      ('base', result['base']),
      ('seeds', ', '.join(map(str, result['seeds']))),
      ('total', words.duration(result['seconds'])),
      ('commit', report_page.commit()),
    ],
    'cards': _cards(result),
    'claims': report_claims.judge(result, found),
    'tables': [
      {
        'caption': caption,
        'sticky': True,
        'columns': ['variant', *(c.replace('_', ' ') for c in columns)],
        'rows': [
          row
          for row in sweep_rows.reward_rows(result, columns)
          if not row.get('dim') or set(columns) & set(published.COLUMNS)
        ],
      }
      for caption, columns in groups
    ],
    'differences': _difference_table(result),
    'towers': _towers(result),
    'costs': _costs(result),
    'names': names,
    'pictures': pictures.found,
  }
  path = folder / 'report.html'
  path.write_text(report_page.render(_TEMPLATE, page))
  return path


def _of_items(result: Mapping[str, Any]) -> bool:
  return sweep_rows.judged(result) == 'item'


def _title(result: Mapping[str, Any]) -> str:
  return result.get('title') or 'Sweep'


def _subtitle(result: Mapping[str, Any]) -> str:
  users = max(row['users'] for row in result['rows'])
  seeds = len(result['seeds'])
  if _of_items(result):
    each = f'{result["items_per_user"]} items each, scored by one P-Score model'
  else:
    each = (
      f'{result["sessions_per_user"]} sessions of'
      f' {result["items_per_session"]} items each, scored by one reward model'
    )
  return (
    f'{len(result["rows"])} variants, {seeds} seed{"s" if seeds > 1 else ""};'
    f' {users:,} answers{" (users times seeds)" if seeds > 1 else ""} of {each}'
  )


def _groups(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
  """Returns captions and columns of the page's tables."""
  is_true = report_session_rewards.is_true
  columns = result['columns']
  totals = [c for c in columns if sweep_rows.target_of(c) in sweep_rows.TOTALS]
  predicted = 'Targets, as predicted'
  if any(row.get('published') for row in result['rows']):
    predicted += (
      '; in grey the published figures, measured on other data by another model'
    )
  groups = [
    ('All targets together', totals),
    (predicted, [c for c in columns if c not in totals and not is_true(c)]),
    (
      'Targets, true expectations by the law of the simulated world',
      [c for c in columns if c not in totals and is_true(c)],
    ),
  ]
  return [(caption, chosen) for caption, chosen in groups if chosen]


def _cards(result: Mapping[str, Any]) -> list[dict[str, str]]:
  """Returns the best variant of every total, and how many were compared."""
  cards = []
  totals = [
    c for c in result['columns'] if sweep_rows.target_of(c) in sweep_rows.TOTALS
  ]
  for column in sorted(
    totals, key=lambda c: not report_session_rewards.is_true(c)
  ):
    rows = [
      r for r in result['rows'] if words.is_known(r['figures'][column]['mean'])
    ]
    if rows:
      best = max(rows, key=lambda r: r['figures'][column]['mean'])
      cards.append(
        {
          'label': f'Best {column.replace("_", " ")}',
          'value': best['name'],
          'note': words.fixed(best['figures'][column]['mean']),
        }
      )
  return cards


def _difference_table(result: Mapping[str, Any]) -> dict[str, Any]:
  columns = sweep_rows.difference_columns(result)
  return {
    'sticky': True,
    'caption': (
      f'Difference to {result["base"]} with 95 % intervals, paired over users'
      ' (bold: above 0); legal: share of sessions and items that exist when'
      ' decoding is free'
    ),
    'columns': [
      'variant',
      'legal sessions / items',
      *(c.replace('_', ' ') for c in columns),
    ],
    'rows': list(sweep_rows.difference_rows(result, columns)),
  }


def _towers(result: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the table of the first seed's reward model."""
  models = [m for m in result.get('reward_model') or () if m.get('targets')]
  if not models:
    return None
  table = report_reward.tower_table(models[0]['targets'])
  if len(models) > 1:
    table['caption'] += f'; seed {result["seeds"][0]}'
  return table


def _costs(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns parameters, time, and pairs of every variant."""
  rows = []
  for row in result['rows']:
    rounds = [r for seed in row.get('rounds') or () for r in seed or ()]
    rollouts = [r.get('rollouts') or {} for r in rounds]
    pairs = sum(r.get('pairs', 0) for r in rollouts)
    skipped = sum(sum((r.get('skipped') or {}).values()) for r in rollouts)
    without = row.get('users_without_session')
    rows.append(
      {
        'cells': [
          row['name'],
          words.compact(row.get('num_parameters')),
          words.duration(row['seconds']),
          str(len(rounds)) if rounds else words.UNKNOWN,
          words.count(pairs) if rounds else words.UNKNOWN,
          words.count(skipped) if rounds else words.UNKNOWN,
          words.count(without),
        ]
      }
    )
  return {
    'caption': 'All seeds together; time: of every stage that a row rests on,'
    ' shared or not, and of measuring it',
    'columns': [
      'variant', 'parameters', 'time', 'rounds', 'pairs', 'skipped',
      f'without {sweep_rows.judged(result)}',
    ],
    'rows': rows,
  }  # fmt: skip
