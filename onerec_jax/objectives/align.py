"""Next-token prediction plus a preference loss on pairs of sessions (IPA).

Glue between model, losses and batch.  The reference model is not run here:
its log-probabilities come with the pairs.
"""

from collections.abc import Callable
from typing import Any
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.losses import preference as losses
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain
from onerec_jax.ops import history as history_ops


class Frozen(TypedDict):
  """Arrays that alignment reads and never changes."""

  catalogue: batch_lib.Catalogue
  # Router bias of the reference; policy and reference choose experts with it.
  reference_bias: Float[Array, 'layers E']


# (params, router_bias, catalogue, users, items [B, W, M], mask) -> [B, W]
Score = Callable[..., Float[Array, 'B W']]


def make_score(model: onerec.OneRec, *, continue_items: int) -> Score:
  """Returns the function that gives log M(S | H) of W sessions per user.

    log M(S | H) = Σ_i Σ_l log p(s_i^l | H, s_<i, s_i^<l)

  Without dropout; the encoder runs once per user.

  Args:
    model: the module.
    continue_items: the user's last items that begin the session, as in the
      decoding that generated the candidates.
  Reference: 2502.18965, section 3.3.
  """

  def score(
    params: Any,
    router_bias: Float[Array, 'layers E'],
    catalogue: batch_lib.Catalogue,
    users: batch_lib.SessionBatch,
    items: Int[Array, 'B W M'],
    mask: Bool[Array, 'B W M'],
  ) -> Float[Array, 'B W']:
    variables = {'params': params}
    history, prefix = history_ops.split_history(
      users.history_items,
      users.history_mask & users.example_mask[:, None],
      num_last=continue_items,
    )
    inputs = encoder_input.of_batch(users, catalogue)
    encoded = model.apply(
      variables,
      inputs._replace(codes=catalogue.codes[history.items], mask=history.mask),
      router_bias,
      method='encode',
    )
    log_probs = model.apply(
      variables,
      encoded,
      catalogue.codes[prefix.items],
      prefix.mask,
      catalogue.codes[items],
      mask,
      router_bias,
      method='session_log_probs',
    )
    assert isinstance(log_probs, jax.Array)
    return jnp.sum(log_probs, axis=(2, 3))

  return score


def make_objective(
  model: onerec.OneRec,
  train: config.TrainConfig,
  preference: config.PreferenceConfig,
) -> base.Objective:
  """Returns the objective of one round of preference alignment.

    loss = L_NTP + λ / B · Σ_pairs L_pref

  with L_NTP over the B samples of the batch as in pre-training.  A pair's
  loss is added to one sample's, as Algorithm 2 does, so its weight does not
  depend on how many samples have one.  The pair's log-probabilities are taken
  without dropout and with the reference's router bias.

  Metrics beside those of pre-training: 'preference/loss', '/accuracy' (share
  of pairs whose implicit reward prefers the chosen session), '/margin' (of
  the implicit rewards), '/chosen_log_prob', '/rejected_log_prob' (of the
  policy, nats per session), '/reward_gap'.

  Args:
    model: the model; its parameters are the objective's.
    train: reduction and label smoothing of L_NTP.
    preference: the loss and λ.
  Reference: 2502.18965, Algorithm 2.
  """
  next_token = pretrain.make_objective(model, train)
  score = make_score(model, continue_items=preference.rollout.continue_items)
  levels = model.vocabulary.levels

  def objective(
    params: Any,
    model_state: Any,
    frozen: Frozen,
    batch: batch_lib.PreferenceBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    catalogue = frozen['catalogue']
    output = next_token(
      params, model_state, {'catalogue': catalogue}, batch.session, key
    )
    # --- Pairs ---
    pairs = batch.pairs
    real = pairs.session.example_mask
    policy = score(
      params,
      frozen['reference_bias'],
      catalogue,
      pairs.session,
      pairs.items,
      pairs.mask,
    )
    present = jnp.any(pairs.mask, axis=2)
    per_pair = losses.preference_loss(
      policy,
      pairs.reference_log_probs,
      levels * jnp.sum(pairs.mask, axis=2, dtype=jnp.int32),
      present,
      settings=preference,
    )
    total = jnp.sum(jnp.where(real, per_pair, 0.0))
    samples = jnp.sum(batch.session.example_mask, dtype=jnp.float32)
    share = output.loss.count / jnp.maximum(samples, 1.0)
    loss = batch_lib.Mean(
      output.loss.total + preference.weight * total * share, output.loss.count
    )
    # --- Report ---
    rewards = losses.implicit_rewards(
      policy,
      pairs.reference_log_probs,
      beta=losses.beta_of(preference),
    )
    margin = rewards[:, 0] - _mean_rejected(rewards, present)
    named = {
      'loss': per_pair,
      'accuracy': margin > 0,
      'margin': margin,
      'chosen_log_prob': policy[:, 0],
      'rejected_log_prob': _mean_rejected(policy, present),
      'reward_gap': pairs.rewards[:, 0]
      - _mean_rejected(pairs.rewards, present),
    }
    metrics = {
      **output.metrics,
      **{f'preference/{k}': base.mean_of(v, real) for k, v in named.items()},
    }
    counts = {**output.counts, 'pairs': jnp.sum(real, dtype=jnp.float32)}
    return base.LossOutput(loss, metrics, output.model_state, counts)

  return objective


def _mean_rejected(
  values: Float[Array, 'P W'], present: Bool[Array, 'P W']
) -> Float[Array, ' P']:
  """Returns the mean over the rejected sessions that exist."""
  where = present[:, 1:]
  total = jnp.sum(jnp.where(where, values[:, 1:], 0.0), axis=1)
  return total / jnp.maximum(jnp.sum(where, axis=1), 1)
