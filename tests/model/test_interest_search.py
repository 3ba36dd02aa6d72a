"""Search in the events of a user: which ones a candidate finds."""

import jax.numpy as jnp
import numpy as np

from onerec_jax.model import interest_search


def test_soft_search_takes_the_best_and_of_equal_ones_the_latest():
  scores = jnp.array([[[5.0, 1.0, 3.0, 3.0, 3.0, 9.0]]])
  mask = jnp.array([[[True, True, True, True, True, False]]])
  # 9 is padding; 5 is the best; of the three 3s the last two.
  found = interest_search.nearest_events(scores, mask, count=3)
  np.testing.assert_array_equal(found[0, 0], [1, 0, 0, 1, 1, 0])
  everything = interest_search.nearest_events(scores, mask, count=6)
  np.testing.assert_array_equal(everything, mask)
  few = jnp.array([[[False, True, False, False, True, False]]])
  np.testing.assert_array_equal(
    interest_search.nearest_events(scores, few, count=3), few
  )


def test_soft_search_equals_a_sort_on_random_scores():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.integers(0, 6, (4, 5, 12)), jnp.float32)  # ties
  mask = rng.random((4, 1, 12)) < 0.7
  found = np.asarray(
    interest_search.nearest_events(scores, jnp.asarray(mask), count=4)
  )
  for b, w in np.ndindex(4, 5):
    real = np.flatnonzero(mask[b, 0])
    best = sorted(real, key=lambda n: (-scores[b, w, n], -n))[:4]
    assert set(np.flatnonzero(found[b, w])) == set(best)


def test_hard_search_takes_the_latest_events_with_a_value_of_the_item():
  events = jnp.array([[[1, 0], [2, 3], [3, 1], [0, 0], [4, 1]]])
  items = jnp.array([[[1, 2], [0, 0], [5, 0]]])
  shared = interest_search.shares_value(events, items)
  # Value 0 is none: the second candidate shares nothing.
  np.testing.assert_array_equal(shared[0], [[1, 1, 1, 0, 1], [0] * 5, [0] * 5])
  latest = interest_search.latest_events(shared, count=2)
  np.testing.assert_array_equal(latest[0, 0], [0, 0, 1, 0, 1])
