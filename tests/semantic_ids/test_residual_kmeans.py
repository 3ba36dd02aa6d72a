"""Residual quantizer: encoding, reconstruction, subsampling, the two rules."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax.semantic_ids import residual_kmeans

CONFIG = config_lib.TokenizerConfig(
  levels=3, codes_per_level=8, max_iterations=5
)


def _embeddings(num_items=120, dim=6, seed=0):
  rng = np.random.default_rng(seed)
  return (5 + rng.normal(size=(num_items, dim))).astype('f4')


def _codebooks(levels=3, seed=1):
  rng = np.random.default_rng(seed)
  scale = 0.5 ** np.arange(levels)[:, None, None]
  return residual_kmeans.Codebooks(
    (scale * rng.normal(size=(levels, 8, 6))).astype('f4'),
    np.full(6, 5, 'f4'),
  )


@pytest.mark.parametrize('chunk', [None, 1, 50, 1000])
def test_encoding_is_the_level_by_level_argmin(chunk):
  codebooks, embeddings = _codebooks(), _embeddings()
  codes = residual_kmeans.encode(codebooks, embeddings, chunk=chunk)
  residual = embeddings.astype('f8') - codebooks.mean
  for level, centroids in enumerate(codebooks.codebooks):
    distances = ((residual[:, None] - centroids[None]) ** 2).sum(-1)
    expected = distances.argmin(1)
    np.testing.assert_array_equal(codes[:, level], expected)
    residual = residual - centroids[expected]
  assert codes.dtype == np.int32


def test_reconstruction_undoes_the_encoding_up_to_the_last_residual():
  codebooks = _codebooks()
  codes = np.array([[0, 1, 2], [7, 7, 7]], np.int32)
  expected = [
    codebooks.mean + sum(codebooks.codebooks[l][c] for l, c in enumerate(row))
    for row in codes
  ]
  vectors = residual_kmeans.reconstruct(codebooks, codes)
  np.testing.assert_allclose(vectors, expected, rtol=1e-6)
  # Fewer levels, a coarser vector; no level, the mean.
  np.testing.assert_array_equal(
    residual_kmeans.reconstruct(codebooks, codes[:, :0]),
    np.stack([codebooks.mean] * 2),
  )


@pytest.mark.parametrize('quantizer', ['kmeans', 'balanced_kmeans'])
def test_each_level_lowers_the_error_of_the_corpus(quantizer):
  config = dataclasses.replace(CONFIG, quantizer=quantizer)
  embeddings = _embeddings()
  fit = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
  codes = residual_kmeans.corpus_codes(fit, embeddings, assignment='nearest')
  np.testing.assert_array_equal(
    codes, residual_kmeans.encode(fit.codebooks, embeddings)
  )
  errors = [
    (
      (embeddings - residual_kmeans.reconstruct(fit.codebooks, codes[:, :l]))
      ** 2
    ).mean()
    for l in range(4)
  ]
  assert errors[0] > errors[1] > errors[2] > errors[3]
  again = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
  np.testing.assert_array_equal(
    fit.codebooks.codebooks, again.codebooks.codebooks
  )


def test_balanced_corpus_codes_are_even_on_every_level():
  config = dataclasses.replace(CONFIG, corpus_assignment='balanced')
  embeddings = _embeddings(123)
  fit = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
  codes = residual_kmeans.corpus_codes(fit, embeddings, assignment='balanced')
  for level in range(3):
    sizes = np.bincount(codes[:, level], minlength=8)
    np.testing.assert_array_equal(np.sort(sizes), [15] * 5 + [16] * 3)
  # The residual of the balanced label, not of the nearest code, was fitted:
  # each centroid of level 1 is the mean of its items' residuals.
  residual = (
    embeddings - fit.codebooks.mean - fit.codebooks.codebooks[0][codes[:, 0]]
  )
  for code in range(8):
    np.testing.assert_allclose(
      residual[codes[:, 1] == code].mean(0),
      fit.codebooks.codebooks[1][code],
      rtol=1e-4,
      atol=1e-5,
    )


def test_a_subsample_is_fitted_and_the_rest_is_encoded():
  config = dataclasses.replace(
    CONFIG, max_fit_items=40, corpus_assignment='balanced'
  )
  embeddings = _embeddings()
  fit = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
  assert fit.fitted_labels.shape == (40, 3)
  assert len(np.unique(fit.fitted_items)) == 40
  codes = residual_kmeans.corpus_codes(fit, embeddings, assignment='balanced')
  np.testing.assert_array_equal(codes[fit.fitted_items], fit.fitted_labels)
  rest = np.setdiff1d(np.arange(120), fit.fitted_items)
  np.testing.assert_array_equal(
    codes[rest], residual_kmeans.encode(fit.codebooks, embeddings[rest])
  )


def test_codebooks_survive_the_file(tmp_path):
  codebooks = _codebooks()
  residual_kmeans.write_codebooks(tmp_path / 'codebooks.npz', codebooks)
  back = residual_kmeans.read_codebooks(tmp_path / 'codebooks.npz')
  np.testing.assert_array_equal(back.codebooks, codebooks.codebooks)
  np.testing.assert_array_equal(back.mean, codebooks.mean)


def test_no_items_and_wrong_widths():
  codebooks = _codebooks()
  assert residual_kmeans.encode(codebooks, np.zeros((0, 6), 'f4')).shape == (
    0,
    3,
  )
  with pytest.raises(ValueError, match='4 dimensions, the codebooks 6'):
    residual_kmeans.encode(codebooks, np.zeros((2, 4), 'f4'))
