"""Batch pytrees: dtype, shape and mask of every array that crosses a function.

Dimension glossary, used in every docstring and einsum:
  B batch · N history length (items) · M target items (session length) ·
  L code levels per item · S encoder tokens · T decoder tokens · D embed ·
  H heads · K head dim · E experts · R routed slots per token (top_k) ·
  F hidden width · C codes per level · W beams · G rollouts per group ·
  V vocabulary (token ids) · X reward targets · P preference pairs or groups ·
  A event labels · I items.

Padding is always marked by an explicit mask, True = keep.  Code 0 and item 0
are real: never infer padding from a value.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jaxtyping import Array
from jaxtyping import Float

# A NumPy or JAX array, a tracer, or (inside tree_map) a sharding or spec.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SessionBatch:
  """Users with their history and the session to be generated.

  Items are dense indices 0..num_items-1 (the row in items.parquet); semantic
  IDs are looked up on the device, so a batch does not depend on the tokenizer.
  """

  example_id: Leaf  # int32 [B]; place among the file's target starts
  user: Leaf  # int32 [B]; dense user index
  history_items: Leaf  # int32 [B, N]; oldest first; pads (0, masked) at the end
  history_mask: Leaf  # bool [B, N]
  target_items: Leaf  # int32 [B, M]; in exposure order; pads at the end
  target_mask: Leaf  # bool [B, M]
  example_mask: Leaf  # bool [B]; False: filler row that completes a batch
  # What encoder='pathways' reads beside; None: history only.
  context: 'UserContext | None' = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EventSequence:
  """Events (or clusters of events) of one pathway, oldest first.

  F event features and A labels, in the order of config.PathwaysConfig; K
  values of each of the Q item features with `average`.  Bucket 0 is unknown.
  """

  items: Leaf  # int32 [B, N]; dense; pads (0, masked) at the beginning
  mask: Leaf  # bool [B, N]
  age: Leaf  # int32 [B, N]; bucket of the log seconds before the request
  numbers: Leaf  # int32 [B, N, F]; buckets of the event features
  labels: Leaf  # float32 [B, N, A]; 1: it happened; clusters: their mean
  label_mask: Leaf  # bool [B, N, A]; False: not logged
  # Clusters only: item features averaged over the cluster, as values and
  # weights that sum to 1 (all 0: unknown); None: those of `items`.
  categories: Leaf = None  # int32 [B, N, Q, K]
  category_weights: Leaf = None  # float32 [B, N, Q, K]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UserContext:
  """A user at a request (2506.13695, section 2.2.1); nothing in it is later."""

  features: Leaf  # int32 [B, U]; id of each user feature, 0: unknown
  short: EventSequence | None  # latest events of any kind
  positive: EventSequence | None  # latest positive events
  lifelong: EventSequence | None  # clusters of the whole history


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemFeatures:
  """Values of the item features, row = dense item; a value of 0 is unknown.

  One array per config.ItemFeature: values are padded with 0, which no real
  value has.
  """

  values: tuple[Leaf, ...]  # int32 [I, max_values]


class FeatureSizes(NamedTuple):
  """Number of ids of every feature, the unknown 0 included: table sizes."""

  num_items: int
  users: tuple[int, ...]  # per config.UserFeature
  items: tuple[int, ...]  # per config.ItemFeature


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Catalogue:
  """What the models know of every item."""

  codes: Leaf  # int32 [I, L]; semantic IDs
  features: ItemFeatures | None = None  # read by pathways and P-Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledBatch:
  """Shown sessions (as targets) with what the users did (2502.18965, 3.3.1)."""

  session: SessionBatch
  labels: Leaf  # float32 [B, X]; in 0..1, one column per reward target
  label_mask: Leaf  # bool [B, X]; False: the label is unknown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
  """Preferred and rejected sessions of users, scored by the reference.

  Place 0 of axis W holds the chosen session, the others the rejected ones.
  """

  session: SessionBatch  # the users and their history; targets are not read
  items: Leaf  # int32 [B, W, M]; candidate sessions
  mask: Leaf  # bool [B, W, M]
  reference_log_probs: Leaf  # float32 [B, W]; summed over tokens, nats
  rewards: Leaf  # float32 [B, W]; scalar rewards, 0 for logged pairs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
  """Samples for next-token prediction and the pairs that go with them."""

  session: SessionBatch  # B samples
  pairs: PairBatch  # P pairs; rows with session.example_mask False are filler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupBatch:
  """Items generated for users, with what they earned (2506.13695, 2.4.1).

  Illegal outputs have no item, so the outputs are given by their codes.
  """

  session: SessionBatch  # P users; targets are not read
  codes: Leaf  # int32 [P, G, L]
  old_log_probs: Leaf  # float32 [P, G, L]; of the generator, nats per code
  reference_log_probs: Leaf  # float32 [P, G, L]; of the seed model; grpo only
  rewards: Leaf  # float32 [P, G]; 0 where illegal
  legal: Leaf  # bool [P, G]; the ID has an item
  format_mask: Leaf  # bool [P, G]; chosen for the format reward
  true_rewards: Leaf  # float32 [P, G]; NaN: not known


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReinforceBatch:
  """RSFT samples and the groups that go with them."""

  session: SessionBatch  # B samples
  groups: GroupBatch  # P groups; rows with example_mask False are filler


class Mean(NamedTuple):
  """A mean that is still a sum and a count, so that batches combine exactly."""

  total: Float[Array, '*shape']
  count: Float[Array, '*shape']  # pyright: ignore[reportIncompatibleMethodOverride] # no one counts the entries of a mean

  def value(self) -> jax.Array:
    """Returns total / count; 0 where nothing was counted."""
    return self.total / jax.numpy.maximum(self.count, 1e-9)

  def __add__(self, other: 'Mean') -> 'Mean':  # type: ignore[override] # pytree tuples never concatenate
    return Mean(self.total + other.total, self.count + other.count)
