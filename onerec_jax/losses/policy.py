"""Clipped policy objectives on groups of outputs: GRPO, ECPO, GBPO.

Arrays in, one float32 term per output out, to be *maximised*; nothing is
reduced over users, no batch, no model.  Old and reference policies are
constants: no gradient reaches them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax import config

_MAX_LOG_RATIO = 20.0  # nats; e^20 = 5e8 is far inside float32
_MIN_STD = 1e-6  # groups whose rewards spread less teach nothing


# --- Advantages -------------------------------------------------------------


class Advantages(NamedTuple):
  """How much better than its group every output is."""

  values: Float[Array, 'P G']  # 0 where not counted, and without spread
  std: Float[Array, ' P']  # of the counted rewards
  has_spread: Bool[Array, ' P']  # False: all rewards of the group are equal


def group_advantages(
  rewards: Float[Array, 'P G'], counted: Bool[Array, 'P G']
) -> Advantages:
  """Returns the rewards standardised within each group.

    A_i = (r_i - mean(r)) / std(r),  0 where std(r) < 1e-6

  std is the population's (divided by the number, not by one less): our choice,
  the papers do not say.  Nothing is added to it: the threshold alone keeps the
  quotient finite.

  Args:
    rewards: of the outputs; anything where not counted. [P, G]
    counted: False: not in the group. [P, G]

  Reference: Shao et al. 2024, arXiv:2402.03300, §4.1.2.
  """
  rewards = jnp.where(counted, rewards.astype(jnp.float32), 0)
  count = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1)
  mean = jnp.sum(rewards, axis=1, keepdims=True) / count
  centred = jnp.where(counted, rewards - mean, 0)
  std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / count)
  has_spread = std >= _MIN_STD
  values = jnp.where(has_spread, centred / jnp.where(has_spread, std, 1), 0)
  return Advantages(jax.lax.stop_gradient(values), std[:, 0], has_spread[:, 0])


# --- Terms ------------------------------------------------------------------


def log_ratio(
  log_probs: Float[Array, '*shape'], old_log_probs: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Returns log ρ = log π - log π_old, within ±20 nats.

  Args:
    log_probs: log π, of whole outputs or of single codes, nats.
    old_log_probs: log π_old of the same; a constant.
  """
  difference = _float32(log_probs) - _constant(old_log_probs)
  return jnp.clip(difference, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def grpo_terms(
  log_probs: Float[Array, '*shape'],
  old_log_probs: Float[Array, '*shape'],
  advantages: Float[Array, '*shape'],
  *,
  clip: float,
) -> Float[Array, '*shape']:
  """Group-relative policy optimisation, without its KL penalty.

    term = min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)

  Where A < 0 and ρ is large, the gradient by log π is ρ A: without bound.

  Args:
    log_probs: log π of outputs (or codes), nats.
    old_log_probs: log π_old of the policy that generated them.
    advantages: A.
    clip: ε, in (0, 1).

  Reference: Shao et al. 2024, arXiv:2402.03300, eq. 3.
  """
  _check_clip(clip)
  return _clipped(log_ratio(log_probs, old_log_probs), advantages, clip)


def ecpo_terms(
  log_probs: Float[Array, '*shape'],
  old_log_probs: Float[Array, '*shape'],
  advantages: Float[Array, '*shape'],
  *,
  clip: float,
  early_clip: float,
) -> Float[Array, '*shape']:
  """Early-clipped GRPO.

    term  = min(ρ' A, clip(ρ', 1 - ε, 1 + ε) A),  ρ' = π / π'_old
    π'_old = max(sg(π) / (1 + ε + δ), π_old)

  The value of ρ' is min(ρ, 1 + ε + δ), its derivative by log π is ρ' for any
  ρ: a bad output (A < 0) that became likely is pushed down with a force of at
  most (1 + ε + δ) |A|.  For A > 0 it equals `grpo_terms`.

  Args:
    log_probs, old_log_probs, advantages, clip: as `grpo_terms`.
    early_clip: δ, > 0.

  Reference: OneRec technical report, arXiv:2506.13695, §2.4.1.
  """
  _check_clip(clip)
  if not early_clip > 0:
    raise ValueError(
      f'early_clip={early_clip} must be positive. Set'
      ' reinforcement.early_clip, e.g. to 0.1.'
    )
  limit = jnp.log1p(jnp.float32(clip + early_clip))
  log_probs, old = _float32(log_probs), _constant(old_log_probs)
  difference = log_probs - old
  # Written out, since log π - (sg(log π) - limit) would lose the limit to
  # rounding; what is left of log π is 0, with a gradient of 1.
  early = limit + (log_probs - jax.lax.stop_gradient(log_probs))
  difference = jnp.where(difference > limit, early, difference)
  difference = jnp.maximum(difference, -_MAX_LOG_RATIO)
  return _clipped(difference, advantages, clip)


def gbpo_terms(
  log_probs: Float[Array, '*shape'],
  old_log_probs: Float[Array, '*shape'],
  advantages: Float[Array, '*shape'],
) -> Float[Array, '*shape']:
  """Gradient-bounded policy optimisation: nothing is clipped.

    term = π / π'_old · A
    π'_old = max(π_old, sg(π))      where A >= 0
             max(π_old, 1 - sg(π))  where A < 0

  A bad output is pushed down as binary cross-entropy would, by at most
  π / (1 - π) |A|, which means something for single codes only: a whole
  output's π is tiny.

  Args:
    log_probs, old_log_probs, advantages: as `grpo_terms`, of codes.

  Reference: OneRec-V2, arXiv:2508.20900, §3.1.2.
  """
  old = _gbpo_old(log_probs, old_log_probs, advantages)
  return jnp.exp(log_ratio(log_probs, old)) * _constant(advantages)


def kl_penalty(
  log_probs: Float[Array, '*shape'], reference_log_probs: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Estimate of KL(π ‖ π_ref) from one output; never negative.

    π_ref / π - log(π_ref / π) - 1

  Args:
    log_probs: log π, nats.
    reference_log_probs: log π_ref; a constant.

  Reference: Shao et al. 2024, arXiv:2402.03300, eq. 4; Schulman 2020,
  "Approximating KL divergence", k3.
  """
  x = -log_ratio(log_probs, reference_log_probs)
  return jnp.expm1(x) - x


def _clipped(
  log_ratios: jax.Array, advantages: jax.Array, clip: float
) -> jax.Array:
  ratio, advantages = jnp.exp(log_ratios), _constant(advantages)
  bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
  return jnp.minimum(ratio * advantages, bounded * advantages)


def _gbpo_old(
  log_probs: jax.Array, old_log_probs: jax.Array, advantages: jax.Array
) -> jax.Array:
  """Returns log π'_old of GBPO, a constant."""
  now = jnp.minimum(_constant(log_probs), 0)  # log-softmax rounds above 0
  # log(1 - π), exact on both sides of one half; -inf at π = 1.
  complement = jnp.where(
    now > -0.7, jnp.log(-jnp.expm1(now)), jnp.log1p(-jnp.exp(now))
  )
  floor = jnp.where(advantages >= 0, now, complement)
  return jnp.maximum(_constant(old_log_probs), floor)


# --- The configured objective -----------------------------------------------


class PolicyTerms(NamedTuple):
  """The objective of every output, and what it did to the ratios.

  K is 1 where an output has one ratio, L where every code has its own.
  """

  terms: Float[Array, 'P G']  # to be maximised; without the penalty
  penalty: Float[Array, 'P G']  # KL to the reference; 0 unless grpo
  ratio: Float[Array, 'P G K']  # π / π_old
  kl: Float[Array, 'P G K']  # `kl_penalty` against π_old: how far it moved
  # True: too far in the wanted direction already, no gradient.
  clipped: Bool[Array, 'P G K']
  # True: π'_old is not π_old, among those with A < 0.
  early_clipped: Bool[Array, 'P G K']


def policy_terms(
  log_probs: Float[Array, 'P G L'],
  old_log_probs: Float[Array, 'P G L'],
  reference_log_probs: Float[Array, 'P G L'],
  advantages: Float[Array, 'P G'],
  *,
  settings: config.ReinforceConfig,
) -> PolicyTerms:
  """The configured objective of every output.

    sequence: one term per output, ρ = Π_l ρ_l
    token:    mean over its L codes of their terms, each with the output's A

  GBPO is always taken per code (see `gbpo_terms`).

  Args:
    log_probs: log π of every code given the codes before, nats. [P, G, L]
    old_log_probs: of the generator. [P, G, L]
    reference_log_probs: of the seed model; read by grpo with a penalty only.
    advantages: A of every output. [P, G]
    settings: loss, ε, δ, level.
  """
  three = (
    _float32(log_probs), _constant(old_log_probs),
    _constant(reference_log_probs),
  )  # fmt: skip
  if settings.ratio_level == 'sequence' and settings.loss != 'gbpo':
    three = tuple(jnp.sum(x, axis=2, keepdims=True) for x in three)
  now, old, reference = three
  spread = jnp.broadcast_to(advantages[..., None], now.shape)
  ratio = jnp.exp(jax.lax.stop_gradient(log_ratio(now, old)))
  high, low = 1 + settings.clip, 1 - settings.clip
  clipped = ((spread > 0) & (ratio > high)) | ((spread < 0) & (ratio < low))
  early = jnp.zeros(ratio.shape, bool)
  penalty = jnp.zeros(advantages.shape, jnp.float32)
  match settings.loss:
    case 'grpo':
      terms = grpo_terms(now, old, spread, clip=settings.clip)
      if settings.kl_weight:
        penalty = jnp.mean(kl_penalty(now, reference), axis=2)
    case 'ecpo':
      terms = ecpo_terms(
        now,
        old,
        spread,
        clip=settings.clip,
        early_clip=settings.early_clip,
      )
      early = ratio > high + settings.early_clip
    case 'gbpo':
      terms = gbpo_terms(now, old, spread)
      clipped = jnp.zeros(ratio.shape, bool)
      early = _gbpo_old(now, old, spread) > old
  return PolicyTerms(
    terms=jnp.mean(terms, axis=2),
    penalty=penalty,
    ratio=ratio,
    kl=jax.lax.stop_gradient(kl_penalty(now, old)),
    clipped=clipped,
    early_clipped=early & (spread < 0),
  )


def group_mean(
  values: Float[Array, 'P G'], counted: Bool[Array, 'P G']
) -> Float[Array, ' P']:
  """Returns the mean over the counted outputs of each group; 0 if none is.

  Args:
    values: anything where not counted. [P, G]
    counted: True: in the mean. [P, G]
  """
  total = jnp.sum(jnp.where(counted, values, 0), axis=1)
  return total / jnp.maximum(jnp.sum(counted, axis=1), 1)


# --- Watching ---------------------------------------------------------------


class Tail(NamedTuple):
  """Mean and upper end of some values; zeros if there are none."""

  mean: Float[Array, '']
  p99: Float[Array, '']  # smallest value that 99 % do not exceed
  max: Float[Array, '']


def tail(
  values: Float[Array, '*shape'], counted: Bool[Array, '*shape']
) -> Tail:
  """Returns mean, 99th percentile and maximum of the counted values.

  Args:
    values: anything where not counted.
    counted: True: counted.
  """
  flat, where = values.reshape(-1), counted.reshape(-1)
  count = jnp.sum(where)
  ranked = jnp.sort(jnp.where(where, flat, jnp.inf))
  # ceil(0.99 n) in whole numbers: 0.99 is not exact.
  place = jnp.maximum((99 * count + 99) // 100 - 1, 0)
  last = jnp.maximum(count - 1, 0)
  some = count > 0
  return Tail(
    mean=jnp.sum(jnp.where(where, flat, 0)) / jnp.maximum(count, 1),
    p99=jnp.where(some, ranked[place], 0),
    max=jnp.where(some, ranked[last], 0),
  )


def _float32(x: jax.Array) -> jax.Array:
  # bfloat16 sums of log-probabilities are off by whole percents of a ratio.
  return x.astype(jnp.float32)


def _constant(x: jax.Array) -> jax.Array:
  return jax.lax.stop_gradient(_float32(x))


def _check_clip(clip: float) -> None:
  if not 0 < clip < 1:
    raise ValueError(
      f'clip={clip} must lie in (0, 1). Set reinforcement.clip, e.g. to 0.2.'
    )
