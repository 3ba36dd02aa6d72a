"""Decides what trains, validates and tests, and where targets begin.

Each user's events fall into three stretches, train | valid | test, in time
order; a split sees its own stretch and the ones before it, never later ones.
Pure NumPy over flat event arrays.
"""

import datetime
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax.data import schema

# leave_one_out: test, validation, and one more for a history.
_MIN_HELD_OUT = 3


class Boundaries(NamedTuple):
  """First event of each user's valid and test stretch (flat positions)."""

  valid: Int[np.ndarray, ' U']
  test: Int[np.ndarray, ' U']
  train_only: int  # users too short to be held out


class Targets(NamedTuple):
  """Where target sessions of one split begin, in rising flat positions."""

  starts: Int[np.ndarray, ' P']
  # Targets from there within the split (and the session): positives for kind
  # next_items, events of the session otherwise.
  lengths: Int[np.ndarray, ' P']
  tied: int  # by_time: starts not used, at the time of their last history


def microseconds(instant: str) -> int:
  """Returns an ISO-8601 instant (UTC unless it says otherwise) in us.

  Raises:
    ValueError: it does not parse.
  """
  try:
    moment = datetime.datetime.fromisoformat(instant)
  except ValueError:
    raise ValueError(
      f"{instant!r} is not an ISO-8601 instant; write e.g. '2022-05-01' or"
      " '2022-05-01T12:00:00+00:00'."
    ) from None
  if moment.tzinfo is None:
    moment = moment.replace(tzinfo=datetime.UTC)
  epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
  return (moment - epoch) // datetime.timedelta(microseconds=1)


def leave_one_out(
  events: schema.Events, *, session: Int[np.ndarray, ' E'] | None
) -> Boundaries:
  """Holds out the end of every user who is long enough.

  Without sessions: the last positive begins the test stretch, the last but
  one the validation stretch.  With sessions: the first event of the last
  session that has a positive, and of the last but one such session.  Users
  with fewer than three positives (sessions with a positive) train only.

  Args:
    events: sorted events of all users.
    session: session of each event, -1: none; None: kind next_items. [E]
  """
  if session is None:
    units = np.flatnonzero(events.positive)
  else:
    inside = session >= 0
    has_positive = np.zeros(int(session.max(initial=-1)) + 1, bool)
    has_positive[session[inside & events.positive]] = True
    number, first = np.unique(session[inside], return_index=True)
    units = np.flatnonzero(inside)[first][has_positive[number]]
  return _hold_out_last_two(events, units)


def _hold_out_last_two(
  events: schema.Events, units: Int[np.ndarray, ' N']
) -> Boundaries:
  """Begins the held-out stretches at the last two `units` of each user."""
  ends = events.offsets[1:]
  last = np.searchsorted(units, ends)  # units before each user's end
  count = last - np.searchsorted(units, events.offsets[:-1])
  held_out = count >= _MIN_HELD_OUT
  valid, test = ends.copy(), ends.copy()
  valid[held_out] = units[last[held_out] - 2]
  test[held_out] = units[last[held_out] - 1]
  return Boundaries(valid, test, int((~held_out).sum()))


def by_time(
  events: schema.Events, *, validation_start: int, test_start: int
) -> Boundaries:
  """Splits every user at two instants, in us UTC.

  Raises:
    ValueError: the instants are not in order, or nothing lies before the
      first.
  """
  if validation_start >= test_start:
    raise ValueError(
      'data.split.validation_start must lie before data.split.test_start.'
    )
  if not (events.timestamps < validation_start).any():
    raise ValueError(
      'data.split.validation_start lies before all events; the first is at'
      f' {_instant(int(events.timestamps.min()))}, the last at'
      f' {_instant(int(events.timestamps.max()))}.'
    )

  def first_at(instant: int) -> np.ndarray:
    before = np.concatenate([[0], np.cumsum(events.timestamps < instant)])
    earlier = before[events.offsets[1:]] - before[events.offsets[:-1]]
    return events.offsets[:-1] + earlier

  return Boundaries(first_at(validation_start), first_at(test_start), 0)


def stretch(
  events: schema.Events, boundaries: Boundaries
) -> Int[np.ndarray, ' E']:
  """Returns 0 (train), 1 (valid) or 2 (test) for each event."""
  position = np.arange(events.num_events)
  repeats = np.diff(events.offsets)
  held_out = position >= np.repeat(boundaries.valid, repeats)
  tested = position >= np.repeat(boundaries.test, repeats)
  return held_out.astype(np.int8) + tested


