"""Batches of item vectors: order, filler rows, position."""

import json

import numpy as np
import pytest

from onerec_jax.data import vector_batches

_NUM_ITEMS = 10


def _batches(**changes):
  # Row i holds the number i + 1, so that a filler row (0) is no item's.
  vectors = np.arange(1, _NUM_ITEMS + 1, dtype=np.float32)[:, None]
  return vector_batches.VectorBatches(
    vectors, **{'batch_size': 4, 'seed': 3, **changes}
  )


def _items(batch):
  return (batch.vectors[batch.mask, 0] - 1).astype(int).tolist()


def test_every_epoch_visits_each_item_once_in_another_order():
  batches = _batches()
  assert batches.batches_per_epoch == 3  # 4 + 4 + 2
  epochs = [
    [item for _ in range(3) for item in _items(next(batches))] for _ in range(2)
  ]
  for epoch, order in enumerate(epochs):
    assert sorted(order) == list(range(_NUM_ITEMS))
    assert order == batches.order(epoch).tolist()
  assert epochs[0] != epochs[1]
  assert epochs[0] != _batches(seed=4).order(0).tolist()


def test_last_batch_of_an_epoch_is_filled_up_with_masked_zeros():
  batches = _batches()
  last = [next(batches) for _ in range(3)][-1]
  assert last.mask.tolist() == [True, True, False, False]
  assert last.vectors.shape == (4, 1)
  assert last.vectors.dtype == np.float32
  assert not last.vectors[2:].any()


def test_a_batch_larger_than_the_catalogue_holds_all_of_it():
  batches = _batches(batch_size=16)
  assert batches.batches_per_epoch == 1
  for _ in range(2):
    assert sorted(_items(next(batches))) == list(range(_NUM_ITEMS))


@pytest.mark.parametrize('position', [0, 2, 3, 7])
def test_the_stored_position_continues_with_the_same_bits(position):
  batches = _batches()
  for _ in range(position):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  expected = [next(batches) for _ in range(5)]
  again = _batches()
  again.set_state(state)
  for batch in expected:
    other = next(again)
    np.testing.assert_array_equal(other.vectors, batch.vectors)
    np.testing.assert_array_equal(other.mask, batch.mask)


def _first_half(batch_size):
  return np.arange(batch_size // 2)


def _second_half(batch_size):
  return np.arange(batch_size // 2, batch_size)


def test_processes_share_the_rows_of_a_batch():
  whole = _batches()
  parts = [_batches(own_rows=rows) for rows in (_first_half, _second_half)]
  for _ in range(4):
    batch = next(whole)
    halves = [next(part) for part in parts]
    np.testing.assert_array_equal(
      np.concatenate([h.vectors for h in halves]), batch.vectors
    )
    np.testing.assert_array_equal(
      np.concatenate([h.mask for h in halves]), batch.mask
    )


def test_no_vectors_are_refused():
  with pytest.raises(ValueError, match='no item vectors'):
    vector_batches.VectorBatches(
      np.zeros((0, 2), np.float32), batch_size=4, seed=0
    )
