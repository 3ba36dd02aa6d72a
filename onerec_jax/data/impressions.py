"""Shown items with what the users did, from events to labelled batches.

Every event of the training stretch that has a label is an example of the
P-Score model; users are held out.  Later stretches (validation, test) are
never read.  What a model reads of the user is made by user_context.py.
"""

import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import event_table
from onerec_jax.data import reward_examples

# Number of batches Grain believes the endless training stream to have.
_ENDLESS = sys.maxsize // 2
# Random stream that orders users when only some of the held-out are judged.
_JUDGED_STREAM = 0x6A75646765

# (users int [B], positions int [B]) -> what was known of them just before the
# event at the position; user -1: nothing.
Contexts = Callable[[np.ndarray, np.ndarray], batch_lib.UserContext]


# --- Events -----------------------------------------------------------------


class Impressions(NamedTuple):
  """Shown items, by user, then time."""

  users: Int[np.ndarray, ' E']
  positions: Int[np.ndarray, ' E']  # place among all events of the user
  items: Int[np.ndarray, ' E']
  labels: Float[np.ndarray, 'E X']  # 0 or 1 per tower; NaN: not logged

  def take(
    self, rows: Int[np.ndarray, ' n'] | Bool[np.ndarray, ' E']
  ) -> 'Impressions':
    """Returns some of the impressions."""
    return Impressions(*(values[rows] for values in self))


class Parts(NamedTuple):
  """The impressions of the training stretch."""

  train: Impressions
  held_out: Impressions  # of users that no training impression is of


def read(
  events: event_table.EventTable, *, model: config.PScoreConfig, seed: int
) -> Parts:
  """Labels and parts the impressions of the training stretch.

    y^x = [v > threshold], v = the tower's feedback column; unknown where v is

  Events without any known label teach nothing and are left out.

  Args:
    events: of all users; only those of the split 'train' are used.
    model: towers and share of held-out users.
    seed: of the choice of held-out users.

  Raises:
    ValueError: names every tower whose column is absent, or whose label is
      unknown or the same in all training impressions.
  """
  labels, problems = label_events(events, model.towers)
  first = events.offsets[events.user]
  shown = Impressions(
    users=events.user,
    positions=(np.arange(events.num_events) - first).astype(np.int32),
    items=events.items,
    labels=labels,
  )
  training = events.split == 0
  labelled = training & np.isfinite(labels).any(axis=1)
  # Without any label every tower is a problem, which is named below.
  shown = shown.take(labelled if labelled.any() else training)
  apart = reward_examples.held_out_users(
    np.unique(shown.users),
    share=model.held_out_share,
    seed=seed,
    setting='p_score_model.held_out_share',
  )
  held = np.isin(shown.users, apart)
  parts = Parts(shown.take(~held), shown.take(held))
  for x, tower in enumerate(model.towers):
    if x not in problems:
      problem = _unlearnable(parts.train.labels[:, x], tower)
      if problem:
        problems[x] = problem
  if problems:
    lines = [
      f'p_score_model.towers[{x}] ({model.towers[x].name}): {problems[x]}'
      for x in sorted(problems)
    ]
    raise ValueError('Bad P-Score labels:\n  ' + '\n  '.join(lines))
  return parts


def label_events(
  events: event_table.EventTable, towers: tuple[config.PScoreTower, ...]
) -> tuple[Float[np.ndarray, 'E X'], dict[int, str]]:
  """Returns the labels of all events, and what is wrong by place of the tower.

  A tower without a column has no known label.
  """
  labels = np.full((events.num_events, len(towers)), np.nan, np.float32)
  problems = {}
  for x, tower in enumerate(towers):
    values = events.feedback.get(tower.column)
    if values is None:
      problems[x] = (
        f'there is no feedback column {tower.column!r}; there are'
        f' {sorted(events.feedback)}.'
      )
      continue
    labels[:, x] = np.where(
      np.isfinite(values), values > tower.threshold, np.nan
    )
  return labels, problems


def _unlearnable(labels: np.ndarray, tower: config.PScoreTower) -> str | None:
  """Returns why nothing can be learnt from a tower's training labels."""
  found = labels[np.isfinite(labels)]
  if not len(found):
    return (
      f'column {tower.column!r} is unknown in all {len(labels)} training'
      ' impressions; name another column.'
    )
  if found.min() == found.max():
    return (
      f'{tower.column!r} > {tower.threshold:g} is {bool(found[0])} in all'
      f' {len(found)} training impressions that have it, so there is nothing'
      ' to learn; change threshold, or name another column.'
    )
  return None


def evenly_spaced(total: int, *, max_impressions: int) -> Int[np.ndarray, ' n']:
  """Returns rows of at most so many impressions, of all users alike."""
  count = min(max_impressions, total)
  return np.arange(count) * total // max(count, 1)


def of_whole_users(
  impressions: Impressions, *, max_impressions: int, seed: int
) -> Int[np.ndarray, ' n']:
  """Returns the rows of all impressions of randomly chosen users.

  Figures per user need many impressions of each.  Users are added while the
  total stays within `max_impressions`; the first is always taken.
  """
  users, place, counts = np.unique(
    impressions.users, return_inverse=True, return_counts=True
  )
  bits = batch_plan.random_bits(users, key=(seed, _JUDGED_STREAM))
  order = np.argsort(bits, kind='stable')
  taken = np.zeros(len(users), bool)
  taken[order] = np.cumsum(counts[order]) <= max_impressions
  taken[order[:1]] = True
  return np.flatnonzero(taken[place.reshape(-1)])


