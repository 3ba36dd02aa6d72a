"""Feed-forward networks side by side, one per objective of a ranking model."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Float

from onerec_jax.model import parameters
from onerec_jax.ops import dropout


class Towers(nn.Module):
  """X networks side by side on the same input, each ending in one logit."""

  count: int  # X
  input_dim: int
  hidden_dims: tuple[int, ...]
  dropout_rate: float

  def setup(self) -> None:
    widths = (self.input_dim, *self.hidden_dims)
    zeros = parameters.Initializer(stddev=0.0)
    declare = functools.partial(parameters.declare, self)
    # He's scale keeps the variance through the ReLUs.
    self.kernels = [
      declare(
        f'kernel_{i}',
        (self.count, width, out),
        ('layers', 'embed', 'mlp'),
        parameters.Initializer(stddev=(2 / width) ** 0.5),
      )
      for i, (width, out) in enumerate(itertools.pairwise(widths))
    ]
    self.biases = [
      declare(f'bias_{i}', (self.count, out), ('layers', 'mlp'), zeros)
      for i, out in enumerate(widths[1:])
    ]
    # Zero: every prediction starts at its bias, and the random vectors behind
    # it need not be unlearnt first.
    self.out = declare(
      'out', (self.count, widths[-1]), ('layers', 'mlp'), zeros
    )
    # Rare events need logits far from 0, hence the biases.
    self.out_bias = declare('out_bias', (self.count,), ('layers',), zeros)

  def __call__(
    self, x: Float[Array, 'B W I'], seeds: Any
  ) -> tuple[Float[Array, 'B W X'], Float[Array, 'B W X F']]:
    """Returns the logits and the last hidden states."""
    hidden = jnp.broadcast_to(
      x[:, :, None], (*x.shape[:2], self.count, x.shape[2])
    )
    for i, (kernel, bias) in enumerate(
      zip(self.kernels, self.biases, strict=True)
    ):
      # The first layer reads the same input in all towers.
      hidden = (
        jnp.einsum('bwi,xif->bwxf', x, kernel)
        if i == 0
        else jnp.einsum('bwxi,xif->bwxf', hidden, kernel)
      )
      hidden = jax.nn.relu(hidden + bias[None, None])
      hidden = dropout.drop(hidden, seeds[i], rate=self.dropout_rate)
    logits = jnp.einsum('bwxf,xf->bwx', hidden, self.out)
    return logits + self.out_bias[None, None], hidden
