"""Item vectors: one block per configured part, joined with stated weights.

Every part reads a `DatasetView`, which holds item texts, categories and
TRAINING sequences only.  Items that a part knows nothing of get its zero
block.  Writes nothing; that is stages/embed.py.
"""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn.feature_extraction import text as text_features
from sklearn.utils import extmath

from onerec_jax import config
from onerec_jax.data import catalog
from onerec_jax.data import cooccurrence
from onerec_jax.data import minilm
from onerec_jax.data import swing

_MAX_WORDS = 2**16  # most frequent words kept by 'text'
_POWER_ITERATIONS = 7  # of the randomised SVD; more only costs time
# Directions below this share of the largest singular value are rounding noise.
_RANK_TOLERANCE = 1e-6
_TRANSITIONS_AT_ONCE = 256  # bounds the memory of neighbour_hit_rate


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetView:
  """What item vectors may be made from: no validation or test event."""

  item_ids: np.ndarray  # str [num_items]
  texts: Sequence[str]  # '' where an item has none
  categories: Sequence[Sequence[str]]
  offsets: Int[np.ndarray, ' U1']  # of the training sequences
  items: Int[np.ndarray, ' E']  # training positives, oldest first

  @property
  def num_items(self) -> int:
    return len(self.item_ids)


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


def read_view(folder: str | os.PathLike[str]) -> DatasetView:
  """Returns the view of a prepared data set, training events only."""
  sequences = catalog.training_sequences(folder)
  return DatasetView(
    item_ids=catalog.item_ids(folder),
    texts=catalog.item_texts(folder),
    categories=catalog.item_categories(folder),
    offsets=sequences.offsets,
    items=sequences.items,
  )


def build(
  parts: Sequence[config.EmbedPart], view: DatasetView, *, seed: int
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
  part: config.EmbedPart, view: DatasetView, *, seed: int
) -> Block:
  """Returns one block; the same seed gives the same block.

  Raises:
    ValueError: the data set has nothing that this part could use.
    ModuleNotFoundError: 'minilm' without its optional packages.
  """
  return _BUILDERS[part.kind](part, view, seed)


# --- The parts --------------------------------------------------------------


def _text(part: config.EmbedPart, view: DatasetView, seed: int) -> Block:
  """TF-IDF (sublinear counts, words of 2+ letters) and truncated SVD."""
  vectorizer = text_features.TfidfVectorizer(
    sublinear_tf=True,
    strip_accents='unicode',
    max_features=_MAX_WORDS,
  )
  try:
    matrix = vectorizer.fit_transform(view.texts)
  except ValueError as error:  # scikit-learn: 'empty vocabulary'
    raise _nothing(part, 'no item has a text or a title') from error
  return _reduce(sparse.csr_matrix(matrix), part.dim, seed, power=1.0)


def _minilm(part: config.EmbedPart, view: DatasetView, seed: int) -> Block:
  if not any(text.strip() for text in view.texts):
    raise _nothing(part, 'no item has a text or a title')
  return _reduce(minilm.encode_texts(view.texts), part.dim, seed, power=1.0)


def _categories(part: config.EmbedPart, view: DatasetView, seed: int) -> Block:
  """Multi-hot categories, rare ones weighted by inverse document frequency."""
  names = sorted({name for row in view.categories for name in row})
  if not names:
    raise _nothing(part, 'no item has a category')
  number = {name: i for i, name in enumerate(names)}
  rows = np.repeat(
    np.arange(view.num_items), [len(row) for row in view.categories]
  )
  columns = [number[name] for row in view.categories for name in row]
  matrix = sparse.csr_matrix(
    (np.ones(len(columns)), (rows, columns)),
    shape=(view.num_items, len(names)),
  )
  matrix.data[:] = 1.0  # a category named twice counts once
  frequency = np.bincount(matrix.indices, minlength=len(names))
  idf = np.log((1 + view.num_items) / (1 + frequency)) + 1
  matrix = sparse.csr_matrix(matrix @ sparse.diags(idf))
  return _reduce(matrix, part.dim, seed, power=1.0)


def _cooccurrence(
  part: config.EmbedPart, view: DatasetView, seed: int
) -> Block:
  counts = cooccurrence.window_counts(
    view.offsets, view.items, num_items=view.num_items, window=part.window
  )
  if not counts.nnz:
    raise _nothing(part, 'no two items meet in a training sequence')
  return _reduce(cooccurrence.ppmi(counts), part.dim, seed, power=0.5)


def _swing(part: config.EmbedPart, view: DatasetView, seed: int) -> Block:
  similarity = swing.swing_similarity(
    view.offsets, view.items, num_items=view.num_items, seed=seed
  )
  if not similarity.nnz:
    raise _nothing(part, 'no two users share two items in training')
  # Cosine-like: a popular item's similarities are divided by its strength.
  strength = np.asarray(similarity.sum(axis=1)).reshape(-1)
  scale = sparse.diags(1 / np.sqrt(np.maximum(strength, 1e-12)))
  similarity = sparse.csr_matrix(scale @ similarity @ scale)
  return _reduce(similarity, part.dim, seed, power=0.5)


def _array(part: config.EmbedPart, view: DatasetView, seed: int) -> Block:
  """Of several tokens per item, the vector is their mean."""
  vectors = read_array(part.path or '', view)
  if vectors.ndim == 2:
    return _reduce(vectors, part.dim, seed, power=1.0)
  count = np.any(vectors != 0, axis=2).sum(axis=1, keepdims=True)
  mean = vectors.sum(axis=1) / np.maximum(count, 1)
  block = _reduce(mean, part.dim, seed, power=1.0)
  return block._replace(tokens=vectors)


