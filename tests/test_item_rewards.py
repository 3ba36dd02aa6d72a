"""Rewards of generated items: what they earn, formats, and suppression."""

import dataclasses
import json

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import item_rewards


def test_outputs_without_an_item_earn_nothing():
  scores = np.array([[0.5, np.nan, 0.25]])
  items = np.array([[7, -1, 3]])
  found = item_rewards.earned(scores, items)
  np.testing.assert_array_equal(found, np.float32([[0.5, 0.0, 0.25]]))


def test_an_item_without_a_score_is_an_error_that_names_it():
  items = np.array([[7, -1], [2, 9]])
  scores = np.array([[0.5, 0.1], [0.2, np.nan]])
  with pytest.raises(ValueError, match=r'1 of 3 .* item 9 of row 1, nan'):
    item_rewards.earned(scores, items)


def test_items_of_a_group_are_counted_once():
  items = np.array([[3, 3, 0, -1], [-1, -1, -1, -1], [0, 1, 2, 3]])
  assert item_rewards.distinct_items(items).tolist() == [2, 0, 4]


# --- Format reward ----------------------------------------------------------


def choose(log_probs, present=None, numbers=None, **changes):
  if present is None:
    present = np.ones(log_probs.shape, bool)
  if numbers is None:
    numbers = np.arange(len(log_probs))
  settings = {'count': 5, 'choice': 'random', 'key': (1, 2), **changes}
  return item_rewards.choose_format_samples(
    log_probs, present, numbers=numbers, **settings
  )


def test_random_samples_ignore_the_probabilities_and_reach_everyone():
  log_probs = np.tile(-np.arange(20.0), (2000, 1))
  found = choose(log_probs)
  assert (found.sum(axis=1) == 5).all()
  # Each of 20 outputs is chosen with probability 1/4: 500 ± 19.
  assert np.abs(found.sum(axis=0) - 500).max() < 5 * 19
  np.testing.assert_array_equal(found, choose(-log_probs))


def test_a_users_draw_does_not_depend_on_the_others_but_on_the_key():
  log_probs = np.zeros((6, 8))
  whole = choose(log_probs)
  part = choose(log_probs[:2], numbers=np.array([3, 5]))
  np.testing.assert_array_equal(part, whole[[3, 5]])
  assert not np.array_equal(whole, choose(log_probs, key=(1, 3)))


def test_top_samples_are_the_most_probable_and_ties_go_to_the_first():
  log_probs = np.array([[-3.0, -1.0, -2.0, -1.0, -1.0]])
  found = choose(log_probs, count=2, choice='top')
  assert found.tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize('choice', ['random', 'top'])
def test_absent_outputs_are_never_chosen(choice):
  log_probs = np.array([[0.0, -1.0, -2.0, -3.0]] * 50)
  present = np.ones(log_probs.shape, bool)
  present[:, 0] = False
  found = choose(log_probs, present, count=2, choice=choice)
  assert not found[:, 0].any() and (found.sum(axis=1) == 2).all()
  every = choose(log_probs, present, count=9, choice=choice)
  np.testing.assert_array_equal(every, present)


# --- Industrial reward ------------------------------------------------------

_SETTINGS = config.IndustrialRewardConfig(
  categories=('farm',), target_share=0.3, factor=0.5, window=6
)
_CLASS = np.array([True, False, False, True])


def suppressor(**changes):
  return item_rewards.IndustrialReward(
    _CLASS, dataclasses.replace(_SETTINGS, **changes)
  )


def test_rewards_of_the_class_are_lowered_while_it_is_too_frequent():
  reward = suppressor()
  rewards = np.full((4, 3), 0.8, np.float32)
  items = np.array([[1, 2, 1], [0, 3, -1], [3, 1, 1], [1, 2, -1]])
  found = reward(rewards, items)
  # Of the last six items: 1 2 1 | 1 2 1 0 3 | 1 0 3 3 1 1 | 3 3 1 1 1 2.
  np.testing.assert_allclose(found.share, [0, 2 / 5, 3 / 6, 2 / 6])
  assert found.active.tolist() == [False, True, True, True]
  np.testing.assert_allclose(
    found.rewards,
    [[0.8] * 3, [0.4, 0.4, 0.8], [0.4, 0.8, 0.8], [0.8] * 3],
  )


