"""Attention core and T5 relative positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import attention


def _t5_bucket(distance, *, bidirectional, num_buckets, max_distance):
  """Scalar rewrite of the published T5 rule, with math.log."""
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = num_buckets if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return first + distance
  share = math.log(distance / exact) / math.log(max_distance / exact)
  return first + min(
    exact + int(share * (num_buckets - exact)), num_buckets - 1
  )


@pytest.mark.parametrize('bidirectional', [True, False])
def test_relative_buckets_follow_the_t5_rule(bidirectional):
  options = dict(bidirectional=bidirectional, num_buckets=32, max_distance=128)
  got = attention.relative_buckets(150, 140, **options)
  want = [
    [_t5_bucket(key - query, **options) for key in range(140)]
    for query in range(150)
  ]
  np.testing.assert_array_equal(got, want)


def test_causal_relative_buckets_by_hand():
  got = attention.relative_buckets(
    4, 4, bidirectional=False, num_buckets=4, max_distance=8
  )
  # Two exact buckets (distances 0, 1); 2 and 3 are in [2, 4): bucket 2.
  np.testing.assert_array_equal(
    got, [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 0, 0], [2, 2, 1, 0]]
  )


def _random(*shapes):
  generator = np.random.default_rng(0)
  return [
    jnp.asarray(generator.standard_normal(s), jnp.float32) for s in shapes
  ]


def test_attend_equals_a_loop_over_heads_in_numpy():
  q, k, v, bias = _random(
    (2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (2, 2, 3, 5)
  )
  got = attention.attend(q, k, v, bias)
  q, k, v, bias = (np.asarray(a, np.float64) for a in (q, k, v, bias))
  want = np.zeros((2, 3, 2, 4))
  for b in range(2):
    for h in range(2):
      scores = q[b, :, h] @ k[b, :, h].T + bias[b, h]
      weights = np.exp(scores)
      weights /= weights.sum(-1, keepdims=True)
      want[b, :, h] = weights @ v[b, :, h]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_masked_keys_are_the_same_as_absent_keys():
  q, k, v = _random((2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4))
  mask = jnp.asarray([[True] * 3 + [False] * 2] * 2)
  masked = attention.attend(q, k, v, attention.key_bias(mask))
  sliced = attention.attend(
    q, k[:, :3], v[:, :3], attention.key_bias(mask[:, :3])
  )
  np.testing.assert_allclose(masked, sliced, rtol=1e-6, atol=1e-7)


def test_fully_masked_rows_have_finite_output_and_gradient():
  q, k, v = _random((1, 3, 2, 4), (1, 5, 2, 4), (1, 5, 2, 4))
  bias = attention.key_bias(jnp.zeros((1, 5), bool))
  causal = attention.causal_bias(5)[None, None, :3]

  def total(q, k, v):
    return jnp.sum(attention.attend(q, k, v, bias + causal) ** 2)

  value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in gradients)


def test_absorbed_equals_projected_with_gradients():
  z, q, wk, wv = _random((2, 6, 8), (2, 3, 2, 4), (8, 2, 4), (8, 2, 4))
  bias = attention.key_bias(jnp.asarray([[True] * 6, [True] * 4 + [False] * 2]))

  def projected(z, q, wk, wv):
    k = jnp.einsum('bsd,dhk->bshk', z, wk)
    v = jnp.einsum('bsd,dhk->bshk', z, wv)
    return jnp.sum(jnp.sin(attention.attend(q, k, v, bias)))

  def absorbed(z, q, wk, wv):
    return jnp.sum(jnp.sin(attention.attend_absorbed(q, wk, wv, z, bias)))

  argnums = (0, 1, 2, 3)
  want = jax.value_and_grad(projected, argnums)(z, q, wk, wv)
  got = jax.value_and_grad(absorbed, argnums)(z, q, wk, wv)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    got,
    want,
  )


@pytest.mark.parametrize(
  ('num_queries', 'cheaper'),
  # D = 128, H K = 384, S = 81: with few queries folding wins; with hundreds
  # the 128-wide (instead of 64-wide) scores cost more than the projections.
  [(5, True), (20, True), (400, False)],
)
def test_absorbed_is_chosen_by_the_number_of_multiplications(
  num_queries, cheaper
):
  got = attention.absorbed_is_cheaper(
    num_queries=num_queries, num_keys=81, embed_dim=128, heads=6, head_dim=64
  )
  assert got == cheaper
