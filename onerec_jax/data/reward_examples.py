"""Labelled sessions for the reward model, from events to batches.

Takes the training stretch of every user, holds users out and writes both
parts as example files with their labels (reward_labels.py).  Later stretches
(validation, test) are never read.
"""

import dataclasses
import os
import uuid
from collections.abc import Iterator
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np
import polars as pl
from etils import epath
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import reward_labels
from onerec_jax.data import schema

Part = Literal['train', 'held_out']

# Random stream that chooses the held-out users; those of batch_plan are
# (seed, epoch, 0..2).
_HELD_OUT_STREAM = 0x7265776172


# --- Held-out users ---------------------------------------------------------


def held_out_users(
  users: Int[np.ndarray, ' U'],
  *,
  share: float,
  seed: int,
  setting: str = 'reward_model.held_out_share',
) -> Int[np.ndarray, ' H']:
  """Returns a random share of the users, rising; at least one on each side.

  The round(share · U) users with the smallest random words are held out.

  Args:
    users: distinct. [U]
    share: of the users, in (0, 1).
    seed: of the choice.
    setting: where the share comes from, for the error.

  Raises:
    ValueError: there are too few users for both parts.
  """
  count = round(share * len(users))
  if not 0 < count < len(users):
    raise ValueError(
      f'{setting}={share} of {len(users)} users to learn from leaves'
      f' {len(users) - count} to train on and {count} to hold out; both need'
      f' one. Change {setting}, or take more users.'
    )
  bits = batch_plan.random_bits(users, key=(seed, _HELD_OUT_STREAM))
  return np.sort(users[np.argsort(bits, kind='stable')[:count]])


# --- Files ------------------------------------------------------------------


class LabelledStore(NamedTuple):
  """Example file of one part, with its labels."""

  store: examples.ExampleStore
  labels: Float[np.ndarray, 'S X']  # by example id; NaN: unknown


class Written(NamedTuple):
  """What `write_reward_examples` made of the events."""

  train: LabelledStore
  held_out: LabelledStore
  quantiles: tuple[float | None, ...]  # q per target; None: needs none
  events: int  # of the training stretch
  events_in_windows: int


def write_reward_examples(
  folder: str | os.PathLike[str],
  interactions: pl.DataFrame,
  *,
  model: config.RewardModelConfig,
  seed: int,
) -> Written:
  """Writes {train,held_out}.arrayrecord, their index and labels.

  Args:
    folder: where to write.
    interactions: as `catalog.read_interactions` returns them; only events of
      the training split are used.
    model: window length, labels, held-out share.
    seed: of the choice of held-out users.

  Raises:
    ValueError: no sessions, no users to hold out, or labels that cannot be
      learnt; says what to change.
  """
  frame = interactions.filter(pl.col('split') == schema.SPLITS[0])
  user = frame['user'].to_numpy().astype(np.int64)
  positive = frame['positive'].to_numpy().astype(bool)
  session = None
  if 'session' in frame.columns:
    session = frame['session'].fill_null(-1).to_numpy().astype(np.int64)
  windows = reward_labels.cut_windows(
    user, positive, session, items_per_session=model.items_per_session
  )
  if not len(windows.starts):
    raise ValueError(
      f'None of the {len(np.unique(user))} users has a session for the reward'
      f' model: {min(2, model.items_per_session)} or more events in a row'
      + (' of one session' if session is not None else '')
      + ' after their first positive one. Sessions are too short: change'
      " data.sessions (kind='next_items' needs none), or lower"
      ' data.min_user_positives.'
    )
  window_users = user[windows.starts]
  held = np.isin(
    window_users,
    held_out_users(
      np.unique(window_users), share=model.held_out_share, seed=seed
    ),
  )
  labels = reward_labels.make_labels(frame, windows, ~held, model.targets)
  events = _Events(
    user=user,
    item=frame['item'].to_numpy().astype(np.int32),
    positive=positive,
    timestamp=frame['timestamp'].to_numpy().astype(np.int64),
  )
  names = [target.name for target in model.targets]
  parts: tuple[tuple[Part, np.ndarray], ...] = (
    ('train', ~held),
    ('held_out', held),
  )
  for part, chosen in parts:
    _write_labels(_labels_path(folder, part), labels.values[chosen], names)
    examples.write_examples(
      _examples_path(folder, part),
      _records(
        events,
        reward_labels.Windows(windows.starts[chosen], windows.lengths[chosen]),
      ),
      target_events='all',
    )
  return Written(
    train=open_part(folder, 'train', model=model),
    held_out=open_part(folder, 'held_out', model=model),
    quantiles=labels.quantiles,
    events=len(user),
    events_in_windows=int(windows.lengths.sum()),
  )


