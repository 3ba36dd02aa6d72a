"""Items that came after training: their table, their vectors, their file.

A new item has a text, categories or given vectors, and no behaviour: where the
item vectors have parts of behaviour, it gets what items like it have.
"""

import io
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from etils import epath
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.data import catalog
from onerec_jax.data import item_content
from onerec_jax.data import item_vectors
from onerec_jax.semantic_ids import table

NEIGHBOURS = 10
# Rows of cosines held at a time, elements (64 MB).
_TILE_ELEMENTS = 2**24
# Beyond this, an entry of the item vectors is not the one that was stored.
_TOLERANCE = 1e-3
_BASE = 'base'  # column of AddedItems.base, the same in every row


class NewVectors(NamedTuple):
  """Item vectors of new items, and the old items they are like."""

  values: Float[np.ndarray, 'N dim']
  nearest: Int[np.ndarray, ' N']  # by content, of all old items


# --- Vectors ----------------------------------------------------------------


def vectors(
  parts: Sequence[config.EmbedPart],
  view: item_content.DatasetView,
  new: item_content.DatasetView,
  *,
  stored: Float[np.ndarray, 'I dim'],
  seed: int,
) -> NewVectors:
  """Returns what the parts make of new items.

  Parts of content (text, minilm, categories, array) are fitted again, which
  must give the stored vectors, and applied.  Parts of behaviour (cooccurrence,
  swing) get the mean of the ten items with behaviour that are nearest by
  content, at unit norm: on Amazon Beauty, of whose items 1,200 were taken as
  new, 4.6 % of the items bought next are then among the ten nearest, with
  zeros instead 1.7 %, with their own behaviour 9.0 %.

  Args:
    parts: of the item vectors.
    view: the data set that `stored` was made of.
    new: the new items; without sequences.
    stored: item vectors of the run. [I, dim]
    seed: of the run.

  Raises:
    ValueError: no part reads content, a new item has none, or the stored
      vectors cannot be made again.
  """
  fitted = [item_vectors.fit_part(part, view, seed=seed) for part in parts]
  _check_reproduced(item_vectors.join(parts, [f.block for f in fitted]), stored)
  encoded = [None if f.encode is None else f.encode(new) for f in fitted]
  content = [
    (part, f.block, block)
    for part, f, block in zip(parts, fitted, encoded, strict=True)
    if block is not None
  ]
  if not content:
    kinds = sorted({part.kind for part in parts})
    raise ValueError(
      f'embed.parts of kind {", ".join(kinds)} know items by behaviour alone,'
      " which new items do not have: train with a part of kind 'text',"
      " 'minilm', 'categories' or 'array' as well."
    )
  used = [part for part, _, _ in content]
  old_content = item_vectors.join(used, [old for _, old, _ in content])
  new_content = item_vectors.join(used, [block for _, _, block in content])
  _check_known(new, new_content, used)
  nearest = _nearest(new_content, old_content, 1)[:, 0]
  blocks = []
  for fit, block in zip(fitted, encoded, strict=True):
    if block is None:
      known = np.flatnonzero(~fit.block.empty)
      near = _nearest(new_content, old_content[known], NEIGHBOURS)
      values = fit.block.values[known][near].mean(axis=1)
      norm = np.linalg.norm(values, axis=1, keepdims=True)
      values = values / np.maximum(norm, 1e-12)
      block = fit.block._replace(
        values=values, empty=np.zeros(len(values), bool)
      )
    blocks.append(block)
  return NewVectors(item_vectors.join(parts, blocks), nearest)


