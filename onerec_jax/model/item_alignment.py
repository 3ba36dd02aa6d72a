"""Item tokens to aligned vectors, and aligned vectors to captions.

A projection per part, a QFormer and a small causal decoder.  Knows no pairs:
what brings vectors together is objectives/item_alignment.py.
"""

import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax.model import history_encoder
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.model import qformer
from onerec_jax.ops import attention
from onerec_jax.ops import dropout

_SMALL = 0.02  # of learned positions, as in BERT


class TokenLayout(NamedTuple):
  """Which tokens of an item belong to which part (data/item_tokens.py)."""

  num_tokens: tuple[int, ...]  # of each part; sums to T
  widths: tuple[int, ...]  # of each part's vectors; the largest is d


class AlignerOutput(NamedTuple):
  """A batch of items, encoded and described."""

  vectors: Float[Array, 'A Q D']
  logits: Float[Array, 'B W V'] | None  # of the captions; None: there are none


class CaptionDecoder(nn.Module):
  """Causal Transformer over words that begins with an item's vectors.

    [P m_1 … P m_Q, E t_1 … E t_W-1] -> words t_1 … t_W

  Pre-norm, learned positions; the head is the word table E.  Replaces the
  large language model of the report.
  """

  config: config_lib.ItemAlignmentConfig
  vocabulary_size: int

  def setup(self) -> None:
    c = self.config
    width = c.caption_dim
    heads = math.gcd(width, c.num_heads)
    inner = config_lib.ModelConfig(
      embed_dim=width,
      num_heads=heads,
      head_dim=width // heads,
      mlp_dim=4 * width,
      mlp_activation='gelu',
      dropout_rate=c.dropout_rate,
      attention_dropout_rate=c.dropout_rate,
    )
    declare = functools.partial(parameters.declare, self)
    self.prefix = declare(
      'prefix',
      (c.dim, width),
      ('embed', 'mlp'),
      parameters.Initializer(stddev=c.dim**-0.5),
    )
    self.words = declare(
      'words',
      (self.vocabulary_size, width),
      ('vocab', 'embed'),
      parameters.Initializer(stddev=width**-0.5),
    )
    self.positions = declare(
      'positions',
      (c.num_queries + c.caption_tokens - 1, width),
      (None, 'embed'),
      parameters.Initializer(stddev=_SMALL),
    )
    self.layers = [
      history_encoder.EncoderLayer(inner) for _ in range(c.caption_layers)
    ]
    self.final_norm = layers.RMSNorm(width)

  def __call__(
    self,
    vectors: Float[Array, 'B Q D'],
    words: Int[Array, 'B W'],
    *,
    deterministic: bool,
  ) -> Float[Array, 'B W V']:
    """Returns the logits of each word given the vectors and the words before.

    Args:
      vectors: of the items. [B, Q, D]
      words: captions; padding is at the end, where no real word sees it. [B, W]
      deterministic: False: dropout, needs rngs={'dropout': key}.
    """
    c = self.config
    seeds = [None] * c.caption_layers
    if not deterministic and c.dropout_rate > 0:
      seeds = dropout.site_seeds(
        self.make_rng('dropout'),
        (c.caption_layers, history_encoder.SITES),
        bits='hash',
      )
    start = jnp.einsum('bqd,dw->bqw', vectors, self.prefix)
    # Rows of the table have norm 1, the states norm sqrt(width).
    before = self.words[words[:, :-1]] * c.caption_dim**0.5
    x = jnp.concatenate([start, before], axis=1)
    x = x + self.positions[None, : x.shape[1]]
    bias = jnp.asarray(attention.causal_bias(x.shape[1]))[None, None]
    for layer, layer_seeds in zip(self.layers, seeds, strict=True):
      x, _ = layer(x, layer_seeds, bias)
    x = self.final_norm(x[:, c.num_queries - 1 :])
    return jnp.einsum('btw,vw->btv', x, self.words)