# --- Batches ----------------------------------------------------------------


class ImpressionPlan:
  """Which impressions form global batch b = 0, 1, ... of an endless run.

  An epoch visits every impression once, in an order drawn anew; only its last
  batch has filler rows (-1).  A pure function of (seed, batch number).

  Args:
    count: impressions.
    batch_size: global: summed over all processes.
    seed: of the order.
  """

  def __init__(self, count: int, *, batch_size: int, seed: int):
    if not count:
      raise ValueError(
        'The P-Score model has no impression to train on: the training stretch'
        ' is empty. Look at dataset.json for what was dropped.'
      )
    self._count = count
    self._batch_size = batch_size
    self._seed = seed
    self.batches_per_epoch = -(-count // batch_size)
    self._epoch: tuple[int, np.ndarray] | None = None

  def __call__(self, number: int) -> Int[np.ndarray, ' B']:
    """Returns the rows of global batch `number` >= 0."""
    epoch, place = divmod(number, self.batches_per_epoch)
    # One reference is read and one is written: safe with a prefetch thread.
    order = self._epoch
    if order is None or order[0] != epoch:
      bits = batch_plan.random_bits(
        np.arange(self._count), key=(self._seed, epoch)
      )
      order = self._epoch = epoch, np.argsort(bits, kind='stable')
    first = place * self._batch_size
    rows = np.full(self._batch_size, -1)
    taken = order[1][first : first + self._batch_size]
    rows[: len(taken)] = taken
    return rows


def labelled_batch(
  impressions: Impressions, rows: Int[np.ndarray, ' B'], contexts: Contexts
) -> batch_lib.LabelledBatch:
  """Returns impressions as a batch of NumPy arrays; the target is the item.

  Args:
    impressions: to choose from.
    rows: places among them; -1 makes a filler row. [B]
    contexts: makes what is read of the users.
  """
  real = rows >= 0
  ids = np.where(real, rows, 0)
  users, positions = impressions.users[ids], impressions.positions[ids]
  labels = impressions.labels[ids]
  known = np.isfinite(labels) & real[:, None]
  session = batch_lib.SessionBatch(
    example_id=np.where(real, ids, -1).astype(np.int32),
    user=np.where(real, users, 0).astype(np.int32),
    # What is read of the user is in the context.
    history_items=np.zeros((len(rows), 1), np.int32),
    history_mask=np.zeros((len(rows), 1), bool),
    target_items=np.where(real, impressions.items[ids], 0).astype(np.int32)[
      :, None
    ],
    target_mask=real[:, None],
    example_mask=real,
    context=contexts(
      np.where(real, users, -1), np.where(real, positions, 0).astype(np.int64)
    ),
  )
  return batch_lib.LabelledBatch(
    session, np.where(known, labels, 0).astype(np.float32), known
  )


class _BatchSource:
  """Grain source whose element b is this process's part of global batch b."""

  def __init__(
    self,
    impressions: Impressions,
    plan: ImpressionPlan,
    contexts: Contexts,
    rows: Int[np.ndarray, ' rows'],
  ):
    self._impressions = impressions
    self._plan = plan
    self._contexts = contexts
    self._rows = rows

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> batch_lib.LabelledBatch:
    rows = self._plan(int(index))[self._rows]
    return labelled_batch(self._impressions, rows, self._contexts)

  def __repr__(self) -> str:
    # Grain stores it in checkpoints to recognise the source.
    return 'ImpressionSource()'


def train_plan(
  impressions: Impressions, *, train: config.TrainConfig, seed: int
) -> ImpressionPlan:
  """Returns the plan that `train_batches` follows."""
  return ImpressionPlan(
    len(impressions.users), batch_size=train.batch_size, seed=seed
  )


def train_batches(
  impressions: Impressions,
  contexts: Contexts,
  *,
  train: config.TrainConfig,
  seed: int,
  own_rows: batch_plan.OwnRows = np.arange,
) -> grain.DatasetIterator:
  """Returns an endless, shuffled iterator of `LabelledBatch`.

  Each process makes the rows `own_rows(B)`, by default all.  Its state is
  {'next_index': number of the next global batch}; after `set_state` it goes on
  with bit-identical batches.

  Raises:
    ValueError: there is nothing to train on.
  """
  source = _BatchSource(
    impressions,
    train_plan(impressions, train=train, seed=seed),
    contexts,
    own_rows(train.batch_size),
  )
  prefetch = train.pipeline.prefetch_batches
  options = grain.ReadOptions(
    num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
  )
  return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
  impressions: Impressions,
  contexts: Contexts,
  *,
  batch_size: int,
  own_rows: batch_plan.OwnRows = np.arange,
) -> Iterator[batch_lib.LabelledBatch]:
  """Yields every impression once, in order; the last batch has filler rows.

  Args:
    impressions: to be taken.
    contexts: makes what is read of the users.
    batch_size: global.
    own_rows: from batch_size to the rows that this process makes.
  """
  mine = own_rows(batch_size)
  count = len(impressions.users)
  for first in range(0, count, batch_size):
    rows = np.arange(first, first + batch_size)
    rows[rows >= count] = -1
    yield labelled_batch(impressions, rows[mine], contexts)
