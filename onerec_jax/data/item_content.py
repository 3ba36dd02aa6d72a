"""What item parts read of items themselves: texts, categories, given vectors.

Each part is a matrix with a row per item, and a function that gives items
which came later rows with the same columns.  Reduced in item_vectors.py.
"""

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn.feature_extraction import text as text_features

from onerec_jax import config
from onerec_jax.data import catalog
from onerec_jax.data import minilm

_MAX_WORDS = 2**16  # most frequent words kept by 'text'

# [num_items, features]; arrays may have several rows of an item, [num_items,
# tokens, features].
Matrix = sparse.csr_matrix | np.ndarray


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


class Features(NamedTuple):
  """What a part reads of items, before it is reduced."""

  matrix: Matrix  # of the catalogue
  of: Callable[[DatasetView], Matrix]  # of other items, columns as above


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


def read(part: config.EmbedPart, view: DatasetView) -> Features | None:
  """Returns what a part reads of items, None: only what users did with them.

  Raises:
    ValueError: the data set has nothing that this part could use.
    ModuleNotFoundError: 'minilm' without its optional packages.
  """
  reader = _READERS.get(part.kind)
  return None if reader is None else reader(part, view)


def nothing(part: config.EmbedPart, reason: str) -> ValueError:
  """Returns the error of a part that the data set has nothing for."""
  return ValueError(
    f"embed.parts: kind='{part.kind}' has nothing to work with: {reason}."
    ' Remove the part or choose another kind.'
  )


# --- The parts --------------------------------------------------------------


def _text(part: config.EmbedPart, view: DatasetView) -> Features:
  """TF-IDF: sublinear counts, words of 2+ letters."""
  vectorizer = text_features.TfidfVectorizer(
    sublinear_tf=True,
    strip_accents='unicode',
    max_features=_MAX_WORDS,
  )
  try:
    matrix = vectorizer.fit_transform(view.texts)
  except ValueError as error:  # scikit-learn: 'empty vocabulary'
    raise nothing(part, 'no item has a text or a title') from error
  return Features(
    sparse.csr_matrix(matrix),
    lambda others: sparse.csr_matrix(vectorizer.transform(others.texts)),
  )


def _minilm(part: config.EmbedPart, view: DatasetView) -> Features:
  if not any(text.strip() for text in view.texts):
    raise nothing(part, 'no item has a text or a title')
  return Features(
    minilm.encode_texts(view.texts),
    lambda others: minilm.encode_texts(others.texts),
  )


def _categories(part: config.EmbedPart, view: DatasetView) -> Features:
  """Multi-hot categories, rare ones weighted by inverse document frequency.

  Categories that no item of the catalogue has are not read of others.
  """
  names = sorted({name for row in view.categories for name in row})
  if not names:
    raise nothing(part, 'no item has a category')
  number = {name: i for i, name in enumerate(names)}
  counts = _multi_hot(view, number)
  frequency = np.bincount(counts.indices, minlength=len(names))
  idf = sparse.diags(np.log((1 + view.num_items) / (1 + frequency)) + 1)
  return Features(
    sparse.csr_matrix(counts @ idf),
    lambda others: sparse.csr_matrix(_multi_hot(others, number) @ idf),
  )


def _multi_hot(view: DatasetView, number: dict[str, int]) -> sparse.csr_matrix:
  """Returns 1 where an item has a category. [num_items, categories]"""
  known = [[number[n] for n in row if n in number] for row in view.categories]
  rows = np.repeat(np.arange(view.num_items), [len(row) for row in known])
  columns = [column for row in known for column in row]
  matrix = sparse.csr_matrix(
    (np.ones(len(columns)), (rows, columns)),
    shape=(view.num_items, len(number)),
  )
  matrix.data[:] = 1.0  # a category named twice counts once
  return matrix


def _array(part: config.EmbedPart, view: DatasetView) -> Features:
  path = part.path or ''
  return Features(
    read_array(path, view), lambda others: read_array(path, others)
  )


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


_READERS: dict[str, Callable[[config.EmbedPart, DatasetView], Features]] = {
  'array': _array,
  'text': _text,
  'minilm': _minilm,
  'categories': _categories,
}
