"""Times our session beam against beams that are tiled as HuggingFace does it.

  python -m experiments.benchmarks.session_beam

Five items x three levels by 128 beams over a history of 512 tokens.  The peer
is the same model, but every beam is a row of its own: encoder states, their
keys and values and the decoder's cache are repeated per beam, and the rows are
reordered at every level.  Both give the same sessions.  Compiling is left out.
Writes results/session_beam.json.
"""

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks import harness
from experiments.benchmarks import models
from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import huge_pages
from onerec_jax.decoding import beam_search
from onerec_jax.decoding import constraints
from onerec_jax.decoding import recommend
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.semantic_ids import prefix_trie

# (params, router_bias, catalogue, trie, users) -> codes [B, W, M, L], log p
Search = Callable[..., tuple[jax.Array, jax.Array]]

# Share of the sessions that both must find in the same place: rounding may
# swap neighbours whose probabilities differ in the sixth digit.
_SAME_SESSIONS = 0.9

TOY: dict[str, Any] = dict(
  batch_size=1,
  num_beams=16,
  num_items=2,
  history_items=8,
  codes=32,
  levels=2,
  catalogue_items=500,
  model=models.TOY_SIZES,
)
FULL: dict[str, Any] = dict(
  batch_size=1,
  num_beams=128,
  num_items=5,
  history_items=128,
  codes=256,
  levels=3,
  catalogue_items=100_000,
  model={},
)


def make_ours(
  model: onerec.OneRec, *, num_beams: int, num_items: int
) -> Search:
  """Returns the project's search; beams share what the encoder gave."""
  decoding = config_lib.DecodingConfig(
    num_beams=num_beams, num_items=num_items, exclude_history=False
  )

  def search(
    params: Any,
    router_bias: jax.Array,
    catalogue: batch_lib.Catalogue,
    trie: prefix_trie.PrefixTrie,
    users: batch_lib.SessionBatch,
  ) -> tuple[jax.Array, jax.Array]:
    started = recommend.start(
      model, params, router_bias, catalogue, users, decoding=decoding
    )
    found = beam_search.search(
      started.step_fn,
      started.cache,
      trie=trie,
      codes_per_level=model.vocabulary.codes_per_level,
      num_beams=num_beams,
      num_items=num_items,
    )
    return found.codes, found.log_probs

  return search


def make_tiled(
  model: onerec.OneRec, *, num_beams: int, num_items: int
) -> Search:
  """Returns the peer: a beam is a row.

  As `generate` of HuggingFace: the states are repeated before their keys and
  values are projected, all beams run from the first level on, those beyond the
  first of a user with probability 0.  Kinder than it in two things: keys and
  values of the encoder are not reordered, and the trie is ours.
  """
  vocabulary = model.vocabulary
  levels = vocabulary.levels

  def search(
    params: Any,
    router_bias: jax.Array,
    catalogue: batch_lib.Catalogue,
    trie: prefix_trie.PrefixTrie,
    users: batch_lib.SessionBatch,
  ) -> tuple[jax.Array, jax.Array]:
    apply = functools.partial(model.apply, {'params': params})
    batch = users.user.shape[0]
    rows = batch * num_beams
    encoded: Any = apply(
      encoder_input.of_batch(users, catalogue), router_bias, method='encode'
    )
    encoded = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), encoded)
    context = apply(
      encoded,
      jnp.zeros((rows, 0, levels), jnp.int32),
      jnp.zeros((rows, 0), bool),
      router_bias,
      method='start_decoding',
    )
    cache: Any = apply(
      batch=rows,
      beams=1,
      length=num_items * (levels + 1),
      method='init_cache',
    )

    def feed(prefix: Any, position: int, cache: Any) -> Any:
      return apply(
        prefix.reshape(rows, 1, -1),
        position,
        cache,
        context,
        router_bias,
        method='decode_step',
      )

    shape = (batch, num_beams)
    totals = jnp.full(shape, -jnp.inf).at[:, 0].set(0.0)
    sessions = jnp.zeros((*shape, 0), jnp.int32)
    for item in range(num_items):
      first = item * (levels + 1)
      if item:
        _, cache = feed(sessions[..., -levels:], first - 1, cache)
      node = jnp.zeros(shape, jnp.int32)
      for level, num_codes in enumerate(vocabulary.codes_per_level):
        prefix = sessions[..., item * levels :]
        log_probs, cache = feed(prefix, first + level, cache)
        found = constraints.candidates(
          trie,
          log_probs.reshape(*shape, -1),
          node,
          None,
          level=level,
          num_codes=num_codes,
          normalise=False,
        )
        scores = totals[..., None] + found.log_probs
        totals, index = lax.top_k(scores.reshape(batch, -1), num_beams)
        parents = index // scores.shape[-1]
        code, node = constraints.follow(
          trie, found, node, parents, index % scores.shape[-1], level=level
        )
        order = (jnp.arange(batch)[:, None] * num_beams + parents).reshape(-1)
        cache = jax.tree.map(lambda x, o=order: x[:, o], cache)
        sessions = constraints.reorder(sessions, parents)
        sessions = jnp.concatenate([sessions, code[..., None]], -1)
    return sessions.reshape(*shape, num_items, levels), totals

  return search


