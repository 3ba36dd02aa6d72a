"""OneRec: encoder, session decoder, one output head per level.

v1 reads the history as tokens of semantic IDs; the technical report reads
pathways and decodes sessions of one item, which is a setting of the same
decoder.
"""

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

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import code_embedding
from onerec_jax.model import code_head
from onerec_jax.model import decoder as decoder_module
from onerec_jax.model import encoder_input
from onerec_jax.model import history_encoder
from onerec_jax.model import moe
from onerec_jax.model import pathway_encoder
from onerec_jax.ops import dropout
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

Context = decoder_module.Context
DecoderCache = decoder_module.DecoderCache
Encoded = history_encoder.Encoded
RouterStats = moe.RouterStats

# Dropout sites of the four stack ends: input and output of both stacks.
_ENDS = 4


class OneRecOutput(NamedTuple):
  """Teacher-forced predictions of a batch of sessions."""

  logits: Float[Array, 'B M L C']  # f32; MASK_VALUE beyond a level's codes
  # What predicts the first code of every item, and the item as a whole.
  starts: Float[Array, 'B M D']
  router: RouterStats  # load [layers, E] over real decoder tokens


def initial_router_bias(config: config_lib.ModelConfig) -> np.ndarray:
  """Returns the model state at step 0: zeros, float32. [layers, E]

  The layers are the decoder's, after the encoder's if those have experts.
  """
  layers = config.decoder_layers
  if pathway_encoder.has_experts(config):
    layers += config.encoder_layers
  return np.zeros((layers, config.moe.num_experts), np.float32)


