"""Cuts events into the windows that are sessions, and labels them.

Pure functions of flat event arrays and feedback columns; no files.  Who
trains is decided in reward_examples.py.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config

# All other columns of interactions.parquet are feedback.
_NOT_FEEDBACK = (
  'user', 'item', 'timestamp', 'positive', 'split', 'session', 'exact_time',
)  # fmt: skip


# --- Windows ----------------------------------------------------------------


class Windows(NamedTuple):
  """Sessions as they were shown: consecutive events of one user."""

  starts: Int[np.ndarray, ' S']  # flat event positions, rising
  lengths: Int[np.ndarray, ' S']  # events, 1..items_per_session


def cut_windows(
  user: Int[np.ndarray, ' E'],
  positive: Bool[np.ndarray, ' E'],
  session: Int[np.ndarray, ' E'] | None,
  *,
  items_per_session: int,
) -> Windows:
  """Cuts each user's events into windows that do not overlap.

  Windows follow each other from the first event that has a positive event of
  the same user before it; they never cross a session (if sessions are given)
  and leave out events in no session.  The rest at the end of a session or
  user is a shorter window if it has two items, and is left out otherwise: one
  item is no session (items_per_session = 1 keeps single items).

  Args:
    user: rising. [E]
    positive: which events are history. [E]
    session: session of each event, -1: none; None: no sessions. [E]
    items_per_session: longest window.
  """
  count = len(user)
  first = np.ones(count, bool)
  first[1:] = user[1:] != user[:-1]
  until = np.cumsum(positive)
  before = until - positive  # of all users
  base = np.maximum.accumulate(np.where(first, before, 0))
  inside = before > base
  if session is not None:
    inside &= session >= 0
  places = np.flatnonzero(inside)
  if not len(places):
    empty = np.zeros(0, np.int64)
    return Windows(empty, empty)
  new = np.ones(len(places), bool)
  # Users are apart: the first event of each is never inside.
  new[1:] = np.diff(places) > 1
  if session is not None:
    new[1:] |= session[places[1:]] != session[places[:-1]]
  run = np.cumsum(new) - 1
  run_first = np.flatnonzero(new)
  run_length = np.diff(np.append(run_first, len(places)))
  place_in_run = np.arange(len(places)) - run_first[run]
  is_start = place_in_run % items_per_session == 0
  lengths = np.minimum(
    run_length[run[is_start]] - place_in_run[is_start], items_per_session
  )
  keep = lengths >= min(2, items_per_session)
  return Windows(places[is_start][keep], lengths[keep])


# --- Labels -----------------------------------------------------------------


def window_labels(
  values: Float[np.ndarray, ' E'],
  windows: Windows,
  target: config.RewardTarget,
  *,
  quantile: float | None = None,
) -> Float[np.ndarray, ' S']:
  """Returns the label of each window; NaN: unknown.

  With v the values of a window and e = [v > threshold]:
    any:             1 if any e, else 0
    mean:            mean of e
    saturating_sum:  min(1, Σ v / quantile)
  A window with an unknown value has no label, unless 'any' is already 1.

  Args:
    values: the target's column; not finite: unknown. [E]
    windows: of these events.
    target: which label.
    quantile: 'saturating_sum' only; None: the plain sum Σ v.
  """
  width = int(windows.lengths.max(initial=1))
  columns = np.arange(width)
  inside = columns < windows.lengths[:, None]  # [S, width]
  taken = values.astype(np.float64).take(
    windows.starts[:, None] + columns, mode='clip'
  )
  taken = np.where(inside, taken, 0.0)
  unknown = ~np.isfinite(taken).all(axis=1)
  event = (taken > target.threshold) & np.isfinite(taken) & inside
  if target.label == 'any':
    label = event.any(axis=1).astype(np.float64)
    unknown &= ~event.any(axis=1)
  elif target.label == 'mean':
    label = event.sum(axis=1) / windows.lengths
  else:
    taken[unknown] = 0.0
    label = taken.sum(axis=1)
    if quantile is not None:
      label = np.minimum(1.0, label / quantile)
  return np.where(unknown, np.nan, label)


class Labels(NamedTuple):
  """Labels of some windows and what they were fitted with."""

  values: Float[np.ndarray, 'S X']  # 0..1; NaN: unknown
  quantiles: tuple[float | None, ...]  # q per target; None: needs none


def make_labels(
  frame: pl.DataFrame,
  windows: Windows,
  training: Bool[np.ndarray, ' S'],
  targets: tuple[config.RewardTarget, ...],
) -> Labels:
  """Labels windows by the feedback columns, fitted on the training ones.

  Args:
    frame: events, a column per target at least.
    windows: of these events.
    training: windows of training users; the others fit nothing. [S]
    targets: labels wanted.

  Raises:
    ValueError: names every target whose column is absent, all unknown,
      negative where it is summed, or whose label is constant.
  """
  values = np.full((len(windows.starts), len(targets)), np.nan)
  quantiles: list[float | None] = [None] * len(targets)
  problems = []
  for x, target in enumerate(targets):
    where = f'reward_model.targets[{x}] ({target.name})'
    if target.column not in frame.columns or target.column in _NOT_FEEDBACK:
      known = [c for c in frame.columns if c not in _NOT_FEEDBACK]
      problems.append(
        f'{where}: there is no feedback column {target.column!r}; there are'
        f' {known}.'
      )
      continue
    column = frame[target.column].cast(pl.Float64).to_numpy()
    label = window_labels(column, windows, target)
    fitted = label[training & ~np.isnan(label)]
    if not len(fitted):
      problems.append(
        f'{where}: column {target.column!r} has unknown values in every'
        ' training session; name another column.'
      )
      continue
    if target.label == 'saturating_sum':
      if np.nanmin(label) < 0:
        problems.append(
          f'{where}: a session sums to {np.nanmin(label):g} in'
          f" {target.column!r}; 'saturating_sum' needs values of at least 0."
        )
        continue
      quantile = float(np.percentile(fitted, target.percentile))
      if quantile <= 0:
        problems.append(
          f'{where}: the {target.percentile:g}th percentile of the sums of'
          f" {target.column!r} is 0; raise percentile, or use label='any'."
        )
        continue
      quantiles[x] = quantile
      label = window_labels(column, windows, target, quantile=quantile)
      fitted = label[training & ~np.isnan(label)]
    if fitted.min() == fitted.max():
      rule = (
        'percentile'
        if target.label == 'saturating_sum'
        else f'threshold={target.threshold:g}'
      )
      problems.append(
        f'{where}: the label {target.label!r} of {target.column!r} is'
        f' {fitted[0]:g} in all {len(fitted)} training sessions, so there is'
        f' nothing to learn; change {rule}, or name another column.'
      )
      continue
    values[:, x] = label
  if problems:
    raise ValueError('Bad reward labels:\n  ' + '\n  '.join(problems))
  return Labels(values, tuple(quantiles))
