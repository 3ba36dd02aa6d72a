"""Batch pytrees: dtype, shape and mask of every array that crosses a function.

Dimension glossary, used in every docstring and einsum:
  B batch · N history length (items) · M target items (session length) ·
  L code levels per item · S encoder tokens · T decoder tokens · D embed ·
  H heads · K head dim · E experts · R routed slots per token (top_k) ·
  F hidden width · C codes per level · W beams · G rollouts per group ·
  V vocabulary (token ids) · X reward targets · P preference pairs.

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledBatch:
  """Shown sessions (as targets) with what the users did (spec §9)."""

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


class Mean(NamedTuple):
  """A mean that is still a sum and a count, so that batches combine exactly."""

  total: Float[Array, '*shape']
  count: Float[Array, '*shape']  # pyright: ignore[reportIncompatibleMethodOverride] # no one counts the entries of a mean

  def value(self) -> jax.Array:
    """Returns total / count; 0 where nothing was counted."""
    return self.total / jax.numpy.maximum(self.count, 1e-9)

  def __add__(self, other: 'Mean') -> 'Mean':  # type: ignore[override] # pytree tuples never concatenate
    return Mean(self.total + other.total, self.count + other.count)
