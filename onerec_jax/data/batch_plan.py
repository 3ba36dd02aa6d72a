"""Which examples form which global batch, for every epoch of a run.

A plan is a pure function of (seed, batch number), so any process count sees
the same global batches and a resumed run continues with the next number.
Pure NumPy; reads the index of an example file only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from jaxtyping import UInt64

from onerec_jax.data import examples

# From a batch size to the rows that this process makes, in order.
OwnRows = Callable[[int], Int[np.ndarray, ' rows']]

# Separate random streams of one seed.
_OFFSETS, _EXAMPLES, _BATCHES = range(3)
_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment


# --- Counter-based randomness -----------------------------------------------


def random_bits(
  counters: Int[np.ndarray, ' n'], *, key: tuple[int, ...]
) -> UInt64[np.ndarray, ' n']:
  """Random 64-bit words that depend on key and counter only.

    splitmix64(state(key) + golden · counter)

  Unlike a NumPy generator the result does not depend on how many numbers were
  drawn before, nor on the NumPy version, which a resumed run may change.

  Args:
    counters: any integers >= 0. [n]
    key: integers that name the stream, e.g. (seed, epoch).

  Reference: Steele, Lea and Flood 2014, Fast splittable pseudorandom number
  generators, OOPSLA; the finaliser is Stafford's mix 13.
  """
  state = 0
  for word in key:
    state = int(_mix(np.array([(state ^ word) + _GOLDEN & _MASK64], 'u8'))[0])
  return _mix(counters.astype('u8') * np.uint64(_GOLDEN) + np.uint64(state))


def _mix(words: np.ndarray) -> np.ndarray:
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


# --- The plan of an epoch ---------------------------------------------------


class PlannedBatch(NamedTuple):
  """One global batch: its examples and the history length to pad to."""

  example_ids: Int[np.ndarray, ' B']  # place in ExampleIndex.starts; -1: filler
  history_length: int


class PaddingShare(NamedTuple):
  """Shares of an epoch's batch entries that hold no item, in 0..1."""

  history: float  # of history slots
  targets: float  # of target slots
  examples: float  # of rows: fillers of the last batch


class _Epoch(NamedTuple):
  number: int
  example_ids: np.ndarray  # [batches, B]
  history_lengths: np.ndarray  # [batches]


class BatchPlan:
  """Which examples form global batch b = 0, 1, ... of an endless training run.

  An epoch takes, of a user with p target starts, the ⌈p/stride⌉ starts
  (r + j·stride) mod p, j = 0, 1, ..., with a random r per user and epoch, in
  random order.  Examples whose history fits the same length bucket are
  batched together; what is left over in a bucket moves up to the next longer
  one, so that every epoch has ⌈total/B⌉ batches and only its last one has
  filler rows.

  Args:
    index: of the training file.
    batch_size: global: summed over all processes.
    history_length: longest history (items).
    stride: starts from one target to the next; 1: every start each epoch.
    length_buckets: rising padded history lengths that end at history_length;
      empty: only history_length.
    seed: of the order and the offsets.

  Raises:
    ValueError: there is nothing to train on.
  """

  def __init__(
    self,
    index: examples.ExampleIndex,
    *,
    batch_size: int,
    history_length: int,
    stride: int,
    length_buckets: tuple[int, ...] = (),
    seed: int,
  ):
    if not index.num_examples:
      raise ValueError(
        'The training split has no target start: no user has enough positive'
        ' events. Lower data.min_user_positives or data.sessions.filter, or'
        ' look at dataset.json for what was dropped.'
      )
    self._index = index
    self._batch_size = batch_size
    self._stride = stride
    self._seed = seed
    self._buckets = np.asarray(length_buckets or (history_length,))
    if self._buckets[-1] != history_length:
      raise ValueError(
        f'length_buckets={length_buckets} must end at history_length='
        f'{history_length}.'
      )
    self._lengths = np.minimum(index.history_counts, history_length)
    self._windows = -(-index.num_starts.astype(np.int64) // stride)
    self.examples_per_epoch = int(self._windows.sum())
    self.batches_per_epoch = -(-self.examples_per_epoch // batch_size)
    self._epoch: _Epoch | None = None

  def __call__(self, number: int) -> PlannedBatch:
    """Returns global batch `number` >= 0."""
    epoch, place = divmod(number, self.batches_per_epoch)
    # One reference is read and one is written: safe with a prefetch thread.
    plan = self._epoch
    if plan is None or plan.number != epoch:
      plan = self._epoch = self._plan(epoch)
    return PlannedBatch(
      plan.example_ids[place], int(plan.history_lengths[place])
    )

  def _draw(self, epoch: int) -> np.ndarray:
    """Returns the ids of an epoch's examples in random order."""
    starts = self._index.num_starts.astype(np.int64)
    rows = np.repeat(np.arange(len(starts)), self._windows)
    first = np.cumsum(self._windows) - self._windows
    window = np.arange(len(rows)) - first[rows]
    key = (self._seed, epoch)
    bits = random_bits(np.arange(len(starts)), key=(*key, _OFFSETS))
    offset = (bits % np.maximum(starts, 1).astype('u8')).astype(np.int64)
    chosen = (offset[rows] + window * self._stride) % starts[rows]
    ids = self._index.start_offsets()[rows] + chosen
    bits = random_bits(ids, key=(*key, _EXAMPLES))
    # Random upper half, id (< 2^31) in the lower: one fast sort without ties,
    # whose result is the same for every sorting method.
    keyed = np.sort(bits << np.uint64(32) | ids.astype('u8'))
    return (keyed & np.uint64(2**32 - 1)).astype(np.int64)

  def _plan(self, epoch: int) -> _Epoch:
    size = self._batch_size
    ids = self._draw(epoch)
    # First bucket that is at least as long as the history.
    bucket = np.searchsorted(self._buckets, self._lengths[ids])
    full: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    leftover = ids[:0]
    for i, length in enumerate(self._buckets):
      waiting = np.concatenate([leftover, ids[bucket == i]])
      count = len(waiting) // size
      full.append(waiting[: count * size].reshape(count, size))
      lengths.append(np.full(count, length))
      leftover = waiting[count * size :]
    batches, padded = np.concatenate(full), np.concatenate(lengths)
    key = (self._seed, epoch, _BATCHES)
    order = np.argsort(
      random_bits(np.arange(len(batches)), key=key), kind='stable'
    )
    batches, padded = batches[order], padded[order]
    if len(leftover):
      last = np.full((1, size), -1)
      last[0, : len(leftover)] = leftover
      batches = np.concatenate([batches, last])
      padded = np.append(padded, self._buckets[-1])
    return _Epoch(epoch, batches, padded)

  def padding_share(
    self, *, items_per_session: int, epoch: int = 0
  ) -> PaddingShare:
    """Returns how much of an epoch's batches is padding.

    Args:
      items_per_session: target items per row (m).
      epoch: which epoch; they differ little.
    """
    plan = self._plan(epoch)
    real = plan.example_ids[plan.example_ids >= 0]
    targets = np.minimum(self._index.target_lengths[real], items_per_session)
    rows = plan.example_ids.size
    slots = int(plan.history_lengths.sum()) * self._batch_size
    return PaddingShare(
      history=1 - int(self._lengths[real].sum()) / slots,
      targets=1 - int(targets.sum()) / (rows * items_per_session),
      examples=1 - len(real) / rows,
    )
