"""The Transformer stack that the item-level baselines share.

As published: learned positions, layer normalisation, biases, and matrices
that start at N(0, 0.02^2).  OneRec's own layers are in layers.py.
"""

import dataclasses
import functools
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.ops import dropout

# Dropout sites of one block: attention weights, attention output, hidden
# units, feed-forward output.
_BLOCK_SITES = 4
_EPSILON = 1e-8  # of SASRec's published code
# Of BERT and BERT4Rec.  Small blocks leave the items' embeddings dominant at
# the start: SASRec on Amazon Beauty had validation recall@10 .085 after 600
# steps, and with variance-preserving matrices .065 after 1200.
SMALL = parameters.Initializer(stddev=0.02)
ZEROS = parameters.Initializer(stddev=0.0)


@dataclasses.dataclass(frozen=True)
class StackConfig:
  """Settings of a stack."""

  embed_dim: int  # D
  num_heads: int  # divides embed_dim
  num_layers: int
  mlp_dim: int
  activation: Literal['relu', 'gelu']
  # pre: x + drop(f(norm(x))), normalised once more at the end.
  # post: norm(x + drop(f(x))), the input is normalised first.
  norm: Literal['pre', 'post']
  dropout_rate: float  # of inputs, attention weights, hidden units, outputs
  max_length: int  # positions

  @property
  def sites(self) -> int:
    """Number of dropout seeds that the stack takes."""
    return 1 + self.num_layers * _BLOCK_SITES


class LayerNorm(nn.Module):
  """Layer normalisation: (x - mean) / std * scale + bias."""

  dim: int

  def setup(self) -> None:
    ones = parameters.Initializer('ones')
    self.scale = parameters.declare(
      self, 'scale', (self.dim,), ('embed',), ones
    )
    self.bias = parameters.declare(self, 'bias', (self.dim,), ('embed',), ZEROS)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt(variance + _EPSILON)
    return x * self.scale[None, None] + self.bias[None, None]


class SelfAttention(nn.Module):
  """Multi-head self-attention; one fused matrix for queries, keys, values."""

  config: StackConfig

  def setup(self) -> None:
    c = self.config
    declare = functools.partial(parameters.declare, self)
    heads = (c.num_heads, c.embed_dim // c.num_heads)
    names = ('heads', 'head_dim')
    self.qkv = declare(
      'qkv', (c.embed_dim, 3, *heads), ('embed', None, *names), SMALL
    )
    self.qkv_bias = declare('qkv_bias', (3, *heads), (None, *names), ZEROS)
    self.out = declare('out', (*heads, c.embed_dim), (*names, 'embed'), SMALL)
    self.out_bias = declare('out_bias', (c.embed_dim,), ('embed',), ZEROS)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    bias: Float[Array, '#B 1 T T'],
    seed: jax.Array | None,
  ) -> Float[Array, 'B T D']:
    """Attends where `bias` allows; `seed` drops attention weights."""
    qkv = jnp.einsum('btd,dphk->pbthk', x, self.qkv)
    qkv += self.qkv_bias[:, None, None]
    y = attention.attend(
      qkv[0] * self.qkv.shape[-1] ** -0.5,
      qkv[1],
      qkv[2],
      bias,
      weight_dropout=lambda weights: dropout.drop(
        weights, seed, rate=self.config.dropout_rate
      ),
    )
    return jnp.einsum('bthk,hkd->btd', y, self.out) + self.out_bias[None, None]


class FeedForward(nn.Module):
  """Two matrices with an activation between them."""

  config: StackConfig

  def setup(self) -> None:
    c = self.config
    declare = functools.partial(parameters.declare, self)
    shape, names = (c.embed_dim, c.mlp_dim), ('embed', 'mlp')
    self.wi = declare('wi', shape, names, SMALL)
    self.wi_bias = declare('wi_bias', shape[1:], names[1:], ZEROS)
    self.wo = declare('wo', shape[::-1], names[::-1], SMALL)
    self.wo_bias = declare('wo_bias', shape[:1], names[:1], ZEROS)

  def __call__(
    self, x: Float[Array, 'B T D'], seed: jax.Array | None
  ) -> Float[Array, 'B T D']:
    """Applies the network; `seed` drops hidden units."""
    hidden = jnp.einsum('btd,df->btf', x, self.wi) + self.wi_bias[None, None]
    hidden = layers.activation(self.config.activation)(hidden)
    hidden = dropout.drop(hidden, seed, rate=self.config.dropout_rate)
    return jnp.einsum('btf,fd->btd', hidden, self.wo) + self.wo_bias[None, None]


class Block(nn.Module):
  """Self-attention and feed-forward, each with a residual around it."""

  config: StackConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    self.attention_norm = LayerNorm(self.config.embed_dim)
    self.attention = SelfAttention(self.config)
    self.mlp_norm = LayerNorm(self.config.embed_dim)
    self.mlp = FeedForward(self.config)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    bias: Float[Array, '#B 1 T T'],
    seeds: Any,
  ) -> Float[Array, 'B T D']:
    """Returns the next states; `seeds` (or Nones) of the dropout sites."""
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    if self.config.norm == 'pre':
      y = self.attention(self.attention_norm(x), bias, seeds[0])
      x = layers.shard_batch(x + drop(y, seeds[1]), self.mesh)
      y = self.mlp(self.mlp_norm(x), seeds[2])
      return layers.shard_batch(x + drop(y, seeds[3]), self.mesh)
    y = self.attention(x, bias, seeds[0])
    x = layers.shard_batch(x + drop(y, seeds[1]), self.mesh)
    x = self.attention_norm(x)
    y = self.mlp(x, seeds[2])
    return self.mlp_norm(layers.shard_batch(x + drop(y, seeds[3]), self.mesh))


class Stack(nn.Module):
  """Adds positions and applies the blocks.

  Positions are counted from the end, so that the most recent item has the
  same one in every sequence.
  """

  config: StackConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.positions = parameters.declare(
      self, 'positions', (c.max_length, c.embed_dim), (None, 'embed'), SMALL
    )
    self.blocks = [Block(c, self.mesh) for _ in range(c.num_layers)]
    self.end_norm = LayerNorm(c.embed_dim)  # 'post': of the input

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    mask: Bool[Array, 'B T'],
    bias: Float[Array, '#B 1 T T'],
    seeds: Any,
  ) -> Float[Array, 'B T D']:
    """Returns the states of all places.

    Args:
      x: embeddings. [B, T, D]
      mask: False: padding, whose states mean nothing. [B, T]
      bias: of the attention scores; masks padding and, if causal, the future.
      seeds: `config.sites` dropout seeds, or Nones.

    Raises:
      ValueError: there are more places than positions.
    """
    length, longest = x.shape[1], self.config.max_length
    if length > longest:
      raise ValueError(
        f'A sequence of {length} items, but the model knows positions of'
        f' {longest}: data.history_length plus data.sessions.items_per_session'
        ' of its training.'
      )
    x = x + self.positions[None, longest - length :]
    x = jnp.where(mask[..., None], x, 0)
    if self.config.norm == 'post':
      x = self.end_norm(x)
    x = dropout.drop(x, seeds[0], rate=self.config.dropout_rate)
    x = layers.shard_batch(x, self.mesh)
    for number, block in enumerate(self.blocks):
      first = 1 + number * _BLOCK_SITES
      x = block(x, bias, seeds[first : first + _BLOCK_SITES])
    return self.end_norm(x) if self.config.norm == 'pre' else x
