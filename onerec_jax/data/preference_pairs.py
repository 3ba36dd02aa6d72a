"""Preference pairs of a round: their file, and batches that hold them.

`Pairs` is what rollouts write and training reads; `PreferenceBatches` puts
them beside the samples for next-token prediction.  Knows no model.
"""

import io
from typing import Any
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax.data import batch_plan
from onerec_jax.data import examples
from onerec_jax.data import pipeline

# Separate random streams of one seed; batch_plan uses 0, 1, 2.
_CHOICE, _ORDER, _OTHERS = 10, 11, 12


class Pairs(NamedTuple):
  """Chosen and rejected sessions; a pair belongs to its example by id."""

  example_ids: Int[np.ndarray, ' P']  # place in the example file's starts
  items: Int[np.ndarray, 'P W M']  # dense items; place 0 of W is chosen
  mask: Bool[np.ndarray, 'P W M']
  reference_log_probs: Float[np.ndarray, 'P W']  # nats, summed over tokens
  rewards: Float[np.ndarray, 'P W']  # scalar rewards; 0: not scored
  # Predictions of the reward model, one column per target; NaN: not scored.
  predictions: Float[np.ndarray, 'P W X']


def concatenate(parts: list[Pairs]) -> Pairs:
  """Returns the pairs of all parts, in order."""
  return Pairs(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def write(path: epath.Path, pairs: Pairs) -> None:
  """Writes an .npz so that a reader sees no file or a whole one."""
  buffer = io.BytesIO()
  np.savez(buffer, **pairs._asdict())
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.partial'
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(path)


def read(path: epath.Path) -> Pairs:
  """Returns what `write` wrote."""
  with np.load(io.BytesIO(path.read_bytes())) as arrays:
    return Pairs(**{name: arrays[name] for name in Pairs._fields})


# --- Which samples have a pair ----------------------------------------------


def choose_examples(
  num_examples: int, *, count: int, key: tuple[int, ...]
) -> Int[np.ndarray, ' n']:
  """Returns `count` different example ids (all, if there are fewer), random.

  Args:
    num_examples: ids are 0..num_examples - 1.
    count: wanted, r_DPO times the samples of the round.
    key: names the random stream, e.g. (seed, round).
  """
  ids = np.arange(num_examples)
  bits = batch_plan.random_bits(ids, key=(*key, _CHOICE))
  return np.argsort(bits, kind='stable')[:count]


def other_examples(
  index: examples.ExampleIndex,
  example_ids: Int[np.ndarray, ' P'],
  *,
  count: int,
  key: tuple[int, ...],
) -> Int[np.ndarray, 'P count']:
  """Returns random examples of other users, `count` for each given one.

  Raises:
    ValueError: there is only one user.
  """
  row = index.example_rows()
  if len(index.users) < 2:
    raise ValueError(
      "preference.pairs='logged' rejects sessions of other users, but only one"
      ' user has training examples.'
    )
  first = index.start_offsets()
  own = row[example_ids]
  others = index.num_examples - index.num_starts[own].astype(np.int64)
  counters = np.arange(len(example_ids) * count)
  bits = batch_plan.random_bits(counters, key=(*key, _OTHERS))
  place = (bits.reshape(-1, count) % others[:, None].astype('u8')).astype(int)
  # Places are counted without the user's own examples, which are skipped.
  own_first = first[own][:, None]
  skip = place >= own_first
  return place + skip * index.num_starts[own][:, None].astype(np.int64)


# --- Batches ----------------------------------------------------------------


def rows_per_step(count: int, *, num_steps: int, multiple: int) -> int:
  """Returns the room for pairs in every batch, filler included.

  Args:
    count: pairs of the round.
    num_steps: of the round.
    multiple: the result is a positive multiple of this.
  """
  largest = -(-count // num_steps)
  return max(-(-largest // multiple), 1) * multiple


class PreferenceBatches:
  """Endless batches of samples, with the round's pairs spread over its steps.

  Pair order[j] of P comes with step ⌊j · S / P⌋ of S; every step has room for
  the same number of pairs, and what it lacks is filler.

  Args:
    sessions: the samples, e.g. `pipeline.train_batches`.
    store: that the pairs' example ids refer to.
    pairs: of the round; may be empty.
    num_steps: of the round (S).
    history_length: of the pairs' users, items.
    multiple: rows per step are a multiple of this, for the mesh.
    key: names the random stream, e.g. (seed, round).
    own_rows: from the rows of a step to those that this process makes.
  """

  def __init__(
    self,
    sessions: Any,
    store: examples.ExampleStore,
    pairs: Pairs,
    *,
    num_steps: int,
    history_length: int,
    multiple: int,
    key: tuple[int, ...],
    own_rows: batch_plan.OwnRows = np.arange,
  ):
    self._sessions = sessions
    self._store = store
    self._pairs = pairs
    self._num_steps = num_steps
    self._history_length = history_length
    count = len(pairs.example_ids)
    bits = batch_plan.random_bits(np.arange(count), key=(*key, _ORDER))
    self._order = np.argsort(bits, kind='stable')
    self._step_of = np.arange(count) * num_steps // max(count, 1)
    rows = rows_per_step(count, num_steps=num_steps, multiple=multiple)
    self.rows_per_step = rows
    self._mine = own_rows(rows)
    self._next = 0

  def __next__(self) -> batch_lib.PreferenceBatch:
    sessions = next(self._sessions)
    step = self._next % self._num_steps
    self._next += 1
    first, last = np.searchsorted(self._step_of, [step, step + 1])
    chosen = np.full(self.rows_per_step, -1)
    chosen[: last - first] = self._order[first:last]
    return batch_lib.PreferenceBatch(
      session=sessions, pairs=self._batch(chosen[self._mine])
    )

  def _batch(self, chosen: Int[np.ndarray, ' R']) -> batch_lib.PairBatch:
    """Returns the pairs at these places; -1 makes a filler row."""
    real = chosen >= 0
    pairs = self._pairs
    shape = (len(chosen), *pairs.items.shape[1:])
    items, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    log_probs = np.zeros(shape[:2], np.float32)
    rewards = np.zeros(shape[:2], np.float32)
    ids = np.full(len(chosen), -1)
    taken = chosen[real]
    items[real], mask[real] = pairs.items[taken], pairs.mask[taken]
    log_probs[real] = pairs.reference_log_probs[taken]
    rewards[real] = pairs.rewards[taken]
    ids[real] = pairs.example_ids[taken]
    return batch_lib.PairBatch(
      session=pipeline.session_batch(
        self._store,
        ids,
        history_length=self._history_length,
        items_per_session=1,
      ),
      items=items,
      mask=mask,
      reference_log_probs=log_probs,
      rewards=rewards,
    )

  def get_state(self) -> dict[str, Any]:
    """Returns where the iterator stands; JSON-able."""
    return {'sessions': self._sessions.get_state(), 'next_step': self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from `get_state`."""
    self._sessions.set_state(state['sessions'])
    self._next = state['next_step']
