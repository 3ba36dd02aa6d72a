"""The tables on disk: what is written is what is read."""

import numpy as np
import polars as pl
import pytest

from onerec_jax.data import catalog
from onerec_jax.data import schema


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
  """Three users (one without a training positive), three items."""
  interactions = pl.DataFrame(
    {
      'user': [0, 0, 0, 2, 2],
      'item': [2, 1, 0, 1, 1],
      'timestamp': [5, 6, 7, 1, 2],
      'positive': [True, True, True, True, False],
      'split': ['train', 'valid', 'test', 'train', 'train'],
    },
    schema={
      'user': pl.Int32,
      'item': pl.Int32,
      'timestamp': pl.Int64,
      'positive': pl.Boolean,
      'split': schema.SPLIT_DTYPE,
    },
  )
  items = pl.DataFrame(
    {
      'item': [0, 1, 2],
      'item_id': ['a', 'b', 'c'],
      'title': ['Aa', None, 'Cc'],
      'text': ['long a', None, None],
      'categories': [['x', 'y'], [], ['x']],
      'train_positives': [0, 1, 1],
    },
    schema_overrides={'item': pl.Int32, 'train_positives': pl.Int32},
  )
  users = pl.DataFrame({'user': [0, 1, 2], 'user_id': ['u', 'v', 'w']})
  catalog.write_tables(tmp_path / 'data', interactions, items, users)
  return tmp_path / 'data'


def test_training_sequences_hold_training_positives_only(folder):
  sequences = catalog.training_sequences(folder)
  assert sequences.offsets.tolist() == [0, 1, 1, 2]
  assert sequences.items.tolist() == [2, 1]
  assert sequences.timestamps.tolist() == [5, 1]
  assert [a.dtype for a in sequences] == [np.int64, np.int32, np.int64]


def test_item_columns_fall_back_to_what_there_is(folder):
  assert catalog.num_items(folder) == 3
  assert catalog.item_ids(folder).tolist() == ['a', 'b', 'c']
  assert catalog.item_titles(folder) == ['Aa', 'b', 'Cc']
  assert catalog.item_texts(folder) == ['long a', '', 'Cc']
  assert catalog.item_categories(folder) == [['x', 'y'], [], ['x']]
  assert catalog.train_counts(folder).tolist() == [0, 1, 1]


def test_writing_leaves_nothing_but_the_tables(folder):
  assert sorted(p.name for p in folder.iterdir()) == [
    'interactions.parquet',
    'items.parquet',
    'users.parquet',
  ]
  assert catalog.read_users(folder)['user_id'].to_list() == ['u', 'v', 'w']
  assert len(catalog.read_interactions(folder)) == 5


def test_a_missing_table_names_the_stage_that_writes_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="stage 'prepare'"):
    catalog.num_items(tmp_path)
  with pytest.raises(FileNotFoundError, match="stage 'tokenize'"):
    catalog.read_semantic_ids(tmp_path / 'semantic_ids.parquet')


def test_semantic_ids_come_back_unchanged(tmp_path):
  path = tmp_path / 'tokenizer' / 'semantic_ids.parquet'
  codes = np.array([[0, 3, 0], [1, 2, 0], [0, 3, 1]], np.int32)
  catalog.write_semantic_ids(
    path,
    item_ids=np.array(['a', 'b', 'c']),
    codes=codes,
    rank_in_bucket=np.array([0, 0, 1], np.int32),
    codes_per_level=(4, 4, 2),
  )
  found = catalog.read_semantic_ids(path)
  np.testing.assert_array_equal(found.codes, codes)
  assert found.codes_per_level == (4, 4, 2)
  assert found.rank_in_bucket.tolist() == [0, 0, 1]
  frame = pl.read_parquet(path)
  assert frame['item_id'].to_list() == ['a', 'b', 'c']
  assert frame['code_1'].dtype == pl.Int32


def test_predictions_keep_shapes_and_types(tmp_path):
  path = tmp_path / 'evaluate' / 'predictions.parquet'
  columns = {
    'user': np.array([4, 7], np.int32),
    'items': np.array([[1, 2, -1], [3, 4, 5]], np.int32),
    'scores': np.array([[-1.5, -2.0, -np.inf], [0, 0, 0]], np.float32),
    'name': np.array(['x', 'y']),
  }
  catalog.write_predictions(path, columns)
  found = catalog.read_predictions(path)
  assert list(found) == list(columns)
  for name, values in columns.items():
    np.testing.assert_array_equal(found[name], values)
  assert found['items'].dtype == np.int32
