"""Training the session reward model on labelled sessions, and scoring with it.

Glue between model, loss and batch; all mathematics is in losses/ and model/.
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
from onerec_jax.losses import binary
from onerec_jax.model import session_reward
from onerec_jax.objectives import base


class Frozen(TypedDict):
  """Arrays that reward training reads and never changes."""

  item_codes: Int[Array, 'I L']  # semantic ID of every item


def make_objective(model: session_reward.SessionReward) -> base.Objective:
  """Returns the objective of the session reward model.

    loss = mean over examples of Σ_x BCE(r̂^x, y^x), x over the known labels

  Examples without any known label and filler rows are not counted.  Metrics:
  'bce/NAME' (nats, over the known labels of a target) and 'prediction/NAME'
  (mean probability over the same examples).

  Args:
    model: its parameters are the objective's; model_state is passed on.
  Reference: OneRec, arXiv:2502.18965, section 3.3.
  """
  names = [target.name for target in model.config.targets]

  def objective(
    params: Any,
    model_state: Any,
    frozen: Frozen,
    batch: batch_lib.LabelledBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    session = batch.session
    logits = _logits(
      model,
      params,
      frozen['item_codes'],
      session.history_items,
      session.history_mask & session.example_mask[:, None],
      session.target_items[:, None],
      session.target_mask[:, None],
      key=key,
    )[:, 0]
    known = batch.label_mask & session.example_mask[:, None]
    # Unknown labels may hold anything, NaN too.
    labels = jnp.where(known, batch.labels, 0.0)
    losses = binary.binary_cross_entropy(logits, labels)
    counted = jnp.any(known, axis=1)
    total = jnp.sum(jnp.where(known, losses, 0.0), axis=1)
    predictions = jax.nn.sigmoid(logits)
    metrics = {}
    for x, name in enumerate(names):
      metrics[f'bce/{name}'] = base.mean_of(losses[:, x], known[:, x])
      metrics[f'prediction/{name}'] = base.mean_of(
        predictions[:, x], known[:, x]
      )
    counts = {'examples': jnp.sum(counted, dtype=jnp.float32)}
    return base.LossOutput(
      base.mean_of(total, counted), metrics, model_state, counts
    )

  return objective


def make_scorer(
  model: session_reward.SessionReward,
) -> Callable[..., jax.Array]:
  """Returns the compiled scoring of candidate sessions.

  (params, item_codes [I, L], history_items [B, N], history_mask [B, N],
  items [B, W, M], mask [B, W, M]) -> probabilities, float32 [B, W, X].
  Items under a False mask may be any number, -1 too.
  """

  @jax.jit
  def score(
    params: Any,
    item_codes: Int[Array, 'I L'],
    history_items: Int[Array, 'B N'],
    history_mask: Bool[Array, 'B N'],
    items: Int[Array, 'B W M'],
    mask: Bool[Array, 'B W M'],
  ) -> Float[Array, 'B W X']:
    return jax.nn.sigmoid(
      _logits(
        model, params, item_codes, history_items, history_mask, items, mask
      )
    )

  return score


def _logits(
  model: session_reward.SessionReward,
  params: Any,
  item_codes: jax.Array,
  history_items: jax.Array,
  history_mask: jax.Array,
  items: jax.Array,
  mask: jax.Array,
  *,
  key: jax.Array | None = None,
) -> jax.Array:
  """Returns logits [B, W, X]; a key of None: no dropout."""
  logits = model.apply(
    {'params': params},
    history_items,
    item_codes[history_items],
    history_mask,
    items,
    item_codes[items],
    mask,
    deterministic=key is None,
    rngs=None if key is None else {'dropout': key},
  )
  assert isinstance(logits, jax.Array)
  return logits
