"""Positive pointwise mutual information of items in training sequences.

Pure NumPy and SciPy over sparse matrices; knows nothing of files.
"""

import numpy as np
from jaxtyping import Int
from scipy import sparse

# Levy, Goldberg and Dagan 2015, section 3.1: dampens the bias of PMI towards
# rare contexts.
_CONTEXT_POWER = 0.75


def window_counts(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' E'],
  *,
  num_items: int,
  window: int,
) -> sparse.csr_matrix:
  """Counts pairs of different items near each other in a user's sequence.

    C_ij = Σ_u Σ_{positions a, b of u, 0 < |a - b| ≤ window}
           [item_a = i][item_b = j] (window + 1 - |a - b|) / window

  Neighbours count 1, the most distant ones 1 / window; symmetric.

  Args:
    offsets: user u's sequence is items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: item indices, oldest first. [E]
    num_items: size of the catalogue.
    window: events on each side, >= 1.

  Returns:
    float64 [num_items, num_items], the diagonal empty
  """
  users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  shape = (num_items, num_items)
  counts = sparse.csr_matrix(shape, dtype=np.float64)
  for distance in range(1, window + 1):
    a, b = items[:-distance], items[distance:]
    keep = (users[:-distance] == users[distance:]) & (a != b)
    weight = np.full(int(keep.sum()), (window + 1 - distance) / window)
    counts = counts + sparse.csr_matrix((weight, (a[keep], b[keep])), shape)
  return sparse.csr_matrix(counts + counts.T)


def ppmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
  """Positive pointwise mutual information with smoothed contexts.

    PPMI_ij = max(0, log C_ij Σ_k c_k^α / (c_i c_j^α)),  α = 0.75,
              c_i = Σ_j C_ij

  times C_ij / (C_ij + 1), which keeps chance meetings of two rare items from
  being the strongest relations of all.

  Args:
    counts: symmetric, non-negative. [num_items, num_items]

  Returns:
    Sparse where the counts are. float64 [num_items, num_items]

  Reference: Levy, Goldberg and Dagan 2015, Improving distributional similarity
  with lessons learned from word embeddings, TACL 3; the discount factor is of
  Pantel and Lin 2002, Discovering word senses from text, KDD, without its
  second term.
  """
  pairs = sparse.coo_matrix(counts)
  marginal = np.asarray(counts.sum(axis=1)).reshape(-1)
  context = marginal**_CONTEXT_POWER
  information = np.log(
    pairs.data * context.sum() / (marginal[pairs.row] * context[pairs.col])
  )
  values = np.maximum(information, 0) * pairs.data / (pairs.data + 1)
  result = sparse.csr_matrix(
    (values, (pairs.row, pairs.col)), shape=counts.shape
  )
  result.eliminate_zeros()
  return result
