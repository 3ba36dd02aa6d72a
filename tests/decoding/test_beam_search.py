"""Beam search with a toy decoder, against exhaustive enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.decoding import beam_search
from onerec_jax.semantic_ids import prefix_trie

# K off the word size, unequal levels, lists, one item, a full ID space.
_CASES = [
  ((33, 7, 40), 60, 2**20),
  ((33, 7, 40), 60, 60),
  ((6,), 6, 2**20),
  ((6, 6), 1, 0),
  ((2, 2, 2), 30, 0),
]


@pytest.mark.parametrize('codes_per_level, num_items, limit', _CASES)
def test_a_beam_wider_than_the_catalogue_returns_the_exact_full_ranking(
  toys, codes_per_level, num_items, limit
):
  codes = toys.catalogue(codes_per_level, num_items)
  toy = toys.Toy(codes_per_level, num_users=2, num_items=1)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  result = toys.search(toy, trie, num_beams=num_items + 5)
  sessions = [(c,) for c in sorted({tuple(c) for c in codes})]
  for user in range(2):
    toys.assert_equals_ranking(result, user, toys.ranking(toy, user, sessions))
  legal = np.asarray(trie.lookup(result.codes))
  np.testing.assert_array_equal(legal, result.leaves)


@pytest.mark.parametrize(
  'codes_per_level, width, limit', [((3, 30, 9), 7, 200), ((33, 4, 5), 3, 0)]
)
def test_narrow_beams_equal_a_textbook_beam_search(
  toys, codes_per_level, width, limit
):
  trie = prefix_trie.PrefixTrie.build(  # room for every case below
    toys.catalogue(codes_per_level, 80), codes_per_level, max_bitmap_bytes=limit
  )
  for seed in range(5):
    codes = toys.catalogue(codes_per_level, 10 + 12 * seed, seed + 1)
    toy = toys.Toy(codes_per_level, num_users=2, num_items=1, seed=seed)
    result = toys.search(toy, trie.refresh(codes), num_beams=width)
    ids = sorted({tuple(c) for c in codes.tolist()})
    for user in range(2):
      expected = toys.brute_force_beam(toy, user, ids, width, 1, False)
      toys.assert_equals_ranking(result, user, expected)


def test_free_decoding_ranks_the_whole_code_space(toys):
  codes_per_level, num_items = (3, 2), 2
  toy = toys.Toy(codes_per_level, num_users=2, num_items=num_items, seed=1)
  for forbid_repeats in (False, True):
    result = toys.search(
      toy,
      None,
      num_beams=40,
      num_items=num_items,
      forbid_repeats=forbid_repeats,
    )
    space = list(itertools.product(*map(range, codes_per_level)))
    sessions = [
      s
      for s in itertools.product(space, repeat=num_items)
      if not forbid_repeats or len(set(s)) == num_items
    ]
    for user in range(2):
      toys.assert_equals_ranking(
        result, user, toys.ranking(toy, user, sessions)
      )
    assert np.all(np.asarray(result.leaves) == -1)


def test_free_decoding_equals_a_trie_that_holds_every_id(toys):
  codes_per_level = (4, 33)
  space = np.array(list(itertools.product(*map(range, codes_per_level))))
  toy = toys.Toy(codes_per_level, num_users=3, num_items=1, seed=2)
  trie = prefix_trie.PrefixTrie.build(space, codes_per_level)
  free = toys.search(toy, None, num_beams=10)
  confined = toys.search(toy, trie, num_beams=10)
  np.testing.assert_array_equal(free.codes, confined.codes)
  np.testing.assert_array_equal(free.log_probs, confined.log_probs)


def test_capacity_changes_nothing_and_a_refresh_does_not_compile(toys):
  codes_per_level = (20, 20, 20)
  codes = toys.catalogue(codes_per_level, 30)
  toy = toys.Toy(codes_per_level, num_users=2, num_items=2)
  traces = []

  @jax.jit
  def search(cache, trie):
    traces.append(1)
    return beam_search.search(
      functools.partial(
        toys.Toy.step,
        toy.codes_per_level,
        jnp.asarray(toy.table),
        jnp.asarray(toy.weights, jnp.int32),
      ),
      cache,
      trie=trie,
      codes_per_level=codes_per_level,
      num_beams=8,
      num_items=2,
      forbid_repeats=True,
    )

  for limit in (1000, 2**20):
    exact = prefix_trie.PrefixTrie.build(
      codes, codes_per_level, max_bitmap_bytes=limit
    )
    roomy = prefix_trie.PrefixTrie.build(
      codes, codes_per_level, 64, max_bitmap_bytes=limit
    )
    jax.tree.map(
      np.testing.assert_array_equal,
      search(toy.cache(), exact),
      search(toy.cache(), roomy),
    )
    traces.clear()
    search(toy.cache(), roomy.refresh(toys.catalogue(codes_per_level, 40, 9)))
    assert not traces


def test_entropy_is_that_of_the_models_distributions(toys):
  codes_per_level = (4, 3)
  codes = np.array([[0, 0], [1, 2], [1, 1], [3, 0]])
  toy = toys.Toy(codes_per_level, num_users=2, num_items=1, seed=7)
  trie = prefix_trie.PrefixTrie.build(codes, codes_per_level)
  result = toys.search(toy, trie, num_beams=16)
  for user in range(2):

    def entropy(prefix, user=user):
      l = len(prefix)
      log_probs = np.array(
        [
          toys.last_term(toy, user, [(*prefix, c)])
          for c in range(codes_per_level[l])
        ]
      )
      return -(np.exp(log_probs) * log_probs).sum()

    # All three first codes of the catalogue stay in a beam of 16.
    expected = [entropy(()), np.mean([entropy((c,)) for c in (0, 1, 3)])]
    np.testing.assert_allclose(result.entropy[user], expected, rtol=1e-5)


def test_a_trie_of_other_levels_is_refused(toys):
  toy = toys.Toy((3, 3), num_users=1, num_items=1)
  trie = prefix_trie.PrefixTrie.build(np.array([[0, 1]]), (3, 4))
  with pytest.raises(ValueError, match=r'\(3, 4\), the model \(3, 3\)'):
    toys.search(toy, trie, num_beams=2)


def test_a_widened_cache_is_refused(toys):
  toy = toys.Toy((3, 3), num_users=1, num_items=1)
  with pytest.raises(ValueError, match='expected 1: create it with beams=1'):
    beam_search.search(
      functools.partial(
        toys.Toy.step, toy.codes_per_level, toy.table, toy.weights
      ),
      {'tokens': jnp.zeros((1, 1, 4, 3), jnp.int32)},
      trie=None,
      codes_per_level=(3, 3),
      num_beams=4,
    )
