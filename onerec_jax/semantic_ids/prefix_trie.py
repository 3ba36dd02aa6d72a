"""The catalogue as a prefix tree of semantic IDs, in flat arrays.

Built once in NumPy, then passed to compiled functions as an *argument*: a
catalogue refresh that fits the capacity changes values, never shapes, so that
nothing is compiled again.  Knows nothing about models or scores.
"""

import dataclasses
import math
from typing import Literal
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax.semantic_ids import offsets
from onerec_jax.semantic_ids import prefixes
from onerec_jax.semantic_ids import trie_levels

# A level of at most this many bytes of bitmap is stored as one; 3 x 8192 codes
# need 8 MiB for the second level and 1 KiB per *item* for the third.
_MAX_BITMAP_BYTES = 16 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixTrie:
  """All semantic IDs of a catalogue, and the items behind each.

  Depth l holds one node per distinct prefix of l codes, in lexicographic
  order; the leaves (depth L) are the distinct IDs.  At most 11 bytes per item
  of capacity for up to 65,536 codes a level, plus the bitmaps.
  """

  levels: tuple[trie_levels.BitmapLevel | trie_levels.ListLevel, ...]
  # leaf -> slot in items; one entry more than leaves
  first_item: offsets.Offsets
  items: Int[Array, ' capacity']  # dense items by leaf, then rank in bucket
  num_leaves: Int[Array, '']
  num_items: Int[Array, '']
  codes_per_level: tuple[int, ...] = dataclasses.field(
    metadata={'static': True}
  )
  # Room for the items of one leaf, a power of two.
  max_bucket: int = dataclasses.field(metadata={'static': True})

  @classmethod
  def build(
    cls,
    codes: np.ndarray,
    codes_per_level: tuple[int, ...],
    capacity: int | None = None,
    *,
    rank_in_bucket: np.ndarray | None = None,
    duplicates: Literal['bucket', 'error'] = 'bucket',
    max_bitmap_bytes: int = _MAX_BITMAP_BYTES,
  ) -> 'PrefixTrie':
    """Builds the trie of a catalogue.

    A depth is stored as a bitmap when nodes x ceil(K/32) words, at capacity,
    take at most `max_bitmap_bytes`, else as lists; the choice depends on
    capacity and codes_per_level alone.

    Args:
      codes: semantic ID of every dense item, int [num_items, L].
      codes_per_level: K of each level.
      capacity: number of items the arrays have room for; None: num_items.
      rank_in_bucket: order of the items that share an ID, int [num_items];
        None: by item number.
      duplicates: 'bucket' keeps items that share an ID together; 'error'
        refuses them.
      max_bitmap_bytes: largest bitmap of one depth.

    Raises:
      ValueError: no items, codes out of range, too many items, or (with
        duplicates = 'error') an ID that two items share.
    """
    codes = np.asarray(codes)
    sizes = tuple(int(k) for k in codes_per_level)
    found = prefixes.of_catalogue(codes, sizes, rank_in_bucket=rank_in_bucket)
    if duplicates == 'error':
      prefixes.check_distinct(found)
    capacity = len(codes) if capacity is None else capacity
    _check_capacity(found, capacity)
    levels = []
    num_nodes = 1  # of a depth, that there is room for
    for children, num_codes in zip(found.depths, sizes, strict=True):
      num_children = min(num_nodes * num_codes, capacity)
      words = num_nodes * trie_levels.words_per_node(num_codes)
      if 4 * words <= max_bitmap_bytes:
        level = trie_levels.BitmapLevel.of(
          children, num_codes=num_codes, num_nodes=num_nodes
        )
      else:
        level = trie_levels.ListLevel.of(
          children,
          num_codes=num_codes,
          num_nodes=num_nodes,
          num_children=num_children,
          branching=_doubled(children.most, limit=num_codes),
        )
      levels.append(level)
      num_nodes = num_children
    return cls(
      levels=tuple(levels),
      codes_per_level=sizes,
      max_bucket=_doubled(found.largest_bucket, limit=2**31),
      **_leaf_arrays(found, capacity=capacity, num_leaves=num_nodes),
    )

  def refresh(
    self, codes: np.ndarray, *, rank_in_bucket: np.ndarray | None = None
  ) -> 'PrefixTrie':
    """Returns the trie of another catalogue with exactly these array shapes.

    Functions compiled for this trie run on the new one as they are.

    Raises:
      ValueError: the new catalogue does not fit.
    """
    found = prefixes.of_catalogue(
      np.asarray(codes), self.codes_per_level, rank_in_bucket=rank_in_bucket
    )
    capacity = self.items.shape[0]
    _check_capacity(found, capacity)
    self._check_static_room(found)
    trie = dataclasses.replace(
      self,
      levels=tuple(
        level.refreshed(children, num_codes=num_codes)
        for level, children, num_codes in zip(
          self.levels, found.depths, self.codes_per_level, strict=True
        )
      ),
      **_leaf_arrays(
        found,
        capacity=capacity,
        num_leaves=self.first_item.length - 1,
        wide=self.first_item.wide,
      ),
    )
    if _layout(trie) != _layout(self):
      raise ValueError(
        'More than 65,535 continuations or items crowd eight neighbouring'
        ' prefixes, which the trie was not built for: build a new one with'
        ' PrefixTrie.build (compiles once more).'
      )
    return trie

  def only(
    self,
    codes: np.ndarray,
    items: np.ndarray,
    *,
    rank_in_bucket: np.ndarray | None = None,
  ) -> 'PrefixTrie':
    """Returns the trie of some items of its catalogue; `refresh` otherwise.

    Args:
      codes: semantic ID of every dense item, int [num_items, L].
      items: dense items that stay, rising, at least one.
      rank_in_bucket: as for `build`, of every dense item.
    """
    if rank_in_bucket is not None:
      rank_in_bucket = rank_in_bucket[items]
    trie = self.refresh(codes[items], rank_in_bucket=rank_in_bucket)
    places = np.asarray(trie.items)
    kept = np.where(places >= 0, items[places], -1).astype(np.int32)
    return dataclasses.replace(trie, items=jax.device_put(kept))

  def _check_static_room(self, found: prefixes.Prefixes) -> None:
    """Raises if loops that were compiled for this trie would be too short."""
    for l, (level, children) in enumerate(
      zip(self.levels, found.depths, strict=True)
    ):
      if (
        isinstance(level, trie_levels.ListLevel)
        and children.most > level.branching
      ):
        raise ValueError(
          f'A prefix of {l} codes has {children.most} continuations, but the'
          f' trie has room for {level.branching}: build a new one with'
          ' PrefixTrie.build (compiles once more).'
        )
    if found.largest_bucket > self.max_bucket:
      raise ValueError(
        f'{found.largest_bucket} items share one ID, but the trie has room for'
        f' {self.max_bucket}: build a new one with PrefixTrie.build (compiles'
        ' once more).'
      )

  @property
  def num_levels(self) -> int:
    return len(self.codes_per_level)

  def path(
    self, codes: Int[Array, '*n L']
  ) -> tuple[Int[Array, '*n L'], Bool[Array, '*n']]:
    """Walks from the root along `codes`.

    Returns:
      The nodes reached at depth 1..L (the last is the leaf) and whether the
      whole ID is in the catalogue; nodes are meaningless where it is not.
    """
    nodes, legal = self._walk(codes)
    return nodes[..., 1:], legal[..., -1]

  def _walk(
    self, codes: Int[Array, '*n depth']
  ) -> tuple[Int[Array, '*n depth+1'], Bool[Array, '*n depth+1']]:
    """Returns the nodes from the root on, and which prefixes exist."""
    node = jnp.zeros(codes.shape[:-1], jnp.int32)
    legal = jnp.ones(codes.shape[:-1], bool)
    walked = [(node, legal)]
    for l in range(codes.shape[-1]):
      code = codes[..., l]
      legal &= (code >= 0) & (code < self.codes_per_level[l])
      node, exists = self.levels[l].child(node, jnp.where(legal, code, 0))
      legal &= exists
      node = jnp.where(legal, node, 0)
      walked.append((node, legal))
    nodes, exist = zip(*walked, strict=True)
    return jnp.stack(nodes, -1), jnp.stack(exist, -1)

  def followers(
    self, codes: Int[Array, '*n L']
  ) -> Bool[Array, '*n L max_codes']:
    """Returns which codes may stand at each place, given those before it.

    Args:
      codes: IDs, of the catalogue or not.

    Returns:
      True: an item has this code after the same prefix; False beyond the codes
      of a level.
    """
    # Walked anew at every step, although an item's parents are always the
    # same: remembered, they would take 4 (L - 1) bytes per item, 8 beside the
    # trie's 11, for a walk that reads one row of a level per code.
    parents, legal = self._walk(codes[..., :-1])
    widest = max(self.codes_per_level)
    masks = []
    for l, (level, size) in enumerate(
      zip(self.levels, self.codes_per_level, strict=True)
    ):
      mask = level.followers(parents[..., l], num_codes=size)
      mask &= legal[..., l, None]
      pad = [(0, 0)] * (mask.ndim - 1) + [(0, widest - size)]
      masks.append(jnp.pad(mask, pad))
    return jnp.stack(masks, -2)

  def lookup(self, codes: Int[Array, '*n L']) -> Int[Array, '*n']:
    """Returns the leaf of each ID, -1 where no item carries it."""
    nodes, legal = self.path(codes)
    return jnp.where(legal, nodes[..., -1], -1)

  def leaf_count(self, depth: int, node: Int[Array, '*n']) -> Int[Array, '*n']:
    """Returns the number of leaves below nodes of depth `depth`."""
    first, end = node, node + 1
    for level in self.levels[depth:]:
      first, end = level.first_child.at(first), level.first_child.at(end)
    return end - first

  def bucket_size(self, leaf: Int[Array, '*n']) -> Int[Array, '*n']:
    """Returns the number of items that share the ID of each leaf."""
    return self.first_item.at(leaf + 1) - self.first_item.at(leaf)

  def bucket(
    self, leaf: Int[Array, '*n'], *, size: int | None = None
  ) -> Int[Array, '*n size']:
    """Returns the first `size` items of each leaf, in bucket order.

    Args:
      leaf: leaf numbers; -1 = none.
      size: items per leaf; None: `max_bucket`, so all of them.

    Returns:
      Dense items, -1 where the leaf has fewer.
    """
    size = self.max_bucket if size is None else size
    known = jnp.where(leaf >= 0, leaf, 0)
    first = self.first_item.at(known)[..., None]
    end = self.first_item.at(known + 1)[..., None]
    slot = first + jnp.arange(size).reshape((1,) * leaf.ndim + (size,))
    real = (slot < end) & (leaf >= 0)[..., None]
    return jnp.where(
      real, offsets.take(self.items, jnp.where(real, slot, 0)), -1
    )


