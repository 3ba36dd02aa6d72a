"""The sums over the steps since the last log line, on all devices.

Begun anew with every line, and carried by checkpoints between two of them.
Does not know what is summed: a step's update says so.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from onerec_jax import sharding
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib


class RunningTotals:
  """Sums whose shapes are known only once a batch is there to trace.

  Attributes:
    now: the sums, which a step takes (they are donated) and gives back; None
      until `begin`.
    seconds: spent tracing.
  """

  def __init__(
    self, update: step_lib.Update, mesh: Mesh, *, clock: Callable[[], float]
  ):
    self.now: step_lib.Totals | None = None
    self.seconds = 0.0
    self._update = update
    self._mesh = mesh
    self._clock = clock
    self._zeros: step_lib.Totals | None = None  # on the host

  def begin(
    self,
    state: state_lib.TrainState,
    frozen: Any,
    batch: Any,
    *,
    saved: Sequence[Any] | None,
  ) -> None:
    """Finds out what is summed, and begins with nothing or what was saved.

    Args:
      state: arrays of the step, as the next two.
      frozen: what is not trained.
      batch: of any step.
      saved: from `to_json`; None: nothing was.
    """
    start = self._clock()
    zeros = step_lib.zero_totals(self._update, state, frozen, batch, self._mesh)
    self._zeros = jax.device_get(zeros)
    self.now = zeros if saved is None else self._placed(saved)
    self.seconds += self._clock() - start

  def begin_anew(self) -> None:
    """Forgets all sums, after `begin`."""
    self.now = self.empty()

  def empty(self) -> step_lib.Totals:
    """Returns other sums of the same shapes, all zero, after `begin`."""
    return self._placed(jax.tree.leaves(self._zeros))

  def to_json(self) -> list[Any]:
    """Returns the sums as nested lists of numbers, for `begin`."""
    host = jax.device_get(self.now)
    return [np.asarray(x).tolist() for x in jax.tree.leaves(host)]

  def _placed(self, leaves: Sequence[Any]) -> step_lib.Totals:
    flat, tree = jax.tree.flatten(self._zeros)
    values = [
      np.asarray(value, like.dtype).reshape(like.shape)
      for value, like in zip(leaves, flat, strict=True)
    ]
    whole = sharding.replicated(self._mesh)
    return sharding.place(
      tree.unflatten(values), tree.unflatten([whole] * len(flat))
    )
