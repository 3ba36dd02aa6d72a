"""Session reward model: how a user would respond to a whole session.

Target attention over the user's behaviours, self-attention over the session,
sum, one tower per target.  Candidate sessions of a user share the history and
never see each other.  Knows no positions: history and session are sets.
"""

import functools
from typing import Any
from typing import Literal

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

# Dropout sites around the layers: behaviours, candidates, weights and output
# of target attention, hidden units of the towers.
_ENDS = 5
# Of one layer: weights and output of self-attention.
_LAYER_SITES = 2


def _attention_config(
  config: config_lib.RewardModelConfig,
) -> config_lib.ModelConfig:
  """Returns the settings that the attention modules read."""
  return config_lib.ModelConfig(
    embed_dim=config.embed_dim,
    num_heads=config.num_heads,
    head_dim=config.embed_dim // config.num_heads,
    dropout_rate=config.dropout_rate,
    attention_dropout_rate=config.dropout_rate,
  )


class SessionLayer(nn.Module):
  """Pre-norm self-attention over the items of a session."""

  config: config_lib.ModelConfig

  def setup(self) -> None:
    self.norm = layers.RMSNorm(self.config.embed_dim)
    self.attention = attention_modules.SelfAttention(self.config)

  def __call__(
    self,
    x: Float[Array, 'B M D'],
    bias: Float[Array, '#B #H M M'],
    seeds: jax.Array | None,
  ) -> Float[Array, 'B M D']:
    """Returns x + attention(norm(x)); `seeds` drop weights and output."""
    sites = [None] * _LAYER_SITES if seeds is None else seeds
    y = self.attention(self.norm(x), bias, sites[0])
    return x + dropout.drop(y, sites[1], rate=self.config.dropout_rate)


