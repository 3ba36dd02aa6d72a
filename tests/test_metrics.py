"""Ranking metrics, list quality and AUC."""

import math

import numpy as np
import pytest

from onerec_jax import metrics

NONE = metrics.NO_ITEM
FAR = metrics.NOT_RANKED


def _random_lists(seed=0, users=40, items=30, k=10):
  rng = np.random.default_rng(seed)
  lists = np.stack([rng.permutation(items)[:k] for _ in range(users)])
  lists[::5, k - 3 :] = NONE  # some lists run short
  return lists, rng.integers(0, items, (users, 1))


def test_rank_is_the_place_in_the_list():
  recommended = np.array([[7, 3, 5], [0, 1, NONE]])
  targets = np.array([[5, 7], [1, 9]])
  # Row 0: item 5 is third, 7 first.  Row 1: 1 is second, 9 is absent.
  np.testing.assert_array_equal(
    metrics.target_ranks(recommended, targets), [[3, 1], [2, FAR]]
  )


def test_filler_is_never_a_hit_even_for_a_masked_target_of_minus_one():
  recommended = np.array([[4, NONE]])
  ranks = metrics.target_ranks(recommended, np.array([[NONE]]))
  np.testing.assert_array_equal(ranks, [[FAR]])


def test_empty_lists_rank_nothing():
  ranks = metrics.target_ranks(np.zeros((2, 0), int), np.array([[0], [1]]))
  np.testing.assert_array_equal(ranks, [[FAR], [FAR]])


def test_colliding_items_share_credit_by_id_and_not_by_item():
  # Items 0 and 1 share an ID (number 8); the target is 1, only 0 is listed.
  id_of_item = np.array([8, 8, 5, 6])
  recommended = np.array([[2, 0, 3]])
  target = np.array([[1]])
  assert metrics.target_ranks(recommended, target)[0, 0] == FAR
  by_id = metrics.target_ranks_by_id(recommended, target, id_of_item=id_of_item)
  assert by_id[0, 0] == 2


def test_by_id_rank_counts_distinct_ids_only():
  # IDs of the list: 8, 8, 5 -> the target's ID 5 is the second distinct one.
  id_of_item = np.array([8, 8, 5, 6])
  ranks = metrics.target_ranks_by_id(
    np.array([[0, 1, 2]]), np.array([[2]]), id_of_item=id_of_item
  )
  assert ranks[0, 0] == 2


def test_by_id_equals_by_item_when_every_item_has_its_own_id():
  lists, targets = _random_lists()
  by_id = metrics.target_ranks_by_id(
    lists, targets, id_of_item=np.random.default_rng(1).permutation(30)
  )
  np.testing.assert_array_equal(by_id, metrics.target_ranks(lists, targets))


def test_metrics_of_one_target_by_hand():
  ranks = np.array([[1], [3], [FAR]])
  np.testing.assert_allclose(metrics.recall_at_k(ranks, k=3), [1, 1, 0])
  np.testing.assert_allclose(metrics.hit_at_k(ranks, k=2), [1, 0, 0])
  # 1 / log2(rank + 1): rank 1 -> 1, rank 3 -> 1 / 2.
  np.testing.assert_allclose(metrics.ndcg_at_k(ranks, k=3), [1, 0.5, 0])
  np.testing.assert_allclose(metrics.mrr_at_k(ranks, k=3), [1, 1 / 3, 0])
  np.testing.assert_allclose(metrics.ndcg_at_k(ranks, k=2), [1, 0, 0])


def test_metrics_of_a_session_by_hand():
  # Three targets, found at ranks 2 and 3, one not at all.
  ranks = np.array([[3, 2, FAR]])
  np.testing.assert_allclose(metrics.recall_at_k(ranks, k=5), [2 / 3])
  np.testing.assert_allclose(metrics.mrr_at_k(ranks, k=5), [1 / 2])
  gain = 1 / math.log2(3) + 1 / math.log2(4)
  best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
  np.testing.assert_allclose(metrics.ndcg_at_k(ranks, k=5), [gain / best])
  # With k = 2 the best list holds two targets only.
  np.testing.assert_allclose(
    metrics.ndcg_at_k(ranks, k=2),
    [(1 / math.log2(3)) / (1 + 1 / math.log2(3))],
  )


@pytest.mark.parametrize('name', sorted(metrics.RANKING_METRICS))
def test_a_masked_target_is_the_same_as_no_target(name):
  metric = metrics.RANKING_METRICS[name]
  ranks = np.array([[2, 1], [FAR, 3]])
  where = np.array([[True, False], [True, False]])
  np.testing.assert_array_equal(
    metric(ranks, where, k=3), metric(ranks[:, :1], k=3)
  )


