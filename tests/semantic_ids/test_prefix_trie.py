"""The trie against a plain dictionary, and its promise not to recompile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import trie_levels

_LOOKUP = jax.jit(lambda trie, codes: trie.lookup(codes))
_BUCKET = jax.jit(lambda trie, leaf: trie.bucket(leaf))
_BUCKET_SIZE = jax.jit(lambda trie, leaf: trie.bucket_size(leaf))
_LEAF_COUNT = jax.jit(
  lambda trie, depth, node: trie.leaf_count(depth, node), static_argnums=1
)

# (codes_per_level, items, max_bitmap_bytes): K off the word size, unequal
# levels, lists on the deep levels, lists everywhere, one item.
_CASES = [
  ((33, 7, 64), 60, 2**20),
  ((40, 40, 40), 90, 400),
  ((300, 3), 50, 0),
  ((4,), 4, 2**20),
  ((6, 6), 1, 2**20),
  ((2, 2), 12, 0),  # more items than IDs
]


def _catalogue(codes_per_level, num_items, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, codes_per_level, (num_items, len(codes_per_level)))


def _buckets(codes, rank):
  """ID -> items in bucket order, the slow way."""
  buckets = {}
  for item in np.lexsort((np.arange(len(codes)), rank)):
    buckets.setdefault(tuple(codes[item]), []).append(int(item))
  return buckets


@pytest.mark.parametrize('codes_per_level, num_items, limit', _CASES)
def test_lookup_and_buckets_equal_a_dictionary(
  codes_per_level, num_items, limit
):
  codes = _catalogue(codes_per_level, num_items)
  rank = np.random.default_rng(1).permutation(num_items)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, rank_in_bucket=rank, max_bitmap_bytes=limit
  )
  buckets = _buckets(codes, rank)
  ids = sorted(buckets)
  # Every ID of the space when it is small, else a sample; and outsiders.
  space = np.stack(
    np.meshgrid(*[np.arange(-1, k + 1) for k in codes_per_level]), -1
  ).reshape(-1, len(codes_per_level))
  if len(space) > 2000:
    space = np.concatenate(
      [codes, np.random.default_rng(2).permutation(space)[:1000]]
    )
  expected = [ids.index(tuple(c)) if tuple(c) in buckets else -1 for c in space]
  leaves = np.asarray(_LOOKUP(trie, jnp.asarray(space)))
  np.testing.assert_array_equal(leaves, expected)
  assert int(trie.num_leaves) == len(ids)
  assert int(trie.num_items) == num_items
  found = np.asarray(_BUCKET(trie, jnp.arange(len(ids))))
  for leaf, key in enumerate(ids):
    assert [i for i in found[leaf] if i >= 0] == buckets[key]
  sizes = np.asarray(_BUCKET_SIZE(trie, jnp.arange(len(ids))))
  np.testing.assert_array_equal(sizes, [len(buckets[key]) for key in ids])


@pytest.mark.parametrize('codes_per_level, num_items, limit', _CASES)
def test_leaf_counts_equal_the_number_of_distinct_ids_below_a_prefix(
  codes_per_level, num_items, limit
):
  codes = _catalogue(codes_per_level, num_items)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  ids = sorted({tuple(c) for c in codes})
  for depth in range(len(codes_per_level) + 1):
    prefixes = sorted({c[:depth] for c in ids})
    expected = [sum(c[:depth] == p for c in ids) for p in prefixes]
    nodes = jnp.arange(len(prefixes))
    np.testing.assert_array_equal(_LEAF_COUNT(trie, depth, nodes), expected)


def test_children_of_a_list_level_are_the_codes_that_follow():
  codes = np.array([[0, 3], [0, 7], [2, 1]])
  trie = prefix_trie.PrefixTrie.build(codes, (3, 9), max_bitmap_bytes=0)
  level = trie.levels[1]
  assert isinstance(level, trie_levels.ListLevel)
  # Depth-1 nodes: 0 -> prefix (0,), 1 -> prefix (2,).
  found, nodes, real = level.children(jnp.array([0, 1]))
  np.testing.assert_array_equal(np.asarray(real).sum(-1), [2, 1])
  np.testing.assert_array_equal(np.asarray(found)[0, :2], [3, 7])
  np.testing.assert_array_equal(np.asarray(nodes)[0, :2], [0, 1])
  np.testing.assert_array_equal(np.asarray(found)[1, :1], [1])
  np.testing.assert_array_equal(np.asarray(nodes)[1, :1], [2])


@pytest.mark.parametrize('limit', [2**20, 0])
def test_capacity_changes_nothing_and_a_refresh_does_not_compile(limit):
  codes_per_level = (40, 40, 40)
  codes = _catalogue(codes_per_level, 50)
  exact = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  roomy = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, 200, max_bitmap_bytes=limit
  )
  traces = []

  @jax.jit
  def leaves(trie, queries):
    traces.append(queries.shape)
    found = trie.lookup(queries)
    return found, trie.bucket(found)

  queries = jnp.asarray(_catalogue(codes_per_level, 80, seed=3))
  queries = jnp.concatenate([queries, jnp.asarray(codes)])  # [130, 3]
  for a, b in zip(leaves(exact, queries), leaves(roomy, queries), strict=True):
    np.testing.assert_array_equal(a, b)
  assert len(traces) == 2
  larger = _catalogue(codes_per_level, 70, seed=4)
  found, _ = leaves(
    roomy.refresh(larger), jnp.asarray(np.tile(larger, (2, 1))[:130])
  )
  assert len(traces) == 2
  ids = sorted({tuple(c) for c in larger})
  expected = [ids.index(tuple(c)) for c in np.tile(larger, (2, 1))[:130]]
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('limit', [0, 2**24])
def test_a_trie_of_some_items_keeps_their_numbers_and_all_shapes(limit):
  sizes = (6, 6)
  codes = _catalogue(sizes, 50)  # 50 items on at most 36 IDs
  rank = np.arange(50)[::-1].copy()
  whole = prefix_trie.PrefixTrie.build(
    codes, sizes, rank_in_bucket=rank, max_bitmap_bytes=limit
  )
  kept = np.flatnonzero(np.random.default_rng(5).random(50) < 0.4)
  some = whole.only(codes, kept, rank_in_bucket=rank)
  for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(whole), strict=True):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
  leaves = some.lookup(jnp.asarray(codes))
  for item, leaf in enumerate(leaves.tolist()):
    same = [i for i in kept if (codes[i] == codes[item]).all()]
    assert (leaf >= 0) == bool(same)
    bucket = some.bucket(jnp.asarray(leaf)).tolist()
    assert [i for i in bucket if i >= 0] == same[::-1]


def test_a_refresh_that_does_not_fit_says_what_to_do():
  trie = prefix_trie.PrefixTrie.build(np.array([[0, 1], [1, 0]]), (9, 9))
  with pytest.raises(ValueError, match=r'3 items exceed the capacity of 2'):
    trie.refresh(np.zeros((3, 2), int))
  roomy = prefix_trie.PrefixTrie.build(np.array([[0, 1], [1, 0]]), (9, 9), 99)
  with pytest.raises(ValueError, match=r'9 items share one ID.*room for 2'):
    roomy.refresh(np.zeros((9, 2), int))
  lists = prefix_trie.PrefixTrie.build(
    np.array([[0, 1], [1, 0]]), (9, 9), 99, max_bitmap_bytes=0
  )
  crowded = np.stack([np.zeros(9, int), np.arange(9)], -1)
  with pytest.raises(ValueError, match=r'9 continuations.*room for 2'):
    lists.refresh(crowded)


@pytest.mark.parametrize(
  'codes, message',
  [
    (
      np.array([[0, 1], [0, 4]]),
      r'Item 1 has code 4 on level 1, expected 0..3',
    ),
    (np.array([[-1, 1]]), r'Item 0 has code -1 on level 0'),
    (np.zeros((0, 2), int), r'The catalogue is empty'),
    (np.zeros((3, 3), int), r'expected \[num_items, 2\]'),
    (np.zeros((3, 2)), r'dtype float64, expected integers'),
  ],
)
def test_bad_codes_are_refused(codes, message):
  with pytest.raises(ValueError, match=message):
    prefix_trie.PrefixTrie.build(codes, (4, 4))


def test_duplicates_can_be_refused():
  codes = np.array([[1, 2], [0, 0], [1, 2]])
  with pytest.raises(ValueError, match=r'Items 0 and 2 share the ID \(1, 2\)'):
    prefix_trie.PrefixTrie.build(codes, (4, 4), duplicates='error')


def test_a_million_items_of_3x8192_take_11_bytes_each_plus_bitmaps():
  # Worst case: nearly every item has a two-code prefix of its own.
  num_items = 200_000  # the layout does not depend on the number
  codes = _catalogue((8192,) * 3, num_items)
  trie = prefix_trie.PrefixTrie.build(codes, (8192,) * 3)
  kinds = [type(level) for level in trie.levels]
  assert kinds == [
    trie_levels.BitmapLevel,
    trie_levels.BitmapLevel,
    trie_levels.ListLevel,
  ]
  total = sum(x.nbytes for x in jax.tree.leaves(trie))
  bitmaps = sum(level.words.nbytes for level in trie.levels[:2])
  assert bitmaps == 8193 * 8192 // 8  # one bit per code for root and depth 1
  # 2.5 (children of a node) + 2 (code) + 2.5 (items of a leaf) + 4 (item),
  # and 2.5 for each of the 8193 nodes above.
  assert total - bitmaps <= 11 * num_items + 2.5 * 8193 + 64
  leaves = np.asarray(_LOOKUP(trie, jnp.asarray(codes[:999])))
  found = np.asarray(_BUCKET(trie, jnp.asarray(leaves)))
  assert all(i in found[i] for i in range(999))


def test_offsets_widen_when_a_block_holds_more_than_65535():
  codes = np.zeros((70_000, 1), int)
  trie = prefix_trie.PrefixTrie.build(codes, (2,))
  assert trie.first_item.fine.dtype == jnp.uint32
  assert int(trie.bucket_size(jnp.array([0]))[0]) == 70_000


@pytest.mark.parametrize('codes_per_level, num_items, limit', _CASES)
def test_followers_are_the_codes_that_items_have_after_the_prefix(
  codes_per_level, num_items, limit
):
  codes = _catalogue(codes_per_level, num_items)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  got = jax.jit(lambda trie, codes: trie.followers(codes))(
    trie, jnp.asarray(codes).reshape(1, num_items, -1)
  )
  widest = max(codes_per_level)
  want = np.zeros((1, num_items, len(codes_per_level), widest), bool)
  for i, own in enumerate(codes):
    for l in range(len(codes_per_level)):
      same = (codes[:, :l] == own[:l]).all(1)
      want[0, i, l, codes[same, l]] = True
  np.testing.assert_array_equal(got, want)


def test_nothing_follows_a_prefix_that_no_item_has():
  trie = prefix_trie.PrefixTrie.build(
    np.array([[0, 1, 2], [2, 0, 0]]), (3,) * 3
  )
  # (1, ...) is nobody's; (2, 1) is not either, but (2,) is; -1 is no code.
  codes = jnp.array([[1, 0, 0], [2, 1, 0], [-1, 1, 2]])
  got = np.asarray(trie.followers(codes))
  first = [True, False, True]
  np.testing.assert_array_equal(got[:, 0], [first] * 3)
  np.testing.assert_array_equal(got[1, 1], [True, False, False])
  assert not got[[0, 2], 1].any()
  assert not got[:, 2].any()
