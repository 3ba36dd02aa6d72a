"""Which continuations of a hypothesis may follow: the trie and exclusions.

Pure array functions over one level of one item; they never choose between
continuations and never see the model.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import trie_levels


class Candidates(NamedTuple):
  """Scored continuations of every beam at one level.

  R is the number of codes, or the branching of a level kept as lists.
  """

  log_probs: Float[Array, 'B W R']  # -inf where not allowed
  codes: Int[Array, 'B W R'] | None  # None: candidate r is code r
  children: Int[Array, 'B W R'] | None  # nodes; None: to be looked up


class Exclusions(NamedTuple):
  """IDs a user must not get, as paths in the trie, in the order of leaves."""

  codes: Int[Array, 'B X L']
  nodes: Int[Array, 'B X L']  # depth 1..L
  distinct: Bool[Array, 'B X']  # legal, and the first of its ID
  # Depth 1..L: nothing but excluded leaves lies below the node.
  exhausted: Bool[Array, 'B X L']


_LAST = jnp.iinfo(jnp.int32).max  # sorts behind every node


def run_totals(
  keys: Int[Array, 'B X'], counted: Bool[Array, 'B X']
) -> Int[Array, 'B X']:
  """Returns, for each entry of sorted `keys`, how many of its equals count."""
  first = keys != jnp.roll(keys, 1, axis=1)
  first = first.at[:, 0].set(True)
  last = jnp.roll(first, -1, axis=1).at[:, -1].set(True)
  upto = jnp.cumsum(counted, axis=1, dtype=jnp.int32)
  before = lax.cummax(jnp.where(first, upto - counted, 0), axis=1)
  end = lax.cummin(jnp.where(last, upto, _LAST), axis=1, reverse=True)
  return end - before


def make_exclusions(
  trie: prefix_trie.PrefixTrie, codes: Int[Array, 'B X L']
) -> Exclusions:
  """Prepares IDs that must not be generated.

  A prefix below which every leaf is excluded is blocked as well, so that no
  beam is spent on a dead end: a search keeps min(beams, allowed IDs) results.

  Args:
    trie: the catalogue.
    codes: IDs; rows of -1, and IDs outside the catalogue, exclude nothing.
  """
  levels = trie.num_levels
  nodes, legal = trie.path(codes)
  nodes = jnp.where(legal[..., None], nodes, _LAST)
  # Sorted by leaf, the entries below any node are neighbours, so that counting
  # them takes no [X, X] compare.
  columns = lax.sort(
    [nodes[..., levels - 1]]
    + [nodes[..., l] for l in range(levels - 1)]
    + [codes[..., l] for l in range(levels)],
    dimension=1,
    num_keys=1,
    is_stable=False,
  )
  leaf = columns[0]
  path = [*columns[1:levels], leaf]
  legal = leaf != _LAST
  distinct = legal & (leaf != jnp.roll(leaf, 1, axis=1)).at[:, 0].set(True)
  exhausted = []
  for l, node in enumerate(path):
    known = jnp.where(legal, node, 0)
    below = run_totals(node, distinct)
    exhausted.append(legal & (below >= trie.leaf_count(l + 1, known)))
  return Exclusions(
    codes=jnp.stack(columns[levels:], -1),
    nodes=jnp.stack(path, -1),
    distinct=distinct,
    exhausted=jnp.stack(exhausted, -1),
  )


def blocked_by_exclusions(
  trie: prefix_trie.PrefixTrie,
  exclusions: Exclusions,
  node: Int[Array, 'B W'],
  *,
  level: int,
  first_item: bool,
) -> Bool[Array, 'B W R']:
  """Marks the candidates that a user's exclusions rule out.

  Each exclusion is written once, to the first beam with its prefix, and beams
  with equal prefixes then read the same row: B X writes, not B W X.

  Args:
    trie: the catalogue.
    exclusions: of every user.
    node: node of each beam's prefix, depth `level`.
    level: level of the code to be chosen.
    first_item: no two live beams have the same prefix.
  """
  blocked = exclusions.exhausted[..., level]
  columns = exclusions.codes[..., level]
  if level:
    parent = exclusions.nodes[..., level - 1]
    same = node[:, :, None] == parent[:, None, :]
    rows = jnp.argmax(same, axis=1)
    blocked &= same.any(1)
  else:
    parent = rows = jnp.zeros_like(columns)
  stored = trie.levels[level]
  if isinstance(stored, trie_levels.ListLevel):
    known = jnp.where(blocked, parent, 0)
    columns = exclusions.nodes[..., level] - stored.first_child.at(known)
  mask = _mark(rows, columns, blocked, like=_empty(trie, node, level=level))
  if first_item:
    return mask
  twin = jnp.argmax(node[:, :, None] == node[:, None, :], axis=2)
  # A gather of these rows is one that libtpu 0.0.50 offloads and then cannot
  # compile (v6e, INTERNAL: Could not find buffer).
  return lax.platform_dependent(mask, twin, tpu=_select_rows, default=reorder)


def _select_rows(
  mask: Bool[Array, 'B W R'], rows: Int[Array, 'B W']
) -> Bool[Array, 'B W R']:
  """Returns mask[b, rows[b, w]] by a matrix product; exact."""
  chosen = rows[:, :, None] == jnp.arange(mask.shape[1])[None, None, :]
  hits = jnp.einsum(
    'bwv,bvr->bwr', chosen.astype(jnp.bfloat16), mask.astype(jnp.bfloat16)
  )
  return hits > 0


def blocked_by_repeats(
  trie: prefix_trie.PrefixTrie | None,
  exclusions: Exclusions | None,
  *,
  codes: Int[Array, 'B W M L'],
  paths: Int[Array, 'B W M L'],
  done: Bool[Array, ' M'],
  prefix: Int[Array, 'B W l'],
  level: int,
  num_codes: int,
) -> Bool[Array, 'B W R']:
  """Marks the candidates that the items already in a session rule out.

  Args:
    trie: the catalogue; None (free decoding): whole IDs are blocked, and no
      prefix is known to be exhausted.
    exclusions: the user's, counted together with the session's own.
    codes: IDs of the session so far.
    paths: their nodes at depth 1..L.
    done: which items of the session are complete. [M]
    prefix: the first `level` codes of the item in progress.
    level: level of the code to be chosen.
    num_codes: codes of this level (K).
  """
  done = done[None, None, :]
  own = codes[..., :level] == prefix[:, :, None, :]
  blocked = own.all(-1) & done
  columns = codes[..., level]
  if trie is None:
    if level < codes.shape[-1] - 1:
      blocked = jnp.zeros_like(blocked)
    like = jnp.zeros((*codes.shape[:2], num_codes), bool)
  else:
    node = jnp.where(done, paths[..., level], 0)
    equal = (node[..., :, None] == node[..., None, :]) & done[..., None, :]
    taken = equal.sum(-1)
    if exclusions is not None:
      taken += _count_excluded(exclusions, node, level=level)
    blocked &= taken >= trie.leaf_count(level + 1, node)
    stored = trie.levels[level]
    if isinstance(stored, trie_levels.ListLevel):
      parent = jnp.zeros_like(node)
      if level:
        parent = jnp.where(done, paths[..., level - 1], 0)
      columns = node - stored.first_child.at(parent)
    like = _empty(
      trie, prefix[..., 0] if level else codes[:, :, 0, 0], level=level
    )
  beams, items = blocked.shape[1:]
  rows = jnp.repeat(jnp.arange(beams), items)[None]
  flat = (blocked.shape[0], beams * items)
  return _mark(
    jnp.broadcast_to(rows, flat),
    columns.reshape(flat),
    blocked.reshape(flat),
    like=like,
  )


def _count_excluded(
  exclusions: Exclusions, node: Int[Array, 'B W M'], *, level: int
) -> Int[Array, 'B W M']:
  """Returns how many excluded leaves lie below nodes of depth level + 1."""
  flat = node.reshape(node.shape[0], -1)
  path = exclusions.nodes[..., level]  # rising
  upto = jnp.cumsum(exclusions.distinct, axis=1, dtype=jnp.int32)
  upto = jnp.pad(upto, ((0, 0), (1, 0)))

  def before(side: str) -> Int[Array, 'B n']:
    place = jax.vmap(functools.partial(jnp.searchsorted, side=side))(path, flat)
    return jnp.take_along_axis(upto, place, axis=1, mode='clip')

  return (before('right') - before('left')).reshape(node.shape)


def candidates(
  trie: prefix_trie.PrefixTrie | None,
  log_probs: Float[Array, 'B W C'],
  node: Int[Array, 'B W'],
  blocked: Bool[Array, 'B W R'] | None,
  *,
  level: int,
  num_codes: int,
  normalise: bool,
) -> Candidates:
  """Masks the model's distribution over the codes of one level.

  Args:
    trie: the catalogue; None: every code of the level is allowed.
    log_probs: log-probabilities of the codes, nats; columns from `num_codes`
      on are ignored.
    node: node of each beam's prefix, depth `level`.
    blocked: candidates to leave out; None: none.
    level: level of the code.
    num_codes: codes of this level (K).
    normalise: over the codes that follow in the catalogue, blocked or not;
      without a trie there is nothing to normalise over.
  """
  scores = log_probs[..., :num_codes]
  codes = children = allowed = None
  stored = None if trie is None else trie.levels[level]
  if isinstance(stored, trie_levels.ListLevel):
    codes, children, allowed = stored.children(node)
    scores = jnp.take_along_axis(scores, codes, axis=-1, mode='clip')
  elif stored is not None:
    allowed = stored.followers(node, num_codes=num_codes)
  if allowed is not None:
    scores = jnp.where(allowed, scores, -jnp.inf)
    if normalise:
      total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
      # A dead beam may stand where nothing follows.
      scores = jnp.where(jnp.isfinite(total), scores - total, -jnp.inf)
  if blocked is not None:
    scores = jnp.where(blocked, -jnp.inf, scores)
  return Candidates(scores, codes=codes, children=children)


def follow(
  trie: prefix_trie.PrefixTrie | None,
  found: Candidates,
  node: Int[Array, 'B W'],
  parents: Int[Array, 'B V'],
  chosen: Int[Array, 'B V'],
  *,
  level: int,
) -> tuple[Int[Array, 'B V'], Int[Array, 'B V']]:
  """Returns codes and nodes of the chosen candidates.

  Args:
    trie: the catalogue, or None (all nodes 0).
    found: candidates of all beams.
    node: nodes of the beams they were made from.
    parents: beam that each chosen candidate continues.
    chosen: candidate number in 0..R-1.
    level: level of the code.
  """
  if found.codes is None:
    codes = chosen
  else:
    codes = _pick(found.codes, parents, chosen)
  if trie is None:
    return codes, jnp.zeros_like(codes)
  if found.children is not None:
    return codes, _pick(found.children, parents, chosen)
  stored = trie.levels[level]
  return codes, stored.child(reorder(node, parents), codes)[0]


def reorder(values: Array, parents: Int[Array, 'B V']) -> Array:
  """Reorders the beam axis (1): result[b, v] = values[b, parents[b, v]]."""
  index = parents.reshape(*parents.shape, *(1,) * (values.ndim - 2))
  return jnp.take_along_axis(values, index, axis=1, mode='clip')


def _pick(
  values: Int[Array, 'B W R'],
  parents: Int[Array, 'B V'],
  chosen: Int[Array, 'B V'],
) -> Int[Array, 'B V']:
  flat = values.reshape(values.shape[0], -1)
  index = parents * values.shape[-1] + chosen
  return jnp.take_along_axis(flat, index, axis=1, mode='clip')


def _empty(
  trie: prefix_trie.PrefixTrie, node: Int[Array, 'B W'], *, level: int
) -> Bool[Array, 'B W R']:
  """Returns a mask of False over the candidates of every beam."""
  stored = trie.levels[level]
  width = trie.codes_per_level[level]
  if isinstance(stored, trie_levels.ListLevel):
    width = stored.branching
  return jnp.zeros((*node.shape, width), bool)


def _mark(
  rows: Int[Array, 'B Y'],
  columns: Int[Array, 'B Y'],
  marked: Bool[Array, 'B Y'],
  *,
  like: Bool[Array, 'B W R'],
) -> Bool[Array, 'B W R']:
  """Sets [b, rows, columns] where `marked`."""
  users = jnp.arange(like.shape[0])[:, None]
  columns = jnp.where(marked, columns, like.shape[2])  # past the end: dropped
  return like.at[users, rows, columns].set(True, mode='drop')
