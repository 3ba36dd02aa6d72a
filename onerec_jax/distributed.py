"""Several processes as one job: begin together, agree, end together.

All processes run the same program on the same files; process 0 alone writes,
logs and does what needs no devices.  Refuses a work directory that not all of
them see, and lets none hang when another has failed.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import Literal
from typing import NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

# A process that was killed without a word ends the others after so long:
# they are ended by JAX's coordination service.
_HEARTBEAT_SECONDS = 60
# Processes start within this time of each other.
_START_SECONDS = 300
# NFS clients may take up to a minute to show a file of another machine.
_SEEN_SECONDS = 90.0
# How often processes look for an error of another one; a look at gs:// costs.
_POLL_SECONDS, _REMOTE_POLL_SECONDS = 1.0, 10.0

# At once, to bound the room on the devices.
_BROADCAST_BYTES = 1 << 26

FOLDER = '.processes'  # below the work directory
_TOKEN = 'seen'


class AgreedExit(SystemExit):
  """All processes of the job leave at the same point."""


# --- Beginning --------------------------------------------------------------


def initialize(
  mode: Literal['auto', 'off'] = 'auto',
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of a job; call it before any use of JAX's devices.

  A second call does nothing.

  Args:
    mode: 'auto': of several processes where JAX finds a cluster (Cloud TPU
      pods, GKE, Slurm), else alone; 'off': alone.  Not read where the others
      are given.
    coordinator: host:port of process 0, free there.  With it the next two.
    num_processes: of the job.
    process_id: of this process, 0..num_processes - 1.

  Raises:
    ValueError: the arguments contradict each other.
    RuntimeError: a cluster was found but could not be joined.
  """
  explicit = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  missing = [name for name, value in explicit.items() if value is None]
  if missing and len(missing) < len(explicit):
    raise ValueError(
      f'--{", --".join(missing)} is missing: give --coordinator=HOST:PORT,'
      ' --num_processes and --process_id together, or none of them.'
    )
  if jax.distributed.is_initialized():
    return
  if not missing:
    assert num_processes is not None and process_id is not None
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'--process_id={process_id} must lie in 0..{num_processes - 1}'
        f' (--num_processes={num_processes}).'
      )
  elif mode == 'off':
    return
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # e.g. in Kubernetes without its client
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=_START_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
  except ValueError as error:
    # What JAX says where it finds no cluster.
    if missing and 'coordinator_address should be defined' in str(error):
      return
    raise
  except Exception as error:
    raise RuntimeError(
      f'Cannot join the job: {error} Pass --distributed=off to run as one'
      ' process, or --coordinator, --num_processes and --process_id.'
    ) from error


def is_main() -> bool:
  """Returns whether this is the process that writes and logs."""
  return jax.process_index() == 0


# --- A job in its work directory --------------------------------------------


class _Job:
  """The processes' meeting place, below the work directory."""

  def __init__(self, folder: epath.Path):
    self.folder = folder
    self.turns = 0  # of `run_on_main`
    self.period = (
      _REMOTE_POLL_SECONDS if '://' in os.fspath(folder) else _POLL_SECONDS
    )
    self._left = threading.Event()
    self._watch = threading.Thread(target=self._look_for_errors, daemon=True)
    self._watch.start()

  def _look_for_errors(self) -> None:
    while not self._left.wait(self.period):
      self.end_if_another_failed()

  def end_if_another_failed(self) -> None:
    """Ends this process if the folder holds the error of another one."""
    try:
      paths = sorted(self.folder.glob('error_*.json'))
      found = json.loads(paths[0].read_text()) if paths else None
    except Exception:  # the disk is away for a moment; clients differ
      return
    if found is None or found['process'] == jax.process_index():
      return
    print(
      f'process {jax.process_index()} ends because process'
      f' {found["process"]} failed: {found["message"]}',
      file=sys.stderr,
      flush=True,
    )
    self._leave(found['status'])

  def fail(self, error: BaseException, explanation: str | None) -> NoReturn:
    """Ends this process and, within seconds, all others of the job."""
    # A collective fails where the other process has ended already.
    self.end_if_another_failed()
    if explanation is None:
      traceback.print_exception(error)
    else:
      print(explanation, file=sys.stderr)
    status = 1 if explanation is None else 2
    content = {
      'process': jax.process_index(),
      'status': status,
      'message': explanation or f'{type(error).__name__}: {error}',
    }
    with contextlib.suppress(Exception):
      name = f'error_{jax.process_index():05d}.json'
      _write(self.folder / name, json.dumps(content))
    self._leave(status)

  def _leave(self, status: int) -> NoReturn:
    """Ends the process without JAX's barrier, which would wait for all."""
    with contextlib.suppress(Exception):
      (self.folder / f'left_{jax.process_index()}').write_text('')
    if is_main():
      # The coordination service is in here: without it the others abort, and
      # they notice the error within a period.
      end = time.monotonic() + 3 * self.period + 10
      while time.monotonic() < end and not self._all_left():
        time.sleep(_POLL_SECONDS / 4)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def _all_left(self) -> bool:
    try:
      return len(list(self.folder.glob('left_*'))) == jax.process_count()
    except Exception:
      return True

  def close(self) -> None:
    self._left.set()
    self._watch.join()


class _Current:
  """The job that this process is in, if there are others."""

  job: _Job | None = None


