"""The loop over items and levels that beam search and sampling share.

Works on a step function and knows the trie, not the model.  Which
continuations survive is decided by the `choose` it is given.
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
from jaxtyping import Shaped

from onerec_jax.decoding import constraints
from onerec_jax.semantic_ids import prefix_trie

Cache = Any  # pytree; leaves [layers, B, W, ...]


# (prefix [B, W, l], position [], cache) -> (log_probs [B, W, C], cache).
# Feeds the token after the first l codes of an item (l = 0: BOS) at `position`;
# the result is the log-probability of every code of level l.  l = L: the item
# is complete, its last token is only added, nothing is predicted.
StepFunction = Callable[[Array, Array, Cache], tuple[Array, Cache]]


class Choice(NamedTuple):
  """Continuations that survive a level, V per user."""

  parents: Int[Array, 'B V'] | None  # beam continued; None: beam v itself
  chosen: Int[Array, 'B V']  # candidate of that beam
  log_probs: Float[Array, 'B V']  # of the whole hypothesis; -inf: dead


# (candidate log-probs [B, W, R], totals [B, W], position []) -> Choice.
Choose = Callable[[Array, Array, Array], Choice]


class Hypotheses(NamedTuple):
  """Generated sessions, W per user, M items of L codes each."""

  codes: Int[Array, 'B W M L']  # -1 where not valid
  log_probs: Float[Array, 'B W']  # nats, sum over M*L codes; -inf if not valid
  leaves: Int[Array, 'B W M']  # leaf of the trie; -1: none, or no trie given
  valid: Bool[Array, 'B W']  # False: there was nothing left to generate
  # Entropy of P(code of level l | prefix) of the first item, nats, over all
  # that the model gives probability to (all codes; with `normalise` those that
  # follow in the trie), before exclusions; mean of the live prefixes. [B, L]
  entropy: Float[Array, 'B L']


class _State(NamedTuple):
  codes: Int[Array, 'B W M L']
  paths: Int[Array, 'B W M L']  # trie nodes, depth 1..L
  log_probs: Float[Array, 'B W']
  cache: Cache


def generate(
  step_fn: StepFunction,
  cache: Cache,
  choose: Choose,
  *,
  batch_size: int,
  width: int,
  trie: prefix_trie.PrefixTrie | None,
  codes_per_level: tuple[int, ...],
  num_items: int,
  exclude_codes: Int[Array, 'B X L'] | None,
  forbid_repeats: bool,
  normalise: bool,
) -> Hypotheses:
  """Generates sessions of `num_items` items, BOS forced before each, unscored.

  Args:
    step_fn: decoder step.
    cache: empty cache of one beam, leaves [layers, B, 1, ...] with room for
      num_items * (L + 1) tokens.
    choose: decides which candidates survive; may return fewer than `width`
      only while the first item is generated.
    batch_size: number of users (B).
    width: hypotheses per user (W).
    trie: only its IDs are generated; None: any codes.
    codes_per_level: K of each level.
    num_items: items per session (M).
    exclude_codes: IDs not to generate; rows of -1 are ignored.
    forbid_repeats: no ID twice in a session.
    normalise: probabilities over what follows in the trie; False: over all
      codes of a level.

  Raises:
    ValueError: exclusions without a trie, or a trie of other levels.
  """
  codes_per_level = tuple(codes_per_level)
  if trie is not None and trie.codes_per_level != codes_per_level:
    raise ValueError(
      f'The trie has codes_per_level={trie.codes_per_level}, the model'
      f' {codes_per_level}: build the trie from the IDs the model was trained'
      ' on.'
    )
  exclusions = None
  if exclude_codes is not None:
    if trie is None:
      raise ValueError(
        'exclude_codes needs a trie: pass trie=..., or drop the items after'
        ' free decoding.'
      )
    exclusions = constraints.make_exclusions(trie, exclude_codes)
  levels = len(codes_per_level)
  empty = jnp.full((batch_size, 1, num_items, levels), -1, jnp.int32)
  state = _State(
    codes=empty,
    paths=jnp.zeros_like(empty),
    log_probs=jnp.zeros((batch_size, 1), jnp.float32),
    cache=cache,
  )

  def extend(state: _State, item: Any, *, first: bool):
    return _extend(
      step_fn,
      state,
      choose,
      item,
      trie=trie,
      codes_per_level=codes_per_level,
      exclusions=exclusions,
      first=first,
      forbid_repeats=forbid_repeats,
      normalise=normalise,
      keep_cache=num_items > 1,
    )

  # The first item is unrolled: it starts from one beam.
  state, entropy = extend(state, 0, first=True)
  state = _pad_beams(state, width)
  if num_items > 1:

    def body(state: _State, item: Array) -> tuple[_State, None]:
      position = item * (levels + 1) - 1
      before = lax.dynamic_index_in_dim(
        state.codes, item - 1, axis=2, keepdims=False
      )
      _, cache = step_fn(before, position, state.cache)
      return extend(state._replace(cache=cache), item, first=False)[0], None

    state, _ = lax.scan(body, state, jnp.arange(1, num_items))
  valid = jnp.isfinite(state.log_probs)
  leaves = jnp.full_like(state.paths[..., -1], -1)
  if trie is not None:
    leaves = jnp.where(valid[..., None], state.paths[..., -1], -1)
  return Hypotheses(
    codes=jnp.where(valid[..., None, None], state.codes, -1),
    log_probs=jnp.where(valid, state.log_probs, -jnp.inf),
    leaves=leaves,
    valid=valid,
    entropy=entropy,
  )


def _extend(
  step_fn: StepFunction,
  state: _State,
  choose: Choose,
  item: Any,
  *,
  trie: prefix_trie.PrefixTrie | None,
  codes_per_level: tuple[int, ...],
  exclusions: constraints.Exclusions | None,
  first: bool,
  forbid_repeats: bool,
  normalise: bool,
  keep_cache: bool,
) -> tuple[_State, Float[Array, 'B L']]:
  """Adds one item to every hypothesis; returns the entropy per level too."""
  codes, paths, totals, cache = state
  levels = len(codes_per_level)
  done = jnp.arange(codes.shape[2]) < item
  node = jnp.zeros(totals.shape, jnp.int32)
  prefix = jnp.zeros((*totals.shape, 0), jnp.int32)
  path = prefix
  entropies = []
  for l, num_codes in enumerate(codes_per_level):
    position = jnp.asarray(item * (levels + 1) + l, jnp.int32)
    log_probs, cache = step_fn(prefix, position, cache)
    own = log_probs[..., :num_codes]
    if normalise:
      own = constraints.candidates(
        trie,
        log_probs,
        node,
        None,
        level=l,
        num_codes=num_codes,
        normalise=True,
      ).log_probs
    entropies.append(_entropy(own, totals))
    blocked = None
    if exclusions is not None and trie is not None:
      blocked = constraints.blocked_by_exclusions(
        trie, exclusions, node, level=l, first_item=first
      )
    if forbid_repeats and not first:
      repeats = constraints.blocked_by_repeats(
        trie,
        exclusions,
        codes=codes,
        paths=paths,
        done=done,
        prefix=prefix,
        level=l,
        num_codes=num_codes,
      )
      blocked = repeats if blocked is None else blocked | repeats
    found = constraints.candidates(
      trie,
      log_probs,
      node,
      blocked,
      level=l,
      num_codes=num_codes,
      normalise=normalise,
    )
    choice = choose(found.log_probs, totals, position)
    totals = choice.log_probs
    parents = choice.parents
    if parents is None:
      itself = jnp.arange(totals.shape[1])[None]
      parents = jnp.broadcast_to(itself, totals.shape)
    code, child = constraints.follow(
      trie, found, node, parents, choice.chosen, level=l
    )
    if choice.parents is not None:
      codes, paths, prefix, path = jax.tree.map(
        lambda x, p=parents: constraints.reorder(x, p),
        (codes, paths, prefix, path),
      )
      if keep_cache or l < levels - 1:
        cache = _reorder_cache(cache, parents)
    node = child
    prefix = jnp.concatenate([prefix, code[..., None]], -1)
    path = jnp.concatenate([path, child[..., None]], -1)
  new = _State(
    codes=lax.dynamic_update_index_in_dim(codes, prefix, item, 2),
    paths=lax.dynamic_update_index_in_dim(paths, path, item, 2),
    log_probs=totals,
    cache=cache,
  )
  return new, jnp.stack(entropies, -1)


def _reorder_cache(cache: Cache, parents: Int[Array, 'B V']) -> Cache:
  """Gives every surviving beam the cache of the beam it continues."""

  def reorder(x: Array) -> Array:
    if x.shape[2] == 1:
      shape = (*x.shape[:2], parents.shape[1], *x.shape[3:])
      return jnp.broadcast_to(x, shape)
    if x.shape[2] != parents.shape[1]:  # once, in the first item
      return take_beams(x, parents)
    return lax.platform_dependent(
      x, parents, tpu=select_beams, default=take_beams
    )

  return jax.tree.map(reorder, cache)


def take_beams(
  x: Shaped[Array, 'layers B W ...'], parents: Int[Array, 'B V']
) -> Shaped[Array, 'layers B V ...']:
  """Returns x[:, b, parents[b, v], ...]: a gather."""
  index = parents.reshape(1, *parents.shape, *(1,) * (x.ndim - 3))
  return jnp.take_along_axis(x, index, axis=2, mode='clip')


def select_beams(
  x: Shaped[Array, 'layers B W ...'], parents: Int[Array, 'B W']
) -> Shaped[Array, 'layers B W ...']:
  """Equals `take_beams` where x is finite: products with one-hot matrices.

  On TPU attention over short sequences wants beams along the lanes of a
  register, and a gather wants them anywhere else: all of the cache would be
  copied from one layout to the other and back at every level.  A product
  with a matrix takes beams as they lie, and writes where it has read.

  Args:
    x: a leaf of the cache; its last two axes are multiplied at once.
    parents: beam continued by each beam.
  """
  layers, batch, width = x.shape[:3]
  rest = (1, 1, *x.shape[3:])
  y = x.reshape(layers, batch, width, -1, *rest[-2:])
  y = y.transpose(0, 3, 4, 1, 5, 2)  # [layers, T, H, B, K, W]
  slabs = y.reshape(-1, *y.shape[2:])
  chosen = parents[..., None] == jnp.arange(width)[None, None]
  chosen = jnp.broadcast_to(chosen[None], (y.shape[2], *chosen.shape))
  chosen = chosen.astype(x.dtype)

  def select(i: Array, slabs: Array) -> Array:
    slab = lax.dynamic_index_in_dim(slabs, i, keepdims=False)
    # The highest precision: float32 is not rounded to bfloat16.
    slab = jnp.einsum('hbvw,hbkw->hbkv', chosen, slab, precision='highest')
    return lax.dynamic_update_index_in_dim(slabs, slab, i, 0)

  slabs = lax.fori_loop(0, slabs.shape[0], select, slabs)
  return slabs.reshape(y.shape).transpose(0, 3, 5, 1, 2, 4).reshape(x.shape)


def _pad_beams(state: _State, width: int) -> _State:
  """Adds dead beams where the first item had fewer continuations."""
  missing = width - state.log_probs.shape[1]
  if not missing:
    return state

  def pad(x: Array, axis: int, value: float = 0.0) -> Array:
    pads = [(0, missing if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, pads, constant_values=value)

  return _State(
    codes=pad(state.codes, 1, -1.0),
    paths=pad(state.paths, 1),
    log_probs=pad(state.log_probs, 1, -jnp.inf),
    cache=jax.tree.map(lambda x: pad(x, 2), state.cache),
  )


def _entropy(
  log_probs: Float[Array, 'B W K'], totals: Float[Array, 'B W']
) -> Float[Array, ' B']:
  """Entropy of the code distribution, averaged over live beams, in nats."""
  probs = jnp.exp(log_probs)
  # 0 * -inf is 0 here: the limit of p log p.
  terms = jnp.where(probs > 0, probs * log_probs, 0.0)
  live = jnp.isfinite(totals)
  total = jnp.where(live, -terms.sum(-1), 0.0).sum(-1)
  return total / jnp.maximum(live.sum(-1), 1)
