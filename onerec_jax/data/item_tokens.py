"""The parts of `embed` as token tensors, for models that read them apart.

Standardises and pads; reads no file and no event.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float32

from onerec_jax.data import item_vectors


class ItemTokens(NamedTuple):
  """Tokens of every item; those of one part stand side by side."""

  values: Float32[np.ndarray, 'I T d']  # parts narrower than d end in zeros
  mask: Bool[np.ndarray, 'I T']  # False: the part knows nothing of the item
  num_tokens: tuple[int, ...]  # of each part; sums to T
  widths: tuple[int, ...]  # of each part's vectors; the largest is d


def make_tokens(blocks: Sequence[item_vectors.Block]) -> ItemTokens:
  """Returns the parts as tokens.

    x <- (x - mean) / sqrt(mean |x - mean|^2 / d_part), over a part's tokens

  A part is one token, its block before weighting; an 'array' part of shape
  [I, T, d] is T tokens, unreduced.  One scale per part and not per dimension
  keeps the relative size of principal components.  Tokens of zeros are
  masked.

  Args:
    blocks: from `item_vectors.build_part`, at least one.
  """
  parts = [
    block.values[:, None, :] if block.tokens is None else block.tokens
    for block in blocks
  ]
  widths = tuple(part.shape[2] for part in parts)
  num_tokens = tuple(part.shape[1] for part in parts)
  shape = (len(parts[0]), sum(num_tokens), max(widths))
  values = np.zeros(shape, np.float32)
  mask = np.zeros(shape[:2], bool)
  first = 0
  for part in parts:
    last = first + part.shape[1]
    known = np.any(part != 0, axis=2)
    mask[:, first:last] = known
    values[:, first:last, : part.shape[2]] = _standardize(part, known)
    first = last
  return ItemTokens(values, mask, num_tokens, widths)


def _standardize(part: np.ndarray, known: np.ndarray) -> np.ndarray:
  rows = part[known].astype(np.float32)
  centred = rows - rows.mean(0, dtype=np.float64) if len(rows) else rows
  scale = np.sqrt(np.mean(np.square(centred))) if len(rows) else 0.0
  result = np.zeros(part.shape, np.float32)
  # A part that says the same of all items has no scale.
  result[known] = centred / (scale if scale > 0 else 1.0)
  return result
