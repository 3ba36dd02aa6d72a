"""What any session is really worth in the simulated world, by its law.

Expected labels of sessions nobody has seen: the yardstick for alignment.
Reads no file and no log; the noise of the log is integrated out.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from scipy import special

from onerec_jax import config
from onerec_jax.data import synthetic

COLUMNS = ('watch_time', 'long_view', 'is_like', 'is_follow')
_NODES = 40  # Gauss-Hermite; exact to 1e-10 for a sigmoid of a unit normal
_LOG2_DRAWS = 10  # Sobol points: off by 2e-4 (watch time), 2e-3 (counts)
_VALUES_AT_ONCE = 2**22  # bounds memory


class SessionFeedback(NamedTuple):
  """Expected feedback of each session; NaN where it has no item."""

  watch_time: Float[np.ndarray, ' n']  # seconds, summed over the items
  any_long_view: Float[np.ndarray, ' n']  # P(at least one)
  any_like: Float[np.ndarray, ' n']
  any_follow: Float[np.ndarray, ' n']
  long_view_share: Float[np.ndarray, ' n']  # of the items
  like_share: Float[np.ndarray, ' n']
  follow_share: Float[np.ndarray, ' n']


def world_index(names: Sequence[str]) -> Int[np.ndarray, ' n']:
  """Rows of the world for names of the log: 'item12' or 'user12' is 12.

  Raises:
    ValueError: a name is not one of a simulated log.
  """
  rows = np.empty(len(names), np.int64)
  for place, name in enumerate(names):
    digits = name.removeprefix('item').removeprefix('user')
    if digits == name or not (digits.isascii() and digits.isdigit()):
      raise ValueError(
        f"{name!r} is no item or user of the simulated world ('item12',"
        " 'user12'): the true reward is known with data.source='synthetic'"
        ' only.'
      )
    rows[place] = int(digits)
  return rows


# --- One item ---------------------------------------------------------------


def expected_value(
  world: synthetic.World,
  users: Int[np.ndarray, ' n'],
  items: Int[np.ndarray, 'n m'],
  *,
  column: str,
) -> Float[np.ndarray, 'n m']:
  """Expected feedback of a user on an item.

    watch_time: E[σ(a + N(0, 1))] · duration (seconds);  long_view: Φ(a)
    is_like, is_follow: their probabilities

  Args:
    world: hidden state.
    users: rows of the world. [n]
    items: rows of the world. [n, m]
    column: one of `COLUMNS`.
  """
  return moments(world, users, items, column)[0]


def event_probability(
  world: synthetic.World,
  users: Int[np.ndarray, ' n'],
  items: Int[np.ndarray, 'n m'],
  *,
  column: str,
  threshold: float,
) -> Float[np.ndarray, 'n m']:
  """P(v > threshold) for the feedback v of a user on an item.

    watch_time: Φ(a - logit(threshold / duration)) inside (0, duration)
    others: v is 0 or 1

  Args: as `expected_value`.
  """
  if column == 'watch_time':
    share = np.clip(threshold / world.duration[items], 0, 1)
    # logit is -inf and inf at the ends: probabilities 1 and 0.
    return special.ndtr(_affinity(world, users, items) - special.logit(share))
  probability = expected_value(world, users, items, column=column)
  if threshold < 0:
    return np.ones_like(probability)
  return probability if threshold < 1 else np.zeros_like(probability)


def _affinity(
  world: synthetic.World, users: np.ndarray, items: np.ndarray
) -> np.ndarray:
  flat = synthetic.affinity(
    world, np.repeat(users, items.shape[1]), items.reshape(-1)
  )
  return flat.reshape(items.shape)


def moments(
  world: synthetic.World, users: np.ndarray, items: np.ndarray, column: str
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and variance of the feedback of each user on each item."""
  liking = _affinity(world, users, items)
  match column:
    case 'watch_time':
      mean, square = np.zeros_like(liking), np.zeros_like(liking)
      nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
      for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        share = special.expit(liking + node)
        mean += weight * share
        square += weight * share**2
      duration = world.duration[items]
      return mean * duration, (square - mean**2) * duration**2
    case 'long_view':
      mean = special.ndtr(liking)
    case 'is_like':
      mean = synthetic.like_probability(liking.reshape(-1))
    case 'is_follow':
      mean = synthetic.follow_probability(liking.reshape(-1))
    case _:
      raise ValueError(
        f'The simulated world has no feedback column {column!r}; there are'
        f' {COLUMNS}.'
      )
  mean = mean.reshape(items.shape)
  return mean, mean * (1 - mean)


