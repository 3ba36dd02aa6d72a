"""Vectors of candidate items and of users, for the P-Score model."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import event_embedding
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


class ItemVectors(nn.Module):
  """v = Σ_l code embedding + item embedding + s Σ_q item feature embedding.

  s makes v start with unit variance.  The item embedding starts at 0, so that
  an item that is hardly ever shown is what its codes and features say.
  """

  embed_dim: int
  pathways: config_lib.PathwaysConfig
  sizes: batch_lib.FeatureSizes
  vocabulary: vocabulary_lib.Vocabulary

  def setup(self) -> None:
    parts = self.vocabulary.levels + len(self.pathways.item_features)
    self.scale = parts**-0.5
    self.code_embedding = parameters.declare(
      self,
      'code_embedding',
      (self.vocabulary.size, self.embed_dim),
      ('vocab', 'embed'),
      parameters.Initializer(stddev=self.scale),
    )
    self.item_embedding = parameters.declare(
      self,
      'item_embedding',
      (self.sizes.num_items, self.embed_dim),
      ('vocab', 'embed'),
      parameters.Initializer(stddev=0.0),
    )
    self.features = event_embedding.ItemFeatureEmbedding(
      self.pathways, self.sizes
    )

  def __call__(
    self, items: Int[Array, '*b'], catalogue: batch_lib.Catalogue
  ) -> Float[Array, '*b D']:
    tokens = self.vocabulary.tokens(catalogue.codes[items])
    x = jnp.sum(self.code_embedding[tokens], axis=-2)
    x = x + self.item_embedding[items]
    if self.pathways.item_features:
      assert catalogue.features is not None
      for feature in self.features(items, catalogue.features):
        x = x + self.scale * feature
    return x


class UserVector(nn.Module):
  """Linear map of the user's features; without any, zeros."""

  embed_dim: int
  pathways: config_lib.PathwaysConfig
  sizes: batch_lib.FeatureSizes

  def setup(self) -> None:
    features = event_embedding.UserEmbedding(self.pathways, self.sizes)
    width = features.dim
    if width:
      self.features = features
      self.kernel = parameters.declare(
        self,
        'kernel',
        (width, self.embed_dim),
        ('embed', 'mlp'),
        parameters.Initializer(stddev=width**-0.5),
      )

  def __call__(
    self, features: Int[Array, 'B U'], user: Int[Array, ' B']
  ) -> Float[Array, 'B D']:
    if not self.pathways.user_features:
      return jnp.zeros((len(user), self.embed_dim))
    return jnp.einsum('bf,fd->bd', self.features(features, user), self.kernel)
