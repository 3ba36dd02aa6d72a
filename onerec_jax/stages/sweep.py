"""`sweep`: all rows of a table on the same data, judged by one model.

The judge is the session reward model or, with sweep.judge='items', the P-Score
model.

Stages with equal settings are run once: their folders are named after the
digest of all they depend on.  A killed sweep goes on where it was.
"""

import re
import time
from typing import Any
from typing import NamedTuple

import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import config_tree
from onerec_jax import distributed
from onerec_jax import session_rewards
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import published
from onerec_jax.stages import reinforce
from onerec_jax.stages import report_sweep
from onerec_jax.stages import runner
from onerec_jax.stages import session_comparison
from onerec_jax.train import log

# Stages of a row; what follows is the table's own.
_ROW_STAGES: tuple[config_lib.Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'lifelong', 'pretrain', 'align', 'reinforce',
)  # fmt: skip
_JUDGE_INPUTS: tuple[config_lib.Stage, ...] = ('prepare', 'embed', 'tokenize')
# Stage that trains the judge -> the stage of a row that needs it as well.
_JUDGES: dict[config_lib.Stage, config_lib.Stage] = {
  'reward': 'align',
  'p_score': 'reinforce',
}
_LEGALITY = 'valid/legality'
_Judge = session_comparison.Judge | item_evaluation.Judge


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
    if row.published is not None and published.find(row.published) is None:
      raise ValueError(
        f'sweep row {row.name!r}: {published.describe_unknown(row.published)}.'
      )
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
  for row in rows:
    if row.seed not in judges:
      judges[row.seed] = _judge(experiment, workdir, row.seed)
    _finish_row(row, workdir, judges[row.seed])
    progress.advance(row)
  result: dict[str, Any] = {}

  def summarize() -> None:
    result.update(_summary(experiment, workdir, rows, judges))
    workdir_lib.write_json(workdir.stage('sweep') / workdir_lib.RESULT, result)
    report_sweep.print_table(result)
    page = report_sweep.write(result, workdir.stage('sweep'))
    logging.info('Table and pictures: %s', page)

  distributed.run_on_main(summarize)
  return result


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


def _judge_stage(experiment: config_lib.Experiment) -> config_lib.Stage:
  return 'reward' if experiment.sweep.judge == 'sessions' else 'p_score'


def _judge(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir, seed: int
) -> _Judge:
  """Trains the one judge of a seed."""
  base = row_experiment(experiment, config_lib.SweepRow('judge'), seed=seed)
  shared = shared_workdir(base, workdir, f'judge/seed_{seed}')
  stage = _judge_stage(experiment)
  runner.run_stages(base, shared, (*_JUDGE_INPUTS, stage), resume=True)
  if stage == 'p_score':
    return item_evaluation.make_judge(
      base,
      shared,
      split=base.evaluate.split,
      max_users=base.evaluate.p_score.max_users,
    )
  return session_comparison.make_judge(
    base,
    shared,
    split=base.evaluate.split,
    max_users=base.evaluate.sessions.max_users,
  )


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
  start = time.perf_counter()
  runner.run_stages(e, shared, stages, resume=True)
  trained = reinforce.load_final(e, shared)
  check_catalogue(row.name, shared, judge.workdir)
  if isinstance(judge, item_evaluation.Judge):
    found = item_evaluation.measure(judge, trained)
    items = found.items.items
  else:
    found = session_comparison.measure(judge, trained)
    items = found.sessions.items
  if not distributed.is_main():
    return
  with (shared.root / 'users.npz').open('wb') as file:
    np.savez(file, values=found.values, items=items)
  training = shared.result('align') if 'align' in stages else None
  reinforced = shared.result('reinforce') if 'reinforce' in stages else None
  workdir_lib.write_json(
    path,
    {
      'digest': digest,
      'seconds': time.perf_counter() - start,
      'legality': found.legality,
      'legality_curve': _legality_curve(reinforced),
      'rounds': (training or {}).get('rounds'),
      'num_parameters': (shared.result('pretrain') or {}).get('num_parameters'),
    },
  )


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
  return config_lib.digest(
    (
      *(runner.stage_digest(row.experiment, s) for s in stages),
      runner.stage_digest(judge.experiment, judge.stage),
      config_lib.to_dict(judge.experiment.evaluate),
      config_lib.to_dict(row.experiment.preference.rollout),
    )
  )


def check_catalogue(
  name: str, row: workdir_lib.Workdir, judge: workdir_lib.Workdir
) -> None:
  """Raises unless the row's items are the judge's."""
  ours, theirs = (catalog.item_ids(w.data) for w in (row, judge))
  if not np.array_equal(ours, theirs):
    raise ValueError(
      f'sweep row {name!r} has {len(ours)} items, the reward model'
      f' {len(theirs)}, or in another order: rows may change'
      ' data.sessions.items_per_session, but not which items are kept.'
    )


# --- Table ------------------------------------------------------------------


def _summary(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  rows: list[Row],
  judges: dict[int, _Judge],
) -> dict[str, Any]:
  """Returns the table: users of all seeds pooled, and every seed alone."""
  sweep = experiment.sweep
  columns = next(iter(judges.values())).columns
  settings = experiment.evaluate.sessions
  per_user = {
    'sessions_per_user': settings.num_sessions,
    'items_per_session': experiment.reward_model.items_per_session,
  }
  if sweep.judge == 'items':
    settings = experiment.evaluate.p_score
    per_user = {'items_per_user': settings.num_items}
  values: dict[str, list[np.ndarray]] = {row.name: [] for row in sweep.rows}
  results: dict[str, list[dict[str, Any]]] = {r.name: [] for r in sweep.rows}
  for row in rows:
    folder = workdir.root / 'rows' / slug(row.name) / f'seed_{row.seed}'
    with (folder / 'users.npz').open('rb') as file, np.load(file) as stored:
      values[row.name].append(stored['values'])
    found = workdir_lib.read_json(folder / workdir_lib.RESULT)
    assert found is not None
    results[row.name].append(found)
  figures = session_rewards.summarize_methods(
    {name: np.concatenate(parts) for name, parts in values.items()},
    base=sweep.base,
    columns=columns,
    resamples=settings.resamples,
    resample_users=settings.resample_users,
    bootstrap_samples=experiment.evaluate.bootstrap_samples,
    seed=experiment.seed,
  )
  table = [
    {
      'name': row.name,
      'published': row.published,
      **figures[row.name],
      'seeds': [
        dict(zip(columns, np.nanmean(v, axis=0).tolist(), strict=True))
        for v in values[row.name]
      ],
      'legality': [r['legality'] for r in results[row.name]],
      'legality_curves': [r['legality_curve'] for r in results[row.name]],
      'num_parameters': results[row.name][0]['num_parameters'],
      'seconds': sum(r['seconds'] for r in results[row.name]),
      'rounds': [r['rounds'] for r in results[row.name]],
    }
    for row in sweep.rows
  ]
  reward = [j.workdir.result(j.stage) or {} for j in judges.values()]
  return {
    'title': sweep.title,
    'base': sweep.base,
    'seeds': list(sweep.seeds),
    'columns': list(columns),
    'judge': sweep.judge,
    **per_user,
    'reward_model': reward,
    'rows': table,
  }
