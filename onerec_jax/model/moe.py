"""Mixture-of-experts feed-forward: router and expert weights of one layer."""

import functools
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax import config as config_lib
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.ops import expert_parallel
from onerec_jax.ops import moe

_EXPERT_AXIS = 'expert'  # mesh axis the expert weights are split over


class RouterStats(NamedTuple):
  """What the router did, per layer; counts are global sums over the batch."""

  load: Float[Array, '*layers E']  # real tokens routed to each expert
  # Of these, the ones that found no room (moe.exchange='all_to_all').
  dropped: Float[Array, '*layers']


class MoEFeedForward(nn.Module):
  """y = sum over the chosen experts of gate * FFN_expert(x)."""

  config: config_lib.ModelConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config.moe
    embed = self.config.embed_dim
    inner = parameters.Initializer(stddev=embed**-0.5)
    outer = parameters.Initializer(stddev=c.expert_dim**-0.5)
    names = ('expert', 'embed', 'expert_mlp')
    shape = (c.num_experts, embed, c.expert_dim)
    self.router = parameters.declare(
      self, 'router', (embed, c.num_experts), ('embed', None), inner
    )
    self.wi = parameters.declare(self, 'wi', shape, names, inner)
    if c.activation == 'swiglu':
      self.wg = parameters.declare(self, 'wg', shape, names, inner)
    self.wo = parameters.declare(
      self,
      'wo',
      (c.num_experts, c.expert_dim, embed),
      ('expert', 'expert_mlp', 'embed'),
      outer,
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    token_mask: Bool[Array, 'B T'],
    bias: Float[Array, ' E'],
    *,
    exchange: Literal['all_gather', 'all_to_all'],
  ) -> tuple[Float[Array, 'B T D'], RouterStats]:
    """Routes every token; masked ones are not counted and give zeros.

    Args:
      x: normalised states. [B, T, D]
      token_mask: True: a real token. [B, T]
      bias: selection bias of this layer. [E]
      exchange: moe.exchange where what is dropped gets reported, else
        'all_gather', which drops nothing.
    """
    c, dtype = self.config.moe, x.dtype
    tokens, mask = x.reshape(-1, x.shape[-1]), token_mask.reshape(-1)
    # Full float32: a rounded score may flip the choice of an expert.
    logits = jnp.dot(
      tokens.astype(jnp.float32), self.router, precision='highest'
    )
    routing = moe.route(
      logits, bias, top_k=c.top_k, gate=c.gate, normalize=c.normalize_top_k
    )
    weights = moe.ExpertWeights(
      self.wi.astype(dtype),
      self.wg.astype(dtype) if c.activation == 'swiglu' else None,
      self.wo.astype(dtype),
    )
    run = functools.partial(
      moe.dense_experts if c.dispatch == 'dense' else moe.grouped_experts,
      activation=layers.activation(c.activation),
    )
    dropped = jnp.zeros(())
    if self.mesh is not None and self.mesh.size > 1:
      y, dropped = expert_parallel.sharded_experts(
        tokens,
        routing,
        weights,
        mask,
        mesh=self.mesh,
        batch_axes=self.mesh.axis_names,
        expert_axis=_EXPERT_AXIS,
        run=run,
        exchange=exchange,
        capacity_factor=c.capacity_factor,
      )
    else:
      y = run(tokens, routing, weights, mask)
    load = moe.expert_load(routing.experts, mask, num_experts=c.num_experts)
    return y.reshape(x.shape), RouterStats(load, dropped)
