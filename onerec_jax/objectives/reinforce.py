"""Next-token prediction on RSFT samples plus a policy objective on groups.

Glue between model, losses and batch.  Generator and reward models are not run
here: what they said comes with the groups.
"""

from collections.abc import Callable
from typing import Any
from typing import TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.losses import policy as losses
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain


class Frozen(TypedDict):
  """Arrays that reinforcement reads and never changes."""

  catalogue: batch_lib.Catalogue


# (params, router_bias, catalogue, users) -> Encoded
Encode = Callable[..., onerec.Encoded]
# (params, router_bias, encoded, codes [P, G, L], present [P, G]) -> [P, G, L]
Score = Callable[..., Float[Array, 'P G L']]


def make_encode(model: onerec.OneRec) -> Encode:
  """Returns the function that encodes users, without dropout."""

  def encode(
    params: Any,
    router_bias: Float[Array, 'layers E'],
    catalogue: batch_lib.Catalogue,
    users: batch_lib.SessionBatch,
  ) -> onerec.Encoded:
    encoded = model.apply(
      {'params': params},
      encoder_input.of_batch(users, catalogue),
      router_bias,
      method='encode',
    )
    assert isinstance(encoded, onerec.Encoded)
    return encoded

  return encode


def make_score(model: onerec.OneRec) -> Score:
  """Returns the function that gives log π of every code of G outputs per user.

    log π(s^l | u, s^<l);  0 where there is no output

  Without dropout and without anything that decoding forbids, so that the
  ratio of two policies is exact.  The encoder is not run.
  """

  def score(
    params: Any,
    router_bias: Float[Array, 'layers E'],
    encoded: onerec.Encoded,
    codes: Int[Array, 'P G L'],
    present: Bool[Array, 'P G'],
  ) -> Float[Array, 'P G L']:
    users, _, levels = codes.shape
    log_probs = model.apply(
      {'params': params},
      encoded,
      jnp.zeros((users, 0, levels), codes.dtype),
      jnp.zeros((users, 0), bool),
      jnp.maximum(codes, 0)[:, :, None],
      present[:, :, None],
      router_bias,
      method='session_log_probs',
    )
    assert isinstance(log_probs, jax.Array)
    return log_probs[:, :, 0]

  return score