class OneRec(nn.Module):
  """Encoder-decoder that generates a session of semantic IDs.

  The decoder reads, for item i, BOS, s^1, …, s^L at positions i (L + 1) + j;
  the state at j < L predicts s^{j+1}.  The state at s^L predicts nothing (the
  next token is BOS) but counts as a real token for the router.

  Reference: OneRec, arXiv:2502.18965, section 3.2; technical report,
  arXiv:2506.13695, sections 2.2-2.3.
  """

  config: config_lib.ModelConfig
  vocabulary: vocabulary_lib.Vocabulary
  items_per_session: int  # m; decoder length is m (L + 1)
  dropout_bits: Literal['hash', 'threefry'] = 'hash'
  mesh: jax.sharding.Mesh | None = None  # None or one device: no sharding
  sizes: batch_lib.FeatureSizes | None = None  # encoder='pathways' only

  def setup(self) -> None:
    c, v = self.config, self.vocabulary
    self.embed = code_embedding.declare(self, c, v, self.mesh)
    self.head = code_head.declare(self, c, self.embed)
    if c.encoder == 'pathways':
      if self.sizes is None:
        raise ValueError("encoder='pathways' needs the sizes of the features.")
      self.encoder = pathway_encoder.PathwayEncoder(c, self.sizes, self.mesh)
    else:
      self.encoder = history_encoder.HistoryEncoder(c, self.mesh)
    self.decoder = decoder_module.Decoder(c, self.mesh)

  def _seeds(self, deterministic: bool) -> Any:
    """Returns dropout seeds (encoder's, decoder's); (None, None): none."""
    c = self.config
    if deterministic or c.dropout_rate == c.attention_dropout_rate == 0:
      return None, None
    inner = c.encoder_layers * history_encoder.SITES
    total = _ENDS + inner + c.decoder_layers * decoder_module.SITES
    seeds = dropout.site_seeds(
      self.make_rng('dropout'), (total,), bits=self.dropout_bits
    )
    rest = seeds.shape[1:]
    first = seeds[_ENDS : _ENDS + inner].reshape(c.encoder_layers, -1, *rest)
    second = seeds[_ENDS + inner :].reshape(c.decoder_layers, -1, *rest)
    return (seeds[:2], first), (seeds[2:_ENDS], second)

  def _decoder_bias(
    self, router_bias: Float[Array, 'layers E']
  ) -> Float[Array, 'decoder_layers E']:
    """Returns the rows of the decoder, which are the last ones."""
    return router_bias[-self.config.decoder_layers :]

  def _encode(
    self,
    inputs: encoder_input.EncoderInput,
    router_bias: jax.Array | None,
    seeds: Any,
    *,
    exchange: Literal['all_gather', 'all_to_all'],
  ) -> tuple[Encoded, RouterStats | None]:
    if self.config.encoder == 'pathways':
      return self._encode_pathways(inputs, router_bias, seeds, exchange)
    tokens, token_mask = history_encoder.history_tokens(
      self.vocabulary,
      inputs.codes,
      inputs.mask,
      inputs.user,
      separator=self.config.history_separator,
    )
    x = self.embed.of_history(
      tokens,
      inputs.codes,
      inputs.mask,
      separator=self.config.history_separator,
    )
    assert isinstance(self.encoder, history_encoder.HistoryEncoder)
    return self.encoder(x, token_mask, seeds), None

  def _encode_pathways(
    self,
    inputs: encoder_input.EncoderInput,
    router_bias: jax.Array | None,
    seeds: Any,
    exchange: Literal['all_gather', 'all_to_all'],
  ) -> tuple[Encoded, RouterStats | None]:
    context, catalogue = inputs.context, inputs.catalogue
    if context is None or catalogue is None or catalogue.features is None:
      raise ValueError(
        "encoder='pathways' reads the users' context and the items' features:"
        ' make the input by encoder_input.of_batch, of batches with a context.'
      )

    def item_vectors(items: jax.Array) -> jax.Array:
      return self.embed.of_items(catalogue.codes[items])

    if pathway_encoder.has_experts(self.config):
      if router_bias is None:
        raise ValueError('An encoder with experts needs the router bias.')
      router_bias = router_bias[: self.config.encoder_layers]
    else:
      router_bias = None
    assert isinstance(self.encoder, pathway_encoder.PathwayEncoder)
    return self.encoder(
      context,
      inputs.user,
      item_vectors,
      catalogue.features,
      seeds,
      router_bias,
      exchange=exchange,
    )

  def encode(
    self,
    inputs: encoder_input.EncoderInput,
    router_bias: Float[Array, 'layers E'] | None = None,
    *,
    deterministic: bool = True,
  ) -> Encoded:
    """Encodes users.

    Args:
      inputs: of `encoder_input.of_batch`.
      router_bias: read by an encoder with experts only. [layers, E]
      deterministic: False: dropout, needs rngs={'dropout': key}.

    Returns:
      States, zero at padding, and their mask.
    """
    seeds, _ = self._seeds(deterministic)
    # The router's counts are not returned: nothing may be dropped.
    return self._encode(inputs, router_bias, seeds, exchange='all_gather')[0]

  def __call__(
    self,
    inputs: encoder_input.EncoderInput,
    target_codes: Int[Array, 'B M L'],
    target_mask: Bool[Array, 'B M'],
    router_bias: Float[Array, 'layers E'],
    *,
    deterministic: bool,
  ) -> OneRecOutput:
    """Predicts every code of the target session from the codes before it.

    Args:
      inputs: of `encoder_input.of_batch`.
      target_codes: the session, pads at the end. [B, M, L]
      target_mask: False: padding, kept out of the experts. [B, M]
      router_bias: `initial_router_bias` or its updated value. [layers, E]
      deterministic: False: dropout, needs rngs={'dropout': key}.

    Returns:
      Logits per level and the router's counts.
    """
    encoder_seeds, decoder_seeds = self._seeds(deterministic)
    encoded, encoder_stats = self._encode(
      inputs, router_bias, encoder_seeds, exchange=self.config.moe.exchange
    )
    batch, items, levels = target_codes.shape
    token_mask = jnp.repeat(target_mask, levels + 1, axis=1)
    x, stats = self.decoder(
      self.embed.of_sessions(target_codes),
      encoded,
      token_mask,
      self._decoder_bias(router_bias),
      decoder_seeds,
    )
    if encoder_stats is not None:
      stats = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), encoder_stats, stats
      )
    x = x.reshape(batch, items, levels + 1, -1)[:, :, :levels]
    return OneRecOutput(self.head.logits_of_items(x), x[:, :, 0], stats)

  def item_vectors(self, codes: Int[Array, '*b L']) -> Float[Array, '*b D']:
    """Returns what items are scored with: `starts` · vector, up to a constant.

    The sum of the embeddings of an item's codes and of its whole ID, if it has
    one, scaled as tied heads are.
    """
    return self.head.scaled(self.embed.of_items(codes))

  def item_scores(
    self,
    codes: Int[Array, 'B W L'],
    context: Context,
    router_bias: Float[Array, 'layers E'],
  ) -> Float[Array, 'B W']:
    """Returns log p(item) of W items per user, but for a constant per user.

    p is over the whole catalogue, of the first item that is generated.

    Args:
      codes: the items'; those of no item count as zeros.
      context: from `start_decoding`.
      router_bias: frozen. [layers, E]
    """
    users = codes.shape[0]
    begin = self.embed.after(jnp.zeros((users, 1, 0), codes.dtype))
    start, _ = self.decoder.step(
      begin,
      jnp.zeros((), jnp.int32),
      self.init_cache(batch=users, beams=1, length=1),
      context,
      self._decoder_bias(router_bias),
    )
    return jnp.einsum(
      'bd,bwd->bw',
      start[:, 0],
      self.item_vectors(jnp.maximum(codes, 0)),
      preferred_element_type=jnp.float32,
    )

  def session_log_probs(
    self,
    encoded: Encoded,
    prefix_codes: Int[Array, 'B J L'],
    prefix_mask: Bool[Array, 'B J'],
    codes: Int[Array, 'B W M L'],
    mask: Bool[Array, 'B W M'],
    router_bias: Float[Array, 'layers E'],
  ) -> Float[Array, 'B W M L']:
    """Returns the log-probability of every code of W sessions per user.

      log p(s_i^l | history, prefix, s_<i, s_i^<l)

    The encoder is not run again and its states are not repeated.  No dropout.

    Args:
      encoded: the histories.
      prefix_codes: items that count as the session's first ones, padding
        first; none: J = 0. [B, J, L]
      prefix_mask: False: padding. [B, J]
      codes: the sessions, pads at the end. [B, W, M, L]
      mask: False: padding, its log-probabilities are 0. [B, W, M]
      router_bias: frozen. [layers, E]

    Returns:
      float32, nats, normalised within the level; BOS is not scored.
    Reference: 2502.18965 eq. 4 and 10.
    """
    batch, width, items, levels = codes.shape
    before = self.embed.of_sessions(prefix_codes)
    before_mask = jnp.repeat(prefix_mask, levels + 1, axis=1)
    start, embed_dim = before.shape[1:]
    own = self.embed.of_sessions(codes.reshape(batch, width * items, levels))
    x = jnp.concatenate(
      [
        jnp.broadcast_to(before[:, None], (batch, width, start, embed_dim)),
        own.reshape(batch, width, -1, embed_dim),
      ],
      axis=2,
    )
    token_mask = jnp.concatenate(
      [
        jnp.broadcast_to(before_mask[:, None], (batch, width, start)),
        jnp.repeat(mask, levels + 1, axis=-1),
      ],
      axis=-1,
    )
    x = self.decoder.score(
      x, encoded, token_mask, self._decoder_bias(router_bias)
    )
    x = x[:, :, start:].reshape(batch, width, items, levels + 1, -1)
    return self.head.log_probs(x[..., :levels, :], codes, mask)

  def start_decoding(
    self,
    encoded: Encoded,
    prefix_codes: Int[Array, 'B J L'],
    prefix_mask: Bool[Array, 'B J'],
    router_bias: Float[Array, 'layers E'],
  ) -> Context:
    """Returns what all decoding steps read, shared by all beams.

    Args:
      encoded: the history.
      prefix_codes: items that count as the session's first ones, padding
        first; none: J = 0. [B, J, L]
      prefix_mask: False: padding. [B, J]
      router_bias: frozen. [layers, E]
    """
    token_mask = jnp.repeat(prefix_mask, self.vocabulary.levels + 1, axis=1)
    return self.decoder.start(
      encoded,
      self.embed.of_sessions(prefix_codes),
      token_mask,
      self._decoder_bias(router_bias),
    )

  def init_cache(self, *, batch: int, beams: int, length: int) -> DecoderCache:
    """Returns an empty cache for `length` tokens. [layers, B, W, T, H, K]"""
    c = self.config
    shape = (
      c.decoder_layers, batch, beams, length, c.num_heads, c.head_dim
    )  # fmt: skip
    zeros = jnp.zeros(shape, c.compute_dtype)
    return DecoderCache(zeros, zeros)

  def decode_step(
    self,
    prefix: Int[Array, 'B W l'],
    position: Int[Array, ''] | int,
    cache: DecoderCache,
    context: Context,
    router_bias: Float[Array, 'layers E'],
  ) -> tuple[Float[Array, 'B W C'], DecoderCache]:
    """Feeds one token per beam and predicts the next code.

    Args:
      prefix: the first l codes of the item; the token after them is fed: BOS
        where l = 0, else s^l. [B, W, l]
      position: of that token, i (L + 1) + l after the items of
        `start_decoding`, below the cache length.
      cache: of the positions before.
      context: from `start_decoding`.
      router_bias: frozen. [layers, E]

    Returns:
      log p of the codes of level l given the beam, normalised within the
      level, about MASK_VALUE beyond; zeros where l = L; and the cache with this
      position.
    """
    level = prefix.shape[-1]
    x, cache = self.decoder.step(
      self.embed.after(prefix),
      jnp.asarray(position),
      cache,
      context,
      self._decoder_bias(router_bias),
    )
    if level == self.vocabulary.levels:
      shape = (*prefix.shape[:2], self.vocabulary.max_codes)
      return jnp.zeros(shape, jnp.float32), cache
    return jax.nn.log_softmax(self.head.logits(x, level), axis=-1), cache


def abstract_params(model: OneRec) -> Any:
  """Returns the tree of `parameters.Parameter` boxes without computing any."""
  levels, items = model.vocabulary.levels, model.items_per_session
  batch = 1 if model.mesh is None else model.mesh.size
  integer = jnp.int32
  variables = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0),  # in here: outside it would be compiled
      encoder_input.zeros(model.config, model.sizes, levels=levels, rows=batch),
      jnp.zeros((batch, items, levels), integer),
      jnp.ones((batch, items), bool),
      jnp.asarray(initial_router_bias(model.config)),
      deterministic=True,
    )
  )
  return variables['params']
