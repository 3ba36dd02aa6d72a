"""Seconds from the start of a process to its first training step.

  python -m experiments.benchmarks.start_time --workdir=runs/start_time

Whole processes: `python -m onerec_jax.main pretrain` for one step, on a log
that is prepared before, by turns with an empty cache of compiled programs
(cold) and with the one that the cold process left (warm).  Both report the
same loss.  The seconds are counted by the operating system from the start of
the process, imports included.  Writes results/start_time.json.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks import input_pipeline
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import runner
from onerec_jax.train import log

_ROOT = pathlib.Path(__file__).parent.parent.parent


def prepare(name: str, root: pathlib.Path) -> pathlib.Path:
  """Makes the inputs of `pretrain`; returns the work directory.

  Args:
    name: as for `input_pipeline.experiment`.
    root: folder of the benchmark's own.
  """
  made = input_pipeline.experiment(name, prefetch=4, steps=1)
  stages = input_pipeline.STAGES[:-1]
  runner.run_stages(made, workdir_lib.Workdir(root / name), stages, resume=True)
  return root / name


def start(workdir: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
  """Runs a process until its first step is logged.

  Args:
    workdir: from `prepare`; its settings are read from config.json.
    cache: folder of the compiled programs.

  Returns:
    Seconds to the end of the first step, compile seconds among them, wall and
    CPU seconds of the whole process, and the loss.
  """
  if (workdir / 'pretrain').exists():
    shutil.rmtree(workdir / 'pretrain')
  environment = {
    **os.environ,
    'ONEREC_CACHE': str(cache),  # where main.py keeps compiled programs
    'PYTHONPATH': str(_ROOT),
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  wall = time.perf_counter()
  finished = subprocess.run(
    [
      sys.executable, '-m', 'onerec_jax.main', 'pretrain',
      f'--workdir={workdir}',
    ],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  wall = time.perf_counter() - wall
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  if finished.returncode:
    raise RuntimeError(f'pretrain failed:\n{finished.stderr[-2000:]}')
  folder = workdir_lib.Workdir(workdir).folder('pretrain')
  (record,) = log.read_metrics(folder / log.METRICS)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {
    'first_step_seconds': record['wall_seconds'],
    'compile_seconds': record['compile_seconds'],
    'process_wall_seconds': wall,
    'process_cpu_seconds': cpu,
    'loss': record['loss'],
  }


def check_equal(runs: list[dict[str, float]]) -> None:
  """Raises ValueError unless all processes computed the same loss."""
  losses = {run['loss'] for run in runs}
  if len(losses) > 1:
    raise ValueError(
      f'Cold and warm starts computed different losses: {losses}'
    )


def measure(name: str, root: pathlib.Path, *, rounds: int) -> dict[str, Any]:
  """Returns cold and warm starts by turns, and their ratio round by round."""
  workdir = prepare(name, root)
  runs: dict[str, list[dict[str, float]]] = {'cold': [], 'warm': []}
  for number in range(rounds):
    cache = root / f'cache_{name}'
    shutil.rmtree(cache, ignore_errors=True)
    for kind, entries in runs.items():
      entries.append(start(workdir, cache))
      print(f'{name} round {number} {kind}: {entries[-1]}', flush=True)
  check_equal(runs['cold'] + runs['warm'])
  results = {
    kind: harness.seconds(
      [(e['first_step_seconds'], e['process_cpu_seconds']) for e in entries]
    )
    | {'runs': entries}
    for kind, entries in runs.items()
  }
  return {
    'results': results,
    'ratio': harness.ratio(results['warm'], results['cold']),
  }


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--toy', action='store_true')
  parser.add_argument('--output', default=harness.RESULTS / 'start_time.json')
  arguments = parser.parse_args()
  names = ('toy',) if arguments.toy else ('quickstart', 'beauty')
  root = arguments.workdir.absolute()
  found = {n: measure(n, root, rounds=arguments.rounds) for n in names}
  print(json.dumps({n: f['ratio'] for n, f in found.items()}, indent=1))
  harness.write(
    arguments.output,
    harness.report('start_time', ('jax', 'jaxlib', 'flax'), runs=found),
  )


if __name__ == '__main__':
  main()
