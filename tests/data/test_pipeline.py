"""Batches of sessions from stored examples, with and without contexts."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import examples
from onerec_jax.data import features
from onerec_jax.data import pipeline
from onerec_jax.data import user_context

M = 3
HISTORY = 6


def settings(windows='random_offset', *, prefetch=2, batch_size=8):
  data = config.DataConfig(
    sessions=config.SessionsConfig(items_per_session=M),
    history_length=HISTORY,
  )
  train = config.TrainConfig(
    batch_size=batch_size,
    pipeline=config.PipelineConfig(
      windows=windows,
      length_buckets=(2, 4, HISTORY),
      prefetch_batches=prefetch,
    ),
  )
  return {'data': data, 'train': train, 'seed': 5}


def assert_same_batch(a, b):
  def check(path, x, y):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))

  jax.tree_util.tree_map_with_path(check, a, b)


# --- Assembly ---------------------------------------------------------------


@pytest.mark.parametrize('targets', ['positive', 'all'])
@pytest.mark.parametrize('cache_bytes', [0, 1 << 20])
def test_rows_equal_a_plain_reading_of_the_records(
  make_records, tmp_path, targets, cache_bytes
):
  path = tmp_path / 'x.arrayrecord'
  records = list(make_records(9, targets=targets))
  examples.write_examples(path, records, target_events=targets)
  store = examples.ExampleStore(path, cache_bytes=cache_bytes)
  ids = np.append(np.arange(store.index.num_examples)[::-1], -1)
  got = pipeline.session_batch(
    store, ids, history_length=4, items_per_session=M
  )
  flat = [(r, s, k) for r in records for k, s in enumerate(r.target_starts)]
  for row, example in enumerate(ids[:-1]):
    record, start, place = flat[example]
    events = list(zip(record.items, record.positive, strict=True))
    history = [i for i, keep in events[:start] if keep][-4:]
    following = [i for i, keep in events[start:] if keep or targets == 'all']
    target = following[: min(M, record.target_lengths[place])]
    assert got.history_mask[row].tolist() == [
      j < len(history) for j in range(4)
    ]
    assert got.history_items[row, : len(history)].tolist() == history
    assert got.target_mask[row].tolist() == [j < len(target) for j in range(M)]
    assert got.target_items[row, : len(target)].tolist() == target
    assert got.user[row] == record.user
    assert got.example_id[row] == example
  assert got.example_mask.tolist() == [True] * (len(ids) - 1) + [False]
  assert not got.history_items[~got.history_mask].any()
  assert not got.target_items[~got.target_mask].any()
  # The filler row is empty, and item 0 occurs among the real ones.
  assert not got.history_mask[-1].any() and not got.target_mask[-1].any()
  assert got.example_id[-1] == -1
  assert (got.history_items[got.history_mask] == 0).any()
  assert got.history_items.dtype == got.target_items.dtype == np.int32


# --- Iterators --------------------------------------------------------------


@pytest.mark.parametrize('processes', [2, 4])
def test_process_parts_join_to_the_same_global_batches(contextual, processes):
  store = contextual
  whole = pipeline.train_batches(store, **settings())
  parts = [
    pipeline.train_batches(
      store,
      **settings(),
      own_rows=lambda size, p=p: np.split(np.arange(size), processes)[p],
    )
    for p in range(processes)
  ]
  for expected in itertools.islice(whole, 40):  # beyond the first epoch
    pieces = [next(p) for p in parts]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *pieces)
    assert_same_batch(joined, expected)
  for iterator in (whole, *parts):
    iterator.close()


@pytest.mark.parametrize('prefetch', [0, 3])
@pytest.mark.parametrize('stop', [0, 1, 11, 12, 25])
def test_a_resumed_iterator_repeats_the_straight_run(store, prefetch, stop):
  straight = list(
    itertools.islice(
      pipeline.train_batches(store, **settings(prefetch=0)), stop + 15
    )
  )
  first = pipeline.train_batches(store, **settings(prefetch=prefetch))
  for _ in range(stop):
    next(first)
  state = first.get_state()
  assert state == {'next_index': stop}
  first.close()
  resumed = pipeline.train_batches(store, **settings(prefetch=prefetch))
  next(resumed)
  resumed.set_state(state)
  for expected in straight[stop:]:
    assert_same_batch(next(resumed), expected)
  resumed.close()


def test_all_windows_take_each_start_and_offset_windows_a_fraction(store):
  plans = [
    pipeline.train_plan(store.index, **settings(w))
    for w in ('all', 'random_offset')
  ]
  assert plans[0].examples_per_epoch == store.index.num_examples
  p = store.index.num_starts
  assert plans[1].examples_per_epoch == (-(-p // M)).sum()


def test_logged_sessions_are_all_taken_even_with_offset_windows(store):
  kwargs = settings('random_offset')
  kwargs['data'] = dataclasses.replace(
    kwargs['data'],
    sessions=config.SessionsConfig(kind='day', items_per_session=M),
  )
  plan = pipeline.train_plan(store.index, **kwargs)
  assert plan.examples_per_epoch == store.index.num_examples


def test_evaluation_takes_every_example_once_in_file_order(store):
  batches = list(
    pipeline.eval_batches(
      store, batch_size=16, history_length=HISTORY, items_per_session=1
    )
  )
  ids = np.concatenate([b.example_id for b in batches])
  mask = np.concatenate([b.example_mask for b in batches])
  total = store.index.num_examples
  np.testing.assert_array_equal(ids[mask], np.arange(total))
  assert mask[:total].all() and not mask[total:].any()
  assert {b.history_items.shape for b in batches} == {(16, HISTORY)}
  assert {b.target_items.shape for b in batches} == {(16, 1)}


def test_a_limited_evaluation_is_spread_over_the_file(store):
  (got,) = pipeline.eval_batches(
    store,
    batch_size=16,
    history_length=HISTORY,
    items_per_session=1,
    max_examples=10,
  )
  ids = got.example_id[got.example_mask]
  total = store.index.num_examples
  assert ids.tolist() == [k * total // 10 for k in range(10)]


def test_evaluation_of_an_empty_split_yields_nothing(tmp_path):
  path = tmp_path / 'valid.arrayrecord'
  examples.write_examples(path, [])
  assert not list(
    pipeline.eval_batches(
      examples.ExampleStore(path),
      batch_size=4,
      history_length=2,
      items_per_session=1,
    )
  )


# --- Contexts ---------------------------------------------------------------


def make_contexts(records, **changes):
  """Contexts of the users of `records`, 10 .. 10 + R - 1."""
  lengths = np.array([0] * 10 + [len(r.items) for r in records])
  events = event_table.EventTable(
    offsets=np.concatenate(([0], np.cumsum(lengths))),
    items=np.concatenate([r.items for r in records]),
    timestamps=np.concatenate([r.timestamps for r in records]),
    exact_time=np.ones(lengths.sum(), bool),
    positive=np.concatenate([r.positive for r in records]),
    split=np.zeros(lengths.sum(), np.int8),
    feedback={},
  )
  table = features.Features(
    users=np.arange(len(lengths), dtype=np.int32)[:, None],
    items=batch_lib.ItemFeatures(()),
    sizes=batch_lib.FeatureSizes(50, (len(lengths),), ()),
    edges=(),
  )
  pathways = config.PathwaysConfig(
    user_features=(config.UserFeature(column='id'),),
    short_length=2,
    positive_length=HISTORY,
  )
  return user_context.ContextMaker(
    pathways, table, dataclasses.replace(events, **changes)
  )


@pytest.fixture(name='contextual', scope='module')
def fixture_contextual(make_records, store):
  contexts = make_contexts(list(make_records(37)))
  return examples.ExampleStore(store.path, contexts=contexts)


def right_aligned(items, mask):
  """The same items with the padding first."""
  result = np.zeros_like(items)
  for row, length in enumerate(mask.sum(1)):
    result[row, items.shape[1] - length :] = items[row, :length]
  return result


@pytest.mark.parametrize('targets', ['positive', 'all'])
def test_contexts_end_where_the_target_begins(make_records, tmp_path, targets):
  path = tmp_path / 'train.arrayrecord'
  records = list(make_records(9, targets=targets))
  examples.write_examples(path, records, target_events=targets)
  store = examples.ExampleStore(path, contexts=make_contexts(records))
  ids = np.array([*range(store.index.num_examples), -1])
  got = pipeline.session_batch(
    store, ids, history_length=HISTORY, items_per_session=M
  )
  assert got.context is not None and got.context.positive is not None
  # The positive pathway is the history, cut at the same place.
  np.testing.assert_array_equal(
    got.context.positive.items,
    right_aligned(got.history_items, got.history_mask),
  )
  np.testing.assert_array_equal(
    got.context.positive.mask.sum(1), got.history_mask.sum(1)
  )
  np.testing.assert_array_equal(got.context.features[:-1, 0], got.user[:-1])
  assert not got.context.short.mask[-1].any()
  for row, example in enumerate(ids[:-1]):
    record = records[store.index.example_rows()[example]]
    before = record.items[: store.index.starts[example]][-2:]
    np.testing.assert_array_equal(
      got.context.short.items[row, 2 - len(before) :], before
    )


def test_both_iterators_give_the_contexts_of_the_store(store, contextual):
  made = next(pipeline.train_batches(contextual, **settings()))
  np.testing.assert_array_equal(made.context.features[:, 0], made.user)
  plain = next(pipeline.train_batches(store, **settings()))
  assert plain.context is None
  assert_same_batch(dataclasses.replace(made, context=None), plain)
  for made in pipeline.eval_batches(
    contextual, batch_size=16, history_length=HISTORY, items_per_session=M
  ):
    np.testing.assert_array_equal(
      made.context.features[:, 0], np.where(made.example_mask, made.user, 0)
    )
    np.testing.assert_array_equal(
      made.context.positive.mask.any(1), made.history_mask.any(1)
    )
