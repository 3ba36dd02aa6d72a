"""Command `add-items`: semantic IDs for items that came after training.

Writes added_items/items.parquet, which recommend and export read.  No ID that
was given before changes, and nothing is trained: a model whose vocabulary is
codes can read and generate an item it has never met.
"""

import os
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table
from absl import logging
from etils import epath

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import item_content
from onerec_jax.data import new_items
from onerec_jax.data import tables
from onerec_jax.semantic_ids import collisions
from onerec_jax.semantic_ids import table
from onerec_jax.stages import pretrain
from onerec_jax.stages import served
from onerec_jax.stages import starting_vectors
from onerec_jax.stages import tokenize
from onerec_jax.stages import trained as trained_lib

_SHOWN = 20  # rows on the terminal


class Catalogue(NamedTuple):
  """All items that a run serves, those that were added at the end."""

  item_ids: np.ndarray  # str [I + N]
  titles: list[str]
  added: new_items.AddedItems | None


def path_of(workdir: workdir_lib.Workdir) -> epath.Path:
  """Where a run keeps its added items."""
  return workdir.root / 'added_items' / 'items.parquet'


def catalogue(workdir: workdir_lib.Workdir) -> Catalogue:
  """Returns the items of the data and the added ones."""
  item_ids = catalog.item_ids(workdir.data)
  titles = catalog.item_titles(workdir.data)
  added = new_items.read(path_of(workdir))
  if added is None:
    return Catalogue(item_ids, titles, None)
  return Catalogue(
    np.concatenate([item_ids, added.item_ids]), titles + added.titles, added
  )


# --- Adding -----------------------------------------------------------------


def run(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  path: str | os.PathLike[str] | None,
  share_ids: bool = True,
) -> new_items.AddedItems | None:
  """Gives the items of a table semantic IDs and keeps them.

  Items that the run has already keep the ID they have.

  Args:
    experiment: of the run; its embed and tokenizer made the IDs.
    workdir: with the stages up to tokenize.
    path: .parquet, .csv or .tsv with item_id and what embed.parts read: title,
      text, categories; columns are named as in data.tables where the run has
      its data from there.
    share_ids: each takes the nearest ID that an item has, which the model
      knows (`collisions.share_ids`); False: one of its own, as
      tokenizer.collision has it (`collisions.encode_new_items`).

  Returns:
    The items that were added now, None: the run had all of them.

  Raises:
    ValueError: the run cannot take new items, or an item has no content.
    schema.DataError: the table has mistakes.
  """
  if path is None:
    raise ValueError(
      'add-items needs --new_items=FILE, a table (.parquet, .csv, .tsv) with'
      ' the columns item_id and title, text or categories.'
    )
  _check_supported(experiment)
  base = pretrain.read_semantic_ids(workdir)
  before = catalogue(workdir)
  _check_base(before.added, base, path_of(workdir))
  workdir_lib.check_reachable(os.fspath(path))
  frame = tables.read_items(
    os.fspath(path),
    experiment.data.tables if experiment.data.source == 'tables' else None,
  )
  known = set(before.item_ids.tolist())
  ids = frame['item_id'].to_list()
  rows = [row for row, item in enumerate(ids) if item not in known]
  if len(rows) < len(ids):
    logging.info(
      '%d of %d items have a semantic ID already and keep it',
      len(ids) - len(rows),
      len(ids),
    )
  if not rows:
    return None
  frame = frame[rows]
  titles = frame['title'].fill_null(frame['item_id']).to_list()
  view = item_content.DatasetView(
    item_ids=np.array(frame['item_id'].to_list(), dtype=str),
    texts=frame['text'].fill_null(frame['title']).fill_null('').to_list(),
    categories=frame['categories'].to_list(),
    offsets=np.zeros(1, np.int64),
    items=np.zeros(0, np.int32),
  )
  with (
    workdir.require(workdir.embeddings, 'embed').open('rb') as file,
    np.load(file) as arrays,
  ):
    stored = arrays['embeddings'].astype(np.float32)
  found = new_items.vectors(
    experiment.embed.parts,
    item_content.read_view(workdir.data),
    view,
    stored=stored,
    seed=experiment.seed,
  )
  existing = (
    base if before.added is None else new_items.extended(base, before.added)
  )
  codebooks, points = tokenize.codebooks_of(experiment, workdir, stored)
  if share_ids:
    resolution = collisions.share_ids(
      codebooks, points(found.values), existing=existing
    )
  else:
    resolution = collisions.encode_new_items(
      codebooks,
      points(found.values),
      existing=existing,
      policy=experiment.tokenizer.collision,
    )
  version = 1 if before.added is None else int(before.added.version[-1]) + 1
  added = new_items.AddedItems(
    base=base.digest(),
    item_ids=view.item_ids,
    titles=titles,
    codes=resolution.ids.codes[existing.num_items :],
    rank_in_bucket=resolution.ids.rank_in_bucket[existing.num_items :],
    version=np.full(len(titles), version, np.int32),
    vectors=found.values,
  )
  new_items.write(
    path_of(workdir),
    added if before.added is None else new_items.joined(before.added, added),
  )
  _print(added, before.titles, found.nearest, resolution)
  return added


