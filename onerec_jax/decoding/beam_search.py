"""Beam search over semantic IDs, free or confined to a prefix trie.

Pure function of a step function; no model, no I/O, no host round trips.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.decoding import generation
from onerec_jax.semantic_ids import prefix_trie

BeamResult = generation.Hypotheses


def search(
  step_fn: generation.StepFunction,
  cache: generation.Cache,
  *,
  trie: prefix_trie.PrefixTrie | None,
  codes_per_level: tuple[int, ...],
  num_beams: int,
  num_items: int = 1,
  exclude_codes: Int[Array, 'B X L'] | None = None,
  forbid_repeats: bool = False,
  normalise: bool = False,
) -> BeamResult:
  """Returns the `num_beams` most probable sessions found, best first.

    score = Σ_{i<M} Σ_{l<L} log P(s_i^{l+1} | BOS, s_1^1, …, BOS, s_i^1..s_i^l)

  The first level runs with one beam.  With a trie and M = 1, exactly
  min(num_beams, allowed IDs) results are valid; an illegal ID is never
  returned.

  Args:
    step_fn: decoder step over beams.
    cache: empty cache of *one* beam; leaves [layers, B, 1, ...].
    trie: only its IDs are generated; None: free decoding.
    codes_per_level: K of each level.
    num_beams: beam width (W).
    num_items: items of a session (M).
    exclude_codes: IDs no result may hold, e.g. those of items already seen;
      rows of -1 are ignored.  Needs a trie.
    forbid_repeats: no ID twice in one session.
    normalise: P over the codes that follow in the trie, not over all; for
      models with normalise_over='catalogue'.

  Reference: OneRec, arXiv:2502.18965, sections 3.3.2 and 4 (beam of 128).
  """
  if num_beams < 1 or num_items < 1:
    raise ValueError(
      f'num_beams={num_beams} and num_items={num_items} must be positive.'
    )

  def choose(
    log_probs: Float[Array, 'B W R'],
    totals: Float[Array, 'B W'],
    position: Int[Array, ''],
  ) -> generation.Choice:
    del position
    scores = totals[..., None] + log_probs
    # Flat 2-D: XLA:TPU turns a 3-D top-k of these sizes into a full sort.
    flat = scores.reshape(scores.shape[0], -1)
    best, index = lax.top_k(flat, min(num_beams, flat.shape[1]))
    return generation.Choice(
      parents=index // scores.shape[-1],
      chosen=index % scores.shape[-1],
      log_probs=best,
    )

  return generation.generate(
    step_fn,
    cache,
    choose,
    batch_size=_batch_size(cache),
    width=num_beams,
    trie=trie,
    codes_per_level=codes_per_level,
    num_items=num_items,
    exclude_codes=exclude_codes,
    forbid_repeats=forbid_repeats,
    normalise=normalise,
  )


def _batch_size(cache: generation.Cache) -> int:
  shape = jnp.shape(jax.tree.leaves(cache)[0])
  if shape[2] != 1:
    raise ValueError(
      f'The cache has {shape[2]} beams, expected 1: create it with beams=1,'
      ' the search widens it.'
    )
  return shape[1]
