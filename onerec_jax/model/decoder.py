"""Decoder: causal self-attention, cross-attention and (MoE) feed-forward."""

import functools
from typing import Literal
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
from onerec_jax.model import history_encoder
from onerec_jax.model import layers
from onerec_jax.model import moe as moe_module
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.ops import dropout

# Dropout sites of one layer: weights and output of self-attention, weights and
# output of cross-attention, hidden units (dense only), feed-forward output.
SITES = 6


class Context(NamedTuple):
  """What every decoding step reads; computed once, shared by all beams."""

  key: Float[Array, 'layers B S H K']  # of the encoder states
  value: Float[Array, 'layers B S H K']
  mask: Bool[Array, 'B S']  # True: a real encoder token
  prefix_key: Float[Array, 'layers B P H K']  # of the tokens decoded before
  prefix_value: Float[Array, 'layers B P H K']
  prefix_mask: Bool[Array, 'B P']  # True: a real decoder token


class DecoderCache(NamedTuple):
  """Self-attention keys and values of the tokens decoded so far."""

  key: Float[Array, 'layers B W T H K']
  value: Float[Array, 'layers B W T H K']


class DecoderLayer(nn.Module):
  """Pre-norm self-attention, cross-attention and feed-forward or experts."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.attention_norm = layers.RMSNorm(c.embed_dim)
    self.attention = attention_modules.SelfAttention(c)
    self.cross_norm = layers.RMSNorm(c.embed_dim)
    self.cross = attention_modules.CrossAttention(c)
    self.mlp_norm = layers.RMSNorm(c.embed_dim)
    if c.moe.enabled:
      self.experts = moe_module.MoEFeedForward(c, self.mesh)
    else:
      self.mlp = layers.FeedForward(c)

  def _feed_forward(
    self,
    x: jax.Array,
    token_mask: jax.Array,
    router_bias: jax.Array,
    seed: jax.Array | None,
    *,
    exchange: Literal['all_gather', 'all_to_all'] = 'all_gather',
  ) -> tuple[jax.Array, moe_module.RouterStats]:
    normed = self.mlp_norm(x)
    if self.config.moe.enabled:
      return self.experts(normed, token_mask, router_bias, exchange=exchange)
    return self.mlp(normed, seed), moe_module.RouterStats(
      jnp.zeros_like(router_bias), jnp.zeros(())
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    seeds: jax.Array | None,
    router_bias: Float[Array, ' E'],
    self_bias: Float[Array, '#B #H T T'],
    encoded: history_encoder.Encoded,
    token_mask: Bool[Array, 'B T'],
  ) -> tuple[Float[Array, 'B T D'], moe_module.RouterStats]:
    """Returns the next states and the router's counts."""
    x, stats, _ = self._forward(
      x,
      seeds,
      router_bias,
      self_bias,
      encoded,
      token_mask,
      exchange=self.config.moe.exchange,
    )
    return x, stats

  def _forward(
    self,
    x: jax.Array,
    seeds: jax.Array | None,
    router_bias: jax.Array,
    self_bias: jax.Array,
    encoded: history_encoder.Encoded,
    token_mask: jax.Array,
    *,
    width: int = 1,
    exchange: Literal['all_gather', 'all_to_all'] = 'all_gather',
  ) -> tuple[jax.Array, moe_module.RouterStats, attention_modules.KeyValues]:
    """Applies the layer; `width` sequences lie side by side on axis 1.

    They attend to themselves apart and to the encoder together, so that its
    states are never repeated.
    """
    sites = [None] * SITES if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    apart = (x.shape[0] * width, x.shape[1] // width, x.shape[2])
    y, key_values = self.attention.with_key_values(
      self.attention_norm(x).reshape(apart), self_bias, sites[0]
    )
    y = drop(y.reshape(x.shape), sites[1])
    x = layers.shard_batch(x + y, self.mesh)
    y = self.cross(
      self.cross_norm(x),
      encoded.states,
      attention.key_bias(encoded.mask),
      sites[2],
    )
    x = layers.shard_batch(x + drop(y, sites[3]), self.mesh)
    y, stats = self._feed_forward(
      x, token_mask, router_bias, sites[4], exchange=exchange
    )
    x = layers.shard_batch(x + drop(y, sites[5]), self.mesh)
    return x, stats, key_values

  def prefill(
    self,
    x: Float[Array, 'B P D'],
    router_bias: Float[Array, ' E'],
    self_bias: Float[Array, '#B #H P P'],
    encoded: history_encoder.Encoded,
    token_mask: Bool[Array, 'B P'],
  ) -> tuple[Float[Array, 'B P D'], attention_modules.KeyValues]:
    """Returns the next states and the self-attention keys and values."""
    x, _, key_values = self._forward(
      x, None, router_bias, self_bias, encoded, token_mask
    )
    return x, key_values

  def score(
    self,
    x: Float[Array, 'B W T D'],
    router_bias: Float[Array, ' E'],
    self_bias: Float[Array, '#R #H T T'],
    encoded: history_encoder.Encoded,
    token_mask: Bool[Array, 'B W T'],
  ) -> tuple[Float[Array, 'B W T D'], None]:
    """Returns the next states of W sequences per user; self_bias R: B * W."""
    batch, width, length, dim = x.shape
    y, _, _ = self._forward(
      x.reshape(batch, width * length, dim),
      None,
      router_bias,
      self_bias,
      encoded,
      token_mask.reshape(batch, width * length),
      width=width,
    )
    return y.reshape(x.shape), None

  def project(
    self, carry: None, states: Float[Array, 'B S D']
  ) -> tuple[None, attention_modules.KeyValues]:
    """Returns this layer's cross-attention keys and values."""
    return carry, self.cross.project(states)

  def step(
    self,
    carry: tuple[
      Float[Array, 'B W D'], attention_modules.KeyValues, Int[Array, '']
    ],
    context: attention_modules.KeyValues,
    prefix: attention_modules.KeyValues,
    router_bias: Float[Array, ' E'],
    position: Int[Array, ''],
    self_bias: Float[Array, 'H T'],
    prefix_bias: Float[Array, 'B H P'],
    cross_bias: Float[Array, '#B #H #W S'],
  ) -> tuple[
    tuple[Float[Array, 'B W D'], attention_modules.KeyValues, Int[Array, '']],
    None,
  ]:
    """Advances every beam by one token.

    Args:
      carry: the states, the cache of all layers, and which layer this is.
      context: keys and values of the encoder states.
      prefix: keys and values of the tokens before all cached ones.
      router_bias: frozen. [E]
      position: where the token is written.
      self_bias: of the new position to each position.
      prefix_bias: of the new position to the prefix.
      cross_bias: to the encoder states.
    """
    x, cache, layer = carry
    y, cache = self.attention.step(
      self.attention_norm(x),
      cache,
      layer,
      prefix,
      position,
      self_bias,
      prefix_bias,
    )
    x = x + y
    x = x + self.cross.step(self.cross_norm(x), context, cross_bias)
    token_mask = jnp.ones(x.shape[:2], bool)
    y, _ = self._feed_forward(x, token_mask, router_bias, None)
    return (x + y, cache, layer + 1), None


class Decoder(nn.Module):
  """The decoder stack: relative positions shared by all layers."""

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
    layer = DecoderLayer
    if c.remat:
      layer = nn.remat(layer, prevent_cse=not c.scan_layers)
    scanned = dict(
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=c.decoder_layers,
      unroll=1 if c.scan_layers else c.decoder_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
      check_constancy_invariants=False,  # would trace the layers twice
    )
    each, shared = 0, nn.broadcast
    self.layers = nn.scan(
      layer,
      methods={  # type: ignore[arg-type] # a dict gives each method its own axes
        '__call__': dict(in_axes=(each, each, *[shared] * 3), **scanned),
        'project': dict(in_axes=shared, **scanned),
        'prefill': dict(in_axes=(each, *[shared] * 3), **scanned),
        'score': dict(in_axes=(each, *[shared] * 3), **scanned),
        'step': dict(in_axes=(*[each] * 3, *[shared] * 4), **scanned),
      },
    )(c, self.mesh)
    self.final_norm = layers.RMSNorm(c.embed_dim)

  def _self_bias(self, length: int) -> Float[Array, 'H T T']:
    buckets = attention.relative_buckets(
      length,
      length,
      bidirectional=False,
      num_buckets=self.config.relative_buckets,
      max_distance=self.config.relative_max_distance,
    )
    bias = attention.relative_bias(self.relative_bias, buckets)
    return bias + attention.causal_bias(length)[None]

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    encoded: history_encoder.Encoded,
    token_mask: Bool[Array, 'B T'],
    router_bias: Float[Array, 'layers E'],
    seeds: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[Float[Array, 'B T D'], moe_module.RouterStats]:
    """Decodes whole target sequences (teacher forcing).

    Args:
      x: token embeddings in the compute dtype. [B, T, D]
      encoded: the history.
      token_mask: False: padding, kept out of the experts. [B, T]
      router_bias: selection bias of every layer. [layers, E]
      seeds: dropout seeds of the two ends [2] and the layers [layers, SITES];
        None: no dropout.

    Returns:
      Normalised states and the router's counts per layer.
    """
    ends, inner = (None, None) if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    x = drop(x, None if ends is None else ends[0])
    x, stats = self.layers(
      x,
      inner,
      router_bias,
      self._self_bias(x.shape[1])[None],
      encoded,
      token_mask,
    )
    return drop(self.final_norm(x), None if ends is None else ends[1]), stats

  def score(
    self,
    x: Float[Array, 'B W T D'],
    encoded: history_encoder.Encoded,
    token_mask: Bool[Array, 'B W T'],
    router_bias: Float[Array, 'layers E'],
  ) -> Float[Array, 'B W T D']:
    """Decodes W whole sequences per user, without dropout.

    Args:
      x: token embeddings in the compute dtype. [B, W, T, D]
      encoded: the history, read by all W sequences.
      token_mask: False: padding, never attended to. [B, W, T]
      router_bias: frozen. [layers, E]
    """
    bias = self._self_bias(x.shape[2])[None]
    rows = token_mask.reshape(-1, x.shape[2])
    x, _ = self.layers.score(
      x, router_bias, bias + attention.key_bias(rows), encoded, token_mask
    )
    return self.final_norm(x)

  def start(
    self,
    encoded: history_encoder.Encoded,
    prefix: Float[Array, 'B P D'],
    prefix_mask: Bool[Array, 'B P'],
    router_bias: Float[Array, 'layers E'],
  ) -> Context:
    """Returns what all steps share.

    Args:
      encoded: the history.
      prefix: embeddings of tokens that count as decoded already, padding
        first; none: P = 0. [B, P, D]
      prefix_mask: False: padding. [B, P]
      router_bias: frozen. [layers, E]
    """
    _, projected = self.layers.project(None, encoded.states)
    c, (batch, length) = self.config, prefix_mask.shape
    if length:
      bias = self._self_bias(length)[None] + attention.key_bias(prefix_mask)
      _, before = self.layers.prefill(
        prefix, router_bias, bias, encoded, prefix_mask
      )
    else:
      shape = (c.decoder_layers, batch, 0, c.num_heads, c.head_dim)
      none = jnp.zeros(shape, encoded.states.dtype)
      before = attention_modules.KeyValues(none, none)
    return Context(
      projected.keys,
      projected.values,
      encoded.mask,
      before.keys,
      before.values,
      prefix_mask,
    )

  def step(
    self,
    x: Float[Array, 'B W D'],
    position: Int[Array, ''],
    cache: DecoderCache,
    context: Context,
    router_bias: Float[Array, 'layers E'],
  ) -> tuple[Float[Array, 'B W D'], DecoderCache]:
    """Returns normalised states of the new tokens, and the next cache."""
    before = context.prefix_mask.shape[1]
    bias = jax.lax.dynamic_index_in_dim(
      self._self_bias(before + cache.key.shape[3]),
      before + position,
      axis=1,
      keepdims=False,
    )
    prefix_bias = (
      bias[None, :, :before] + attention.key_bias(context.prefix_mask)[:, 0]
    )
    (x, new, _), _ = self.layers.step(
      (
        x,
        attention_modules.KeyValues(cache.key, cache.value),
        jnp.zeros((), jnp.int32),
      ),
      attention_modules.KeyValues(context.key, context.value),
      attention_modules.KeyValues(context.prefix_key, context.prefix_value),
      router_bias,
      position,
      bias[:, before:],
      prefix_bias,
      attention.key_bias(context.mask),
    )
    return self.final_norm(x), DecoderCache(new.keys, new.values)
