"""Planted collisions under each policy, for catalogues and for new items."""

import numpy as np
import pytest

from onerec_jax.semantic_ids import collisions
from onerec_jax.semantic_ids import residual_kmeans

# One-dimensional world: code a of level 0 is at 10 a, code b of level 1 adds b.
CODEBOOKS = residual_kmeans.Codebooks(
  np.array([[[0.0], [10], [20], [30]], [[0.0], [1], [2], [3]]], 'f4'),
  np.zeros(1, 'f4'),
)
# Items 0, 1, 2 share (0, 1); item 3 has (0, 2); item 4 is far away.
VECTORS = np.array([[1.0], [1.3], [0.9], [2.0], [20.0]], 'f4')
POPULARITY = np.array([3, 9, 5, 1, 1])


def _resolve(policy, vectors=VECTORS, popularity=POPULARITY):
  codes = residual_kmeans.encode(CODEBOOKS, vectors)
  return collisions.resolve(
    codes,
    policy=policy,
    codebooks=CODEBOOKS,
    embeddings=vectors,
    popularity=popularity,
  )


def _num_distinct(ids):
  return len(np.unique(ids.codes, axis=0))


def test_buckets_keep_codes_and_rank_by_popularity():
  result = _resolve('bucket')
  np.testing.assert_array_equal(
    result.ids.codes, [[0, 1], [0, 1], [0, 1], [0, 2], [2, 0]]
  )
  np.testing.assert_array_equal(result.ids.rank_in_bucket, [2, 0, 1, 0, 0])
  assert (result.moved, result.unresolved) == (0, 0)


def test_append_gives_unique_ids_with_one_more_level():
  result = _resolve('append')
  np.testing.assert_array_equal(
    result.ids.codes, [[0, 1, 2], [0, 1, 0], [0, 1, 1], [0, 2, 0], [2, 0, 0]]
  )
  assert result.ids.codes_per_level == (4, 4, 3)
  assert _num_distinct(result.ids) == 5 and result.unresolved == 0
  assert not result.ids.rank_in_bucket.any()


def test_reassign_moves_less_popular_items_to_their_next_free_code():
  # Item 1 (most popular) keeps (0, 1).  Item 2 at 0.9 moves first: code 0 is
  # the nearest free one.  Item 0 at 1.0: 0 and 2 are taken, so 3.
  result = _resolve('reassign')
  np.testing.assert_array_equal(
    result.ids.codes, [[0, 3], [0, 1], [0, 0], [0, 2], [2, 0]]
  )
  assert (result.moved, result.unresolved) == (2, 0)
  assert not result.ids.rank_in_bucket.any()


def test_reassign_says_how_many_items_found_no_free_code():
  # Six items want the four codes behind prefix 0.
  vectors = np.linspace(0, 3, 6, dtype='f4')[:, None]
  result = _resolve('reassign', vectors, np.arange(6))
  assert _num_distinct(result.ids) == 4
  assert result.unresolved == 2
  assert (result.ids.rank_in_bucket > 0).sum() == 2


@pytest.mark.parametrize('seed', range(3))
def test_reassign_is_unique_whenever_every_prefix_has_enough_codes(seed):
  rng = np.random.default_rng(seed)
  vectors = rng.uniform(-1, 34, size=(10, 1)).astype('f4')
  codes = residual_kmeans.encode(CODEBOOKS, vectors)
  result = _resolve('reassign', vectors, rng.integers(0, 3, 10))
  crowd = np.bincount(codes[:, 0], minlength=4)
  assert result.unresolved == np.maximum(crowd - 4, 0).sum()
  assert _num_distinct(result.ids) == np.minimum(crowd, 4).sum()
  # No item leaves its prefix.
  np.testing.assert_array_equal(result.ids.codes[:, 0], codes[:, 0])


