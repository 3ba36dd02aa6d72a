"""Starting vectors of embeddings: the tokenizer's centroids and residuals.

Plain NumPy; reads and writes nothing.
"""

import numpy as np
from jaxtyping import Float
from jaxtyping import Int

# Noise beside a unit of signal: centroids that coincide must come apart.
_NOISE = 0.1


def from_codebooks(
  codebooks: Float[np.ndarray, 'L C Z'],
  start: Float[np.ndarray, 'L C D'],
) -> Float[np.ndarray, 'L C D']:
  """Returns embeddings that lie to each other as the centroids do.

    e^l = c^l V / std(c^l V) + 0.1 e_0^l

  V are the principal directions of the first level's centroids about their
  mean, most spread first, as many as fit.  Every level gets unit variance, for
  deeper residuals are smaller.  Not in the papers, where embeddings start
  at random and learn the geometry anew.

  Args:
    codebooks: centroids of every level. [L, C, Z]
    start: random embeddings e_0; dimensions beyond Z stay as they are.
      [L, C, D]

  Returns:
    float32. [L, C, D]
  """
  books = codebooks.astype(np.float64)
  books[0] -= books[0].mean(axis=0)
  directions = _directions(codebooks, start.shape[-1])
  size = len(directions)
  turned = books @ directions.T
  spread = turned.std(axis=(1, 2), keepdims=True)
  result = start.astype(np.float64)
  # A level whose residuals are all zero has nothing to say.
  known = spread > 1e-12
  result[..., :size] = np.where(
    known,
    turned / np.where(known, spread, 1.0) + _NOISE * result[..., :size],
    result[..., :size],
  )
  return result.astype(np.float32)


def from_residuals(
  codebooks: Float[np.ndarray, 'L C Z'],
  residuals: Float[np.ndarray, 'I Z'],
  buckets: Int[np.ndarray, ' I'],
  start: Float[np.ndarray, 'B D'],
) -> Float[np.ndarray, 'B D']:
  """Returns embeddings of whole IDs that start at what their codes leave over.

    e_b = mean over the items i of bucket b of r_i V / std(r V) + e_0,b

  V as in `from_codebooks`, so that an item's embeddings add up to its vector,
  but for the scale of each level.

  Args:
    codebooks: centroids of every level. [L, C, Z]
    residuals: r, item vectors minus the centroids of their codes. [I, Z]
    buckets: row of each item's ID in the table. [I]
    start: random embeddings e_0; rows of no item stay as they are. [B, D]

  Returns:
    float32. [B, D]
  """
  directions = _directions(codebooks, start.shape[-1])
  turned = residuals.astype(np.float64) @ directions.T
  spread = turned.std()
  result = start.astype(np.float64)
  if spread > 1e-12:  # else the codes say all there is
    sums = np.zeros((len(start), len(directions)))
    np.add.at(sums, buckets, turned / spread)
    items = np.bincount(buckets, minlength=len(start))[:, None]
    result[:, : len(directions)] += sums / np.maximum(items, 1)
  return result.astype(np.float32)


def _directions(
  codebooks: Float[np.ndarray, 'L C Z'], most: int
) -> Float[np.ndarray, 'd Z']:
  """Returns at most `most` principal directions of the first level."""
  first = codebooks[0].astype(np.float64)
  first -= first.mean(axis=0)
  return np.linalg.svd(first, full_matrices=False)[2][:most]
