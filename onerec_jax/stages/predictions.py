"""What the stage `evaluate` writes beside its figures, and prints.

predictions.parquet, a random sample of users in words, and the table on the
terminal.  Computes no figure.
"""

from collections.abc import Container
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table

from onerec_jax import config
from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import ranking
from onerec_jax.stages import trained as trained_lib

# Method names in result.json.
OURS = 'onerec'
BEFORE = 'pretrained'  # ours before alignment
ALONE = 'without_transitions'  # ours without counts in its lists


def earlier(methods: Container[str]) -> str | None:
  """Returns which method ours went on from and is compared to, if any."""
  return next((m for m in (BEFORE, ALONE) if m in methods), None)


_HISTORY_SHOWN, _LIST_SHOWN = 6, 10  # items of an example user


def write_predictions(
  workdir: workdir_lib.Workdir, cases: ranking.Cases, ours: trained_lib.Answers
) -> None:
  """Writes predictions.parquet: targets, their ranks, lists and scores."""
  user_ids = np.array(catalog.read_users(workdir.data)['user_id'].to_list())
  ranks = metrics.target_ranks(ours.items, cases.targets)
  found = cases.target_mask & (ranks != metrics.NOT_RANKED)
  catalog.write_predictions(
    workdir.stage('evaluate') / 'predictions.parquet',
    {
      'example': cases.example,
      'user': cases.user,
      'user_id': user_ids[cases.user],
      'seen_items': np.diff(cases.offsets),
      'target_items': np.where(cases.target_mask, cases.targets, -1),
      'target_ranks': np.where(found, ranks, -1),  # -1: not in the list
      'items': ours.items,
      'scores': ours.scores.astype(np.float32),
    },
  )


def example_users(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  cases: ranking.Cases,
  ours: trained_lib.Answers,
) -> list[dict[str, Any]]:
  """Returns a random sample of users in words; not chosen by success."""
  count = min(experiment.evaluate.num_example_users, len(cases.user))
  rng = np.random.default_rng(experiment.seed)
  chosen = np.sort(rng.choice(len(cases.user), count, replace=False))
  titles = catalog.item_titles(workdir.data)
  ids = catalog.item_ids(workdir.data)
  user_ids = catalog.read_users(workdir.data)['user_id'].to_list()
  ranks = metrics.target_ranks(ours.items, cases.targets)

  def named(item: int) -> dict[str, Any]:
    return {'item_id': str(ids[item]), 'title': titles[item]}

  result = []
  for row in chosen.tolist():
    seen = cases.seen[cases.offsets[row] : cases.offsets[row + 1]]
    targets = cases.targets[row][cases.target_mask[row]].tolist()
    found = ranks[row][cases.target_mask[row]].tolist()
    listed = ours.items[row, :_LIST_SHOWN].tolist()
    result.append(
      {
        'user_id': user_ids[cases.user[row]],
        'seen_items': len(seen),
        'history': [named(i) for i in seen[-_HISTORY_SHOWN:].tolist()],
        'targets': [
          {
            **named(item),
            'rank': None if rank == metrics.NOT_RANKED else rank,
          }
          for item, rank in zip(targets, found, strict=True)
        ],
        'recommended': [
          {
            **named(item),
            'score': float(ours.scores[row, place]),
            'is_target': item in targets,
          }
          for place, item in enumerate(listed)
          if item != metrics.NO_ITEM
        ],
      }
    )
  return result


def print_table(
  result: dict[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints the comparison of a result of `run`, ours first."""
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:  # a log file has no width of its own
      console = rich.console.Console(width=100)
  k = result['headline_k']
  shown = [
    name
    for name in result['metrics'][OURS]
    if name == f'ndcg@{k}' or name.startswith('recall')
  ]
  if console.width < 100:
    shown = [f'recall@{k}', f'ndcg@{k}']
  by_id = f'recall@{k}'
  history = 'excluded' if result['history_excluded'] else 'not excluded'
  grid = rich.table.Table(
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
    title=(
      f'{result["split"]}: {result["users"]:,} users, all'
      f' {result["candidates"]:,} items ranked, history {history};'
      ' R = Recall, N = NDCG, by item'
    ),
    title_justify='left',
  )
  grid.add_column('method', no_wrap=True)
  for name in shown:
    short = name.replace('recall', 'R').replace('ndcg', 'N')
    grid.add_column(short, justify='right', no_wrap=True)
    if name == by_id:
      grid.add_column('95 %', justify='right', no_wrap=True)
      grid.add_column('by ID', justify='right', no_wrap=True)
  for method, figures in result['metrics'].items():
    cells = []
    for name in shown:
      cells.append(f'{figures[name]["mean"]:.4f}')
      if name == by_id:
        cells.append(f'{figures[name]["low"]:.3f}-{figures[name]["high"]:.3f}')
        by_id_mean = result['metrics_by_id'][method][name]['mean']
        cells.append(f'{by_id_mean:.4f}')
    grid.add_row(
      result['methods'][method]['title'],
      *cells,
      style='bold' if method == OURS else None,
    )
  console.print(grid)
  difference = result['difference_to_best_floor'][by_id]
  best = result['methods'][result['best_floor']]['title']
  title = result['methods'][OURS]['title']
  console.print(
    f'{title} - {best}, {by_id}: {difference["mean"]:+.4f} (95 %:'
    f' {difference["low"]:+.4f} to {difference["high"]:+.4f}) · legal'
    f' {100 * result["legality"]:.1f} % · empty answers'
    f' {result["empty_results"]}'
  )


def print_session_rewards(
  result: dict[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints the rewards of generated sessions, before and after alignment."""
  found = result['session_rewards']
  _print_rewards(
    result,
    found,
    f'Rewards of {found["sessions_per_user"]} generated sessions of'
    f' {found["items_per_session"]} items',
    console,
  )


def print_item_rewards(
  result: dict[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints the P-Scores of generated items, before and after training on."""
  found = result['item_rewards']
  _print_rewards(
    result,
    found,
    f'P-Scores of {found["items_per_user"]} generated items per user',
    console,
  )


def reward_name(column: str) -> str:
  """Returns 'true swt max' for 'true_swt_max', 'P-Score' for 'p_score'."""
  return column.replace('p_score', 'P-Score').replace('_', ' ')


def _print_rewards(
  result: dict[str, Any],
  found: dict[str, Any],
  title: str,
  console: rich.console.Console | None,
) -> None:
  """Prints one row per reward: every model's mean, and what training changed.

  Args:
    result: of `evaluate`; names the models.
    found: one comparison of it.
    title: what was judged.
    console: None: standard output.
  """
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:
      console = rich.console.Console(width=100)
  grid = rich.table.Table(
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
    title=f'{title}, mean over users (± over {found["resamples"]} resamples)',
    title_justify='left',
  )
  grid.add_column('reward', no_wrap=True)
  for method in found['methods']:
    grid.add_column(result['methods'][method]['title'], justify='right')
  compared = len(found['methods']) > 1
  if compared:
    grid.add_column('difference (95 %)', justify='right', no_wrap=True)
  for column in found['columns']:
    cells = [
      f'{m["figures"][column]["mean"]:.4f} ± {m["figures"][column]["std"]:.4f}'
      for m in found['methods'].values()
    ]
    if compared:
      moved = found['methods'][OURS]['difference'][column]
      cells.append(
        f'{moved["mean"]:+.4f} ({moved["low"]:+.4f} to {moved["high"]:+.4f})'
      )
    grid.add_row(reward_name(column), *cells)
  console.print(grid)