def next_item_targets(
  events: schema.Events,
  boundaries: Boundaries,
  split: int,
  *,
  items_per_session: int,
  held_out: bool,
  strictly_later: bool,
) -> Targets:
  """Returns the starts of 'the next m positives' in one split.

  A start is a positive event with a positive event before it.  Training takes
  every such event; a held-out split takes starts whose targets do not
  overlap, so that each held-out event is a target once.

  Args:
    events: sorted events of all users.
    boundaries: of the splits.
    split: 0 train, 1 valid, 2 test.
    items_per_session: m.
    held_out: whether this is a held-out split.
    strictly_later: leave out starts at the timestamp of the positive before
      them (by_time).
  """
  before = events.positives_before
  inside = stretch(events, boundaries) == split
  chosen = inside & events.positive & (before > 0)
  tied = np.zeros_like(chosen)
  if strictly_later:
    tied = chosen & ~_later_than_history(events)
    chosen &= ~tied
  starts = np.flatnonzero(chosen)
  user = events.user[starts]
  rank = before[starts]  # also the place among the user's positives
  positives_until = np.concatenate([[0], np.cumsum(events.positive)])
  end = _stretch_end(events, boundaries, split)[user]
  remaining = positives_until[end] - positives_until[starts]
  if held_out and items_per_session > 1:
    keep = _non_overlapping(user, rank, items_per_session)
    starts, remaining = starts[keep], remaining[keep]
  lengths = np.minimum(remaining, items_per_session)
  return Targets(starts, lengths, int(tied.sum()))


def session_targets(
  events: schema.Events,
  boundaries: Boundaries,
  split: int,
  *,
  session: Int[np.ndarray, ' E'],
  good: Bool[np.ndarray, ' S'] | None,
  items_per_session: int,
  first_only: bool,
  strictly_later: bool,
) -> Targets:
  """Returns the starts of logged or cut sessions in one split.

  A session longer than m is taken in consecutive pieces of m events; one that
  crosses the end of a split is cut there.  A start needs a positive event
  before it.

  Args:
    events: sorted events of all users.
    boundaries: of the splits.
    split: 0 train, 1 valid, 2 test.
    session: session of each event, -1: none. [E]
    good: sessions that may be targets; None: all. [S]
    items_per_session: m.
    first_only: only the first piece of each user's first session of the
      split (leave_one_out).
    strictly_later: leave out starts at the timestamp of the positive before
      them (by_time).
  """
  inside = (stretch(events, boundaries) == split) & (session >= 0)
  if good is not None and len(good):
    inside &= good[session]
  places = np.flatnonzero(inside)
  if not len(places):
    empty = np.zeros(0, np.int64)
    return Targets(empty, empty, 0)
  new = np.ones(len(places), bool)
  new[1:] = session[places[1:]] != session[places[:-1]]
  run = np.cumsum(new) - 1
  run_first = np.flatnonzero(new)
  run_length = np.diff(np.append(run_first, len(places)))
  place_in_run = np.arange(len(places)) - run_first[run]
  is_start = place_in_run % items_per_session == 0
  starts = places[is_start]
  lengths = np.minimum(
    run_length[run[is_start]] - place_in_run[is_start], items_per_session
  )
  keep = events.positives_before[starts] > 0
  if first_only:
    _, first = np.unique(events.user[starts], return_index=True)
    only = np.zeros(len(starts), bool)
    only[first] = True
    keep &= only
  tied = np.zeros(len(starts), bool)
  if strictly_later:
    tied = keep & ~_later_than_history(events)[starts]
    keep &= ~tied
  return Targets(starts[keep], lengths[keep], int(tied.sum()))


def _stretch_end(
  events: schema.Events, boundaries: Boundaries, split: int
) -> np.ndarray:
  return (boundaries.valid, boundaries.test, events.offsets[1:])[split]


def _later_than_history(events: schema.Events) -> np.ndarray:
  """Whether an event lies after the last positive before it.

  Meaningful where the same user has a positive before. [E]
  """
  places = np.where(events.positive, np.arange(events.num_events), -1)
  last = np.concatenate([[-1], np.maximum.accumulate(places)[:-1]])
  return events.timestamps > events.timestamps[np.maximum(last, 0)]


def _non_overlapping(
  user: np.ndarray, rank: np.ndarray, items_per_session: int
) -> np.ndarray:
  """Takes starts from the left, each at least m positives after the last."""
  keep = np.zeros(len(user), bool)
  current, free = -1, 0
  for i, (u, r) in enumerate(zip(user.tolist(), rank.tolist(), strict=True)):
    if u != current or r >= free:
      keep[i] = True
      current, free = u, r + items_per_session
  return keep


def _instant(microseconds_utc: int) -> str:
  moment = datetime.datetime.fromtimestamp(microseconds_utc / 1e6, datetime.UTC)
  return moment.isoformat(timespec='seconds')
