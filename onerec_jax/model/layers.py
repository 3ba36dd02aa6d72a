"""Normalisation, feed-forward, and placement of activations on a mesh.

No biases anywhere.  Parameters are float32; the compute dtype is an argument.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Float

from onerec_jax import config as config_lib
from onerec_jax.model import parameters
from onerec_jax.ops import dropout

_EPSILON = 1e-6  # of T5


def shard_batch(
  x: Float[Array, 'B ...'], mesh: jax.sharding.Mesh | None
) -> Float[Array, 'B ...']:
  """Asks for the first axis to be split over all mesh axes; no mesh: `x`."""
  if mesh is None or mesh.size == 1:
    return x
  spec = PartitionSpec(mesh.axis_names)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """Returns the element-wise function of a feed-forward; swiglu: its SiLU."""
  return {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'swiglu': jax.nn.silu}[name]


class RMSNorm(nn.Module):
  """Root-mean-square normalisation in float32: x / rms(x) * scale."""

  dim: int

  def setup(self) -> None:
    self.scale = parameters.declare(
      self, 'scale', (self.dim,), ('embed',), parameters.Initializer('ones')
    )

  def __call__(self, x: Float[Array, '*b D']) -> Float[Array, '*b D']:
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    scale = self.scale.reshape((1,) * (x.ndim - 1) + (self.dim,))
    return (wide * jax.lax.rsqrt(square + _EPSILON) * scale).astype(x.dtype)


class FeedForward(nn.Module):
  """Dense feed-forward network: relu, gelu or swiglu between two matrices."""

  config: config_lib.ModelConfig

  def setup(self) -> None:
    embed, mlp = self.config.embed_dim, self.config.mlp_dim
    inner = parameters.Initializer(stddev=embed**-0.5)
    outer = parameters.Initializer(stddev=mlp**-0.5)
    shape, names = (embed, mlp), ('embed', 'mlp')
    self.wi = parameters.declare(self, 'wi', shape, names, inner)
    if self.config.mlp_activation == 'swiglu':
      self.wg = parameters.declare(self, 'wg', shape, names, inner)
    self.wo = parameters.declare(self, 'wo', shape[::-1], names[::-1], outer)

  def __call__(
    self, x: Float[Array, 'B T D'], seed: jax.Array | None
  ) -> Float[Array, 'B T D']:
    """Applies the network; `seed` drops hidden units (None: keeps all)."""
    dtype = x.dtype
    function = activation(self.config.mlp_activation)
    # A matrix of tokens: XLA lays out a third axis so that it is copied.
    tokens = x.reshape(-1, x.shape[-1])
    hidden = jnp.dot(tokens, self.wi.astype(dtype))
    if self.config.mlp_activation == 'swiglu':
      hidden = function(jnp.dot(tokens, self.wg.astype(dtype))) * hidden
    else:
      hidden = function(hidden)
    hidden = dropout.drop(hidden, seed, rate=self.config.dropout_rate)
    return jnp.dot(hidden, self.wo.astype(dtype)).reshape(x.shape)
