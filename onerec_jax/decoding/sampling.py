"""Random sessions from the model: temperature, top-k and top-p sampling.

Pure function of a step function and a key; refuses hidden defaults: what was
asked for is what is sampled.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key

from onerec_jax.decoding import generation
from onerec_jax.semantic_ids import prefix_trie


def sample(
  step_fn: generation.StepFunction,
  cache: generation.Cache,
  *,
  key: Key[Array, ''],
  trie: prefix_trie.PrefixTrie | None,
  codes_per_level: tuple[int, ...],
  num_samples: int,
  num_items: int = 1,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
  exclude_codes: Int[Array, 'B X L'] | None = None,
  forbid_repeats: bool = False,
  normalise: bool = False,
) -> generation.Hypotheses:
  """Draws `num_samples` (G) independent sessions per user, in random order.

  Each code is drawn from the level's allowed codes with probabilities
  proportional to p^(1/temperature), cut to the `top_k` largest and then to the
  smallest set that holds `top_p` of what is left.  The returned log_probs are
  the *model's* (temperature 1, nothing cut, nothing masked), as a policy
  gradient and beam search use them.  The same session may be drawn twice.

  Args:
    step_fn: decoder step over beams.
    cache: empty cache of one beam; leaves [layers, B, 1, ...].
    key: random key.
    trie: only its IDs are drawn; None: free.
    codes_per_level: K of each level.
    num_samples: sessions per user (G).
    num_items: items of a session (M).
    temperature: > 0; below 1 sharpens.
    top_k: codes kept per level, e.g. 50; None: all.  2506.13695, table 8, uses
      both, but names neither number.
    top_p: probability kept per level, in (0, 1], e.g. 0.95.
    exclude_codes: IDs no sample may hold; rows of -1 are ignored.
    forbid_repeats: no ID twice in one session.
    normalise: as `beam_search.search`.

  Raises:
    ValueError: a setting is out of range.
  """
  if temperature <= 0:
    raise ValueError(
      f'temperature={temperature} must be positive; for the most probable'
      ' sessions use beam_search.search.'
    )
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p={top_p} must lie in (0, 1].')
  if num_samples < 1 or (top_k is not None and top_k < 1):
    raise ValueError(
      f'num_samples={num_samples} and top_k={top_k} must be positive.'
    )

  def choose(
    log_probs: Float[Array, 'B W R'],
    totals: Float[Array, 'B W'],
    position: Int[Array, ''],
  ) -> generation.Choice:
    batch_size, beams, num_candidates = log_probs.shape
    kept = min(top_k or num_candidates, num_candidates)
    if kept < num_candidates or top_p < 1:
      flat = log_probs.reshape(-1, num_candidates)
      values, index = lax.top_k(flat, kept)  # falling, as top-p needs them
      values = values.reshape(batch_size, beams, kept)
      index = index.reshape(batch_size, beams, kept)
    else:
      values, index = log_probs, None
    logits = values / temperature
    if top_p < 1:
      highest = jnp.maximum(logits[..., :1], -1e30)  # dead rows: no -inf + inf
      weights = jnp.exp(logits - highest)
      before = jnp.cumsum(weights, -1) - weights
      limit = top_p * weights.sum(-1, keepdims=True)
      logits = jnp.where((before < limit) | (before == 0), logits, -jnp.inf)
    # The first level is one beam, from which all samples are drawn.
    shape = (batch_size, num_samples, kept)
    noise = jax.random.gumbel(jax.random.fold_in(key, position), shape)
    drawn = jnp.argmax(jnp.broadcast_to(logits, shape) + noise, -1)
    parents = None
    if beams != num_samples:
      parents = jnp.zeros((batch_size, num_samples), jnp.int32)
    step = jnp.take_along_axis(
      jnp.broadcast_to(values, shape), drawn[..., None], axis=-1
    )[..., 0]
    if index is not None:
      drawn = jnp.take_along_axis(
        jnp.broadcast_to(index, shape), drawn[..., None], axis=-1
      )[..., 0]
    return generation.Choice(
      parents=parents,
      chosen=drawn.astype(jnp.int32),
      log_probs=totals + step,
    )

  return generation.generate(
    step_fn,
    cache,
    choose,
    batch_size=jnp.shape(jax.tree.leaves(cache)[0])[1],
    width=num_samples,
    trie=trie,
    codes_per_level=codes_per_level,
    num_items=num_items,
    exclude_codes=exclude_codes,
    forbid_repeats=forbid_repeats,
    normalise=normalise,
  )
