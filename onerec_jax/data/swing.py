"""Swing item-to-item similarity from who interacted with what.

Two items are similar if pairs of users share both of them and little else.
Pure NumPy and SciPy over sparse matrices; knows nothing of files.
"""

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse

# Events of the users whose pairs are looked at together; bounds the memory.
_EVENTS_AT_ONCE = 20_000


def swing_similarity(
  offsets: Int[np.ndarray, ' U1'],
  items: Int[np.ndarray, ' E'],
  *,
  num_items: int,
  alpha: float = 1.0,
  max_users_per_item: int = 500,
  max_neighbours: int = 200,
  seed: int = 0,
) -> sparse.csr_matrix:
  """Returns the Swing similarity of all pairs of different items.

    s(i, j) = Σ_{u, v ∈ U_i ∩ U_j, u ≠ v} w_u w_v / (α + |I_u ∩ I_v|)
    w_u = 1 / √|I_u|

  U_i are the users of item i, I_u the distinct items of user u.  Of items
  with more users only a random sample counts, scaled up so that the sum stays
  unbiased; the mean of s(i, j) and s(j, i) is returned.

  Args:
    offsets: user u's items are items[offsets[u]:offsets[u + 1]]. [U + 1]
    items: item indices; repeats within a user count once. [E]
    num_items: size of the catalogue.
    alpha: smoothing, > 0.
    max_users_per_item: cap of |U_i|, at least 2.
    max_neighbours: largest similarities kept per item (a pair stays if either
      item keeps it).
    seed: of the sample.

  Returns:
    Symmetric matrix with an empty diagonal. float32 [num_items, num_items]

  Reference: Yang et al. 2020, arXiv:2010.05525, section 4.1; the user weights
  are those of the public implementations.
  """
  num_users = len(offsets) - 1
  users = np.repeat(np.arange(num_users), np.diff(offsets))
  full = sparse.csr_matrix(
    (np.ones(len(items), np.float32), (users, items)),
    shape=(num_users, num_items),
  )
  full.data[:] = 1.0  # repeats were summed
  sizes = np.diff(full.indptr)
  weights = 1 / np.sqrt(np.maximum(sizes, 1))
  sampled, scale = _sample_users(full, max_users_per_item, seed)

  total = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
  by_item = sampled.T.tocsr()
  for first, last in _user_blocks(full.indptr):
    shared = sparse.coo_matrix(sampled[first:last] @ by_item)
    # Each unordered pair once; users with one item share no pair of items.
    u, v = shared.row + first, shared.col
    keep = (u < v) & (sizes[u] > 1) & (sizes[v] > 1)
    u, v = u[keep], v[keep]
    common = full[u].multiply(full[v]).tocsr()
    overlap = np.diff(common.indptr)
    keep = overlap > 1
    u, v, common, overlap = u[keep], v[keep], common[keep], overlap[keep]
    if not len(u):
      continue
    pair = 2 * weights[u] * weights[v] / (alpha + overlap)
    source = sampled[u].multiply(sampled[v]).tocsr()
    total = total + source.T @ (sparse.diags(pair) @ common)
  total = sparse.csr_matrix(sparse.diags(scale) @ total)
  total = (total + total.T) / 2
  total.setdiag(0)
  total.eliminate_zeros()
  return _keep_largest(total.tocsr().astype(np.float32), max_neighbours)


def _user_blocks(indptr: np.ndarray) -> list[tuple[int, int]]:
  """Cuts the users into runs of about _EVENTS_AT_ONCE events."""
  last = len(indptr) - 1
  targets = np.arange(0, indptr[-1] + _EVENTS_AT_ONCE, _EVENTS_AT_ONCE)
  edges = np.unique(np.minimum(np.searchsorted(indptr, targets), last))
  return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _sample_users(
  full: sparse.csr_matrix, cap: int, seed: int
) -> tuple[sparse.csr_matrix, Float[np.ndarray, ' I']]:
  """Returns the matrix with at most `cap` users per item, and the scale.

  A pair of an item's n users stays with probability c(c-1) / (n(n-1)).
  """
  num_users, num_items = _shape(full)
  counts = np.bincount(full.indices, minlength=num_items)
  kept = np.minimum(counts, cap)
  scale = np.ones(num_items)
  over = counts > cap
  if not over.any():
    return full, scale
  scale[over] = (
    counts[over] * (counts[over] - 1) / (kept[over] * (kept[over] - 1))
  )
  users = np.repeat(np.arange(num_users), np.diff(full.indptr))
  order = np.lexsort(
    (np.random.default_rng(seed).random(full.nnz), full.indices)
  )
  item = full.indices[order]
  rank = np.arange(full.nnz) - (np.cumsum(counts) - counts)[item]
  order = order[rank < cap]
  sampled = sparse.csr_matrix(
    (full.data[order], (users[order], full.indices[order])),
    shape=(num_users, num_items),
  )
  return sampled, scale


def _keep_largest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
  """Keeps the `count` largest entries of each row, and their mirror images."""
  num_rows, _ = _shape(matrix)
  row_starts = np.asarray(matrix.indptr)
  rows = np.repeat(np.arange(num_rows), np.diff(row_starts))
  order = np.lexsort((matrix.indices, np.negative(matrix.data), rows))
  rank = np.arange(matrix.nnz) - row_starts[rows[order]]
  order = order[rank < count]
  kept = sparse.csr_matrix(
    (matrix.data[order], (rows[order], matrix.indices[order])),
    shape=(num_rows, num_rows),
  )
  return sparse.csr_matrix(kept.maximum(kept.T))


def _shape(matrix: sparse.csr_matrix) -> tuple[int, int]:
  shape = matrix.shape
  assert shape is not None  # SciPy's types allow a matrix without one
  return int(shape[0]), int(shape[1])
