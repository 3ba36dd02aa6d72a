"""Where the wall-clock time of a training goes, over all its restarts.

Book-keeping of seconds only: the loop says what it does, checkpoints carry
them.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

from absl import logging

# 'wait' (for data) is part of 'train'.  start: from the beginning of the
# process, or the end of what it did before, to the first step.  checkpoint:
# while training stood still.  lost: done after the last checkpoint and done
# again after a restart.  wall: everything, what is not named here included.
# earlier: of wall, what passed in the processes before this one.
NAMES = (
  'train', 'wait', 'rollout', 'compile', 'validate', 'checkpoint', 'start',
  'lost', 'wall', 'earlier',
)  # fmt: skip
_LONGEST_START = 3600.0  # seconds; an older process did something else before


def none_spent() -> dict[str, float]:
  """Returns zero seconds of everything."""
  return dict.fromkeys(NAMES, 0.0)


def productive(seconds: Mapping[str, float]) -> float:
  """Returns the seconds in which the model was trained.

    train - wait + rollout

  Rollouts are the method's own work; compiling, validating and saving are not.
  """
  return seconds['train'] - seconds['wait'] + seconds['rollout']


def share(seconds: Mapping[str, float]) -> float | None:
  """Returns the productive share of the wall time; None before any passed.

  Args:
    seconds: with `NAMES`.
  """
  if seconds['wall'] <= 0:
    return None
  return productive(seconds) / seconds['wall']


def figures(seconds: Mapping[str, float]) -> dict[str, float | None]:
  """Returns what a training's result.json says of its time."""
  return {
    'goodput': share(seconds),
    'wall_seconds': seconds['wall'],
    'earlier_seconds': seconds['earlier'],
    'start_seconds': seconds['start'],
    'lost_seconds': seconds['lost'],
    'training_seconds': seconds['train'],
    'rollout_seconds': seconds['rollout'],
    'compile_seconds': seconds['compile'],
    'validation_seconds': seconds['validate'],
    'checkpoint_seconds': seconds['checkpoint'],
    'data_wait_share': seconds['wait'] / max(seconds['train'], 1e-9),
  }


class Book:
  """The seconds of one run, written while it goes on.

  Attributes:
    seconds: of the whole run; see `NAMES`.
    interval: since the last log line: 'train' and 'wait', which the whole gets
      with that line, 'compile', and the model FLOPs of 'train'.
  """

  def __init__(
    self,
    clock: Callable[[], float],
    *,
    began: float | None,
    compiled: Callable[[], float],
  ):
    """Opens an empty book.

    Args:
      clock: seconds.
      began: clock() since which the time is this run's; None: since no stage
        of this process has worked.
      compiled: seconds compiled until now.
    """
    self.seconds = none_spent()
    self.interval = {'train': 0.0, 'wait': 0.0, 'compile': 0.0, 'flops': 0.0}
    self._clock = clock
    self._began = unclaimed_since() if began is None else began
    self._compiled = compiled
    self._compiled_booked = 0.0

  def restore(
    self, seconds: Mapping[str, float], interval: Mapping[str, float]
  ) -> None:
    """Continues the book of a checkpoint; call it before `begin`."""
    self.seconds = {**none_spent(), **seconds}
    self.interval = dict(interval)

  def begin(self, last_wall_seconds: float) -> None:
    """Books what the process before lost, and this one's time until now.

    Args:
      last_wall_seconds: of the last thing that is known of the run.
    """
    lost = max(last_wall_seconds - self.seconds['wall'], 0.0)
    self.seconds['lost'] += lost
    self.seconds['start'] += self._clock() - self._began
    self.seconds['earlier'] = self.seconds['wall'] + lost
    self.measure_wall()

  def measure_wall(self) -> None:
    """Brings the wall time up to now."""
    spent = self._clock() - self._began
    self.seconds['wall'] = self.seconds['earlier'] + spent

  @contextlib.contextmanager
  def spending(self, name: str) -> Iterator[None]:
    """Books the time of the block, except what it compiled.

    A block that raises is not booked.
    """
    self._book_compilation()
    start, before = self._clock(), self.seconds['compile']
    yield
    self._book_compilation()
    spent = self._clock() - start - (self.seconds['compile'] - before)
    where = self.interval if name in self.interval else self.seconds
    where[name] += spent

  def _book_compilation(self) -> None:
    total = self._compiled()
    spent = total - self._compiled_booked
    self._compiled_booked = total
    if spent:
      self.seconds['compile'] += spent
      self.interval['compile'] += spent
      logging.info('compiled in %.1f s', spent)

  def end_interval(self) -> None:
    """Adds the interval to the whole and begins another."""
    for name in ('train', 'wait'):
      self.seconds[name] += self.interval[name]
    self.interval = dict.fromkeys(self.interval, 0.0)
    self.measure_wall()


# --- Since when ---------------------------------------------------------------


def _process_seconds() -> float:
  """Returns how long ago this process began; 0 where the system hides it."""
  stat = pathlib.Path('/proc/self/stat')
  if not stat.exists():
    return 0.0
  # Field 22, the 20th after the name: clock ticks since the machine's start.
  ticks = int(stat.read_text().rpartition(')')[2].split()[19])
  now = time.clock_gettime(time.CLOCK_BOOTTIME)
  seconds = now - ticks / os.sysconf('SC_CLK_TCK')
  return seconds if 0 <= seconds < _LONGEST_START else 0.0


_unclaimed_since = time.perf_counter() - _process_seconds()


def unclaimed_since() -> float:
  """Returns the time.perf_counter() since which no stage has worked."""
  return _unclaimed_since


def claim() -> None:
  """Ends a stage or a training: the next one's start begins now."""
  global _unclaimed_since
  _unclaimed_since = time.perf_counter()
