"""What a model may know of a user at one position of his events.

`ContextMaker` cuts the pathways of 2506.13695, section 2.2.1, out of the
event table.  It never reads an event at or after the position, but for
the time of the request, and it fits nothing: features.py did.
"""

from typing import Protocol
from typing import runtime_checkable

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib

# Labels are kept as one byte per event: 1, 0, or not logged.
_NOT_LOGGED = -1


@runtime_checkable
class Lifelong(Protocol):
  """Compressed histories, as data/lifelong.py makes them."""

  def lookup(
    self,
    users: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, ' B'],
    length: int,
  ) -> batch.EventSequence:
    """Returns the latest `length` clusters of the events before a position.

    Right-aligned; a user of -1 makes a masked row.
    """
    ...


class ContextMaker:
  """Makes `batch.UserContext` of users at positions of their events.

  Args:
    pathways: lengths, and which features are read.
    features: of the same pathways, from `features.make_features`.
    events: of the same data set.
    lifelong: needed if pathways.lifelong_length is above 0.

  Raises:
    ValueError: the lifelong pathway is wanted but nothing is given for it.
  """

  def __init__(
    self,
    pathways: config.PathwaysConfig,
    features: features_lib.Features,
    events: event_table.EventTable,
    lifelong: Lifelong | None = None,
  ):
    if pathways.lifelong_length and lifelong is None:
      raise ValueError(
        f'model.pathways.lifelong_length={pathways.lifelong_length} needs the'
        " clusters of the stage 'lifelong': add it to stages, or set"
        ' model.pathways.lifelong_length=0.'
      )
    self.pathways = pathways
    self.features = features
    self.events = events
    self.lifelong = lifelong
    count = events.num_events
    self._numbers = np.zeros((count, len(pathways.event_features)), np.uint16)
    for f, feature in enumerate(pathways.event_features):
      values = events.column(
        feature.column, f'model.pathways.event_features[{f}]'
      )
      self._numbers[:, f] = features_lib.number_ids(values, features.edges[f])
    self._labels = np.zeros((count, len(pathways.labels)), np.int8)
    for a, name in enumerate(pathways.labels):
      values = events.column(name, f'model.pathways.labels[{a}]')
      self._labels[:, a] = np.where(
        np.isnan(values), _NOT_LOGGED, np.nan_to_num(values) > 0
      )

  def __call__(
    self, users: Int[np.ndarray, ' B'], positions: Int[np.ndarray, ' B']
  ) -> batch.UserContext:
    """Returns what is known of users before an event.

    The request is made at the time of the event at the position; at the end
    of a user's events nobody knows when it is made, and ages are unknown.

    Args:
      users: dense; -1 makes a filler row, all masked. [B]
      positions: events of the user before the request, 0..their number. [B]

    Returns:
      NumPy arrays; pathways of length 0 are None.

    Raises:
      ValueError: a user has fewer events than his position says.
    """
    events = self.events
    # Filler: the first user before his first event, who has no pathway yet.
    real = users >= 0
    users = np.where(real, users, 0).astype(np.int64)
    first = events.offsets[users]
    place = first + np.where(real, positions, 0)  # of the event to come
    end = events.offsets[users + 1]
    if np.any((place > end) | (place < first)):
      row = int(((place > end) | (place < first)).argmax())
      raise ValueError(
        f'Position {positions[row]} of user {users[row]}, who has'
        f' {end[row] - first[row]} events: positions lie in'
        f' 0..{end[row] - first[row]}.'
      )
    known = place < end
    at = np.where(known, place, first)
    request = events.timestamps[at]
    request_known = known & events.exact_time[at]

    def sequence(places: np.ndarray, mask: np.ndarray) -> batch.EventSequence:
      return self._sequence(places, mask, request, request_known)

    p = self.pathways
    short = positive = lifelong = None
    if p.short_length:
      short = sequence(*_last(first, place, p.short_length))
    if p.positive_length:
      before = events.positives_before
      numbers, mask = _last(before[first], before[place], p.positive_length)
      positive = sequence(_take(events.positive_places, numbers), mask)
    if p.lifelong_length and self.lifelong is not None:
      lifelong = self.lifelong.lookup(
        np.where(real, users, -1), place - first, p.lifelong_length
      )
    table = self.features.users
    return batch.UserContext(
      features=table[users] * real[:, None],
      short=short,
      positive=positive,
      lifelong=lifelong,
    )

  def _sequence(
    self,
    places: Int[np.ndarray, 'B N'],
    mask: Bool[np.ndarray, 'B N'],
    request: Int[np.ndarray, ' B'],
    request_known: Bool[np.ndarray, ' B'],
  ) -> batch.EventSequence:
    """Returns the events at places of the table, 0 where masked."""
    events, p = self.events, self.pathways
    if p.age_dim:
      known = mask & request_known[:, None] & events.exact_time[places]
      age = features_lib.age_ids(
        request[:, None] - events.timestamps[places],
        known,
        num_buckets=p.age_buckets,
      )
    else:
      age = np.zeros(places.shape, np.int32)
    labels = self._labels[places]
    logged = mask[..., None] & (labels != _NOT_LOGGED)
    return batch.EventSequence(
      items=events.items[places] * mask,
      mask=mask,
      age=age,
      numbers=(self._numbers[places] * mask[..., None]).astype(np.int32),
      labels=(logged & (labels > 0)).astype(np.float32),
      label_mask=logged,
    )


def _last(
  first: np.ndarray, end: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns first..end-1, the last `length` of them, right-aligned, and mask.

  Padding holds 0.  [B, length] each.
  """
  numbers = end[:, None] - length + np.arange(length)
  mask = numbers >= first[:, None]
  return np.where(mask, numbers, 0), mask


def _take(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
  """Returns values[numbers], 0 if there is none: all of it is padding."""
  return values[numbers] if len(values) else np.zeros_like(numbers)
