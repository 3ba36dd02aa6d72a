"""Users with random events, for tests of what reads examples."""

import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax.data import examples


def _make_records(num_users, seed=0, *, targets='positive'):
  """Users with 3..15 events; starts at every positive but the first one."""
  rng = np.random.default_rng(seed)
  for user in range(num_users):
    n = int(rng.integers(3, 16))
    items = rng.integers(0, 50, n)  # item 0 is a real item
    positive = rng.random(n) < 0.7
    positive[:2] = True
    positions = np.flatnonzero(positive)
    if targets == 'positive':
      starts = positions[1:]
      lengths = len(positions) - 1 - np.arange(len(starts))
    else:
      starts = np.arange(1, n, 2)
      lengths = np.minimum(n - starts, 2)
    yield examples.UserRecord(
      user=10 + user,
      items=items.astype(np.int32),
      positive=positive,
      timestamps=np.arange(n),
      target_starts=starts.astype(np.int32),
      target_lengths=lengths.astype(np.int32),
    )


@pytest.fixture(scope='session')
def make_records():
  """Function (num_users, seed=0, *, targets='positive') -> UserRecords."""
  return _make_records


@pytest.fixture(scope='session')
def store(tmp_path_factory):
  """Examples of 37 users."""
  path = tmp_path_factory.mktemp('examples') / 'train.arrayrecord'
  examples.write_examples(path, _make_records(37))
  return examples.ExampleStore(path)


class _NumberedBatches:
  """Endless stand-in for batches of samples: batch n holds the number n."""

  def __init__(self):
    self.number = 0

  def __next__(self):
    self.number += 1
    return batch_lib.SessionBatch(*[np.array(self.number - 1)] * 7)

  def get_state(self):
    return {'next_index': self.number}

  def set_state(self, state):
    self.number = state['next_index']


@pytest.fixture(scope='session')
def numbered_batches():
  """Class of an endless iterator that can be set back."""
  return _NumberedBatches


@pytest.fixture(scope='session')
def store_of_four(tmp_path_factory):
  """Four users; user u has positives 10 u, 10 u + 1, ... and u + 1 starts."""
  path = tmp_path_factory.mktemp('four') / 'train.arrayrecord'
  records = [
    examples.UserRecord(
      user=u,
      items=np.arange(10 * u, 10 * u + 6, dtype=np.int32),
      positive=np.ones(6, bool),
      timestamps=np.arange(6),
      target_starts=np.arange(1, u + 2, dtype=np.int32),
      target_lengths=np.full(u + 1, 2, np.int32),
    )
    for u in range(4)
  ]
  examples.write_examples(path, records)
  return examples.ExampleStore(path)
