"""Groups keep their user and their step, and survive a restart."""

import numpy as np
import pytest
from etils import epath

from onerec_jax.data import group_batches

_G, _L = 3, 2


def _plan(store, rate=1.5):
  return group_batches.GroupPlan(
    store.index.num_examples, batch_size=4, user_share=rate / 4, seed=5
  )


def _groups(plan, steps):
  """Groups of some steps; rewards name the group, codes the example."""
  first, last = plan.before(steps.start), plan.before(steps.stop)
  ids = plan.examples(first, last)
  count = last - first
  codes = np.zeros((count, _G, _L), np.int32) + ids[:, None, None]
  return group_batches.Groups(
    example_ids=ids,
    codes=codes.astype(np.int32),
    old_log_probs=-np.ones((count, _G, _L), np.float32),
    reference_log_probs=-2 * np.ones((count, _G, _L), np.float32),
    rewards=np.repeat(np.arange(first, last)[:, None], _G, 1).astype('f4'),
    legal=np.ones((count, _G), bool),
    format_mask=np.ones((count, _G), bool),
    true_rewards=np.ones((count, _G), np.float32),
  )


@pytest.fixture
def make_batches(store_of_four, numbered_batches):
  """Function (plan, *, multiple=2, **process) -> GroupBatches."""

  def make(plan, *, multiple=2, **process):
    return group_batches.GroupBatches(
      numbered_batches(),
      store_of_four,
      plan,
      history_length=4,
      multiple=multiple,
      **process,
    )

  return make


# --- The plan ---------------------------------------------------------------


@pytest.mark.parametrize('rate', [0.01, 0.25, 1.0, 1.5, 3.7])
def test_groups_come_at_the_wanted_rate_and_never_in_heaps(rate):
  plan = group_batches.GroupPlan(
    10, batch_size=100, user_share=rate / 100, seed=0
  )
  counts = np.diff([plan.before(t) for t in range(1001)])
  assert counts[0] >= 1  # a share of nothing would be a silent no-op
  assert plan.before(1000) == max(round(1000 * rate), 1)
  assert set(counts.tolist()) <= {int(rate), plan.rows_per_step}


def test_a_share_that_is_no_binary_number_gives_whole_groups():
  plan = group_batches.GroupPlan(10, batch_size=100, user_share=0.07, seed=0)
  assert plan.rows_per_step == 7
  assert plan.before(10_000) == 70_000


def test_every_example_has_its_turn_before_any_has_a_second():
  plan = group_batches.GroupPlan(7, batch_size=4, user_share=0.5, seed=1)
  ids = plan.examples(0, 21)
  for k in range(3):
    assert sorted(ids[7 * k : 7 * k + 7].tolist()) == list(range(7))
  assert ids[:7].tolist() != ids[7:14].tolist()
  np.testing.assert_array_equal(plan.examples(5, 16), ids[5:16])


def test_a_share_of_nothing_is_refused():
  with pytest.raises(ValueError, match=r'user_share=0\.0 must lie'):
    group_batches.GroupPlan(7, batch_size=4, user_share=0.0, seed=1)


# --- Batches ----------------------------------------------------------------


def test_every_group_comes_at_its_step_with_its_own_user(
  store_of_four, make_batches
):
  plan = _plan(store_of_four)
  batches = make_batches(plan)
  assert not batches.is_ready
  row = store_of_four.index.example_rows()
  seen = []
  for step in range(8):
    if not batches.is_ready:
      steps = range(step, step + 3)
      batches.load(_groups(plan, steps), steps)
    found = next(batches)
    assert found.session.user == step
    groups = found.groups
    assert len(groups.codes) == 2
    real = np.asarray(groups.session.example_mask)
    for r in np.flatnonzero(real):
      example = int(groups.session.example_id[r])
      assert (groups.codes[r] == example).all()
      assert groups.session.user[r] == row[example]
      assert groups.session.history_items[r, 0] == 10 * row[example]
      seen.append(int(groups.rewards[r, 0]))
    filler = ~real
    assert (groups.codes[filler] == -1).all()
    assert not groups.legal[filler].any()
    assert not groups.format_mask[filler].any()
    assert np.isnan(groups.true_rewards[filler]).all()
  assert seen == list(range(plan.before(8)))
  assert batches.next_step == 8


def test_batches_go_on_from_their_state_in_the_middle_of_an_interval(
  store_of_four, make_batches
):
  plan = _plan(store_of_four)
  steps = range(6)
  whole = make_batches(plan)
  whole.load(_groups(plan, steps), steps)
  expected = [next(whole) for _ in range(6)]
  first = make_batches(plan)
  first.load(_groups(plan, steps), steps)
  for _ in range(2):
    next(first)
  second = make_batches(plan)
  second.set_state(first.get_state())
  assert second.next_step == 2 and not second.is_ready
  second.load(_groups(plan, steps), steps)
  for batch in expected[2:]:
    found = next(second)
    assert found.session.user == batch.session.user
    np.testing.assert_array_equal(found.groups.rewards, batch.groups.rewards)


def test_processes_hold_disjoint_parts_of_the_rows(store_of_four, make_batches):
  plan, steps = _plan(store_of_four, rate=4.0), range(1)

  def ids(own_rows=np.arange):
    batches = make_batches(plan, multiple=4, own_rows=own_rows)
    batches.load(_groups(plan, steps), steps)
    return next(batches).groups.session.example_id

  parts = [
    ids(lambda size, p=p: np.split(np.arange(size), 2)[p]) for p in range(2)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), ids())


def test_groups_of_other_steps_or_settings_are_refused(
  store_of_four, make_batches
):
  plan = _plan(store_of_four)
  batches = make_batches(plan)
  with pytest.raises(ValueError, match='No groups are loaded for step 0'):
    next(batches)
  groups = _groups(plan, range(2))
  with pytest.raises(ValueError, match=r'3 groups for steps 0..3.* need 6'):
    batches.load(groups, range(4))


def test_a_batch_that_nobody_reads_needs_no_groups(store_of_four, make_batches):
  plan = _plan(store_of_four)
  batches = make_batches(plan)
  batches.load_filler(group_size=_G, levels=_L)
  groups = next(batches).groups
  assert groups.codes.shape == (2, _G, _L)
  assert not groups.session.example_mask.any()
  assert not batches.is_ready


def test_files_hold_what_was_written(tmp_path):
  plan = group_batches.GroupPlan(7, batch_size=4, user_share=0.5, seed=1)
  groups = _groups(plan, range(3))
  path = epath.Path(tmp_path / 'groups' / 'part.npz')
  group_batches.write(path, group_batches.concatenate([groups, groups]))
  found = group_batches.read(path)
  np.testing.assert_array_equal(found.rewards[:, 0], [*range(6), *range(6)])
  assert [p.name for p in path.parent.iterdir()] == ['part.npz']
