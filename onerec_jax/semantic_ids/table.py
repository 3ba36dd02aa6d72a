"""The table item -> semantic ID: what training, decoding and reports look up.

Plain NumPy.  How the codes were found is residual_kmeans.py; which items share
an ID is collisions.py.  Reads and writes nothing.
"""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Int

from onerec_jax.semantic_ids import vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
  """Semantic IDs of a catalogue; the row is the dense item index."""

  codes: np.ndarray  # int32 [num_items, L]
  codes_per_level: tuple[int, ...]  # number of codes of each level
  # Place of the item among those that share its ID, 0 = first (most popular).
  rank_in_bucket: np.ndarray  # int32 [num_items]

  def __post_init__(self):
    num_items, levels = self.codes.shape
    if levels != len(self.codes_per_level):
      raise ValueError(
        f'codes has {levels} levels, but codes_per_level='
        f'{self.codes_per_level} names {len(self.codes_per_level)}.'
      )
    if self.rank_in_bucket.shape != (num_items,):
      raise ValueError(
        f'rank_in_bucket has shape {self.rank_in_bucket.shape}, expected'
        f' ({num_items},), one per row of codes.'
      )
    for name in ('codes', 'rank_in_bucket'):
      if getattr(self, name).dtype != np.int32:
        raise ValueError(
          f'{name} has dtype {getattr(self, name).dtype}, expected int32:'
          ' use .astype(np.int32).'
        )
    wrong = (self.codes < 0) | (self.codes >= np.array(self.codes_per_level))
    if wrong.any():
      item, level = np.argwhere(wrong)[0]
      raise ValueError(
        f'Item {item} has code {self.codes[item, level]} on level {level},'
        f' outside 0..{self.codes_per_level[level] - 1}.'
      )

  @property
  def num_items(self) -> int:
    return self.codes.shape[0]

  @property
  def levels(self) -> int:
    return len(self.codes_per_level)

  def digest(self) -> str:
    """Returns 16 hex digits over the codes of all items and the level sizes.

    Checkpoints store it: a model is only valid with the table it learnt from.
    The rank inside a bucket is left out, as it changes no token.
    """
    state = hashlib.sha256(repr(tuple(self.codes_per_level)).encode())
    state.update(np.ascontiguousarray(self.codes, dtype='<i4').tobytes())
    return state.hexdigest()[:16]

  def vocabulary(self, user_buckets: int = 0) -> vocabulary.Vocabulary:
    """Returns the token layout of these IDs."""
    return vocabulary.Vocabulary(tuple(self.codes_per_level), user_buckets)


def bucket_of(codes: Int[np.ndarray, 'I L']) -> Int[np.ndarray, ' I']:
  """Returns a dense number per distinct ID, in lexicographic order of IDs.

  Args:
    codes: semantic IDs. [I, L]

  Returns:
    bucket, 0..num_distinct - 1; equal exactly for items with equal IDs. [I]
  """
  if not codes.shape[1]:
    return np.zeros(len(codes), np.int64)
  _, inverse = np.unique(codes, axis=0, return_inverse=True)
  return inverse.reshape(-1)


def rank_in_bucket(
  codes: Int[np.ndarray, 'I L'], popularity: np.ndarray
) -> Int[np.ndarray, ' I']:
  """Returns each item's place among the items that share its ID.

  Args:
    codes: semantic IDs. [I, L]
    popularity: larger comes first; ties go to the smaller item index. [I]

  Returns:
    rank, 0 = most popular of its ID. int32 [I]
  """
  bucket = bucket_of(codes)
  popularity = np.asarray(popularity, np.float64)
  order = np.lexsort((np.arange(len(bucket)), -popularity, bucket))
  sorted_bucket = bucket[order]
  first = np.searchsorted(sorted_bucket, sorted_bucket)
  rank = np.empty(len(bucket), np.int32)
  rank[order] = np.arange(len(bucket)) - first
  return rank


def from_codes(
  codes: Int[np.ndarray, 'I L'],
  *,
  codes_per_level: tuple[int, ...],
  popularity: np.ndarray,
) -> SemanticIds:
  """Returns the table of `codes`, buckets ordered by popularity.

  Args:
    codes: semantic IDs. [I, L]
    codes_per_level: number of codes of each level. [L]
    popularity: e.g. training positives per item. [I]
  """
  codes = np.asarray(codes, np.int32)
  return SemanticIds(
    codes, tuple(codes_per_level), rank_in_bucket(codes, popularity)
  )