def check_equal(
  ours: tuple[Any, Any], peer: tuple[Any, Any]
) -> dict[str, float]:
  """Returns how equal two answers are.

  Args:
    ours: codes [B, W, M, L] and log-probabilities [B, W].
    peer: likewise.

  Raises:
    ValueError: the probabilities differ, or too many sessions do.
  """
  worst = harness.check_close(
    ours[1], peer[1], what='log-probabilities', relative=1e-4, absolute=1e-4
  )
  same = (np.asarray(ours[0]) == np.asarray(peer[0])).all((2, 3)).mean()
  if same < _SAME_SESSIONS:
    raise ValueError(
      f'Only {same:.1%} of the sessions are in the same place, expected'
      f' {_SAME_SESSIONS:.0%}.'
    )
  return {'same_sessions': float(same), 'difference_of_allowed': worst}


def measure(sizes: dict[str, Any], *, rounds: int) -> dict[str, Any]:
  """Returns times, memory and ratio of both searches.

  Args:
    sizes: as `FULL`.
    rounds: timed calls of each.
  """
  codes_per_level = (sizes['codes'],) * sizes['levels']
  made = models.make(
    models.tiger_config(**sizes['model']),
    codes_per_level,
    items_per_session=sizes['num_items'],
  )
  codes = models.item_codes(sizes['catalogue_items'], codes_per_level)
  trie = prefix_trie.PrefixTrie.build(codes, codes_per_level)
  users = jax.tree.map(
    jnp.asarray,
    models.users(
      sizes['batch_size'],
      history_items=sizes['history_items'],
      items_per_session=sizes['num_items'],
      num_items=len(codes),
    ),
  )
  leaves, structure = jax.tree.flatten(trie)
  arguments = (
    made.params,
    made.router_bias,
    batch_lib.Catalogue(jnp.asarray(codes)),
    leaves,
    users,
  )

  def compiled_search(search: Search) -> Any:
    # The trie as its arrays: `lower` describes arguments by objects that the
    # trie's type checks, which tests switch on, do not take for arrays.
    def run(
      params: Any, bias: Any, catalogue: Any, trie: Any, users: Any
    ) -> Any:
      return search(params, bias, catalogue, structure.unflatten(trie), users)

    return jax.jit(run).lower(*arguments).compile()

  searched = dict(num_beams=sizes['num_beams'], num_items=sizes['num_items'])
  compiled = {
    name: compiled_search(make(made.model, **searched))
    for name, make in (('ours', make_ours), ('tiled', make_tiled))
  }
  answers = {n: jax.device_get(run(*arguments)) for n, run in compiled.items()}
  equality = check_equal(answers['ours'], answers['tiled'])
  legal = np.asarray(trie.lookup(jnp.asarray(answers['ours'][0]))) >= 0
  if not legal.all():
    raise ValueError(f'{legal.mean():.1%} of our items are legal, not all.')
  tokens = (sizes['levels'] + 1) * sizes['history_items']  # codes and SEP
  per_beam = (
    sizes['batch_size'] * sizes['num_beams'] * tokens
    * made.model.config.head_dim
  )  # fmt: skip
  results = harness.alternate(
    {
      name: functools.partial(_run, run, arguments)
      for name, run in compiled.items()
    },
    rounds=rounds,
  )
  for name, run in compiled.items():
    results[name] |= {
      'temporary_bytes': harness.temporary_bytes(run),
      # Keys or values of one head for every beam would already be so large.
      'beams_times_encoder_arrays': harness.large_arrays(
        run.as_text(), elements=per_beam
      ),
    }
  return {
    'sizes': sizes,
    'encoder_tokens': tokens,
    **equality,
    'results': results,
    'ratio': harness.ratio(results['tiled'], results['ours']),
    'temporary_ratio': results['tiled']['temporary_bytes']
    / results['ours']['temporary_bytes'],
  }


def _run(search: Any, arguments: Any) -> None:
  jax.block_until_ready(search(*arguments))


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--threads', type=int, choices=(1,))
  parser.add_argument('--toy', action='store_true')
  parser.add_argument('--output', default=harness.RESULTS / 'session_beam.json')
  arguments = parser.parse_args()
  if arguments.threads == 1:
    harness.use_one_core()
  found = measure(TOY if arguments.toy else FULL, rounds=arguments.rounds)
  result = harness.report('session_beam', ('jax', 'flax', 'numpy'), **found)
  print(json.dumps(result['ratio'], indent=1))
  harness.write(arguments.output, result)


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
