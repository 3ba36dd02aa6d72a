"""The kernel, interpreted, against the plain form it replaces on TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import attention
from onerec_jax.ops import dropout
from onerec_jax.ops import fused_attention

_ROWS, _LENGTH, _HEADS, _DIM = 8, 200, 2, 128  # 200: padded to 256
_NARROW = 32  # padded to 128


def _inputs(dim=_DIM):
  generator = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  shape = (_ROWS, _LENGTH, _HEADS, dim)
  lengths = generator.integers(1, _LENGTH, _ROWS)
  lengths[0] = 0  # a user without history
  mask = jnp.asarray(np.arange(_LENGTH)[None] < lengths[:, None])
  arrays = (
    normal(*shape) * dim**-0.5,
    normal(*shape),
    normal(*shape),
    normal(_HEADS, 2 * _LENGTH - 1),
  )
  return arrays, mask


def _bias(distances, mask):
  """[B, H, S, S] by indexing, as the formula says."""
  place = np.arange(_LENGTH)
  index = place[None, :] - place[:, None] + _LENGTH - 1
  return distances[:, index][None] + attention.key_bias(mask)


def _plain(queries, keys, values, distances, *, mask, seed, rate):
  return attention.attend(
    queries,
    keys,
    values,
    _bias(distances, mask),
    weight_dropout=lambda w: dropout.drop(w, seed, rate=rate),
  )


def _fused(queries, keys, values, distances, *, mask, seed, rate, mesh=None):
  return fused_attention.self_attention(
    queries,
    keys,
    values,
    mask,
    distances,
    seed=seed,
    rate=rate,
    mesh=mesh,
    interpret=True,
  )


def _value_and_gradients(function, arrays, **options):
  def total(*arrays):
    out = function(*arrays, **options)
    return jnp.sum(jnp.sin(3 * out)), out

  return jax.jit(jax.value_and_grad(total, argnums=range(4), has_aux=True))(
    *arrays
  )


@pytest.mark.parametrize(
  ('rate', 'dim'), [(0.0, _DIM), (0.3, _DIM), (0.3, _NARROW)]
)
def test_output_and_gradients_are_those_of_plain_attention(rate, dim):
  arrays, mask = _inputs(dim)
  seed = dropout.site_seeds(jax.random.key(1), (1,), bits='hash')[0]
  options = dict(mask=mask, seed=seed, rate=rate)
  (_, want), want_gradients = _value_and_gradients(_plain, arrays, **options)
  (_, got), gradients = _value_and_gradients(_fused, arrays, **options)
  # Sums of 200 terms in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
  for name, a, b in zip('qkvd', gradients, want_gradients, strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_a_mesh_changes_neither_values_nor_gradients():
  arrays, mask = _inputs()
  mesh = jax.make_mesh(
    (4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  seed = dropout.site_seeds(jax.random.key(1), (1,), bits='hash')[0]
  options = dict(mask=mask, seed=seed, rate=0.3)
  (_, want), want_gradients = _value_and_gradients(_fused, arrays, **options)
  (_, got), gradients = _value_and_gradients(
    functools.partial(_fused, mesh=mesh), arrays, **options
  )
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_without_positions_only_the_mask_counts():
  (queries, keys, values, distances), mask = _inputs()
  options = dict(mask=mask, seed=None, rate=0.3)  # no seed: no dropout
  want = _plain(queries, keys, values, jnp.zeros_like(distances), **options)
  got = _fused(queries, keys, values, None, **options)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_sequences_that_do_not_fit_are_refused():
  too_long = fused_attention.MAX_LENGTH + 1
  states = jnp.zeros((1, too_long, 1, 8))
  with pytest.raises(ValueError, match=f'1280 tokens, not {too_long}'):
    _fused(
      states, states, states, None,
      mask=jnp.ones((1, too_long), bool), seed=None, rate=0.0,
    )  # fmt: skip
