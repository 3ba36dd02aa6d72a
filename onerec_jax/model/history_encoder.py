"""History as tokens of semantic IDs, and a T5-style encoder over them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.ops import dropout
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

# Dropout sites of one layer: attention weights, attention output, hidden
# units, feed-forward output.
SITES = 4


class Encoded(NamedTuple):
  """Encoder output."""

  states: Float[Array, 'B S D']  # zero at padding
  mask: Bool[Array, 'B S']  # True: a real token


class EncoderLayer(nn.Module):
  """Pre-norm self-attention and feed-forward."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    embed = self.config.embed_dim
    self.attention_norm = layers.RMSNorm(embed)
    self.attention = attention_modules.SelfAttention(self.config, self.mesh)
    self.mlp_norm = layers.RMSNorm(embed)
    self.mlp = layers.FeedForward(self.config)

  def __call__(
    self,
    x: Float[Array, 'B S D'],
    seeds: jax.Array | None,
    bias: Float[Array, '#B #H S S'] | attention_modules.TokenBias,
  ) -> tuple[Float[Array, 'B S D'], None]:
    """Returns the next states (and None, for nn.scan)."""
    sites = [None] * SITES if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    y = self.attention(self.attention_norm(x), bias, sites[0])
    x = layers.shard_batch(x + drop(y, sites[1]), self.mesh)
    y = self.mlp(self.mlp_norm(x), sites[2])
    return layers.shard_batch(x + drop(y, sites[3]), self.mesh), None


class HistoryEncoder(nn.Module):
  """The encoder stack: relative positions shared by all layers."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.relative_bias = parameters.declare(
      self,
      'relative_bias',
      (c.relative_buckets, c.num_heads),
      ('buckets', 'heads'),
      parameters.Initializer(stddev=c.embed_dim**-0.5),
    )
    layer = EncoderLayer
    if c.remat:
      layer = nn.remat(layer, prevent_cse=not c.scan_layers)
    self.layers = nn.scan(
      layer,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),  # type: ignore[arg-type] # a tree of axes
      length=c.encoder_layers,
      unroll=1 if c.scan_layers else c.encoder_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
      check_constancy_invariants=False,  # would trace the layers twice
    )(c, self.mesh)
    self.final_norm = layers.RMSNorm(c.embed_dim)

  def __call__(
    self,
    x: Float[Array, 'B S D'],
    mask: Bool[Array, 'B S'],
    seeds: tuple[jax.Array, jax.Array] | None,
  ) -> Encoded:
    """Encodes token embeddings.

    Args:
      x: embeddings in the compute dtype. [B, S, D]
      mask: False: padding, neither attended to nor passed on. [B, S]
      seeds: dropout seeds of the two ends [2] and the layers [layers, SITES];
        None: no dropout.
    """
    ends, inner = (None, None) if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    distances = attention.distance_bias(
      self.relative_bias,
      x.shape[1],
      max_distance=self.config.relative_max_distance,
    )
    bias = attention_modules.TokenBias(mask, distances)
    x = drop(x, None if ends is None else ends[0])
    x, _ = self.layers(x, inner, bias)
    x = drop(self.final_norm(x), None if ends is None else ends[1])
    # Zeros make a fully masked history add nothing to the decoder.
    return Encoded(jnp.where(mask[..., None], x, 0), mask)


def history_tokens(
  vocabulary: vocabulary_lib.Vocabulary,
  codes: Int[Array, 'B N L'],
  mask: Bool[Array, 'B N'],
  user: Int[Array, ' B'],
  *,
  separator: bool,
) -> tuple[Int[Array, 'B S'], Bool[Array, 'B S']]:
  """Returns the encoder's tokens and their mask.

  [user bucket,] s_1^1 … s_1^L [SEP] s_2^1 …; padding is PAD and masked.

  Args:
    vocabulary: of codes and user buckets.
    codes: of the history, oldest first. [B, N, L]
    mask: False: padding. [B, N]
    user: dense; read with user buckets only. [B]
    separator: whether SEP ends every item.
  """
  batch = codes.shape[0]
  tokens = vocabulary.tokens(codes)
  if separator:
    end = jnp.full_like(tokens[..., :1], vocabulary_lib.SEP)
    tokens = jnp.concatenate([tokens, end], axis=-1)
  tokens = jnp.where(mask[..., None], tokens, vocabulary_lib.PAD)
  token_mask = jnp.repeat(mask, tokens.shape[-1], axis=1)
  tokens = tokens.reshape(batch, -1)
  if vocabulary.user_buckets:
    # Fibonacci hashing: neighbouring user ids spread over the buckets.
    mixed = (user.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)) >> 8
    bucket = mixed % jnp.uint32(vocabulary.user_buckets)
    first = vocabulary.user_offset + bucket.astype(tokens.dtype)
    tokens = jnp.concatenate([first[:, None], tokens], axis=1)
    token_mask = jnp.concatenate(
      [jnp.ones((batch, 1), bool), token_mask], axis=1
    )
  return tokens, token_mask
