"""Attention in blocks of queries, against the plain form it replaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import attention
from onerec_jax.ops import blocked_attention
from onerec_jax.ops import dropout

_ROWS, _LENGTH, _HEADS, _DIM = 8, 50, 2, 8


def _inputs():
  generator = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  shape = (_ROWS, _LENGTH, _HEADS, _DIM)
  lengths = generator.integers(1, _LENGTH, _ROWS)
  lengths[0] = 0  # a user without history
  mask = jnp.asarray(np.arange(_LENGTH)[None] < lengths[:, None])
  arrays = (
    normal(*shape) * _DIM**-0.5,
    normal(*shape),
    normal(*shape),
    normal(_HEADS, 2 * _LENGTH - 1),
  )
  return arrays, mask


def _plain(queries, keys, values, distances, *, mask, seed, rate):
  place = np.arange(_LENGTH)
  index = place[None, :] - place[:, None] + _LENGTH - 1
  return attention.attend(
    queries,
    keys,
    values,
    distances[:, index][None] + attention.key_bias(mask),
    weight_dropout=lambda w: dropout.drop(w, seed, rate=rate),
  )


def _blocked(queries, keys, values, distances, *, block, **options):
  mask = options.pop('mask')
  return blocked_attention.self_attention(
    queries, keys, values, mask, distances, block=block, **options
  )


def _value_and_gradients(function, arrays, **options):
  def total(*arrays):
    out = function(*arrays, **options)
    return jnp.sum(jnp.sin(3 * out)), out

  return jax.jit(jax.value_and_grad(total, argnums=range(4), has_aux=True))(
    *arrays
  )


# 16 leaves a rest of 2, 25 none; 64 is one block that is not full.
@pytest.mark.parametrize('block', [16, 25, 64])
@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_output_and_gradients_are_those_of_plain_attention(rate, block):
  arrays, mask = _inputs()
  seed = dropout.site_seeds(jax.random.key(1), (1,), bits='hash')[0]
  options = dict(mask=mask, seed=seed, rate=rate)
  (_, want), want_gradients = _value_and_gradients(_plain, arrays, **options)
  (_, got), gradients = _value_and_gradients(
    functools.partial(_blocked, block=block), arrays, **options
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)
  for name, a, b in zip('qkvd', gradients, want_gradients, strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_a_mesh_changes_neither_values_nor_gradients_and_gathers_no_user():
  arrays, mask = _inputs()
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  seed = dropout.site_seeds(jax.random.key(1), (1,), bits='hash')[0]

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


def test_no_array_of_all_scores_exists():
  """Forward or backward; plain attention has several."""
  (queries, keys, values, distances), mask = _inputs()
  scores = 4 * _ROWS * _HEADS * _LENGTH**2

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

  assert memory(_plain) > scores
  assert memory(functools.partial(_blocked, block=4)) < 0.75 * scores


def test_without_positions_only_the_mask_counts():
  (queries, keys, values, distances), mask = _inputs()
  options = dict(mask=mask, seed=None, rate=0.3)  # no seed: no dropout
  want = _plain(queries, keys, values, jnp.zeros_like(distances), **options)
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