class SessionReward(nn.Module):
  """Logits of every reward target for W candidate sessions of each user.

    u_i = TargetAttention(v_i; behaviours)
    e_i = v_i + u_i + MLP([v_i, u_i, v_i ⊙ u_i])
    h   = SelfAttention(e_1 … e_M)
    z^x = MLP^x(Σ_i h_i)

  with v_i = Σ_l code embedding [+ item embedding].  The product is what tells
  an item the user would like from one he would not: attention alone returns
  an average of the behaviours, near to the item or not.  No layer knows
  positions: the order of the session and of the history changes nothing (the
  paper names none, and the labels are sums over the session).

  Reference: OneRec, arXiv:2502.18965, section 3.3; sizes are our choice.
  """

  config: config_lib.RewardModelConfig
  vocabulary: vocabulary_lib.Vocabulary
  num_items: int
  dropout_bits: Literal['hash', 'threefry'] = 'hash'
  mesh: jax.sharding.Mesh | None = None  # None or one device: no sharding

  def setup(self) -> None:
    c = self.config
    embed, hidden, towers = c.embed_dim, c.tower_dim, len(c.targets)
    inner = _attention_config(c)
    # Code and item embeddings add up to vectors of unit variance.
    parts = self.vocabulary.levels + c.item_embedding
    init = parameters.Initializer(stddev=parts**-0.5)
    declare = functools.partial(parameters.declare, self)
    self.code_embedding = declare(
      'code_embedding', (self.vocabulary.size, embed), ('vocab', 'embed'), init
    )
    if c.item_embedding:
      self.item_embedding = declare(
        'item_embedding', (self.num_items, embed), ('vocab', 'embed'), init
      )
    self.history_norm = layers.RMSNorm(embed)
    self.target_norm = layers.RMSNorm(embed)
    self.target_attention = attention_modules.CrossAttention(inner)
    self.mix_in = declare(
      'mix_in',
      (3, embed, hidden),
      (None, 'embed', 'mlp'),
      parameters.Initializer(stddev=(3 * embed) ** -0.5),
    )
    self.mix_out = declare(
      'mix_out',
      (hidden, embed),
      ('mlp', 'embed'),
      parameters.Initializer(stddev=hidden**-0.5),
    )
    self.session_layers = [SessionLayer(inner) for _ in range(c.num_layers)]
    self.final_norm = layers.RMSNorm(embed)
    # The towers are stacked, as layers are: axis 0 is the target.
    zeros = parameters.Initializer(stddev=0.0)
    self.tower_in = declare(
      'tower_in',
      (towers, embed, hidden),
      ('layers', 'embed', 'mlp'),
      parameters.Initializer(stddev=embed**-0.5),
    )
    self.tower_in_bias = declare(
      'tower_in_bias', (towers, hidden), ('layers', 'mlp'), zeros
    )
    # Zero: every prediction starts at its bias, and the random vectors behind
    # it need not be unlearnt first.
    self.tower_out = declare(
      'tower_out', (towers, hidden), ('layers', 'mlp'), zeros
    )
    # Rare events need logits far from 0, hence the biases.
    self.tower_out_bias = declare(
      'tower_out_bias', (towers,), ('layers',), zeros
    )

  def _seeds(self, deterministic: bool) -> tuple[Any, Any]:
    """Returns dropout seeds of the ends and of the layers, or Nones."""
    c = self.config
    if deterministic or c.dropout_rate == 0:
      return [None] * _ENDS, [None] * c.num_layers
    seeds = dropout.site_seeds(
      self.make_rng('dropout'),
      (_ENDS + c.num_layers * _LAYER_SITES,),
      bits=self.dropout_bits,
    )
    inner = seeds[_ENDS:]
    return seeds[:_ENDS], inner.reshape(
      c.num_layers, _LAYER_SITES, *inner.shape[1:]
    )

  def _item_vectors(
    self,
    items: Int[Array, '*b'],
    codes: Int[Array, '*b L'],
    mask: Bool[Array, '*b'],
  ) -> Float[Array, '*b D']:
    """Returns the vectors of items, zero where masked."""
    tokens = self.vocabulary.tokens(codes)
    x = jnp.sum(self.code_embedding[tokens], axis=-2)
    if self.config.item_embedding:
      x = x + self.item_embedding[items]
    return layers.shard_batch(jnp.where(mask[..., None], x, 0), self.mesh)

  def _interaction(
    self, item: Float[Array, 'B T D'], user: Float[Array, 'B T D']
  ) -> Float[Array, 'B T D']:
    """Returns MLP([v, u, v ⊙ u]).  [B, T, D]"""
    parts = jnp.stack([item, user, item * user], axis=-2)
    hidden = jax.nn.relu(jnp.einsum('btpd,pdf->btf', parts, self.mix_in))
    return jnp.einsum('btf,fd->btd', hidden, self.mix_out)

  def __call__(
    self,
    history_items: Int[Array, 'B N'],
    history_codes: Int[Array, 'B N L'],
    history_mask: Bool[Array, 'B N'],
    items: Int[Array, 'B W M'],
    codes: Int[Array, 'B W M L'],
    mask: Bool[Array, 'B W M'],
    *,
    deterministic: bool,
  ) -> Float[Array, 'B W X']:
    """Scores candidate sessions.

    A user without history gets no behaviour vector; a candidate without items
    gets the towers' values at 0, which mean nothing.

    Args:
      history_items: dense item indices. [B, N]
      history_codes: their semantic IDs. [B, N, L]
      history_mask: False: padding. [B, N]
      items: candidate sessions. [B, W, M]
      codes: their semantic IDs. [B, W, M, L]
      mask: False: padding. [B, W, M]
      deterministic: False: dropout, needs rngs={'dropout': key}.

    Returns:
      Logits, in the order of config.targets. [B, W, X]
    """
    batch, candidates, length = items.shape
    ends, inner = self._seeds(deterministic)
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    history = self._item_vectors(history_items, history_codes, history_mask)
    history = self.history_norm(drop(history, ends[0]))
    x = self._item_vectors(items, codes, mask)
    # Candidates are more queries of the same keys: history is not repeated.
    x = drop(x.reshape(batch, candidates * length, -1), ends[1])
    # Padding is zero and stays so through the norm and the biasless values: an
    # empty history adds exactly nothing.
    y = self.target_attention(
      self.target_norm(x), history, attention.key_bias(history_mask), ends[2]
    )
    x = x + drop(y + self._interaction(x, y), ends[3])
    # --- One row per candidate ---
    rows = batch * candidates
    x = layers.shard_batch(x.reshape(rows, length, -1), self.mesh)
    mask = mask.reshape(rows, length)
    bias = jnp.broadcast_to(attention.key_bias(mask), (rows, 1, length, length))
    for layer, seeds in zip(self.session_layers, inner, strict=True):
      x = layer(x, bias, seeds)
    x = jnp.where(mask[..., None], self.final_norm(x), 0)
    total = jnp.sum(x, axis=1)
    hidden = jnp.einsum('bd,xdf->bxf', total, self.tower_in)
    hidden = jax.nn.relu(hidden + self.tower_in_bias[None])
    logits = jnp.einsum('bxf,xf->bx', drop(hidden, ends[4]), self.tower_out)
    logits = logits + self.tower_out_bias[None]
    return logits.reshape(batch, candidates, -1)


def abstract_params(model: SessionReward) -> Any:
  """Returns the tree of `parameters.Parameter` boxes without computing any."""
  batch = 1 if model.mesh is None else model.mesh.size
  items = jnp.zeros((batch, 1), jnp.int32)
  codes = jnp.zeros((batch, 1, model.vocabulary.levels), jnp.int32)
  mask = jnp.ones((batch, 1), bool)
  session = items[:, None], codes[:, None], mask[:, None]
  variables = jax.eval_shape(
    lambda key: model.init(
      key, items, codes, mask, *session, deterministic=True
    ),
    jax.random.key(0),
  )
  return variables['params']
