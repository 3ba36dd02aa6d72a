"""The figures of finished runs, kept in experiments/measured/.

Titles and folders stay with the owner of the data and of the machine.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

_ROOT = pathlib.Path(__file__).parent.parent
FOLDER = _ROOT / 'experiments' / 'measured'
_LIBRARIES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'polars')
_FOLDERS: dict[str, str] = {
  'prepare': 'data',
  'tokenize': 'tokenizer',
}  # where they differ


def collect(workdir: pathlib.Path) -> pathlib.Path:
  """Copies the figures of a finished run into experiments/measured/."""
  stages = {
    path.parent.name: json.loads(path.read_text())
    for path in sorted(workdir.glob('*/result.json'))
  }
  if set(stages) == {'sweep'}:
    return _collect_sweep(workdir, stages['sweep'])
  wanted: list[str] = json.loads((workdir / 'config.json').read_text())[
    'stages'
  ]
  missing = {str(_FOLDERS.get(s, s)) for s in wanted} - set(stages)
  if missing:
    raise SystemExit(f'{workdir} has no result.json of {sorted(missing)}.')
  # Titles belong to the data's owner.
  evaluated = stages.get('evaluate', {})
  evaluated.pop('examples', None)
  for entry in (evaluated.get('session_rewards') or {}).get('dynamics', []):
    entry.pop('item', None)
  stages['embed'].get('alignment', {}).get('quality', {}).pop(
    'neighbours', None
  )
  curve = _curve(workdir / 'pretrain', stages.get('pretrain', {}))
  return _keep(
    workdir,
    {
      'stages': stages,
      'curve': curve,
      'compared': _compared(workdir, evaluated),
    },
  )


def _compared(
  workdir: pathlib.Path, evaluated: dict[str, Any]
) -> dict[str, Any] | None:
  """Returns what `compare` wrote of this evaluation; None: it was not run."""
  path = workdir / 'evaluate' / 'compared.json'
  if not path.exists():
    return None
  found = json.loads(path.read_text())
  first = found['runs'][0]['metrics']
  ours = evaluated['metrics']['onerec']
  # Means of the same numbers, up to the order in which they were added.
  if not all(
    math.isclose(first[name]['mean'], ours[name]['mean'], rel_tol=1e-9)
    for name in first
  ):
    raise SystemExit(
      f'{path} is of an earlier evaluation. Run `python -m onerec_jax.main'
      f' compare --workdir={workdir} --against=...` again, or remove it.'
    )
  for run in found['runs']:
    del run['path']
  return found


def _curve(
  folder: pathlib.Path, training: dict[str, Any]
) -> list[dict[str, float]]:
  """Returns recall and NDCG on validation users against examples seen."""
  if not training.get('examples_seen'):
    return []
  per_step = training['examples_seen'] / training['steps']
  records = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  return [
    {
      'examples': round(r['step'] * per_step),
      **{m: r[f'valid/{m}'] for m in ('recall@10', 'ndcg@10')},
    }
    for r in records
    if 'valid/recall@10' in r
  ]


def _collect_sweep(
  workdir: pathlib.Path, result: dict[str, Any]
) -> pathlib.Path:
  return _keep(workdir, {'sweep': result})


def _keep(workdir: pathlib.Path, figures: dict[str, Any]) -> pathlib.Path:
  """Writes figures with the settings, commit and machine they come from."""
  config = json.loads((workdir / 'config.json').read_text())
  # Folders of the machine that ran it.
  config['data']['path'] = None
  for part in config['embed']['parts']:
    part['path'] = None
  commit = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.strip()
  result = {
    'config': config,
    **figures,
    'commit': commit,
    'machine': _machine(figures),
    'python': platform.python_version(),
    'versions': {n: importlib.metadata.version(n) for n in _LIBRARIES},
  }
  path = FOLDER / f'{config["name"]}.json'
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(result, indent=1, sort_keys=True) + '\n')
  return path


def _machine(figures: dict[str, Any]) -> str:
  """Returns the accelerators that trained, or the processor of this machine."""
  trained = [
    seed
    for row in figures.get('sweep', {}).get('rows', ())
    for seed in row.get('training') or ()
  ]
  trained += [figures.get('stages', {}).get('pretrain')]
  devices = {t['device'] for t in trained if t and t.get('device')} - {'cpu'}
  if devices:
    return ', '.join(sorted(devices))
  return f'{os.cpu_count()} CPU cores, {platform.machine()}'


def read(name: str) -> dict[str, Any] | None:
  """Returns the figures of a run, None: it was not measured."""
  path = FOLDER / f'{name}.json'
  return json.loads(path.read_text()) if path.exists() else None


def of_model(evaluated: Mapping[str, Any]) -> dict[str, Any]:
  """Returns title -> figures of the evaluated model, the final lists first.

  With counted transitions in its lists the model alone comes second.

  Args:
    evaluated: result of the stage `evaluate`.
  """
  return {
    evaluated['methods'][method]['title']: evaluated['metrics'][method]
    for method in ('onerec', 'without_transitions')
    if method in evaluated['methods']
  }
