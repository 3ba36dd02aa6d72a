"""Markdown tables of sweeps: a row for each trained variant.

From kept figures alone; a sweep that was not run is called 'not measured'.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from experiments import measured_runs
from experiments import result_tables
from onerec_jax.stages import report_next_item_rows as next_item_rows

_HEADLINES = ('recall@10', 'ndcg@10')  # with their intervals
_RECALL = 'recall@10 of the next item in pre-training, validation'
_TOTALS = ('reward_mean', 'reward_max', 'true_reward_mean', 'true_reward_max')


def next_item(
  name: str, title: str, *, recipe: str, slices: bool = True
) -> str:
  """Returns a ranking sweep: floors, published rows, slices and budget.

  Args:
    name: of the kept figures.
    title: of the table.
    recipe: file and variant that made them.
    slices: False: without the table of slices.

  Raises:
    ValueError: it has no floors.
  """
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  sweep = run['sweep']
  floor = next_item_rows.best_floor(sweep)
  return '\n'.join(
    [
      f'**{title}.** {next_item_rows.subtitle(sweep)}. Intervals: 95 % over'
      ' users, who are averaged over seeds; ± over seeds.',
      '',
      _ranking(sweep),
      '',
      *((_slices(sweep, floor), '') if slices else ()),
      _budget(sweep),
      '',
      *(
        f'- {claim.claim}: **{claim.verdict}** ({claim.evidence}).'
        for claim in next_item_rows.claims(sweep)
      ),
      '',
      f'{_origin(run)} `experiments/{recipe}`, commit {run["commit"]}.',
    ]
  )


def _ranking(sweep: Mapping[str, Any]) -> str:
  columns = sweep['columns']
  every = [*sweep['rows'], *sweep['floors']]
  best = {c: max(r['figures'][c]['mean'] for r in every) for c in columns}
  rows = []
  for row in every:
    cells = [row['name']]
    for column in columns:
      found = row['figures'][column]
      cell = f'{found["mean"]:.4f}'
      if column in _HEADLINES:
        cell += f' ({found["low"]:.4f}–{found["high"]:.4f})'
      cells.append(f'**{cell}**' if found['mean'] == best[column] else cell)
    cells.append(_spread(row))
    rows.append(cells)
    beside = next_item_rows.published_figures(row)
    if beside is not None:
      shown = [
        f'*{beside[1][c]:.4f}*' if c in beside[1] else '' for c in columns
      ]
      method = beside[0].partition('/')[2]
      rows.append([f'*{method}, 2305.05065*', *shown, ''])
  titles = [f'{c} (95 %)' if c in _HEADLINES else c for c in columns]
  return result_tables.markdown(['', *titles, '± recall@10'], rows)


def _spread(row: Mapping[str, Any]) -> str:
  """Returns the standard deviation over seeds, n - 1; '' with one seed."""
  found = [seed['recall@10'] for seed in row.get('seeds', ())]
  if len(found) < 2:
    return ''
  mean = sum(found) / len(found)
  square = sum((x - mean) ** 2 for x in found) / (len(found) - 1)
  return f'{square**0.5:.4f}'


def _slices(sweep: Mapping[str, Any], floor: Mapping[str, Any]) -> str:
  shown = [row['name'] for row in (*sweep['rows'], floor)]
  rows = [
    [
      f'{kind}: {entry["slice"]}',
      f'{entry["users"]:,}',
      *(
        f'{entry["methods"][name]["recall@10"]["mean"]:.4f}'
        if name in entry['methods']
        else 'no users'
        for name in shown
      ),
    ]
    for kind, entries in sweep['slices'].items()
    for entry in entries
  ]
  return result_tables.markdown(['recall@10 by slice', 'users', *shown], rows)


def _budget(sweep: Mapping[str, Any]) -> str:
  rows = []
  for row in sweep['rows']:
    figures = {
      name: next_item_rows.mean_over_seeds(row, name)
      for name in ('num_parameters', 'steps', 'best_step', 'examples_seen')
    }
    minutes = next_item_rows.mean_over_seeds(row, 'training_seconds')
    legal = next_item_rows.mean_legality(row, 'as_decoded')
    free = next_item_rows.mean_legality(row, 'free_items')
    rows.append(
      [
        row['name'],
        *('' if x is None else f'{x:,.0f}' for x in figures.values()),
        '' if minutes is None else f'{minutes / 60:.1f}',
        *('' if x is None else f'{100 * x:.1f} %' for x in (legal, free)),
      ]
    )
  header = [
    'budget of a seed', 'parameters', 'steps', 'best step (validation)',
    'examples', 'minutes', 'legal', 'legal, free decoding',
  ]  # fmt: skip
  return result_tables.markdown(header, rows)


def table_1(name: str, title: str) -> str:
  """Returns a sweep beside the published Table 1."""
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  sweep = run['sweep']
  true = ('true_reward_mean', 'true_reward_max')
  targets = ('swt', 'vtr', 'wtr', 'ltr')
  wanted = [f'{t}_{part}' for t in targets for part in ('mean', 'max')]
  columns = [c for c in (*wanted, *true) if c in sweep['columns']]
  best = {
    c: max(row['figures'][c]['mean'] for row in sweep['rows']) for c in columns
  }
  rows = []
  for row in sweep['rows']:
    cells = []
    for column in columns:
      value = row['figures'][column]
      cell = f'{value["mean"]:.3f} ± {value["std"]:.3f}'
      cells.append(f'**{cell}**' if value['mean'] == best[column] else cell)
    rows.append([row['name'], *cells])
  base = sweep['base']
  lines = []
  for row in sweep['rows']:
    for column in ('true_reward_mean', 'true_reward_max', 'swt_max', 'ltr_max'):
      if row['name'] != '+IPA' or column not in sweep['columns']:
        continue
      lines.append(f'{column.replace("_", " ")} {change(row, column)}')
  return '\n'.join(
    [
      f'**{title}.** {_asked(sweep, "test")},'
      f' {sweep["sessions_per_user"]} sessions of'
      f' {sweep["items_per_session"]} items; mean and best of them, ± over'
      f' {run["config"]["evaluate"]["sessions"]["resamples"]} resamples; best'
      ' of a column bold.',
      '',
      result_tables.markdown(
        ['', *(c.replace('_', ' ') for c in columns)], rows
      ),
      '',
      f'IPA against {base}: {"; ".join(lines)} (95 %, paired over users).'
      f' {_origin(run)}'
      f' `experiments/{name.rsplit("_", 1)[0]}.py`, commit {run["commit"]}.',
    ]
  )


def shares(row: Mapping[str, Any], column: str) -> tuple[float, float, float]:
  """Returns a row's change against the base, and its interval, over the base's.

  Args:
    row: with 'figures', and 'difference' to the base.
    column: key of both.
  """
  moved, own = row['difference'][column], row['figures'][column]['mean']
  before = own - moved['mean']
  return moved['mean'] / before, moved['low'] / before, moved['high'] / before


def change(row: Mapping[str, Any], column: str) -> str:
  """Returns the change of a row against the base, in percent of the base."""
  share, low, high = (100 * x for x in shares(row, column))
  return f'{share:+.1f} % ({low:+.1f} to {high:+.1f})'


def item_sweep(name: str, title: str, *, recipe: str) -> str:
  """Returns a sweep whose rows are judged by their generated items.

  Args:
    name: of the kept figures.
    title: in bold.
    recipe: file and variant that made them.
  """
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  sweep = run['sweep']
  settings = run['config']['evaluate']['p_score']
  passes = [f'pass@{k}' for k in settings['pass_at']]
  columns = [f'p_score_{part}' for part in ('mean', *passes)]
  true = [c for c in (f'true_{c}' for c in columns) if c in sweep['columns']]
  compared = (true or columns)[0]
  recalls = _validation_recalls(sweep['rows'])
  rows = []
  for row in sweep['rows']:
    legal = [x['free_items'] for x in row['legality']]
    rows.append(
      [
        row['name'],
        *(f'{row["figures"][c]["mean"]:.4f}' for c in (*columns, *true)),
        '' if row['name'] == sweep['base'] else change(row, compared),
        f'{100 * sum(legal) / len(legal):.1f} %',
        *([f'{recalls[row["name"]]:.3f}'] if recalls else ()),
      ]
    )
  header = [
    '', *(c.replace('_', ' ') for c in (*columns, *true)),
    f'{compared.replace("_", " ")} against {sweep["base"]} (95 %)',
    'legal, free decoding',
    *([_RECALL] if recalls else ()),
  ]  # fmt: skip
  return '\n'.join(
    [
      f'**{title}.** {_asked(sweep, "test")},'
      f' {sweep["items_per_user"]} items each.',
      '',
      result_tables.markdown(header, rows),
      '',
      f'{_origin(run)} `experiments/{recipe}`, commit {run["commit"]}.',
    ]
  )


def _validation_recalls(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Returns the best recall in pre-training, where rows differ in it, else {}.

  Mean over seeds.  Rows that only go on from the same model do not differ.
  """
  found = {}
  for row in rows:
    curves = [t['curve'] for t in row.get('training') or () if t and t['curve']]
    if not curves:
      return {}
    found[row['name']] = sum(max(p[2] for p in c) for c in curves) / len(curves)
  return found if len(set(found.values())) > 1 else {}


