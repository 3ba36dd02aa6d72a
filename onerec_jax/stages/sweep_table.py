"""From what the rows of a sweep have answered to its table, JSON-able.

Reads the rows' folders; asks no model.  The counting floors of a ranking are
counted here, once for all seeds and windows.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from etils import epath

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.stages import comparison
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import next_item
from onerec_jax.stages import reward_figures
from onerec_jax.stages import runner
from onerec_jax.stages import session_comparison

Judge = session_comparison.Judge | item_evaluation.Judge | next_item.Judge
USERS = 'users.npz'  # in a row's folder: its figures and answers per user


class _Figures(NamedTuple):
  methods: dict[str, dict[str, Any]]  # by name of the row
  details: dict[str, Any]  # what else the table says


def make(
  sweep: config_lib.SweepConfig,
  judges: Mapping[int, Judge],
  folders: Mapping[str, Sequence[epath.Path]],
  *,
  floors: epath.Path,
  judging: Sequence[config_lib.Stage],
) -> dict[str, Any]:
  """Returns the table: all seeds together, and every seed alone.

  Args:
    sweep: rows and base.
    judges: seed -> judge.
    folders: row -> what it has answered, a folder per seed.
    floors: folder in which the floors' figures are kept.
    judging: stages that make a judge.
  """
  judge = next(iter(judges.values()))
  values: dict[str, list[np.ndarray]] = {}
  results: dict[str, list[dict[str, Any]]] = {}
  for name, places in folders.items():
    values[name] = []
    for place in places:
      with (place / USERS).open('rb') as file, np.load(file) as stored:
        values[name].append(stored['values'])
    found = [workdir_lib.read_json(p / workdir_lib.RESULT) for p in places]
    results[name] = [r for r in found if r is not None]
  if isinstance(judge, next_item.Judge):
    figures = _ranking(judge, values, base=sweep.base, floors=floors)
  else:
    figures = _rewards(judges, values, base=sweep.base)
  table = [
    {
      'name': row.name,
      'published': row.published,
      **figures.methods[row.name],
      'seeds': [
        dict(zip(judge.columns, np.nanmean(v, axis=0).tolist(), strict=True))
        for v in values[row.name]
      ],
      'legality': [r['legality'] for r in results[row.name]],
      'legality_curves': [r['legality_curve'] for r in results[row.name]],
      'num_parameters': results[row.name][0]['num_parameters'],
      'seconds': _seconds(results[row.name]),
      'rounds': [r['rounds'] for r in results[row.name]],
      # None in rows that an earlier version has finished.
      'training': [r.get('training') for r in results[row.name]],
      'by_id': [r.get('by_id') for r in results[row.name]],
    }
    for row in sweep.rows
  ]
  return {
    'title': sweep.title,
    'base': sweep.base,
    'seeds': list(judges),
    'columns': list(judge.columns),
    'judge': sweep.judge,
    'seconds': _seconds(
      [r for found in results.values() for r in found],
      *(stage_seconds(j.workdir, judging) for j in judges.values()),
    ),
    **figures.details,
    'rows': table,
  }


def stage_seconds(
  workdir: workdir_lib.Workdir, stages: Sequence[config_lib.Stage]
) -> dict[str, float]:
  """Returns how long each finished stage took, by its folder's name."""
  seconds = {}
  for stage in stages:
    result = workdir.result(stage)
    assert result is not None, stage  # without it nothing was measured
    seconds[workdir.folder(stage).name] = result['seconds']
  return seconds


def _seconds(
  rows: Sequence[Mapping[str, Any]], *others: Mapping[str, float]
) -> float | None:
  """Returns what rows rest on and their measuring took; shared stages once.

  None: a row was finished by an earlier version, which left out stages that it
  shared.
  """
  if any('stage_seconds' not in row for row in rows):
    return None
  stages: dict[str, float] = {}
  for found in (*others, *(row['stage_seconds'] for row in rows)):
    stages |= found
  return sum(stages.values()) + sum(row['measuring_seconds'] for row in rows)


def judge_parts(judge: Judge) -> tuple[Any, ...]:
  """Returns what a judge's figures depend on beside the answers."""
  return (
    runner.stage_digest(judge.experiment, judge.stage),
    config_lib.to_dict(judge.experiment.evaluate),
  )


# --- Rewards ----------------------------------------------------------------


def _rewards(
  judges: Mapping[int, Any],
  values: Mapping[str, Sequence[np.ndarray]],
  *,
  base: str,
) -> _Figures:
  """Every seed has a judge and users of its own: they are pooled."""
  judge = next(iter(judges.values()))
  pooled = {name: np.concatenate(parts) for name, parts in values.items()}
  models = [j.workdir.result(j.stage) or {} for j in judges.values()]
  return _Figures(
    reward_figures.of_methods(judge, pooled, base=base),
    {**judge.asked, 'reward_model': models},
  )


# --- Ranking ----------------------------------------------------------------


def _ranking(
  judge: next_item.Judge,
  values: Mapping[str, Sequence[np.ndarray]],
  *,
  base: str,
  floors: epath.Path,
) -> _Figures:
  """Floors are rows like the others; no seed changes them."""
  counted = {floor.title: floor for floor in _floors(judge, floors)}
  twice = sorted(set(counted) & set(values))
  if twice:
    raise ValueError(
      f'sweep rows are named {twice} as counting floors are: rename them;'
      ' nothing is trained again.'
    )
  found = next_item.of_methods(
    judge,
    {**values, **{name: [floor.values] for name, floor in counted.items()}},
    base=base,
  )
  settings = judge.experiment.evaluate
  return _Figures(
    found['methods'],
    {
      'split': settings.split,
      'users': len(judge.cases.user),
      'candidates': catalog.num_items(judge.workdir.data),
      'history_excluded': settings.decoding.exclude_history,
      'headline_k': comparison.headline_k(settings.top_k),
      'floors': [
        {
          'name': name,
          'description': floor.description,
          **found['methods'][name],
        }
        for name, floor in counted.items()
      ],
      'slices': found['slices'],
    },
  )


def _floors(
  judge: next_item.Judge, folder: epath.Path
) -> list[next_item.Floor]:
  """Returns the floors, counted unless the folder has them."""
  digest = config_lib.digest(judge_parts(judge))
  stored = workdir_lib.read_json(folder / workdir_lib.RESULT)
  if not stored or stored['digest'] != digest:
    floors = next_item.measure_floors(judge)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / USERS).open('wb') as file:
      np.savez(file, values=np.stack([f.values for f in floors]))
    names = [[f.title, f.description] for f in floors]
    workdir_lib.write_json(
      folder / workdir_lib.RESULT, {'digest': digest, 'floors': names}
    )
    return floors
  with (folder / USERS).open('rb') as file, np.load(file) as arrays:
    return [
      next_item.Floor(title, description, values)
      for (title, description), values in zip(
        stored['floors'], arrays['values'], strict=True
      )
    ]
