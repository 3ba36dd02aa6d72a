"""The table and the page of a sweep that the held-out next item judges.

Reads the JSON of `sweep` alone; floors and published figures stand in the same
table.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table
from etils import epath

from onerec_jax.stages import report_figures
from onerec_jax.stages import report_next_item_rows as next_item_rows
from onerec_jax.stages import report_page
from onerec_jax.stages import report_sweep_figures as figures
from onerec_jax.stages import report_words as words

_TEMPLATE = 'report_next_item.html'

# --- Terminal ---------------------------------------------------------------


def print_table(
  result: Mapping[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints rows, published rows and floors, and what follows from them."""
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:  # a log file has no width of its own
      console = rich.console.Console(width=100)
  console.print(f'[bold]{rich.markup.escape(result["title"])}[/bold]')
  console.print(next_item_rows.subtitle(result), style='dim', highlight=False)
  grid = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
  *columns, _ = next_item_rows.columns(result)
  # Of all columns that of names alone may break: cut figures say nothing.
  grid.add_column(columns[0], overflow='fold')
  headline = words.label(f'recall@{result["headline_k"]}')
  for name in (*columns[1:], f'{headline} − base'):
    grid.add_column(name, justify='right', no_wrap=True)
  for row in next_item_rows.ranking_rows(result):
    cells = [c if isinstance(c, str) else c['text'] for c in row['cells'][:-1]]
    # Of the intervals the paired ones say most; the page has all.
    last = row['cells'][-1]
    cells.append(
      last if isinstance(last, str) else f'{last["text"]} {last["small"]}'
    )
    style = 'dim' if row.get('dim') else 'bold' if row.get('base') else None
    grid.add_row(*map(rich.markup.escape, cells), style=style)
  console.print(grid)
  for claim in next_item_rows.claims(result):
    console.print(f'  {claim.verdict:13}  {claim.claim}', highlight=False)


# --- Page -------------------------------------------------------------------


def write(result: Mapping[str, Any], folder: epath.Path) -> epath.Path:
  """Writes report.html and its pictures into `folder`; returns the page."""
  pictures = words.Pictures(folder)
  k = result['headline_k']
  floor = next_item_rows.best_floor(result)
  _dots(result, pictures)
  _curves(result, pictures)
  _slice_bars(result, floor, pictures)
  base = next(r for r in result['rows'] if r['name'] == result['base'])
  best = max(
    result['rows'], key=lambda row: row['figures'][f'recall@{k}']['mean']
  )
  page = {
    'title': result['title'],
    'subtitle': next_item_rows.subtitle(result),
    'meta': [
      ('base', result['base']),
      ('seeds', ', '.join(map(str, result['seeds']))),
      ('total', words.duration(result['seconds'])),
      ('commit', report_page.commit()),
    ],
    'cards': [
      {
        'label': f'{label}: {row["name"]}',
        'value': words.four(row['figures'][f'recall@{k}']['mean']),
        'note': f'{words.label(f"recall@{k}")}'
        f' {words.bounds(row["figures"][f"recall@{k}"])}',
      }
      for label, row in (
        ('Base', base),
        ('Best model', best),
        ('Best floor', floor),
      )
    ],
    'claims': next_item_rows.claims(result),
    'table': {
      'sticky': True,
      'caption': 'Intervals: 95 % over users; a user’s figure is the mean over'
      ' the seeds. In grey what was published for the same files.',
      'columns': next_item_rows.columns(result),
      'rows': list(next_item_rows.ranking_rows(result)),
    },
    'slices': [
      _slice_table(kind, entries, result)
      for kind, entries in result['slices'].items()
    ],
    'budget': _budget(result),
    'pictures': pictures.found,
  }
  path = folder / 'report.html'
  path.write_text(report_page.render(_TEMPLATE, page))
  return path


def _slice_table(
  kind: str, entries: Sequence[Mapping[str, Any]], result: Mapping[str, Any]
) -> dict[str, Any]:
  headline = f'recall@{result["headline_k"]}'
  rows = []
  for row in (*result['rows'], *result['floors']):
    cells: list[Any] = [row['name']]
    for entry in entries:
      found = entry['methods'].get(row['name'])
      cells.append(
        words.UNKNOWN
        if found is None
        else words.cell(
          words.four(found[headline]['mean']),
          next_item_rows.bounds(found[headline]),
        )
      )
    rows.append({'cells': cells, 'base': row['name'] == result['base']})
  return {
    'sticky': True,
    'caption': f'{words.label(headline)} by {kind}',
    'columns': [
      'method', *(f'{e["slice"]} ({e["users"]:,} users)' for e in entries)
    ],
    'rows': rows,
  }  # fmt: skip


