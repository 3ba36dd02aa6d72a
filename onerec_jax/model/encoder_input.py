"""What the encoder is told of a user, whichever encoder it is."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib


class EncoderInput(NamedTuple):
  """What is known of a user; made by `of_batch`."""

  codes: Int[Array, 'B N L']  # of the history, oldest first, pads at the end
  mask: Bool[Array, 'B N']  # False: padding
  user: Int[Array, ' B']  # dense; read with user buckets only
  # Read with encoder='pathways' only, which in turn reads no codes and mask.
  context: batch_lib.UserContext | None = None
  catalogue: batch_lib.Catalogue | None = None


def of_batch(
  users: batch_lib.SessionBatch, catalogue: batch_lib.Catalogue
) -> EncoderInput:
  """Returns what the encoder reads of a batch; filler rows know nothing."""
  return EncoderInput(
    catalogue.codes[users.history_items],
    users.history_mask & users.example_mask[:, None],
    users.user,
    users.context,
    catalogue,
  )


def zeros(
  config: config_lib.ModelConfig,
  sizes: batch_lib.FeatureSizes | None,
  *,
  levels: int,
  rows: int,
) -> EncoderInput:
  """Returns an input of the right structure, all zeros.

  Args:
    config: of the model.
    sizes: of the features; read with encoder='pathways' only.
    levels: codes per item.
    rows: users.
  """
  p, integer = config.pathways, jnp.int32

  def empty(*shape: int, dtype: Any = integer) -> jax.Array:
    return jnp.zeros((rows, *shape), dtype)

  def events(length: int, clusters: bool = False) -> Any:
    averaged = sum(f.average for f in p.item_features)
    values = max(
      (f.max_values for f in p.item_features if f.average), default=0
    )
    return batch_lib.EventSequence(
      items=empty(length),
      mask=empty(length, dtype=bool),
      age=empty(length),
      numbers=empty(length, len(p.event_features)),
      labels=empty(length, len(p.labels), dtype=jnp.float32),
      label_mask=empty(length, len(p.labels), dtype=bool),
      categories=empty(length, averaged, values) if clusters else None,
      category_weights=(
        empty(length, averaged, values, dtype=jnp.float32) if clusters else None
      ),
    )

  context = catalogue = None
  if config.encoder == 'pathways' and sizes is not None:
    context = batch_lib.UserContext(
      features=empty(len(p.user_features)),
      short=events(p.short_length) if p.short_length else None,
      positive=events(p.positive_length) if p.positive_length else None,
      lifelong=events(p.lifelong_length, True) if p.lifelong_length else None,
    )
    items = sizes.num_items
    features = (
      jnp.zeros((items, f.max_values), integer) for f in p.item_features
    )
    catalogue = batch_lib.Catalogue(
      jnp.zeros((items, levels), integer),
      batch_lib.ItemFeatures(tuple(features)),
    )
  return EncoderInput(
    empty(1, levels),
    jnp.ones((rows, 1), bool),
    empty(),
    context,
    catalogue,
  )
