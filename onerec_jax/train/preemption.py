"""SIGTERM -> save and stop, on one process and on many.

Only notes the request; the loop decides when it is safe to act on it.
"""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from onerec_jax import distributed

# Exit status after SIGTERM and a checkpoint: run the same command again.
PREEMPTED_STATUS = 42


class Preempted(distributed.AgreedExit):
  """The run was asked to stop (SIGTERM), saved its state and ended."""


class StopRequested(Exception):
  """SIGTERM was seen inside work that can be given up and done again."""


class StopSignal:
  """Notes SIGTERM; asks all processes when there are several.

  Every process must ask equally often: they stop at the same question.
  """

  # Of the whole job: JAX takes the largest number of all processes, plus one.
  _polls = 0

  def __init__(self) -> None:
    self._received = False
    self._previous: Any = None
    self._installed = False

  def __enter__(self) -> 'StopSignal':
    # JAX's own handler serves multi-process runs; a thread cannot have one.
    main = threading.current_thread() is threading.main_thread()
    if jax.process_count() == 1 and main:
      self._previous = signal.signal(signal.SIGTERM, self._receive)
      self._installed = True
    return self

  def __exit__(self, *error: Any) -> None:
    if self._installed:
      signal.signal(signal.SIGTERM, self._previous)

  def _receive(self, number: int, frame: Any) -> None:
    del number, frame
    self._received = True

  def requested(self) -> bool:
    """Returns whether to stop; the same on all processes."""
    if jax.process_count() == 1:
      return self._received
    StopSignal._polls += 1
    return multihost_utils.reached_preemption_sync_point(StopSignal._polls)

  def poll(self) -> None:
    """Raises StopRequested if the run is to stop."""
    if self.requested():
      raise StopRequested
