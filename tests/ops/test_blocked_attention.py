"""Attention in blocks of queries, against the plain form it replaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import attention
from onerec_jax.ops import blocked_attention

_LENGTH, _DIM = 50, 8


@pytest.fixture(name='inputs')
def fixture_inputs(cases):
  return cases.inputs(length=_LENGTH, dim=_DIM)


def _blocked(queries, keys, values, distances, *, block, **options):
  mask = options.pop('mask')
  return blocked_attention.self_attention(
    queries, keys, values, mask, distances, block=block, **options
  )


# 16 leaves a rest of 2, 25 none; 64 is one block that is not full.
@pytest.mark.parametrize('block', [16, 25, 64])
@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_output_and_gradients_are_those_of_plain_attention(
  cases, inputs, rate, block
):
  arrays, mask = inputs
  cases.check_same(
    functools.partial(_blocked, block=block),
    arrays,
    atol=2e-6,
    mask=mask,
    seed=cases.seed(),
    rate=rate,
  )


def test_a_mesh_changes_nothing_and_gathers_no_user(cases, inputs):
  arrays, mask = inputs
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  seed = cases.seed()

  def total(queries, keys, values, distances, mask):
    out = _blocked(
      queries, keys, values, distances,
      block=16, mask=mask, seed=seed, rate=0.3,
    )  # fmt: skip
    return jnp.sum(jnp.sin(3 * out))

  gradients = jax.jit(jax.value_and_grad(total, argnums=range(4)))
  want = gradients(*arrays, mask)
  rows = jax.NamedSharding(mesh, jax.P('data'))
  whole = jax.NamedSharding(mesh, jax.P())
  places = (rows, rows, rows, whole, rows)
  placed = jax.device_put((*arrays, mask), places)
  got = gradients(*placed)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert 'all-gather' not in gradients.lower(*placed).compile().as_text()


def test_no_array_of_all_scores_exists(cases, inputs):
  """Forward or backward; plain attention has several."""
  (queries, keys, values, distances), mask = inputs
  scores = 4 * cases.ROWS * cases.HEADS * _LENGTH**2

  def memory(function):
    def total(*arrays):
      return jnp.sum(function(*arrays, mask=mask, seed=None, rate=0.0) ** 2)

    compiled = (
      jax.jit(jax.grad(total, argnums=range(4)))
      .lower(queries, keys, values, distances)
      .compile()
    )
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes

  assert memory(cases.plain) > scores
  assert memory(functools.partial(_blocked, block=4)) < 0.75 * scores


def test_without_positions_only_the_mask_counts(cases, inputs):
  (queries, keys, values, distances), mask = inputs
  options = dict(mask=mask, seed=None, rate=0.3)  # no seed: no dropout
  want = cases.plain(
    queries, keys, values, jnp.zeros_like(distances), **options
  )
  got = _blocked(queries, keys, values, None, block=16, **options)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
  ('length', 'platform', 'block'),
  [
    (511, 'cpu', None),
    (512, 'cpu', 32),
    (2**13, 'cpu', 32),
    (2**14, 'cpu', 16),
    (2**20, 'cpu', 1),
    (2047, 'gpu', None),
    (2048, 'gpu', 512),
    (2**15, 'gpu', 512),
    (2**16, 'tpu', 256),
  ],
)
def test_longer_sequences_go_in_smaller_blocks(length, platform, block):
  used = blocked_attention.fits(length=length, platform=platform)
  assert used == (block is not None)
  if used:
    assert block == blocked_attention.block_size(
      length=length, platform=platform
    )


def test_skewed_rows_by_hand():
  row = jnp.arange(5.0)[None]  # 3 queries, 3 keys
  np.testing.assert_array_equal(
    attention.skew(row, 3)[0], [[2, 3, 4], [1, 2, 3], [0, 1, 2]]
  )
  np.testing.assert_array_equal(
    attention.skew(row, 2)[0], [[1, 2, 3, 4], [0, 1, 2, 3]]
  )