def _budget(result: Mapping[str, Any]) -> dict[str, Any]:
  headline = f'recall@{result["headline_k"]}'
  rows = []
  for row in result['rows']:
    by_id = [b[headline] for b in row['by_id'] if b]
    spent = next_item_rows.mean_over_seeds(row, 'training_seconds')
    rows.append(
      {
        'cells': [
          row['name'],
          words.compact(next_item_rows.mean_over_seeds(row, 'num_parameters')),
          words.compact(
            next_item_rows.mean_over_seeds(row, 'num_active_parameters')
          ),
          words.count(next_item_rows.mean_over_seeds(row, 'steps')),
          words.count(next_item_rows.mean_over_seeds(row, 'best_step')),
          words.compact(next_item_rows.mean_over_seeds(row, 'examples_seen')),
          words.duration(spent),
          words.percent(next_item_rows.mean_legality(row, 'as_decoded')),
          words.percent(next_item_rows.mean_legality(row, 'free_items')),
          words.four(float(np.mean(by_id)) if by_id else None),
        ],
        'base': row['name'] == result['base'],
      }
    )
  return {
    'sticky': True,
    'caption': 'Mean over seeds. Best step: by validation, evaluated above.'
    ' Legal: share of the generated IDs that belong to items, as decoded and'
    ' without the trie. By ID: items that share an ID share its credit.',
    'columns': [
      'method', 'parameters', 'active', 'steps', 'best step', 'examples',
      'training time', 'legal', 'legal, free',
      f'{words.label(headline)} by ID',
    ],
    'rows': rows,
  }  # fmt: skip


# --- Pictures ---------------------------------------------------------------


def _dots(result: Mapping[str, Any], pictures: words.Pictures) -> None:
  k = result['headline_k']
  every = [*result['rows'], *result['floors']]
  names = [row['name'] for row in every]
  columns = {
    words.label(column): [
      figures.Dot(
        *(row['figures'][column][key] for key in ('mean', 'low', 'high')),
        direction=words.direction(row['difference'][column]),
        seeds=[s[column] for s in row.get('seeds', ())],
      )
      for row in every
    ]
    for column in (f'recall@{k}', f'ndcg@{k}')
  }
  pictures.add(
    'ranking',
    figures.dots(names, columns, base=result['base']),
    alt='; '.join(
      f'{title}: '
      + ', '.join(
        f'{n} {words.four(d.mean)}' for n, d in zip(names, dots, strict=True)
      )
      for title, dots in columns.items()
    ),
    caption='Lines: 95 % over users; strokes: single seeds; dashed: the base.'
    ' Indigo: clearly above it, brown: clearly below.',
  )


def _curves(result: Mapping[str, Any], pictures: words.Pictures) -> None:
  """Adds validation recall over examples, averaged over seeds."""
  series = {}
  for row in result['rows']:
    curve = next_item_rows.mean_curve(row)
    if curve is not None:
      series[row['name']] = curve
  if not series:
    return
  pictures.add(
    'curves',
    report_figures.curves(
      series,
      label='Validation Recall@10',
      x_label='training examples seen',
    ),
    alt='Validation Recall@10 at the end: '
    + ', '.join(f'{n} {words.four(s[1][-1])}' for n, s in series.items()),
    caption='Validation over examples seen, mean over seeds. An example is a'
    ' whole sequence for item-level models and a session for the others (of'
    ' TIGER: one target).',
  )


def _slice_bars(
  result: Mapping[str, Any], floor: next_item_rows.Row, pictures: words.Pictures
) -> None:
  entries = result['slices'].get('order of the original ids')
  if not entries:
    return
  headline = f'recall@{result["headline_k"]}'
  others = [r for r in result['rows'] if r['name'] != result['base']]
  shown = [result['base'], floor['name']]
  best = None
  if others:
    best = max(others, key=lambda r: r['figures'][headline]['mean'])['name']
    shown.insert(1, best)
  pictures.add(
    'order',
    report_figures.slice_bars(
      entries,
      methods={name: name for name in shown},
      metric=headline,
      label=words.label(headline),
      before=best,  # its tone is free here
    ),
    alt='; '.join(
      f'{e["slice"]}: '
      + ', '.join(
        f'{n} {words.four(e["methods"][n][headline]["mean"])}'
        for n in shown
        if n in e['methods']
      )
      for e in entries
    ),
    caption='By whether the target’s original id is larger than that of the'
    ' item before. A fair order of the log gives half of the users each; ties'
    ' left in id order make “larger” frequent and easy.',
  )
