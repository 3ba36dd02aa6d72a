"""The catalogue as a prefix tree of semantic IDs, in flat arrays.

Built once in NumPy, then passed to compiled functions as an *argument*: a
catalogue refresh that fits the capacity changes values, never shapes, so that
nothing is compiled again.  Knows nothing about models or scores.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int
from jaxtyping import UInt

from onerec_jax.semantic_ids import offsets

# A level of at most this many bytes of bitmap is stored as one; 3 x 8192 codes
# need 8 MiB for the second level and 1 KiB per *item* for the third.
_MAX_BITMAP_BYTES = 16 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitmapLevel:
  """Children of every node of one depth, one bit per code.

  The children of a node are numbered in the order of their codes, so child
  (node, c) = first_child[node] + number of set bits below c.
  """

  words: UInt[Array, 'nodes words']  # bit c % 32 of word c // 32 = code c
  first_child: offsets.Offsets

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

  codes: UInt[Array, ' children']  # rising inside a node
  first_child: offsets.Offsets
  # Room for the children of one node; a power of two unless it is all codes.
  branching: int = dataclasses.field(metadata={'static': True})

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrefixTrie:
  """All semantic IDs of a catalogue, and the items behind each.

  Depth l holds one node per distinct prefix of l codes, in lexicographic
  order; the leaves (depth L) are the distinct IDs.  At most 11 bytes per item
  of capacity for up to 65,536 codes a level, plus the bitmaps.
  """

  levels: tuple[BitmapLevel | ListLevel, ...]
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
    return _build(
      codes,
      codes_per_level,
      capacity=len(codes) if capacity is None else capacity,
      rank_in_bucket=rank_in_bucket,
      duplicates=duplicates,
      max_bitmap_bytes=max_bitmap_bytes,
      template=None,
    )

  def refresh(
    self, codes: np.ndarray, *, rank_in_bucket: np.ndarray | None = None
  ) -> 'PrefixTrie':
    """Returns the trie of another catalogue with exactly these array shapes.

    Functions compiled for this trie run on the new one as they are.

    Raises:
      ValueError: the new catalogue does not fit.
    """
    return _build(
      codes,
      self.codes_per_level,
      capacity=self.items.shape[0],
      rank_in_bucket=rank_in_bucket,
      duplicates='bucket',
      max_bitmap_bytes=0,
      template=self,
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
    node = jnp.zeros(codes.shape[:-1], jnp.int32)
    legal = jnp.ones(codes.shape[:-1], bool)
    nodes = []
    for l, level in enumerate(self.levels):
      code = codes[..., l]
      legal &= (code >= 0) & (code < self.codes_per_level[l])
      node, exists = level.child(node, jnp.where(legal, code, 0))
      legal &= exists
      node = jnp.where(legal, node, 0)
      nodes.append(node)
    return jnp.stack(nodes, -1), legal

  def followers(
    self, codes: Int[Array, '*n L']
  ) -> Bool[Array, '*n L max_codes']:
    """Returns which codes may stand at each place, given those before it.

    Args:
      codes: IDs of the catalogue.

    Returns:
      True: an item has this code after the same prefix; False beyond the codes
      of a level.
    """
    nodes, _ = self.path(codes)
    parents = jnp.concatenate(
      [jnp.zeros_like(nodes[..., :1]), nodes[..., :-1]], axis=-1
    )
    widest = max(self.codes_per_level)
    masks = []
    for l, (level, size) in enumerate(
      zip(self.levels, self.codes_per_level, strict=True)
    ):
      mask = level.followers(parents[..., l], num_codes=size)
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


def _room(count: int, limit: int) -> int:
  """Power of two that leaves room to double, at most `limit`."""
  return min(limit, 2 ** math.ceil(math.log2(2 * max(count, 1))))


def _check(
  codes: np.ndarray, codes_per_level: tuple[int, ...], capacity: int
) -> None:
  if codes.ndim != 2 or codes.shape[1] != len(codes_per_level):
    raise ValueError(
      f'codes has shape {codes.shape}, expected [num_items,'
      f' {len(codes_per_level)}]: one column per entry of'
      f' codes_per_level={codes_per_level}.'
    )
  if not np.issubdtype(codes.dtype, np.integer):
    raise ValueError(f'codes has dtype {codes.dtype}, expected integers.')
  if not len(codes):
    raise ValueError(
      'The catalogue is empty: a prefix trie needs at least one item.'
    )
  if len(codes) > capacity:
    raise ValueError(
      f'{len(codes)} items exceed the capacity of {capacity}: build a new'
      f' trie with capacity={2 * len(codes)} (compiles once more).'
    )
  bad = (codes < 0) | (codes >= np.asarray(codes_per_level)[None, :])
  if bad.any():
    item, level = (int(i) for i in np.argwhere(bad)[0])
    raise ValueError(
      f'Item {item} has code {int(codes[item, level])} on level {level},'
      f' expected 0..{codes_per_level[level] - 1} ({int(bad.sum())} codes out'
      ' of range): pass the codes_per_level that the tokenizer wrote.'
    )


def _build(
  codes: np.ndarray,
  codes_per_level: tuple[int, ...],
  *,
  capacity: int,
  rank_in_bucket: np.ndarray | None,
  duplicates: Literal['bucket', 'error'],
  max_bitmap_bytes: int,
  template: PrefixTrie | None,
) -> PrefixTrie:
  codes = np.asarray(codes)
  codes_per_level = tuple(int(k) for k in codes_per_level)
  _check(codes, codes_per_level, capacity)
  if rank_in_bucket is None:
    rank_in_bucket = np.zeros(len(codes), np.int32)
  # Last key first; lexsort is stable, so equal ranks keep the item order.
  order = np.lexsort((rank_in_bucket, *codes.T[::-1]))
  codes = codes[order]

  # --- One level after the other ---
  starts = np.zeros(len(codes), bool)  # rows where a node of depth l begins
  starts[0] = True
  nodes = np.zeros(len(codes), np.int64)  # node of depth l, by row
  levels: list[BitmapLevel | ListLevel] = []
  room = 1  # nodes of depth l the arrays have room for
  for l, num_codes in enumerate(codes_per_level):
    child_starts = starts.copy()
    child_starts[1:] |= codes[1:, l] != codes[:-1, l]
    parent = nodes[child_starts]
    code = codes[child_starts, l]
    counts = np.bincount(parent, minlength=room)
    old = None if template is None else template.levels[l]
    first_child = offsets.from_counts(
      counts,
      wide=old is not None and old.first_child.fine.dtype == jnp.uint32,
    )
    width = -(-num_codes // 32)
    child_room = min(room * num_codes, capacity)
    if (
      isinstance(old, BitmapLevel)
      if old is not None
      else 4 * room * width <= max_bitmap_bytes
    ):
      words = np.zeros(room * width, np.uint32)
      bits = np.left_shift(np.uint32(1), (code % 32).astype(np.uint32))
      np.bitwise_or.at(words, parent * width + code // 32, bits)
      levels.append(
        BitmapLevel(
          words=jax.device_put(words.reshape(room, width)),
          first_child=first_child,
        )
      )
    else:
      dtype = np.uint8 if num_codes <= 2**8 else np.uint16
      dtype = np.uint32 if num_codes > 2**16 else dtype
      padded = np.zeros(child_room, dtype)
      padded[: len(code)] = code
      branching = _room(int(counts.max()), num_codes)
      if isinstance(old, ListLevel):
        if int(counts.max()) > old.branching:
          raise ValueError(
            f'A prefix of {l} codes has {int(counts.max())} continuations, but'
            f' the trie has room for {old.branching}: build a new one with'
            ' PrefixTrie.build (compiles once more).'
          )
        branching = old.branching
      levels.append(
        ListLevel(
          codes=jax.device_put(padded),
          first_child=first_child,
          branching=branching,
        )
      )
    starts = child_starts
    nodes = np.cumsum(starts) - 1
    room = child_room

  # --- Items behind the leaves ---
  sizes = np.bincount(nodes, minlength=room)
  largest = int(sizes.max())
  if duplicates == 'error' and largest > 1:
    row = int(np.flatnonzero(~starts)[0])
    raise ValueError(
      f'Items {int(order[row - 1])} and {int(order[row])} share the ID'
      f' {tuple(int(c) for c in codes[row])}; {int((~starts).sum())} items'
      " collide. Pass duplicates='bucket', or tokenize with"
      " tokenizer.collision='append'."
    )
  max_bucket = _room(largest, 2**31)
  if template is not None:
    if largest > template.max_bucket:
      raise ValueError(
        f'{largest} items share one ID, but the trie has room for'
        f' {template.max_bucket}: build a new one with PrefixTrie.build'
        ' (compiles once more).'
      )
    max_bucket = template.max_bucket
  items = np.full(capacity, -1, np.int32)
  items[: len(order)] = order
  trie = PrefixTrie(
    levels=tuple(levels),
    first_item=offsets.from_counts(
      sizes,
      wide=template is not None
      and template.first_item.fine.dtype == jnp.uint32,
    ),
    items=jax.device_put(items),
    num_leaves=jax.device_put(np.int32(starts.sum())),
    num_items=jax.device_put(np.int32(len(order))),
    codes_per_level=codes_per_level,
    max_bucket=max_bucket,
  )
  if template is not None and _layout(trie) != _layout(template):
    raise ValueError(
      'More than 65,535 continuations or items crowd eight neighbouring'
      ' prefixes, which the trie was not built for: build a new one with'
      ' PrefixTrie.build (compiles once more).'
    )
  return trie


def _layout(trie: PrefixTrie) -> list[tuple[tuple[int, ...], str]]:
  return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(trie)]
