"""Item-level baselines: SASRec, BERT4Rec and FDSA on one Transformer stack.

An item is a row of an embedding table that is input and output alike.  Reads
no semantic IDs and generates no sessions.
"""

import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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

# Dropout sites of one block: attention weights, attention output, hidden
# units, feed-forward output; one more for the stack's input.
_BLOCK_SITES = 4
_EPSILON = 1e-8  # of SASRec's published code
# Of embeddings and positions, as BERT4Rec publishes it.
_TABLE = parameters.Initializer(stddev=0.02)
_ZEROS = parameters.Initializer(stddev=0.0)


class ItemAttributes(NamedTuple):
  """Attributes of every item of the catalogue (FDSA)."""

  ids: Any  # int32 [I, F]; NumPy or JAX, in any order; pads 0
  mask: Any  # bool [I, F]; False: padding


class ItemSequences(NamedTuple):
  """Items of each user, the last one in the last place."""

  items: Int[Array, 'B T']  # oldest first; pads at the beginning
  mask: Bool[Array, 'B T']  # False: padding
  is_target: Bool[Array, 'B T']  # the item comes from the targets


class SequenceOutput(NamedTuple):
  """What items are scored with: score = states · table + bias."""

  states: Float[Array, 'B T D']
  table: Float[Array, 'I D']
  bias: Float[Array, ' I']


def join_right(
  history_items: Int[Array, 'B N'],
  history_mask: Bool[Array, 'B N'],
  target_items: Int[Array, 'B M'],
  target_mask: Bool[Array, 'B M'],
) -> ItemSequences:
  """Returns each history with its targets behind it, flush to the right.

  Args:
    history_items: oldest first. [B, N]
    history_mask: False: padding, anywhere. [B, N]
    target_items: in order; none: M = 0. [B, M]
    target_mask: False: padding, anywhere. [B, M]

  Returns:
    Sequences of T = N + M places.
  """
  items = jnp.concatenate([history_items, target_items], axis=1)
  mask = jnp.concatenate([history_mask, target_mask], axis=1)
  is_target = jnp.concatenate(
    [jnp.zeros_like(history_mask), target_mask], axis=1
  )
  order = jnp.argsort(mask, axis=1, stable=True)  # padding first
  take = functools.partial(jnp.take_along_axis, indices=order, axis=1)
  mask = take(mask)
  return ItemSequences(jnp.where(mask, take(items), 0), mask, take(is_target))


# --- Parts ------------------------------------------------------------------


class LayerNorm(nn.Module):
  """Layer normalisation: (x - mean) / std * scale + bias."""

  dim: int

  def setup(self) -> None:
    ones = parameters.Initializer('ones')
    self.scale = parameters.declare(
      self, 'scale', (self.dim,), ('embed',), ones
    )
    self.bias = parameters.declare(
      self, 'bias', (self.dim,), ('embed',), _ZEROS
    )

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt(variance + _EPSILON)
    return x * self.scale[None, None] + self.bias[None, None]


