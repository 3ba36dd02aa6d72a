"""The two ways in which a prefix tree keeps the children of its nodes.

A level is an argument of compiled functions.  It knows neither the other
levels nor the items.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int
from jaxtyping import UInt

from onerec_jax.semantic_ids import offsets
from onerec_jax.semantic_ids import prefixes


def words_per_node(num_codes: int) -> int:
  """Returns the 32-bit words of a bitmap of so many codes."""
  return -(-num_codes // 32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitmapLevel:
  """Children of every node of one depth, one bit per code.

  The children of a node are numbered in the order of their codes, so child
  (node, c) = first_child[node] + number of set bits below c.
  """

  words: UInt[Array, 'nodes words']  # bit c % 32 of word c // 32 = code c
  first_child: offsets.Offsets

  @classmethod
  def of(
    cls,
    children: prefixes.Children,
    *,
    num_codes: int,
    num_nodes: int,
    wide: bool = False,
  ) -> 'BitmapLevel':
    """Stores the children of all nodes of a depth.

    Args:
      children: of every node.
      num_codes: K of the level.
      num_nodes: nodes that there shall be room for.
      wide: as `offsets.from_counts`.
    """
    width = words_per_node(num_codes)
    words = np.zeros(num_nodes * width, np.uint32)
    bits = np.left_shift(np.uint32(1), (children.code % 32).astype(np.uint32))
    np.bitwise_or.at(words, children.parent * width + children.code // 32, bits)
    counts = np.bincount(children.parent, minlength=num_nodes)
    return cls(
      words=jax.device_put(words.reshape(num_nodes, width)),
      first_child=offsets.from_counts(counts, wide=wide),
    )

  def refreshed(
    self, children: prefixes.Children, *, num_codes: int
  ) -> 'BitmapLevel':
    """Returns the level of other children, with these shapes if they fit."""
    return self.of(
      children,
      num_codes=num_codes,
      num_nodes=self.words.shape[0],
      wide=self.first_child.wide,
    )

  def child(
    self, node: Int[Array, '*n'], code: Int[Array, '*n']
  ) -> tuple[Int[Array, '*n'], Bool[Array, '*n']]:
    """Returns the child of `node` under `code`, and whether it exists."""
    words = offsets.take(self.words, node)
    column = jnp.arange(words.shape[-1]).reshape(
      (1,) * node.ndim + (words.shape[-1],)
    )
    bit = jnp.left_shift(jnp.uint32(1), (code % 32).astype(jnp.uint32))
    own = column == (code // 32)[..., None]
    exists = ((words & bit[..., None]) != 0) & own
    below = jnp.where(
      column < (code // 32)[..., None],
      words,
      jnp.where(own, words & (bit - 1)[..., None], jnp.uint32(0)),
    )
    rank = lax.population_count(below).astype(jnp.int32).sum(-1)
    return self.first_child.at(node) + rank, exists.any(-1)

  def followers(
    self, node: Int[Array, '*n'], *, num_codes: int
  ) -> Bool[Array, '*n num_codes']:
    """Returns which codes follow `node`."""
    words = offsets.take(self.words, node)
    place = jnp.arange(32, dtype=jnp.uint32).reshape((1,) * words.ndim + (32,))
    bits = (words[..., None] >> place) & 1
    return bits.astype(bool).reshape(*node.shape, -1)[..., :num_codes]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ListLevel:
  """Children of every node of one depth, as a list of codes (CSR)."""

  codes: UInt[Array, ' children']  # rising inside a node, of the smallest type
  first_child: offsets.Offsets
  # Room for the children of one node; a power of two unless it is all codes.
  branching: int = dataclasses.field(metadata={'static': True})

  @classmethod
  def of(
    cls,
    children: prefixes.Children,
    *,
    num_codes: int,
    num_nodes: int,
    num_children: int,
    branching: int,
    wide: bool = False,
  ) -> 'ListLevel':
    """Stores the children of all nodes of a depth.

    Args:
      children: of every node, none with more than `branching`.
      num_codes: K of the level.
      num_nodes: nodes that there shall be room for.
      num_children: children that there shall be room for.
      branching: see above.
      wide: as `offsets.from_counts`.
    """
    dtype = np.uint8 if num_codes <= 2**8 else np.uint16
    dtype = np.uint32 if num_codes > 2**16 else dtype
    codes = np.zeros(num_children, dtype)
    codes[: len(children.code)] = children.code
    counts = np.bincount(children.parent, minlength=num_nodes)
    return cls(
      codes=jax.device_put(codes),
      first_child=offsets.from_counts(counts, wide=wide),
      branching=branching,
    )

  def refreshed(
    self, children: prefixes.Children, *, num_codes: int
  ) -> 'ListLevel':
    """Returns the level of other children, with these shapes if they fit."""
    return self.of(
      children,
      num_codes=num_codes,
      num_nodes=self.first_child.length - 1,
      num_children=self.codes.shape[0],
      branching=self.branching,
      wide=self.first_child.wide,
    )

  def children(
    self, node: Int[Array, '*n']
  ) -> tuple[
    Int[Array, '*n branching'],
    Int[Array, '*n branching'],
    Bool[Array, '*n branching'],
  ]:
    """Returns codes and node numbers of all children, and which are real."""
    first = self.first_child.at(node)[..., None]
    end = self.first_child.at(node + 1)[..., None]
    slot = first + jnp.arange(self.branching).reshape(
      (1,) * node.ndim + (self.branching,)
    )
    real = slot < end
    codes = offsets.take(self.codes, jnp.where(real, slot, 0)).astype(jnp.int32)
    return codes, slot, real

  def followers(
    self, node: Int[Array, '*n'], *, num_codes: int
  ) -> Bool[Array, '*n num_codes']:
    """Returns which codes follow `node`."""
    codes, _, real = self.children(node)
    flat = jnp.where(real, codes, num_codes).reshape(-1, codes.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    mask = jnp.zeros((flat.shape[0], num_codes), bool)
    mask = mask.at[rows, flat].set(True, mode='drop')
    return mask.reshape(*node.shape, num_codes)

  def child(
    self, node: Int[Array, '*n'], code: Int[Array, '*n']
  ) -> tuple[Int[Array, '*n'], Bool[Array, '*n']]:
    """Returns the child of `node` under `code`, and whether it exists."""
    low = self.first_child.at(node)
    end = self.first_child.at(node + 1)
    high = end
    for _ in range(self.branching.bit_length()):  # binary search
      middle = (low + high) // 2
      below = offsets.take(self.codes, middle).astype(jnp.int32) < code
      searching = low < high
      low = jnp.where(searching & below, middle + 1, low)
      high = jnp.where(searching & ~below, middle, high)
    found = offsets.take(self.codes, low).astype(jnp.int32) == code
    return low, (low < end) & found
