"""Users with random events, for tests of what reads examples."""

import numpy as np
import pytest

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
