import dataclasses

import numpy as np
import pytest

from onerec_jax.data import examples
from onerec_jax.data import records


def record(user, items, positive, starts, lengths):
  return examples.UserRecord(
    user=user,
    items=np.asarray(items, np.int32),
    positive=np.asarray(positive, bool),
    timestamps=np.arange(len(items), dtype=np.int64) + 10**15,
    target_starts=np.asarray(starts, np.int32),
    target_lengths=np.asarray(lengths, np.int32),
  )


RECORDS = [
  record(0, [5, 0, 3, 0, 7], [1, 0, 1, 1, 1], [2, 3], [2, 1]),
  record(2, [], [], [], []),  # a user without events
  record(3, [1] * 9, [1] * 9, [1], [8]),  # positives fill more than one byte
  record(4, [6, 2], [0, 1], [], []),  # events, but nothing to predict
]


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'train.arrayrecord'


def assert_same(a, b):
  for field in dataclasses.fields(a):
    np.testing.assert_array_equal(
      getattr(a, field.name), getattr(b, field.name), err_msg=field.name
    )


@pytest.mark.parametrize('original', RECORDS)
def test_a_record_survives_encoding(original):
  assert_same(records.decode_record(records.encode_record(original)), original)


def test_an_encoded_record_is_compact():
  # header 24 + 5 events x (8 + 4) + 2 starts x 8 + 1 byte of positive bits.
  assert len(records.encode_record(RECORDS[0])) == 24 + 60 + 16 + 1


@pytest.mark.parametrize('cache_bytes', [0, 1 << 20])
def test_a_store_returns_the_records_that_were_written(path, cache_bytes):
  examples.write_examples(path, RECORDS)
  store = examples.ExampleStore(path, cache_bytes=cache_bytes)
  assert len(store) == 4
  assert store.cached == bool(cache_bytes)
  assert_same(store[2], RECORDS[2])
  for row, got in zip((3, 0, 0), store.__getitems__([3, 0, 0]), strict=True):
    assert_same(got, RECORDS[row])


@pytest.mark.parametrize('cache_bytes', [0, 1 << 20])
def test_ragged_events_hold_each_row_at_its_place(path, cache_bytes):
  examples.write_examples(path, RECORDS)
  store = examples.ExampleStore(path, cache_bytes=cache_bytes)
  rows = np.array([3, 0, 3, 1])
  events, places = store.events(rows)
  for row, place in zip(rows, places, strict=True):
    first, last = events.offsets[place : place + 2]
    np.testing.assert_array_equal(events.items[first:last], RECORDS[row].items)
    first, last = events.positive_offsets[place : place + 2]
    np.testing.assert_array_equal(
      events.positive_items[first:last],
      RECORDS[row].items[RECORDS[row].positive],
    )


def test_the_index_counts_history_before_every_start(path):
  written = examples.write_examples(path, RECORDS)
  index = examples.read_index(path)
  for got in (written, index):
    assert got.users.tolist() == [0, 2, 3, 4]
    assert got.num_events.tolist() == [5, 0, 9, 2]
    assert got.num_positives.tolist() == [4, 0, 9, 1]
    assert got.num_starts.tolist() == [2, 0, 1, 0]
    assert got.starts.tolist() == [2, 3, 1]
    assert got.target_lengths.tolist() == [2, 1, 8]
    # User 0: positives at 0, 2, 3, 4, so 1 before event 2 and 2 before event 3.
    assert got.history_counts.tolist() == [1, 2, 1]
    assert got.start_offsets().tolist() == [0, 2, 2, 3, 3]
    assert got.example_rows().tolist() == [0, 0, 2]
    assert got.target_events == 'positive'


def test_an_empty_split_can_be_written_and_read(path):
  examples.write_examples(path, [], target_events='all')
  store = examples.ExampleStore(path)
  assert len(store) == 0
  assert store.index.num_examples == 0
  assert store.index.target_events == 'all'


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    (record(7, [1, -1], [1, 1], [], []), 'user 7: user and items'),
    (record(7, [1, 2], [1, 1], [2], [1]), 'must rise within 0..1'),
    (record(7, [1, 2], [1, 1], [1, 1], [1, 1]), 'must rise'),
    (record(7, [1, 2], [1, 1], [1], [0]), 'target_lengths must be >= 1'),
    (record(7, [1, 2], [1, 1], [1], [2]), 'end with the events'),
    (record(7, [1, 2, 3], [1, 1, 0], [1], [2]), "target_events='all'"),
  ],
)
def test_a_contradictory_record_is_refused_with_its_user(path, bad, message):
  with pytest.raises(ValueError, match=message):
    examples.write_examples(path, [RECORDS[0], bad])
  with pytest.raises(FileNotFoundError, match='prepare'):
    examples.ExampleStore(path)


def test_all_events_may_be_targets_when_the_file_says_so(path):
  examples.write_examples(
    path, [record(7, [1, 2, 3], [1, 1, 0], [1], [2])], target_events='all'
  )
  assert examples.read_index(path).target_events == 'all'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: b'PAR1' + d[4:], 'Not an example record'),
    (lambda d: d[:10], 'Not an example record'),
    (lambda d: d[:4] + b'\x63' + d[5:], 'format version 99'),
    (lambda d: d[:-1], 'Damaged example record of user 0'),
    (lambda d: d + b'0', 'Damaged example record of user 0'),
  ],
)
def test_foreign_old_and_damaged_records_are_refused(change, message):
  data = records.encode_record(RECORDS[0])
  with pytest.raises(ValueError, match=message):
    records.decode_record(change(data))


def test_a_file_that_is_no_array_record_is_refused(path):
  examples.write_examples(path, RECORDS)
  path.write_bytes(b'not an array record' * 1000)
  with pytest.raises(ValueError, match='not an ArrayRecord file'):
    examples.ExampleStore(path)


def test_an_index_of_another_run_is_refused(path, tmp_path):
  examples.write_examples(path, RECORDS)
  examples.write_examples(tmp_path / 'other.arrayrecord', RECORDS[:2])
  (tmp_path / 'other.index.npz').replace(tmp_path / 'train.index.npz')
  with pytest.raises(ValueError, match='4 records, its index 2'):
    examples.ExampleStore(path)


def test_records_of_another_run_are_refused_when_read(path, tmp_path):
  examples.write_examples(path, RECORDS)
  examples.write_examples(tmp_path / 'other.arrayrecord', RECORDS[::-1])
  (tmp_path / 'other.index.npz').replace(tmp_path / 'train.index.npz')
  store = examples.ExampleStore(path)
  with pytest.raises(ValueError, match='record 0 has 5 events, its index 2'):
    store.events(np.array([0]))


def test_a_foreign_index_and_an_old_index_are_refused(path, tmp_path):
  examples.write_examples(path, RECORDS)
  index = tmp_path / 'train.index.npz'
  index.write_bytes(b'PK, but no zip')
  with pytest.raises(ValueError, match='not an example index'):
    examples.ExampleStore(path)
  np.savez(index, format_version=0)
  with pytest.raises(ValueError, match='format version 0'):
    examples.ExampleStore(path)
