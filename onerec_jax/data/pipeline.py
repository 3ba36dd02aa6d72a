"""From the example file to padded batches of NumPy arrays.

`train_batches` is endless, shuffled and resumable; `eval_batches` is one pass
in file order.  Putting batches on devices is the training loop's work.
"""

import sys
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import examples

# Number of batches Grain believes the endless training stream to have.
_ENDLESS = sys.maxsize // 2


# --- Assembly ---------------------------------------------------------------


def session_batch(
  store: examples.ExampleStore,
  example_ids: Int[np.ndarray, ' B'],
  *,
  history_length: int,
  items_per_session: int,
) -> batch.SessionBatch:
  """Returns the examples as one padded batch of NumPy arrays.

    history = the last history_length positive events before the start
    targets = the first min(target_length, items_per_session) events from it,
              of all events or of the positive ones (index.target_events)
    context = what store.contexts knows of the user before the start, if it
              is given

  Args:
    store: of the examples.
    example_ids: places in `store.index.starts`; -1 makes a filler row. [B]
    history_length: padded history length (N).
    items_per_session: padded session length (M).
  """
  index = store.index
  real = example_ids >= 0
  ids = np.where(real, example_ids, 0)
  rows = store.example_rows[ids]
  events, places = store.events(rows)

  before = index.history_counts[ids].astype(np.int64)
  lengths = np.where(real, np.minimum(before, history_length), 0)
  first_target = events.positive_offsets[places] + before
  history_items, history_mask = _gather(
    events.positive_items, first_target - lengths, lengths, history_length
  )
  if index.target_events == 'positive':
    source = events.positive_items
  else:
    source = events.items
    first_target = events.offsets[places] + index.starts[ids]
  lengths = np.where(
    real, np.minimum(index.target_lengths[ids], items_per_session), 0
  )
  target_items, target_mask = _gather(
    source, first_target, lengths, items_per_session
  )
  context = None
  if store.contexts is not None:
    context = store.contexts(
      np.where(real, index.users[rows], -1), index.starts[ids]
    )
  return batch.SessionBatch(
    example_id=np.where(real, ids, -1).astype(np.int32),
    user=np.where(real, index.users[rows], 0).astype(np.int32),
    history_items=history_items,
    history_mask=history_mask,
    target_items=target_items,
    target_mask=target_mask,
    example_mask=real,
    context=context,
  )


def _gather(
  values: np.ndarray, first: np.ndarray, lengths: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns values[first : first + length] per row, padded with 0, and mask."""
  columns = np.arange(width)
  mask = columns < lengths[:, None]  # [B, width]
  # Places under the mask may lie beyond the end; they are zeroed below.
  taken = values.take(first[:, None] + columns, mode='clip')
  taken *= mask
  return taken, mask


# --- Iterators --------------------------------------------------------------


class _BatchSource:
  """Grain source whose element b is this process's part of global batch b."""

  def __init__(
    self,
    store: examples.ExampleStore,
    plan: batch_plan.BatchPlan,
    *,
    rows: Int[np.ndarray, ' rows'],
    items_per_session: int,
  ):
    self._store = store
    self._plan = plan
    self._rows = rows
    self._items_per_session = items_per_session

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> batch.SessionBatch:
    planned = self._plan(int(index))
    return session_batch(
      self._store,
      planned.example_ids[self._rows],
      history_length=planned.history_length,
      items_per_session=self._items_per_session,
    )

  def __repr__(self) -> str:
    # Grain stores it in checkpoints to recognise the source.
    return f'BatchSource({self._store.path.name})'


def train_plan(
  index: examples.ExampleIndex,
  *,
  data: config.DataConfig,
  train: config.TrainConfig,
  seed: int,
) -> batch_plan.BatchPlan:
  """Returns the plan that `train_batches` follows.

  A stride of items_per_session applies to `random_offset` windows over next
  items; logged sessions are separate targets and all taken each epoch.
  """
  strided = (
    train.pipeline.windows == 'random_offset'
    and data.sessions.kind == 'next_items'
  )
  return batch_plan.BatchPlan(
    index,
    batch_size=train.batch_size,
    history_length=data.history_length,
    stride=data.sessions.items_per_session if strided else 1,
    length_buckets=train.pipeline.length_buckets,
    seed=seed,
  )


def train_batches(
  store: examples.ExampleStore,
  *,
  data: config.DataConfig,
  train: config.TrainConfig,
  seed: int,
  own_rows: batch_plan.OwnRows = np.arange,
) -> grain.DatasetIterator:
  """Returns an endless iterator of `SessionBatch`.

  Of the B rows of a batch it makes those that `own_rows(B)` names: every
  process of a job makes its own, and by default all are made.  Its state is
  {'next_index': number of the next global batch}; after `set_state` it goes on
  with bit-identical batches.  Batches are made in the calling thread, or ahead
  of it in one thread: more threads are slower (the interpreter lock), and
  worker processes die on unparsed absl flags.

  Raises:
    ValueError: there is nothing to train on.
  """
  plan = train_plan(store.index, data=data, train=train, seed=seed)
  source = _BatchSource(
    store,
    plan,
    rows=own_rows(train.batch_size),
    items_per_session=data.sessions.items_per_session,
  )
  prefetch = train.pipeline.prefetch_batches
  options = grain.ReadOptions(
    num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
  )
  dataset = grain.MapDataset.source(source).to_iter_dataset(options)
  return iter(dataset)


def eval_batches(
  store: examples.ExampleStore,
  *,
  batch_size: int,
  history_length: int,
  items_per_session: int,
  max_examples: int | None = None,
  own_rows: batch_plan.OwnRows = np.arange,
) -> Iterator[batch.SessionBatch]:
  """Yields every example once, in file order; the last batch has filler rows.

  Args:
    batch_size: global.
    history_length: padded history length (N), the same for all batches.
    items_per_session: padded session length (M).
    max_examples: take only so many, evenly spaced over the file (its first
      users are not a fair sample); None: all.
    own_rows: from batch_size to the rows that are made, as in `train_batches`.
  """
  rows = own_rows(batch_size)
  total = store.index.num_examples
  count = total if max_examples is None else min(max_examples, total)
  ids = np.arange(count) * total // max(count, 1)
  for first in range(0, count, batch_size):
    part = np.full(batch_size, -1)
    taken = ids[first : first + batch_size]
    part[: len(taken)] = taken
    yield session_batch(
      store,
      part[rows],
      history_length=history_length,
      items_per_session=items_per_session,
    )


def seen_items(
  store: examples.ExampleStore, rows: batch.SessionBatch
) -> list[Int[np.ndarray, ' n']]:
  """Returns all positives before each target, not only the batch's history.

  Args:
    store: that the batch was made from.
    rows: NumPy batch; filler rows have seen nothing.
  """
  example = np.where(rows.example_mask, rows.example_id, 0)
  events, places = store.events(store.example_rows[example])
  starts = events.positive_offsets[places]
  counts = store.index.history_counts[example] * np.asarray(rows.example_mask)
  return [
    events.positive_items[start : start + count]
    for start, count in zip(starts, counts, strict=True)
  ]
