"""The DPO family on summed log-probabilities of sessions.

Arrays in, one float32 loss per pair out: nothing is reduced, no batch, no
model.  References are constants: no gradient reaches them.  A knob out of its
stated range is a ValueError.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config

# Inverse temperatures; S-DPO's is its authors' script's, the others are ours
# (spec §10.2: OneRec prints none).
DEFAULT_BETA: dict[str, float] = {
  'dpo': 0.1,
  'ipo': 0.1,
  'cdpo': 0.1,
  'rdpo': 0.1,
  'cpo': 0.1,
  'simpo': 2.0,
  'sdpo': 1.0,
  'hinge': 0.1,
}


def dpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, ' P'],
  *,
  beta: float,
) -> Float[Array, ' P']:
  """Direct preference optimisation loss, per pair.

    loss = -log σ(β h),  h = (p_w - q_w) - (p_l - q_l)

  Args:
    chosen: p_w = log π(chosen session), summed over its tokens, nats. [P]
    rejected: p_l, likewise. [P]
    reference_chosen: q_w, by the reference model. [P]
    reference_rejected: q_l. [P]
    beta: inverse temperature of the implicit reward, > 0.

  Returns:
    Loss per pair. [P]
  Reference: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; 2502.18965.
  """
  _check_beta(beta)
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return -jax.nn.log_sigmoid(beta * h)


def ipo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, ' P'],
  chosen_tokens: Int[Array, ' P'],
  rejected_tokens: Int[Array, ' P'],
  *,
  beta: float,
  log_probs: Literal['mean', 'sum'],
) -> Float[Array, ' P']:
  """Identity preference optimisation loss, per pair.

    loss = (h - 1 / (2 β))²,  h as in `dpo_loss`

  Args:
    chosen, rejected, reference_chosen, reference_rejected: as `dpo_loss`.
    chosen_tokens: scored tokens of the chosen session; 0 counts as 1. [P]
    rejected_tokens: likewise. [P]
    beta: τ of the paper, > 0.
    log_probs: 'mean' divides every log-probability by its token count first
      (TRL), 'sum' does not (the paper).

  Returns:
    Loss per pair. [P]
  Reference: Azar et al. 2023, arXiv:2310.12036, eq. 17.
  """
  _check_beta(beta)
  if log_probs == 'mean':
    chosen = _per_token(chosen, chosen_tokens)
    reference_chosen = _per_token(reference_chosen, chosen_tokens)
    rejected = _per_token(rejected, rejected_tokens)
    reference_rejected = _per_token(reference_rejected, rejected_tokens)
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return jnp.square(h - 1 / (2 * beta))


def cdpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, ' P'],
  *,
  beta: float,
  label_flip: float,
) -> Float[Array, ' P']:
  """Conservative DPO: labels are wrong with a known probability, per pair.

    loss = -(1 - ε) log σ(β h) - ε log σ(-β h),  h as in `dpo_loss`

  Args:
    chosen, rejected, reference_chosen, reference_rejected, beta: as
      `dpo_loss`.
    label_flip: ε, probability that the pair is the wrong way round, in
      [0, 0.5).

  Returns:
    Loss per pair. [P]
  Reference: Mitchell 2023, "A note on DPO with noisy preferences".
  """
  _check_beta(beta)
  _check_label_flip(label_flip)
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return -(
    (1 - label_flip) * jax.nn.log_sigmoid(beta * h)
    + label_flip * jax.nn.log_sigmoid(-beta * h)
  )


def rdpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, ' P'],
  *,
  beta: float,
  label_flip: float,
) -> Float[Array, ' P']:
  """Robust DPO: the unbiased estimate of DPO under flipped labels, per pair.

    loss = (-(1 - ε) log σ(β h) + ε log σ(-β h)) / (1 - 2 ε)

  h as in `dpo_loss`.  The loss has no lower bound for ε > 0.

  Args:
    chosen, rejected, reference_chosen, reference_rejected, beta: as
      `dpo_loss`.
    label_flip: ε, probability that the pair is the wrong way round, in
      [0, 0.5).

  Returns:
    Loss per pair. [P]
  Reference: Chowdhury et al. 2024, arXiv:2403.00409.
  """
  _check_beta(beta)
  _check_label_flip(label_flip)
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return (
    label_flip * jax.nn.log_sigmoid(-beta * h)
    - (1 - label_flip) * jax.nn.log_sigmoid(beta * h)
  ) / (1 - 2 * label_flip)


def cpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  chosen_tokens: Int[Array, ' P'],
  *,
  beta: float,
  nll_weight: float,
  nll: Literal['mean', 'sum'],
) -> Float[Array, ' P']:
  """Contrastive preference optimisation loss, per pair; no reference.

    loss = -log σ(β (p_w - p_l)) - α p_w      ('sum', the paper)
    loss = -log σ(β (p_w - p_l)) - α p_w / T  ('mean', TRL)

  Args:
    chosen, rejected, beta: as `dpo_loss`.
    chosen_tokens: T, scored tokens of the chosen session; 0 counts as 1. [P]
    nll_weight: α, of the chosen session's negative log-likelihood.
    nll: over which the likelihood is taken.

  Returns:
    Loss per pair. [P]
  Reference: Xu et al. 2024, arXiv:2401.08417.
  """
  _check_beta(beta)
  chosen, rejected = _float32(chosen), _float32(rejected)
  likelihood = _per_token(chosen, chosen_tokens) if nll == 'mean' else chosen
  return (
    -jax.nn.log_sigmoid(beta * (chosen - rejected)) - nll_weight * likelihood
  )


def simpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  chosen_tokens: Int[Array, ' P'],
  rejected_tokens: Int[Array, ' P'],
  *,
  beta: float,
  margin: float,
) -> Float[Array, ' P']:
  """Simple preference optimisation loss, per pair; no reference.

    loss = -log σ(β p_w / T_w - β p_l / T_l - γ)

  Args:
    chosen, rejected, beta: as `dpo_loss`.
    chosen_tokens: T_w, scored tokens; 0 counts as 1. [P]
    rejected_tokens: T_l. [P]
    margin: γ, the target reward margin, nats.

  Returns:
    Loss per pair. [P]
  Reference: Meng et al. 2024, arXiv:2405.14734, eq. 6.
  """
  _check_beta(beta)
  chosen = _per_token(chosen, chosen_tokens)
  rejected = _per_token(rejected, rejected_tokens)
  return -jax.nn.log_sigmoid(beta * (chosen - rejected) - margin)


def sdpo_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, 'P K'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, 'P K'],
  rejected_mask: Bool[Array, 'P K'],
  *,
  beta: float,
) -> Float[Array, ' P']:
  """Softmax DPO: one chosen session against several rejected ones.

    loss = -log σ(-log Σ_l exp(β ((p_l - q_l) - (p_w - q_w))))

  The same as log(1 + Σ_l exp(·)), which is how it is computed; with one
  negative it is `dpo_loss`.

  Args:
    chosen: p_w. [P]
    rejected: p_l of K negatives; anything where masked. [P, K]
    reference_chosen: q_w. [P]
    reference_rejected: q_l. [P, K]
    rejected_mask: True: the negative exists. [P, K]
    beta: inverse temperature of the implicit reward, > 0.

  Returns:
    Loss per pair; 0 where a pair has no negative at all. [P]
  Reference: Chen et al. 2024, arXiv:2406.09215.
  """
  _check_beta(beta)
  # Twice `where`: the unused branch would spoil the gradient with 0 * inf.
  rejected = jnp.where(rejected_mask, _float32(rejected), 0)
  reference_rejected = jnp.where(rejected_mask, reference_rejected, 0)
  h = _log_ratio(
    chosen[:, None], rejected, reference_chosen[:, None], reference_rejected
  )
  exponents = jnp.where(rejected_mask, -beta * h, -jnp.inf)
  # exp(0) is the 1 of log(1 + Σ): the sum is never empty.
  return jax.nn.logsumexp(
    jnp.pad(exponents, ((0, 0), (1, 0)), constant_values=0.0), axis=-1
  )


def hinge_loss(
  chosen: Float[Array, ' P'],
  rejected: Float[Array, ' P'],
  reference_chosen: Float[Array, ' P'],
  reference_rejected: Float[Array, ' P'],
  *,
  beta: float,
) -> Float[Array, ' P']:
  """Hinge loss of the implicit reward margin (SLiC), per pair.

    loss = max(0, 1 - β h),  h as in `dpo_loss`

  Args:
    chosen, rejected, reference_chosen, reference_rejected, beta: as
      `dpo_loss`.

  Returns:
    Loss per pair; its slope at the kink is 0. [P]
  Reference: Zhao et al. 2023, arXiv:2305.10425, with a reference as in TRL.
  """
  _check_beta(beta)
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return jax.nn.relu(1 - beta * h)


def beta_of(settings: config.PreferenceConfig) -> float:
  """Returns the configured β, or the default of the configured loss."""
  if settings.beta is None:
    return DEFAULT_BETA[settings.loss]
  return settings.beta


def preference_loss(
  policy_log_probs: Float[Array, 'P W'],
  reference_log_probs: Float[Array, 'P W'],
  num_tokens: Int[Array, 'P W'],
  candidate_mask: Bool[Array, 'P W'],
  *,
  settings: config.PreferenceConfig,
) -> Float[Array, ' P']:
  """The configured loss of every pair; place 0 is the chosen session.

  Args:
    policy_log_probs: log π(session), summed over its tokens, nats. [P, W]
    reference_log_probs: by the reference; not read by cpo and simpo. [P, W]
    num_tokens: scored tokens of every session. [P, W]
    candidate_mask: True: the session exists. [P, W]
    settings: loss and knobs; W = 1 + settings.num_rejected.

  Returns:
    Loss per pair; 0, without gradient, where the chosen session or every
    rejected one is missing: leave those out of the mean. [P]
  Raises:
    ValueError: W does not fit the settings, or a knob is out of range.
  """
  width = policy_log_probs.shape[1]
  if width != 1 + settings.num_rejected:
    raise ValueError(
      f'{width} sessions per pair, but preference.num_rejected='
      f'{settings.num_rejected} makes {1 + settings.num_rejected}: build the'
      ' pairs with the same setting.'
    )
  if width < 2 or (width > 2 and settings.loss != 'sdpo'):
    raise ValueError(
      f'preference.num_rejected={settings.num_rejected} must be 1 with loss'
      f" {settings.loss!r}; only 'sdpo' compares to more."
    )
  beta = beta_of(settings)
  # Masked entries may hold anything, infinities too.
  policy = jnp.where(candidate_mask, _float32(policy_log_probs), 0)
  reference = jnp.where(candidate_mask, _float32(reference_log_probs), 0)
  four = (policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])
  pair = four[:2]
  tokens = (num_tokens[:, 0], num_tokens[:, 1])
  match settings.loss:
    case 'dpo':
      loss = dpo_loss(*four, beta=beta)
    case 'ipo':
      loss = ipo_loss(
        *four, *tokens, beta=beta, log_probs=settings.ipo_log_probs
      )
    case 'cdpo':
      loss = cdpo_loss(*four, beta=beta, label_flip=settings.label_flip)
    case 'rdpo':
      loss = rdpo_loss(*four, beta=beta, label_flip=settings.label_flip)
    case 'cpo':
      loss = cpo_loss(
        *pair,
        tokens[0],
        beta=beta,
        nll_weight=settings.nll_weight,
        nll=settings.cpo_nll,
      )
    case 'simpo':
      loss = simpo_loss(*pair, *tokens, beta=beta, margin=settings.margin)
    case 'sdpo':
      loss = sdpo_loss(
        policy[:, 0],
        policy[:, 1:],
        reference[:, 0],
        reference[:, 1:],
        candidate_mask[:, 1:],
        beta=beta,
      )
    case 'hinge':
      loss = hinge_loss(*four, beta=beta)
  usable = candidate_mask[:, 0] & jnp.any(candidate_mask[:, 1:], axis=1)
  return jnp.where(usable, loss, 0)


def implicit_rewards(
  policy_log_probs: Float[Array, 'P W'],
  reference_log_probs: Float[Array, 'P W'],
  *,
  beta: float,
) -> Float[Array, 'P W']:
  """How far the policy moved towards every session, for monitoring.

    r = β (log π - log π_ref)

  Args:
    policy_log_probs: summed over tokens, nats. [P, W]
    reference_log_probs: likewise. [P, W]
    beta: inverse temperature, > 0.

  Returns:
    Implicit reward per session, nats; a constant, without gradient. [P, W]
  Reference: Rafailov et al. 2023, arXiv:2305.18290, eq. 5.
  """
  _check_beta(beta)
  return beta * jax.lax.stop_gradient(
    _float32(policy_log_probs) - _float32(reference_log_probs)
  )


def _log_ratio(
  chosen: jax.Array,
  rejected: jax.Array,
  reference_chosen: jax.Array,
  reference_rejected: jax.Array,
) -> jax.Array:
  """h = (p_w - q_w) - (p_l - q_l) in float32; q without gradient."""
  won = _float32(chosen) - jax.lax.stop_gradient(_float32(reference_chosen))
  lost = _float32(rejected) - jax.lax.stop_gradient(
    _float32(reference_rejected)
  )
  return won - lost


def _per_token(log_probs: jax.Array, num_tokens: jax.Array) -> jax.Array:
  return _float32(log_probs) / jnp.maximum(num_tokens, 1)


def _float32(x: jax.Array) -> jax.Array:
  # bfloat16 sums of 15 log-probabilities are off by 0.25 nats.
  return x.astype(jnp.float32)


def _check_beta(beta: float) -> None:
  if not beta > 0:
    raise ValueError(
      f'beta={beta} must be positive. Leave preference.beta at None for the'
      f" loss's default: {DEFAULT_BETA}."
    )


def _check_label_flip(label_flip: float) -> None:
  if not 0 <= label_flip < 0.5:
    raise ValueError(
      f'label_flip={label_flip} must lie in [0, 0.5): from 0.5 on the pairs say'
      ' nothing or the opposite. Set preference.label_flip, e.g. to 0.1.'
    )
