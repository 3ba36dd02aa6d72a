"""Mean: sums and counts combine exactly; batches are pytrees."""

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import batch


def test_means_of_unequal_batches_combine_to_the_overall_mean():
  # Values 1, 2, 3 | 10: a mean of means would give 6.
  first = batch.Mean(jnp.float32(6.0), jnp.float32(3.0))
  second = batch.Mean(jnp.float32(10.0), jnp.float32(1.0))
  assert float((first + second).value()) == 4.0


def test_mean_of_nothing_is_zero_with_a_finite_gradient():
  def mean(total):
    return batch.Mean(total, jnp.float32(0.0)).value()

  assert float(mean(jnp.float32(0.0))) == 0.0
  assert np.isfinite(float(jax.grad(mean)(jnp.float32(0.0))))


def test_session_batch_keeps_its_fields_through_a_tree_map():
  one = batch.SessionBatch(*(np.full(2, i) for i in range(7)))
  doubled = jax.tree.map(lambda x: 2 * x, one)
  np.testing.assert_array_equal(doubled.target_items, [8, 8])
  assert isinstance(doubled, batch.SessionBatch)
