"""QFormer: any number of tokens to a fixed number of learned queries.

Cross-attention and feed-forward only: the queries never see each other and
the tokens carry no position, so their order changes nothing.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.ops import dropout

# Dropout sites of one layer: attention weights, attention output, hidden
# units, feed-forward output.
_SITES = 4
# Small, so that at the start the outputs of different rows differ by what
# they read and not by a constant they share (as BLIP-2 begins).
_QUERY_STDDEV = 0.02


class QFormerLayer(nn.Module):
  """One cross-attention and one feed-forward network."""

  config: config_lib.ModelConfig
  residual: bool

  def setup(self) -> None:
    embed = self.config.embed_dim
    if self.residual:
      self.attention_norm = layers.RMSNorm(embed)
    self.attention = attention_modules.CrossAttention(self.config)
    self.mlp_norm = layers.RMSNorm(embed)
    self.mlp = layers.FeedForward(self.config)

  def __call__(
    self,
    x: Float[Array, 'B Q D'],
    tokens: Float[Array, 'B T D'],
    bias: Float[Array, 'B 1 1 T'],
    seeds: jax.Array | None,
  ) -> Float[Array, 'B Q D']:
    """Returns the next queries; `seeds` [_SITES] drop."""
    sites = [None] * _SITES if seeds is None else seeds
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    if not self.residual:
      x = drop(self.attention(x, tokens, bias, sites[0]), sites[1])
      return drop(self.mlp(self.mlp_norm(x), sites[2]), sites[3])
    y = self.attention(self.attention_norm(x), tokens, bias, sites[0])
    x = x + drop(y, sites[1])
    return x + drop(self.mlp(self.mlp_norm(x), sites[2]), sites[3])


class QFormer(nn.Module):
  """Learned queries that read a set of tokens, layer after layer.

    residual:  q <- q + CrossAttn(RMSNorm(q), M, M);  q <- q + FFN(RMSNorm(q))
    literal:   q <- CrossAttn(q, M, M);               q <- FFN(RMSNorm(q))

  The literal form is the one that is printed; it has no residuals.  FFN: two
  matrices with a GELU between them.  No biases.

  Reference: OneRec technical report, arXiv:2506.13695, section 2.1.1; the
    same block compresses the lifelong pathway there.
  """

  num_queries: int  # Q
  dim: int  # D, of queries and tokens
  num_layers: int
  num_heads: int  # divides dim
  mlp_dim: int
  residual: bool = True
  dropout_rate: float = 0.0
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'
  dropout_bits: Literal['hash', 'threefry'] = 'hash'

  def setup(self) -> None:
    if self.dim % self.num_heads:
      raise ValueError(
        f'A QFormer of dim={self.dim} cannot have num_heads={self.num_heads}:'
        ' choose a number of heads that divides it.'
      )
    inner = config_lib.ModelConfig(
      embed_dim=self.dim,
      num_heads=self.num_heads,
      head_dim=self.dim // self.num_heads,
      mlp_dim=self.mlp_dim,
      mlp_activation='gelu',
      dropout_rate=self.dropout_rate,
      attention_dropout_rate=self.dropout_rate,
    )
    self.queries = parameters.declare(
      self,
      'queries',
      (self.num_queries, self.dim),
      (None, 'embed'),
      parameters.Initializer(stddev=_QUERY_STDDEV),
    )
    self.layers = [
      QFormerLayer(inner, self.residual) for _ in range(self.num_layers)
    ]

  def __call__(
    self,
    tokens: Float[Array, 'B T D'],
    mask: Bool[Array, 'B T'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B Q D']:
    """Reads the tokens.

    A row without any real token gives the learned queries as they are.

    Args:
      tokens: M; whatever is masked must be finite. [B, T, D]
      mask: False: padding, not attended to. [B, T]
      deterministic: False: dropout, needs rngs={'dropout': key}.

    Returns:
      In the compute dtype. [B, Q, D]
    """
    dtype = jnp.dtype(self.compute_dtype)
    tokens = tokens.astype(dtype)
    bias = attention.key_bias(mask)
    seeds = [None] * self.num_layers
    if not deterministic and self.dropout_rate > 0:
      seeds = dropout.site_seeds(
        self.make_rng('dropout'),
        (self.num_layers, _SITES),
        bits=self.dropout_bits,
      )
    start = jnp.broadcast_to(
      self.queries.astype(dtype)[None],
      (tokens.shape[0], self.num_queries, self.dim),
    )
    x = start
    for layer, site_seeds in zip(self.layers, seeds, strict=True):
      x = layer(x, tokens, bias, site_seeds)
    # Without a real token attention gives the mean of the padding.
    return jnp.where(jnp.any(mask, axis=1)[:, None, None], x, start)
