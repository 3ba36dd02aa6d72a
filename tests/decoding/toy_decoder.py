"""A decoder in NumPy and JAX, and what a beam search has to find with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax.decoding import beam_search
from onerec_jax.semantic_ids import vocabulary

_PRIME = 10_007


class Toy:
  """A model whose next code depends on the user and on every earlier token.

  The cache holds the tokens fed so far, so a wrong reorder changes the
  answer; `log_probs` computes the same numbers in plain NumPy.
  """

  def __init__(self, codes_per_level, num_users, num_items, seed=0):
    self.codes_per_level = tuple(codes_per_level)
    self.vocabulary = vocabulary.Vocabulary(self.codes_per_level)
    self.num_users = num_users
    self.length = num_items * (len(codes_per_level) + 1)
    rng = np.random.default_rng(seed)
    self.weights = rng.integers(1, _PRIME, self.length)
    width = self.vocabulary.max_codes
    logits = 2 * rng.normal(size=(num_users, 97, width))
    # [users, contexts, level, C]; codes beyond a level's are as good as zero.
    tables = []
    for num_codes in self.codes_per_level:
      log_probs = logits[..., :num_codes]
      log_probs = log_probs - np.log(np.exp(log_probs).sum(-1, keepdims=True))
      tables.append(
        np.pad(
          log_probs,
          ((0, 0), (0, 0), (0, width - num_codes)),
          constant_values=-1e30,
        )
      )
      logits = np.roll(logits, 1, axis=-1) + 0.5
    self.table = np.stack(tables, 2).astype(np.float32)

  def cache(self):
    shape = (1, self.num_users, 1, self.length)
    return {'tokens': jnp.zeros(shape, jnp.int32)}

  @staticmethod
  def step(codes_per_level, table, weights, prefix, position, cache):
    token = vocabulary.Vocabulary(codes_per_level).last_token(prefix)
    fed = cache['tokens'][0].at[:, :, position].set(token)
    context = (fed * weights[None, None]).sum(-1) % 97
    users = jnp.arange(table.shape[0])[:, None]
    level = prefix.shape[-1] % len(codes_per_level)
    return table[users, context, level], {'tokens': fed[None]}

  def log_probs(self, user, session):
    """Log-probability of a session, item by item. [M][L]"""
    fed = np.zeros(self.length, np.int64)
    result, position = [], 0
    for item in session:
      token, row = vocabulary.BOS, []
      for l, code in enumerate(item):
        fed[position] = token
        position += 1
        context = (fed * self.weights).sum() % 97
        row.append(self.table[user, context, l, code])
        token = self.vocabulary.offsets[l] + code
      fed[position] = token
      position += 1
      result.append(row)
    return np.asarray(result, np.float64)


def catalogue(codes_per_level, num_items, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, codes_per_level, (num_items, len(codes_per_level)))


def ranking(toy, user, sessions):
  """All sessions with their scores, best first."""
  scored = [(toy.log_probs(user, s).sum(), s) for s in sessions]
  return sorted(scored, key=lambda pair: -pair[0])


@functools.partial(
  jax.jit,
  static_argnames=(
    'codes_per_level',
    'num_beams',
    'num_items',
    'forbid_repeats',
  ),
)
def _run(table, weights, cache, trie, exclude_codes, **settings):
  return beam_search.search(
    functools.partial(Toy.step, settings['codes_per_level'], table, weights),
    cache,
    trie=trie,
    exclude_codes=exclude_codes,
    **settings,
  )


def search(toy, trie, exclude_codes=None, **settings):
  return _run(
    toy.table,
    toy.weights.astype(np.int32),
    toy.cache(),
    trie,
    exclude_codes,
    codes_per_level=toy.codes_per_level,
    **settings,
  )


def assert_equals_ranking(result, user, expected):
  """Valid results are the head of `expected`; all others are empty."""
  beams = result.valid.shape[1]
  expected = expected[:beams]
  n = len(expected)
  np.testing.assert_array_equal(
    result.valid[user], np.arange(beams) < n, err_msg='valid'
  )
  got = [tuple(map(tuple, s)) for s in np.asarray(result.codes[user][:n])]
  assert got == [s for _, s in expected]
  # Sums of up to nine f32 terms in another order.
  np.testing.assert_allclose(
    result.log_probs[user][:n], [score for score, _ in expected], rtol=1e-5
  )
  assert np.all(np.asarray(result.log_probs[user][n:]) == -np.inf)
  assert np.all(np.asarray(result.codes[user][n:]) == -1)
  assert np.all(np.asarray(result.leaves[user][n:]) == -1)


def brute_force_beam(toy, user, ids, width, num_items, forbid_repeats):
  """Textbook beam search over plain tuples."""
  beams = [(0.0, ())]
  levels = len(toy.codes_per_level)
  for step in range(num_items * levels):
    grown = []
    for score, flat in beams:
      start = step // levels * levels
      done = [flat[i : i + levels] for i in range(0, start, levels)]
      prefix = flat[start:]
      allowed = [i for i in ids if not (forbid_repeats and i in done)]
      nexts = {i[len(prefix)] for i in allowed if i[: len(prefix)] == prefix}
      for code in sorted(nexts):
        longer = (*flat, code)
        padded = [longer[i : i + levels] for i in range(0, len(longer), levels)]
        gain = (
          toy.log_probs(user, padded)[-1][-1]
          if len({len(p) for p in padded}) == 1
          else last_term(toy, user, padded)
        )
        grown.append((score + gain, longer))
    beams = sorted(grown, key=lambda b: -b[0])[:width]
  return [
    (s, tuple(f[i : i + levels] for i in range(0, len(f), levels)))
    for s, f in beams
  ]


def last_term(toy, user, padded):
  """Log-probability of the last code of an unfinished session."""
  levels = len(toy.codes_per_level)
  last = (*padded[-1], *(0,) * (levels - len(padded[-1])))
  return toy.log_probs(user, [*padded[:-1], last])[-1][len(padded[-1]) - 1]
