"""Encoder of the technical report: full self-attention over all pathways."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.model import history_encoder
from onerec_jax.model import layers
from onerec_jax.model import moe
from onerec_jax.model import parameters
from onerec_jax.model import pathways
from onerec_jax.ops import dropout

# Dropout sites of one layer, as of the history encoder; experts have none.
SITES = history_encoder.SITES

Encoded = history_encoder.Encoded


def has_experts(config: config_lib.ModelConfig) -> bool:
  """Returns whether the encoder's feed-forwards are mixtures of experts."""
  return config.moe.enabled and config.moe.location == 'both'


class PathwayLayer(nn.Module):
  """Pre-norm self-attention and feed-forward or experts."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.attention_norm = layers.RMSNorm(c.embed_dim)
    self.attention = attention_modules.SelfAttention(c, self.mesh)
    self.mlp_norm = layers.RMSNorm(c.embed_dim)
    if has_experts(c):
      self.experts = moe.MoEFeedForward(c, self.mesh)
    else:
      self.mlp = layers.FeedForward(c)

  def __call__(
    self,
    x: Float[Array, 'B S D'],
    seeds: jax.Array | None,
    router_bias: Float[Array, ' E'] | None,
    mask: Bool[Array, 'B S'],
  ) -> tuple[Float[Array, 'B S D'], moe.RouterStats | None]:
    """Returns the next states and the router's counts, if there is one."""
    exchange = self.config.moe.exchange
    return self._forward(x, seeds, router_bias, mask, exchange)

  def dropless(
    self,
    x: Float[Array, 'B S D'],
    seeds: jax.Array | None,
    router_bias: Float[Array, ' E'] | None,
    mask: Bool[Array, 'B S'],
  ) -> tuple[Float[Array, 'B S D'], moe.RouterStats | None]:
    """As __call__, with room for every token at its experts."""
    return self._forward(x, seeds, router_bias, mask, 'all_gather')

  def _forward(
    self,
    x: jax.Array,
    seeds: jax.Array | None,
    router_bias: jax.Array | None,
    mask: jax.Array,
    exchange: Literal['all_gather', 'all_to_all'],
  ) -> tuple[jax.Array, moe.RouterStats | None]:
    sites = [None] * SITES if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    bias = attention_modules.TokenBias(mask, None)
    y = self.attention(self.attention_norm(x), bias, sites[0])
    x = layers.shard_batch(x + drop(y, sites[1]), self.mesh)
    y, stats = self.mlp_norm(x), None
    if router_bias is None:
      y = self.mlp(y, sites[2])
    else:
      y, stats = self.experts(y, mask, router_bias, exchange=exchange)
    return layers.shard_batch(x + drop(y, sites[3]), self.mesh), stats


class PathwayEncoder(nn.Module):
  """Pathways, learned positions, encoder layers and a final norm.

    z = [h_user; h_short; h_positive; h_lifelong] + e_pos
    z <- z + SelfAttn(RMSNorm(z));  z <- z + FFN(RMSNorm(z))

  Reference: OneRec technical report, arXiv:2506.13695, section 2.2.1; the
    final norm and the masked padding are ours.
  """

  config: config_lib.ModelConfig
  sizes: batch.FeatureSizes
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.pathways = pathways.Pathways(c, self.sizes, self.mesh)
    self.positions = parameters.declare(
      self,
      'positions',
      (pathways.num_tokens(c.pathways), c.embed_dim),
      (None, 'embed'),
      parameters.Initializer(stddev=0.1),
    )
    layer = PathwayLayer
    if c.remat:
      layer = nn.remat(
        layer,
        prevent_cse=not c.scan_layers,
        methods=['__call__', 'dropless'],
      )
    each, shared = 0, nn.broadcast
    scanned = dict(
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(each, each, shared),
      length=c.encoder_layers,
      unroll=1 if c.scan_layers else c.encoder_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
      check_constancy_invariants=False,  # would trace the layers twice
    )
    self.layers = nn.scan(
      layer,
      methods={'__call__': scanned, 'dropless': scanned},  # type: ignore[arg-type] # a dict gives each method its own axes
    )(c, self.mesh)
    self.final_norm = layers.RMSNorm(c.embed_dim)

  def __call__(
    self,
    context: batch.UserContext,
    user: Int[Array, ' B'],
    item_vectors_of: pathways.ItemVectors,
    features: batch.ItemFeatures,
    seeds: tuple[jax.Array, jax.Array] | None,
    router_bias: Float[Array, 'layers E'] | None,
    *,
    exchange: Literal['all_gather', 'all_to_all'] = 'all_gather',
  ) -> tuple[Encoded, moe.RouterStats | None]:
    """Encodes users.

    Args:
      context: what is known of each user.
      user: dense user index, read only with user_id_buckets. [B]
      item_vectors_of: vectors of items; not called with item_input='item_id'.
      features: values of all items.
      seeds: dropout seeds of the two ends [2] and the layers [layers, SITES];
        None: no dropout.  The queries of the lifelong pathway have none.
      router_bias: of the encoder's experts; None: it has none. [layers, E]
      exchange: moe.exchange, or 'all_gather' where what is dropped would not
        be reported.

    Returns:
      States, zero at padding, with their mask; and the router's counts over
      real tokens [layers, E], None without experts.

    Raises:
      ValueError: router_bias does not go with moe.location.
    """
    c = self.config
    if has_experts(c) != (router_bias is not None):
      wants = 'has experts' if has_experts(c) else 'has no experts'
      raise ValueError(
        f'The encoder {wants} (model.moe.enabled={c.moe.enabled},'
        f' model.moe.location={c.moe.location!r}), but router_bias is'
        f' {"None" if router_bias is None else "given"}.'
      )
    ends, inner = (None, None) if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=c.dropout_rate)
    x, mask = self.pathways(context, user, item_vectors_of, features)
    x = x + self.positions[None].astype(x.dtype)
    x = layers.shard_batch(
      drop(x, None if ends is None else ends[0]), self.mesh
    )
    run = self.layers if exchange == c.moe.exchange else self.layers.dropless
    x, stats = run(x, inner, router_bias, mask)
    x = drop(self.final_norm(x), None if ends is None else ends[1])
    # Zeros make padding add nothing to the decoder.
    return Encoded(jnp.where(mask[..., None], x, 0), mask), stats
