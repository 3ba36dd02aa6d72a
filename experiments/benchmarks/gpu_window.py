"""Everything that is outstanding on a GPU, in one window of 25 minutes.

  python -m experiments.benchmarks.gpu_window
  python -m experiments.benchmarks.gpu_window --toy     # rehearsal on CPU

The most valuable first; results/gpu_window.json is written after every task,
and a call that finds it does only what is missing.  Every task is a process
with a time limit, so that one that fails or hangs costs its own figures only.
Needs JAX, Flax and Optax, whatever their versions; the peers also torch and
transformers.
"""

import argparse
import datetime
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
import traceback
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from experiments.benchmarks import harness

_PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'transformers',
)  # fmt: skip
# A child that is asked to stop gets so long to do it.
_GRACE_SECONDS = 5.0


class Task(NamedTuple):
  """One measurement; `minutes` is what it should take, compiling included."""

  name: str
  minutes: float
  function: str  # one of `functions`
  settings: Mapping[str, Any] = {}


_SMALL = {'size': '0.1b', 'batch_sizes': (256, 512)}
_LARGE = {'size': '1b', 'batch_sizes': (256,)}
# Beside the recipe as it is: without recomputation, and without dropout of
# attention weights, which no fused attention of a GPU computes as we do.
_NO_REMAT = {'remat': False}
_NO_DROPOUT = {'attention_dropout_rate': 0.0}


def _decode(size: str, num_beams: int, rows: int) -> dict[str, Any]:
  return {'size': size, 'num_beams': num_beams, 'rows': rows}


# Most valuable first: what has a target of its own, then what decides the next
# change, then the peers.
TASKS = (
  Task('device', 1, 'device'),
  Task('train 0.1b', 2, 'train', _SMALL),
  Task('decode 0.1b, 128 beams', 2, 'decode', _decode('0.1b', 128, 64)),
  Task('train 1b', 1.5, 'train', _LARGE),
  Task('decode 0.1b, 512 beams', 2, 'decode', _decode('0.1b', 512, 16)),
  Task('train 0.1b, no remat', 2, 'train', _SMALL | _NO_REMAT),
  Task(
    'train 0.1b, no attention dropout', 2, 'train',
    _SMALL | _NO_REMAT | _NO_DROPOUT,
  ),
  Task('attention', 1.5, 'attention'),
  Task('top k', 1, 'top_k'),
  Task('experts', 2, 'experts'),
  Task('train 1b, no remat', 1.5, 'train', _LARGE | _NO_REMAT),
  Task('decode 1b, 128 beams', 2, 'decode', _decode('1b', 128, 64)),
  Task('training step against T5', 1.5, 'train_against_peer'),
  Task('beam search against T5', 1.5, 'beam_against_peer'),
  Task('session beam', 1, 'beams_against_tiled'),
  Task('group step', 2, 'groups_against_bound'),
)  # fmt: skip

# (task, toy, seconds allowed) -> outcome with 'status'.
Runner = Callable[[Task, bool, float], dict[str, Any]]


# --- Processes --------------------------------------------------------------


def functions() -> dict[str, Callable[..., dict[str, Any]]]:
  """Returns what tasks can run; imports JAX."""
  from experiments.benchmarks import attention_forms
  from experiments.benchmarks import gpu_tasks
  from experiments.benchmarks import top_k_forms

  return {
    'device': gpu_tasks.device,
    'train': gpu_tasks.train,
    'decode': gpu_tasks.decode,
    'attention': attention_forms.measure,
    'top_k': top_k_forms.measure,
    'experts': gpu_tasks.experts,
    'train_against_peer': gpu_tasks.train_against_peer,
    'beam_against_peer': gpu_tasks.beam_against_peer,
    'beams_against_tiled': gpu_tasks.beams_against_tiled,
    'groups_against_bound': gpu_tasks.groups_against_bound,
  }


def _child(connection: Any, task: Task, toy: bool) -> None:
  """Runs a task and sends what it found, or its error."""
  # Beside PyTorch JAX must not take three quarters of the memory.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # A task that is tried again finds its programs compiled.
  folder = pathlib.Path(tempfile.gettempdir()) / 'onerec_gpu_window'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
  if toy:
    os.environ['JAX_PLATFORMS'] = 'cpu'
  try:
    found = functions()[task.function](toy, **task.settings)
    connection.send({'status': 'measured', **found})
  except BaseException as error:  # whatever it was, it is part of the result
    connection.send(
      {
        'status': 'failed',
        'error': f'{type(error).__name__}: {error}'[:2000],
        'where': traceback.format_exc()[-2000:],
      }
    )


