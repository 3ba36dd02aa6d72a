"""From a batch of users to ranked items: encode, search, look up, filter.

One compiled function for training-time evaluation, reports and serving.  Does
no I/O and holds no parameters.
"""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.decoding import beam_search
from onerec_jax.decoding import constraints
from onerec_jax.decoding import generation
from onerec_jax.decoding import transitions as transitions_lib
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.ops import history as history_ops
from onerec_jax.semantic_ids import prefix_trie

# Items per user that can be excluded; the most recent ones are kept.  Bounds
# the compare of every exclusion with every other one inside the search.
MAX_EXCLUDED = 1024


class Recommendations(NamedTuple):
  """Ranked answers for B users: K items, from W generated sessions."""

  items: Int[Array, 'B K']  # dense items, best first, none twice; -1: no item
  # Log-probability of the session it came from; with decoding.item_weight
  # above 0 plus the weighted score of the item; with decoding.transition_weight
  # above 0 the log-probability among the hypotheses, counts included.
  scores: Float[Array, 'B K']
  valid: Bool[Array, 'B K']
  # The session that each hypothesis stands for: the first item of every ID
  # that is not excluded; -1: none.
  session_items: Int[Array, 'B W M']
  hypotheses: beam_search.BeamResult  # codes, log_probs, leaves, valid, entropy
  # Legality (2506.13695, section 2.4.2) = legal / generated, summed over users
  # first.
  generated: Int[Array, ' B']  # hypotheses that hold a session
  legal: Int[Array, ' B']  # of these, those whose IDs all belong to items


# (params, router_bias [layers, E], catalogue, trie, batch,
#  exclude_items [B, X] | None = None, transitions | None = None,
#  allowed [I] | None = None) -> Recommendations
Recommend = Callable[..., Recommendations]


def make_recommender(
  model: Any, decoding: config.DecodingConfig, *, top_k: int
) -> Recommend:
  """Returns the compiled function from a batch to `top_k` items per user.

  Its arguments are the parameters, the router bias, the catalogue (codes of
  every item and their trie) and the users, so that new parameters and a
  refreshed catalogue of the same capacity run without compiling.
  `exclude_items` (dense, -1 = none) replaces the history as the items that are
  not recommended again; it counts only if decoding.exclude_history.
  `transitions` must be given if decoding.transition_weight is above 0.
  `allowed`, of all items, goes with a trie of these alone (`PrefixTrie.only`).

  Args:
    model: the OneRec module.
    decoding: beam width, session length, constraint and exclusions.
    top_k: length of the item list (K).
  """
  codes_per_level = tuple(model.vocabulary.codes_per_level)

  def recommend(
    params: Any,
    router_bias: Float[Array, 'layers E'],
    catalogue: batch_lib.Catalogue,
    trie: prefix_trie.PrefixTrie,
    batch: batch_lib.SessionBatch,
    exclude_items: Int[Array, 'B X'] | None = None,
    transitions: transitions_lib.Transitions | None = None,
    allowed: Bool[Array, ' I'] | None = None,
  ) -> Recommendations:
    started = start(
      model, params, router_bias, catalogue, batch, decoding=decoding
    )
    excluded = jnp.where(batch.history_mask, batch.history_items, -1)
    if exclude_items is not None:
      excluded = exclude_items
    if not decoding.exclude_history:
      excluded = excluded[:, :0]
    if allowed is not None:  # what is in no list uses up no ID
      listed = (excluded >= 0) & allowed[jnp.maximum(excluded, 0)]
      excluded = jnp.where(listed, excluded, -1)
    constrained = decoding.constrain == 'trie'
    exclude_codes = None
    if constrained and decoding.exclude_history:
      exclude_codes = used_up_ids(trie, catalogue.codes, excluded)
    hypotheses = beam_search.search(
      started.step_fn,
      started.cache,
      trie=trie if constrained else None,
      codes_per_level=codes_per_level,
      num_beams=decoding.num_beams,
      num_items=decoding.num_items,
      exclude_codes=exclude_codes,
      forbid_repeats=decoding.forbid_repeats,
      normalise=model.config.normalise_over == 'catalogue',
    )
    if decoding.item_weight:
      scores = model.apply(
        {'params': params},
        hypotheses.codes[:, :, 0],
        started.context,
        router_bias,
        method='item_scores',
      )
      hypotheses = by_scores(
        hypotheses, hypotheses.log_probs + decoding.item_weight * scores
      )
    if decoding.transition_weight:
      hypotheses = _with_transitions(
        hypotheses, transitions, trie, catalogue, batch, excluded, allowed
      )
    return rank_items(trie, hypotheses, excluded, top_k=top_k)

  def _with_transitions(
    hypotheses: beam_search.BeamResult,
    transitions: transitions_lib.Transitions | None,
    trie: prefix_trie.PrefixTrie,
    catalogue: batch_lib.Catalogue,
    batch: batch_lib.SessionBatch,
    excluded: Int[Array, 'B X'],
    allowed: Bool[Array, ' I'] | None,
  ) -> beam_search.BeamResult:
    followers = transitions_lib.after(
      transitions, batch.history_items, batch.history_mask, excluded, allowed
    )
    counted = transitions_lib.of_ids(
      followers, trie, catalogue.codes, trie.lookup(hypotheses.codes[:, :, 0])
    )
    # Of two distributions the geometric mean, as far as order goes.
    own = hypotheses.log_probs / (1 + decoding.item_weight)
    return by_scores(
      hypotheses,
      transitions_lib.mix(
        own, hypotheses.valid, counted, weight=decoding.transition_weight
      ),
    )

  return jax.jit(recommend)


