"""The pathways of the technical report: a user as one sequence of tokens.

One token for the user, one per event of the short and the positive pathway,
a fixed number for the lifelong one.  What they attend to is
pathway_encoder.py's business.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config as config_lib
from onerec_jax.model import event_embedding
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.model import qformer

_SLOPE = 0.01  # of the LeakyReLU below 0; the paper gives none

ItemVectors = Callable[[jax.Array], jax.Array]  # items [...] -> [..., D]


class Tokens(NamedTuple):
  """Input of the encoder, before positions are added."""

  states: Float[Array, 'B S D']
  mask: Bool[Array, 'B S']  # True: a real token


def num_tokens(config: config_lib.PathwaysConfig) -> int:
  """Returns S: 1 + short + positive + lifelong queries."""
  lifelong = config.lifelong_queries if config.lifelong_length else 0
  return 1 + config.short_length + config.positive_length + lifelong


class PathwayMLP(nn.Module):
  """Dense, LeakyReLU, Dense: from concatenated features to D."""

  input_dim: int
  hidden_dim: int
  embed_dim: int  # D, of the output

  def setup(self) -> None:
    self.wi = parameters.declare(
      self,
      'wi',
      (self.input_dim, self.hidden_dim),
      (None, 'embed'),
      parameters.Initializer(stddev=self.input_dim**-0.5),
    )
    self.wo = parameters.declare(
      self,
      'wo',
      (self.hidden_dim, self.embed_dim),
      ('mlp', 'embed'),
      parameters.Initializer(stddev=self.hidden_dim**-0.5),
    )

  def __call__(self, x: Float[Array, 'B N F']) -> Float[Array, 'B N D']:
    hidden = jnp.einsum('bnf,fd->bnd', x, self.wi.astype(x.dtype))
    hidden = jax.nn.leaky_relu(hidden, _SLOPE)
    return jnp.einsum('bnd,de->bne', hidden, self.wo.astype(x.dtype))


class Pathways(nn.Module):
  """[h_user; h_short; h_positive; h_lifelong].

    h_user     = MLP([user features, hashed user id])
    h_short    = MLP([item, item features, numbers, age, labels])
    h_positive = MLP of the same embeddings
    h_lifelong = QFormer(MLP of the same, averaged over clusters)

  Each pathway has an MLP of its own; the embeddings are shared.  A user of
  whom nothing is known still is one learned token.

  Reference: OneRec technical report, arXiv:2506.13695, section 2.2.1.
  """

  config: config_lib.ModelConfig
  sizes: batch.FeatureSizes
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c, p = self.config, self.config.pathways
    embed = c.embed_dim
    hidden = p.hidden_dim or embed
    self.users = event_embedding.UserEmbedding(p, self.sizes)
    if self.users.dim:
      self.user_mlp = PathwayMLP(self.users.dim, hidden, embed)
    else:
      self.user_token = parameters.declare(
        self,
        'user_token',
        (1, embed),
        (None, 'embed'),
        parameters.Initializer(stddev=1.0),
      )
    if p.item_input == 'item_id':
      self.item_table = parameters.declare(
        self,
        'item_table',
        (self.sizes.num_items, embed),
        ('vocab', 'embed'),
        parameters.Initializer(stddev=1.0),
      )
    self.events = event_embedding.EventEmbedding(p, self.sizes)
    width = embed + self.events.dim
    if p.short_length:
      self.short_mlp = PathwayMLP(width, hidden, embed)
    if p.positive_length:
      self.positive_mlp = PathwayMLP(width, hidden, embed)
    if p.lifelong_length:
      self.lifelong_mlp = PathwayMLP(width, hidden, embed)
      self.lifelong_queries = qformer.QFormer(
        num_queries=p.lifelong_queries,
        dim=embed,
        num_layers=p.lifelong_layers,
        num_heads=c.num_heads,
        mlp_dim=p.hidden_dim or c.mlp_dim,
        compute_dtype=c.compute_dtype,
      )

  def __call__(
    self,
    context: batch.UserContext,
    user: Int[Array, ' B'],
    item_vectors_of: ItemVectors,
    features: batch.ItemFeatures,
  ) -> Tokens:
    """Returns the tokens in the compute dtype, 0 where masked.

    Args:
      context: pathways of the configured lengths.
      user: dense user index, read only with user_id_buckets. [B]
      item_vectors_of: vectors of items; not called with item_input='item_id'.
      features: values of all items.

    Raises:
      ValueError: a pathway is missing, or has another length.
    """
    p = self.config.pathways
    parts = [self._user(context, user)]
    for name, events, length in (
      ('short', context.short, p.short_length),
      ('positive', context.positive, p.positive_length),
      ('lifelong', context.lifelong, p.lifelong_length),
    ):
      given = 0 if events is None else events.mask.shape[1]
      if given != length:
        raise ValueError(
          f'The {name} pathway has {given} events, model.pathways.{name}_length'
          f'={length}: the context was made with other settings.'
        )
      if events is not None:
        x = self._embed(events, item_vectors_of, features)
        parts.append(self._tokens(name, x, events.mask))
    return Tokens(
      jnp.concatenate([part.states for part in parts], axis=1),
      jnp.concatenate([part.mask for part in parts], axis=1),
    )

  def _user(self, context: batch.UserContext, user: jax.Array) -> Tokens:
    rows = user.shape[0]
    if self.users.dim:
      x = self.users(context.features, user)[:, None]
      x = self.user_mlp(x.astype(self.config.compute_dtype))
    else:
      x = self.user_token.astype(self.config.compute_dtype)
      x = jnp.broadcast_to(x[None], (rows, 1, self.config.embed_dim))
    return Tokens(x, jnp.ones((rows, 1), bool))

  def _embed(
    self,
    events: batch.EventSequence,
    item_vectors_of: ItemVectors,
    features: batch.ItemFeatures,
  ) -> jax.Array:
    if self.config.pathways.item_input == 'item_id':
      vectors = self.item_table[events.items]
    else:
      vectors = item_vectors_of(events.items)
    vectors = vectors.astype(self.config.compute_dtype)
    x = self.events(events, vectors, features)
    return layers.shard_batch(x, self.mesh)

  def _tokens(self, name: str, x: jax.Array, mask: jax.Array) -> Tokens:
    if name == 'short':
      x = self.short_mlp(x)
    elif name == 'positive':
      x = self.positive_mlp(x)
    else:
      x = self.lifelong_queries(self.lifelong_mlp(x), mask)
      # Queries are the user's, so long as he has a cluster at all.
      mask = jnp.any(mask, axis=1, keepdims=True)
      mask = jnp.broadcast_to(mask, x.shape[:2])
    return Tokens(jnp.where(mask[..., None], x, 0), mask)