def run_in_process(task: Task, toy: bool, limit: float) -> dict[str, Any]:
  """Runs a task in a process of its own, at most `limit` seconds."""
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe(duplex=False)
  child = context.Process(target=_child, args=(there, task, toy))
  child.start()
  there.close()
  outcome: dict[str, Any] = {
    'status': 'failed',
    'error': f'no result within {limit:.0f} s',
  }
  try:
    if here.poll(limit):
      outcome = here.recv()
  except EOFError:  # the process died without a word
    outcome = {'status': 'failed', 'error': 'the process ended by itself'}
  child.join(_GRACE_SECONDS if outcome['status'] == 'measured' else 0)
  if child.is_alive():
    child.terminate()
    child.join(_GRACE_SECONDS)
    if child.is_alive():
      child.kill()
      child.join()
  if child.exitcode and outcome['status'] == 'failed':
    outcome['exit_code'] = child.exitcode
  return outcome


# --- The window -------------------------------------------------------------


def outstanding(
  tasks: tuple[Task, ...], done: Mapping[str, Mapping[str, Any]]
) -> list[Task]:
  """Returns the tasks that were not measured; those that failed come last."""
  left = [t for t in tasks if done.get(t.name, {}).get('status') != 'measured']
  return sorted(left, key=lambda t: t.name in done)


def rehearsed(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
  """Returns the first task of every function: tiny sizes make others equal."""
  first = {task.function: task for task in reversed(tasks)}
  return tuple(task for task in tasks if first[task.function] is task)


def run_window(
  tasks: tuple[Task, ...],
  *,
  minutes: float,
  toy: bool,
  done: dict[str, dict[str, Any]],
  save: Callable[[dict[str, dict[str, Any]]], None],
  run: Runner = run_in_process,
  clock: Callable[[], float] = time.monotonic,
) -> dict[str, dict[str, Any]]:
  """Runs what is outstanding as long as there is time.

  A task begins only if the time that it should take is left, and is stopped
  after three times that or at the end of the window.

  Args:
    tasks: in the order of their value.
    minutes: length of the window.
    toy: tiny sizes, on CPU.
    done: outcomes of earlier windows by task; changed.
    save: called with all outcomes after every task.
    run: runs one task.
    clock: seconds.
  """
  end = clock() + 60 * minutes
  for task in outstanding(tasks, done):
    left = end - clock()
    if left < (1.0 if toy else 60 * task.minutes):
      print(f'{task.name}: no time, {left / 60:.1f} min are left', flush=True)
      continue
    begin = clock()
    outcome = run(task, toy, min(left, 3 * 60 * task.minutes))
    outcome['seconds_spent'] = round(clock() - begin, 1)
    outcome['date'] = _now()
    done[task.name] = outcome
    save(done)
    shown = {k: v for k, v in outcome.items() if not isinstance(v, dict | list)}
    print(f'{task.name}: {json.dumps(shown)}', flush=True)
  return done


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def earlier(path: pathlib.Path, *, toy: bool) -> dict[str, dict[str, Any]]:
  """Returns the outcomes in a result file; {} if there is none.

  Raises:
    ValueError: it holds a rehearsal and this is none, or the reverse.
  """
  if not path.exists():
    return {}
  found = json.loads(path.read_text())
  if found['toy'] != toy:
    raise ValueError(
      f'{path} holds toy={found["toy"]} results and this run has toy={toy}:'
      ' give another --output.'
    )
  return found['tasks']


def _versions() -> dict[str, str]:
  import importlib.metadata

  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found


def _save(
  path: pathlib.Path, toy: bool, tasks: dict[str, dict[str, Any]]
) -> None:
  result = harness.report('gpu_window', (), toy=toy, tasks=tasks)
  result['versions'] |= _versions()
  harness.write(path, result)


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=25.0)
  parser.add_argument('--toy', action='store_true')
  parser.add_argument('--tasks', help='names, separated by ";"; default: all')
  parser.add_argument(
    '--output',
    type=pathlib.Path,
    help='written after every task; default: results/gpu_window.json',
  )
  parser.add_argument(
    '--continue_from',
    type=pathlib.Path,
    help='result file of an earlier window; default: --output',
  )
  arguments = parser.parse_args()
  name = 'gpu_window_toy.json' if arguments.toy else 'gpu_window.json'
  folder = (
    pathlib.Path(tempfile.gettempdir()) if arguments.toy else harness.RESULTS
  )
  output = arguments.output or folder / name
  tasks = TASKS
  if arguments.tasks:
    wanted = [n.strip() for n in arguments.tasks.split(';')]
    known = {t.name: t for t in TASKS}
    unknown = sorted(set(wanted) - set(known))
    if unknown:
      raise SystemExit(f'No task is named {unknown}: there are {[*known]}.')
    tasks = tuple(known[n] for n in wanted)
  run_window(
    rehearsed(tasks) if arguments.toy else tasks,
    minutes=arguments.minutes,
    toy=arguments.toy,
    done=earlier(arguments.continue_from or output, toy=arguments.toy),
    save=functools.partial(_save, output, arguments.toy),
  )
  print(f'wrote {output}')


if __name__ == '__main__':
  main()
