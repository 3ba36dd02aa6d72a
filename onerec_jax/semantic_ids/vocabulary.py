"""Token ids of semantic IDs: specials first, then one block per level."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Int

PAD = 0
BOS = 1
SEP = 2
NUM_SPECIALS = 3


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Layout of the token ids (our choice): 3 specials, levels, hashed users.

  token(level l, code c) = 3 + codes_per_level[0] + … + codes_per_level[l-1] + c

  Levels may differ in size: a disambiguation level (collision = 'append') has
  as many codes as the largest bucket.
  """

  codes_per_level: tuple[int, ...]
  user_buckets: int = 0

  @property
  def levels(self) -> int:
    return len(self.codes_per_level)

  @property
  def max_codes(self) -> int:
    return max(self.codes_per_level)

  @property
  def offsets(self) -> tuple[int, ...]:
    """First token id of each level."""
    starts = np.cumsum((NUM_SPECIALS, *self.codes_per_level))[:-1]
    return tuple(int(s) for s in starts)

  @property
  def user_offset(self) -> int:
    """Token id of user bucket 0."""
    return NUM_SPECIALS + sum(self.codes_per_level)

  @property
  def size(self) -> int:
    """Number of token ids (V)."""
    return self.user_offset + self.user_buckets

  def tokens(self, codes: Int[Array, '*b L']) -> Int[Array, '*b L']:
    """Returns token ids of semantic-ID codes, level on the last axis."""
    offsets = jnp.asarray(self.offsets, codes.dtype)
    return codes + jnp.broadcast_to(offsets, codes.shape)

  def last_token(self, prefix: Int[Array, '*b l']) -> Int[Array, '*b']:
    """Returns the token that the decoder reads after `prefix`, l codes."""
    level = prefix.shape[-1] - 1
    if level < 0:
      return jnp.full(prefix.shape[:-1], BOS, jnp.int32)
    return prefix[..., -1] + self.offsets[level]


def id_bucket(codes: Int[Array, '*b L'], num_buckets: int) -> Int[Array, '*b']:
  """Returns the bucket, 0..num_buckets-1, that a whole ID is hashed to."""
  mixed = jnp.zeros(codes.shape[:-1], jnp.uint32)
  for level in range(codes.shape[-1]):
    # Fibonacci hashing; the shift lets the next product mix the high bits.
    mixed = mixed ^ codes[..., level].astype(jnp.uint32)
    mixed = mixed * jnp.uint32(0x9E3779B1)
    mixed = mixed ^ (mixed >> 15)
  return (mixed % jnp.uint32(num_buckets)).astype(jnp.int32)
