"""Intervals of means over users, and of paired differences."""

import math

import numpy as np
import pytest

from onerec_jax import bootstrap


def test_bootstrap_is_deterministic_by_seed():
  values = np.random.default_rng(0).random((50, 2))
  first = bootstrap.resampled_means(values, samples=100, seed=7)
  np.testing.assert_array_equal(
    first, bootstrap.resampled_means(values, samples=100, seed=7)
  )
  assert not np.array_equal(
    first, bootstrap.resampled_means(values, samples=100, seed=8)
  )


def test_bootstrap_means_are_means_of_resampled_rows():
  # One-hot columns recover the counts: whole numbers that add up to B.
  users = 6
  draws = bootstrap.resampled_means(np.eye(users), samples=200, seed=0) * users
  np.testing.assert_allclose(draws, np.round(draws), atol=1e-9)
  np.testing.assert_allclose(draws.sum(axis=1), users)
  # Each user is drawn once on average; 200 draws, standard error 0.065.
  np.testing.assert_allclose(draws.mean(axis=0), 1, atol=0.3)


def test_interval_has_the_width_of_the_normal_approximation():
  values = (np.arange(2000) < 600).astype(float)  # mean 0.3
  result = bootstrap.interval(values, samples=2000, seed=0)
  half = 1.96 * math.sqrt(0.3 * 0.7 / 2000)
  assert result.mean == pytest.approx(0.3)
  assert result.low == pytest.approx(0.3 - half, abs=0.1 * half)
  assert result.high == pytest.approx(0.3 + half, abs=0.1 * half)


def test_interval_of_nobody_is_nan():
  result = bootstrap.interval(np.zeros(0), samples=5, seed=0)
  assert all(math.isnan(v) for v in result)


def test_paired_difference_is_narrower_than_the_unpaired_one():
  rng = np.random.default_rng(0)
  base = rng.random(300)
  better = base + 0.01  # every user gains exactly 0.01
  (result,) = bootstrap.paired_differences(
    better[:, None], base[:, None], samples=100, seed=0
  )
  assert result.mean == pytest.approx(0.01)
  assert result.low == pytest.approx(0.01)
  assert result.high == pytest.approx(0.01)
  assert result.share_above_zero == 1.0


def test_paired_difference_of_equal_methods_supports_neither():
  values = np.random.default_rng(0).random((20, 1))
  (result,) = bootstrap.paired_differences(values, values, samples=50, seed=0)
  assert result == (0.0, 0.0, 0.0, 0.5)
