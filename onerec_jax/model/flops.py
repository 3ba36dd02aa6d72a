"""Model FLOPs by formula, for the MFU estimate; counts matrix products only."""

from onerec_jax import config as config_lib
from onerec_jax.model import pathways
from onerec_jax.ops import attention
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


def forward_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  items_per_session: int,
) -> float:
  """Returns floating-point operations of one example's forward pass.

  A product [a, b] x [b, c] counts 2 a b c.  Padding counts, experts count for
  the chosen slots only, and cross-attention counts in the form that is run.

  Args:
    config: of the model.
    vocabulary: of the model.
    history_items: padded history length N, items.
    items_per_session: m.
  """
  c, levels = config, vocabulary.levels
  d, width = c.embed_dim, c.num_heads * c.head_dim
  if c.encoder == 'pathways':  # the few features of a token are not counted
    s = pathways.num_tokens(c.pathways)
  else:
    s = history_items * (levels + c.history_separator) + bool(
      vocabulary.user_buckets
    )
  t = items_per_session * (levels + 1)

  def mlp(hidden: int, activation: str) -> int:
    return 2 * d * hidden * (3 if activation == 'swiglu' else 2)

  def self_attention(length: int) -> int:
    return length * (2 * 4 * d * width + 2 * 2 * length * width)

  dense = mlp(c.mlp_dim, c.mlp_activation)
  experts = 2 * d * c.moe.num_experts + c.moe.top_k * mlp(
    c.moe.expert_dim, c.moe.activation
  )
  encoder = self_attention(s) + s * dense
  if c.encoder == 'pathways' and c.moe.enabled and c.moe.location == 'both':
    encoder += s * (experts - dense)
  shape = dict(
    num_queries=t,
    num_keys=s,
    embed_dim=d,
    heads=c.num_heads,
    head_dim=c.head_dim,
  )
  absorbed = (
    attention.absorbed_is_cheaper(**shape)
    if c.cross_attention == 'auto'
    else c.cross_attention == 'absorbed'
  )
  cross = t * 2 * 2 * d * width  # queries and output
  if absorbed:
    cross += 2 * 2 * t * d * width + 2 * 2 * t * s * c.num_heads * d
  else:
    cross += 2 * 2 * s * d * width + 2 * 2 * t * s * width
  if c.moe.enabled:
    feed_forward = t * experts
  else:
    feed_forward = t * dense
  decoder = self_attention(t) + cross + feed_forward
  head = 2 * items_per_session * d * sum(vocabulary.codes_per_level)
  return float(c.encoder_layers * encoder + c.decoder_layers * decoder + head)


def train_flops(
  config: config_lib.ModelConfig,
  vocabulary: vocabulary_lib.Vocabulary,
  *,
  history_items: int,
  items_per_session: int,
) -> float:
  """Returns FLOPs of one example's training step: 3 x forward.

  The backward pass takes two products per forward product; recomputation
  (remat) is not counted, as in the definition of MFU.
  """
  return 3 * forward_flops(
    config,
    vocabulary,
    history_items=history_items,
    items_per_session=items_per_session,
  )
