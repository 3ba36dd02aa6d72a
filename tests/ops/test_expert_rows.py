"""How rows are cut into blocks on CPU; what the sort and the router keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import expert_rows
from onerec_jax.ops import moe

_TOKENS, _EXPERTS = 300, 6


def _case(sizes):
  """Tokens, weights and top-2 rows of which the first experts take `sizes`."""
  generator = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  weights = expert_rows.ExpertWeights(
    normal(_EXPERTS, 4, 3), normal(_EXPERTS, 4, 3), normal(_EXPERTS, 3, 4)
  )
  slots = generator.permutation(2 * _TOKENS)
  order = expert_rows.RowOrder(
    jnp.asarray(slots, jnp.int32),
    jnp.asarray(np.argsort(slots), jnp.int32),
    jnp.asarray(sizes, jnp.int32),
  )
  return normal(_TOKENS, 4), weights, order


@functools.cache
def _loss(kind):
  def loss(x, weights, order):
    y = expert_rows.feed_forward(
      x, weights, order, activation=jax.nn.silu, kind=kind
    )
    inside = jnp.arange(y.shape[0]) < jnp.sum(order.sizes)
    return jnp.sum(jnp.where(inside[:, None], y, 0) ** 2)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


# 600 rows of six experts: blocks of 176, 160, 128, 112, 96 and 64.  One size
# for every block, both ends of the largest one, and nothing.
@pytest.mark.parametrize(
  'sizes',
  [
    (1, 65, 97, 113, 129, 161),
    (64, 96, 112, 128, 160, 0),
    (176, 177, 0, 0, 0, 0),
    (600, 0, 0, 0, 0, 0),
  ],
)
def test_blocks_of_every_size_equal_the_ragged_product_with_gradients(sizes):
  arguments = _case(sizes)
  got = _loss('blocks')(*arguments)
  want = _loss('ragged')(*arguments)

  def check(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())

  jax.tree.map(check, got, want)


@pytest.mark.parametrize(
  ('rows', 'experts', 'sizes'),
  [
    (600, 6, (176, 160, 128, 112, 96, 64)),
    # 4096 tokens, top-2, of 8 and of 64 experts.
    (8192, 8, (256, 192, 128, 96, 64, 32)),
    (8192, 64, (224, 192, 160, 128, 112, 80)),
    # 256 is the most, whatever the mean.
    (200 * 24, 24, (256, 208, 176, 128, 64, 32)),
    # No block is larger than the rows need.
    (1, 8, (16,)),
    (40, 1, (48, 32, 16)),
    # Of few rows all may be one expert's.
    (256, 24, (256, 128, 64, 32, 16)),
    (10**6, 1, (256, 192, 128, 96, 64, 32)),
  ],
)
def test_sizes_of_blocks_lie_around_an_experts_share(rows, experts, sizes):
  assert expert_rows.block_sizes(rows, experts) == sizes


def test_a_wide_hidden_layer_is_transposed_in_parts():
  generator = np.random.default_rng(0)
  a, b = (
    jnp.asarray(generator.standard_normal(shape), jnp.float32)
    for shape in ((7, 600), (7, 5))
  )
  np.testing.assert_allclose(
    expert_rows._transposed_product(a, b), a.T @ b, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize('gate', ['softmax', 'sigmoid'])
def test_a_token_whose_scores_are_not_numbers_is_not_dropped(gate):
  logits = jnp.asarray([[0.0, 1.0, 2.0], [jnp.nan] * 3])
  routing = moe.route(logits, jnp.zeros(3), top_k=2, gate=gate, normalize=False)
  np.testing.assert_array_equal(routing.experts[0], [2, 1])
  # A step with such a token is not finite, and so is not taken.
  assert np.isnan(routing.gates[1]).any()
  assert (routing.experts < 3).all()


def test_more_slots_than_keys_can_tell_apart_are_refused():
  tokens, experts = 2**25, 64
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  routing = moe.Routing(
    jax.ShapeDtypeStruct((tokens, 2), jnp.int32), shape((tokens, 2))
  )
  weights = moe.ExpertWeights(
    shape((experts, 4, 8)), None, shape((experts, 8, 4))
  )
  run = functools.partial(moe.grouped_experts, activation=jax.nn.relu)
  with pytest.raises(ValueError, match='make the batch smaller'):
    jax.eval_shape(
      run, shape((tokens, 4)), routing, weights,
      jax.ShapeDtypeStruct((tokens,), bool),
    )  # fmt: skip
