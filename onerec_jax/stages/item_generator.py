"""Rollouts: G items of a policy for every user of a batch.

Beam search or sampling, free or in the trie, and the exact log-probabilities
of what came out.  Scores nothing and writes nothing.
"""

import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Float32
from jaxtyping import Int
from jaxtyping import Int32
from jaxtyping import Key

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import beam_search
from onerec_jax.decoding import generation
from onerec_jax.decoding import recommend
from onerec_jax.decoding import sampling
from onerec_jax.model import onerec
from onerec_jax.objectives import reinforce as objective_lib
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.stages import trained as trained_lib

_STREAM = 40  # of the run's random numbers; groups.py uses 41


class Outputs(NamedTuple):
  """G outputs for each user of a whole batch, filler rows included."""

  codes: Int32[np.ndarray, 'B G L']  # -1: nothing was left to generate
  old_log_probs: Float32[np.ndarray, 'B G L']
  reference_log_probs: Float32[np.ndarray, 'B G L']
  present: Bool[np.ndarray, 'B G']
  legal: Bool[np.ndarray, 'B G']  # the ID has an item
  # The first item of the ID that the user has not seen, as recommended;
  # -1: illegal, or all of them are seen.
  items: Int[np.ndarray, 'B G']
  seconds: Mapping[str, float]  # 'generate', 'log_probs'


class ItemGenerator:
  """Generates items with any parameters of one model; compiled once.

  The encoder runs once per user and policy.  Log-probabilities are those of
  the whole distribution at temperature 1, whatever decoding cut off or
  forbade.
  """

  def __init__(
    self,
    seed_model: trained_lib.Trained,
    store: examples.ExampleStore,
    settings: config.ReinforceConfig,
    *,
    seed: int,
  ):
    """Prepares decoding.

    Args:
      seed_model: the model; its parameters are the reference of grpo.
      store: the users' examples.
      settings: of the rollouts.
      seed: of sampling.

    Raises:
      ValueError: there are fewer IDs than outputs are asked for.
    """
    self._seed_model = seed_model
    self._store = store
    self._settings = settings
    self._key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    _check_group_size(settings, seed_model)
    longest = int(store.index.history_counts.max(initial=0))
    self._excluded = recommend.exclusion_width(longest)
    model = seed_model.model
    self._encode = jax.jit(objective_lib.make_encode(model))
    self._score = jax.jit(objective_lib.make_score(model))
    self._generate = jax.jit(_make_generate(model, settings))

  @property
  def needs_reference(self) -> bool:
    """Whether the loss reads the seed model's log-probabilities."""
    return self._settings.loss == 'grpo' and self._settings.kl_weight > 0

  def __call__(
    self,
    users: batch_lib.SessionBatch,
    *,
    params: Any,
    router_bias: Any,
    number: int,
  ) -> Outputs:
    """Returns the outputs of a policy.

    Args:
      users: NumPy; this process's rows of the batch.
      params: of the policy, on the mesh.
      router_bias: of the policy.
      number: of the batch; names its random numbers.
    """
    t = self._seed_model
    start = time.perf_counter()
    seen = recommend.exclusion_array(
      pipeline.seen_items(self._store, users), width=self._excluded
    )
    placed, excluded = sharding.place_batch((users, seen), t.mesh)
    encoded = self._encode(params, router_bias, t.catalogue, placed)
    found = self._generate(
      params,
      router_bias,
      t.catalogue,
      t.trie,
      encoded,
      excluded,
      jax.random.fold_in(self._key, number),
    )
    codes, present, legal, items = (
      np.asarray(x)
      for x in sharding.gather(
        (
          found.hypotheses.codes[:, :, 0],
          found.hypotheses.valid,
          found.hypotheses.leaves[:, :, 0] >= 0,
          found.session_items[:, :, 0],
        )
      )
    )
    generated = time.perf_counter()
    scored = sharding.place_rows((codes, present), t.mesh)
    log_probs = sharding.gather(
      self._score(params, router_bias, encoded, *scored)
    )
    reference = np.zeros_like(log_probs)
    if self.needs_reference:
      encoded = self._encode(t.params, t.router_bias, t.catalogue, placed)
      reference = sharding.gather(
        self._score(t.params, t.router_bias, encoded, *scored)
      )
    return Outputs(
      codes=codes,
      old_log_probs=np.asarray(log_probs),
      reference_log_probs=np.asarray(reference),
      present=present,
      legal=legal & present,
      items=np.where(legal & present, items, -1),
      seconds={
        'generate': generated - start,
        'log_probs': time.perf_counter() - generated,
      },
    )


def _check_group_size(
  settings: config.ReinforceConfig, model: trained_lib.Trained
) -> None:
  """Raises where a beam cannot be as wide as the group is large."""
  sizes = model.ids.codes_per_level
  if settings.constrain == 'trie':
    possible, what = int(model.trie.num_leaves), 'IDs of the catalogue'
  else:
    possible = int(np.prod([float(size) for size in sizes]))
    what = f'IDs that levels of {sizes} codes can form'
  if settings.rollouts == 'beam' and settings.group_size > possible:
    raise ValueError(
      f'reinforcement.group_size={settings.group_size} exceeds the {possible}'
      f" {what}: lower it, or set reinforcement.rollouts='sample', which may"
      ' draw an ID twice.'
    )


def _make_generate(
  model: onerec.OneRec, settings: config.ReinforceConfig
) -> Callable[..., recommend.Recommendations]:
  """Returns the decoding of encoded users, with the items behind the IDs."""
  codes_per_level = tuple(model.vocabulary.codes_per_level)
  levels = len(codes_per_level)

  def generate(
    params: Any,
    router_bias: Float[Array, 'layers E'],
    catalogue: batch_lib.Catalogue,
    trie: prefix_trie.PrefixTrie,
    encoded: onerec.Encoded,
    excluded: Int[Array, 'B X'],
    key: Key[Array, ''],
  ) -> recommend.Recommendations:
    variables = {'params': params}
    batch_size = encoded.mask.shape[0]
    context = model.apply(
      variables,
      encoded,
      jnp.zeros((batch_size, 0, levels), jnp.int32),
      jnp.zeros((batch_size, 0), bool),
      router_bias,
      method='start_decoding',
    )
    cache = model.apply(
      variables,
      batch=batch_size,
      beams=1,
      length=levels + 1,
      method='init_cache',
    )

    def step_fn(prefix: Any, position: Any, cache: generation.Cache) -> Any:
      return model.apply(
        variables,
        prefix,
        position,
        cache,
        context,
        router_bias,
        method='decode_step',
      )

    constrained = settings.constrain == 'trie'
    common: dict[str, Any] = {
      'trie': trie if constrained else None,
      'codes_per_level': codes_per_level,
      'exclude_codes': recommend.used_up_ids(trie, catalogue.codes, excluded)
      if constrained
      else None,
      'normalise': model.config.normalise_over == 'catalogue',
    }
    if settings.rollouts == 'beam':
      hypotheses = beam_search.search(
        step_fn, cache, num_beams=settings.group_size, **common
      )
    else:
      hypotheses = sampling.sample(
        step_fn,
        cache,
        key=key,
        num_samples=settings.group_size,
        temperature=settings.temperature,
        top_k=settings.sample_top_k or None,
        top_p=settings.sample_top_p,
        **common,
      )
    return recommend.rank_items(trie, hypotheses, excluded, top_k=1)

  return generate
