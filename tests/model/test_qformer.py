"""QFormer: both printed forms, masks, order of the tokens, empty rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters
from onerec_jax.model import qformer

_SIZES = {
  'num_queries': 3,
  'dim': 8,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_dim': 12,
}


def _model(**changes):
  return qformer.QFormer(**{**_SIZES, **changes})


def _boxes(model):
  return jax.eval_shape(
    model.init,
    jax.random.key(0),
    jnp.zeros((1, 2, model.dim)),
    jnp.ones((1, 2), bool),
  )['params']


@pytest.fixture(scope='module')
def case():
  """Tokens of 4 rows, of which 5, 3, 1 and none are real."""
  rng = np.random.default_rng(0)
  tokens = rng.standard_normal((4, 5, 8), np.float32)
  mask = np.arange(5)[None, :] < np.array([5, 3, 1, 0])[:, None]
  return jnp.asarray(tokens), jnp.asarray(mask)


def _params(model, seed=0):
  """Parameters with norms that are not 1 and queries of unit size."""
  params = parameters.materialize(_boxes(model), seed=seed)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
  )
  return {**params, 'queries': params['queries'] * 5}


def _rms_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def _reference(params, tokens, mask, *, residual):
  """NumPy, one row and one query at a time, only real tokens, float64."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  tokens = np.asarray(tokens, np.float64)
  out = np.zeros((len(tokens), *params['queries'].shape))
  for row in range(len(tokens)):
    real = tokens[row][np.asarray(mask[row])]
    for number, q in enumerate(params['queries']):
      for i in range(2 if len(real) else 0):
        layer = params[f'layers_{i}']
        a = layer['attention']
        x = _rms_norm(q, layer['attention_norm']['scale']) if residual else q
        read = np.zeros(8)
        for head in range(2):
          query = x @ a['query'][:, head] / np.sqrt(4)
          scores = real @ a['key'][:, head] @ query
          weights = np.exp(scores - scores.max())
          weights /= weights.sum()
          read += weights @ real @ a['value'][:, head] @ a['out'][head]
        q = q + read if residual else read
        hidden = _rms_norm(q, layer['mlp_norm']['scale']) @ layer['mlp']['wi']
        # GELU by its tanh approximation, which jax.nn.gelu uses.
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + np.tanh(inner))
        fed = hidden @ layer['mlp']['wo']
        q = q + fed if residual else fed
      out[row, number] = q
  return out


@pytest.mark.parametrize('residual', [True, False])
def test_both_forms_equal_a_reference_that_sees_real_tokens_only(
  case, residual
):
  tokens, mask = case
  model = _model(residual=residual)
  params = _params(model)
  found = model.apply({'params': params}, tokens, mask)
  expected = _reference(params, tokens, mask, residual=residual)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  # The parameters of the literal form are among those of the other, so the
  # comparison above would not notice that both forms are one.
  with_residuals = _model()
  params = _params(with_residuals)
  other = with_residuals.apply({'params': params}, tokens, mask)
  literal = _reference(params, tokens, mask, residual=False)
  assert np.abs(other[:3] - literal[:3]).max() > 0.1


def test_masked_tokens_are_as_good_as_absent(case):
  tokens, mask = case
  model = _model()
  params = {'params': _params(model)}
  whole = model.apply(params, tokens, mask)
  sliced = model.apply(params, tokens[1:2, :3], mask[1:2, :3])
  np.testing.assert_allclose(whole[1:2], sliced, rtol=1e-5, atol=1e-6)
  junk = jnp.where(mask[..., None], tokens, 1e4)
  np.testing.assert_allclose(
    model.apply(params, junk, mask), whole, rtol=1e-6, atol=1e-6
  )


def test_order_of_the_tokens_changes_nothing(case):
  tokens, mask = case
  model = _model()
  params = {'params': _params(model)}
  order = np.array([3, 0, 4, 2, 1])
  np.testing.assert_allclose(
    model.apply(params, tokens[:, order], mask[:, order]),
    model.apply(params, tokens, mask),
    rtol=1e-4,
    atol=1e-5,
  )


@pytest.mark.parametrize('residual', [True, False])
def test_a_row_without_tokens_gives_the_queries_and_finite_gradients(
  case, residual
):
  tokens, _ = case
  model = _model(residual=residual)
  params = _params(model)
  empty = jnp.zeros(tokens.shape[:2], bool)

  def total(params, tokens):
    out = model.apply({'params': params}, tokens, empty)
    return jnp.sum(jnp.sin(out)), out

  (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
    params, tokens
  )
  np.testing.assert_array_equal(
    out, np.broadcast_to(params['queries'][None], out.shape)
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  assert not np.any(gradients[1])


def test_dropout_needs_a_key_and_changes_the_output(case):
  tokens, mask = case
  model = _model(dropout_rate=0.5)
  params = {'params': _params(model)}
  still = model.apply(params, tokens, mask)
  drops = [
    model.apply(
      params,
      tokens,
      mask,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drops[0], drops[1])
  assert np.abs(drops[0][:3] - drops[2][:3]).max() > 0.1
  assert np.abs(drops[0][:3] - still[:3]).max() > 0.1


def test_bfloat16_stays_close_to_float32(case):
  tokens, mask = case
  params = {'params': _params(_model())}
  low = _model(compute_dtype='bfloat16').apply(params, tokens, mask)
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(low, np.float32),
    _model().apply(params, tokens, mask),
    rtol=0.1,  # two layers of 8 numbers each, summed with 8 bits
    atol=0.1,
  )


def test_every_parameter_has_a_place_on_a_mesh():
  boxes = _boxes(_model())
  mesh = meshes.make_mesh(config.MeshConfig(data=4, fsdp=2))
  shardings = sharding.parameter_shardings(
    mesh, parameters.logical_names(boxes), parameters.shapes(boxes)
  )
  assert shardings['queries'].spec[1] is not None


def test_heads_that_do_not_divide_the_size_are_refused():
  with pytest.raises(ValueError, match='num_heads=3'):
    _boxes(_model(num_heads=3))