def sessions(name: str, title: str, *, recipe: str) -> str:
  """Returns a sweep that a session reward model judges, totals only.

  Args:
    name: of the kept figures.
    title: in bold.
    recipe: file and variant that made them.
  """
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  sweep = run['sweep']
  columns = [c for c in _TOTALS if c in sweep['columns']]
  # The mean reward, by the world's law where it is known.
  headline = columns[-2]
  rows = []
  for row in sweep['rows']:
    legal = [100 * x['free_sessions'] for x in row['legality']]
    rows.append(
      [
        row['name'],
        *(
          f'{row["figures"][c]["mean"]:.3f} ± {row["figures"][c]["std"]:.3f}'
          for c in columns
        ),
        '' if row['name'] == sweep['base'] else change(row, headline),
        f'{sum(legal) / len(legal):.1f} %',
      ]
    )
  header = [
    '', *(c.replace('_', ' ') for c in columns),
    f'{headline.replace("_", " ")} against {sweep["base"]} (95 %)',
    'legal sessions, free decoding',
  ]  # fmt: skip
  split = {'valid': 'validation'}.get(
    run['config']['evaluate']['split'], 'test'
  )
  return '\n'.join(
    [
      f'**{title}.** {_asked(sweep, split)},'
      f' {sweep["sessions_per_user"]} sessions of'
      f' {sweep["items_per_session"]} items.',
      '',
      result_tables.markdown(header, rows),
      '',
      f'{_origin(run)} `experiments/{recipe}`, commit {run["commit"]}.',
    ]
  )


def _asked(sweep: Mapping[str, Any], split: str) -> str:
  """Returns how many seeds were run, and the users that each of them asked."""
  seeds = len(sweep['seeds'])
  users = sweep['rows'][0]['users'] // seeds
  text = f'{users:,} {split} users'
  return f'1 seed, {text}' if seeds == 1 else f'{seeds} seeds, each of {text}'


def _origin(run: Mapping[str, Any]) -> str:
  """Returns how long a sweep took, where that is known, and on what."""
  seconds = run['sweep'].get('seconds')
  if seconds is None:  # an earlier version left out what it reused
    return f'Run on {run["machine"]}.'
  return f'{seconds / 60:.0f} minutes for all rows on {run["machine"]}.'