@pytest.mark.parametrize('name', sorted(metrics.RANKING_METRICS))
def test_a_user_without_targets_scores_zero(name):
  value = metrics.RANKING_METRICS[name](
    np.array([[1, 2]]), np.zeros((1, 2), bool), k=3
  )
  np.testing.assert_array_equal(value, [0.0])


@pytest.mark.parametrize('name', sorted(metrics.RANKING_METRICS))
def test_metrics_equal_a_loop_over_users(name):
  lists, targets = _random_lists()
  expected = []
  for row, target in zip(lists.tolist(), targets[:, 0].tolist(), strict=True):
    rank = row.index(target) + 1 if target in row[:5] else None
    expected.append(
      0.0
      if rank is None
      else {'ndcg': 1 / math.log2(rank + 1), 'mrr': 1 / rank}.get(name, 1.0)
    )
  assert 0 < sum(expected) < len(expected)
  ranks = metrics.target_ranks(lists, targets)
  np.testing.assert_allclose(
    metrics.RANKING_METRICS[name](ranks, k=5), expected
  )


def test_permuting_users_permutes_the_values():
  lists, targets = _random_lists()
  order = np.random.default_rng(3).permutation(len(lists))
  ndcg = metrics.ndcg_at_k(metrics.target_ranks(lists, targets), k=10)
  permuted = metrics.target_ranks(lists[order], targets[order])
  np.testing.assert_array_equal(metrics.ndcg_at_k(permuted, k=10), ndcg[order])


def test_coverage_counts_distinct_items_of_the_first_k():
  recommended = np.array([[0, 1, 2], [1, 0, NONE]])
  # First two of each: {0, 1}; of all three: {0, 1, 2}; catalogue of 8.
  assert metrics.coverage_at_k(recommended, num_items=8, k=2) == 2 / 8
  assert metrics.coverage_at_k(recommended, num_items=8, k=3) == 3 / 8


def test_diversity_of_equal_orthogonal_and_opposite_items():
  embeddings = np.array([[2.0, 0], [5, 0], [0, 1], [-3, 0]])
  recommended = np.array([[0, 1], [0, 2], [0, 3], [0, NONE]])
  # Cosines 1, 0, -1; a list of one item has no pair.
  np.testing.assert_allclose(
    metrics.intra_list_diversity(recommended, embeddings=embeddings, k=2),
    [0, 1, 2, np.nan],
    atol=1e-12,
  )


def test_diversity_equals_the_mean_over_pairs():
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(30, 4))
  lists, _ = _random_lists(k=6)
  expected = []
  for row in lists:
    x = embeddings[row[row != NONE]]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    cosines = [x[i] @ x[j] for i in range(n) for j in range(n) if i != j]
    expected.append(1 - np.mean(cosines))
  np.testing.assert_allclose(
    metrics.intra_list_diversity(lists, embeddings=embeddings, k=6), expected
  )


def test_distinct_categories_by_hand():
  category = np.array([0, 0, 1, -1])
  recommended = np.array([[0, 1, 2], [0, 1, 3], [3, NONE, NONE]])
  # {0, 0, 1} -> 2 of 3; {0, 0} -> 1 of 2 (item 3 has none); nothing known.
  np.testing.assert_allclose(
    metrics.distinct_category_share(
      recommended, category_of_item=category, k=3
    ),
    [2 / 3, 1 / 2, np.nan],
  )


def test_entropy_of_uniform_and_certain_weights():
  weights = np.array([[2.0, 2, 2, 2], [3, 0, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_allclose(
    metrics.entropy(weights), [math.log(4), 0, 0], atol=1e-15
  )


def test_auc_equals_the_share_of_ordered_pairs_with_ties_as_half():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 6, 50).astype(float)  # many ties
  labels = rng.random(50) < 0.4
  pairs = [
    1.0 if p > n else 0.5 if p == n else 0.0
    for p in scores[labels]
    for n in scores[~labels]
  ]
  assert metrics.auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auc_of_one_class_is_undefined():
  assert math.isnan(metrics.auc(np.array([0.1, 0.2]), np.array([True, True])))


def test_grouped_auc_weights_groups_and_leaves_out_one_class_groups():
  scores = np.array([0.9, 0.1, 0.2, 0.8, 0.5, 0.3, 0.7])
  labels = np.array([True, False, True, False, False, True, True])
  groups = np.array([0, 0, 1, 1, 1, 2, 2])
  # Group 0: 1.0 (2 rows); group 1: 0 of 2 pairs = 0.0 (3); group 2: one class.
  assert metrics.grouped_auc(scores, labels, groups) == pytest.approx(2 / 5)
  shuffled = np.random.default_rng(1).permutation(7)
  assert metrics.grouped_auc(
    scores[shuffled], labels[shuffled], groups[shuffled]
  ) == pytest.approx(2 / 5)