def test_a_share_at_the_target_is_allowed():
  reward = suppressor(target_share=0.4, window=100)
  found = reward(np.ones((1, 5), np.float32), np.array([[0, 3, 1, 1, 2]]))
  assert not found.active.any()


def test_the_number_of_users_per_call_does_not_matter():
  random = np.random.default_rng(0)
  items = random.integers(-1, 4, (40, 5))
  rewards = random.random((40, 5)).astype(np.float32)
  whole = suppressor()(rewards, items)
  assert 0 < whole.active.sum() < 40
  reward, parts = suppressor(), []
  for first, last in ((0, 1), (1, 17), (17, 40)):
    parts.append(reward(rewards[first:last], items[first:last]))
    saved = json.loads(json.dumps(reward.get_state()))
    reward = suppressor()
    reward.set_state(saved)
  for name in whole._fields:
    got = np.concatenate([getattr(p, name) for p in parts])
    np.testing.assert_array_equal(got, getattr(whole, name))


def test_items_are_of_the_class_by_any_of_its_categories():
  categories = [['a', 'farm'], [], ['b'], ['viral', 'a']]
  found = item_rewards.suppressed_items(categories, ('farm', 'viral'))
  assert found.tolist() == [True, False, False, True]
  with pytest.raises(ValueError, match=r"\['nothing'\], which no item has"):
    item_rewards.suppressed_items(categories, ('a', 'nothing'))


def test_a_factor_that_raises_rewards_is_refused():
  with pytest.raises(ValueError, match=r'industrial\.factor=1\.5'):
    suppressor(factor=1.5)


# --- Pass@K -------------------------------------------------------------------


def test_pass_at_k_by_hand():
  # Two users, three items, two rewards; the first user's item 1 is illegal.
  rewards = np.array(
    [
      [[0.2, 1.0], [np.nan, np.nan], [0.6, 3.0]],
      [[0.5, 2.0], [0.1, 5.0], [0.3, 2.0]],
    ]
  )
  legal = np.array([[True, False, True], [True, True, True]])
  found = item_rewards.pass_at_values(rewards, legal, pass_at=(1, 3))
  assert item_rewards.pass_columns(['p', 'ltr'], (1, 3)) == (
    'p_mean', 'p_pass@1', 'p_pass@3', 'ltr_mean', 'ltr_pass@1', 'ltr_pass@3'
  )  # fmt: skip
  np.testing.assert_allclose(
    found, [[0.4, 0.2, 0.6, 2.0, 1.0, 3.0], [0.3, 0.5, 0.5, 3.0, 2.0, 5.0]]
  )


def test_pass_at_k_rises_with_k_and_only_the_mean_ignores_the_order():
  random = np.random.default_rng(0)
  rewards = random.random((5, 6, 2))
  legal = np.ones((5, 6), bool)
  ks = (1, 2, 4, 6)
  found = item_rewards.pass_at_values(rewards, legal, pass_at=ks)
  by_k = found.reshape(5, 2, 1 + len(ks))
  assert (np.diff(by_k[..., 1:], axis=-1) >= 0).all()
  turned = item_rewards.pass_at_values(rewards[:, ::-1], legal, pass_at=ks)
  turned = turned.reshape(by_k.shape)
  np.testing.assert_allclose(turned[..., 0], by_k[..., 0])
  np.testing.assert_allclose(turned[..., -1], by_k[..., -1])
  assert (turned[..., 1] != by_k[..., 1]).all()


def test_a_user_without_a_legal_item_among_the_first_k_has_no_figure():
  rewards = np.array([[[0.2], [0.4]], [[0.3], [0.5]]])
  legal = np.array([[False, True], [False, False]])
  found = item_rewards.pass_at_values(rewards, legal, pass_at=(1, 2))
  np.testing.assert_allclose(found[0], [0.4, np.nan, 0.4])
  assert np.isnan(found[1]).all()
