"""The wide part of a ranking model: linear, fitted before training.

Reads what data/logistic_baseline.py reads, from the same contexts.  Trains
nothing: its tables come from data/linear_fit.py.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import parameters


class LinearPart(nn.Module):
  """Logits of X objectives that are linear in the features; 0 if not fitted.

    z = b + t^item[i] + Σ_u t^u[f_u]
        + mean over events n of (t^event[i_n] + Σ_f t^f[number_nf] + t^age[a_n])
        + Σ_a (r_a · happened_a / known_a + s_a · known_a / N)

  with known_a of the N events those where label a was logged, and happened_a
  those where it happened.  No gradient and no weight decay reaches the tables.

  Reference: the wide part of Cheng et al. 2016, arXiv:1606.07792, section 3.1.
  """

  count: int  # X
  pathways: config_lib.PathwaysConfig
  sizes: batch_lib.FeatureSizes

  def setup(self) -> None:
    def table(name: str, rows: int) -> jax.Array:
      # One axis beside 'layers': no weight decay.
      value = parameters.declare(
        self,
        name,
        (self.count, rows),
        ('layers', None),
        parameters.Initializer(stddev=0.0),
      )
      return jax.lax.stop_gradient(value).T  # [rows, X]

    pathways = self.pathways
    self.bias = table('bias', 1)
    self.item = table('item', self.sizes.num_items)
    self.event = table('event', self.sizes.num_items)
    self.user = [
      table(f'user_{u}', rows) for u, rows in enumerate(self.sizes.users)
    ]
    self.number = [
      table(f'number_{f}', 1 + feature.buckets)
      for f, feature in enumerate(pathways.event_features)
    ]
    self.age = table('age', 1 + pathways.age_buckets)
    self.happened = table('happened', len(pathways.labels))
    self.logged = table('logged', len(pathways.labels))

  def __call__(
    self,
    features: Int[Array, 'B U'],
    events: batch_lib.EventSequence,
    items: Int[Array, 'B W'],
  ) -> Float[Array, 'B W X']:
    """Returns the logits of W items of each user.

    Args:
      features: of the users. [B, U]
      events: their latest. [B, N]
      items: candidates. [B, W]
    """
    mask = events.mask
    total = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)

    def mean(rows: Float[Array, 'V X'], ids: Int[Array, 'B N']) -> jax.Array:
      values = jnp.where(mask[..., None], rows[ids], 0)
      return jnp.sum(values, axis=1) / total

    logits = self.bias  # [1, X]
    for u, rows in enumerate(self.user):
      logits = logits + rows[features[:, u]]
    logits = logits + mean(self.event, events.items)
    for f, rows in enumerate(self.number):
      logits = logits + mean(rows, events.numbers[..., f])
    logits = logits + mean(self.age, events.age)
    logged = events.label_mask & mask[..., None]
    known = jnp.sum(logged, axis=1).astype(jnp.float32)
    happened = jnp.sum(jnp.where(logged, events.labels, 0), axis=1)
    for rows, share in (
      (self.happened, happened / jnp.maximum(known, 1)),
      (self.logged, known / total),
    ):
      logits = logits + jnp.einsum('ba,ax->bx', share, rows)
    return logits[:, None] + self.item[items]
