"""What followed what in training: a memory that is mixed into rankings.

A model of a few million parameters does not hold what two or three users did;
counts do.  As kNN language models interpolate with a store of examples
(Khandelwal et al. 2020, arXiv:1911.00172, eq. 3), so are a model's
probabilities here with counted ones.  Pure array functions; counting is done in
data/baselines.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import prefix_trie

# Heaviest successors kept of an item.
SUCCESSORS = 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
  """The heaviest successors of every item (R of them).

  8 R bytes an item, whole on every device as the catalogue is.
  """

  successors: Int[Array, 'I R']  # int32, dense items; -1 fills
  weights: Float[Array, 'I R']  # f32, 0 where there is no successor
  history_items: int = dataclasses.field(metadata={'static': True})  # A
  # Weight of an item of the history one place further back.
  history_decay: float = dataclasses.field(metadata={'static': True})

  @classmethod
  def of_rows(
    cls,
    offsets: Int[np.ndarray, ' I1'],
    items: Int[np.ndarray, ' n'],
    weights: Float[np.ndarray, ' n'],
    *,
    history_items: int,
    history_decay: float,
    most: int = SUCCESSORS,
  ) -> 'Transitions':
    """Returns the transitions of a sparse matrix, by rows (CSR).

    Args:
      offsets: successors of item i are at offsets[i]:offsets[i + 1]. [I + 1]
      items: the successors.
      weights: theirs, above 0.
      history_items: last items of a history that are looked at (A).
      history_decay: weight of one place further back.
      most: R, successors kept of an item, those of the largest weight; ties go
        to the smaller item.
    """
    num_items = offsets.size - 1
    source = np.repeat(np.arange(num_items), np.diff(offsets))
    order = np.lexsort((items, -weights, source))
    # Sorted by source, so that the place in its row is as before sorting.
    rank = np.arange(items.size) - offsets[:-1][source]
    kept = rank < most
    place = source[kept], rank[kept]
    successors = np.full((num_items, most), -1, np.int32)
    successors[place] = items[order][kept]
    kept_weights = np.zeros((num_items, most), np.float32)
    kept_weights[place] = weights[order][kept]
    return cls(
      successors=jnp.asarray(successors),
      weights=jnp.asarray(kept_weights),
      history_items=history_items,
      history_decay=history_decay,
    )

  def with_items(self, num_items: int) -> 'Transitions':
    """Returns the transitions of a larger catalogue; new items have none."""
    more = [(0, num_items - len(self.successors)), (0, 0)]
    return dataclasses.replace(
      self,
      successors=jnp.pad(self.successors, more, constant_values=-1),
      weights=jnp.pad(self.weights, more),
    )


class Followers(NamedTuple):
  """What the last items of each user lead to; an item may come repeatedly."""

  items: Int[Array, 'B C']  # dense; -1: none
  weights: Float[Array, 'B C']  # 0 where there is none, and of excluded items


def after(
  transitions: Transitions | None,
  history_items: Int[Array, 'B N'],
  history_mask: Bool[Array, 'B N'],
  excluded: Int[Array, 'B X'],
  allowed: Bool[Array, ' I'] | None = None,
) -> Followers:
  """Returns the successors of each user's last A items, C = A R.

    weight(j) = Σ_{a<A} history_decay^a · weights[h_a, j]

  h_a is the item `a` places before the end.

  Args:
    transitions: of the catalogue.
    history_items: dense, oldest first, padding at the end. [B, N]
    history_mask: False: padding. [B, N]
    excluded: dense items that are not recommended; -1: none. [B, X]
    allowed: items that may be recommended; None: all. [I]

  Raises:
    ValueError: there are no transitions.
  """
  if transitions is None:
    raise ValueError(
      'decoding.transition_weight is above 0, so transitions must be given.'
    )
  ago = jnp.arange(transitions.history_items)
  place = jnp.sum(history_mask, axis=1, keepdims=True) - 1 - ago[None]
  last = jnp.take_along_axis(history_items, jnp.maximum(place, 0), axis=1)
  items = jnp.where(
    (place >= 0)[..., None], transitions.successors[last], -1
  ).reshape(last.shape[0], -1)
  decay = transitions.history_decay**ago
  weights = transitions.weights[last] * decay[None, :, None]
  counts = items >= 0
  if allowed is not None:
    counts &= allowed[jnp.maximum(items, 0)]
  if excluded.shape[1]:
    counts &= ~(items[:, :, None] == excluded[:, None, :]).any(-1)
  return Followers(items, jnp.where(counts, weights.reshape(items.shape), 0))


def of_ids(
  followers: Followers,
  trie: prefix_trie.PrefixTrie,
  item_codes: Int[Array, 'I L'],
  leaves: Int[Array, 'B W'],
) -> Float[Array, 'B W']:
  """Returns the weight of semantic IDs: that of all followers that carry them.

  Args:
    followers: of `after`.
    trie: the catalogue.
    item_codes: semantic ID of every dense item.
    leaves: of the IDs, none twice; -1: no ID of the catalogue, weight 0.
  """
  own = trie.lookup(item_codes[jnp.maximum(followers.items, 0)])
  same = (leaves[:, :, None] == own[:, None, :]) & (leaves >= 0)[..., None]
  return jnp.sum(jnp.where(same, followers.weights[:, None, :], 0), axis=-1)


def of_items(followers: Followers, num_items: int) -> Float[Array, 'B I']:
  """Returns the weight of every item of the catalogue."""
  rows = jnp.arange(followers.items.shape[0])[:, None]
  # A negative place would count from the end; one beyond it is dropped.
  places = jnp.where(followers.items >= 0, followers.items, num_items)
  empty = jnp.zeros((followers.items.shape[0], num_items), jnp.float32)
  return empty.at[rows, places].add(followers.weights, mode='drop')


def mix(
  scores: Float[Array, 'B W'],
  valid: Bool[Array, 'B W'],
  counted: Float[Array, 'B W'],
  *,
  weight: float,
) -> Float[Array, 'B W']:
  """Returns log((1 - λ) softmax(scores) + λ counted / Σ counted).

  Where nothing is counted it is the softmax alone.

  Args:
    scores: log-probabilities but for a constant per user.
    valid: what is normalised over; -inf elsewhere.
    counted: weights, at least 0.
    weight: λ, 0 to 1, both exclusive.
  Reference: Khandelwal et al. 2020, arXiv:1911.00172, eq. 3.
  """
  own = jax.nn.log_softmax(jnp.where(valid, scores, -jnp.inf), axis=-1)
  counted = jnp.where(valid, counted, 0)
  total = jnp.sum(counted, axis=-1, keepdims=True)
  share = jnp.log(counted) - jnp.log(jnp.where(total > 0, total, 1))
  mixed = jnp.logaddexp(own + jnp.log1p(-weight), share + jnp.log(weight))
  return jnp.where(valid, jnp.where(total > 0, mixed, own), -jnp.inf)
