"""`sweep`: all rows of a table on the same data, judged in the same way.

The judge is the session reward model, the P-Score model (sweep.judge='items')
or the held-out next item ('next_item', beside the counting floors).

Stages with equal settings are run once: their folders are named after the
digest of all they depend on.  A killed sweep goes on where it was.
"""

import re
import time
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import config_tree
from onerec_jax import distributed
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import next_item
from onerec_jax.stages import pretrain
from onerec_jax.stages import published
from onerec_jax.stages import reinforce
from onerec_jax.stages import report_next_item
from onerec_jax.stages import report_sweep
from onerec_jax.stages import runner
from onerec_jax.stages import session_comparison
from onerec_jax.stages import sweep_table
from onerec_jax.stages import trained as trained_lib
from onerec_jax.train import log

# Stages of a row; what follows is the table's own.
_ROW_STAGES: tuple[config_lib.Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'lifelong', 'pretrain', 'align', 'reinforce',
)  # fmt: skip
# Stages that make a judge, his own last.
_JUDGE_STAGES: dict[str, tuple[config_lib.Stage, ...]] = {
  'sessions': ('prepare', 'embed', 'tokenize', 'reward'),
  'items': ('prepare', 'embed', 'tokenize', 'p_score'),
  'next_item': ('prepare',),
}
# Stage that trains a judge -> the stage of a row that needs it as well.
_JUDGES: dict[config_lib.Stage, config_lib.Stage] = {
  'reward': 'align',
  'p_score': 'reinforce',
}
_LEGALITY = 'valid/legality'
# Of pre-training, in the rows of a table.
_BUDGET = (
  'steps', 'best_step', 'examples_seen', 'tokens_seen', 'training_seconds',
  'num_parameters', 'num_active_parameters', 'device',
)  # fmt: skip
_Judge = sweep_table.Judge
_FLOORS = 'floors'  # folder beside those of the rows


class Row(NamedTuple):
  """One variant and seed."""

  name: str
  seed: int
  experiment: config_lib.Experiment