@pytest.mark.parametrize('policy', ['bucket', 'append', 'reassign'])
def test_new_items_never_change_old_rows(policy):
  old = _resolve(policy).ids
  # Two more items at (0, 1), and two at the unused (3, 3).
  vectors = np.array([[1.1], [33.0], [1.2], [32.9]], 'f4')
  result = collisions.encode_new_items(
    CODEBOOKS, vectors, existing=old, policy=policy
  )
  ids = result.ids
  assert ids.codes_per_level == old.codes_per_level
  np.testing.assert_array_equal(ids.codes[:5], old.codes)
  np.testing.assert_array_equal(ids.rank_in_bucket[:5], old.rank_in_bucket)
  new, rank = ids.codes[5:], ids.rank_in_bucket[5:]
  if policy == 'bucket':
    np.testing.assert_array_equal(new, [[0, 1], [3, 3], [0, 1], [3, 3]])
    np.testing.assert_array_equal(rank, [3, 0, 4, 1])
    assert result.unresolved == 0
  elif policy == 'append':
    # The numbers 0..2 of (0, 1) are taken and the level has only three.
    np.testing.assert_array_equal(
      new, [[0, 1, 2], [3, 3, 0], [0, 1, 2], [3, 3, 1]]
    )
    np.testing.assert_array_equal(rank, [1, 0, 2, 0])
    assert result.unresolved == 2
  else:
    # Prefix 0 is full (0, 1, 2, 3); (3, 3) goes to the first, 2 is next.
    np.testing.assert_array_equal(new, [[0, 1], [3, 3], [0, 1], [3, 2]])
    np.testing.assert_array_equal(rank, [1, 0, 2, 0])
    assert (result.moved, result.unresolved) == (1, 2)


def test_new_items_of_another_policy_are_refused():
  with pytest.raises(ValueError, match="policy 'append' make 3"):
    collisions.encode_new_items(
      CODEBOOKS, VECTORS, existing=_resolve('bucket').ids, policy='append'
    )


@pytest.mark.parametrize('policy', ['bucket', 'append', 'reassign'])
def test_no_new_items_change_nothing(policy):
  old = _resolve(policy).ids
  result = collisions.encode_new_items(
    CODEBOOKS, np.zeros((0, 1), 'f4'), existing=old, policy=policy
  )
  assert result.ids.digest() == old.digest()


# --- Shared IDs -------------------------------------------------------------


def test_new_items_share_the_nearest_id_that_an_item_has():
  # IDs that items have stand for 3, 1, 0, 2 and 20; (3, 3) has none.
  old = _resolve('reassign').ids
  vectors = np.array([[1.1], [33.0], [1.2], [11.4]], 'f4')
  result = collisions.share_ids(CODEBOOKS, vectors, existing=old)
  np.testing.assert_array_equal(result.ids.codes[:5], old.codes)
  np.testing.assert_array_equal(result.ids.rank_in_bucket[:5], 0)
  np.testing.assert_array_equal(
    result.ids.codes[5:], [[0, 1], [2, 0], [0, 1], [0, 3]]
  )
  np.testing.assert_array_equal(result.ids.rank_in_bucket[5:], [1, 1, 2, 1])
  assert (result.moved, result.unresolved) == (0, 0)


def test_shared_ids_come_behind_those_of_a_bucket():
  old = _resolve('bucket').ids  # (0, 1) has three items, ranks 2, 0, 1
  vectors = np.array([[1.1], [1.9]], 'f4')
  result = collisions.share_ids(CODEBOOKS, vectors, existing=old)
  np.testing.assert_array_equal(result.ids.codes[5:], [[0, 1], [0, 2]])
  np.testing.assert_array_equal(
    result.ids.rank_in_bucket, [2, 0, 1, 0, 0, 3, 1]
  )


def test_of_numbered_ids_the_first_is_shared():
  old = _resolve('append').ids
  result = collisions.share_ids(
    CODEBOOKS, np.array([[1.1]], 'f4'), existing=old
  )
  np.testing.assert_array_equal(result.ids.codes[5], [0, 1, 0])
  assert result.ids.rank_in_bucket[5] == 1
  assert result.ids.codes_per_level == old.codes_per_level
