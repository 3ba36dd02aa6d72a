"""Self-attention of long sequences, one block of queries after the other.

Equal to `attention.attend` with relative positions, a key mask and hashed
dropout, but no [B, H, S, S] array exists, forward or backward: a block's scores
are computed again for its gradients.  For where the TPU kernel is not: CPUs,
whose caches a block fits in, and, not measured, accelerators, whose memory a
long history would fill.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import UInt32

from onerec_jax.ops import attention
from onerec_jax.ops import dropout

# Tokens from which blocks are used.  On a CPU they are faster from here on
# (experiments/benchmarks/LOG.md); elsewhere they are for memory's sake.
_FROM = {'cpu': 512}
_FROM_ELSEWHERE = 2048
# Queries of a block, and most of its scores per user and head.  Those of a CPU
# stay in its cache, while an accelerator wants large products.
_QUERIES = {'cpu': 32}
_QUERIES_ELSEWHERE = 512
_SCORES = {'cpu': 2**18}
_SCORES_ELSEWHERE = 2**24


def fits(*, length: int, platform: str) -> bool:
  """Returns whether sequences of this length are taken in blocks."""
  return length >= _FROM.get(platform, _FROM_ELSEWHERE)


def block_size(*, length: int, platform: str) -> int:
  """Returns the queries of a block."""
  scores = _SCORES.get(platform, _SCORES_ELSEWHERE)
  queries = _QUERIES.get(platform, _QUERIES_ELSEWHERE)
  return max(1, min(queries, scores // length))


def self_attention(
  queries: Float[Array, 'B S H K'],
  keys: Float[Array, 'B S H K'],
  values: Float[Array, 'B S H K'],
  mask: Bool[Array, 'B S'],
  distances: Float[Array, 'H 2*S-1'] | None,
  *,
  seed: UInt32[Array, '2'] | None,
  rate: float,
  block: int,
) -> Float[Array, 'B S H K']:
  """Multi-head self-attention over all positions.

    out = dropout(softmax(q k^T + position + mask)) v

  Args:
    queries: already scaled. [B, S, H, K]
    keys: [B, S, H, K]
    values: [B, S, H, K]
    mask: True: a real key. [B, S]
    distances: of `attention.distance_bias`; None: no positions.
    seed: one entry of `dropout.site_seeds` with hashed bits; None: no dropout.
      Drops what `dropout.drop` drops of the whole array of weights.
    rate: of dropout.
    block: queries of a block (Q); scores take B H Q S numbers.

  Returns:
    In the dtype of `values`. [B, S, H, K]
  Reference: Rabe and Staats 2021, arXiv:2112.05682; a row of scores is whole
  here.
  """
  # Mask and positions are those of every layer.  Were they not tied to what is
  # this layer's, JAX would make the bias of all blocks, an array of S^2 numbers
  # per head, before a loop over layers (what does not vary in it is hoisted).
  queries, mask, distances = jax.lax.optimization_barrier(
    (queries, mask, distances)
  )
  length = queries.shape[1]
  blocks = -(-length // block)
  beyond = blocks * block - length
  padded = jnp.pad(queries, ((0, 0), (0, beyond), (0, 0), (0, 0)))
  if distances is not None:
    distances = jnp.pad(distances, ((0, 0), (beyond, 0)))
  masked = attention.key_bias(mask)

  def attend(number: Int[Array, '']) -> Float[Array, 'B Q H K']:
    first = number * block
    bias = masked
    if distances is not None:
      # Of the last query of the block to the first key, and on.
      row = jax.lax.dynamic_slice_in_dim(
        distances, (blocks - 1 - number) * block, block + length - 1, axis=1
      )
      bias = bias + attention.skew(row, block)[None]
    return attention.attend(
      jax.lax.dynamic_slice_in_dim(padded, first, block, axis=1),
      keys,
      values,
      bias,
      weight_dropout=lambda w: _drop(w, seed, first, length, rate=rate),
    )

  # Without the barriers against common subexpressions, which a loop does not
  # need.
  again = jax.checkpoint(attend, prevent_cse=False)
  outputs = jax.lax.map(again, jnp.arange(blocks))  # [blocks, B, Q, H, K]
  joined = jnp.moveaxis(outputs, 0, 1).reshape(padded.shape)
  return joined[:, :length]


def _drop(
  weights: Float[Array, 'B H Q S'],
  seed: UInt32[Array, '2'] | None,
  first: Int[Array, ''],
  length: int,
  *,
  rate: float,
) -> Float[Array, 'B H Q S']:
  """Returns rows `first`.. of `dropout.drop` of the whole [B, H, S, S]."""
  if seed is None or rate == 0:
    return weights

  def place(axis: int) -> UInt32[Array, 'B H Q S']:
    return jax.lax.broadcasted_iota(jnp.uint32, weights.shape, axis)

  row = place(0) * np.uint32(weights.shape[1]) + place(1)
  row = row * np.uint32(length) + place(2)
  number = row * np.uint32(weights.shape[3]) + place(3)
  # Written so that TPU's compiler takes it: libtpu 0.0.42 crashes where `first`
  # is added to the row, and where weights are chosen and not multiplied.
  before = first.astype(jnp.uint32) * np.uint32(weights.shape[3])
  keep = dropout.keep_by_number(number, seed[0] + before, seed[1], rate=rate)
  scale = jnp.asarray(1 / (1 - rate), weights.dtype)
  return weights * jnp.where(keep, scale, 0)