def row_experiment(
  experiment: config_lib.Experiment, row: config_lib.SweepRow, *, seed: int
) -> config_lib.Experiment:
  """Returns the experiment of one row, validated.

  Raises:
    ValueError: an override is unknown or contradicts others; names the row.
  """
  values = config_tree.merge(config_lib.to_dict(experiment), row.overrides)
  values |= {'seed': seed, 'sweep': {}, 'name': f'{experiment.name} {row.name}'}
  try:
    return config_lib.from_config_dict(values)
  except ValueError as error:
    raise ValueError(f'sweep row {row.name!r}: {error}') from error


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Runs what is missing, prints the table and writes sweep/ and its report.

  Returns:
    Figures of every row, over all seeds and per seed; of several processes
    the first alone has them.

  Raises:
    ValueError: there are no rows, a name comes twice, or the base is unknown.
  """
  sweep = experiment.sweep
  names = [row.name for row in sweep.rows]
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f'sweep.rows must have rows with different names, got {names}. See'
      ' experiments/table1_synthetic.py.'
    )
  for row in sweep.rows:
    _check_published(row, sweep.judge)
  if sweep.base not in names:
    raise ValueError(f'sweep.base={sweep.base!r} must be one of {names}.')
  # All rows are checked before the first hour is spent.
  rows = [
    Row(row.name, seed, row_experiment(experiment, row, seed=seed))
    for seed in sweep.seeds
    for row in sweep.rows
  ]
  if distributed.is_main():
    workdir.write_config(config_lib.to_dict(experiment))
  progress = _Progress(len(rows))
  judges: dict[int, _Judge] = {}
  result: dict[str, Any] = {}
  for seed in sweep.seeds:
    judges[seed] = _judge(experiment, workdir, seed)
    _check_seeds(judges)
    for row in rows:
      if row.seed == seed:
        _finish_row(row, workdir, judges[seed])
        progress.advance(row)
    # After every seed: a sweep over days has a table before its end.
    distributed.run_on_main(
      lambda: result.update(_write_table(experiment, workdir, judges))
    )
  return result


def _write_table(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  judges: Mapping[int, _Judge],
) -> dict[str, Any]:
  """Prints and writes the table of all seeds that have a judge."""
  sweep = experiment.sweep
  found = sweep_table.make(
    sweep,
    judges,
    {
      row.name: [
        workdir.root / 'rows' / slug(row.name) / f'seed_{seed}'
        for seed in judges
      ]
      for row in sweep.rows
    },
    floors=workdir.root / 'rows' / _FLOORS,
    judging=_JUDGE_STAGES[sweep.judge],
  )
  workdir_lib.write_json(workdir.stage('sweep') / workdir_lib.RESULT, found)
  is_ranking = sweep.judge == 'next_item'
  report = report_next_item if is_ranking else report_sweep
  report.print_table(found)
  page = report.write(found, workdir.stage('sweep'))
  logging.info('Table and pictures: %s', page)
  return found


def _check_published(row: config_lib.SweepRow, judge: str) -> None:
  """Raises unless the table that a row is put beside has such a row."""
  table = published.NEXT_ITEM if judge == 'next_item' else published.TABLE_1
  name = row.published
  if name is not None and published.find(name, table) is None:
    raise ValueError(
      f'sweep row {row.name!r}: {published.describe_unknown(name, table)}.'
    )


class _Progress:
  """One line after each row: how many, how long, how long still."""

  def __init__(self, total: int):
    self._total = total
    self._done = 0
    self._start = time.perf_counter()

  def advance(self, row: Row) -> None:
    self._done += 1
    spent = time.perf_counter() - self._start
    left = spent / self._done * (self._total - self._done)
    logging.info(
      '=== %d of %d rows done (%s, seed %d); %s spent, about %s left ===',
      self._done,
      self._total,
      row.name,
      row.seed,
      log.duration(spent),
      log.duration(left),
    )


# --- Folders ----------------------------------------------------------------


def shared_workdir(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir, name: str
) -> workdir_lib.Workdir:
  """Returns a work directory whose stages are shared by their digest."""
  folders = {
    stage: workdir.root
    / 'stages'
    / f'{stage}-{runner.stage_digest(experiment, stage)[:12]}'
    for stage in config_lib.STAGES
    if stage != 'report'
  }
  return workdir_lib.Workdir(workdir.root / 'rows' / name, folders=folders)


def slug(name: str) -> str:
  """Returns a row's name as a folder's."""
  return re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')


# --- Judge and rows ---------------------------------------------------------


def _judge(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir, seed: int
) -> _Judge:
  """Makes the one judge of a seed."""
  base = row_experiment(experiment, config_lib.SweepRow('judge'), seed=seed)
  shared = shared_workdir(base, workdir, f'judge/seed_{seed}')
  kind = experiment.sweep.judge
  runner.run_stages(base, shared, _JUDGE_STAGES[kind], resume=True)
  settings = base.evaluate
  if kind == 'next_item':
    return next_item.make_judge(base, shared)
  if kind == 'items':
    return item_evaluation.make_judge(
      base, shared, split=settings.split, max_users=settings.p_score.max_users
    )
  return session_comparison.make_judge(
    base, shared, split=settings.split, max_users=settings.sessions.max_users
  )


def _check_seeds(judges: Mapping[int, _Judge]) -> None:
  """Raises where the seeds' users have to be the same, and are not."""
  found = [j for j in judges.values() if isinstance(j, next_item.Judge)]
  if found:
    next_item.check_same(found[0], found[-1])


