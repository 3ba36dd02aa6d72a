"""Beam search for several items at once, and with excluded ones."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.semantic_ids import prefix_trie

# --- Sessions ---------------------------------------------------------------


@pytest.mark.parametrize(
  'num_items, limit, forbid_repeats',
  [(2, 0, False), (2, 2**20, True), (3, 0, True), (3, 2**20, False)],
)
def test_sessions_equal_enumeration(toys, num_items, limit, forbid_repeats):
  codes = np.array([[0, 1], [0, 2], [1, 0], [3, 3], [3, 3]])
  codes_per_level = (4, 4)
  toy = toys.Toy(codes_per_level, num_users=2, num_items=num_items, seed=3)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  result = toys.search(
    toy,
    trie,
    num_beams=4**num_items + 3,
    num_items=num_items,
    forbid_repeats=forbid_repeats,
  )
  ids = sorted({tuple(c) for c in codes.tolist()})
  sessions = [
    s
    for s in itertools.product(ids, repeat=num_items)
    if not forbid_repeats or len(set(s)) == num_items
  ]
  for user in range(2):
    toys.assert_equals_ranking(result, user, toys.ranking(toy, user, sessions))


@pytest.mark.parametrize(
  'limit, forbid_repeats', [(0, True), (2**20, True), (0, False)]
)
def test_narrow_session_beams_equal_a_textbook_beam_search(
  toys, limit, forbid_repeats
):
  # Crowded prefixes, so that exclusions and repeats use them up together.
  codes_per_level = (3, 4)
  codes = toys.catalogue(codes_per_level, 9, seed=5)
  toy = toys.Toy(codes_per_level, num_users=2, num_items=3, seed=5)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  excluded = np.stack([codes[:3], [codes[4], codes[4], [-1, -1]]])
  result = toys.search(
    toy,
    trie,
    jnp.asarray(excluded),
    num_beams=6,
    num_items=3,
    forbid_repeats=forbid_repeats,
  )
  ids = {tuple(c) for c in codes.tolist()}
  for user in range(2):
    allowed = sorted(ids - {tuple(c) for c in excluded[user].tolist()})
    expected = toys.brute_force_beam(toy, user, allowed, 6, 3, forbid_repeats)
    assert expected
    toys.assert_equals_ranking(result, user, expected)


def test_a_session_longer_than_the_catalogue_without_repeats_is_empty(toys):
  codes = np.array([[0, 1], [1, 1]])
  toy = toys.Toy((2, 2), num_users=1, num_items=3)
  trie = prefix_trie.PrefixTrie.build(codes, (2, 2))
  result = toys.search(toy, trie, num_beams=4, num_items=3, forbid_repeats=True)
  assert not result.valid.any()


def test_repeats_under_a_narrow_beam_never_strand_it(toys):
  # One beam, two IDs under one prefix and one elsewhere: after two items of
  # the favourite prefix it must leave it instead of dying there.
  codes = np.array([[0, 0], [0, 1], [1, 0]])
  for seed in range(8):
    toy = toys.Toy((2, 2), num_users=3, num_items=3, seed=seed)
    trie = prefix_trie.PrefixTrie.build(codes, (2, 2))
    result = toys.search(
      toy, trie, num_beams=1, num_items=3, forbid_repeats=True
    )
    assert result.valid.all()
    leaves = np.sort(np.asarray(result.leaves)[:, 0], -1)
    np.testing.assert_array_equal(leaves, np.tile([0, 1, 2], (3, 1)))


# --- Excluded items ---------------------------------------------------------


@pytest.mark.parametrize('limit, width', [(0, 5), (2**20, 5), (0, 64)])
def test_exclusion_equals_filtering_afterwards(toys, limit, width):
  codes_per_level = (7, 9, 35)
  trie = prefix_trie.PrefixTrie.build(
    toys.catalogue(codes_per_level, 120),
    codes_per_level,
    max_bitmap_bytes=limit,
  )
  for seed in range(4):
    rng = np.random.default_rng(seed)
    codes = toys.catalogue(codes_per_level, 60, seed)
    # Crowd a prefix, so that it can be used up.
    codes[:6] = [[0, 0, c] for c in range(6)]
    toy = toys.Toy(codes_per_level, num_users=2, num_items=1, seed=seed)
    excluded = np.stack([codes[rng.permutation(60)[:20]] for _ in range(2)])
    excluded[0, :6] = codes[:6]
    excluded[:, 6] = excluded[:, 7]  # a repeat counts once
    excluded[:, 8] = -1
    excluded[:, 9] = [6, 8, 34]  # most likely not in the catalogue
    ids = sorted({tuple(c) for c in codes.tolist()})
    result = toys.search(
      toy, trie.refresh(codes), jnp.asarray(excluded), num_beams=width
    )
    for user in range(2):
      seen = {tuple(c) for c in excluded[user].tolist()}
      allowed = [i for i in ids if i not in seen]
      # Narrow: still the beam of the smaller catalogue, no beam wasted.
      expected = (
        toys.ranking(toy, user, [(i,) for i in allowed])
        if width > len(ids)
        else toys.brute_force_beam(toy, user, allowed, width, 1, False)
      )
      toys.assert_equals_ranking(result, user, expected)


def test_excluding_everything_leaves_no_valid_result(toys):
  codes = toys.catalogue((5, 5), 8)
  toy = toys.Toy((5, 5), num_users=2, num_items=1)
  trie = prefix_trie.PrefixTrie.build(codes, (5, 5))
  excluded = np.stack([codes, codes])
  excluded[1, 0] = -1  # the second user keeps one item, if its ID is unique
  left = {tuple(c) for c in codes.tolist()} - {
    tuple(c) for c in excluded[1].tolist()
  }
  result = toys.search(toy, trie, jnp.asarray(excluded), num_beams=6)
  assert not result.valid[0].any()
  assert np.isfinite(np.asarray(result.entropy)).all()
  toys.assert_equals_ranking(
    result, 1, toys.ranking(toy, 1, [(i,) for i in left])
  )


def test_exclusions_without_a_trie_are_refused(toys):
  toy = toys.Toy((3, 3), num_users=1, num_items=1)
  with pytest.raises(ValueError, match='exclude_codes needs a trie'):
    toys.search(toy, None, jnp.zeros((1, 1, 2), jnp.int32), num_beams=2)