class Block(nn.Module):
  """Self-attention and feed-forward, each with a residual around it.

  pre:  x + drop(f(norm(x)))          post:  norm(x + drop(f(x)))
  """

  config: config_lib.ModelConfig
  norm: Literal['pre', 'post']
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    embed = self.config.embed_dim
    self.attention_norm = LayerNorm(embed)
    self.attention = attention_modules.SelfAttention(self.config)
    self.mlp_norm = LayerNorm(embed)
    self.mlp = layers.FeedForward(self.config)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    bias: Float[Array, '#B 1 T T'],
    seeds: Any,
  ) -> Float[Array, 'B T D']:
    """Returns the next states; `seeds` (or Nones) of the dropout sites."""
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    if self.norm == 'pre':
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
  same one in every sequence.  Pre-norm blocks end in a normalisation,
  post-norm ones begin with it.
  """

  config: config_lib.ModelConfig
  norm: Literal['pre', 'post']
  max_length: int
  mesh: jax.sharding.Mesh | None = None

  def setup(self) -> None:
    c = self.config
    self.positions = parameters.declare(
      self, 'positions', (self.max_length, c.embed_dim), (None, 'embed'), _TABLE
    )
    self.blocks = [
      Block(c, self.norm, self.mesh) for _ in range(c.encoder_layers)
    ]
    self.end_norm = LayerNorm(c.embed_dim)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    mask: Bool[Array, 'B T'],
    bias: Float[Array, '#B 1 T T'],
    seeds: Any,
  ) -> Float[Array, 'B T D']:
    """Returns the states of all places; meaningless where masked."""
    length = x.shape[1]
    if length > self.max_length:
      raise ValueError(
        f'A sequence of {length} items, but the model knows positions of'
        f' {self.max_length}: data.history_length plus'
        ' data.sessions.items_per_session of its training.'
      )
    x = x + self.positions[None, self.max_length - length :]
    x = jnp.where(mask[..., None], x, 0)
    if self.norm == 'post':
      x = self.end_norm(x)
    x = dropout.drop(x, seeds[0], rate=self.config.dropout_rate)
    x = layers.shard_batch(x, self.mesh)
    for number, block in enumerate(self.blocks):
      first = 1 + number * _BLOCK_SITES
      x = block(x, bias, seeds[first : first + _BLOCK_SITES])
    return self.end_norm(x) if self.norm == 'pre' else x


class AttributePooling(nn.Module):
  """Vanilla attention over an item's attributes, as FDSA publishes it.

  f = Σ_j α_j a_j,  α = softmax_j(w · a_j);  0 without attributes
  """

  num_attributes: int
  dim: int

  def setup(self) -> None:
    self.embedding = parameters.declare(
      self,
      'embedding',
      (self.num_attributes, self.dim),
      ('vocab', 'embed'),
      _TABLE,
    )
    self.query = parameters.declare(
      self,
      'query',
      (self.dim,),
      ('embed',),
      parameters.Initializer(stddev=self.dim**-0.5),
    )

  def __call__(
    self, ids: Int[Array, 'B T F'], mask: Bool[Array, 'B T F']
  ) -> Float[Array, 'B T D']:
    """Returns one vector per place. [B, T, D]"""
    embedded = self.embedding[ids]
    scores = jnp.einsum('btfd,d->btf', embedded, self.query)
    scores = jnp.where(mask, scores, attention.MASK_VALUE)
    weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)
    return jnp.einsum('btf,btfd->btd', weights, embedded)


# --- The models -------------------------------------------------------------


class SequenceModel(nn.Module):
  """SASRec, BERT4Rec or FDSA: item sequences to states that score items.

  sasrec: causal, pre-norm, ReLU; item embeddings enter times sqrt(D).
  bert4rec: both directions, post-norm, GELU; a state is predicted from by
    gelu(h W + b) and every item has an output bias.
  fdsa: causal, post-norm, ReLU; a second stack reads the items' attributes,
    and both states together are projected.
  All layers are without biases, unlike in the papers, but for norms and
  outputs.

  Reference: Kang & McAuley 2018, arXiv:1808.09781, section III; Sun et al.
  2019, arXiv:1904.06690, eq. 1-7; Zhang et al. 2019, IJCAI, section 3.
  """

  kind: Literal['sasrec', 'bert4rec', 'fdsa']
  config: config_lib.SequentialConfig
  num_items: int
  max_length: int  # longest sequence, one place for the mask item included
  num_attributes: int = 0  # fdsa only
  dropout_bits: Literal['hash', 'threefry'] = 'hash'
  mesh: jax.sharding.Mesh | None = None  # None or one device: no sharding

  def setup(self) -> None:
    c, stack = self.config, stack_config(self.config, self.kind)
    dim = c.embed_dim
    declare = functools.partial(parameters.declare, self)
    matrix = parameters.Initializer(stddev=dim**-0.5)
    self.table = declare(
      'table', (self.num_items, dim), ('vocab', 'embed'), _TABLE
    )
    norm = 'pre' if self.kind == 'sasrec' else 'post'
    self.stack = Stack(stack, norm, self.max_length, self.mesh)
    if self.kind == 'bert4rec':
      self.mask_item = declare('mask_item', (1, dim), (None, 'embed'), _TABLE)
      self.output = declare('output', (dim, dim), (None, 'embed'), matrix)
      self.output_bias = declare('output_bias', (dim,), ('embed',), _ZEROS)
      self.item_bias = declare(
        'item_bias', (self.num_items,), ('vocab',), _ZEROS
      )
    if self.kind == 'fdsa':
      self.pooling = AttributePooling(self.num_attributes, dim)
      self.attribute_stack = Stack(stack, norm, self.max_length, self.mesh)
      self.output = declare(
        'output',
        (2 * dim, dim),
        (None, 'embed'),
        parameters.Initializer(stddev=(2 * dim) ** -0.5),
      )
      self.output_bias = declare('output_bias', (dim,), ('embed',), _ZEROS)

  def _seeds(self, deterministic: bool) -> Any:
    """Returns the dropout seeds of both stacks, or Nones."""
    sites = 1 + self.config.num_layers * _BLOCK_SITES
    if deterministic or not self.config.dropout_rate:
      return [[None] * sites] * 2
    return dropout.site_seeds(
      self.make_rng('dropout'), (2, sites), bits=self.dropout_bits
    )

  def __call__(
    self,
    items: Int[Array, 'B T'],
    mask: Bool[Array, 'B T'],
    hidden: Bool[Array, 'B T'] | None,
    attributes: ItemAttributes | None,
    *,
    deterministic: bool,
  ) -> SequenceOutput:
    """Reads item sequences.

    The state of a place scores the item that follows it (sasrec, fdsa), or
    the item of the place itself (bert4rec).

    Args:
      items: flush to the right, the most recent last. [B, T]
      mask: False: padding. [B, T]
      hidden: True: the mask item stands in its place; bert4rec only. [B, T]
      attributes: of the catalogue; fdsa only.
      deterministic: False: dropout, needs rngs={'dropout': key}.
    """
    seeds = self._seeds(deterministic)
    x = self.table[items]
    if self.kind == 'bert4rec':
      assert hidden is not None
      x = jnp.where(hidden[..., None], self.mask_item[None], x)
    if self.kind == 'sasrec':
      x = x * self.config.embed_dim**0.5
    length = items.shape[1]
    order = np.zeros((length, length), np.float32)
    if self.kind != 'bert4rec':
      order = attention.causal_bias(length)
    bias = attention.key_bias(mask) + order[None, None]
    x = self.stack(x, mask, bias, seeds[0])
    item_bias = jnp.zeros((self.num_items,), jnp.float32)
    if self.kind == 'bert4rec':
      x = jnp.einsum('btd,de->bte', x, self.output)
      x = jax.nn.gelu(x + self.output_bias[None, None])
      item_bias = self.item_bias
    if self.kind == 'fdsa':
      assert attributes is not None
      features = self.attribute_stack(
        self.pooling(attributes.ids[items], attributes.mask[items]),
        mask,
        bias,
        seeds[1],
      )
      x = jnp.concatenate([x, features], axis=-1)
      x = jnp.einsum('bte,ed->btd', x, self.output)
      x = x + self.output_bias[None, None]
    return SequenceOutput(x, self.table, item_bias)


def stack_config(
  config: config_lib.SequentialConfig, kind: str
) -> config_lib.ModelConfig:
  """Returns the settings of the shared blocks.

  Raises:
    ValueError: the heads do not divide the embedding.
  """
  if config.embed_dim % config.num_heads:
    raise ValueError(
      f'sequential.embed_dim={config.embed_dim} is not divisible by'
      f' sequential.num_heads={config.num_heads}.'
    )
  return config_lib.ModelConfig(
    embed_dim=config.embed_dim,
    num_heads=config.num_heads,
    head_dim=config.embed_dim // config.num_heads,
    encoder_layers=config.num_layers,
    mlp_dim=config.mlp_dim,
    mlp_activation='gelu' if kind == 'bert4rec' else 'relu',
    dropout_rate=config.dropout_rate,
    attention_dropout_rate=config.dropout_rate,
  )


def abstract_params(model: SequenceModel) -> Any:
  """Returns the tree of `parameters.Parameter` boxes without computing any."""
  batch = 1 if model.mesh is None else model.mesh.size
  places = jnp.zeros((batch, 1), jnp.int32)
  real = jnp.ones((batch, 1), bool)
  attributes = None
  if model.kind == 'fdsa':
    one = (model.num_items, 1)
    attributes = ItemAttributes(jnp.zeros(one, jnp.int32), jnp.ones(one, bool))
  variables = jax.eval_shape(
    lambda key: model.init(
      key, places, real, real, attributes, deterministic=True
    ),
    jax.random.key(0),
  )
  return variables['params']


def forward_flops(
  model: SequenceModel, *, rows: int, length: int, scores: float
) -> float:
  """Returns floating-point operations of a forward pass.

  A product [a, b] x [b, c] counts 2 a b c.

  Args:
    model: the model.
    rows: sequences.
    length: places of a sequence; padding counts.
    scores: items that are scored, over all places and rows.
  """
  c = model.config
  dim = c.embed_dim
  block = 2 * 4 * dim * dim + 2 * 2 * length * dim + 2 * 2 * dim * c.mlp_dim
  stacks = 2 if model.kind == 'fdsa' else 1
  output = {'sasrec': 0, 'bert4rec': 2 * dim * dim, 'fdsa': 4 * dim * dim}
  places = stacks * c.num_layers * block + output[model.kind]
  return float(rows * length * places + scores * 2 * dim)
