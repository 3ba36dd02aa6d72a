"""What the benchmarks share: turns, ratios, and the frame of a result file.

Times what it is given and judges nothing; imports JAX nowhere, so that a child
process can choose its cores first.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import huge_pages

RESULTS = pathlib.Path(__file__).parent / 'results'

# An array in the text of a compiled program: f32[4,128,512]{2,1,0}.
_ARRAY = re.compile(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]')


# --- Turns ------------------------------------------------------------------


def use_one_core() -> None:
  """Keeps this process on one core; before JAX or PyTorch counts them.

  PyTorch's threads spin while they wait for a busy core: on a machine that
  others use, only one thread each compares fairly.
  """
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  os.environ['OMP_NUM_THREADS'] = '1'


def timed(run: Callable[[], Any]) -> tuple[float, float]:
  """Returns wall and CPU seconds of a call, which must wait for its result."""
  wall, cpu = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - wall, time.process_time() - cpu


def alternate(
  runs: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, dict[str, Any]]:
  """Times all contenders in turns; the order turns around every round.

  So that drift of a shared machine hits all alike.  An untimed call comes
  before every timed one, which so finds its own memory and caches, as in a
  loop of its own: after another contender's call the same step took up to
  twice as long.

  Args:
    runs: contenders by name; each waits for its result.
    rounds: timed calls of each.
    warmup: rounds before, untimed.
  """
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
  names = list(runs)
  for number in range(warmup + rounds):
    for name in names if number % 2 else names[::-1]:
      runs[name]()
      if number >= warmup:
        spent = timed(runs[name])
        times[name].append(spent)
        print(f'{name} {spent[0]:.4f} s wall {spent[1]:.4f} s cpu', flush=True)
  return {name: seconds(pairs) for name, pairs in times.items()}


def seconds(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
  """Returns every round's wall and CPU seconds and their medians."""
  result: dict[str, Any] = {}
  for clock, values in zip(
    ('wall', 'cpu'), zip(*pairs, strict=True), strict=True
  ):
    result[f'{clock}_seconds_median'] = statistics.median(values)
    result[f'{clock}_seconds'] = list(values)
  return result


def ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> dict[str, float]:
  """Returns time of `slow` over time of `fast`, compared round by round."""
  entry = {}
  for clock in ('wall', 'cpu'):
    pairs = zip(slow[f'{clock}_seconds'], fast[f'{clock}_seconds'], strict=True)
    each = [s / f for s, f in pairs]
    entry[f'{clock}_ratio_median'] = statistics.median(each)
    entry[f'{clock}_ratio_min'] = min(each)
    entry[f'{clock}_ratio_max'] = max(each)
  return entry


# --- Equality ---------------------------------------------------------------


def check_close(
  ours: Any, peer: Any, *, what: str, relative: float, absolute: float = 0.0
) -> float:
  """Returns the largest difference of two arrays over what is allowed.

    max |ours - peer| / (relative · |peer| + absolute)

  Raises:
    ValueError: it is above 1, or a value is not finite: the contenders did
      not compute the same thing.
  """
  import numpy as np

  ours, peer = np.asarray(ours, np.float64), np.asarray(peer, np.float64)
  if ours.shape != peer.shape:
    raise ValueError(f'{what}: shapes {ours.shape} and {peer.shape} differ.')
  allowed = relative * np.abs(peer) + absolute
  with np.errstate(divide='ignore', invalid='ignore'):
    share = np.where(ours == peer, 0.0, np.abs(ours - peer) / allowed)
  worst = float(np.max(share, initial=0.0))
  if not worst <= 1:
    raise ValueError(
      f'{what}: ours and the peer differ by {worst:.3g} times the allowed'
      f' {relative:g} relative + {absolute:g}; a time of two different'
      ' computations means nothing.'
    )
  return worst


# --- Compiled programs ------------------------------------------------------


def temporary_bytes(compiled: Any) -> int:
  """Returns what a compiled JAX program needs beside its arguments, bytes."""
  return int(compiled.memory_analysis().temp_size_in_bytes)


def large_arrays(text: str, *, elements: int) -> list[str]:
  """Returns the different array shapes of an HLO text that are so large.

  Args:
    text: `compiled.as_text()`.
    elements: an array with at least so many is listed, as '4,128,512'.
  """
  shapes = set(_ARRAY.findall(text))

  def size(shape: str) -> int:
    product = 1
    for dim in shape.split(','):
      product *= int(dim)
    return product

  return sorted(s for s in shapes if size(s) >= elements)


# --- Files ------------------------------------------------------------------


def machine() -> dict[str, Any]:
  """Returns what a reader must know of the machine to judge a time."""
  return {
    'cores': os.cpu_count(),
    'processor': platform.processor() or platform.machine(),
    'load_average': os.getloadavg(),
    'memory_settings': os.environ.get(huge_pages.VARIABLE, ''),
  }


def report(
  module: str, packages: Sequence[str], **values: Any
) -> dict[str, Any]:
  """Returns a result: command, date, machine, versions and `values`.

  Args:
    module: name of the benchmark, e.g. 'session_beam'.
    packages: whose versions count.
    values: what was measured.
  """
  versions = {'python': platform.python_version()}
  for name in packages:
    versions[name] = importlib.metadata.version(name)
  arguments = ' '.join(
    a for a in sys.argv[1:] if not a.startswith(('--output', '--workdir'))
  )
  return {
    'command': f'python -m experiments.benchmarks.{module} {arguments}'.strip(),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    **machine(),
    'versions': versions,
    **values,
  }


def write(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
  """Writes a result file at once, so that a reader never sees half of one."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.part')
  temporary.write_text(json.dumps(result, indent=1) + '\n')
  temporary.replace(path)


def read(name: str) -> dict[str, Any]:
  """Returns results/`name`.json; {} where it was not measured."""
  path = RESULTS / f'{name}.json'
  return json.loads(path.read_text()) if path.exists() else {}
