"""Pairs keep their user, spread evenly over a round, and survive a restart."""

import numpy as np
import pytest
from etils import epath

from onerec_jax.data import preference_pairs


def _pairs(ids):
  ids = np.asarray(ids)
  count = len(ids)
  items = np.zeros((count, 2, 2), np.int32)
  items[:, 0] = ids[:, None]  # the chosen session names its example
  return preference_pairs.Pairs(
    example_ids=ids,
    items=items,
    mask=np.ones((count, 2, 2), bool),
    reference_log_probs=-np.stack([ids, ids + 0.5], 1).astype(np.float32),
    rewards=np.stack([ids, -ids], 1).astype(np.float32),
    predictions=np.zeros((count, 2, 1), np.float32),
  )


@pytest.fixture
def make_batches(store_of_four, numbered_batches):
  """Function (pairs, *, num_steps=7, multiple=2, ...) -> PreferenceBatches."""

  def make(pairs, *, num_steps=7, multiple=2, **process):
    return preference_pairs.PreferenceBatches(
      numbered_batches(),
      store_of_four,
      pairs,
      num_steps=num_steps,
      history_length=4,
      multiple=multiple,
      key=(5,),
      **process,
    )

  return make


def test_every_pair_comes_once_a_round_with_its_own_user(
  store_of_four, make_batches
):
  ids = np.arange(store_of_four.index.num_examples)
  batches = make_batches(_pairs(ids), num_steps=4)
  row = store_of_four.index.example_rows()
  seen = []
  for _ in range(4):
    pairs = next(batches).pairs
    real = pairs.session.example_mask
    for r in np.flatnonzero(real):
      example = int(pairs.session.example_id[r])
      assert pairs.items[r, 0, 0] == example
      assert pairs.reference_log_probs[r, 0] == -example
      assert pairs.session.user[r] == row[example]
      assert pairs.session.history_items[r, 0] == 10 * row[example]
      seen.append(example)
    assert not pairs.mask[~real].any()
  assert sorted(seen) == ids.tolist()


def test_pairs_are_spread_evenly_and_rows_fit_the_mesh(make_batches):
  batches = make_batches(_pairs(np.arange(10)), num_steps=4, multiple=2)
  counts = [next(batches).pairs.session.example_mask.sum() for _ in range(4)]
  assert sorted(counts) == [2, 2, 3, 3]  # 10 pairs, 4 steps
  assert batches.rows_per_step == 4  # the next multiple of 2 above 3


def test_fewer_pairs_than_steps_leave_filler_rows(make_batches):
  batches = make_batches(_pairs([3]), num_steps=5)
  counts = [next(batches).pairs.session.example_mask.sum() for _ in range(5)]
  assert counts == [1, 0, 0, 0, 0]


def test_batches_go_on_from_their_state(make_batches):
  pairs = _pairs(np.arange(10))
  whole = make_batches(pairs)
  expected = [next(whole) for _ in range(6)]
  first = make_batches(pairs)
  for _ in range(3):
    next(first)
  second = make_batches(pairs)
  second.set_state(first.get_state())
  for batch in expected[3:]:
    found = next(second)
    assert found.session.user == batch.session.user
    np.testing.assert_array_equal(found.pairs.items, batch.pairs.items)


def test_processes_hold_disjoint_parts_of_the_rows(make_batches):
  pairs = _pairs(np.arange(10))
  whole = next(make_batches(pairs, multiple=4)).pairs.session.example_id
  parts = [
    next(
      make_batches(
        pairs,
        multiple=4,
        own_rows=lambda size, p=p: np.split(np.arange(size), 2)[p],
      )
    ).pairs.session.example_id
    for p in range(2)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_examples_are_chosen_without_repeats_and_by_key():
  first = preference_pairs.choose_examples(100, count=30, key=(1,))
  assert len(set(first.tolist())) == 30
  other = preference_pairs.choose_examples(100, count=30, key=(2,))
  assert first.tolist() != other.tolist()
  assert len(preference_pairs.choose_examples(5, count=30, key=(1,))) == 5


def test_rejected_sessions_are_of_other_users(store_of_four):
  index = store_of_four.index
  ids = np.repeat(np.arange(index.num_examples), 50)
  others = preference_pairs.other_examples(index, ids, count=3, key=(0,))
  row = index.example_rows()
  assert (row[others] != row[ids][:, None]).all()
  # Each of the other examples can be drawn.
  for example in range(index.num_examples):
    found = set(others[ids == example].ravel().tolist())
    own = np.flatnonzero(row == row[example]).tolist()
    assert found == set(range(index.num_examples)) - set(own)


def test_files_hold_what_was_written(tmp_path):
  pairs = _pairs(np.arange(3))
  path = epath.Path(tmp_path / 'rollouts' / 'chunk.npz')
  preference_pairs.write(path, preference_pairs.concatenate([pairs, pairs]))
  found = preference_pairs.read(path)
  np.testing.assert_array_equal(found.example_ids, [0, 1, 2, 0, 1, 2])
  assert [p.name for p in path.parent.iterdir()] == ['chunk.npz']
