"""Cuts the events of each user into sessions and rates their quality.

Pure NumPy over flat event arrays.  Which sessions are targets of which split
is decided in splits.py.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.data import schema

_DAY_MICROSECONDS = 86_400_000_000
_MINUTE_MICROSECONDS = 60_000_000


class Sessions(NamedTuple):
  """The session of every event."""

  number: Int[np.ndarray, ' E']  # 0.. in event order; -1: in no session
  total: int
  interleaved: int  # logged ids that had to be cut because they alternate


def cut(
  events: schema.Events,
  *,
  sessions: config.SessionsConfig,
  session_ids: Int[np.ndarray, ' E'] | None,
  exact_time: Bool[np.ndarray, ' E'] | None,
) -> Sessions | None:
  """Returns the session of each event, or None for kind 'next_items'.

  A session is a maximal run of consecutive events of one user, in time order:
    id: with the same logged id; ids that alternate are cut where they do;
    gap: without a pause longer than gap_minutes;
    day: of the same UTC day.
  Events without an id, and for gap and day those without a real time, are in
  no session.

  Args:
    events: sorted events of all users.
    sessions: how to cut.
    session_ids: logged session of each event as a number, -1: none; None: the
      data set logs no sessions. [E]
    exact_time: False where only the order is known; None: all are real. [E]

  Raises:
    ValueError: kind 'id' without logged sessions.
  """
  if sessions.kind == 'next_items':
    return None
  valid = np.ones(events.num_events, bool)
  if sessions.kind == 'id':
    if session_ids is None:
      raise ValueError(
        "data.sessions.kind='id' needs logged session ids, which this data set"
        " lacks. Use 'gap', 'day' or 'next_items', or name"
        ' data.tables.session_column.'
      )
    valid = session_ids >= 0
    key = session_ids
    changes = key[1:] != key[:-1]
  else:
    if exact_time is not None:
      valid = exact_time
    if sessions.kind == 'day':
      key = events.timestamps // _DAY_MICROSECONDS
      changes = key[1:] != key[:-1]
    else:
      gap = round(sessions.gap_minutes * _MINUTE_MICROSECONDS)
      changes = np.diff(events.timestamps) > gap
  first = np.ones(events.num_events, bool)
  first[1:] = changes | (valid[1:] & ~valid[:-1])
  first[events.offsets[:-1][np.diff(events.offsets) > 0]] = True
  first &= valid
  number = np.where(valid, np.cumsum(first) - 1, -1)
  count = int(first.sum())
  interleaved = 0
  if sessions.kind == 'id' and session_ids is not None:
    pairs = np.stack([events.user[first], session_ids[first]])
    _, runs = np.unique(pairs, axis=1, return_counts=True)
    interleaved = int((runs > 1).sum())
  return Sessions(number, count, interleaved)


def high_quality(
  cut_sessions: Sessions,
  *,
  watched: Bool[np.ndarray, ' E'],
  watch_time: Float[np.ndarray, ' E'] | None,
  interacted: Bool[np.ndarray, ' E'] | None,
  min_watched: int,
  min_watch_time: float | None,
) -> Bool[np.ndarray, ' S']:
  """Returns which sessions are good enough to be learnt.

    (watched items >= min_watched) and
    (total watch time >= min_watch_time or any interaction)

  With neither watch times nor interactions only the first condition counts.

  Args:
    cut_sessions: session of each event.
    watched: the item was actually watched. [E]
    watch_time: any unit; NaN counts as 0; None: unknown. [E]
    interacted: liked, shared, ...; None: unknown. [E]
    min_watched: items.
    min_watch_time: in the unit of watch_time; None: the median over all
      sessions.

  Reference: OneRec, arXiv:2502.18965, section 3.2; that the criteria combine
  this way, and the median, are our choice.
  """
  inside = cut_sessions.number >= 0
  number = cut_sessions.number[inside]
  count = cut_sessions.total

  def per_session(values: np.ndarray) -> np.ndarray:
    return np.bincount(
      number, weights=values[inside].astype(np.float64), minlength=count
    )

  keep = per_session(watched) >= min_watched
  engaged = []
  if watch_time is not None:
    total = per_session(np.nan_to_num(watch_time))
    if min_watch_time is None:
      min_watch_time = float(np.median(total)) if count else 0.0
    engaged.append(total >= min_watch_time)
  if interacted is not None:
    engaged.append(per_session(interacted) > 0)
  if engaged:
    keep &= np.logical_or.reduce(engaged)
  return keep
