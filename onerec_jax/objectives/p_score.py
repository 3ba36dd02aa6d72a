"""Training the P-Score model on labelled impressions, and scoring with it.

Glue between model, loss and batch; all mathematics is in losses/ and model/.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax.losses import binary
from onerec_jax.model import p_score
from onerec_jax.objectives import base


class Frozen(TypedDict):
  """Arrays that training reads and never changes."""

  catalogue: batch_lib.Catalogue


class Probabilities(NamedTuple):
  """What the model says of items."""

  p: Float[Array, 'B W']  # P-Score
  towers: Float[Array, 'B W X']


def make_objective(model: p_score.PScore) -> base.Objective:
  """Returns the objective of the P-Score model.

    loss = mean over impressions of
           Σ_x [w^x BCE(p, y^x) + BCE(ŷ^x, y^x)], x over the known labels

  The same p is held against every label.  Impressions without a known label
  and filler rows are not counted.  Metrics, over the known labels of a tower:
  'bce/NAME', 'prediction/NAME', 'fusion_bce/NAME'; and 'p_score', the mean p
  over the impressions that count.

  Args:
    model: its parameters are the objective's; model_state is passed on.
  Reference: technical report arXiv:2506.13695, section 2.4.1.
  """
  names = [tower.name for tower in model.config.towers]
  weights = [tower.weight for tower in model.config.towers]

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
      frozen['catalogue'],
      session.context,
      session.user,
      session.target_items,
      key=key,
    )
    fused, towers = logits.p, logits.towers[:, 0]  # one item per row
    shown = session.example_mask & session.target_mask[:, 0]
    known = batch.label_mask & shown[:, None]
    # Unknown labels may hold anything, NaN too.
    labels = jnp.where(known, batch.labels, 0.0)
    own = binary.binary_cross_entropy(towers, labels)
    common = binary.binary_cross_entropy(
      jnp.broadcast_to(fused, labels.shape), labels
    )
    losses = own + jnp.asarray(weights, own.dtype)[None] * common
    counted = jnp.any(known, axis=1)
    predictions = jax.nn.sigmoid(towers)
    metrics = {'p_score': base.mean_of(jax.nn.sigmoid(fused[:, 0]), counted)}
    for x, name in enumerate(names):
      for kind, values in (
        ('bce', own),
        ('prediction', predictions),
        ('fusion_bce', common),
      ):
        metrics[f'{kind}/{name}'] = base.mean_of(values[:, x], known[:, x])
    total = jnp.sum(jnp.where(known, losses, 0.0), axis=1)
    counts = {'examples': jnp.sum(counted, dtype=jnp.float32)}
    return base.LossOutput(
      base.mean_of(total, counted), metrics, model_state, counts
    )

  return objective


def make_scorer(model: p_score.PScore) -> Callable[..., Probabilities]:
  """Returns the compiled scoring of candidate items.

  (params, catalogue, context, user [B], items [B, W]) -> Probabilities.
  """

  @jax.jit
  def score(
    params: Any,
    catalogue: batch_lib.Catalogue,
    context: batch_lib.UserContext,
    user: Int[Array, ' B'],
    items: Int[Array, 'B W'],
  ) -> Probabilities:
    logits = _logits(model, params, catalogue, context, user, items)
    return Probabilities(
      jax.nn.sigmoid(logits.p), jax.nn.sigmoid(logits.towers)
    )

  return score


def _logits(
  model: p_score.PScore,
  params: Any,
  catalogue: batch_lib.Catalogue,
  context: Any,
  user: jax.Array,
  items: jax.Array,
  *,
  key: jax.Array | None = None,
) -> p_score.PScoreLogits:
  """Returns logits; a key of None: no dropout."""
  logits = model.apply(
    {'params': params},
    context,
    user,
    items,
    catalogue,
    deterministic=key is None,
    rngs=None if key is None else {'dropout': key},
  )
  assert isinstance(logits, p_score.PScoreLogits)
  return logits
