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
from onerec_jax.model import parameters
from onerec_jax.model import sequence_blocks
from onerec_jax.ops import attention
from onerec_jax.ops import dropout


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
      sequence_blocks.SMALL,
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
    dim = self.config.embed_dim
    small, zeros = sequence_blocks.SMALL, sequence_blocks.ZEROS
    stack = stack_config(self.config, self.kind, self.max_length)
    declare = functools.partial(parameters.declare, self)
    self.table = declare(
      'table', (self.num_items, dim), ('vocab', 'embed'), small
    )
    self.stack = sequence_blocks.Stack(stack, self.mesh)
    width = dim
    if self.kind == 'fdsa':
      self.pooling = AttributePooling(self.num_attributes, dim)
      self.attribute_stack = sequence_blocks.Stack(stack, self.mesh)
      width = 2 * dim
    if self.kind == 'bert4rec':
      self.mask_item = declare('mask_item', (1, dim), (None, 'embed'), small)
      self.item_bias = declare(
        'item_bias', (self.num_items,), ('vocab',), zeros
      )
    if self.kind != 'sasrec':
      even = parameters.Initializer(stddev=width**-0.5)
      self.output = declare('output', (width, dim), (None, 'embed'), even)
      self.output_bias = declare('output_bias', (dim,), ('embed',), zeros)

  def _seeds(self, deterministic: bool) -> Any:
    """Returns the dropout seeds of both stacks, or Nones."""
    sites = self.stack.config.sites
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
    if self.kind == 'fdsa':
      assert attributes is not None
      features = self.attribute_stack(
        self.pooling(attributes.ids[items], attributes.mask[items]),
        mask,
        bias,
        seeds[1],
      )
      x = jnp.concatenate([x, features], axis=-1)
    if self.kind != 'sasrec':
      x = jnp.einsum('bte,ed->btd', x, self.output)
      x = x + self.output_bias[None, None]
    if self.kind == 'bert4rec':
      x = jax.nn.gelu(x)
      item_bias = self.item_bias
    return SequenceOutput(x, self.table, item_bias)


def stack_config(
  config: config_lib.SequentialConfig, kind: str, max_length: int
) -> sequence_blocks.StackConfig:
  """Returns the settings of a model's stacks.

  Raises:
    ValueError: the heads do not divide the embedding.
  """
  if config.embed_dim % config.num_heads:
    raise ValueError(
      f'sequential.embed_dim={config.embed_dim} is not divisible by'
      f' sequential.num_heads={config.num_heads}.'
    )
  return sequence_blocks.StackConfig(
    embed_dim=config.embed_dim,
    num_heads=config.num_heads,
    num_layers=config.num_layers,
    mlp_dim=config.mlp_dim,
    activation='gelu' if kind == 'bert4rec' else 'relu',
    norm='pre' if kind == 'sasrec' else 'post',
    dropout_rate=config.dropout_rate,
    max_length=max_length,
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
