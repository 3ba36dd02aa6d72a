"""TIGER's residual-quantized autoencoder: vectors to codes and back.

Maps arrays to arrays; what its codes are trained on is objectives/rqvae.py,
and vectors are standardised by whoever calls.  Extra dimension Z: latent.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import kmeans


class Quantized(NamedTuple):
  """Latent vectors after residual quantization."""

  codes: Int[Array, 'B L']  # int32
  residuals: Float[Array, 'B L Z']  # what each level quantizes
  chosen: Float[Array, 'B L Z']  # the code vectors


class RQVAEOutput(NamedTuple):
  """A batch of vectors, encoded, quantized and decoded."""

  quantized: Quantized
  reconstruction: Float[Array, 'B D']


class _Dense(nn.Module):
  """x W + b."""

  inputs: int
  outputs: int
  stddev: float  # of W at the start; b starts at 0

  def setup(self) -> None:
    self.kernel = parameters.declare(
      self,
      'kernel',
      (self.inputs, self.outputs),
      ('embed', 'mlp'),
      parameters.Initializer(stddev=self.stddev),
    )
    self.bias = parameters.declare(
      self,
      'bias',
      (self.outputs,),
      ('mlp',),
      parameters.Initializer(stddev=0.0),
    )

  def __call__(self, x: Float[Array, 'B A']) -> Float[Array, 'B Z']:
    return jnp.einsum('ba,az->bz', x, self.kernel) + self.bias[None]


class _MLP(nn.Module):
  """Dense layers with a ReLU after each but the last."""

  dims: tuple[int, ...]  # of the input, every hidden layer and the output

  def setup(self) -> None:
    last = len(self.dims) - 2
    self.layers = [
      _Dense(inputs, outputs, ((1 if i == last else 2) / inputs) ** 0.5)
      for i, (inputs, outputs) in enumerate(
        zip(self.dims[:-1], self.dims[1:], strict=True)
      )
    ]

  def __call__(self, x: Float[Array, 'B A']) -> Float[Array, 'B Z']:
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
    return self.layers[-1](x)


class RQVAE(nn.Module):
  """Encoder, L codebooks and a mirrored decoder (TIGER, 2305.05065).

  The code vectors in use are the trained parameters plus an `offset` that is
  not trained: moving a dead code is a change of its offset, so that it needs
  no access to the optimizer.
  """

  config: config_lib.RQVAEConfig
  dim: int  # of the item vectors, D
  levels: int  # L
  codes_per_level: int  # C

  def setup(self) -> None:
    c = self.config
    dims = (self.dim, *c.hidden_dims, c.latent_dim)
    self.encoder = _MLP(dims)
    self.decoder = _MLP(dims[::-1])
    self.codebooks = parameters.declare(
      self,
      'codebooks',
      (self.levels, self.codes_per_level, c.latent_dim),
      (None, 'codes', 'embed'),
      parameters.Initializer(stddev=1.0),
    )

  def encode(self, vectors: Float[Array, 'B D']) -> Float[Array, 'B Z']:
    """Returns latent vectors."""
    return self.encoder(vectors)

  def decode(self, latents: Float[Array, 'B Z']) -> Float[Array, 'B D']:
    """Returns the vectors that latent vectors stand for."""
    return self.decoder(latents)

  def quantize(
    self, latents: Float[Array, 'B Z'], offset: Float[Array, 'L C Z']
  ) -> Quantized:
    """Quantizes latent vectors level by level.

      s^l = argmin_k |r^l - c^l_k|^2,  r^{l+1} = r^l - sg[c^l_{s^l}],  r^1 = z

    The gradient of a residual reaches the encoder alone (sg: stopped), so
    that codes learn from the codebook loss of their own level only.

    Args:
      latents: z. [B, Z]
      offset: added to the codebooks. [L, C, Z]

    Reference: TIGER, arXiv:2305.05065, section 3.1.
    """
    codes, residuals, chosen = [], [], []
    residual = latents
    for codebook in self.codebooks + offset:
      code, _ = kmeans.argmin_rows(
        kmeans.relative_distances(
          jax.lax.stop_gradient(residual), jax.lax.stop_gradient(codebook)
        )
      )
      vector = codebook[code]
      codes.append(code)
      residuals.append(residual)
      chosen.append(vector)
      residual = residual - jax.lax.stop_gradient(vector)
    return Quantized(
      jnp.stack(codes, 1), jnp.stack(residuals, 1), jnp.stack(chosen, 1)
    )

  def __call__(
    self, vectors: Float[Array, 'B D'], offset: Float[Array, 'L C Z']
  ) -> RQVAEOutput:
    """Encodes, quantizes and decodes.

      x̂ = decoder(z + sg[Σ_l c^l_{s^l} - z]),  z = encoder(x)

    The decoder sees the sum of the codes, the encoder its gradient unchanged
    (straight-through).

    Args:
      vectors: standardised item vectors x. [B, D]
      offset: added to the codebooks. [L, C, Z]

    Reference: van den Oord et al. 2017, arXiv:1711.00937, section 3.2.
    """
    latents = self.encode(vectors)
    quantized = self.quantize(latents, offset)
    total = jnp.sum(quantized.chosen, axis=1)
    through = latents + jax.lax.stop_gradient(total - latents)
    return RQVAEOutput(quantized, self.decode(through))


def abstract_params(model: RQVAE) -> Any:
  """Returns the tree of `parameters.Parameter` boxes, without values."""
  offset = np.zeros(
    (model.levels, model.codes_per_level, model.config.latent_dim), np.float32
  )
  return jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, model.dim), np.float32), offset
  )['params']