def _nearest(
  queries: np.ndarray, items: np.ndarray, count: int
) -> Int[np.ndarray, 'N k']:
  """Returns the nearest items by cosine, nearest first; ties: the lower."""
  norm = np.linalg.norm(items, axis=1, keepdims=True)
  unit = items / np.maximum(norm, 1e-12)
  count = min(count, len(items))
  rows = max(1, _TILE_ELEMENTS // len(items))
  found = np.empty((len(queries), count), np.int64)
  for start in range(0, len(queries), rows):
    cosine = queries[start : start + rows] @ unit.T
    found[start : start + rows] = np.argsort(-cosine, axis=1, kind='stable')[
      :, :count
    ]
  return found


def _check_reproduced(made: np.ndarray, stored: np.ndarray) -> None:
  same = made.shape == stored.shape
  gap = float(np.abs(made - stored).max()) if same else np.inf
  if gap > _TOLERANCE:
    raise ValueError(
      'The item vectors of the run cannot be made again from its data and'
      f' embed.parts: shapes {stored.shape} and {made.shape}, largest'
      f' difference {gap:.2g}, at most {_TOLERANCE} expected. New vectors would'
      ' not lie where the old ones do. Use the settings and library versions'
      ' of the run (config.json, embed/result.json), or run embed and all that'
      ' follows again.'
    )


def _check_known(
  new: item_content.DatasetView,
  content: np.ndarray,
  parts: Sequence[config.EmbedPart],
) -> None:
  unknown = np.flatnonzero(~np.any(content != 0, axis=1))
  if len(unknown):
    kinds = ', '.join(part.kind for part in parts)
    names = ', '.join(str(new.item_ids[i]) for i in unknown[:5])
    raise ValueError(
      f'{len(unknown)} of {new.num_items} new items have nothing that the'
      f' item vectors are made of ({kinds}), e.g. {names}: give them a text'
      ' with words, categories or vectors that the run knows, or leave them'
      ' out.'
    )


# --- File -------------------------------------------------------------------


class AddedItems(NamedTuple):
  """New items with their semantic IDs, in the order in which they came."""

  base: str  # digest of the semantic IDs that they were added to
  item_ids: np.ndarray  # str [N]
  titles: list[str]
  codes: Int[np.ndarray, 'N L']  # int32
  rank_in_bucket: Int[np.ndarray, ' N']  # int32
  version: Int[np.ndarray, ' N']  # int32; 1: the first that were added
  vectors: Float[np.ndarray, 'N dim']  # float32


def extended(ids: table.SemanticIds, added: AddedItems) -> table.SemanticIds:
  """Returns the table with the added items behind the old ones."""
  return table.SemanticIds(
    np.concatenate([ids.codes, added.codes]),
    ids.codes_per_level,
    np.concatenate([ids.rank_in_bucket, added.rank_in_bucket]),
  )


def joined(first: AddedItems, second: AddedItems) -> AddedItems:
  """Returns both, of the first's base."""
  arrays = ('item_ids', 'codes', 'rank_in_bucket', 'version', 'vectors')
  return first._replace(
    titles=first.titles + second.titles,
    **{
      name: np.concatenate([getattr(first, name), getattr(second, name)])
      for name in arrays
    },
  )


def write(path: str | os.PathLike[str], added: AddedItems) -> None:
  """Writes the table: a reader sees the old one or the whole new one.

  Columns: item_id, title, code_0..code_{L-1} i32, rank_in_bucket i32, version
  i32, vector (list of f32), base.
  """
  columns: dict[str, object] = {
    'item_id': added.item_ids.tolist(),
    'title': added.titles,
  }
  for level in range(added.codes.shape[1]):
    columns[f'code_{level}'] = added.codes[:, level]
  columns['rank_in_bucket'] = added.rank_in_bucket
  columns['version'] = added.version
  columns['vector'] = pl.Series(
    added.vectors.tolist(), dtype=pl.List(pl.Float32)
  )
  columns[_BASE] = [added.base] * len(added.titles)
  catalog.write_frame(epath.Path(path), pl.DataFrame(columns))


def read(path: str | os.PathLike[str]) -> AddedItems | None:
  """Returns what `write` wrote, None: nothing was added."""
  file = epath.Path(path)
  if not file.exists():
    return None
  frame = pl.read_parquet(io.BytesIO(file.read_bytes()))
  levels = sum(name.startswith('code_') for name in frame.columns)
  codes = frame.select(f'code_{level}' for level in range(levels))
  return AddedItems(
    base=frame[_BASE][0],
    item_ids=np.array(frame['item_id'].to_list(), dtype=str),
    titles=frame['title'].to_list(),
    codes=np.ascontiguousarray(codes.to_numpy(), dtype=np.int32),
    rank_in_bucket=frame['rank_in_bucket'].to_numpy().astype(np.int32),
    version=frame['version'].to_numpy().astype(np.int32),
    vectors=np.array(frame['vector'].to_list(), np.float32),
  )