def _finish_row(row: Row, workdir: workdir_lib.Workdir, judge: _Judge) -> None:
  """Trains a row and measures its sessions, unless that is done."""
  e = row.experiment
  shared = shared_workdir(e, workdir, slug(row.name) + f'/seed_{row.seed}')
  digest = _row_digest(row, judge)
  path = shared.root / workdir_lib.RESULT
  done = distributed.from_main(
    lambda: (workdir_lib.read_json(path) or {}).get('digest')
  )
  if done == digest:
    return
  wanted = _ROW_STAGES + tuple(
    judge for judge, user in _JUDGES.items() if user in e.stages
  )
  stages: list[config_lib.Stage] = [s for s in e.stages if s in wanted]
  runner.run_stages(e, shared, stages[:1], resume=True)
  check_catalogue(row.name, shared, judge.workdir)
  if isinstance(judge, next_item.Judge):
    next_item.check_users(row.name, shared, judge)
  runner.run_stages(e, shared, stages, resume=True)
  start = time.perf_counter()
  trained = reinforce.load_final(e, shared)
  found = _measure(row, judge, trained)
  if not distributed.is_main():
    return
  with (shared.root / sweep_table.USERS).open('wb') as file:
    np.savez(file, values=found.values, items=found.answers)
  training = shared.result('align') if 'align' in stages else None
  reinforced = shared.result('reinforce') if 'reinforce' in stages else None
  workdir_lib.write_json(
    path,
    {
      'digest': digest,
      'measuring_seconds': time.perf_counter() - start,
      'stage_seconds': sweep_table.stage_seconds(shared, stages),
      'legality': found.legality,
      'legality_curve': _legality_curve(reinforced),
      'rounds': (training or {}).get('rounds'),
      'num_parameters': (shared.result('pretrain') or {}).get('num_parameters'),
      'training': _training(shared),
      'by_id': getattr(found, 'by_id', None),
    },
  )


def _measure(
  row: Row,
  judge: _Judge,
  trained: trained_lib.Trained,
) -> (
  session_comparison.Measured | item_evaluation.Measured | next_item.Measured
):
  if isinstance(judge, next_item.Judge):
    return next_item.measure(judge, trained, row.experiment.evaluate.decoding)
  if isinstance(judge, item_evaluation.Judge):
    return item_evaluation.measure(judge, trained)
  return session_comparison.measure(judge, trained)


def _training(shared: workdir_lib.Workdir) -> dict[str, Any]:
  """Returns what pre-training cost, and validation over samples seen."""
  result = shared.result('pretrain') or {}
  each = (result.get('examples_seen') or 0) / max(result.get('steps') or 1, 1)
  records = log.read_metrics(shared.folder('pretrain') / log.METRICS)
  return {
    **{name: result.get(name) for name in _BUDGET},
    'curve': [
      [r['step'], round(each * r['step']), r[pretrain.BEST_METRIC]]
      for r in records
      if r.get(pretrain.BEST_METRIC) is not None
    ],
  }


def _legality_curve(
  reinforced: dict[str, Any] | None,
) -> list[list[float]] | None:
  """Returns [step, legality of validation users' free decoding] pairs."""
  if reinforced is None:
    return None
  before = (reinforced['before'] or {}).get(_LEGALITY)
  start = [] if before is None else [[0, before]]
  return start + reinforced['curves'].get(_LEGALITY, [])


def _row_digest(row: Row, judge: _Judge) -> str:
  stages: list[config_lib.Stage] = [
    s for s in _ROW_STAGES if s in row.experiment.stages
  ]
  answers = row.experiment.preference.rollout
  if isinstance(judge, next_item.Judge):
    answers = row.experiment.evaluate.decoding
  return config_lib.digest(
    (
      *(runner.stage_digest(row.experiment, s) for s in stages),
      *sweep_table.judge_parts(judge),
      config_lib.to_dict(answers),
    )
  )


def check_catalogue(
  name: str, row: workdir_lib.Workdir, judge: workdir_lib.Workdir
) -> None:
  """Raises unless the row's items are the judge's."""
  ours, theirs = (catalog.item_ids(w.data) for w in (row, judge))
  if not np.array_equal(ours, theirs):
    raise ValueError(
      f'sweep row {name!r} has {len(ours)} items, the sweep'
      f' {len(theirs)}, or in another order: rows may change'
      ' data.sessions.items_per_session, but not which items are kept.'
    )