class Started(NamedTuple):
  """Encoded users, before anything is generated."""

  step_fn: generation.StepFunction
  cache: generation.Cache  # empty, of one beam
  context: onerec.Context  # what all steps share


def start(
  model: Any,
  params: Any,
  router_bias: Float[Array, 'layers E'],
  catalogue: batch_lib.Catalogue,
  batch: batch_lib.SessionBatch,
  *,
  decoding: config.DecodingConfig,
) -> Started:
  """Encodes the users once; returns what a search runs on.

  With decoding.continue_items = J, the last min(J, n - 1) of a user's n items
  become the beginning of the session; the encoder reads those before.

  Args:
    model: the OneRec module.
    params: its parameters.
    router_bias: expert biases, state of the model.
    catalogue: semantic ID (and features) of every dense item.
    batch: users; targets are not read.
    decoding: items that will be generated (M) and continued (J).

  Raises:
    ValueError: the batch has no room for history beside the J items.
  """
  apply = functools.partial(model.apply, {'params': params})
  history, prefix = history_ops.split_history(
    batch.history_items, batch.history_mask, num_last=decoding.continue_items
  )
  inputs = encoder_input.of_batch(batch, catalogue)
  encoded = apply(
    inputs._replace(codes=catalogue.codes[history.items], mask=history.mask),
    router_bias,
    method='encode',
  )
  context = apply(
    encoded,
    catalogue.codes[prefix.items],
    prefix.mask,
    router_bias,
    method='start_decoding',
  )
  length = decoding.num_items * (catalogue.codes.shape[1] + 1)
  cache = apply(
    batch=batch.user.shape[0], beams=1, length=length, method='init_cache'
  )

  def step_fn(
    prefix: Int[Array, 'B W l'],
    position: Int[Array, ''],
    cache: generation.Cache,
  ) -> tuple[Float[Array, 'B W C'], generation.Cache]:
    return apply(
      prefix, position, cache, context, router_bias, method='decode_step'
    )

  return Started(step_fn, cache, context)


def by_scores(
  hypotheses: beam_search.BeamResult, scores: Float[Array, 'B W']
) -> beam_search.BeamResult:
  """Returns the hypotheses with new scores for log-probabilities, best first.

  Args:
    hypotheses: in any order.
    scores: finite where valid; others stay last.
  """
  scores = jnp.where(hypotheses.valid, scores, -jnp.inf)
  best, order = lax.top_k(scores, scores.shape[1])
  return hypotheses._replace(
    codes=jnp.take_along_axis(
      hypotheses.codes, order[:, :, None, None], axis=1
    ),
    log_probs=best,
    leaves=jnp.take_along_axis(hypotheses.leaves, order[:, :, None], axis=1),
    valid=jnp.take_along_axis(hypotheses.valid, order, axis=1),
  )


