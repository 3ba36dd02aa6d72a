"""A profiler trace of some steps, and what in it took longest.

  python -m onerec_jax.train.profile FOLDER

FOLDER is a stage's, of a run with --profile_steps; the trace also opens in
TensorBoard and Perfetto.
"""

import dataclasses
import gzip
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
from absl import logging
from etils import epath

from onerec_jax import config as config_lib

FOLDER = 'profile'
_SHOWN = 30  # operations in the table

# --- Which steps --------------------------------------------------------------


def parse_steps(text: str) -> tuple[int, int]:
  """Returns (10, 15) for '10:15': the first and the last step to trace.

  Raises:
    ValueError: it is not of that form, or not in order.
  """
  first, colon, last = text.partition(':')
  if not colon or not first.isdecimal() or not last.isdecimal():
    raise ValueError(
      f'--profile_steps={text!r} must be FIRST:LAST, e.g. 10:15.'
    )
  steps = int(first), int(last)
  if not 1 <= steps[0] <= steps[1]:
    raise ValueError(
      f'--profile_steps={text!r}: steps count from 1 and the first may not'
      ' come after the last, e.g. 10:15.'
    )
  return steps


def with_steps(
  experiment: config_lib.Experiment, steps: tuple[int, ...]
) -> config_lib.Experiment:
  """Returns the experiment with `profile_steps` in every training stage.

  Args:
    experiment: any.
    steps: from `parse_steps`; (): none.
  """
  changed: dict[str, Any] = {}
  for field in dataclasses.fields(experiment):
    train = getattr(experiment, field.name)
    if isinstance(train, config_lib.TrainConfig):
      changed[field.name] = dataclasses.replace(train, profile_steps=steps)
  return dataclasses.replace(experiment, **changed)


class Window:
  """Traces the configured steps of one training; none if there are none."""

  def __init__(self, folder: epath.Path, steps: Sequence[int]):
    """Prepares; touches nothing.

    Args:
      folder: the stage's; the trace goes to `FOLDER` in it.
      steps: (first, last), counted from 1 as the log does; empty: never.
    """
    self._target = folder / FOLDER
    self._steps = tuple(steps)
    self._local: str | None = None  # where a running trace is written
    self._begun = False

  def before(self, step: int, arrays: Any) -> None:
    """Starts or stops the trace, if it is time.

    Args:
      step: the step that comes next, from 1.
      arrays: of the step before; what the device still works at is waited for.
    """
    if not self._steps:
      return
    if self._local is None and step == self._steps[0]:
      jax.block_until_ready(arrays)
      # The profiler writes local files only.
      self._begun = True
      self._local = tempfile.mkdtemp(prefix='onerec_profile_')
      jax.profiler.start_trace(self._local)
    elif self._local is not None and step > self._steps[1]:
      jax.block_until_ready(arrays)
      self.close()

  def close(self) -> None:
    """Stops a running trace and puts its files in the folder."""
    if self._steps and not self._begun:
      logging.warning(
        'profile_steps=%s: nothing was traced, step %d was not among those'
        ' that this process ran.',
        self._steps,
        self._steps[0],
      )
    if self._local is None:
      return
    jax.profiler.stop_trace()
    local, self._local = self._local, None
    try:
      _copy(epath.Path(local), self._target)
    finally:
      shutil.rmtree(local, ignore_errors=True)
    logging.info(
      'profiled steps %d to %d: python -m onerec_jax.train.profile %s',
      *self._steps,
      os.fspath(self._target.parent),
    )


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name, overwrite=True)


# --- What took longest --------------------------------------------------------


class Row(NamedTuple):
  """One operation (TPU, CPU) or kernel (GPU) of a trace."""

  name: str
  calls: int
  milliseconds: float  # without the operations inside it, over all devices
  share: float  # of the time in which any operation ran


def find_traces(folder: epath.Path) -> list[epath.Path]:
  """Returns the files of the newest trace below a folder, one a process.

  Args:
    folder: a stage's, its `FOLDER`, or a profiler's own.

  Raises:
    FileNotFoundError: there is none; says how to make one.
  """
  for place in (folder / FOLDER, folder):
    runs = place / 'plugins' / 'profile'
    if not runs.exists():
      continue
    # Named by date and time.
    for run in sorted(runs.iterdir(), key=lambda p: p.name, reverse=True):
      found = sorted(run.glob('*.trace.json.gz'), key=lambda p: p.name)
      if found:
        return found
  raise FileNotFoundError(
    f'{folder} holds no profile. Run its stage again, in a new --workdir or'
    ' with more steps, with --profile_steps=10:15.'
  )


