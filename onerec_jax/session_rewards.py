"""Rewards of generated sessions as in v1 Table 1: mean and best per user.

NumPy, from predictions to figures with their spread; users without a legal
session stay out of every figure and are counted.  Makes no prediction itself.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax import bootstrap


class Summary(NamedTuple):
  """One figure of a table row."""

  mean: float  # over all users
  std: float  # of the means of random test resamples: the ± of the paper
  low: float  # 95 % bootstrap interval over users
  high: float


class Row(NamedTuple):
  """All figures of one model."""

  figures: dict[str, Summary]  # by column name
  num_users: int  # in every figure
  num_without_session: int  # users left out: no legal session
  users_per_resample: int  # actually drawn


class Comparison(NamedTuple):
  """A model against the base model, user by user."""

  differences: dict[str, bootstrap.PairedDifference]  # model - base, per column
  num_users: int  # with a legal session of both models


def column_names(targets: Sequence[str]) -> tuple[str, ...]:
  """Names the columns of `user_rewards`: swt_mean, swt_max, vtr_mean, ..."""
  return tuple(f'{name}_{part}' for name in targets for part in ('mean', 'max'))


def user_rewards(
  predictions: Float[np.ndarray, 'U G X'], mask: Bool[np.ndarray, 'U G']
) -> Float[np.ndarray, 'U columns']:
  """Mean and best reward of every user's sessions, per target.

    mean_x = mean_g r_x(S_g),  max_x = max_g r_x(S_g)

  The best session of one target need not be the best of another.

  Args:
    predictions: rewards of G sessions; anything where masked. [U, G, X]
    mask: True: the session is legal. [U, G]

  Returns:
    Mean and max of target 0, of target 1 and so on (`column_names`); NaN for
    users without a legal session. [U, 2 X]
  Raises:
    ValueError: a legal session has no finite reward.
  Reference: 2502.18965, table 1; what mean and max run over is our reading.
  """
  bad = mask & ~np.isfinite(predictions).all(axis=2)
  if bad.any():
    user, session = np.argwhere(bad)[0]
    raise ValueError(
      f'{bad.sum()} of {mask.sum()} legal sessions have a reward that is not'
      f' finite, first: session {session} of row {user},'
      f' {predictions[user, session].tolist()}. Check the reward model: its'
      ' training loss, and that it is scored on the IDs it was trained with.'
    )
  if not mask.shape[1]:
    return np.full((len(mask), 2 * predictions.shape[2]), np.nan)
  legal = mask[:, :, None]
  count = mask.sum(axis=1)[:, None]
  total = np.where(legal, predictions, 0).sum(axis=1, dtype=np.float64)
  best = np.where(legal, predictions, -np.inf).max(axis=1)
  both = np.stack([total / np.maximum(count, 1), best], axis=2)
  return np.where(count > 0, both.reshape(len(mask), -1), np.nan)


def summarize(
  values: Float[np.ndarray, 'U columns'],
  *,
  columns: Sequence[str],
  resamples: int,
  resample_users: int,
  bootstrap_samples: int,
  seed: int,
) -> Row:
  """Mean of every column, ± over random test resamples, and its interval.

    std = standard deviation (n - 1) of the means of `resamples` draws of
          `resample_users` users without replacement

  The interval resamples all users with replacement; it, not the ±, tells how
  certain the mean is.

  Args:
    values: rewards per user; rows of NaN are users without a session.
    columns: names of the columns.
    resamples: number of draws.
    resample_users: users of one draw, at most half of the users are taken:
      draws that share most of their users would hardly differ.
    bootstrap_samples: resamples of the interval.
    seed: the same seed draws the same users for the same U.

  Returns:
    Figures and counts; every figure is NaN if no user has a session.
  """
  _check_columns(values, columns)
  kept = values[~np.isnan(values).any(axis=1)]
  num_users = len(kept)
  drawn = min(resample_users, max(num_users // 2, 1))
  random = np.random.default_rng([seed, 0])
  means = np.full((resamples, len(columns)), np.nan)
  if num_users:
    for row in means:
      row[:] = kept[random.permutation(num_users)[:drawn]].mean(axis=0)
  std = (
    means.std(axis=0, ddof=1)
    if resamples > 1
    else np.full(len(columns), np.nan)
  )
  draws = bootstrap.resampled_means(kept, samples=bootstrap_samples, seed=seed)
  figures = {}
  for f, name in enumerate(columns):
    interval = bootstrap.interval_of(kept[:, f], draws[:, f])
    figures[name] = Summary(
      interval.mean, float(std[f]), interval.low, interval.high
    )
  return Row(
    figures=figures,
    num_users=num_users,
    num_without_session=len(values) - num_users,
    users_per_resample=drawn if num_users else 0,
  )


def compare(
  values: Float[np.ndarray, 'U columns'],
  # Other axis names: a mismatch gets the message below.
  base: Float[np.ndarray, 'base_users base_columns'],
  *,
  columns: Sequence[str],
  bootstrap_samples: int,
  seed: int,
) -> Comparison:
  """Differences to a base model over the users that both have sessions for.

  Args:
    values: rewards per user of the model; rows of NaN: no session.
    base: of the base model, the same users in the same order.
    columns: names of the columns.
    bootstrap_samples: resamples of users, drawn with both values.
    seed: of the resamples.

  Returns:
    Paired differences, model - base; NaN if the models share no user.
  Raises:
    ValueError: the models were judged on different numbers of users.
  """
  _check_columns(values, columns)
  if values.shape != base.shape:
    raise ValueError(
      f'Rewards of {values.shape} against a base of {base.shape} users and'
      ' columns: evaluate both on the same test users.'
    )
  both = ~(np.isnan(values).any(axis=1) | np.isnan(base).any(axis=1))
  differences = bootstrap.paired_differences(
    values[both], base[both], samples=bootstrap_samples, seed=seed
  )
  if not both.any():  # no draw is above zero, which is not support for below
    differences = [
      d._replace(share_above_zero=float('nan')) for d in differences
    ]
  return Comparison(
    dict(zip(columns, differences, strict=True)), int(both.sum())
  )


def summarize_methods(
  values: Mapping[str, Float[np.ndarray, 'U columns']],
  *,
  base: str,
  columns: Sequence[str],
  resamples: int,
  resample_users: int,
  bootstrap_samples: int,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Returns `summarize` and `compare` of every method as JSON-able figures.

  Args:
    values: name -> rewards per user, the same users for all.
    base: name that the others are compared to.
    columns, resamples, resample_users, bootstrap_samples, seed: as there.

  Returns:
    Name -> 'figures' and 'difference' by column, 'users', and
    'users_without_session' (or without the item, where items are judged).
  """
  boot: dict[str, Any] = {
    'columns': columns,
    'bootstrap_samples': bootstrap_samples,
    'seed': seed,
  }
  result = {}
  for name, found in values.items():
    row = summarize(
      found, resamples=resamples, resample_users=resample_users, **boot
    )
    against = compare(found, values[base], **boot)
    result[name] = {
      'figures': {k: v._asdict() for k, v in row.figures.items()},
      'users': row.num_users,
      'users_without_session': row.num_without_session,
      'difference': {k: v._asdict() for k, v in against.differences.items()},
    }
  return result


def _check_columns(values: np.ndarray, columns: Sequence[str]) -> None:
  if values.shape[1] != len(columns):
    raise ValueError(
      f'{values.shape[1]} columns of rewards, but {len(columns)} names'
      f' {tuple(columns)}: pass column_names(targets) of the same targets.'
    )
