"""Offsets against a running sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.semantic_ids import offsets


@pytest.mark.parametrize('size', [1, 7, 8, 9, 40])
@pytest.mark.parametrize('largest', [3, 70_000])
def test_offsets_are_the_running_sum_with_the_total_at_the_end(size, largest):
  counts = np.random.default_rng(size).integers(0, largest, size)
  counts[0] = largest
  values = offsets.from_counts(counts).at(jnp.arange(size + 1))
  np.testing.assert_array_equal(values, [0, *np.cumsum(counts)])


def test_offsets_widen_only_when_a_block_holds_more_than_65535():
  # The last offset inside a block of 8 is the sum of the first 7 counts.
  narrow = offsets.from_counts(np.array([65_535, 0, 0, 0, 0, 0, 0, 9]))
  assert narrow.fine.dtype == jnp.uint16
  wide = offsets.from_counts(np.array([65_535, 1]))
  assert wide.fine.dtype == jnp.uint32
