"""How sure a mean over users is: bootstrap intervals and paired differences.

In NumPy; the same seed draws the same users.  Pure functions: no files, no
model, no JAX.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_RESAMPLES_AT_ONCE = 64  # bounds memory: 64 x users int64 counts


class Interval(NamedTuple):
  """A mean with the bounds of its bootstrap interval."""

  mean: float
  low: float
  high: float


class PairedDifference(NamedTuple):
  """Mean of a - b over the same users, its interval and its sign's support."""

  mean: float
  low: float
  high: float
  share_above_zero: float  # of the resampled means; ties count one half


def resampled_means(
  values: Float[np.ndarray, 'B F'], *, samples: int, seed: int
) -> Float[np.ndarray, 'samples F']:
  """Means of `samples` resamples of the rows, drawn with replacement.

  All columns share each resample: differences of columns are paired.

  Args:
    values: one row per user, one column per figure. [B, F]
    samples: number of resamples.
    seed: the same seed gives the same resamples for the same B.
  """
  num_users = values.shape[0]
  if num_users == 0:
    return np.full((samples, values.shape[1]), np.nan)
  rng = np.random.default_rng(seed)
  means = []
  for start in range(0, samples, _RESAMPLES_AT_ONCE):
    rows = min(_RESAMPLES_AT_ONCE, samples - start)
    drawn = rng.integers(num_users, size=(rows, num_users))
    drawn += np.arange(rows)[:, None] * num_users
    counts = np.bincount(drawn.reshape(-1), minlength=rows * num_users)
    counts = counts.reshape(rows, num_users).astype(np.float64)
    means.append(counts @ values / num_users)
  return np.concatenate(means)


def interval(
  values: Float[np.ndarray, ' B'],
  *,
  samples: int,
  seed: int,
  level: float = 0.95,
) -> Interval:
  """Mean of `values` and its percentile bootstrap interval."""
  draws = resampled_means(values[:, None], samples=samples, seed=seed)[:, 0]
  return interval_of(values, draws, level=level)


def interval_of(
  values: Float[np.ndarray, ' B'],
  draws: Float[np.ndarray, ' samples'],
  *,
  level: float = 0.95,
) -> Interval:
  """Mean of `values` with the percentiles of its resampled means `draws`."""
  if values.size == 0:
    return Interval(float('nan'), float('nan'), float('nan'))
  tail = (1 - level) / 2
  low, high = np.quantile(draws, [tail, 1 - tail])
  return Interval(float(values.mean()), float(low), float(high))


def paired_differences(
  a: Float[np.ndarray, 'B F'],
  b: Float[np.ndarray, 'B F'],
  *,
  samples: int,
  seed: int,
  level: float = 0.95,
) -> list[PairedDifference]:
  """Bootstrap of mean(a - b) per column; users are drawn with both values.

  Args:
    a, b: one row per user (the same users), one column per figure. [B, F]
    samples, seed: as `resampled_means`.
    level: coverage of the interval.
  """
  difference = a - b
  draws = resampled_means(difference, samples=samples, seed=seed)
  support = np.mean(draws > 0, axis=0) + np.mean(draws == 0, axis=0) / 2
  return [
    PairedDifference(
      *interval_of(difference[:, f], draws[:, f], level=level),
      share_above_zero=float(support[f]),
    )
    for f in range(difference.shape[1])
  ]