def open_part(
  folder: str | os.PathLike[str],
  part: Part,
  *,
  model: config.RewardModelConfig,
) -> LabelledStore:
  """Returns one part of what `write_reward_examples` wrote.

  Raises:
    FileNotFoundError: it was not written.
    ValueError: the labels are of other targets or other examples.
  """
  store = examples.ExampleStore(_examples_path(folder, part))
  path = _labels_path(folder, part)
  if not path.exists():
    raise FileNotFoundError(f'{path} is missing. Run the stage `reward` first.')
  with path.open('rb') as file, np.load(file) as stored:
    values, names = stored['labels'], stored['names'].tolist()
  wanted = [target.name for target in model.targets]
  if names != wanted or len(values) != store.index.num_examples:
    raise ValueError(
      f'{path} has labels {names} of {len(values)} sessions, expected {wanted}'
      f' of {store.index.num_examples}. Run the stage `reward` again.'
    )
  return LabelledStore(store, values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Events:
  """Flat events of all users, in user and time order."""

  user: np.ndarray
  item: np.ndarray
  positive: np.ndarray
  timestamp: np.ndarray


def _records(
  events: _Events, windows: reward_labels.Windows
) -> Iterator[examples.UserRecord]:
  """Yields a record per user with a window, of all the user's events."""
  users, first = np.unique(events.user[windows.starts], return_index=True)
  last = np.append(first[1:], len(windows.starts))
  begin = np.searchsorted(events.user, users)
  end = np.searchsorted(events.user, users, side='right')
  for i, user in enumerate(users.tolist()):
    seen = slice(begin[i], end[i])
    mine = slice(first[i], last[i])
    yield examples.UserRecord(
      user=user,
      items=events.item[seen],
      positive=events.positive[seen],
      timestamps=events.timestamp[seen],
      target_starts=(windows.starts[mine] - begin[i]).astype(np.int32),
      target_lengths=windows.lengths[mine].astype(np.int32),
    )


def _examples_path(folder: str | os.PathLike[str], part: Part) -> epath.Path:
  return epath.Path(folder) / f'{part}.arrayrecord'


def _labels_path(folder: str | os.PathLike[str], part: Part) -> epath.Path:
  return epath.Path(folder) / f'{part}.labels.npz'


def _write_labels(
  path: epath.Path, values: np.ndarray, names: list[str]
) -> None:
  """Writes labels so that a reader sees the old file or the whole new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  with temporary.open('wb') as file:
    np.savez(file, labels=values.astype(np.float32), names=np.array(names))
  temporary.replace(path)


# --- Batches ----------------------------------------------------------------


def with_labels(
  session: batch_lib.SessionBatch, labels: Float[np.ndarray, 'S X']
) -> batch_lib.LabelledBatch:
  """Returns a NumPy batch with its labels, bound by example id."""
  ids = np.where(session.example_mask, session.example_id, 0)
  found = labels[ids]
  known = np.isfinite(found) & np.asarray(session.example_mask)[:, None]
  return batch_lib.LabelledBatch(
    session, np.where(known, found, 0.0).astype(np.float32), known
  )


class LabelledBatches:
  """Endless iterator of `LabelledBatch`, resumable like the one it wraps."""

  def __init__(self, sessions: Any, labels: Float[np.ndarray, 'S X']):
    self._sessions = sessions
    self._labels = labels

  def __iter__(self) -> 'LabelledBatches':
    return self

  def __next__(self) -> batch_lib.LabelledBatch:
    return with_labels(next(self._sessions), self._labels)

  def get_state(self) -> Any:
    """Returns the position, which JSON can hold."""
    return self._sessions.get_state()

  def set_state(self, state: Any) -> None:
    """Goes on from a position, with bit-identical batches."""
    self._sessions.set_state(state)


def _window_settings(
  model: config.RewardModelConfig,
  data: config.DataConfig,
  train: config.TrainConfig,
) -> tuple[config.DataConfig, config.TrainConfig]:
  """Returns the settings with which the pipeline takes all windows once."""
  sessions = dataclasses.replace(
    data.sessions, items_per_session=model.items_per_session
  )
  taken = dataclasses.replace(train.pipeline, windows='all')
  return (
    dataclasses.replace(data, sessions=sessions),
    dataclasses.replace(train, pipeline=taken),
  )


def labelled_plan(
  part: LabelledStore,
  *,
  model: config.RewardModelConfig,
  data: config.DataConfig,
  train: config.TrainConfig,
  seed: int,
) -> batch_plan.BatchPlan:
  """Returns the plan that `labelled_batches` follows: every window, once an
  epoch (windows do not overlap, so pipeline.windows has no meaning here)."""
  data, train = _window_settings(model, data, train)
  return pipeline.train_plan(
    part.store.index, data=data, train=train, seed=seed
  )


def labelled_batches(
  part: LabelledStore,
  *,
  model: config.RewardModelConfig,
  data: config.DataConfig,
  train: config.TrainConfig,
  seed: int,
  own_rows: batch_plan.OwnRows = np.arange,
) -> LabelledBatches:
  """Returns an endless, shuffled, resumable iterator of labelled sessions.

  Args:
    part: examples and labels.
    model: window length.
    data: history length.
    train: batch size, length buckets, prefetching.
    seed: of the order.
    own_rows: from batch_size to the rows that this process makes.
  """
  data, train = _window_settings(model, data, train)
  return LabelledBatches(
    pipeline.train_batches(
      part.store, data=data, train=train, seed=seed, own_rows=own_rows
    ),
    part.labels,
  )


def labelled_eval_batches(
  part: LabelledStore,
  *,
  model: config.RewardModelConfig,
  batch_size: int,
  history_length: int,
  max_examples: int | None = None,
  own_rows: batch_plan.OwnRows = np.arange,
) -> Iterator[batch_lib.LabelledBatch]:
  """Yields every window once, in file order; see `pipeline.eval_batches`."""
  for session in pipeline.eval_batches(
    part.store,
    batch_size=batch_size,
    history_length=history_length,
    items_per_session=model.items_per_session,
    max_examples=max_examples,
    own_rows=own_rows,
  ):
    yield with_labels(session, part.labels)