def read_array(
  path: str, view: DatasetView
) -> Float[np.ndarray, 'num_items *tokens width']:
  """Returns precomputed vectors, one row per item of the catalogue.

  Args:
    path: .npy [num_items, width], or [num_items, tokens, width] for several
      vectors of an item, in the order of items.parquet; or .npz with
      'embeddings' [n, width] or [n, tokens, width] and, unless they are in
      that order, 'item_ids' [n]; items that it does not name get zeros.
    view: the data set.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a table of finite numbers, or rows that fit no item.
  """
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(f"Item vectors of kind 'array': no file {path}.")
  with file.open('rb') as stream:
    stored = np.load(stream)
    if isinstance(stored, np.ndarray):
      ids, vectors = None, stored
    else:
      if 'embeddings' not in stored:
        raise ValueError(
          f"{path} lacks the array 'embeddings'; it has {sorted(stored)}."
        )
      vectors = stored['embeddings']
      ids = stored.get('item_ids')
  if (
    vectors.ndim not in (2, 3)
    or 0 in vectors.shape[1:]
    or vectors.dtype.kind not in 'fiu'
  ):
    raise ValueError(
      f'{path} holds {vectors.dtype} {vectors.shape}; expected numbers of'
      ' shape [items, width] or [items, tokens, width].'
    )
  vectors = vectors.astype(np.float32)
  finite = np.isfinite(vectors).reshape(len(vectors), -1)
  bad = np.flatnonzero(~finite.all(axis=1))
  if len(bad):
    raise ValueError(
      f'{path}: {len(bad)} rows hold NaN or infinity, the first is row'
      f' {bad[0]}. Use a zero row for an item without a vector.'
    )
  if ids is None:
    if len(vectors) != view.num_items:
      raise ValueError(
        f'{path} has {len(vectors)} rows, the data set {view.num_items} items'
        " (rows of items.parquet). Store 'item_ids' beside 'embeddings' in an"
        ' .npz file to match them by id.'
      )
    return vectors
  return _by_id(path, ids, vectors, view)


def _by_id(
  path: str, ids: np.ndarray, vectors: np.ndarray, view: DatasetView
) -> np.ndarray:
  names = [str(name) for name in ids.tolist()]
  if len(names) != len(vectors) or len(set(names)) != len(names):
    raise ValueError(
      f"{path}: 'item_ids' has {len(names)} entries, {len(set(names))}"
      f" different ones, for {len(vectors)} rows of 'embeddings'; each row"
      ' needs an id of its own.'
    )
  place = {name: i for i, name in enumerate(names)}
  rows = np.array([place.get(str(i), -1) for i in view.item_ids], np.int64)
  if not (rows >= 0).any():
    raise ValueError(
      f"{path}: none of its 'item_ids' (such as {names[:3]}) is an item of"
      f' this data set (such as {view.item_ids[:3].tolist()}).'
    )
  result = vectors[rows]
  result[rows < 0] = 0
  return result


_BUILDERS: dict[str, Callable[[config.EmbedPart, DatasetView, int], Block]] = {
  'array': _array,
  'text': _text,
  'minilm': _minilm,
  'categories': _categories,
  'cooccurrence': _cooccurrence,
  'swing': _swing,
}


def _nothing(part: config.EmbedPart, reason: str) -> ValueError:
  return ValueError(
    f"embed.parts: kind='{part.kind}' has nothing to work with: {reason}."
    ' Remove the part or choose another kind.'
  )


# --- Reduction --------------------------------------------------------------


def _reduce(
  matrix: sparse.csr_matrix | np.ndarray,
  dim: int,
  seed: int,
  *,
  power: float,
) -> Block:
  """Truncated SVD U S^power, centred over known items, rows of unit norm.

  Has fewer than `dim` columns if the matrix has a lower rank.

  Args:
    matrix: one row per item; a zero row: nothing known. [num_items, features]
    dim: columns kept at most.
    seed: of the randomised SVD.
    power: 1: coordinates along the right singular vectors; 0.5: symmetric
      split between rows and columns, better for PPMI (Levy et al. 2015).
  """
  if sparse.issparse(matrix):
    matrix = sparse.csr_matrix(matrix)
    squares = float(matrix.data.astype(np.float64) @ matrix.data)
    known = np.diff(matrix.indptr) > 0
  else:
    matrix = np.asarray(matrix)
    known = np.any(matrix != 0, axis=1)
    matrix = np.where(known[:, None], matrix - matrix[known].mean(0), 0)
    squares = float(np.square(matrix, dtype=np.float64).sum())
  left, singular, _ = extmath.randomized_svd(
    matrix,
    n_components=min(dim, *(matrix.shape or ())),
    n_iter=_POWER_ITERATIONS,  # pyright: ignore[reportArgumentType] # also int
    random_state=seed,
  )
  rank = max(int((singular > _RANK_TOLERANCE * singular[0]).sum()), 1)
  left, singular = left[:, :rank], singular[:rank]
  values = left * singular**power
  values = np.where(known[:, None], values - values[known].mean(0), 0)
  norm = np.linalg.norm(values, axis=1, keepdims=True)
  values = np.where(norm > 1e-12, values / np.maximum(norm, 1e-12), 0)
  kept = float(np.square(singular, dtype=np.float64).sum())
  return Block(
    values=values.astype(np.float32),
    empty=~known,
    explained=kept / max(squares, 1e-30),
  )


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