def read_trace(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the events of a *.trace.json.gz (the Chrome trace format)."""
  return json.loads(gzip.decompress(path.read_bytes()))['traceEvents']


def slowest(events: Iterable[Mapping[str, Any]]) -> list[Row]:
  """Returns every operation of the devices in a trace, the slowest first.

  Of a GPU the kernels on its streams are counted, of a TPU the line 'XLA Ops',
  of a CPU what bears the name of an operation.  Time inside an operation that
  another one spends (as in a loop) counts for the inner one.

  Args:
    events: of one file or of several, one after the other.
  """
  events = list(events)
  calls: dict[str, int] = {}
  spent: dict[str, float] = {}
  for line in _device_lines(events):
    for name, microseconds in _self_times(line):
      calls[name] = calls.get(name, 0) + 1
      spent[name] = spent.get(name, 0.0) + microseconds
  total = max(sum(spent.values()), 1e-9)
  return [
    Row(name, calls[name], spent[name] / 1e3, spent[name] / total)
    for name in sorted(spent, key=lambda n: (-spent[n], n))
  ]


def _device_lines(
  events: Sequence[Mapping[str, Any]],
) -> list[list[Mapping[str, Any]]]:
  """Returns the events of every line of operations, as lists."""
  processes = {
    e['pid']: e['args']['name']
    for e in events
    if e.get('ph') == 'M' and e['name'] == 'process_name'
  }
  threads = {
    (e['pid'], e['tid']): e['args']['name']
    for e in events
    if e.get('ph') == 'M' and e['name'] == 'thread_name'
  }
  # Beside streams a GPU may have derived lines with the same time once more.
  streams = {pid for (pid, _), n in threads.items() if n.startswith('Stream')}
  lines: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
  for event in events:
    if event.get('ph') != 'X':
      continue
    key = event['pid'], event['tid']
    if '/device:' in processes.get(event['pid'], ''):
      name = threads.get(key, '')
      wanted = (
        name.startswith('Stream')
        if event['pid'] in streams
        else name == 'XLA Ops'
      )
    else:
      wanted = 'hlo_op' in event.get('args', {})
    if wanted:
      lines.setdefault(key, []).append(event)
  return list(lines.values())


def _self_times(
  line: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, float]]:
  """Yields names and microseconds, without those of the events inside."""
  # Of two that begin together the longer one is outside.
  ordered = sorted(line, key=lambda e: (e['ts'], -e.get('dur', 0.0)))
  stack: list[tuple[float, str, list[float]]] = []  # (end, name, [own time])
  for event in ordered:
    duration = float(event.get('dur', 0.0))
    while stack and stack[-1][0] <= event['ts']:
      _, name, own = stack.pop()
      yield name, max(own[0], 0.0)
    if stack:
      stack[-1][2][0] -= duration
    stack.append((event['ts'] + duration, event['name'], [duration]))
  for _, name, own in stack:
    yield name, max(own[0], 0.0)


def table(rows: Sequence[Row], *, limit: int = _SHOWN) -> str:
  """Returns the slowest operations as text."""
  lines = [f'{"total ms":>12} {"share":>7} {"calls":>8}  operation']
  lines += [
    f'{r.milliseconds:12.3f} {r.share:7.1%} {r.calls:8d}  {r.name}'
    for r in rows[:limit]
  ]
  if len(rows) > limit:
    rest = rows[limit:]
    lines.append(
      f'{sum(r.milliseconds for r in rest):12.3f}'
      f' {sum(r.share for r in rest):7.1%}'
      f' {sum(r.calls for r in rest):8d}  {len(rest)} others'
    )
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> int:
  """Prints the table of a folder; returns the exit status."""
  if len(arguments) != 1:
    print('Usage: python -m onerec_jax.train.profile FOLDER', file=sys.stderr)
    return 2
  try:
    paths = find_traces(epath.Path(arguments[0]))
  except FileNotFoundError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  rows: list[Row] = []
  for path in paths:
    rows = slowest(read_trace(path))
    print(f'{os.fspath(path)}\n{table(rows)}')
  return 0 if rows else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
