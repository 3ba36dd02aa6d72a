"""The tokenizer report against hand counts."""

import itertools
import math

import numpy as np
import pytest

from onerec_jax.semantic_ids import quality


def test_usage_of_a_hand_counted_level():
  # Counts 3, 1, 0, 0 of four codes.
  found = quality.usage(np.array([0, 0, 1, 0]), num_codes=4)
  assert found['utilisation'] == 0.5
  assert (found['smallest'], found['largest']) == (0, 3)
  entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
  assert found['entropy_nats'] == pytest.approx(entropy, rel=1e-12)
  # (-3·0 - 1·0 + 1·1 + 3·3) / (4·4)
  assert found['gini'] == 10 / 16


def test_even_use_has_the_greatest_entropy_and_no_gini():
  found = quality.usage(np.arange(12) % 4, num_codes=4)
  assert found['entropy_nats'] == pytest.approx(math.log(4), rel=1e-12)
  assert found['max_entropy_nats'] == math.log(4)
  assert found['gini'] == 0


def test_gini_is_half_the_relative_mean_difference():
  codes = np.random.default_rng(0).integers(0, 7, 40) ** 2 // 6
  counts = np.bincount(codes, minlength=9)
  difference = np.abs(counts[:, None] - counts[None]).mean()
  assert quality.usage(codes, num_codes=9)['gini'] == pytest.approx(
    difference / (2 * counts.mean()), rel=1e-12
  )


def test_one_code_for_all_has_zero_entropy():
  found = quality.usage(np.zeros(5, int), num_codes=3)
  assert str(found['entropy_nats']) == '0.0'  # not '-0.0' in reports


def test_reconstruction_of_a_hand_computed_case():
  x = np.array([[1.0, 0.0], [3.0, 4.0]])
  found = quality.reconstruction(x, np.array([[1.0, 1.0], [3.0, 4.0]]))
  assert found['mse'] == 0.25
  assert found['relative'] == 1 / 26
  assert found['unexplained'] == 1 / 10  # around the mean (2, 2)
  assert quality.reconstruction(x * 0, x * 0)['relative'] == 0


def test_sharing_counts_items_that_are_not_alone():
  found = quality.sharing(np.array([0, 1, 1, 3, 3, 3]))
  assert found == {
    'distinct': 3,
    'collision_share': 5 / 6,
    'largest_bucket': 3,
  }


def test_category_agreement_is_the_mean_cosine_over_pairs():
  categories = [['all', 'a'], ['all', 'a', 'b'], ['all', 'b'], ['all'], []]
  bucket = np.array([0, 0, 0, 0, 0])
  weight = {
    name: math.log(5 / sum(name in c for c in categories)) for name in 'ab'
  } | {'all': math.log(5 / 4)}
  vectors = np.array(
    [[weight[n] * (n in c) for n in ('all', 'a', 'b')] for c in categories]
  )
  known = vectors[:4] / np.linalg.norm(vectors[:4], axis=1, keepdims=True)
  expected = np.mean(
    [known[i] @ known[j] for i, j in itertools.combinations(range(4), 2)]
  )
  found = quality.category_agreement(bucket, categories)
  assert found == pytest.approx(expected, rel=1e-12)


def test_category_agreement_compares_only_inside_buckets():
  categories = [['a'], ['b'], ['a'], ['b']]
  together = quality.category_agreement(np.array([0, 1, 0, 1]), categories)
  apart = quality.category_agreement(np.array([0, 0, 1, 1]), categories)
  assert together == pytest.approx(1) and apart == pytest.approx(0)
  alone = quality.category_agreement(np.arange(4), categories)
  nothing = quality.category_agreement(np.zeros(4, int), [[]] * 4)
  same = quality.category_agreement(np.zeros(4, int), [['x']] * 4)
  assert alone is nothing is same is None


def _information(codes, main):
  return quality.category_information(
    np.array(codes), [['all', name, 'detail'] for name in main]
  )


def test_codes_that_are_categories_have_information_one():
  found = _information([2, 2, 0, 0, 7, 7], 'aabbcc')
  assert found['nmi'] == pytest.approx(1, rel=1e-12)
  assert found['purity'] == pytest.approx(1, rel=1e-12)
  assert (found['items'], found['categories']) == (6, 3)
  assert found['largest'] == pytest.approx(2 / 6)


def test_codes_that_are_independent_of_categories_have_none():
  found = _information([0, 1, 0, 1], 'aabb')
  assert found['nmi'] == pytest.approx(0, abs=1e-12)
  assert found['purity'] == pytest.approx(0.5)


def test_information_of_a_hand_counted_table():
  # Code 0: a a b, code 1: b.  p(0) = 3/4, p(a) = p(b) = 1/2.
  found = _information([0, 0, 0, 1], 'aabb')
  of_code = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
  of_category = math.log(2)
  both = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
  expected = 2 * (of_code + of_category - both) / (of_code + of_category)
  assert found['nmi'] == pytest.approx(expected, rel=1e-12)
  assert found['purity'] == pytest.approx(3 / 4)


def test_information_does_not_depend_on_the_names_or_the_order():
  rng = np.random.default_rng(0)
  codes, main = rng.integers(0, 5, 40), rng.integers(0, 4, 40)
  found = _information(codes, [str(m) for m in main])
  order = rng.permutation(40)
  moved = _information(
    (codes * 7 % 5)[order], [f'x{3 - m}' for m in main[order]]
  )
  assert found == pytest.approx(moved)
  assert 0 < found['nmi'] < 0.5


def test_the_main_category_is_the_first_that_not_most_items_have():
  categories = [
    ['all', 'a'],
    ['all', 'b', 'a'],
    ['all', 'c', 'b'],
    ['all'],
    [],
    ['all'],
  ]
  found = quality.category_information(np.arange(6), categories)
  assert (found['items'], found['categories']) == (3, 3)
  assert quality.category_information(np.arange(2), [['a'], ['a']]) is None
  assert quality.category_information(np.arange(2), [[], []]) is None


def test_report_counts_prefixes_and_whole_ids():
  codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0]])
  found = quality.report(codes, codes_per_level=(2, 2))
  assert [level['prefix']['distinct'] for level in found['levels']] == [2, 3]
  assert found['levels'][0]['prefix']['largest_bucket'] == 3
  assert found['ids'] == found['levels'][1]['prefix']
  assert found['ids']['collision_share'] == 0.5
  assert 'reconstruction' not in found
  assert 'category_information' not in found['levels'][0]
  told = quality.report(
    codes, codes_per_level=(2, 2), categories=[['a'], ['b'], ['b'], ['a']]
  )
  # The second code is the category, the first says little of it.
  nmi = [level['category_information']['nmi'] for level in told['levels']]
  assert nmi[1] == pytest.approx(1) and nmi[0] < 0.5


@pytest.mark.parametrize(
  ('limits', 'message'),
  [
    ({'min_utilisation': 0.5}, 'level 0 uses 25.0% of its 4 codes'),
    ({'max_bucket': 1}, '2 items share one ID'),
    ({'max_collision_share': 0.9}, '100.0% of the items share their ID'),
  ],
)
def test_each_broken_limit_is_named_alone(limits, message):
  codes = np.array([[0, 0], [0, 1], [0, 1], [0, 0]])
  found = quality.report(codes, codes_per_level=(4, 2))
  kept = {'min_utilisation': 0.25, 'max_bucket': 2, 'max_collision_share': 1.0}
  assert quality.violations(found, **kept) == []
  (sentence,) = quality.violations(found, **(kept | limits))
  assert sentence.startswith(message)
  assert f'tokenizer.limits.{next(iter(limits))}' in sentence
