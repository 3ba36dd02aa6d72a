"""The distinct prefixes of a catalogue's semantic IDs, in order.

NumPy only.  Does not know how a tree of them is stored.
"""

from typing import NamedTuple

import numpy as np


class Children(NamedTuple):
  """The nodes of one depth, in order: by parent, then by code."""

  parent: np.ndarray  # node of the depth above. int [nodes]
  code: np.ndarray  # int [nodes]

  @property
  def most(self) -> int:
    """The largest number of children that a node has."""
    return int(np.bincount(self.parent).max())


class Prefixes(NamedTuple):
  """One node per distinct prefix; nodes of a depth in lexicographic order."""

  depths: tuple[Children, ...]  # the nodes of depth 1..L
  items: np.ndarray  # items by leaf, then rank in bucket. int [num_items]
  leaf: np.ndarray  # of each of `items`; rising. int [num_items]

  @property
  def num_leaves(self) -> int:
    return len(self.depths[-1].code)

  @property
  def largest_bucket(self) -> int:
    """The largest number of items that share an ID."""
    return int(np.bincount(self.leaf).max())


def of_catalogue(
  codes: np.ndarray,
  codes_per_level: tuple[int, ...],
  *,
  rank_in_bucket: np.ndarray | None,
) -> Prefixes:
  """Returns the prefixes of a catalogue.

  Args:
    codes: semantic ID of every dense item, int [num_items, L].
    codes_per_level: K of each level.
    rank_in_bucket: order of the items that share an ID, int [num_items];
      None: by item number.

  Raises:
    ValueError: no items, or codes out of range.
  """
  _check(codes, codes_per_level)
  # Last key first; lexsort is stable, so equal ranks keep the item order.
  ranks = () if rank_in_bucket is None else (rank_in_bucket,)
  order = np.lexsort((*ranks, *codes.T[::-1]))
  codes = codes[order]
  starts = np.zeros(len(codes), bool)  # rows where a node of the depth begins
  starts[0] = True
  nodes = np.zeros(len(codes), np.int64)  # node of the depth, by row
  depths = []
  for column in codes.T:
    starts[1:] |= column[1:] != column[:-1]
    depths.append(Children(parent=nodes[starts], code=column[starts]))
    nodes = np.cumsum(starts) - 1
  return Prefixes(tuple(depths), items=order, leaf=nodes)


def check_distinct(found: Prefixes) -> None:
  """Raises ValueError, naming two items, if items share an ID."""
  again = found.leaf[1:] == found.leaf[:-1]
  if not again.any():
    return
  first = int(np.flatnonzero(again)[0])
  node, shared = int(found.leaf[first]), []
  for depth in reversed(found.depths):
    shared.insert(0, int(depth.code[node]))
    node = int(depth.parent[node])
  raise ValueError(
    f'Items {int(found.items[first])} and {int(found.items[first + 1])} share'
    f' the ID {tuple(shared)}; {int(again.sum())} items collide. Pass'
    " duplicates='bucket', or tokenize with tokenizer.collision='append'."
  )


def _check(codes: np.ndarray, codes_per_level: tuple[int, ...]) -> None:
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
  bad = (codes < 0) | (codes >= np.asarray(codes_per_level)[None, :])
  if bad.any():
    item, level = (int(i) for i in np.argwhere(bad)[0])
    raise ValueError(
      f'Item {item} has code {int(codes[item, level])} on level {level},'
      f' expected 0..{codes_per_level[level] - 1} ({int(bad.sum())} codes out'
      ' of range): pass the codes_per_level that the tokenizer wrote.'
    )
