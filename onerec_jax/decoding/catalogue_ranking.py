"""Ranks the whole catalogue for each user with an item-level baseline.

The counterpart of recommend.py for models that score items instead of
generating IDs.  Does no I/O and holds no parameters.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.decoding import transitions as transitions_lib
from onerec_jax.model import sequential


class Ranking(NamedTuple):
  """The best K items of each of B users."""

  items: Int[Array, 'B K']  # dense items, best first; -1: no item is left
  # Log p of the item over all items, with counts in it if they are mixed in,
  # then over those that are not excluded; -inf: none.
  scores: Float[Array, 'B K']
  valid: Bool[Array, 'B K']


# (params, attributes, batch, exclude_items [B, X] | None = None,
#  transitions | None = None, allowed [I] | None = None) -> Ranking
Rank = Callable[..., Ranking]


def make_ranker(
  model: sequential.SequenceModel,
  decoding: config.DecodingConfig,
  *,
  top_k: int,
) -> Rank:
  """Returns the compiled function from a batch to `top_k` items per user.

  The whole history of the batch is read; beams and sessions have no meaning
  here.  `exclude_items` (dense, -1 = none) replaces the history as the items
  that are not recommended again; it counts only if decoding.exclude_history.
  `transitions` must be given if decoding.transition_weight is above 0.
  `allowed` are the items that may be listed; None: all.

  Args:
    model: the model.
    decoding: its exclude_history and transition_weight count.
    top_k: length of the item list (K).
  """

  def rank(
    params: Any,
    attributes: sequential.ItemAttributes | None,
    batch: batch_lib.SessionBatch,
    exclude_items: Int[Array, 'B X'] | None = None,
    transitions: transitions_lib.Transitions | None = None,
    allowed: Bool[Array, ' I'] | None = None,
  ) -> Ranking:
    scores = score_items(model, params, attributes, batch)
    if allowed is not None:
      scores = jnp.where(allowed[None], scores, -jnp.inf)
    excluded = jnp.where(batch.history_mask, batch.history_items, -1)
    if exclude_items is not None:
      excluded = exclude_items
    if not decoding.exclude_history:
      excluded = excluded[:, :0]
    if decoding.transition_weight:
      followers = transitions_lib.after(
        transitions, batch.history_items, batch.history_mask, excluded
      )
      scores = without(scores, excluded)
      scores = transitions_lib.mix(
        scores,
        scores > -jnp.inf,
        transitions_lib.of_items(followers, scores.shape[1]),
        weight=decoding.transition_weight,
      )
    return best_items(scores, excluded, top_k=top_k)

  return jax.jit(rank)


def score_items(
  model: sequential.SequenceModel,
  params: Any,
  attributes: sequential.ItemAttributes | None,
  batch: batch_lib.SessionBatch,
) -> Float[Array, 'B I']:
  """Returns log p of every item as each user's next one.

  bert4rec reads a mask item after the history, the others its last item.

  Args:
    model: the model.
    params: its parameters.
    attributes: of the catalogue; fdsa only.
    batch: users; targets are not read.
  """
  slots = 1 if model.kind == 'bert4rec' else 0
  shape = (batch.history_items.shape[0], slots)
  sequences = sequential.join_right(
    batch.history_items,
    batch.history_mask,
    jnp.zeros(shape, batch.history_items.dtype),
    jnp.ones(shape, bool),
  )
  output = model.apply(
    {'params': params},
    sequences.items,
    sequences.mask,
    sequences.is_target if slots else None,
    attributes,
    deterministic=True,
  )
  assert isinstance(output, sequential.SequenceOutput)
  scores = jnp.einsum('bd,id->bi', output.states[:, -1], output.table)
  return jax.nn.log_softmax(scores + output.bias[None], axis=-1)


def without(
  scores: Float[Array, 'B I'], excluded: Int[Array, 'B X']
) -> Float[Array, 'B I']:
  """Returns the scores, -inf for excluded items; -1 excludes nothing."""
  rows = jnp.arange(scores.shape[0])[:, None]
  # A negative place would count from the end; one beyond it is dropped.
  places = jnp.where(excluded >= 0, excluded, scores.shape[1])
  return scores.at[rows, places].set(-jnp.inf, mode='drop')


def best_items(
  scores: Float[Array, 'B I'],
  excluded: Int[Array, 'B X'],
  *,
  top_k: int,
) -> Ranking:
  """Returns the items with the highest scores; ties go to the smaller item.

  Args:
    scores: one per item of the catalogue. [B, I]
    excluded: dense items per user, repeats allowed; -1: none. [B, X]
    top_k: length of the list (K), filled up where the catalogue is shorter.
  """
  best, items = lax.top_k(
    without(scores, excluded), min(top_k, scores.shape[1])
  )
  fill = ((0, 0), (0, top_k - best.shape[1]))
  best = jnp.pad(best, fill, constant_values=-jnp.inf)
  valid = best > -jnp.inf
  return Ranking(jnp.where(valid, jnp.pad(items, fill), -1), best, valid)
