"""The kernel, interpreted, against the plain form it replaces on TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import fused_attention

_LENGTH, _DIM = 200, 128  # 200: padded to 256
_NARROW = 32  # padded to 128


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


@pytest.fixture(name='inputs')
def fixture_inputs(cases):
  return cases.inputs(length=_LENGTH, dim=_DIM)


@pytest.mark.parametrize(
  ('rate', 'dim'), [(0.0, _DIM), (0.3, _DIM), (0.3, _NARROW)]
)
def test_output_and_gradients_are_those_of_plain_attention(cases, rate, dim):
  arrays, mask = cases.inputs(length=_LENGTH, dim=dim)
  # Sums of 200 terms in another order.
  cases.check_same(
    _fused, arrays, atol=2e-5, mask=mask, seed=cases.seed(), rate=rate
  )


def test_a_mesh_changes_neither_values_nor_gradients(cases, inputs):
  arrays, mask = inputs
  mesh = jax.make_mesh(
    (4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  options = dict(mask=mask, seed=cases.seed(), rate=0.3)
  (_, want), want_gradients = cases.value_and_gradients(
    _fused, arrays, **options
  )
  (_, got), gradients = cases.value_and_gradients(
    functools.partial(_fused, mesh=mesh), arrays, **options
  )
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_without_positions_only_the_mask_counts(cases, inputs):
  (queries, keys, values, distances), mask = inputs
  options = dict(mask=mask, seed=None, rate=0.3)  # no seed: no dropout
  want = cases.plain(
    queries, keys, values, jnp.zeros_like(distances), **options
  )
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