def make_objective(
  model: onerec.OneRec,
  train: config.TrainConfig,
  settings: config.ReinforceConfig,
) -> base.Objective:
  """Returns the objective of joint RSFT and reinforcement.

    loss = L_NTP - λ_rl J - λ_fmt J_fmt

  L_NTP is that of pre-training over the samples.  J is the configured policy
  objective, averaged over the outputs of a group and then over the groups of
  the batch (0 without any); of grpo less β KL to the seed model.  J_fmt is the
  same without a penalty over the outputs chosen for the format reward, with
  A = 1 where legal and 0 where not.

  log π is taken without dropout and with the present router bias, as the
  generator's was at its sync: the experts chosen are part of the policy that
  will be served.

  Metrics beside those of pre-training, all over what was counted:
    policy/objective, policy/format_objective, policy/reference_kl (grpo)
    policy/clip_share         ratios without a gradient because of ε
    policy/early_clip_share   of those with A < 0: π'_old is not π_old
    policy/zero_advantage_share  groups whose rewards are all equal
    policy/{ratio,kl}_{mean,p99,max}  against the generator; of each step
    policy/log_prob           of an output, nats
    group/legality, group/distinct_items (legal IDs), group/reward (of legal
    outputs), group/best_reward, group/reward_std, group/true_reward

  Args:
    model: the model; its parameters are the objective's.
    train: reduction and label smoothing of L_NTP.
    settings: policy loss, λ_rl, λ_fmt, and what becomes of illegal outputs.
  Reference: OneRec technical report, arXiv:2506.13695, §2.4 and §3.3;
  that the terms add up with λ_rl and λ_fmt is our choice.
  """
  next_token = pretrain.make_objective(model, train)
  encode, score = make_encode(model), make_score(model)

  def objective(
    params: Any,
    model_state: Any,
    frozen: Frozen,
    batch: batch_lib.ReinforceBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    catalogue = frozen['catalogue']
    output = next_token(
      params, model_state, {'catalogue': catalogue}, batch.session, key
    )
    # --- Groups ---
    groups = batch.groups
    real = groups.session.example_mask
    # Code 0 is real; where nothing was left to generate, codes are -1.
    present = (groups.codes[..., 0] >= 0) & real[:, None]
    legal = groups.legal & present
    counted = legal if settings.illegal == 'left_out' else present
    encoded = encode(params, model_state, catalogue, groups.session)
    log_probs = score(params, model_state, encoded, groups.codes, present)
    three = log_probs, groups.old_log_probs, groups.reference_log_probs
    advantages = losses.group_advantages(groups.rewards, counted)
    found = losses.policy_terms(*three, advantages.values, settings=settings)
    per_group = losses.group_mean(
      found.terms - settings.kl_weight * found.penalty, counted
    )
    chosen = groups.format_mask & present
    of_format = losses.policy_terms(
      *three, (chosen & legal).astype(jnp.float32), settings=settings
    )
    format_per_group = losses.group_mean(of_format.terms, chosen)
    means = {
      'policy/objective': base.mean_of(per_group, real),
      'policy/format_objective': base.mean_of(format_per_group, real),
    }
    gain = (
      settings.weight * means['policy/objective'].value()
      + settings.format_weight * means['policy/format_objective'].value()
    )
    loss = batch_lib.Mean(
      output.loss.total - gain * output.loss.count, output.loss.count
    )
    # --- Report ---
    if settings.loss == 'grpo':
      means['policy/reference_kl'] = base.mean_of(found.penalty, counted)
    every = jnp.broadcast_to(counted[..., None], found.ratio.shape)
    bad = every & (advantages.values < 0)[..., None]
    means |= {
      'policy/clip_share': base.mean_of(found.clipped, every),
      'policy/early_clip_share': base.mean_of(found.early_clipped, bad),
      'policy/zero_advantage_share': base.mean_of(~advantages.has_spread, real),
      'policy/log_prob': base.mean_of(jnp.sum(log_probs, axis=2), present),
      **_tails('policy/ratio', found.ratio, present),
      **_tails('policy/kl', found.kl, present),
      **_group_figures(groups, present=present, legal=legal, real=real),
      'group/reward_std': base.mean_of(advantages.std, real),
    }
    counts = {**output.counts, 'groups': jnp.sum(real, dtype=jnp.float32)}
    return base.LossOutput(
      loss, {**output.metrics, **means}, output.model_state, counts
    )

  return objective


def _tails(
  name: str, values: Float[Array, 'P G K'], present: Bool[Array, 'P G']
) -> dict[str, batch_lib.Mean]:
  """Returns mean, p99 and max of a step as means over steps with groups."""
  where = jnp.broadcast_to(present[..., None], values.shape)
  tail = losses.tail(values, where)
  some = jnp.any(where).astype(jnp.float32)
  return {
    f'{name}_mean': base.mean_of(values, where),
    f'{name}_p99': batch_lib.Mean(tail.p99 * some, some),
    f'{name}_max': batch_lib.Mean(tail.max * some, some),
  }


def _group_figures(
  groups: batch_lib.GroupBatch,
  *,
  present: Bool[Array, 'P G'],
  legal: Bool[Array, 'P G'],
  real: Bool[Array, ' P'],
) -> dict[str, batch_lib.Mean]:
  """Returns what the groups are like, whatever is learnt from them."""
  best = jnp.max(jnp.where(legal, groups.rewards, -jnp.inf), axis=1)
  known = legal & jnp.isfinite(groups.true_rewards)
  return {
    'group/legality': base.mean_of(legal, present),
    'group/distinct_items': base.mean_of(
      distinct_ids(groups.codes, legal), real
    ),
    'group/reward': base.mean_of(groups.rewards, legal),
    'group/best_reward': base.mean_of(best, jnp.any(legal, axis=1)),
    'group/true_reward': base.mean_of(groups.true_rewards, known),
  }


def distinct_ids(
  codes: Int[Array, 'P G L'], counted: Bool[Array, 'P G']
) -> Int[Array, ' P']:
  """Returns how many different IDs each group holds.

  Args:
    codes: of the outputs. [P, G, L]
    counted: False: not looked at. [P, G]
  """
  columns = [
    jnp.where(counted, codes[..., l], -1) for l in range(codes.shape[2])
  ]
  ranked = jnp.stack(
    lax.sort(columns, dimension=1, num_keys=len(columns)), axis=-1
  )
  new = jnp.any(ranked[:, 1:] != ranked[:, :-1], axis=2)
  # The first of its ID, and not one of those that do not count.
  first = jnp.pad(new, ((0, 0), (1, 0)), constant_values=True)
  return jnp.sum(first & (ranked[..., 0] >= 0), axis=1)
