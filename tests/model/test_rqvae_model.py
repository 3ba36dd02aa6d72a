"""RQ-VAE: codes, straight-through gradients, offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters
from onerec_jax.model import rqvae
from onerec_jax.semantic_ids import residual_kmeans

_MODEL = rqvae.RQVAE(
  config.RQVAEConfig(hidden_dims=(7, 5), latent_dim=3),
  dim=6,
  levels=3,
  codes_per_level=8,
)


@pytest.fixture(scope='module')
def case():
  """Parameters, vectors and an offset that is not zero."""
  params = parameters.materialize(rqvae.abstract_params(_MODEL), seed=0)
  rng = np.random.default_rng(0)
  vectors = 3 * rng.standard_normal((12, 6), np.float32)
  offset = 0.5 * rng.standard_normal((3, 8, 3), np.float32)
  return jax.tree.map(jnp.asarray, (params, vectors, offset))


def _apply(params, *args, **kwargs):
  return _MODEL.apply({'params': params}, *args, **kwargs)


def _mlp(tree, x):
  """NumPy: dense layers with a ReLU between them, in float64."""
  for i in range(3):
    layer = tree[f'layers_{i}']
    x = np.asarray(x, np.float64) @ np.asarray(layer['kernel']) + np.asarray(
      layer['bias']
    )
    x = np.maximum(x, 0) if i < 2 else x
  return x


def test_encoder_and_decoder_equal_a_numpy_reference(case):
  params, vectors, _ = case
  rng = np.random.default_rng(1)
  params = jax.tree.map(  # biases are zero at the start
    lambda x: x + rng.standard_normal(x.shape).astype(np.float32), params
  )
  latents = _apply(params, vectors, method='encode')
  assert latents.shape == (12, 3)
  np.testing.assert_allclose(
    latents, _mlp(params['encoder'], vectors), rtol=1e-4, atol=1e-5
  )
  decoded = _apply(params, latents, method='decode')
  np.testing.assert_allclose(
    decoded, _mlp(params['decoder'], latents), rtol=1e-4, atol=1e-4
  )


def test_codes_are_the_nearest_codes_of_the_residuals(case):
  params, vectors, offset = case
  output = _apply(params, vectors, offset)
  latents = np.asarray(_apply(params, vectors, method='encode'))
  codebooks = np.asarray(params['codebooks'] + offset)
  residual = latents.astype(np.float64)
  for level in range(3):
    distances = ((residual[:, None] - codebooks[level][None]) ** 2).sum(-1)
    code = distances.argmin(1)
    np.testing.assert_array_equal(output.quantized.codes[:, level], code)
    np.testing.assert_allclose(
      output.quantized.residuals[:, level], residual, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(
      output.quantized.chosen[:, level], codebooks[level][code]
    )
    residual = residual - codebooks[level][code]
  # The function that encodes the catalogue and new items.
  books = residual_kmeans.Codebooks(codebooks, np.zeros(3, np.float32))
  np.testing.assert_array_equal(
    output.quantized.codes, residual_kmeans.encode(books, latents)
  )
  # Not all rows may share one code: the test would see nothing.
  assert len(np.unique(output.quantized.codes, axis=0)) > 4


def test_the_decoder_sees_the_sum_of_the_codes(case):
  params, vectors, offset = case
  output = _apply(params, vectors, offset)
  total = output.quantized.chosen.sum(1)
  np.testing.assert_allclose(
    output.reconstruction,
    _apply(params, total, method='decode'),
    rtol=1e-4,
    atol=1e-5,
  )


def test_the_gradient_of_the_decoder_reaches_the_encoder_unchanged(case):
  params, vectors, offset = case
  weights = np.random.default_rng(2).standard_normal((12, 6), np.float32)

  def loss(params):
    return jnp.sum(_apply(params, vectors, offset).reconstruction * weights)

  found = jax.grad(loss)(params)
  total = _apply(params, vectors, offset).quantized.chosen.sum(1)
  _, pull = jax.vjp(lambda z: _apply(params, z, method='decode'), total)
  (at_codes,) = pull(jnp.asarray(weights))
  _, pull = jax.vjp(lambda p: _apply(p, vectors, method='encode'), params)
  (expected,) = pull(at_codes)
  for name in ('layers_0', 'layers_2'):
    got = found['encoder'][name]['kernel']
    assert np.abs(got).max() > 1e-3
    np.testing.assert_allclose(
      got, expected['encoder'][name]['kernel'], rtol=1e-4, atol=1e-5
    )
  # Codes do not learn from the reconstruction.
  assert not np.any(found['codebooks'])


def test_no_residual_passes_a_gradient_to_the_codes(case):
  params, vectors, offset = case

  def loss(codebooks):
    residuals = _apply(
      {**params, 'codebooks': codebooks}, vectors, offset
    ).quantized.residuals
    return jnp.sum(jnp.square(residuals))

  assert not np.any(jax.grad(loss)(jnp.asarray(params['codebooks'])))


def test_an_offset_is_the_same_as_other_codebooks(case):
  params, vectors, offset = case
  moved = {**params, 'codebooks': params['codebooks'] + offset}
  a = _apply(params, vectors, offset)
  b = _apply(moved, vectors, jnp.zeros_like(offset))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_rows_do_not_see_each_other(case):
  params, vectors, offset = case
  order = np.random.default_rng(3).permutation(12)
  whole = _apply(params, vectors, offset)
  mixed = _apply(params, vectors[order], offset)
  np.testing.assert_array_equal(
    mixed.quantized.codes, whole.quantized.codes[order]
  )
  np.testing.assert_allclose(
    mixed.reconstruction, whole.reconstruction[order], rtol=1e-5, atol=1e-6
  )


def test_every_parameter_has_a_place_on_a_mesh():
  boxes = rqvae.abstract_params(_MODEL)
  mesh = meshes.make_mesh(config.MeshConfig(data=4, fsdp=2))
  shardings = sharding.parameter_shardings(
    mesh, parameters.logical_names(boxes), parameters.shapes(boxes)
  )
  # The input side (6) is split over fsdp=2, the odd latent size (3) is not.
  assert shardings['encoder']['layers_0']['kernel'].spec[0] is not None
  assert shardings['codebooks'].spec[2] is None
