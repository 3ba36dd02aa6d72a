"""Command `compare`: do finished runs differ, and for which users?

Two intervals that overlap say little: the same users are easy for both runs.
Here every difference is paired over users.  Reads what `evaluate` wrote, and
runs no model.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from etils import epath
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import compare_figures
from onerec_jax.stages import comparison
from onerec_jax.stages import predictions
from onerec_jax.stages import report_words as words

# Written beside predictions.parquet of the first run.
RESULT, PICTURE = 'compared.json', 'compared.png'
# What must be equal, or figures mean different things.
_PROTOCOL = ('split', 'candidates', 'history_excluded')
_SHOWN = ('recall', 'ndcg')
_VERDICTS = {1: 'above', 0: 'level with', -1: 'below'}
# Positive events before the first target, both ends included.
_SEEN_SLICES = ((0, 4), (5, 9), (10, 19), (20, None))


@dataclasses.dataclass(frozen=True)
class Run:
  """How the model of one run answered.  Rows are sorted by `keys`."""

  path: str
  title: str
  name: str  # of the experiment
  step: int
  protocol: dict[str, Any]
  top_k: tuple[int, ...]
  keys: np.ndarray  # user id and ids of the targets, text [U]
  train_counts: Int[np.ndarray, ' U']  # training events of the first target
  seen_items: Int[np.ndarray, ' U']  # positive events before it
  ranks: Int[np.ndarray, 'U M']  # metrics.NOT_RANKED: not in the list
  target_mask: Bool[np.ndarray, 'U M']


def run(
  workdir: workdir_lib.Workdir,
  against: Sequence[str | os.PathLike[str]],
  *,
  output: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
  """Prints and writes how a run differs from others, paired over users.

  Args:
    workdir: of a run that has been evaluated; the base of all differences.
    against: folders of others, evaluated on the same users.
    output: .json to write as well.

  Returns:
    Figures of every run with 95 % intervals, the base's difference to each,
    and both by slices of users.  Also written to evaluate/compared.json, with
    a picture.

  Raises:
    FileNotFoundError: a run has not been evaluated.
    ValueError: the runs ranked other users, targets or items.
  """
  if not against:
    raise ValueError(
      'Say with what: --against=FOLDER,FOLDER (work directories of other runs).'
    )
  if output is not None and not os.fspath(output).endswith('.json'):
    raise ValueError(f'--output={output} must end with .json.')
  base = read(workdir)
  others = [read(workdir_lib.Workdir(path)) for path in against]
  for other in others:
    _check_comparable(base, other)
  stored = workdir.config()
  assert stored is not None
  result = compare(
    base,
    others,
    samples=stored['evaluate']['bootstrap_samples'],
    seed=stored['seed'],
  )
  folder = workdir.stage('evaluate')
  workdir_lib.write_json(folder / RESULT, result)
  picture = compare_figures.differences(result, _shown(result))
  (folder / PICTURE).write_bytes(picture)
  if output is not None:
    workdir_lib.write_json(epath.Path(output), result)
  print_table(result)
  print(f'Picture: {folder / PICTURE}')
  return result


def read(workdir: workdir_lib.Workdir) -> Run:
  """Returns what the run's model answered, by original ids."""
  folder = workdir.folder('evaluate')
  path = workdir.require(folder / workdir_lib.RESULT, 'evaluate')
  evaluated = workdir_lib.read_json(path)
  stored = workdir.config()
  assert evaluated is not None and stored is not None
  found = catalog.read_predictions(folder / 'predictions.parquet')
  ids = catalog.item_ids(workdir.data)
  targets = found['target_items']
  mask = targets >= 0
  keys = np.array(
    [
      '\t'.join([str(user), *ids[row[known]].tolist()])
      for user, row, known in zip(found['user_id'], targets, mask, strict=True)
    ]
  )
  # Of equal keys the order of the examples decides, which is that of the log.
  order = np.lexsort((found['example'], keys))
  ranks = found['target_ranks']
  return Run(
    path=os.fspath(workdir.root),
    title=evaluated['methods'][predictions.OURS]['title'],
    name=stored['name'],
    step=evaluated['step'],
    protocol={key: evaluated[key] for key in _PROTOCOL},
    top_k=tuple(stored['evaluate']['top_k']),
    keys=keys[order],
    train_counts=catalog.train_counts(workdir.data)[targets[order, 0]],
    seen_items=found['seen_items'][order],
    ranks=np.where(ranks < 0, metrics.NOT_RANKED, ranks)[order],
    target_mask=mask[order],
  )


def compare(
  base: Run, others: Sequence[Run], *, samples: int, seed: int
) -> dict[str, Any]:
  """Returns figures of all runs and the base's differences (JSON-able).

  Args:
    base: rows as in all others.
    others: what it is compared with.
    samples: bootstrap resamples.
    seed: of the bootstrap.
  """
  boot = {'samples': samples, 'seed': seed}
  runs = [base, *others]
  shared = set(base.top_k).intersection(*(r.top_k for r in others))
  if not shared:
    raise ValueError(
      'The runs share no list length:'
      f' {", ".join(f"{r.path}: evaluate.top_k={r.top_k}" for r in runs)}.'
    )
  top_k = tuple(sorted(shared))
  values = [
    comparison.user_values(r.ranks, r.target_mask, top_k=top_k) for r in runs
  ]
  k = comparison.headline_k(top_k)
  return {
    **base.protocol,
    'users': len(base.keys),
    'headline_k': k,
    'runs': [
      {
        'path': r.path,
        'title': r.title,
        'experiment': r.name,
        'step': r.step,
        'metrics': comparison.intervals(v, **boot),
      }
      for r, v in zip(runs, values, strict=True)
    ],
    # base - other
    'differences': [
      comparison.differences(values[0], v, **boot) for v in values[1:]
    ],
    'slices': {
      'training frequency of the target': _by_slice(
        comparison.frequency_slices(base.train_counts), values, k=k, **boot
      ),
      'items before the target': _by_slice(
        comparison.range_slices(base.seen_items, _SEEN_SLICES),
        values,
        k=k,
        **boot,
      ),
    },
  }


