"""Beams take over the cache of the beam they continue."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.decoding import generation

_BATCH, _WIDTH = 2, 5


@pytest.mark.parametrize(
  ('dtype', 'rest'),
  [(jnp.float32, (3, 2, 4)), (jnp.bfloat16, (3, 2, 4)), (jnp.float32, (4,))],
)
def test_products_with_one_hot_matrices_are_a_gather_to_the_last_bit(
  dtype, rest
):
  random = np.random.default_rng(0)
  cache = random.normal(size=(2, _BATCH, _WIDTH, *rest)) * 10.0 ** (
    random.integers(-6, 6, (2, _BATCH, _WIDTH, *rest))
  )
  parents = random.integers(0, _WIDTH, (_BATCH, _WIDTH)).astype(np.int32)
  x = jnp.asarray(cache, dtype)
  got = jax.jit(generation.select_beams)(x, parents)
  assert got.dtype == dtype
  expected = np.stack(
    [np.asarray(x)[:, b, parents[b]] for b in range(_BATCH)], axis=1
  )
  np.testing.assert_array_equal(got, expected)
  taken = generation.take_beams(x, jnp.asarray(parents))
  np.testing.assert_array_equal(taken, expected)
