"""Rising integers in 2.5 bytes each, for the trie's many start positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Int
from jaxtyping import UInt

_BLOCK = 8  # entries per coarse offset: 4/8 + 2 bytes each instead of 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Offsets:
  """value[i] = coarse[i // 8] + fine[i]."""

  coarse: Int[Array, ' blocks']
  fine: UInt[Array, ' entries']  # uint16, or uint32 where a block is larger

  @property
  def length(self) -> int:
    return self.fine.shape[0]

  @property
  def wide(self) -> bool:
    """Whether a block may span more than 65,535."""
    return self.fine.dtype == jnp.uint32

  def at(self, index: Int[Array, '*n']) -> Int[Array, '*n']:
    """Returns value[index]; indices must be in range."""
    coarse = take(self.coarse, index // _BLOCK)
    return coarse + take(self.fine, index).astype(coarse.dtype)


def from_counts(counts: np.ndarray, *, wide: bool = False) -> Offsets:
  """Returns the exclusive running sum of counts, with the total at the end.

  Args:
    counts: non-negative. [n]
    wide: use uint32 even if uint16 holds every block.
  """
  values = np.concatenate([[0], np.cumsum(counts)])
  coarse = values[::_BLOCK]
  fine = values - np.repeat(coarse, _BLOCK)[: len(values)]
  wide = wide or bool(fine.max() > np.iinfo(np.uint16).max)
  # jnp.asarray would compile a program for every shape.
  return Offsets(
    coarse=jax.device_put(coarse.astype(np.int32)),
    fine=jax.device_put(fine.astype(np.uint32 if wide else np.uint16)),
  )


def take(table: Array, index: Int[Array, '*n']) -> Array:
  """Rows of `table`; clipping, because padded slots may point past the end."""
  return jnp.take(table, index, axis=0, mode='clip')