@contextlib.contextmanager
def job(
  workdir: epath.Path,
  *,
  explain: Callable[[BaseException], str | None] = lambda error: None,
) -> Iterator[None]:
  """Within it, an error in one process ends all of them.

  A process alone does nothing here.  Else, when an exception leaves the block,
  the process prints it and ends at once, without `finally` of its callers; the
  others print it too and end with the same status within seconds, whatever
  they are waiting for.  A process that is killed without a word is missed by
  JAX's coordination service, which aborts the others (SIGABRT): at once if it
  was process 0, else after a minute.

  Args:
    workdir: gs:// or a disk that all machines share, under the same path.
    explain: one line for an error in the input, status 2; None: traceback and
      status 1.

  Raises:
    ValueError: not all processes see the work directory.
    AgreedExit: all processes leave together.
  """
  if jax.process_count() == 1 or _Current.job is not None:
    yield
    return
  _Current.job = current = _Job(_meet(workdir / FOLDER))
  try:
    yield
    multihost_utils.sync_global_devices('end of the job')
  except AgreedExit:
    raise
  except BaseException as error:
    current.fail(error, explain(error))
  finally:
    current.close()
    _Current.job = None
  if is_main():
    current.folder.rmtree()


def _write(path: epath.Path, text: str) -> None:
  """Writes a file that readers see whole or not at all."""
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_text(text)
  temporary.replace(path)


def _meet(root: epath.Path) -> epath.Path:
  """Returns a folder that process 0 made and all processes see."""
  token, problem = uuid.uuid4().hex[:12], ''
  if is_main():
    try:
      if root.exists():  # of jobs that were killed
        root.rmtree()
      (root / token).mkdir(parents=True)
      _write(root / token / _TOKEN, token)
    except OSError as error:
      problem = str(error)
  token, problem = json.loads(_broadcast_text(json.dumps((token, problem))))
  if problem:
    raise ValueError(f'Process 0 cannot write to --workdir: {problem}')
  path = root / token / _TOKEN
  end = time.monotonic() + _SEEN_SECONDS
  while not (seen := path.exists()) and time.monotonic() < end:
    time.sleep(_POLL_SECONDS / 4)
  everyone = multihost_utils.process_allgather(np.array([seen]))
  blind = np.flatnonzero(~np.asarray(everyone, bool).reshape(-1))
  if len(blind):
    raise ValueError(
      f'Process 0 wrote {path}, and the processes {blind.tolist()} of'
      f' {jax.process_count()} do not see it: --workdir must be gs:// or a'
      ' disk that all machines share, under the same path on each.'
    )
  return root / token


# --- Agreement --------------------------------------------------------------


def run_on_main(function: Callable[[], Any]) -> None:
  """Calls `function` on process 0 while the others wait, however long.

  They wait for a file and not in a collective, which may time out.  For work
  without devices of other processes.
  """
  if jax.process_count() == 1:
    function()
    return
  current = _Current.job
  if current is None:
    raise ValueError(
      f'{jax.process_count()} processes and no place to meet: wrap the work'
      ' in distributed.job(workdir).'
    )
  current.turns += 1
  path = current.folder / f'turn_{current.turns:05d}'
  if is_main():
    function()
    _write(path, '')
    return
  seconds = current.period / 64
  while not path.exists():
    time.sleep(seconds)
    seconds = min(2 * seconds, current.period)


def from_main(function: Callable[[], Any]) -> Any:
  """Returns what `function` returns on process 0, where alone it is called.

  For decisions that all processes must take alike, e.g. whether a file is
  there.  The others wait in a collective: `function` is to be quick.

  Args:
    function: its result is JSON-able (tuples become lists).
  """
  if jax.process_count() == 1:
    return function()
  text = json.dumps(function()) if is_main() else ''
  return json.loads(_broadcast_text(text))


def broadcast(tree: Any) -> Any:
  """Returns the NumPy arrays of process 0; all have the same shapes.

  For starting values that are computed on every machine, where rounding may
  depend on the processor.
  """
  if jax.process_count() == 1:
    return tree

  def of_main(value: np.ndarray) -> np.ndarray:
    content = np.frombuffer(value.tobytes(), np.uint8)
    parts = [
      _broadcast_bytes(content[first : first + _BROADCAST_BYTES])
      for first in range(0, len(content), _BROADCAST_BYTES)
    ]
    joined = np.concatenate([np.zeros(0, np.uint8), *parts])
    return np.frombuffer(joined.tobytes(), value.dtype).reshape(value.shape)

  return jax.tree.map(lambda x: of_main(np.asarray(x)), tree)


def _broadcast_text(text: str) -> str:
  """Returns the text of process 0."""
  content = np.frombuffer(text.encode(), np.uint8)
  length = np.array([len(content)], np.int64)
  size = int(_broadcast_bytes(length.view(np.uint8)).view(np.int64)[0])
  # Few lengths, few compilations.
  room = np.zeros(1 << max(size - 1, 63).bit_length(), np.uint8)
  if is_main():
    room[:size] = content
  return _broadcast_bytes(room)[:size].tobytes().decode()


def _broadcast_bytes(content: np.ndarray) -> np.ndarray:
  """Returns the bytes of process 0, as many on every process."""
  # It adds up what the processes have, of which the others have zeros.
  summed = multihost_utils.broadcast_one_to_all(content)
  return np.asarray(summed).astype(np.uint8)
