"""Item vectors: one block per configured part, joined with stated weights.

A part reads the items' content (item_content.py) or TRAINING sequences only.
Items that it knows nothing of get its zero block.  Items that came later have
rows in the same coordinates, as far as a part reads content.  Writes nothing;
that is stages/embed.py.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn.utils import extmath

from onerec_jax import config
from onerec_jax.data import cooccurrence
from onerec_jax.data import item_content
from onerec_jax.data import swing

_POWER_ITERATIONS = 7  # of the randomised SVD; more only costs time
# Directions below this share of the largest singular value are rounding noise.
_RANK_TOLERANCE = 1e-6
_TRANSITIONS_AT_ONCE = 256  # bounds the memory of neighbour_hit_rate


class Block(NamedTuple):
  """The vectors of one part: centred, rows of unit norm or zero."""

  values: Float[np.ndarray, 'num_items dim']
  empty: Bool[np.ndarray, ' num_items']  # True: nothing known, zero row
  # Share of the squared norm of the part's matrix that the SVD kept.
  explained: float
  # 'array' parts of shape [items, T, d]: as they are in the file; a token of
  # zeros is none.
  tokens: Float[np.ndarray, 'num_items T d'] | None = None


class ItemVectors(NamedTuple):
  """All blocks side by side, each row of block p with norm weight_p or 0."""

  values: Float[np.ndarray, 'num_items dim']
  blocks: tuple[Block, ...]


class FittedPart(NamedTuple):
  """A part, and how it sees items that came later."""

  block: Block
  # Rows of other items in the block's coordinates; None: the part knows items
  # by what users did with them.
  encode: Callable[[item_content.DatasetView], Block] | None


def build(
  parts: Sequence[config.EmbedPart],
  view: item_content.DatasetView,
  *,
  seed: int,
) -> ItemVectors:
  """Builds all parts and joins them: values = [w_1 B_1, w_2 B_2, ...]."""
  blocks = tuple(build_part(part, view, seed=seed) for part in parts)
  return ItemVectors(join(parts, blocks), blocks)


def join(
  parts: Sequence[config.EmbedPart], blocks: Sequence[Block]
) -> Float[np.ndarray, 'num_items dim']:
  """Returns the weighted blocks side by side."""
  weighted = [
    part.weight * block.values
    for part, block in zip(parts, blocks, strict=True)
  ]
  return np.concatenate(weighted, axis=1).astype(np.float32)


def build_part(
  part: config.EmbedPart, view: item_content.DatasetView, *, seed: int
) -> Block:
  """Returns one block; the same seed gives the same block.

  Raises: as `fit_part`.
  """
  return fit_part(part, view, seed=seed).block


def fit_part(
  part: config.EmbedPart, view: item_content.DatasetView, *, seed: int
) -> FittedPart:
  """Returns one block, and what gives items that came later their rows of it.

  Raises:
    ValueError: the data set has nothing that this part could use.
    ModuleNotFoundError: 'minilm' without its optional packages.
  """
  features = item_content.read(part, view)
  if features is None:
    return FittedPart(_BEHAVIOUR[part.kind](part, view, seed), None)
  block, encode = _reduce_content(features.matrix, part.dim, seed)
  return FittedPart(block, lambda others: encode(features.of(others)))


# --- Behaviour --------------------------------------------------------------


def _cooccurrence(
  part: config.EmbedPart, view: item_content.DatasetView, seed: int
) -> Block:
  counts = cooccurrence.window_counts(
    view.offsets, view.items, num_items=view.num_items, window=part.window
  )
  if not counts.nnz:
    raise item_content.nothing(part, 'no two items meet in a training sequence')
  return _reduce(cooccurrence.ppmi(counts), part.dim, seed, power=0.5)[0]


def _swing(
  part: config.EmbedPart, view: item_content.DatasetView, seed: int
) -> Block:
  similarity = swing.swing_similarity(
    view.offsets, view.items, num_items=view.num_items, seed=seed
  )
  if not similarity.nnz:
    raise item_content.nothing(part, 'no two users share two items in training')
  # Cosine-like: a popular item's similarities are divided by its strength.
  strength = np.asarray(similarity.sum(axis=1)).reshape(-1)
  scale = sparse.diags(1 / np.sqrt(np.maximum(strength, 1e-12)))
  similarity = sparse.csr_matrix(scale @ similarity @ scale)
  return _reduce(similarity, part.dim, seed, power=0.5)[0]


_BEHAVIOUR: dict[
  str, Callable[[config.EmbedPart, item_content.DatasetView, int], Block]
] = {
  'cooccurrence': _cooccurrence,
  'swing': _swing,
}


# --- Reduction --------------------------------------------------------------


class _Coordinates(NamedTuple):
  """How the rows of a block came about."""

  directions: Float[np.ndarray, 'dim features']  # right singular vectors
  column_mean: Float[np.ndarray, ' features'] | None  # None: sparse, as it is
  value_mean: Float[np.ndarray, ' dim']


def _reduce(
  matrix: sparse.csr_matrix | np.ndarray,
  dim: int,
  seed: int,
  *,
  power: float,
) -> tuple[Block, _Coordinates]:
  """Truncated SVD U S^power, centred over known items, rows of unit norm.

  Has fewer than `dim` columns if the matrix has a lower rank.

  Args:
    matrix: one row per item; a zero row: nothing known. [num_items, features]
    dim: columns kept at most.
    seed: of the randomised SVD.
    power: 1: coordinates along the right singular vectors; 0.5: symmetric
      split between rows and columns, better for PPMI (Levy et al. 2015).
  """
  known = _known(matrix)
  column_mean = None
  if sparse.issparse(matrix):
    matrix = sparse.csr_matrix(matrix)
    squares = float(matrix.data.astype(np.float64) @ matrix.data)
  else:
    matrix = np.asarray(matrix)
    column_mean = matrix[known].mean(0)
    matrix = np.where(known[:, None], matrix - column_mean, 0)
    squares = float(np.square(matrix, dtype=np.float64).sum())
  left, singular, right = extmath.randomized_svd(
    matrix,
    n_components=min(dim, *(matrix.shape or ())),
    n_iter=_POWER_ITERATIONS,  # pyright: ignore[reportArgumentType] # also int
    random_state=seed,
  )
  rank = max(int((singular > _RANK_TOLERANCE * singular[0]).sum()), 1)
  left, singular, right = left[:, :rank], singular[:rank], right[:rank]
  values = left * singular**power
  value_mean = values[known].mean(0)
  kept = float(np.square(singular, dtype=np.float64).sum())
  block = Block(
    values=_centred(values, known, value_mean),
    empty=~known,
    explained=kept / max(squares, 1e-30),
  )
  return block, _Coordinates(right, column_mean, value_mean)


def _reduce_content(
  matrix: item_content.Matrix, dim: int, seed: int
) -> tuple[Block, Callable[[item_content.Matrix], Block]]:
  """Returns the block of a matrix, and what makes that of further rows.

  With U S = X V^T, further rows are projected onto V.  Of several rows of an
  item, the vector is that of their mean.
  """
  block, at = _reduce(_mean_row(matrix), dim, seed, power=1.0)

  def encode(others: item_content.Matrix) -> Block:
    rows = _mean_row(others)
    known = _known(rows)
    if at.column_mean is not None:
      rows = np.where(known[:, None], rows - at.column_mean, 0)
    values = np.asarray(rows @ at.directions.T)
    values = _centred(values, known, at.value_mean)
    return Block(values, ~known, block.explained, _tokens(others))

  return block._replace(tokens=_tokens(matrix)), encode


def _known(matrix: item_content.Matrix) -> Bool[np.ndarray, ' num_items']:
  if sparse.issparse(matrix):
    return np.diff(sparse.csr_matrix(matrix).indptr) > 0
  return np.any(np.asarray(matrix) != 0, axis=1)


def _centred(values, known, mean) -> Float[np.ndarray, 'num_items dim']:
  """Returns rows about the mean, of unit norm; zero where nothing is known."""
  values = np.where(known[:, None], values - mean, 0)
  norm = np.linalg.norm(values, axis=1, keepdims=True)
  values = np.where(norm > 1e-12, values / np.maximum(norm, 1e-12), 0)
  return values.astype(np.float32)


def _tokens(matrix: item_content.Matrix) -> np.ndarray | None:
  return matrix if matrix.ndim == 3 else None  # type: ignore[return-value]


def _mean_row(matrix: item_content.Matrix) -> item_content.Matrix:
  """Returns one row per item, the mean of those that are not zero."""
  tokens = _tokens(matrix)
  if tokens is None:
    return matrix
  count = np.any(tokens != 0, axis=2).sum(axis=1, keepdims=True)
  return tokens.sum(axis=1) / np.maximum(count, 1)


# --- Quality ----------------------------------------------------------------


def neighbour_hit_rate(
  vectors: Float[np.ndarray, 'num_items dim'],
  sources: Int[np.ndarray, ' n'],
  targets: Int[np.ndarray, ' n'],
  *,
  top_k: int,
) -> float:
  """Share of transitions whose target is near its source by cosine.

    mean [ #{j ∉ {s, t}: cos(s, j) ≥ cos(s, t)} < top_k ]

  Ties count against the target, and an item without a vector never hits.

  Args:
    vectors: one row per item; zero: no vector. [num_items, dim]
    sources: items. [n]
    targets: items that followed them. [n]
    top_k: number of neighbours looked at.

  Returns:
    In 0..1; 0 without transitions.
  """
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  unit = vectors / np.maximum(norms, 1e-12)
  hits = 0
  for first in range(0, len(sources), _TRANSITIONS_AT_ONCE):
    s = sources[first : first + _TRANSITIONS_AT_ONCE]
    t = targets[first : first + _TRANSITIONS_AT_ONCE]
    rows = np.arange(len(s))
    cosine = unit[s] @ unit.T
    reached = cosine[rows, t]
    cosine[rows, s] = -np.inf
    cosine[rows, t] = -np.inf
    known = (norms[s, 0] > 0) & (norms[t, 0] > 0) & (s != t)
    nearer = (cosine >= reached[:, None]).sum(axis=1)
    hits += int((known & (nearer < top_k)).sum())
  return hits / max(len(sources), 1)