class ItemAligner(nn.Module):
  """Projections, QFormer and caption decoder.

    x_t = e_t W_part(t) + s_t;  m = QFormer(x_1 … x_T)

  with a matrix per part, as parts differ in kind and width, and a learned
  vector s_t per token.

  Reference: OneRec technical report, arXiv:2506.13695, section 2.1.1.
  """

  config: config_lib.ItemAlignmentConfig
  layout: TokenLayout
  vocabulary_size: int  # words; 0: no captions

  def setup(self) -> None:
    c = self.config
    self.projections = [
      parameters.declare(
        self,
        f'projection_{i}',
        (width, c.dim),
        (None, 'embed'),
        parameters.Initializer(stddev=width**-0.5),
      )
      for i, width in enumerate(self.layout.widths)
    ]
    self.slots = parameters.declare(
      self,
      'slots',
      (sum(self.layout.num_tokens), c.dim),
      (None, 'embed'),
      parameters.Initializer(stddev=_SMALL),
    )
    self.qformer = qformer.QFormer(
      num_queries=c.num_queries,
      dim=c.dim,
      num_layers=c.num_layers,
      num_heads=c.num_heads,
      mlp_dim=c.mlp_dim,
      residual=c.residual,
      dropout_rate=c.dropout_rate,
    )
    if self.vocabulary_size:
      self.decoder = CaptionDecoder(c, self.vocabulary_size)

  def encode(
    self,
    tokens: Float[Array, 'B T d'],
    mask: Bool[Array, 'B T'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B Q D']:
    """Returns the aligned vectors of items.

    Args:
      tokens: standardised, padded with zeros to the widest part. [B, T, d]
      mask: False: the token says nothing. [B, T]
      deterministic: False: dropout, needs rngs={'dropout': key}.
    """
    parts, first = [], 0
    for count, width, kernel in zip(
      *self.layout, self.projections, strict=True
    ):
      part = tokens[:, first : first + count, :width]
      parts.append(jnp.einsum('btw,wd->btd', part, kernel))
      first += count
    x = jnp.concatenate(parts, axis=1) + self.slots[None]
    rate = self.config.dropout_rate
    if not deterministic and rate > 0:
      seeds = dropout.site_seeds(self.make_rng('dropout'), (1,), bits='hash')
      x = dropout.drop(x, seeds[0], rate=rate)
    return self.qformer(x, mask, deterministic=deterministic)

  def caption_logits(
    self,
    vectors: Float[Array, 'B Q D'],
    words: Int[Array, 'B W'],
    *,
    deterministic: bool = True,
  ) -> Float[Array, 'B W V']:
    """Returns `CaptionDecoder`'s logits; only with a vocabulary."""
    return self.decoder(vectors, words, deterministic=deterministic)

  def __call__(
    self,
    tokens: Float[Array, 'A T d'],
    mask: Bool[Array, 'A T'],
    words: Int[Array, 'B W'] | None,
    *,
    deterministic: bool = True,
  ) -> AlignerOutput:
    """Returns `encode` and, of the first rows, the logits of their `words`.

    Args:
      tokens: of all rows. [A, T, d]
      mask: [A, T]
      words: captions of the first B rows; None: no logits. [B, W]
      deterministic: False: dropout, needs rngs={'dropout': key}.
    """
    vectors = self.encode(tokens, mask, deterministic=deterministic)
    if words is None:
      return AlignerOutput(vectors, None)
    logits = self.caption_logits(
      vectors[: len(words)], words, deterministic=deterministic
    )
    return AlignerOutput(vectors, logits)


def abstract_params(model: ItemAligner) -> Any:
  """Returns the tree of `parameters.Parameter` boxes, without values."""
  count = sum(model.layout.num_tokens)
  tokens = jnp.zeros((1, count, max(model.layout.widths)))
  words = jnp.zeros((1, model.config.caption_tokens), jnp.int32)
  mask = jnp.ones((1, count), bool)
  return jax.eval_shape(
    lambda key: model.init(
      key, tokens, mask, words if model.vocabulary_size else None
    ),
    jax.random.key(0),
  )['params']
