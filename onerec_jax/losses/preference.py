"""The configured preference loss of pairs of sessions, and what they show.

Arrays in, one float32 value per pair or session out: nothing is reduced, no
batch, no model.  The formulas are in dpo_family.py; settings out of their
range are a ValueError.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.config import alignment_checks
from onerec_jax.losses import dpo_family

# Inverse temperatures; S-DPO's is its authors' script's, the others are ours
# (2502.18965 prints none).
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
  problems = list(alignment_checks.preference_loss_problems(settings))
  if problems:
    raise ValueError('\n'.join(problems))
  width = policy_log_probs.shape[1]
  if width != 1 + settings.num_rejected:
    raise ValueError(
      f'{width} sessions per pair, but preference.num_rejected='
      f'{settings.num_rejected} makes {1 + settings.num_rejected}: build the'
      ' pairs with the same setting.'
    )
  beta = beta_of(settings)
  # Masked entries may hold anything, infinities too.
  policy = jnp.where(candidate_mask, policy_log_probs.astype(jnp.float32), 0)
  reference = jnp.where(
    candidate_mask, reference_log_probs.astype(jnp.float32), 0
  )
  four = (policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])
  pair = four[:2]
  tokens = (num_tokens[:, 0], num_tokens[:, 1])
  match settings.loss:
    case 'dpo':
      loss = dpo_family.dpo_loss(*four, beta=beta)
    case 'ipo':
      loss = dpo_family.ipo_loss(
        *four, *tokens, beta=beta, log_probs=settings.ipo_log_probs
      )
    case 'cdpo':
      loss = dpo_family.cdpo_loss(
        *four, beta=beta, label_flip=settings.label_flip
      )
    case 'rdpo':
      loss = dpo_family.rdpo_loss(
        *four, beta=beta, label_flip=settings.label_flip
      )
    case 'cpo':
      loss = dpo_family.cpo_loss(
        *pair,
        tokens[0],
        beta=beta,
        nll_weight=settings.nll_weight,
        nll=settings.cpo_nll,
      )
    case 'simpo':
      loss = dpo_family.simpo_loss(
        *pair, *tokens, beta=beta, margin=settings.margin
      )
    case 'sdpo':
      loss = dpo_family.sdpo_loss(
        policy[:, 0],
        policy[:, 1:],
        reference[:, 0],
        reference[:, 1:],
        candidate_mask[:, 1:],
        beta=beta,
      )
    case 'hinge':
      loss = dpo_family.hinge_loss(*four, beta=beta)
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
  return beta * jax.lax.stop_gradient(
    policy_log_probs.astype(jnp.float32)
    - reference_log_probs.astype(jnp.float32)
  )
