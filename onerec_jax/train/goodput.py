"""Where the wall-clock time of a training goes, over all its restarts.

Book-keeping of seconds only: the loop measures them, checkpoints carry them.
"""

import os
import pathlib
import time
from collections.abc import Mapping

# 'wait' (for data) is part of 'train'.  start: from the beginning of the
# process, or the end of what it did before, to the first step.  checkpoint:
# while training stood still.  lost: done after the last checkpoint and done
# again after a restart.  wall: everything, what is not named here included.
NAMES = (
  'train', 'wait', 'rollout', 'compile', 'validate', 'checkpoint', 'start',
  'lost', 'wall',
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
    'start_seconds': seconds['start'],
    'lost_seconds': seconds['lost'],
    'training_seconds': seconds['train'],
    'rollout_seconds': seconds['rollout'],
    'compile_seconds': seconds['compile'],
    'validation_seconds': seconds['validate'],
    'checkpoint_seconds': seconds['checkpoint'],
    'data_wait_share': seconds['wait'] / max(seconds['train'], 1e-9),
  }


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
