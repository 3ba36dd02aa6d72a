"""Fits of the linear part: law found, penalty chosen by users left out."""

import numpy as np
import pytest
from scipy import sparse

from onerec_jax.data import linear_fit


def _labels(logits, rng):
  return (rng.random(len(logits)) < 1 / (1 + np.exp(-logits))).astype('f4')


def _fit(features, labels, users, strengths):
  return linear_fit.fit(
    sparse.csr_matrix(features), labels, users, strengths=strengths, seed=0
  )


def test_the_law_behind_each_label_is_found_where_it_is_known():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6000, 2))
  labels = np.stack(
    [_labels(1.5 * x[:, 0] - 1, rng), _labels(0.5 - x[:, 1], rng)], axis=1
  )
  labels[::3, 1] = np.nan
  fits = _fit(x, labels, np.arange(6000) // 4, (1.0,))
  # Twice the standard error of a coefficient is about 0.1.
  np.testing.assert_allclose(
    fits.coefficients, [[1.5, 0.0], [0.0, -1.0]], atol=0.15
  )
  np.testing.assert_allclose(fits.intercepts, [-1.0, 0.5], atol=0.15)


def test_users_left_out_choose_the_penalty():
  rng = np.random.default_rng(0)
  users = np.arange(400) // 2
  # What is particular to a user tells nothing of others: the strongest penalty
  # is best.  What all share is underrated by it.
  own = np.repeat(np.eye(200), 2, axis=0)
  noise = np.repeat(_labels(np.zeros(200), rng), 2)
  shared = rng.normal(size=(400, 1))
  law = _labels(4 * shared[:, 0], rng)
  strengths = (1e-3, 1e-2, 1.0)
  by_noise = _fit(
    np.concatenate([own, rng.normal(size=(400, 60))], axis=1),
    noise[:, None],
    users,
    strengths,
  )
  by_law = _fit(shared, law[:, None], users, strengths)
  assert by_noise.strengths == (1e-3,) and by_law.strengths == (1.0,)


@pytest.mark.parametrize('always', [0.0, 1.0])
def test_a_label_of_one_class_gets_a_finite_constant(always):
  fits = _fit(
    np.eye(6), np.full((6, 1), always, 'f4'), np.arange(6), (0.1, 1.0)
  )
  assert not fits.coefficients.any()
  # log (0.9999 / 0.0001)
  sign = 1 if always else -1
  np.testing.assert_allclose(fits.intercepts, [sign * np.log(9999.0)])