def exclusion_width(longest: int) -> int:
  """Returns the padded number of excluded items per user.

  Multiples of 32, so that runs share compiled programs, up to MAX_EXCLUDED.

  Args:
    longest: most items that any user will exclude.
  """
  return min(max(-(-longest // 32) * 32, 1), MAX_EXCLUDED)


def exclusion_array(
  seen: Sequence[np.ndarray], *, width: int
) -> Int[np.ndarray, 'B X']:
  """Returns the last `width` items of each user; -1 fills.

  Args:
    seen: dense items, oldest first.
    width: from `exclusion_width`.
  """
  excluded = np.full((len(seen), width), -1, np.int32)
  for row, items in enumerate(seen):
    recent = items[-width:]
    excluded[row, : len(recent)] = recent
  return excluded


def used_up_ids(
  trie: prefix_trie.PrefixTrie,
  item_codes: Int[Array, 'num_items L'],
  excluded: Int[Array, 'B X'],
) -> Int[Array, 'B X L']:
  """Returns the IDs of which every item is excluded, in any order.

  Args:
    trie: the catalogue.
    item_codes: semantic ID of every dense item.
    excluded: dense items per user, repeats allowed; -1: none.

  Returns:
    One row per excluded item; -1 where its ID has other items left.
  """
  codes = item_codes[jnp.maximum(excluded, 0)]
  leaf = jnp.where(excluded >= 0, trie.lookup(codes), -1)
  leaf, items = lax.sort([leaf, excluded], dimension=1, num_keys=2)
  repeated = (leaf == jnp.roll(leaf, 1, axis=1)) & (
    items == jnp.roll(items, 1, axis=1)
  )
  distinct = (leaf >= 0) & ~repeated.at[:, :1].set(False)
  count = constraints.run_totals(leaf, distinct)
  used_up = (leaf >= 0) & (count >= trie.bucket_size(jnp.maximum(leaf, 0)))
  codes = item_codes[jnp.maximum(items, 0)]
  return jnp.where(used_up[..., None], codes, -1)


def rank_items(
  trie: prefix_trie.PrefixTrie,
  hypotheses: beam_search.BeamResult,
  excluded: Int[Array, 'B X'],
  *,
  top_k: int,
) -> Recommendations:
  """Turns generated IDs into one item list per user.

  Order: hypotheses by probability, items by their place in the session, items
  of one ID by their rank in the bucket.  Excluded items, repeats and IDs
  without items drop out.

  Args:
    trie: the catalogue.
    hypotheses: best first.
    excluded: dense items per user; -1: none.
    top_k: length of the list (K).
  """
  leaves = hypotheses.leaves
  found = trie.lookup(hypotheses.codes)  # free decoding knows no leaves
  leaves = jnp.where(hypotheses.valid[..., None], found, leaves)
  batch_size, _, session = leaves.shape
  # No more of a bucket can matter than is asked for plus what drops out.
  size = min(trie.max_bucket, top_k + excluded.shape[1])
  items = trie.bucket(leaves, size=size)  # [B, W, M, size]
  flat_items = items.reshape(batch_size, -1)
  allowed = flat_items >= 0
  if excluded.shape[1]:
    seen = flat_items[:, :, None] == excluded[:, None, :]
    allowed &= ~seen.any(-1)

  # --- What each hypothesis stands for ---
  per_slot = allowed.reshape(items.shape)
  pick = jnp.argmax(per_slot, -1)
  session_items = jnp.take_along_axis(items, pick[..., None], -1)[..., 0]
  session_items = jnp.where(per_slot.any(-1), session_items, -1)

  # --- One list ---
  flat_leaves = leaves.reshape(batch_size, -1)
  if session > 1:  # with one item per session no leaf comes twice
    slots = flat_leaves.shape[1]
    earlier = jnp.tril(jnp.ones((slots, slots), bool), -1)
    same = flat_leaves[:, :, None] == flat_leaves[:, None, :]
    first = ~(same & earlier[None]).any(-1)
    allowed &= jnp.repeat(first, size, axis=1)
  # Positions as f32: exact below 2^24, and the type that top-k is fast for.
  slots = allowed.shape[1]
  order = jnp.where(allowed, jnp.arange(slots, 0.0, -1.0)[None, :], 0.0)
  kept, index = lax.top_k(order, min(top_k, slots))
  missing = top_k - index.shape[1]
  kept = jnp.pad(kept, ((0, 0), (0, missing)))
  index = jnp.pad(index, ((0, 0), (0, missing)))
  valid = kept > 0
  ranked = jnp.take_along_axis(flat_items, index, axis=1)
  beam = index // (session * size)
  scores = jnp.take_along_axis(hypotheses.log_probs, beam, axis=1)
  legal = hypotheses.valid & (leaves >= 0).all(-1)
  return Recommendations(
    items=jnp.where(valid, ranked, -1),
    scores=jnp.where(valid, scores, -jnp.inf),
    valid=valid,
    session_items=session_items,
    hypotheses=hypotheses._replace(leaves=leaves),
    generated=hypotheses.valid.sum(-1),
    legal=legal.sum(-1),
  )
