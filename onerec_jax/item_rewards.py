"""From scores of generated items to the rewards of their groups.

Plain NumPy functions of generated items that compose: what an item earned,
then what is suppressed, and which outputs the format reward looks at.  Knows
no model and reads no file; item -1 is an output that earns nothing.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Float32
from jaxtyping import Int

from onerec_jax import config

# --- Scores -----------------------------------------------------------------


def earned(
  scores: Float[np.ndarray, 'P G'], items: Int[np.ndarray, 'P G']
) -> Float32[np.ndarray, 'P G']:
  """Returns the score of every item, 0 where there is no item.

  Args:
    scores: anything where there is no item. [P, G]
    items: dense; -1: an illegal output, or one that is not to be shown.

  Raises:
    ValueError: an item has no finite score.
  """
  shown = items >= 0
  bad = shown & ~np.isfinite(scores)
  if bad.any():
    user, place = np.argwhere(bad)[0]
    raise ValueError(
      f'{bad.sum()} of {shown.sum()} generated items have a score that is not'
      f' finite, first: item {items[user, place]} of row {user},'
      f' {scores[user, place]}. Look at the loss of the stage `p_score`, and'
      ' that it knows the same items.'
    )
  return np.where(shown, scores, 0).astype(np.float32)


def distinct_items(items: Int[np.ndarray, 'P G']) -> Int[np.ndarray, ' P']:
  """Returns how many different items each group holds.

  Args:
    items: dense; -1: none. [P, G]
  """
  ranked = np.sort(items, axis=1)
  new = np.ones(ranked.shape, bool)
  new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
  return (new & (ranked >= 0)).sum(axis=1)


# --- Format reward ----------------------------------------------------------


def choose_format_samples(
  log_probs: Float[np.ndarray, 'P G'],
  present: Bool[np.ndarray, 'P G'],
  *,
  count: int,
  choice: Literal['random', 'top'],
  numbers: Int[np.ndarray, ' P'],
  key: tuple[int, ...],
) -> Bool[np.ndarray, 'P G']:
  """Returns which outputs the format reward looks at: K of each group.

  At random, each user's own draw, whoever else is in the batch; or the most
  probable ones, which the report found to make only those legal.

  Args:
    log_probs: of whole outputs, nats; read for 'top' only. [P, G]
    present: False: there is no output. [P, G]
    count: K; a group with fewer outputs gives all.
    choice: how.
    numbers: what tells the groups of a run apart, >= 0. [P]
    key: names the random stream, e.g. (seed, 3).

  Reference: OneRec technical report, arXiv:2506.13695, §2.4.2 and §4.3.2.
  """
  if choice == 'top':
    # Negated, so that equal ones keep their order.
    rank = -log_probs
  else:
    rank = _random_bits(numbers, present.shape[1], key)
  order = np.lexsort((rank, ~present), axis=1)[:, :count]
  chosen = np.zeros(present.shape, bool)
  np.put_along_axis(chosen, order, True, axis=1)
  return chosen & present


def _random_bits(
  numbers: np.ndarray, width: int, key: tuple[int, ...]
) -> np.ndarray:
  """Returns 64-bit words that depend on key, number and place only."""
  words = np.random.SeedSequence(key).generate_state(2, np.uint64)
  # Raw words: NumPy may change its distributions, not its bit generators.
  rows = [
    np.random.Philox(counter=[0, 0, 0, int(n)], key=words).random_raw(width)
    for n in numbers
  ]
  return np.array(rows, np.uint64).reshape(len(numbers), width)


# --- Industrial reward ------------------------------------------------------


def suppressed_items(
  categories: Sequence[Sequence[str]], names: Sequence[str]
) -> Bool[np.ndarray, ' I']:
  """Returns which items have one of the named categories.

  Args:
    categories: of each item.
    names: reinforcement.industrial.categories.

  Raises:
    ValueError: no item has a named category.
  """
  wanted = set(names)
  missing = wanted - {c for item in categories for c in item}
  if missing:
    raise ValueError(
      f'reinforcement.industrial.categories names {sorted(missing)}, which no'
      ' item has. Take names of the column `categories` in items.parquet.'
    )
  return np.array([not wanted.isdisjoint(c) for c in categories], bool)


class Suppressed(NamedTuple):
  """Rewards after the suppression of a class of items."""

  rewards: Float32[np.ndarray, 'P G']
  share: Float[np.ndarray, ' P']  # of the class, up to and with each group
  active: Bool[np.ndarray, ' P']  # the share was too high


def suppress(
  rewards: Float32[np.ndarray, 'P G'],
  items: Int[np.ndarray, 'P G'],
  *,
  is_suppressed: Bool[np.ndarray, ' I'],
  before: Bool[np.ndarray, ' W'],
  settings: config.IndustrialRewardConfig,
) -> tuple[Suppressed, Bool[np.ndarray, ' V']]:
  """Lowers the rewards of a class of items while there are too many of them.

    r'_i = α r_i  for i in the class, where its share of the last `window`
                  generated items, up to and with this group, exceeds f
    r'_i = r_i    otherwise

  The share is judged once per group, so that all its items are treated alike
  and the number of users per call does not matter.

  Args:
    rewards: r. [P, G]
    items: dense; -1: none, not counted. [P, G]
    is_suppressed: the class. [I]
    before: whether the items generated before were of the class, oldest
      first. [W]
    settings: f, α and the window.

  Returns:
    The rewards, and `before` for the next call (at most the window).
  Reference: OneRec technical report, arXiv:2506.13695, §4.3.3; the window is
  our choice.
  """
  shown = items >= 0
  hit = shown & is_suppressed[np.maximum(items, 0)]
  flags = np.concatenate([before, hit[shown]])
  upto = np.concatenate([[0], np.cumsum(flags)])
  end = len(before) + np.cumsum(shown.sum(axis=1))
  begin = np.maximum(end - settings.window, 0)
  share = (upto[end] - upto[begin]) / np.maximum(end - begin, 1)
  active = share > settings.target_share
  factor = np.where(hit & active[:, None], settings.factor, 1)
  lowered = (rewards * factor).astype(np.float32)
  return Suppressed(lowered, share, active), flags[-settings.window :]


class IndustrialReward:
  """`suppress` with its window, which goes with a run's state."""

  def __init__(
    self,
    is_suppressed: Bool[np.ndarray, ' I'],
    settings: config.IndustrialRewardConfig,
  ):
    if not (0 < settings.factor <= 1 and settings.window > 0):
      raise ValueError(
        f'reinforcement.industrial.factor={settings.factor} must lie in (0, 1]'
        f' and reinforcement.industrial.window={settings.window} be positive.'
      )
    self._is_suppressed = is_suppressed
    self._settings = settings
    self._before = np.zeros(0, bool)

  def __call__(
    self,
    rewards: Float32[np.ndarray, 'P G'],
    items: Int[np.ndarray, 'P G'],
  ) -> Suppressed:
    """Returns `suppress` and remembers the items."""
    found, self._before = suppress(
      rewards,
      items,
      is_suppressed=self._is_suppressed,
      before=self._before,
      settings=self._settings,
    )
    return found

  def get_state(self) -> dict[str, Any]:
    """Returns the window; JSON-able."""
    return {
      'count': len(self._before),
      'flags': np.packbits(self._before).tobytes().hex(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from `get_state`."""
    packed = np.frombuffer(bytes.fromhex(state['flags']), np.uint8)
    self._before = np.unpackbits(packed)[: state['count']].astype(bool)


# --- Pass@K ------------------------------------------------------------------


def pass_columns(
  targets: Sequence[str], pass_at: Sequence[int]
) -> tuple[str, ...]:
  """Returns the columns of `pass_at_values`, e.g. ltr_mean and ltr_pass@8."""
  return tuple(
    f'{name}{part}'
    for name in targets
    for part in ('_mean', *(f'_pass@{k}' for k in pass_at))
  )


def pass_at_values(
  rewards: Float[np.ndarray, 'U K X'],
  legal: Bool[np.ndarray, 'U K'],
  *,
  pass_at: Sequence[int],
) -> Float[np.ndarray, 'U columns']:
  """Returns the mean over all K items and the best of the first k of them.

    mean_x = mean_i r_x(i),   x@k = max_{i ≤ k} r_x(i)

  Illegal items count in no mean and no maximum; a user without a legal item
  among the first k gets NaN.

  Reference: 2506.13695, table 4 (Pass@K); the maximum is our reading of it.
  """
  shown = np.where(legal[..., None], rewards, np.nan)
  counted = np.where(legal[..., None], rewards, 0.0)
  number = legal.sum(axis=1)[:, None]
  parts = [
    np.where(number > 0, counted.sum(axis=1) / np.maximum(number, 1), np.nan)
  ]
  for k in pass_at:
    best = np.where(np.isnan(shown[:, :k]), -np.inf, shown[:, :k]).max(axis=1)
    parts.append(np.where(np.isfinite(best), best, np.nan))
  stacked = np.stack(parts, axis=-1)  # [U, X, 1 + len(pass_at)]
  return stacked.reshape(len(rewards), -1)
