"""How far the process may run ahead of its device.

A step returns before the device has done it, and JAX lets many be handed over.
What is asked of the process between steps, such as to stop after SIGTERM, would
wait for all of them.
"""

import collections
from typing import Any

_AHEAD = 2  # steps that are handed to the device and have not begun


class Backlog:
  """Steps that the device has not finished, as far as the process knows."""

  def __init__(self) -> None:
    self._marks: collections.deque[Any] = collections.deque()

  def add(self, mark: Any) -> None:
    """Notes a step; waits while there are too many.

    Args:
      mark: array that the step computes and no later step is given to donate.
    """
    self._marks.append(mark)
    if len(self._marks) > _AHEAD:
      self._marks.popleft().block_until_ready()
