"""From reward predictions of candidate sessions to preference pairs.

Scalar rewards per user, then best and worst of the user's own candidates.
Pure array functions that can be jitted: no model, no sampling, no I/O.
"""

import enum
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

# Predictions that differ by less, relative to the largest, are float32
# rounding of the reward model's sums: standardising would make it the reward.
_CONSTANT = 1e-6


class PairReason(enum.IntEnum):
  """Why a user has a pair, or none; the first that applies."""

  OK = 0
  TOO_FEW_CANDIDATES = 1  # fewer legal ones than a pair needs
  NOT_FINITE = 2  # a legal candidate's reward is NaN or infinite
  SAME_SESSION = 3  # a rejected session has the chosen one's items, in order
  EQUAL_REWARDS = 4  # a rejected reward is within min_gap of the chosen one


class PairChoice(NamedTuple):
  """Chosen and rejected candidates of every user."""

  # Place 0: chosen; then the rejected, worst first.  In range where not valid.
  indices: Int[Array, 'B chosen_and_rejected']
  valid: Bool[Array, ' B']
  reason: Int[Array, ' B']  # PairReason; OK exactly where valid


def aggregate_rewards(
  predictions: Float[Array, 'B W X'],
  mask: Bool[Array, 'B W'],
  *,
  weights: tuple[float, ...],
  kind: Literal['zscore_sum', 'sum', 'product'],
) -> Float[Array, 'B W']:
  """Scalar reward of every candidate session.

    zscore_sum:  R = Σ_x ω_x (r_x - mean_x) / std_x
    sum:         R = Σ_x ω_x r_x
    product:     R = Π_x r_x^ω_x

  Mean and population std of a target are over the user's own candidates; a
  target on which they agree contributes 0.

  Args:
    predictions: r of X targets, in 0..1; anything where masked. [B, W, X]
    mask: True: the candidate is legal. [B, W]
    weights: ω of the X targets.
    kind: as above.

  Returns:
    Rewards; -inf where masked, so that a masked candidate is never the best
    and spoils any mean it slips into. [B, W]
  Raises:
    ValueError: the number of weights is not the number of targets.
  Reference: our choice; 2502.18965, section 3.3.1, does not say how R follows
  from the targets.
  """
  if len(weights) != predictions.shape[-1]:
    raise ValueError(
      f'{len(weights)} weights for {predictions.shape[-1]} predicted targets:'
      ' give one weight per target of reward_model.targets.'
    )
  omega = jnp.asarray(weights, jnp.float32)[None, None, :]
  legal = mask[..., None]
  r = jnp.where(legal, predictions.astype(jnp.float32), 0)
  match kind:
    case 'zscore_sum':
      rewards = jnp.sum(omega * _standardise(r, legal), axis=-1)
    case 'sum':
      rewards = jnp.sum(omega * r, axis=-1)
    case 'product':
      rewards = jnp.prod(r**omega, axis=-1)
  return jnp.where(mask, rewards, -jnp.inf)


def _standardise(r: jax.Array, legal: jax.Array) -> jax.Array:
  """(r - mean) / std over the legal candidates; 0 where they agree."""
  count = jnp.maximum(jnp.sum(legal, axis=1, keepdims=True), 1)
  centred = jnp.where(legal, r - jnp.sum(r, axis=1, keepdims=True) / count, 0)
  std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / count)
  largest = jnp.max(jnp.abs(r), axis=1, keepdims=True, initial=0)
  varies = std > _CONSTANT * largest
  return jnp.where(varies, centred / jnp.where(varies, std, 1), 0)


def choose_pairs(
  rewards: Float[Array, 'B W'],
  legal: Bool[Array, 'B W'],
  sessions: Int[Array, 'B W *session'],
  *,
  num_rejected: int,
  min_gap: float,
) -> PairChoice:
  """Chooses the best session of every user, and the worst ones against it.

    chosen = argmax R;  rejected = the num_rejected lowest R of the others

  Ties go to the first candidate.  Sessions are the same if they have the same
  items in the same order; another order is another session.

  Args:
    rewards: scalar rewards; anything where not legal. [B, W]
    legal: True: the candidate may enter a pair. [B, W]
    sessions: items, or codes, of every candidate. [B, W, M] or [B, W, M, L]
    num_rejected: rejected sessions per pair, at least 1.
    min_gap: reward that the chosen session must have over each rejected one,
      >= 0.

  Returns:
    Places of the pair's sessions, whether there is one, and why not.
  Raises:
    ValueError: num_rejected or min_gap is out of range.
  Reference: 2502.18965, algorithm 2 ("self-hard" negatives); min_gap is ours.
  """
  batch, width = rewards.shape
  if not 1 <= num_rejected < width:
    raise ValueError(
      f'num_rejected={num_rejected} must lie in 1..{width - 1}: {width}'
      ' candidates per user hold one chosen session and the rejected ones.'
      ' Raise preference.rollout.num_beams or lower preference.num_rejected.'
    )
  if min_gap < 0:
    raise ValueError(f'min_gap={min_gap} must not be negative.')
  chosen = jnp.argmax(jnp.where(legal, rewards, -jnp.inf), axis=1)
  others = legal & (jnp.arange(width)[None, :] != chosen[:, None])
  order = jnp.argsort(jnp.where(others, rewards, jnp.inf), axis=1, stable=True)
  rejected = order[:, :num_rejected]

  best = jnp.take_along_axis(rewards, chosen[:, None], axis=1)
  gap = best - jnp.take_along_axis(rewards, rejected, axis=1)
  flat = sessions.reshape(batch, width, -1)
  winner = jnp.take_along_axis(flat, chosen[:, None, None], axis=1)
  losers = jnp.take_along_axis(flat, rejected[:, :, None], axis=1)
  same = jnp.all(winner == losers, axis=2)

  reason = jnp.select(
    [
      jnp.sum(legal, axis=1) < 1 + num_rejected,
      jnp.any(legal & ~jnp.isfinite(rewards), axis=1),
      jnp.any(same, axis=1),
      # A gap of exactly 0 is no preference, whatever min_gap is.
      jnp.any((gap < min_gap) | (gap <= 0), axis=1),
    ],
    [
      jnp.full((batch,), int(r), jnp.int32)
      for r in (
        PairReason.TOO_FEW_CANDIDATES,
        PairReason.NOT_FINITE,
        PairReason.SAME_SESSION,
        PairReason.EQUAL_REWARDS,
      )
    ],
    jnp.full((batch,), int(PairReason.OK), jnp.int32),
  )
  indices = jnp.concatenate([chosen[:, None], rejected], axis=1)
  return PairChoice(
    indices.astype(jnp.int32), reason == int(PairReason.OK), reason
  )
