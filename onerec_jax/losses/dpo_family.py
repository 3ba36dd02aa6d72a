"""The DPO family on summed log-probabilities of sessions, one formula each.

Arrays in, one float32 loss per pair out: nothing is reduced, no batch, no
model.  References are constants: no gradient reaches them.  Knobs are checked
where they are configured (config/alignment_checks.py), not here.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int


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
    nll_weight: α >= 0, of the chosen session's negative log-likelihood.
    nll: over which the likelihood is taken.

  Returns:
    Loss per pair. [P]
  Reference: Xu et al. 2024, arXiv:2401.08417.
  """
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
    margin: γ >= 0, the target reward margin, nats.

  Returns:
    Loss per pair. [P]
  Reference: Meng et al. 2024, arXiv:2405.14734, eq. 6.
  """
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
  h = _log_ratio(chosen, rejected, reference_chosen, reference_rejected)
  return jax.nn.relu(1 - beta * h)


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
