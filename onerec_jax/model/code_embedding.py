"""What encoder and decoder read: embeddings of codes, whole IDs and recency."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax.model import layers
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeEmbedding:
  """Looks up what tokens, sessions and histories are to the model.

  D is the model's width, L the codes of an item.
  """

  tokens: Float[Array, 'V D']
  ids: Float[Array, 'buckets D'] | None  # of whole IDs; None: not read
  recency: Float[Array, 'ages D'] | None  # of items ago; None: not read
  vocabulary: vocabulary_lib.Vocabulary
  dtype: str  # of what is returned
  mesh: jax.sharding.Mesh | None

  def of_tokens(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Returns the embeddings of token ids, rows split over the mesh."""
    x = self.tokens[tokens].astype(self.dtype)
    return layers.shard_batch(x, self.mesh)

  def of_items(self, codes: Int[Array, '*b L']) -> Float[Array, '*b D']:
    """Returns one vector per item: the sum over its codes, and its ID's."""
    tokens = self.vocabulary.tokens(codes)
    x = jnp.sum(self.tokens[tokens].astype(self.dtype), axis=-2)
    return x if self.ids is None else x + self._of_ids(self.ids, codes)

  def of_sessions(
    self, codes: Int[Array, 'B M L']
  ) -> Float[Array, 'B M*(L+1) D']:
    """Returns what the decoder reads of sessions: BOS, s^1, …, s^L of each."""
    begin = jnp.full_like(codes[..., :1], vocabulary_lib.BOS)
    tokens = jnp.concatenate([begin, self.vocabulary.tokens(codes)], axis=-1)
    x = self.of_tokens(tokens.reshape(codes.shape[0], -1))
    return self._with_ids(x, codes, before=codes.shape[-1], after=0)

  def after(self, prefix: Int[Array, 'B W l']) -> Float[Array, 'B W D']:
    """Returns what the decoder reads after the first l codes of an item."""
    x = self.of_tokens(self.vocabulary.last_token(prefix))
    if self.ids is None or prefix.shape[-1] < self.vocabulary.levels:
      return x
    return x + self._of_ids(self.ids, prefix)

  def of_history(
    self,
    tokens: Int[Array, 'B S'],
    codes: Int[Array, 'B N L'],
    mask: Bool[Array, 'B N'],
    *,
    separator: bool,
  ) -> Float[Array, 'B S D']:
    """Returns what the encoder reads of a history.

    Args:
      tokens: of `history_encoder.history_tokens`.
      codes: of the items, oldest first.
      mask: False: padding.
      separator: whether SEP ends every item.
    """
    x = self.of_tokens(tokens)
    if self.recency is not None:
      x = x + self._ages(self.recency, mask, separator=separator)
    return self._with_ids(
      x, codes, before=codes.shape[-1] - 1, after=int(separator)
    )

  def _ages(
    self,
    table: Float[Array, 'ages D'],
    mask: Bool[Array, 'B N'],
    *,
    separator: bool,
  ) -> Float[Array, 'B S D']:
    """Returns the learned embedding of how many items ago a token was."""
    last = table.shape[0] - 1
    ago = jnp.sum(mask, axis=1, keepdims=True) - jnp.cumsum(mask, axis=1)
    per_item = separator + self.vocabulary.levels
    ago = jnp.repeat(jnp.clip(ago, 0, last), per_item, axis=1)
    if self.vocabulary.user_buckets:
      ago = jnp.pad(ago, ((0, 0), (1, 0)), constant_values=last)
    return table[ago].astype(self.dtype)

  def _of_ids(
    self, table: Float[Array, 'buckets D'], codes: Int[Array, '*b L']
  ) -> Float[Array, '*b D']:
    bucket = vocabulary_lib.id_bucket(codes, table.shape[0])
    return table[bucket].astype(self.dtype)

  def _with_ids(
    self,
    x: Float[Array, 'B T D'],
    codes: Int[Array, 'B N L'],
    *,
    before: int,
    after: int,
  ) -> Float[Array, 'B T D']:
    """Adds the embedding of every whole ID to the state of its last code.

    Args:
      x: states, those of the N items at the end; before + 1 + after of each.
      codes: of the items.
      before: tokens of an item before its last code.
      after: tokens of an item after it.
    """
    if self.ids is None:
      return x
    ids = self._of_ids(self.ids, codes)[:, :, None]
    ids = jnp.pad(ids, ((0, 0), (0, 0), (before, after), (0, 0)))
    ids = ids.reshape(x.shape[0], -1, x.shape[-1])
    ahead = x.shape[1] - ids.shape[1]  # the user's token
    return x + jnp.pad(ids, ((0, 0), (ahead, 0), (0, 0)))


def declare(
  module: nn.Module,
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  mesh: jax.sharding.Mesh | None,
) -> CodeEmbedding:
  """Declares the tables as parameters of `module`, in its setup.

  Args:
    module: gets 'embedding', and where the config asks for them 'id_embedding'
      and 'recency'.
    config: of the model.
    vocabulary: whose tokens are embedded.
    mesh: None or one device: no sharding.
  """
  dim = config.embed_dim
  ids = recency = None
  tokens = parameters.declare(
    module,
    'embedding',
    (vocabulary.size, dim),
    ('vocab', 'embed'),
    parameters.Initializer(stddev=1.0),
  )
  if config.id_buckets:
    ids = parameters.declare(
      module,
      'id_embedding',
      (config.id_buckets, dim),
      ('vocab', 'embed'),
      parameters.Initializer(stddev=0.1),  # little beside the codes'
    )
  if config.history_recency:
    recency = parameters.declare(
      module,
      'recency',
      (config.relative_max_distance, dim),
      (None, 'embed'),
      parameters.Initializer(stddev=0.1),
    )
  return CodeEmbedding(
    tokens=tokens,
    ids=ids,
    recency=recency,
    vocabulary=vocabulary,
    dtype=config.compute_dtype,
    mesh=mesh,
  )
