"""Shuffled batches of item vectors, endless and resumable.

A batch is a pure function of (seed, number), so any process count sees the
same global batches.  Knows no model; standardises nothing.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax.data import batch_plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VectorBatch:
  """Vectors of items."""

  vectors: batch.Leaf  # float32 [B, D]
  mask: batch.Leaf  # bool [B]; False: filler row that completes a batch


class VectorBatches:
  """Endless iterator over item vectors, in a new order each epoch.

  An epoch has ⌈num_items / batch_size⌉ batches and visits every item once;
  its last batch is completed with filler rows.  The state is {'next_index':
  number of the next global batch}.

  Args:
    vectors: one row per item. [I, D]
    batch_size: global: summed over all processes.
    seed: of the order.
    own_rows: from batch_size to the rows that this process makes.

  Raises:
    ValueError: there is no item.
  """

  def __init__(
    self,
    vectors: Float[np.ndarray, 'I D'],
    *,
    batch_size: int,
    seed: int,
    own_rows: batch_plan.OwnRows = np.arange,
  ):
    if not len(vectors):
      raise ValueError(
        'There are no item vectors to train on: run the stages prepare and'
        ' embed again and look at dataset.json for what was dropped.'
      )
    self._vectors = vectors
    self._batch_size = batch_size
    self._seed = seed
    self._rows = own_rows(batch_size)
    self.batches_per_epoch = -(-len(vectors) // batch_size)
    self._next = 0
    self._epoch: tuple[int, np.ndarray] | None = None

  def order(self, epoch: int) -> Int[np.ndarray, ' I']:
    """Returns the rows of `vectors` in the order of an epoch."""
    if self._epoch is None or self._epoch[0] != epoch:
      bits = batch_plan.random_bits(
        np.arange(len(self._vectors)), key=(self._seed, epoch)
      )
      self._epoch = epoch, np.argsort(bits, kind='stable')
    return self._epoch[1]

  def __iter__(self) -> 'VectorBatches':
    return self

  def __next__(self) -> VectorBatch:
    epoch, place = divmod(self._next, self.batches_per_epoch)
    self._next += 1
    first = place * self._batch_size
    chosen = np.full(self._batch_size, -1)
    taken = self.order(epoch)[first : first + self._batch_size]
    chosen[: len(taken)] = taken
    chosen = chosen[self._rows]
    mask = chosen >= 0
    vectors = np.where(mask[:, None], self._vectors[chosen], 0)
    return VectorBatch(vectors.astype(np.float32), mask)

  def get_state(self) -> dict[str, int]:
    """Returns the position; JSON values only."""
    return {'next_index': self._next}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position that `get_state` returned."""
    self._next = state['next_index']
