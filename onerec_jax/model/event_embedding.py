"""Embeddings of users, items and events, concatenated feature by feature.

Shared by the encoder of the technical report and the P-Score model.  Tables
have a row 0 for "unknown"; ids that a table lacks count as unknown.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config as config_lib
from onerec_jax.model import parameters

_TABLE_AXES = ('vocab', 'embed')


def _table(module: nn.Module, name: str, rows: int, dim: int) -> jax.Array:
  init = parameters.Initializer(stddev=1.0)
  return parameters.declare(module, name, (rows, dim), _TABLE_AXES, init)


def _rows(
  table: Float[Array, 'V D'], ids: Int[Array, '*b']
) -> Float[Array, '*b D']:
  """Returns rows of a table; row 0 for ids that it lacks."""
  inside = (ids >= 0) & (ids < table.shape[0])
  return table[jnp.where(inside, ids, 0)]


class UserEmbedding(nn.Module):
  """The user's features side by side, and his hashed id at the end.

  An unknown feature has a learned vector of its own.
  """

  config: config_lib.PathwaysConfig
  sizes: batch.FeatureSizes

  @property
  def dim(self) -> int:
    """Width of the output; 0: nothing is known of users."""
    c = self.config
    features = sum(feature.dim for feature in c.user_features)
    return features + (c.user_id_dim if c.user_id_buckets else 0)

  def setup(self) -> None:
    c = self.config
    self.tables = [
      _table(self, f'feature_{u}', size, feature.dim)
      for u, (feature, size) in enumerate(
        zip(c.user_features, self.sizes.users, strict=True)
      )
    ]
    if c.user_id_buckets:
      self.user_id = _table(self, 'user_id', c.user_id_buckets, c.user_id_dim)

  def __call__(
    self, features: Int[Array, 'B U'], user: Int[Array, ' B']
  ) -> Float[Array, 'B D']:
    """Returns the concatenated embeddings.

    Args:
      features: ids, 0: unknown. [B, U]
      user: dense user index, read only with user_id_buckets. [B]
    """
    parts = [_rows(t, features[:, u]) for u, t in enumerate(self.tables)]
    if self.config.user_id_buckets:
      # Fibonacci hashing: neighbouring user ids spread over the buckets.
      mixed = (user.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)) >> 8
      bucket = mixed % jnp.uint32(self.config.user_id_buckets)
      parts.append(self.user_id[bucket.astype(jnp.int32)])
    empty = jnp.zeros((features.shape[0], 0), jnp.float32)
    return jnp.concatenate([empty, *parts], axis=-1)


class ItemFeatureEmbedding(nn.Module):
  """One vector per item feature: the mean over the item's known values."""

  config: config_lib.PathwaysConfig
  sizes: batch.FeatureSizes

  def setup(self) -> None:
    self.tables = [
      _table(self, f'feature_{q}', size, feature.dim)
      for q, (feature, size) in enumerate(
        zip(self.config.item_features, self.sizes.items, strict=True)
      )
    ]

  def __call__(
    self, items: Int[Array, '*b'], features: batch.ItemFeatures
  ) -> list[Float[Array, '*b _']]:
    """Returns one array per config.ItemFeature, 0 where nothing is known.

    Args:
      items: dense. [...]
      features: values of all items.
    """
    result = []
    for number, values in enumerate(features.values):
      taken = jnp.asarray(values)[items]
      known = (taken > 0) & (taken < self.tables[number].shape[0])
      count = jnp.sum(known, axis=-1, keepdims=True)
      weights = known / jnp.maximum(count, 1)
      result.append(self.weighted(number, taken, weights.astype(jnp.float32)))
    return result

  def weighted(
    self, number: int, values: Int[Array, '*b K'], weights: Float[Array, '*b K']
  ) -> Float[Array, '*b D']:
    """Returns Σ_k w_k · embedding of value k, of one item feature.

    Args:
      number: which of config.item_features.
      values: those that are 0, or that the table lacks, add 0. [..., K]
      weights: [..., K]
    """
    table = self.tables[number]
    known = (values > 0) & (values < table.shape[0])
    weights = jnp.where(known, weights, 0)
    total = jnp.zeros((*values.shape[:-1], table.shape[1]), table.dtype)
    # One value at a time: K vectors per event would be much of the memory.
    for k in range(values.shape[-1]):
      total += weights[..., k, None] * _rows(table, values[..., k])
    return total


class EventEmbedding(nn.Module):
  """Everything known of an event, side by side.

    [item vector, item features, numbers, age, labels]

  Labels are a linear map of (happened, was logged), so that an unknown label
  differs from one that did not happen.
  """

  config: config_lib.PathwaysConfig
  sizes: batch.FeatureSizes

  @property
  def dim(self) -> int:
    """Width that is added to the item vector."""
    c = self.config
    return (
      sum(feature.dim for feature in c.item_features)
      + sum(feature.dim for feature in c.event_features)
      + c.age_dim
      + (c.label_dim if c.labels else 0)
    )

  def setup(self) -> None:
    c = self.config
    self.item_features = ItemFeatureEmbedding(c, self.sizes)
    self.numbers = [
      _table(self, f'number_{f}', 1 + feature.buckets, feature.dim)
      for f, feature in enumerate(c.event_features)
    ]
    if c.age_dim:
      self.age = _table(self, 'age', 1 + c.age_buckets, c.age_dim)
    if c.labels:
      self.labels = parameters.declare(
        self,
        'labels',
        (2, len(c.labels), c.label_dim),
        (None, None, 'embed'),
        parameters.Initializer(stddev=len(c.labels) ** -0.5),
      )

  def __call__(
    self,
    events: batch.EventSequence,
    item_vectors: Float[Array, 'B N D'],
    features: batch.ItemFeatures,
  ) -> Float[Array, 'B N _']:
    """Embeds events in the dtype of `item_vectors`; 0 where masked.

    Args:
      events: of one pathway; with `categories` they are clusters.
      item_vectors: of events.items. [B, N, D]
      features: values of all items.

    Returns:
      [B, N, D + dim]
    """
    c, dtype = self.config, item_vectors.dtype
    parts = self._item_features(events, features)
    parts += [
      _rows(t, events.numbers[..., f]) for f, t in enumerate(self.numbers)
    ]
    if c.age_dim:
      parts.append(_rows(self.age, events.age))
    if c.labels:
      logged = events.label_mask
      happened = jnp.where(logged, events.labels, 0)
      both = jnp.stack([happened, logged.astype(happened.dtype)], axis=-2)
      parts.append(jnp.einsum('bnta,tad->bnd', both, self.labels))
    parts = [item_vectors, *(part.astype(dtype) for part in parts)]
    x = jnp.concatenate(parts, axis=-1)
    return jnp.where(events.mask[..., None], x, 0)

  def _item_features(
    self, events: batch.EventSequence, features: batch.ItemFeatures
  ) -> list[jax.Array]:
    parts = self.item_features(events.items, features)
    if events.categories is None:
      return parts
    averaged = [q for q, f in enumerate(self.config.item_features) if f.average]
    for place, number in enumerate(averaged):
      parts[number] = self.item_features.weighted(
        number,
        events.categories[:, :, place],
        events.category_weights[:, :, place],
      )
    return parts