# --- Construction (NumPy) ---------------------------------------------------


def _doubled(count: int, *, limit: int) -> int:
  """Returns a power of two that leaves room to double, at most `limit`."""
  return min(limit, 2 ** math.ceil(math.log2(2 * max(count, 1))))


def _check_capacity(found: prefixes.Prefixes, capacity: int) -> None:
  if len(found.items) > capacity:
    raise ValueError(
      f'{len(found.items)} items exceed the capacity of {capacity}: build a new'
      f' trie with capacity={2 * len(found.items)} (compiles once more).'
    )


class _LeafArrays(TypedDict):
  """The fields of a `PrefixTrie` behind its leaves."""

  first_item: offsets.Offsets
  items: Int[Array, ' capacity']
  num_leaves: Int[Array, '']
  num_items: Int[Array, '']


def _leaf_arrays(
  found: prefixes.Prefixes,
  *,
  capacity: int,
  num_leaves: int,
  wide: bool = False,
) -> _LeafArrays:
  items = np.full(capacity, -1, np.int32)
  items[: len(found.items)] = found.items
  counts = np.bincount(found.leaf, minlength=num_leaves)
  return {
    'first_item': offsets.from_counts(counts, wide=wide),
    'items': jax.device_put(items),
    'num_leaves': jax.device_put(np.int32(found.num_leaves)),
    'num_items': jax.device_put(np.int32(len(found.items))),
  }


def _layout(trie: PrefixTrie) -> list[tuple[tuple[int, ...], str]]:
  return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(trie)]
