"""Model FLOPs by formula, for the MFU estimate; counts matrix products only.

A product [a, b] x [b, c] counts 2 a b c.  Padding counts, experts count for
the chosen slots only, and cross-attention counts in the form that is run.
"""

from typing import NamedTuple

from onerec_jax import config as config_lib
from onerec_jax.model import pathways
from onerec_jax.ops import attention
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


class _Sizes(NamedTuple):
  """What the counts of one example are made of."""

  model: config_lib.ModelConfig
  vocabulary: vocabulary_lib.Vocabulary
  tokens: int  # of the encoder, S

  @property
  def width(self) -> int:
    return self.model.num_heads * self.model.head_dim

  def mlp(self, hidden: int, activation: str) -> int:
    """Of one token."""
    d = self.model.embed_dim
    return 2 * d * hidden * (3 if activation == 'swiglu' else 2)

  @property
  def dense(self) -> int:
    """Feed-forward of one token."""
    return self.mlp(self.model.mlp_dim, self.model.mlp_activation)

  @property
  def experts(self) -> int:
    """Router and chosen experts of one token."""
    moe = self.model.moe
    router = 2 * self.model.embed_dim * moe.num_experts
    return router + moe.top_k * self.mlp(moe.expert_dim, moe.activation)

  @property
  def feed_forward(self) -> int:
    """Of one decoder token."""
    return self.experts if self.model.moe.enabled else self.dense

  def self_attention(self, length: int) -> int:
    """Of a whole sequence."""
    d, width = self.model.embed_dim, self.width
    return length * (2 * 4 * d * width + 2 * 2 * length * width)

  def project(self) -> int:
    """Keys and values of the encoder states, one decoder layer."""
    return 2 * 2 * self.tokens * self.model.embed_dim * self.width

  def cross_attention(self, queries: int) -> int:
    """Of one decoder layer, in the form that is run."""
    c, s, d, width = self.model, self.tokens, self.model.embed_dim, self.width
    absorbed = c.cross_attention == 'absorbed'
    if c.cross_attention == 'auto':
      absorbed = attention.absorbed_is_cheaper(
        num_queries=queries,
        num_keys=s,
        embed_dim=d,
        heads=c.num_heads,
        head_dim=c.head_dim,
      )
    ends = queries * 2 * 2 * d * width  # queries and output
    if absorbed:
      folded = 2 * 2 * queries * d * width
      return ends + folded + 2 * 2 * queries * s * c.num_heads * d
    return ends + self.project() + 2 * 2 * queries * s * width

  def head(self) -> int:
    """All levels of one item."""
    return 2 * self.model.embed_dim * sum(self.vocabulary.codes_per_level)

  def encoder(self) -> int:
    """The whole encoder."""
    c, s = self.model, self.tokens
    layer = self.self_attention(s) + s * self.dense
    if c.encoder == 'pathways' and c.moe.enabled and c.moe.location == 'both':
      layer += s * (self.experts - self.dense)
    return c.encoder_layers * layer

  def decoder(self, *, sequences: int, items: int) -> int:
    """The whole decoder and its heads, teacher forcing."""
    t = items * (self.vocabulary.levels + 1)
    layer = (
      sequences * (self.self_attention(t) + t * self.feed_forward)
      + self.cross_attention(sequences * t)
    )  # fmt: skip
    return self.model.decoder_layers * layer + sequences * items * self.head()


def encoder_tokens(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
) -> int:
  """Returns the length S that the encoder runs at.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N; 'pathways' have lengths of their
      own.
  """
  if config.encoder == 'pathways':
    return pathways.num_tokens(config.pathways)
  per_item = vocabulary.levels + config.history_separator
  return history_items * per_item + bool(vocabulary.user_buckets)


def _sizes(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  history_items: int,
) -> _Sizes:
  tokens = encoder_tokens(config, vocabulary, history_items=history_items)
  return _Sizes(config, vocabulary, tokens)


def forward_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  items_per_session: int,
) -> float:
  """Returns floating-point operations of one example's forward pass.

  The few features of a token of a pathway are not counted.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N, items.
    items_per_session: m.
  """
  return score_flops(
    config,
    vocabulary,
    history_items=history_items,
    items_per_session=items_per_session,
    num_sessions=1,
  )


def train_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  items_per_session: int,
  scored_items: int = 0,
) -> float:
  """Returns FLOPs of one example's training step: 3 x forward.

  The backward pass takes two products per forward product; recomputation
  (remat) is not counted, as in the definition of MFU.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N, items.
    items_per_session: m.
    scored_items: whole items that every target is scored against; 0: none.
  """
  forward = forward_flops(
    config,
    vocabulary,
    history_items=history_items,
    items_per_session=items_per_session,
  )
  return 3 * (forward + 2 * items_per_session * config.embed_dim * scored_items)


def score_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  items_per_session: int,
  num_sessions: int,
) -> float:
  """Returns FLOPs of scoring W sessions of one user, who is encoded once.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N, items.
    items_per_session: of each session, those it begins with included.
    num_sessions: W: a pair's two, or the G outputs of a group.
  """
  sizes = _sizes(config, vocabulary, history_items)
  decoder = sizes.decoder(sequences=num_sessions, items=items_per_session)
  return float(sizes.encoder() + decoder)


def decode_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  num_beams: int,
  num_items: int,
  continue_items: int = 0,
) -> float:
  """Returns FLOPs of generating one user's sessions by beam search.

  Keys and values of the encoder states are projected once; the first code of
  the first item is predicted by one beam, all else by every beam.  Attention
  to the cache counts at its full length, as it is run.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N, items, without `continue_items`.
    num_beams: W.
    num_items: M, generated per session.
    continue_items: J, items that begin the session.
  """
  sizes = _sizes(config, vocabulary, history_items)
  d, width, levels = config.embed_dim, sizes.width, vocabulary.levels
  cached = (num_items + continue_items) * (levels + 1)
  token = (
    2 * 4 * d * width  # self-attention's matrices
    + 2 * 2 * cached * width
    + 2 * 2 * d * width  # cross-attention's queries and output
    + 2 * 2 * sizes.tokens * width
    + sizes.feed_forward
  )
  first = 1 + (levels - 1) * num_beams
  tokens = first + (num_items - 1) * (levels + 1) * num_beams
  per_level = [2 * d * codes for codes in vocabulary.codes_per_level]
  heads = num_items * num_beams * sum(per_level)
  heads -= (num_beams - 1) * per_level[0]  # the first code: one beam
  prefix = 0
  if continue_items:
    t = continue_items * (levels + 1)
    prefix = sizes.self_attention(t) + t * sizes.feed_forward
    prefix += sizes.cross_attention(t)
  layers = sizes.project() + prefix + tokens * token
  return float(sizes.encoder() + config.decoder_layers * layers + heads)
