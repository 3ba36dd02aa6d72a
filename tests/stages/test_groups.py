"""Groups hold what their own user's items are worth, and reports add up."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import item_rewards
from onerec_jax import workdir
from onerec_jax.data import examples
from onerec_jax.stages import groups
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import item_generator
from onerec_jax.stages import p_score_model

_SETTINGS = config.ReinforceConfig(
  group_size=4, rollout_batch_size=3, format_samples=2, reward='ltr'
)
# Outputs of user u, position p: items u + p, -1 (illegal), u + p, u; the last
# of user 1 is absent, the first of user 2 is legal but seen.
_LEGAL = np.tile([True, False, True, True], (5, 1))


class _Generator(item_generator.ItemGenerator):
  """Items that follow from the user and the position."""

  def __init__(self, store):
    self._store = store
    self.numbers = []

  def __call__(self, users, *, params, router_bias, number):
    self.numbers.append((number, params, router_bias))
    user, real = np.asarray(users.user), np.asarray(users.example_mask)
    position = self._store.index.starts[np.maximum(users.example_id, 0)]
    items = np.stack(
      [user + position, -np.ones_like(user), user + position, user], axis=1
    )
    legal = _LEGAL[user]
    present = np.ones(items.shape, bool)
    present[user == 1, 3] = False
    legal = legal & present
    items = np.where(legal, items, -1)
    items[user == 2, 0] = -1
    codes = np.where(present[..., None], items[..., None] + [1, 2], -1)
    log_probs = np.where(present, -np.arange(1, 5.0), 0)[..., None] / [1, 2]
    return item_generator.Outputs(
      codes=codes.astype(np.int32),
      old_log_probs=log_probs.astype(np.float32),
      reference_log_probs=np.zeros(codes.shape, np.float32),
      present=present,
      legal=legal & real[:, None],
      items=np.where(real[:, None], items, -1),
      seconds={'generate': 1.0, 'log_probs': 2.0},
    )


def _score(users, items):
  """P-Score and two towers of items. [B, W, 3]"""
  base = 0.01 * (users[:, None] + 10 * items)
  return np.stack([base, base + 0.001, base + 0.002], axis=2)


class _PScores(p_score_model.PScoreModel):
  """Knows the user and wants to be asked about his own position."""

  def __init__(self):
    self.names = ('ctr', 'ltr')

  def score(self, users, positions, items):
    assert (positions[users >= 0] == users[users >= 0] % 3 + 1).all()
    found = np.where((items < 0)[..., None], np.nan, _score(users, items))
    found = found.astype(np.float32)
    return p_score_model.PScores(found[..., 0], found[..., 1:])


class _Truth(item_evaluation.Truth):
  def __init__(self):
    pass

  def __call__(self, users, items):
    return np.where((items < 0)[..., None], np.nan, 1 - _score(users, items))


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  """Five users with one example each, at position u mod 3 + 1."""
  path = tmp_path_factory.mktemp('groups') / 'train.arrayrecord'
  examples.write_examples(
    path,
    [
      examples.UserRecord(
        user=u,
        items=np.arange(5, dtype=np.int32),
        positive=np.ones(5, bool),
        timestamps=np.arange(5),
        target_starts=np.array([u % 3 + 1], np.int32),
        target_lengths=np.ones(1, np.int32),
      )
      for u in range(5)
    ],
  )
  return examples.ExampleStore(path)


def _maker(store, *, truth=True, industrial=None, **changes):
  return groups.GroupMaker(
    _Generator(store),
    groups.ItemScorer(_PScores(), _Truth() if truth else None),
    store,
    dataclasses.replace(_SETTINGS, **changes),
    industrial=industrial,
    history_length=3,
    multiple=2,
    seed=0,
  )


def _make(maker, ids=(3, 1, 2)):
  ids = np.array(ids)
  return maker(
    np.arange(len(ids)) + 7, ids, params='params', router_bias='bias'
  )


def test_rewards_are_those_of_the_users_own_items(store):
  maker = _maker(store)
  assert maker.rows == 4  # three users, in multiples of two
  found, _ = _make(maker)
  assert maker._generator.numbers == [(7, 'params', 'bias')]
  # User 3 at position 1: items 4, -, 4, 3; ltr = 0.01 (u + 10 i) + 0.002.
  np.testing.assert_allclose(
    found.rewards,
    [
      [0.432, 0, 0.432, 0.332],
      [0.312, 0, 0.312, 0],  # user 1 at 2: items 3, -, 3, absent
      [0, 0, 0.522, 0.222],  # user 2 at 3: seen, -, 5, 2
    ],
    atol=1e-6,
  )
  np.testing.assert_allclose(
    found.true_rewards[0], [0.568, np.nan, 0.568, 0.668], atol=1e-6
  )
  assert np.isnan(found.true_rewards[2, 0])
  assert found.legal.tolist() == [
    [True, False, True, True],
    [True, False, True, False],
    [True, False, True, True],
  ]
  assert found.example_ids.tolist() == [3, 1, 2]
  assert len(found.codes) == 3  # filler rows are left out


def test_the_reward_may_be_the_fused_score_or_a_tower(store):
  for reward, part in (('p_score', 0.0), ('ctr', 0.001), ('ltr', 0.002)):
    found, _ = _make(_maker(store, reward=reward))
    assert found.rewards[0, 0] == pytest.approx(0.43 + part)
  with pytest.raises(ValueError, match=r"reward='vtr' .*\('p_score', 'ctr'"):
    _maker(store, reward='vtr')


def test_true_rewards_that_nobody_knows_are_unknown(store):
  found, report = _make(_maker(store, truth=False))
  assert np.isnan(found.true_rewards).all()
  assert 'true_reward' not in groups.figures(report)


def test_the_format_reward_chooses_among_present_outputs(store):
  found, _ = _make(_maker(store))
  assert found.format_mask.sum(axis=1).tolist() == [2, 2, 2]
  assert not found.format_mask[1, 3]
  top, _ = _make(_maker(store, format_choice='top'))
  assert top.format_mask.tolist() == [[True, True, False, False]] * 3
  none, _ = _make(_maker(store, format_weight=0.0))
  assert not none.format_mask.any()


def test_a_suppressed_class_earns_less(store):
  def industrial():
    return item_rewards.IndustrialReward(
      np.arange(20) == 4,
      config.IndustrialRewardConfig(target_share=0.3, factor=0.25),
    )

  found, report = _make(_maker(store, industrial=industrial()))
  plain, _ = _make(_maker(store))
  # 2 of 3 items are of the class, then 2 of 5, then 2 of 7.
  np.testing.assert_allclose(
    found.rewards[0], plain.rewards[0] * [0.25, 1, 0.25, 1]
  )
  np.testing.assert_array_equal(found.rewards[1:], plain.rewards[1:])
  figures = groups.figures(report)['industrial']
  assert figures['share'] == pytest.approx((2 / 3 + 2 / 5 + 2 / 7) / 3)
  assert figures['groups_suppressed'] == pytest.approx(2 / 3)


def test_figures_are_means_over_all_parts(store):
  maker = _maker(store)
  reports = [_make(maker, ids)[1] for ids in ((3, 1, 2), (0, 4))]
  figures = groups.figures(workdir.sum_reports(reports))
  # Present: 4 + 3 + 4 + 4 + 4; legal: 3 + 2 + 3 + 3 + 3; one of them is seen.
  assert figures['legality'] == pytest.approx(14 / 19)
  assert figures['seen_share'] == pytest.approx(1 / 14)
  # Items 4 4 3 | 3 3 | 5 2 | 1 1 0 | 6 6 4.
  assert figures['distinct_items'] == pytest.approx((2 + 1 + 2 + 2 + 2) / 5)
  # The two items of user 1 are the same: no advantage.
  assert figures['zero_advantage_share'] == pytest.approx(1 / 5)
  pairs = [
    (u, i)
    for u, items in (
      (3, (4, 4, 3)), (1, (3, 3)), (2, (5, 2)), (0, (1, 1, 0)), (4, (6, 6, 4)),
    )
    for i in items
  ]  # fmt: skip
  mean = np.mean([0.01 * (u + 10 * i) for u, i in pairs])
  assert figures['reward']['p_score']['mean'] == pytest.approx(mean, rel=1e-5)
  best = np.mean([0.43, 0.31, 0.52, 0.10, 0.64]) + 0.002
  assert figures['reward']['ltr']['best'] == pytest.approx(best, rel=1e-5)
  assert figures['true_reward']['p_score']['mean'] == pytest.approx(1 - mean)
  assert workdir.sum_reports(reports)['seconds']['log_probs'] == 4.0


def test_illegal_outputs_in_the_group_give_it_spread(store):
  _, report = _make(_maker(store, illegal='zero_reward'))
  assert groups.figures(report)['zero_advantage_share'] == 0