def _check_supported(experiment: config_lib.Experiment) -> None:
  if experiment.architecture != 'onerec':
    raise ValueError(
      f'architecture={experiment.architecture!r} has an embedding per item,'
      " which only training gives: items can be added to 'onerec', whose"
      ' vocabulary is codes.'
    )
  if experiment.model.encoder != 'history':
    raise ValueError(
      f'model.encoder={experiment.model.encoder!r} has an embedding per item,'
      " which only training gives: items can be added with 'history'."
    )
  if experiment.embed.alignment.enabled:
    raise ValueError(
      'embed.alignment learns the item vectors from behaviour, which new items'
      ' do not have: items can be added where embed.alignment.enabled=False.'
    )
  if jax.process_count() > 1:
    raise ValueError(
      'add-items runs in one process: start it on one host alone.'
    )


def _check_base(
  added: new_items.AddedItems | None, ids: table.SemanticIds, path: epath.Path
) -> None:
  if added is not None and added.base != ids.digest():
    raise ValueError(
      f'{path} holds items that were added to other semantic IDs (digest'
      f' {added.base}, the run has {ids.digest()}): delete it and add them'
      ' again with add-items.'
    )


def _print(added, old_titles, nearest, resolution) -> None:
  last = added.version[-1]
  shown = rich.table.Table(
    title=f'{len(added.titles):,} items added, version {last}',
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
  )
  for name in ('item', 'title', 'semantic ID', 'most like'):
    shown.add_column(name)
  for row in range(min(_SHOWN, len(added.titles))):
    shown.add_row(
      rich.markup.escape(str(added.item_ids[row])),
      rich.markup.escape(added.titles[row]),
      ' '.join(map(str, added.codes[row].tolist())),
      rich.markup.escape(old_titles[nearest[row]]),
    )
  console = rich.console.Console()
  console.print(shown)
  if len(added.titles) > _SHOWN:
    console.print(f'  … and {len(added.titles) - _SHOWN:,} more')
  if resolution.moved:
    console.print(
      f'{resolution.moved:,} took the nearest free code of the last level.'
    )
  if resolution.unresolved:
    console.print(
      f'{resolution.unresolved:,} share an ID with another item: no code was'
      ' free behind their prefix.'
    )


# --- Serving ----------------------------------------------------------------


def serve(
  trained: trained_lib.Trained, workdir: workdir_lib.Workdir
) -> tuple[trained_lib.Trained, Catalogue]:
  """Returns the model with the added items in its catalogue, and the names.

  Embeddings of whole IDs that no item of the training has start where those
  of the training started, at what the codes leave over of the vector.

  Args:
    trained: of the run.
    workdir: of the run.

  Raises:
    ValueError: the items were added to other semantic IDs.
  """
  items = catalogue(workdir)
  if items.added is None:
    return trained, items
  _check_supported(trained.experiment)
  _check_base(items.added, trained.ids, path_of(workdir))
  logging.info(
    '%d items were added to the %d of the training (version %d)',
    len(items.added.titles),
    trained.ids.num_items,
    items.added.version[-1],
  )
  starts = starting_vectors.read(
    trained.experiment, workdir, trained.ids, trained.model.vocabulary
  )
  codes, vectors = items.added.codes, items.added.vectors

  def change(params: Any) -> Any:
    if starts is None:
      return params
    return starting_vectors.with_new_items(
      params, starts, workdir, codes, vectors
    )

  extended = new_items.extended(trained.ids, items.added)
  return served.extended(trained, extended, change), items
