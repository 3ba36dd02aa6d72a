"""In-batch contrastive loss of item pairs.

Arrays in, per-pair values out: nothing is reduced, no batch, no model.
"""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

# Score of a target that is not compared; finite, so that gradients are.
_MASK_VALUE = -1e30
_TINY = 1e-12  # squared norm below which a vector counts as zero


class ContrastiveLoss(NamedTuple):
  """Loss of every pair; zero and False where masked."""

  loss: Float[Array, ' B']  # nats
  correct: Bool[Array, ' B']  # no other target is as similar to the trigger
  similarity: Float[Array, ' B']  # of trigger and target, -1..1
  negatives: Float[Array, ' B']  # targets that were compared with, 0..B-1


def similarities(
  triggers: Float[Array, 'A Q D'],
  targets: Float[Array, 'B Q D'],
  *,
  similarity: Literal['flat', 'mean_pool'],
) -> Float[Array, 'A B']:
  """Returns the cosine of every trigger with every target, float32.

    flat:       cos(flatten(x), flatten(y))
    mean_pool:  cos(mean_q x_q, mean_q y_q)

  The cosine with a vector of zeros is 0.

  Args:
    triggers: Q vectors per item. [A, Q, D]
    targets: [B, Q, D]
    similarity: which of the two.
  """

  def unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    x = jnp.mean(x, 1) if similarity == 'mean_pool' else x.reshape(len(x), -1)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, _TINY))

  return jnp.einsum('ad,bd->ab', unit(triggers), unit(targets))


def false_negatives(
  triggers: Int[Array, ' B'], targets: Int[Array, ' B'], mask: Bool[Array, ' B']
) -> Bool[Array, 'B B']:
  """Returns which targets of a batch are no negatives of which trigger.

    f_ij:  j_j = i_i, or some pair (i_i, j_j) is in the batch

  for pairs (i_1, j_1) … (i_B, j_B): the trigger itself, its own target met
  again in another pair, and targets of other pairs with the same trigger.

  Args:
    triggers: item ids i. [B]
    targets: item ids j. [B]
    mask: False: no pair, which says nothing. [B]

  Returns:
    True at (row, column): column's target is no negative of row's trigger.
    The diagonal is True where the mask is. [B, B]
  """
  same_trigger = triggers[:, None] == triggers[None, :]
  same_target = targets[:, None] == targets[None, :]
  # known[i, j] = any_k same_trigger[i, k] and same_target[k, j]
  known = jnp.einsum(
    'ik,kj->ij',
    (same_trigger & mask[None, :]).astype(jnp.float32),
    same_target.astype(jnp.float32),
  )
  return (known > 0) | (triggers[:, None] == targets[None, :])


def item_to_item_loss(
  triggers: Float[Array, 'B Q D'],
  targets: Float[Array, 'B Q D'],
  mask: Bool[Array, ' B'],
  *,
  temperature: float,
  similarity: Literal['flat', 'mean_pool'] = 'flat',
  excluded: Bool[Array, 'B B'] | None = None,
) -> ContrastiveLoss:
  """Negative log-likelihood of a trigger's target among the batch's targets.

    loss_i = -log( exp(s_ii / τ) / Σ_j exp(s_ij / τ) ),  s = `similarities`

  One direction: triggers choose among targets, never targets among triggers.
  With `excluded` the sum leaves out targets that are no negatives, which the
  printed formula keeps: a refinement of ours, because popular items are often
  in a batch twice and would be pushed away from what they belong to.  None is
  the printed form.

  Args:
    triggers: vectors of the first items of the pairs. [B, Q, D]
    targets: of the second ones. [B, Q, D]
    mask: False: filler; neither trigger nor negative. [B]
    temperature: τ > 0.
    similarity: 'flat' or 'mean_pool'.
    excluded: True: column's target is not compared with row's trigger
      (`false_negatives`); the diagonal is always kept. [B, B]

  Returns:
    Per-pair values. [B]
  Reference: OneRec technical report, arXiv:2506.13695, L_I2I of section 2.1.1
    (similarity and temperature are unstated there).
  """
  score = similarities(triggers, targets, similarity=similarity)
  own = jnp.eye(len(mask), dtype=bool)
  keep = jnp.broadcast_to(mask[None, :], own.shape)
  if excluded is not None:
    keep = keep & ~excluded
  keep = keep | own
  logits = jnp.where(keep, score / temperature, _MASK_VALUE)
  target = jnp.sum(jnp.where(own, logits, 0), axis=1)
  loss = jax.nn.logsumexp(logits, axis=1) - target
  as_high = jnp.sum(logits >= target[:, None], axis=1)
  pair = jnp.sum(jnp.where(own, score, 0), axis=1)
  count = jnp.sum(keep & ~own, axis=1, dtype=jnp.float32)
  return ContrastiveLoss(
    jnp.where(mask, loss, 0),
    (as_high == 1) & mask,
    jnp.where(mask, pair, 0),
    jnp.where(mask, count, 0),
  )