# --- Sessions ---------------------------------------------------------------


def session_feedback(
  world: synthetic.World,
  users: Int[np.ndarray, ' n'],
  items: Int[np.ndarray, 'n m'],
  mask: Bool[np.ndarray, 'n m'],
) -> SessionFeedback:
  """Expected feedback of sessions; exact, as items are independent.

    any = 1 - Π_i (1 - p_i),  share = mean_i p_i

  Args:
    world: hidden state.
    users: rows of the world. [n]
    items: rows of the world; anything in range where masked. [n, m]
    mask: True: the item belongs to the session. [n, m]
  """
  watch_time, long_view, like, follow = (
    expected_value(world, users, items, column=column) for column in COLUMNS
  )
  total = np.where(mask, watch_time, 0).sum(axis=1)
  return SessionFeedback(
    watch_time=np.where(mask.any(axis=1), total, np.nan),
    any_long_view=_any(long_view, mask),
    any_like=_any(like, mask),
    any_follow=_any(follow, mask),
    long_view_share=_share(long_view, mask),
    like_share=_share(like, mask),
    follow_share=_share(follow, mask),
  )


def true_reward(
  world: synthetic.World,
  users: Int[np.ndarray, ' n'],
  items: Int[np.ndarray, 'n m'],
  mask: Bool[np.ndarray, 'n m'],
  *,
  targets: Sequence[config.RewardTarget],
  quantiles: Mapping[str, float | None],
) -> Float[np.ndarray, 'n X']:
  """Expectation of exactly the labels that the reward model learns.

  'any' and 'mean' are exact; 'saturating_sum', E[min(1, Σ v / q)], is
  integrated over 1,024 fixed Sobol points, the same for all sessions (off by
  2e-4 for watch time, 2e-3 for counts, and less in differences).

  Args:
    world, users, items, mask: as `session_feedback`.
    targets: labels wanted.
    quantiles: q by the name of the target; needed for 'saturating_sum'.

  Returns:
    One column per target, in 0..1; NaN for sessions without an item. [n, X]
  Raises:
    ValueError: a column is unknown or a quantile is missing.
  """
  columns = []
  for target in targets:
    if target.label == 'saturating_sum':
      column = _saturating_sum(
        world, users, items, mask, target.column, quantile_of(target, quantiles)
      )
    else:
      probability = event_probability(
        world, users, items, column=target.column, threshold=target.threshold
      )
      combine = _any if target.label == 'any' else _share
      column = combine(probability, mask)
    columns.append(column)
  return np.stack(columns, axis=1)


def _any(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
  none = np.prod(np.where(mask, 1 - probability, 1), axis=1)
  return np.where(mask.any(axis=1), 1 - none, np.nan)


def _share(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
  count = mask.sum(axis=1)
  total = np.where(mask, probability, 0).sum(axis=1)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _saturating_sum(
  world: synthetic.World,
  users: np.ndarray,
  items: np.ndarray,
  mask: np.ndarray,
  column: str,
  quantile: float,
) -> np.ndarray:
  # Imported late: a tenth of the start of every command.
  from scipy.stats import qmc

  length = items.shape[1]
  points = qmc.Sobol(d=length, rng=0).random_base2(_LOG2_DRAWS)
  # Scrambled points may be 0, a normal variate of -inf.
  points = np.clip(points, 1e-9, 1 - 1e-9)[None]  # [1, draws, m]
  result = np.empty(len(users))
  step = max(1, _VALUES_AT_ONCE // points.size)
  for first in range(0, len(users), step):
    part = slice(first, first + step)
    if column == 'watch_time':
      liking = _affinity(world, users[part], items[part])[:, None]
      values = special.expit(liking + special.ndtri(points))
      values = values * world.duration[items[part]][:, None]
    else:
      expected = expected_value(world, users[part], items[part], column=column)
      values = (points < expected[:, None]).astype(np.float64)
    total = np.where(mask[part][:, None], values, 0).sum(axis=2)
    result[part] = np.minimum(1, total / quantile).mean(axis=1)
  return np.where(mask.any(axis=1), result, np.nan)


def quantile_of(
  target: config.RewardTarget, quantiles: Mapping[str, float | None]
) -> float:
  quantile = quantiles.get(target.name)
  if quantile is None or not quantile > 0:
    raise ValueError(
      f"Target {target.name!r} has label 'saturating_sum', but its quantile is"
      f' {quantile}; known: {dict(quantiles)}. Take the quantiles that the'
      ' stage reward fitted.'
    )
  return quantile
