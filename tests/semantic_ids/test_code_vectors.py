"""Embeddings that start at the tokenizer's centroids."""

import numpy as np

from onerec_jax.semantic_ids import code_vectors


def _distances(points):
  return np.linalg.norm(points[:, None] - points[None], axis=-1)


def test_codes_lie_to_each_other_as_their_centroids():
  rng = np.random.default_rng(0)
  # Rank 3 in 6 dimensions: 4 dimensions hold all of it.
  books = rng.normal(size=(2, 40, 3)) @ rng.normal(size=(3, 6))
  books[1] *= 0.1  # residuals are smaller
  start = np.zeros((2, 40, 4), np.float32)
  got = code_vectors.from_codebooks(books.astype(np.float32), start)
  for level in range(2):
    np.testing.assert_allclose(got[level].std(), 1.0, rtol=1e-5)
    ratio = _distances(got[level]) / (_distances(books[level]) + np.eye(40))
    ratio = ratio[~np.eye(40, dtype=bool)]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


def test_what_the_centroids_do_not_say_stays_random():
  rng = np.random.default_rng(0)
  books = rng.normal(size=(2, 9, 2)).astype(np.float32)
  books[1] = 0.0  # the first level left nothing over
  start = rng.normal(size=(2, 9, 5)).astype(np.float32)
  got = code_vectors.from_codebooks(books, start)
  np.testing.assert_array_equal(got[..., 2:], start[..., 2:])
  np.testing.assert_array_equal(got[1], start[1])
  assert np.abs(got[0, :, :2] - start[0, :, :2]).max() > 0.1
  assert np.isfinite(got).all()


def test_codes_with_one_centroid_come_apart():
  books = np.ones((1, 6, 3), np.float32)
  books[0, 3:] = -1.0
  start = np.random.default_rng(0).normal(size=(1, 6, 3)).astype(np.float32)
  got = code_vectors.from_codebooks(books, start)[0]
  assert len(np.unique(got, axis=0)) == 6
  assert _distances(got[:3]).max() < _distances(got)[0, 3]


def test_the_codebooks_themselves_stay_as_they_are():
  books = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  before = books.copy()
  code_vectors.from_codebooks(books, np.zeros((2, 5, 3), np.float32))
  np.testing.assert_array_equal(books, before)


# --- Whole IDs --------------------------------------------------------------


def test_codes_and_id_of_an_item_lie_as_its_vector():
  """One level of no spread: what is left over is the vector itself."""
  rng = np.random.default_rng(0)
  books = rng.normal(size=(1, 30, 4)).astype(np.float32)
  residuals = rng.normal(size=(12, 4)).astype(np.float32)
  buckets = rng.permutation(20)[:12]
  start = np.zeros((20, 4), np.float32)
  got = code_vectors.from_residuals(books, residuals, buckets, start)
  np.testing.assert_allclose(got[buckets].std(), 1.0, rtol=1e-5)
  # V is a rotation, the same as of the codes.
  codes = code_vectors.from_codebooks(books, np.zeros_like(books))[0]
  for one, other in ((got[buckets], got[buckets]), (codes, got[buckets])):
    angles = _cosines(one, other)
    vectors = residuals if one is not codes else books[0] - books[0].mean(0)
    np.testing.assert_allclose(
      angles, _cosines(vectors, residuals), rtol=1e-4, atol=1e-5
    )


def _cosines(a, b):
  a = a / np.linalg.norm(a, axis=1, keepdims=True)
  return a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def test_items_of_one_bucket_start_at_their_mean_and_empty_ones_at_random():
  books = np.eye(3, dtype=np.float32)[None]
  residuals = np.array([[1, 0, 0], [0, 0, 2], [3, 0, 0]], np.float32)
  start = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  buckets = np.array([1, 1, 3])
  got = code_vectors.from_residuals(books, residuals, buckets, start)
  np.testing.assert_array_equal(got[[0, 2]], start[[0, 2]])
  np.testing.assert_array_equal(got[:, 3:], start[:, 3:])  # beyond Z
  moved = (got - start)[:, :3].astype(np.float64)
  # By length, whatever the directions: |(r_0 + r_1) / 2| and |r_2|.
  lengths = np.linalg.norm(moved[[1, 3]], axis=1)
  np.testing.assert_allclose(
    lengths[1] / lengths[0], 3 / (np.sqrt(5) / 2), rtol=1e-5
  )


def test_ids_of_codes_that_say_everything_stay_random():
  books = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
  start = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
  got = code_vectors.from_residuals(
    books, np.zeros((5, 3), np.float32), np.arange(5), start
  )
  np.testing.assert_array_equal(got, start)