def _by_slice(
  masks: dict[str, np.ndarray],
  values: list[dict[str, np.ndarray]],
  *,
  k: int,
  **boot: int,
) -> list[dict[str, Any]]:
  """Returns users, means of all runs and the differences, a row per slice."""
  names = [f'{name}@{k}' for name in _SHOWN]
  rows = []
  for label, mask in masks.items():
    if not mask.any():
      continue
    found = [{n: v[n][mask] for n in names} for v in values]
    rows.append(
      {
        'slice': label,
        'users': int(mask.sum()),
        'means': [{n: float(v[n].mean()) for n in names} for v in found],
        'differences': [
          comparison.differences(found[0], v, **boot) for v in found[1:]
        ],
      }
    )
  return rows


def _check_comparable(base: Run, other: Run) -> None:
  for key, value in base.protocol.items():
    if other.protocol[key] != value:
      raise ValueError(
        f'{base.path} and {other.path} cannot be compared: {key} is'
        f' {value!r} and {other.protocol[key]!r}. Evaluate both alike:'
        ' `python -m onerec_jax.main evaluate --config=... --workdir=...`.'
      )
  if np.array_equal(base.keys, other.keys):
    return
  ours, theirs = (
    np.setdiff1d(a.keys, b.keys) for a, b in ((base, other), (other, base))
  )
  examples = [k.replace('\t', ' -> ', 1) for k in (*ours[:2], *theirs[:2])]
  raise ValueError(
    f'{base.path} and {other.path} cannot be compared: of'
    f' {len(base.keys):,} and {len(other.keys):,} users with their targets,'
    f' {len(ours):,} and {len(theirs):,} are not in the other'
    f' ({"; ".join(examples)}). Use the same data, split and'
    ' evaluate.max_examples.'
  )


# --- On the terminal --------------------------------------------------------


def print_table(
  result: dict[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints all runs, the base first, then what differs from each of the others.

  Args:
    result: of `compare`.
    console: None: standard output.
  """
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:  # a log file has no width of its own
      console = rich.console.Console(width=110)
  shown = _shown(result)
  grid = _table(
    f'{result["split"]}: {result["users"]:,} users, all'
    f' {result["candidates"]:,} items ranked (95 % intervals)',
    ('run', *shown),
  )
  for found in result['runs']:
    values = [found['metrics'][name] for name in shown]
    grid.add_row(
      _name(found),
      *(f'{v["mean"]:.4f} ({v["low"]:.4f} to {v["high"]:.4f})' for v in values),
    )
  console.print(grid)
  first = result['runs'][0]
  for place, found in enumerate(result['runs'][1:]):
    difference = result['differences'][place]
    console.print(_differences(result, place, shown))
    sentences = [
      f'{_VERDICTS[words.direction(difference[n])]} by {n}' for n in shown
    ]
    console.print(
      f'{_name(first)}, against {_name(found)}: {", ".join(sentences)}.'
    )


def _differences(
  result: dict[str, Any], place: int, shown: Sequence[str]
) -> rich.table.Table:
  """Returns the first run minus another, for all users and each slice."""
  first, other = result['runs'][0], result['runs'][1 + place]
  means = [
    {name: run['metrics'][name]['mean'] for name in shown}
    for run in (first, other)
  ]
  rows = [
    (compare_figures.ALL_USERS, result['users'], means,
     result['differences'][place])
  ]  # fmt: skip
  for title, slices in result['slices'].items():
    rows += [
      (
        f'{title}: {row["slice"]}',
        row['users'],
        [row['means'][0], row['means'][1 + place]],
        row['differences'][place],
      )
      for row in slices
    ]
  metric = shown[0]
  grid = _table(
    f'{_name(first)}, minus {_name(other)}; paired over users',
    ('', 'users', f'{metric}, first', 'other', 'difference (95 %)'),
  )
  for title, users, (ours, theirs), difference in rows:
    d = difference[metric]
    grid.add_row(
      title,
      f'{users:,}',
      f'{ours[metric]:.4f}',
      f'{theirs[metric]:.4f}',
      f'{d["mean"]:+.4f} ({d["low"]:+.4f} to {d["high"]:+.4f})',
    )
  return grid


def _table(title: str, columns: Sequence[str]) -> rich.table.Table:
  grid = rich.table.Table(
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
    title=title,
    title_justify='left',
  )
  grid.add_column(columns[0], overflow='fold')
  for name in columns[1:]:
    grid.add_column(name, justify='right', no_wrap=True)
  return grid


def _shown(result: dict[str, Any]) -> list[str]:
  return [f'{name}@{result["headline_k"]}' for name in _SHOWN]


def _name(found: dict[str, Any]) -> str:
  return f'{found["title"]} ({found["path"]})'
