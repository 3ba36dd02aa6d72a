"""Starting vectors of the codes' embeddings: the tokenizer's centroids.

Plain NumPy; reads and writes nothing.
"""

import numpy as np
from jaxtyping import Float

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
  directions = np.linalg.svd(books[0], full_matrices=False)[2]
  size = min(len(directions), start.shape[-1])
  turned = books @ directions[:size].T
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
