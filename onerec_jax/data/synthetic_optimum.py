"""The best session of a user of the simulated world, item by item.

Judges by the law of the world (`synthetic_rewards`), not by a log.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int
from scipy import special

from onerec_jax import config
from onerec_jax.data import synthetic
from onerec_jax.data import synthetic_rewards

_USERS_AT_ONCE = 256  # bounds memory


def best_sessions(
  world: synthetic.World,
  users: Int[np.ndarray, ' n'],
  *,
  num_items: int,
  targets: Sequence[config.RewardTarget],
  quantiles: Mapping[str, float | None],
  exclude: Bool[np.ndarray, 'n I'] | None = None,
) -> Int[np.ndarray, 'n m']:
  """The session of every user with the largest Σ_x ω_x E[label_x].

  Items are added one by one, each the one that raises the sum most.  That is
  the optimum
    - for 'mean' labels of any column: they add up over items;
    - for 'any' and 'mean' labels of long_view, is_like and is_follow: all of
      them rise with the affinity, so the items of largest affinity are best
      for each;
    - for one 'any' label of watch_time.
  Otherwise (a 'saturating_sum', or watch_time, which trades duration against
  affinity, among other labels) it is a very good session, within about 1 % of
  the optimum; sums are judged as if they were normal.

  Args:
    world: hidden state.
    users: rows of the world. [n]
    num_items: items per session (m).
    targets: labels and their weights ω, >= 0.
    quantiles: as `synthetic_rewards.true_reward`.
    exclude: True: not to be shown to the user; None: all may be. [n, I]

  Returns:
    Rows of the world, first the item chosen first. [n, m]
  Raises:
    ValueError: a user has fewer than num_items items left.
  """
  count = len(world.cluster)
  if exclude is None:
    exclude = np.zeros((len(users), count), bool)
  left = int((~exclude).sum(axis=1).min(initial=count))
  if left < num_items:
    raise ValueError(
      f'A user has {left} items left of {count}, fewer than the {num_items} of'
      ' a session: raise data.synthetic.num_items.'
    )
  chosen = np.empty((len(users), num_items), np.int64)
  for first in range(0, len(users), _USERS_AT_ONCE):
    part = slice(first, first + _USERS_AT_ONCE)
    chosen[part] = _greedy(
      world, users[part], exclude[part], num_items, targets, quantiles
    )
  return chosen


def _greedy(
  world: synthetic.World,
  users: np.ndarray,
  exclude: np.ndarray,
  num_items: int,
  targets: Sequence[config.RewardTarget],
  quantiles: Mapping[str, float | None],
) -> np.ndarray:
  rows = np.arange(len(users))
  every = np.tile(np.arange(exclude.shape[1]), (len(users), 1))
  parts = [_Part(world, users, every, t, num_items, quantiles) for t in targets]
  taken = exclude.copy()
  chosen = np.empty((len(users), num_items), np.int64)
  for place in range(num_items):
    score = np.zeros(every.shape)
    for part in parts:
      score += part.with_each()
    chosen[:, place] = np.where(taken, -np.inf, score).argmax(axis=1)
    taken[rows, chosen[:, place]] = True
    for part in parts:
      part.add(chosen[:, place])
  return chosen


class _Part:
  """One target's share of the reward while a session grows."""

  def __init__(
    self,
    world: synthetic.World,
    users: np.ndarray,
    items: np.ndarray,
    target: config.RewardTarget,
    num_items: int,
    quantiles: Mapping[str, float | None],
  ):
    self._target = target
    self._num_items = num_items
    if target.label == 'saturating_sum':
      self._quantile = synthetic_rewards.quantile_of(target, quantiles)
      self._mean, self._variance = synthetic_rewards.moments(
        world, users, items, target.column
      )
    else:
      self._quantile = 1.0
      self._mean = synthetic_rewards.event_probability(
        world, users, items, column=target.column, threshold=target.threshold
      )
      self._variance = np.zeros_like(self._mean)
    self._sum = np.zeros((len(users), 1))
    self._sum_variance = np.zeros((len(users), 1))
    self._none = np.ones((len(users), 1))  # P(no event yet)

  def with_each(self) -> np.ndarray:
    """Returns ω · label if the item came next, for every item. [n, I]"""
    match self._target.label:
      case 'any':
        label = 1 - self._none * (1 - self._mean)
      case 'mean':
        label = (self._sum + self._mean) / self._num_items
      case 'saturating_sum':
        label = _capped_normal_mean(
          (self._sum + self._mean) / self._quantile,
          np.sqrt(self._sum_variance + self._variance) / self._quantile,
        )
    return self._target.weight * label

  def add(self, items: np.ndarray) -> None:
    self._none *= 1 - np.take_along_axis(self._mean, items[:, None], axis=1)
    self._sum += np.take_along_axis(self._mean, items[:, None], axis=1)
    self._sum_variance += np.take_along_axis(
      self._variance, items[:, None], axis=1
    )


def _capped_normal_mean(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
  """E[min(1, N(mean, std²))] = mean - (mean - 1) Φ(z) - std φ(z)."""
  z = (mean - 1) / np.maximum(std, 1e-12)
  density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
  return mean - (mean - 1) * special.ndtr(z) - std * density
