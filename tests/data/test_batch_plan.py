"""Which examples an epoch takes, and in which batches."""

import numpy as np
import pytest

from onerec_jax.data import batch_plan
from onerec_jax.data import examples
from onerec_jax.data import pipeline

M = 3
HISTORY = 6


def make_plan(store, **changes):
  settings = {
    'batch_size': 8,
    'history_length': HISTORY,
    'stride': M,
    'length_buckets': (2, 4, HISTORY),
    'seed': 5,
  }
  return batch_plan.BatchPlan(store.index, **(settings | changes))


def epoch_batches(plan, epoch):
  first = epoch * plan.batches_per_epoch
  return [plan(first + b) for b in range(plan.batches_per_epoch)]


def epoch_ids(plan, epoch):
  ids = np.concatenate([b.example_ids for b in epoch_batches(plan, epoch)])
  return ids[ids >= 0]


# --- Randomness -------------------------------------------------------------


def test_random_bits_are_splitmix64():
  # First outputs of the public-domain reference implementation, seed 0:
  # the state after the first step is the golden-ratio increment itself.
  got = batch_plan.random_bits(np.arange(1, 4), key=())
  assert [hex(x) for x in got.tolist()] == [
    '0xe220a8397b1dcdaf',
    '0x6e789e6aa1b965f4',
    '0x6c45d188009454f',
  ]


def test_random_bits_depend_on_every_word_of_the_key():
  counters = np.arange(4)
  keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0,), (0, 0, 0)]
  drawn = {batch_plan.random_bits(counters, key=k).tobytes() for k in keys}
  assert len(drawn) == len(keys)


# --- Epoch plan -------------------------------------------------------------


@pytest.mark.parametrize('epoch', [0, 1, 7])
def test_every_start_is_taken_once_an_epoch_when_the_stride_is_one(
  store, epoch
):
  ids = epoch_ids(make_plan(store, stride=1), epoch)
  np.testing.assert_array_equal(
    np.sort(ids), np.arange(store.index.num_examples)
  )


@pytest.mark.parametrize('epoch', [0, 3])
def test_offset_windows_are_the_documented_starts(store, epoch):
  ids = epoch_ids(make_plan(store), epoch)
  assert len(np.unique(ids)) == len(ids)
  offsets = store.index.start_offsets()
  for row, starts in enumerate(store.index.num_starts):
    mine = ids[(ids >= offsets[row]) & (ids < offsets[row + 1])] - offsets[row]
    legal = [
      sorted((r + j * M) % starts for j in range(-(-starts // M)))
      for r in range(starts)
    ]
    assert sorted(mine.tolist()) in legal


def test_epochs_together_cover_every_start_about_equally(store):
  plan = make_plan(store)
  epochs = 60
  counts = np.bincount(
    np.concatenate([epoch_ids(plan, e) for e in range(epochs)]),
    minlength=store.index.num_examples,
  )
  p = store.index.num_starts.astype(int)
  expected = np.repeat(epochs * -(-p // M) / p, p)
  assert counts.min() > 0
  # Binomial with mean >= 60 / 3: six standard deviations are < 6 sqrt(60)/2.
  assert np.abs(counts - expected).max() < 3 * np.sqrt(epochs)


def test_epochs_and_seeds_differ_in_order_and_a_repeat_does_not(store):
  plan = make_plan(store, stride=1)
  first = epoch_ids(plan, 0)
  assert not np.array_equal(first, epoch_ids(plan, 1))
  assert not np.array_equal(first, epoch_ids(make_plan(store, seed=6), 0))
  np.testing.assert_array_equal(first, epoch_ids(plan, 0))


@pytest.mark.parametrize('batch_size', [1, 7, 8, 1000])
@pytest.mark.parametrize('buckets', [(), (2, 4, HISTORY), (1, HISTORY)])
def test_only_the_last_batch_of_an_epoch_has_fillers(
  store, batch_size, buckets
):
  plan = make_plan(store, batch_size=batch_size, length_buckets=buckets)
  total = plan.examples_per_epoch
  assert plan.batches_per_epoch == -(-total // batch_size)
  for epoch in (0, 1):
    batches = epoch_batches(plan, epoch)
    fillers = [int((b.example_ids < 0).sum()) for b in batches]
    assert not any(fillers[:-1])
    assert fillers[-1] == len(batches) * batch_size - total


def test_every_history_fits_and_leftovers_move_up_one_bucket(store):
  plan = make_plan(store, stride=1)
  lengths = np.minimum(store.index.history_counts, HISTORY)
  buckets = np.array([2, 4, HISTORY])
  batches = epoch_batches(plan, 0)
  own_bucket = [
    np.searchsorted(buckets, lengths[b.example_ids[b.example_ids >= 0]])
    for b in batches
  ]
  padded = np.searchsorted(buckets, [b.history_length for b in batches])
  for own, used in zip(own_bucket, padded, strict=True):
    assert (own <= used).all()
  # Fewer than a batch of each bucket's own examples sits higher than needed.
  for bucket in range(2):
    moved = sum(
      int((own == bucket).sum())
      for own, used in zip(own_bucket, padded, strict=True)
      if used > bucket
    )
    assert moved < 8
  assert len(set(padded)) == 3


def test_buckets_lower_the_padding_share(store):
  shares = [
    make_plan(store, stride=1, length_buckets=b).padding_share(
      items_per_session=M
    )
    for b in ((), (4, HISTORY), (2, 4, HISTORY))
  ]
  assert shares[0].history > shares[1].history > shares[2].history > 0
  assert shares[0].targets == shares[1].targets
  assert shares[0].examples == shares[2].examples


def test_the_padding_share_is_the_share_of_masked_entries(store):
  plan = make_plan(store)
  share = plan.padding_share(items_per_session=M, epoch=1)
  real = np.zeros(3)
  slots = np.zeros(3)
  for planned in epoch_batches(plan, 1):
    got = pipeline.session_batch(
      store,
      planned.example_ids,
      history_length=planned.history_length,
      items_per_session=M,
    )
    masks = (got.history_mask, got.target_mask, got.example_mask)
    real += [m.sum() for m in masks]
    slots += [m.size for m in masks]
  np.testing.assert_allclose(share, 1 - real / slots, rtol=1e-6)


def test_a_split_without_targets_cannot_be_planned(tmp_path):
  examples.write_examples(tmp_path / 'train.arrayrecord', [])
  with pytest.raises(ValueError, match='no target start'):
    make_plan(examples.ExampleStore(tmp_path / 'train.arrayrecord'))
