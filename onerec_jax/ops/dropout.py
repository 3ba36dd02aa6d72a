"""Dropout whose mask is a function of (key, site, element number) only.

Masks do not depend on the device count, and the backward pass recomputes
them.  Pure array functions: no Flax, no config, no global state.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Key
from jaxtyping import PRNGKeyArray
from jaxtyping import UInt32

# Odd multipliers with good avalanche in xor-shift-multiply chains: the first is
# 2^32 / golden ratio (Weyl sequence), the others are the pair of "lowbias32"
# (Wellons, hash-prospector).
_WEYL = np.uint32(0x9E3779B1)
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)


def _avalanche(x: UInt32[Array, '*n']) -> UInt32[Array, '*n']:
  """Mixes 32 bits so that every input bit flips each output bit half the time.

  Reference: Wellons, hash-prospector, lowbias32.
  """
  x = (x ^ (x >> 16)) * _MULTIPLY_1
  x = (x ^ (x >> 15)) * _MULTIPLY_2
  return x ^ (x >> 16)


def site_seeds(
  key: PRNGKeyArray,
  shape: tuple[int, ...],
  *,
  bits: Literal['hash', 'threefry'],
) -> UInt32[Array, '*sites 2'] | Key[Array, '*sites']:
  """Returns one independent seed per dropout site of a training step.

  Args:
    key: typed key of the step; used once.
    shape: number of sites, e.g. (layers, sites per layer).
    bits: 'hash' gives two uint32 words per site without compiling threefry;
      'threefry' gives typed keys.

  Returns:
    Seeds for `drop`. [*shape, 2] uint32, or keys [*shape].
  """
  if bits == 'threefry':
    return jax.random.split(key, shape)
  words = jax.random.key_data(key).reshape(-1)
  n = int(np.prod(shape))
  site = jnp.arange(2 * n, dtype=jnp.uint32) * _WEYL
  # The two words of a threefry key enter one after the other, each followed by
  # a full mix: keys that differ in one bit give unrelated sites.
  for i in range(words.shape[0]):
    site = _avalanche(site ^ words[i])
  return site.reshape(*shape, 2)


def keep_mask(
  seed: UInt32[Array, '2'] | PRNGKeyArray,
  shape: tuple[int, ...],
  *,
  rate: float,
) -> jax.Array:
  """Returns which elements stay; each does with probability 1 - rate.

    hash: keep[i] = mix(i; seed) < (1 - rate) * 2^32

  i is the row-major element number modulo 2^32 (arrays beyond 4 G elements
  repeat their mask).

  Args:
    seed: one entry of `site_seeds`; its dtype selects the generator.
    shape: shape of the mask.
    rate: probability of dropping, in [0, 1).

  Returns:
    True = keep. [*shape] bool
  """
  if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
    return jax.random.bernoulli(seed, 1 - rate, shape)
  strides = np.cumprod((1, *shape[:0:-1]))[::-1]
  # A sum of iotas, not a reshaped one: XLA can shard and vectorise it.
  index = jnp.zeros(shape, jnp.uint32)
  for axis, stride in enumerate(strides):
    place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index += place * np.uint32(int(stride) & 0xFFFFFFFF)
  return keep_by_number(index, seed[0], seed[1], rate=rate)


def keep_by_number(
  number: UInt32[Array, '*n'],
  seed: UInt32[Array, ''],
  second_seed: UInt32[Array, ''],
  *,
  rate: float,
) -> Bool[Array, '*n']:
  """Returns the hashed decision on the elements of these numbers.

  For kernels, which see an array in parts; `keep_mask` is the whole.

  Args:
    number: row-major element numbers modulo 2^32.
    seed: first word of one entry of `site_seeds`.
    second_seed: second word.
    rate: probability of dropping, in [0, 1).
  """
  x = _avalanche((number + seed) * _WEYL ^ second_seed)
  return x < np.uint32(round((1 - rate) * 2**32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scaled_drop(x, seed, rate):
  mask = keep_mask(seed, x.shape, rate=rate)
  return jnp.where(mask, x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def _scaled_drop_forward(x, seed, rate):
  return _scaled_drop(x, seed, rate), seed


def _scaled_drop_backward(rate, seed, gradient):
  return _scaled_drop(gradient, seed, rate), None


_scaled_drop.defvjp(_scaled_drop_forward, _scaled_drop_backward)


def drop(
  x: Float[Array, '*shape'],
  seed: UInt32[Array, '2'] | PRNGKeyArray | None,
  *,
  rate: float,
) -> Float[Array, '*shape']:
  """Zeroes elements with probability `rate` and scales the rest.

    y = keep * x / (1 - rate)

  Args:
    x: any array.
    seed: one entry of `site_seeds`, used for this array only; None: identity.
    rate: probability of dropping, in [0, 1).
  """
  if seed is None or rate == 0:
    return x
  return _scaled_drop(x, seed, rate)
