"""What the stages need of the item-level baselines: catalogue and model.

Reads items.parquet.  Trains nothing and writes nothing.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.model import sequential


class ItemCatalogue(NamedTuple):
  """The items that a baseline knows."""

  num_items: int
  num_attributes: int  # distinct ones; 0 unless fdsa
  attributes: sequential.ItemAttributes | None  # NumPy; fdsa only


def read_catalogue(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> ItemCatalogue:
  """Returns the work directory's items.

  Raises:
    FileNotFoundError: the stage `prepare` has not run.
    ValueError: fdsa, but no item has a category.
  """
  if experiment.architecture != 'fdsa':
    return ItemCatalogue(catalog.num_items(workdir.data), 0, None)
  categories = catalog.item_categories(workdir.data)
  attributes, count = attribute_table(
    categories, max_attributes=experiment.sequential.max_attributes
  )
  if not count:
    raise ValueError(
      f"architecture='fdsa' reads item attributes, but no item in"
      f' {workdir.data / "items.parquet"} has a category: name the columns in'
      " data.tables.item_category_columns, or use architecture='sasrec'."
    )
  return ItemCatalogue(len(categories), count, attributes)


def attribute_table(
  categories: Sequence[Sequence[str]], *, max_attributes: int
) -> tuple[sequential.ItemAttributes, int]:
  """Returns the attributes of every item as numbers, and how many there are.

  Args:
    categories: of each item, general ones first; repeats count once.
    max_attributes: attributes kept per item (F at most), the specific ones.
  """
  # A dictionary keeps the order and drops repeats.
  kept = [list(dict.fromkeys(c))[-max_attributes:] for c in categories]
  number = {
    name: i for i, name in enumerate(sorted({n for k in kept for n in k}))
  }
  width = max([len(k) for k in kept], default=0)
  ids = np.zeros((len(kept), max(width, 1)), np.int32)
  mask = np.zeros(ids.shape, bool)
  for row, names in enumerate(kept):
    ids[row, : len(names)] = [number[n] for n in names]
    mask[row, : len(names)] = True
  return sequential.ItemAttributes(ids, mask), len(number)


def make_model(
  experiment: config.Experiment,
  catalogue: ItemCatalogue,
  mesh: jax.sharding.Mesh | None,
) -> sequential.SequenceModel:
  """Returns the baseline that an experiment trains on these items.

  Raises:
    ValueError: the settings do not fit.
  """
  kind = experiment.architecture
  assert kind != 'onerec'
  data = experiment.data
  max_length = data.history_length + data.sessions.items_per_session
  # Raises here rather than inside a module's setup.
  sequential.stack_config(experiment.sequential, kind, max_length)
  return sequential.SequenceModel(
    kind=kind,
    config=experiment.sequential,
    num_items=catalogue.num_items,
    max_length=max_length,
    num_attributes=catalogue.num_attributes,
    dropout_bits=experiment.pretrain.dropout_bits,
    mesh=mesh,
  )


def check_fits(
  model: sequential.SequenceModel, params: Mapping[str, Any], where: str
) -> None:
  """Raises ValueError if `params` were trained on another catalogue.

  Args:
    model: made for the present catalogue.
    params: restored.
    where: the checkpoint, for the error.
  """
  pairs = [('items', params['table'], model.num_items)]
  if model.kind == 'fdsa':
    attributes = params['pooling']['embedding']
    pairs.append(('item attributes', attributes, model.num_attributes))
  for what, table, now in pairs:
    if table.shape[0] != now:
      raise ValueError(
        f'{where} was trained on {table.shape[0]} {what}, the work directory'
        f' now holds {now}: put back the data it was trained on, or use a new'
        ' --workdir and train again.'
      )


def train_flops(
  model: sequential.SequenceModel, batch: batch_lib.SessionBatch
) -> float:
  """Returns the model FLOPs of a training step on these rows, 3 x forward."""
  settings = model.config
  rows, history = batch.history_items.shape
  length = history + batch.target_items.shape[1]
  predicted = float(np.sum(batch.target_mask))
  if settings.predict_history:
    predicted += float(np.sum(batch.history_mask))
  if model.kind == 'bert4rec':
    predicted *= settings.mask_share
  per_place = model.num_items
  if settings.loss == 'bce':
    per_place = 1 + settings.num_negatives
  return 3 * sequential.forward_flops(
    model, rows=rows, length=length, scores=predicted * per_place
  )
