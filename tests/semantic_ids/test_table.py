"""The item table: ranks inside an ID, and the digest that guards models."""

import dataclasses

import numpy as np
import pytest

from onerec_jax.semantic_ids import table

CODES = np.array([[0, 1], [2, 0], [0, 1], [0, 1], [2, 1]], np.int32)


def _ids(codes=CODES, sizes=(3, 2)):
  return table.from_codes(
    codes, codes_per_level=sizes, popularity=np.array([1, 9, 5, 5, 0])
  )


def test_the_most_popular_item_of_an_id_comes_first():
  # Items 0, 2, 3 share (0, 1) with popularity 1, 5, 5: 2 (lower index), 3, 0.
  np.testing.assert_array_equal(_ids().rank_in_bucket, [2, 0, 0, 1, 0])


def test_unsigned_popularity_does_not_wrap():
  rank = table.rank_in_bucket(
    np.zeros((2, 1), np.int32), np.array([0, 7], np.uint32)
  )
  np.testing.assert_array_equal(rank, [1, 0])


def test_buckets_number_equal_rows_equally():
  np.testing.assert_array_equal(table.bucket_of(CODES), [0, 1, 0, 0, 2])
  np.testing.assert_array_equal(table.bucket_of(CODES[:, :0]), [0] * 5)


def test_the_digest_changes_with_any_code_and_any_level_size():
  digests = {_ids().digest(), _ids(sizes=(3, 3)).digest()}
  digests.add(_ids(sizes=(4, 2)).digest())
  for item, level in np.ndindex(CODES.shape):
    changed = CODES.copy()
    changed[item, level] = (changed[item, level] + 1) % (3, 2)[level]
    digests.add(_ids(changed).digest())
  assert len(digests) == 3 + CODES.size
  assert all(len(d) == 16 for d in digests)


def test_the_digest_does_not_depend_on_memory_layout_or_popularity():
  ids = _ids()
  fortran = dataclasses.replace(
    ids,
    codes=np.asfortranarray(ids.codes),
    rank_in_bucket=np.zeros(5, np.int32),
  )
  assert fortran.digest() == ids.digest()


def test_the_vocabulary_has_the_level_sizes():
  ids = _ids()
  assert (ids.num_items, ids.levels) == (5, 2)
  assert ids.vocabulary(7).size == 3 + 3 + 2 + 7


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'codes_per_level': (3,)}, 'has 2 levels'),
    ({'codes_per_level': (2, 2)}, 'Item 1 has code 2 on level 0'),
    ({'codes': -CODES}, 'Item 0 has code -1 on level 1'),
    ({'codes': CODES.astype(np.int64)}, 'dtype int64'),
    ({'rank_in_bucket': np.zeros(4, np.int32)}, r'shape \(4,\)'),
  ],
)
def test_a_table_that_cannot_be_right_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(_ids(), **change)
