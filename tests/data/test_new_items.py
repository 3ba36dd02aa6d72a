"""Vectors of items that came later, and the table that keeps them."""

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import item_content
from onerec_jax.data import item_vectors
from onerec_jax.data import new_items
from onerec_jax.semantic_ids import table

_WORDS = ('red lipstick gloss', 'blue garden hose', 'jazz piano record')


def _part(kind, **changes):
  return config.EmbedPart(kind=kind, **({'dim': 4} | changes))


_BOTH = (_part('cooccurrence', weight=2.0), _part('text', weight=0.5))


def _view(num_items=30, num_users=60):
  """Item i belongs to taste i % 3, users stay in one; three are never met."""
  rng = np.random.default_rng(0)
  sequences = [
    rng.permutation(np.arange(user % 3, num_items - 3, 3))[:6]
    for user in range(num_users)
  ]
  return item_content.DatasetView(
    item_ids=np.array([f'item{i}' for i in range(num_items)]),
    texts=[f'{_WORDS[i % 3]} number{i % 7}' for i in range(num_items)],
    categories=[[f'c{i % 3}', f'd{i % 2}'] for i in range(num_items)],
    offsets=np.cumsum([0, *map(len, sequences)]),
    items=np.concatenate(sequences).astype(np.int32),
  )


def _new(texts, categories=None):
  return item_content.DatasetView(
    item_ids=np.array([f'new{i}' for i in range(len(texts))]),
    texts=texts,
    categories=categories or [[] for _ in texts],
    offsets=np.zeros(1, np.int64),
    items=np.zeros(0, np.int32),
  )


def _vectors(parts, new, view=None, **changes):
  view = view or _view()
  stored = item_vectors.build(parts, view, seed=0).values
  arguments = {'stored': stored, 'seed': 0} | changes
  return stored, new_items.vectors(parts, view, new, **arguments)


# --- Vectors ----------------------------------------------------------------


@pytest.mark.parametrize('kind', ['text', 'categories'])
def test_an_item_like_an_old_one_gets_its_content_vector(kind):
  view = _view()
  new = _new([view.texts[4], view.texts[8]], [['c1', 'd0'], ['c2', 'd0']])
  stored, found = _vectors((_part(kind, dim=30),), new)
  np.testing.assert_allclose(found.values, stored[[4, 8]], atol=1e-5)
  assert found.values.dtype == np.float32
  same = [tuple(stored[i].round(4)) for i in found.nearest]
  assert same == [tuple(stored[i].round(4)) for i in (4, 8)]


def test_behaviour_is_that_of_the_ten_nearest_by_content():
  view = _view()
  stored, found = _vectors(_BOTH, _new(['jazz', 'lipstick']))
  width = item_vectors.build_part(_BOTH[0], view, seed=0).values.shape[1]
  behaviour, text = stored[:, :width], stored[:, width:]
  for row, taste in enumerate((2, 0)):
    cosine = text @ found.values[row, width:]
    # The last three items have no behaviour.
    near = np.argsort(-cosine[:27], kind='stable')[:10]
    mean = behaviour[near].mean(0)
    np.testing.assert_allclose(
      found.values[row, :width],
      2.0 * mean / np.linalg.norm(mean),
      atol=1e-5,
    )
    assert (near % 3 == taste).sum() >= 9
    own = behaviour[taste:27:3].mean(0) @ found.values[row, :width]
    other = behaviour[taste + 1 : 27 : 3].mean(0) @ found.values[row, :width]
    assert own > 3 > 0 > other


def test_the_order_of_new_items_changes_nothing():
  texts = ['jazz record', 'garden', 'gloss number3']
  _, found = _vectors(_BOTH, _new(texts))
  _, turned = _vectors(_BOTH, _new(texts[::-1]))
  np.testing.assert_allclose(turned.values[::-1], found.values, atol=1e-6)


def test_vectors_are_found_in_the_file_by_id(tmp_path):
  view = _view()
  numbers = np.random.default_rng(1).normal(size=(31, 6)).astype(np.float32)
  numbers[30] = numbers[7]
  np.savez(
    tmp_path / 'v.npz',
    embeddings=numbers,
    item_ids=np.array([*view.item_ids, 'new0']),
  )
  parts = (_part('array', dim=6, path=str(tmp_path / 'v.npz')),)
  stored, found = _vectors(parts, _new(['']), view)
  np.testing.assert_allclose(found.values[0], stored[7], atol=1e-5)


def test_behaviour_alone_cannot_place_new_items():
  with pytest.raises(ValueError, match=r"part of kind 'text'"):
    _vectors((_part('swing'),), _new(['jazz']))


def test_an_item_without_content_is_named():
  with pytest.raises(ValueError, match=r'1 of 2 new items .* e\.g\. new1'):
    _vectors(_BOTH, _new(['jazz', 'words nobody knows']))


def test_categories_that_no_old_item_has_are_not_read():
  parts = (_part('categories'),)
  _, found = _vectors(parts, _new([''], [['c1', 'unheard of']]))
  _, known = _vectors(parts, _new([''], [['c1']]))
  np.testing.assert_array_equal(found.values, known.values)


@pytest.mark.parametrize(
  'change',
  [lambda v: v + 0.01, lambda v: v[:, :-1], lambda v: v[:-1]],
  ids=['values', 'width', 'items'],
)
def test_vectors_that_cannot_be_made_again_are_refused(change):
  stored = change(item_vectors.build(_BOTH, _view(), seed=0).values)
  with pytest.raises(ValueError, match='cannot be made again'):
    _vectors(_BOTH, _new(['jazz']), stored=stored)


# --- Table ------------------------------------------------------------------


def _added(first=0, count=2, version=1):
  rows = np.arange(first, first + count, dtype=np.int32)
  return new_items.AddedItems(
    base='0123456789abcdef',
    item_ids=np.array([f'n{i}' for i in rows]),
    titles=[f'title {i}' for i in rows],
    codes=np.stack([rows, rows + 1], axis=1),
    rank_in_bucket=rows,
    version=np.full(count, version, np.int32),
    vectors=np.outer(rows + 1, [0.5, -1.0, 2.0]).astype(np.float32),
  )


def _assert_equal(a, b):
  for name, x, y in zip(a._fields, a, b, strict=True):
    np.testing.assert_array_equal(x, y, err_msg=name)
    if isinstance(x, np.ndarray):
      assert x.dtype.kind == y.dtype.kind
      assert isinstance(y, np.ndarray)


def test_the_file_holds_what_was_written(tmp_path):
  path = tmp_path / 'folder' / 'items.parquet'
  assert new_items.read(path) is None
  new_items.write(path, _added())
  found = new_items.read(path)
  assert found is not None
  _assert_equal(_added(), found)
  assert found.codes.dtype == found.rank_in_bucket.dtype == np.int32
  assert found.vectors.dtype == np.float32


def test_further_items_come_behind():
  both = new_items.joined(_added(), _added(2, 3, version=2))
  _assert_equal(
    both, _added(0, 5)._replace(version=np.array([1, 1, 2, 2, 2], np.int32))
  )


def test_the_extended_table_begins_with_the_old_one():
  ids = table.from_codes(
    np.array([[0, 1], [3, 3]]), codes_per_level=(4, 4), popularity=np.ones(2)
  )
  found = new_items.extended(ids, _added())
  np.testing.assert_array_equal(found.codes, [[0, 1], [3, 3], [0, 1], [1, 2]])
  np.testing.assert_array_equal(found.rank_in_bucket, [0, 0, 0, 1])
  assert found.codes_per_level == (4, 4)
