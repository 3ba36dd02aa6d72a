"""Multi-head attention and T5 relative positions as pure array functions.

Scores and softmax are float32 whatever the inputs are.  No parameters, no
Flax, no config.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

# Added to scores of masked keys.  Finite, so that a row without any key gives
# the mean of the values and finite gradients instead of NaN; two of them
# (causal + padding) still fit float32 and bfloat16.
MASK_VALUE = -1e30


def relative_buckets(
  num_queries: int,
  num_keys: int,
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, 'T S']:
  """Returns the T5 bucket of every (query, key) pair of positions.

  With d = key - query: half of the buckets (per direction when
  `bidirectional`) hold one distance each, the rest grow logarithmically up to
  `max_distance`; larger distances share the last bucket.

  Args:
    num_queries: query positions 0..T-1.
    num_keys: key positions 0..S-1.
    bidirectional: False: keys after the query all fall into bucket 0.
    num_buckets: total number of buckets.
    max_distance: distance from which the last bucket is used, tokens.

  Returns:
    Bucket numbers, computed by NumPy: a compile-time constant. [T, S]
  Reference: Raffel et al. 2020, arXiv:1910.10683, section 2.1.
  """
  distance = np.arange(num_keys)[None, :] - np.arange(num_queries)[:, None]
  return distance_buckets(
    distance,
    bidirectional=bidirectional,
    num_buckets=num_buckets,
    max_distance=max_distance,
  )


def distance_buckets(
  distance: Int[np.ndarray, '*n'],
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, '*n']:
  """Returns the T5 bucket of distances key - query; see `relative_buckets`."""
  first = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    first = np.where(distance > 0, num_buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(-distance, 0)
  exact = num_buckets // 2
  growth = np.log(np.maximum(distance, 1) / exact) / np.log(
    max_distance / exact
  )
  coarse = exact + (growth * (num_buckets - exact)).astype(np.int64)
  return first + np.where(
    distance < exact, distance, np.minimum(coarse, num_buckets - 1)
  )


def relative_bias(
  table: Float[Array, 'buckets H'], buckets: Int[np.ndarray, 'T S']
) -> Float[Array, 'H T S']:
  """Returns the score bias of every head and pair of positions, float32."""
  return jnp.transpose(table.astype(jnp.float32)[buckets], (2, 0, 1))


def distance_bias(
  table: Float[Array, 'buckets H'], length: int, *, max_distance: int
) -> Float[Array, 'H D']:
  """Returns the score bias of every head and distance, both directions.

  Args:
    table: bias per bucket, as for `relative_bias`.
    length: of the sequence (S).
    max_distance: distance from which the last bucket is used, tokens.

  Returns:
    float32; of the distances key - query = -(S - 1)..S - 1. [H, 2 S - 1]
  """
  buckets = distance_buckets(
    np.arange(1 - length, length),
    bidirectional=True,
    num_buckets=table.shape[0],
    max_distance=max_distance,
  )
  return table.astype(jnp.float32)[buckets].T


def expand_distances(
  distances: Float[Array, 'H D'], length: int
) -> Float[Array, 'H T T']:
  """Returns bias[h, t, s] = distances[h, s - t + S - 1] for S = (D + 1) / 2.

  Reshapes only: the gradient of a gather is a scatter, slow on TPU.

  Args:
    distances: from `distance_bias`. [H, 2 S - 1]
    length: T >= S; places beyond S are 0 or repeat others.
  """
  extra = length - (distances.shape[1] + 1) // 2
  return skew(jnp.pad(distances, ((0, 0), (extra, extra))), length)


def skew(row: Float[Array, 'H D'], rows: int) -> Float[Array, 'H R S']:
  """Returns out[h, r, s] = row[h, s + R - 1 - r] for S = D + 1 - R.

  Args:
    row: one number per distance. [H, D]
    rows: R, at most D.
  """
  heads, given = row.shape
  # Equal rows of D + 1, read as rows of D: each is one place further right.
  equal = jnp.broadcast_to(
    jnp.pad(row, ((0, 0), (0, 1)))[:, None], (heads, rows, given + 1)
  )
  skewed = equal.reshape(heads, -1)[:, : rows * given]
  return skewed.reshape(heads, rows, given)[:, :, rows - 1 :]


def causal_bias(length: int) -> Float[np.ndarray, 'T S']:
  """Returns 0 for keys up to the query and `MASK_VALUE` for later ones."""
  allowed = np.tril(np.ones((length, length), bool))
  return np.where(allowed, 0.0, MASK_VALUE).astype(np.float32)


def key_bias(mask: Bool[Array, 'B S']) -> Float[Array, 'B 1 1 S']:
  """Returns 0 for keys to attend to and `MASK_VALUE` for padding."""
  return jnp.where(mask, 0.0, MASK_VALUE).astype(jnp.float32)[:, None, None, :]


def attend(
  queries: Float[Array, 'B T H K'],
  keys: Float[Array, 'B S H K'],
  values: Float[Array, 'B S H K'],
  bias: Float[Array, '#B #H #T S'],
  *,
  weight_dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, 'B T H K']:
  """Multi-head attention.

    out = dropout(softmax(q k^T + bias)) v

  Args:
    queries: already scaled (by K^-0.5 or as the model wants). [B, T, H, K]
    keys: [B, S, H, K]
    values: [B, S, H, K]
    bias: float32, relative positions and masks added up.
    weight_dropout: applied to the attention weights. [B, H, T, S]

  Returns:
    In the dtype of `values`. [B, T, H, K]
  Reference: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
  """
  scores = jnp.einsum(
    'bthk,bshk->bhts', queries, keys, preferred_element_type=jnp.float32
  )
  weights = weight_dropout(jax.nn.softmax(scores + bias, axis=-1))
  return jnp.einsum('bhts,bshk->bthk', weights.astype(values.dtype), values)


def attend_absorbed(
  queries: Float[Array, 'B T H K'],
  key_kernel: Float[Array, 'D H K'],
  value_kernel: Float[Array, 'D H K'],
  states: Float[Array, 'B S D'],
  bias: Float[Array, '#B #H #T S'],
  *,
  weight_dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> Float[Array, 'B T H K']:
  """Cross-attention that never forms keys or values.

    q (W_k z)^T = (q W_k^T) z^T   and   w (z W_v) = (w z) W_v

  An identity, equal to `attend` on projected keys and values up to rounding;
  cheaper when there are fewer queries than about head_dim.

  Args:
    queries: already scaled. [B, T, H, K]
    key_kernel: W_k. [D, H, K]
    value_kernel: W_v. [D, H, K]
    states: encoder output z. [B, S, D]
    bias: float32.
    weight_dropout: applied to the attention weights. [B, H, T, S]

  Returns:
    [B, T, H, K]
  """
  folded = jnp.einsum('bthk,dhk->bthd', queries, key_kernel)
  scores = jnp.einsum(
    'bthd,bsd->bhts', folded, states, preferred_element_type=jnp.float32
  )
  weights = weight_dropout(jax.nn.softmax(scores + bias, axis=-1))
  mixed = jnp.einsum('bhts,bsd->bthd', weights.astype(states.dtype), states)
  return jnp.einsum('bthd,dhk->bthk', mixed, value_kernel)


def absorbed_is_cheaper(
  *, num_queries: int, num_keys: int, embed_dim: int, heads: int, head_dim: int
) -> bool:
  """Returns whether `attend_absorbed` takes fewer multiplications.

  projected: 2 S D H K + 2 T S H K     absorbed: 2 T D H K + 2 T S H D
  """
  t, s, d, h, k = num_queries, num_keys, embed_dim, heads, head_dim
  return 2 * t * d * h * k + 2 * t * s * h * d < (
    2 * s * d * h * k + 2 * t * s * h * k
  )
