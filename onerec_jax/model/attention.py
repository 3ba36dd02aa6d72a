"""Self- and cross-attention modules: projections around `ops.attention`.

Queries are scaled by head_dim^-0.5; T5 folds that factor into its initialiser.
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

from onerec_jax import config as config_lib
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.ops import blocked_attention
from onerec_jax.ops import dropout
from onerec_jax.ops import fused_attention

# Tokens; shorter sequences have scores that are no burden as an array.
_FUSED_FROM = 256


class KeyValues(NamedTuple):
  """Projected keys and values of one layer, or of all (leading axis)."""

  keys: jax.Array
  values: jax.Array


class TokenBias(NamedTuple):
  """Which tokens attend to which, where scores are not to be an array."""

  mask: Bool[Array, 'B S']  # True: a real token
  distances: Float[Array, 'H D'] | None  # of ops.attention.distance_bias


def _weight_dropout(
  seed: jax.Array | None, rate: float
) -> Callable[[jax.Array], jax.Array]:
  return lambda weights: dropout.drop(weights, seed, rate=rate)


def _declare_output(
  module: nn.Module, config: config_lib.ModelConfig
) -> jax.Array:
  heads, head_dim = config.num_heads, config.head_dim
  return parameters.declare(
    module,
    'out',
    (heads, head_dim, config.embed_dim),
    ('heads', 'head_dim', 'embed'),
    parameters.Initializer(stddev=(heads * head_dim) ** -0.5),
  )


class SelfAttention(nn.Module):
  """Multi-head self-attention; one fused matrix for queries, keys, values."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.qkv = parameters.declare(
      self,
      'qkv',
      (c.embed_dim, 3, c.num_heads, c.head_dim),
      ('embed', None, 'heads', 'head_dim'),
      parameters.Initializer(stddev=c.embed_dim**-0.5),
    )
    self.out = _declare_output(self, c)

  def _project(
    self, x: Float[Array, 'B T D']
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    qkv = jnp.einsum('btd,dphk->pbthk', x, self.qkv.astype(x.dtype))
    scale = jnp.asarray(self.config.head_dim**-0.5, x.dtype)
    return qkv[0] * scale, qkv[1], qkv[2]

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    bias: Float[Array, '#B #H T T'] | TokenBias,
    seed: jax.Array | None,
  ) -> Float[Array, 'B T D']:
    """Attends over all positions; `seed` drops attention weights."""
    if not isinstance(bias, TokenBias):
      return self.with_key_values(x, bias, seed)[0]
    # Both make hashed dropout only.
    typed = seed is not None and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    if not typed and self._is_fused(x.shape[1]):
      return self._fused(x, bias, seed)
    if not typed and blocked_attention.fits(
      length=x.shape[1], platform=self._platform()
    ):
      return self._in_blocks(x, bias, seed)
    scores = attention.key_bias(bias.mask)
    if bias.distances is not None:
      positions = attention.expand_distances(bias.distances, x.shape[1])
      scores = positions[None] + scores
    return self.with_key_values(x, scores, seed)[0]

  def _platform(self) -> str:
    if self.mesh is None:
      return jax.default_backend()
    return self.mesh.devices.flat[0].platform

  def _is_fused(self, length: int) -> bool:
    """Returns whether the TPU kernel is used: it keeps scores on the chip."""
    return (
      self._platform() == 'tpu'
      and length >= _FUSED_FROM
      and fused_attention.fits(num_keys=length)
    )

  def _in_blocks(
    self, x: jax.Array, bias: TokenBias, seed: jax.Array | None
  ) -> jax.Array:
    y = blocked_attention.self_attention(
      *self._project(x),
      bias.mask,
      bias.distances,
      seed=seed,
      rate=self.config.attention_dropout_rate,
      block=blocked_attention.block_size(
        length=x.shape[1], platform=self._platform()
      ),
    )
    return jnp.einsum('bthk,hkd->btd', y, self.out.astype(x.dtype))

  def _fused(
    self, x: jax.Array, bias: TokenBias, seed: jax.Array | None
  ) -> jax.Array:
    rows, length, embed = x.shape
    heads, head_dim = self.config.num_heads, self.config.head_dim
    # As matrices of tokens, and one product for each of the three: the kernel
    # reads them as they are, where XLA would put copies between.
    tokens = x.reshape(-1, embed)
    kernel = self.qkv.astype(x.dtype).reshape(embed, 3, -1)
    scale = jnp.asarray(head_dim**-0.5, x.dtype)
    shape = (rows, length, heads, head_dim)
    y = fused_attention.self_attention(
      (jnp.dot(tokens, kernel[:, 0]) * scale).reshape(shape),
      jnp.dot(tokens, kernel[:, 1]).reshape(shape),
      jnp.dot(tokens, kernel[:, 2]).reshape(shape),
      bias.mask,
      bias.distances,
      seed=seed,
      rate=self.config.attention_dropout_rate,
      mesh=self.mesh,
    )
    out = self.out.astype(x.dtype).reshape(-1, embed)
    return jnp.dot(y.reshape(tokens.shape[0], -1), out).reshape(x.shape)

  def with_key_values(
    self,
    x: Float[Array, 'B T D'],
    bias: Float[Array, '#B #H #T T'],
    seed: jax.Array | None,
  ) -> tuple[Float[Array, 'B T D'], KeyValues]:
    """Returns the output and the keys and values it attended to."""
    queries, keys, values = self._project(x)
    y = attention.attend(
      queries,
      keys,
      values,
      bias,
      weight_dropout=_weight_dropout(seed, self.config.attention_dropout_rate),
    )
    y = jnp.einsum('bthk,hkd->btd', y, self.out.astype(x.dtype))
    return y, KeyValues(keys, values)

  def step(
    self,
    x: Float[Array, 'B W D'],
    cache: KeyValues,
    layer: Int[Array, ''],
    prefix: KeyValues,
    position: Int[Array, ''],
    bias: Float[Array, 'H T'],
    prefix_bias: Float[Array, 'B H P'],
  ) -> tuple[Float[Array, 'B W D'], KeyValues]:
    """Attends from one new position to the cached ones and itself.

    Args:
      x: state of the new token of each beam. [B, W, D]
      cache: of all layers; only the new position of `layer` is written, so
        that a loop over layers copies nothing. [layers, B, W, T, H, K]
      layer: which one this is.
      prefix: of the tokens before all cached ones, shared by the beams; may
        be empty (P = 0). [B, P, H, K]
      position: where the token is written, 0..T-1.
      bias: of the new position to each position; masks those after it.
      prefix_bias: of the new position to the prefix; masks its padding.

    Returns:
      Output and updated cache.
    """
    queries, keys, values = self._project(x)

    def write(cached: jax.Array, new: jax.Array) -> jax.Array:
      new = new[None, :, :, None].astype(cached.dtype)
      return jax.lax.dynamic_update_slice(
        cached, new, (layer, 0, 0, position, 0, 0)
      )

    cache = KeyValues(write(cache.keys, keys), write(cache.values, values))
    own = KeyValues(
      *(
        jax.lax.dynamic_index_in_dim(cached, layer, keepdims=False)
        for cached in cache
      )
    )
    scores = jnp.einsum(
      'bwhk,bwthk->bwht',
      queries,
      own.keys,
      preferred_element_type=jnp.float32,
    )
    shared = jnp.einsum(
      'bwhk,bphk->bwhp',
      queries,
      prefix.keys,
      preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(
      jnp.concatenate(
        [shared + prefix_bias[:, None], scores + bias[None, None]], axis=-1
      ),
      axis=-1,
    ).astype(x.dtype)
    length = prefix.keys.shape[1]
    y = jnp.einsum('bwht,bwthk->bwhk', weights[..., length:], own.values)
    y += jnp.einsum('bwhp,bphk->bwhk', weights[..., :length], prefix.values)
    return jnp.einsum('bwhk,hkd->bwd', y, self.out.astype(x.dtype)), cache


class CrossAttention(nn.Module):
  """Attention from decoder tokens to encoder states."""

  config: config_lib.ModelConfig

  def setup(self) -> None:
    c = self.config
    shape = (c.embed_dim, c.num_heads, c.head_dim)
    names = ('embed', 'heads', 'head_dim')
    init = parameters.Initializer(stddev=c.embed_dim**-0.5)
    self.query = parameters.declare(self, 'query', shape, names, init)
    self.key = parameters.declare(self, 'key', shape, names, init)
    self.value = parameters.declare(self, 'value', shape, names, init)
    self.out = _declare_output(self, c)

  def _queries(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T H K']:
    kernel = self.query.astype(x.dtype)
    scale = jnp.asarray(self.config.head_dim**-0.5, x.dtype)
    return jnp.einsum('btd,dhk->bthk', x, kernel) * scale

  def project(self, states: Float[Array, 'B S D']) -> KeyValues:
    """Returns keys and values of the encoder states. [B, S, H, K] each"""
    dtype = states.dtype
    return KeyValues(
      jnp.einsum('bsd,dhk->bshk', states, self.key.astype(dtype)),
      jnp.einsum('bsd,dhk->bshk', states, self.value.astype(dtype)),
    )

  def _absorbs(self, num_queries: int, num_keys: int) -> bool:
    if self.config.cross_attention != 'auto':
      return self.config.cross_attention == 'absorbed'
    return attention.absorbed_is_cheaper(
      num_queries=num_queries,
      num_keys=num_keys,
      embed_dim=self.config.embed_dim,
      heads=self.config.num_heads,
      head_dim=self.config.head_dim,
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    states: Float[Array, 'B S D'],
    bias: Float[Array, '#B #H #T S'],
    seed: jax.Array | None,
  ) -> Float[Array, 'B T D']:
    """Attends to `states`; `seed` drops attention weights."""
    weight_dropout = _weight_dropout(seed, self.config.attention_dropout_rate)
    queries = self._queries(x)
    if self._absorbs(x.shape[1], states.shape[1]):
      y = attention.attend_absorbed(
        queries,
        self.key.astype(x.dtype),
        self.value.astype(x.dtype),
        states,
        bias,
        weight_dropout=weight_dropout,
      )
    else:
      y = attention.attend(
        queries, *self.project(states), bias, weight_dropout=weight_dropout
      )
    return jnp.einsum('bthk,hkd->btd', y, self.out.astype(x.dtype))

  def step(
    self,
    x: Float[Array, 'B W D'],
    context: KeyValues,
    bias: Float[Array, '#B #H #W S'],
  ) -> Float[Array, 'B W D']:
    """Attends from one token per beam; all beams share keys and values."""
    y = attention.attend(self._queries(x), *context, bias)
    return jnp.einsum('bthk,hkd->btd', y, self.out.astype(x.dtype))
