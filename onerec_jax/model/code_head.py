"""What the decoder's states predict: codes, level by level."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax.model import code_embedding
from onerec_jax.model import parameters
from onerec_jax.ops import attention
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeHead:
  """One output head per level, padded to the largest level.

  D is the model's width, L the codes of an item, C those of the largest level.
  """

  tokens: Float[Array, 'V D']  # embeddings, read where heads are tied to them
  untied: Float[Array, 'L D C'] | None  # None: tied
  vocabulary: vocabulary_lib.Vocabulary

  def logits(self, x: Float[Array, '*b D'], level: int) -> Float[Array, '*b C']:
    """Returns float32 logits over the codes of `level`, MASK_VALUE beyond."""
    v = self.vocabulary
    size, start = v.codes_per_level[level], v.offsets[level]
    if self.untied is None:
      x = self.scaled(x)
      kernel = self.tokens[start : start + size].T
    else:
      kernel = self.untied[level, :, :size]
    logits = jnp.einsum(
      '...d,dc->...c',
      x,
      kernel.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
    pad = [(0, 0)] * (logits.ndim - 1) + [(0, v.max_codes - size)]
    return jnp.pad(logits, pad, constant_values=attention.MASK_VALUE)

  def scaled(self, x: Float[Array, '*b D']) -> Float[Array, '*b D']:
    """Returns states to be multiplied with a table that the input shares.

    Reference: T5, 1910.10683.
    """
    return x * jnp.asarray(self.tokens.shape[1] ** -0.5, x.dtype)

  def logits_of_items(
    self, x: Float[Array, '*b L D']
  ) -> Float[Array, '*b L C']:
    """Returns the logits of all levels, of states that stand level by level."""
    return jnp.stack(
      [
        self.logits(x[..., level, :], level)
        for level in range(self.vocabulary.levels)
      ],
      axis=-2,
    )

  def log_probs(
    self,
    x: Float[Array, '*b L D'],
    codes: Int[Array, '*b L'],
    mask: Bool[Array, '*b'],
  ) -> Float[Array, '*b L']:
    """Returns log p of each code of items, normalised within its level.

    Args:
      x: states that predict them.
      codes: of the items.
      mask: False: padding, its log-probabilities are 0.
    """
    result = []
    for level in range(self.vocabulary.levels):
      log_probs = jax.nn.log_softmax(self.logits(x[..., level, :], level))
      picked = jnp.take_along_axis(
        log_probs, codes[..., level, None], axis=-1, mode='clip'
      )
      result.append(jnp.where(mask, picked[..., 0], 0.0))
    return jnp.stack(result, axis=-1)


def declare(
  module: nn.Module,
  config: config_lib.ModelConfig,
  embedding: code_embedding.CodeEmbedding,
) -> CodeHead:
  """Declares 'head' as a parameter of `module`, in its setup, if it is untied.

  Args:
    module: the model.
    config: its config.
    embedding: whose tokens tied heads share.
  """
  v = embedding.vocabulary
  untied = None
  if not config.tie_head:
    untied = parameters.declare(
      module,
      'head',
      (v.levels, config.embed_dim, v.max_codes),
      (None, 'embed', 'codes'),
      parameters.Initializer(stddev=config.embed_dim**-0.5),
    )
  return CodeHead(tokens=embedding.tokens, untied=untied, vocabulary=v)
