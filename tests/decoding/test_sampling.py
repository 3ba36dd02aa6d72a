"""Sampling against the distribution it draws from."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.decoding import sampling
from onerec_jax.semantic_ids import prefix_trie

_CODES_PER_LEVEL = (3, 4)


def _table(seed=0):
  """log P(code | level, code before), codes beyond a level's about -1e30."""
  logits = 1.5 * np.random.default_rng(seed).normal(size=(2, 3, 4))
  logits[0, :, 3] = -1e30
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return log_probs.astype(np.float32)


def _step(table, prefix, position, cache):
  del position
  level = prefix.shape[-1]
  before = prefix[..., -1] if level else jnp.zeros(prefix.shape[:-1], int)
  return table[level % 2, before], cache


@functools.partial(
  jax.jit,
  static_argnames=(
    'num_samples',
    'num_items',
    'temperature',
    'top_k',
    'top_p',
    'forbid_repeats',
  ),
)
def _sample(table, key, trie, exclude_codes=None, **settings):
  return sampling.sample(
    functools.partial(_step, table),
    {'unused': jnp.zeros((1, 2, 1, 1))},
    key=key,
    trie=trie,
    codes_per_level=_CODES_PER_LEVEL,
    exclude_codes=exclude_codes,
    **settings,
  )


def _distribution(table, ids, *, temperature=1.0, top_k=99, top_p=1.0):
  """Probability of every ID when each level is cut and renormalised."""

  def cut(codes, log_probs):
    order = np.argsort(-log_probs, kind='stable')[:top_k]
    weights = np.exp(log_probs[order].astype(np.float64) / temperature)
    weights /= weights.sum()
    kept = np.cumsum(weights) - weights < top_p
    weights = np.where(kept, weights, 0) / weights[kept].sum()
    return dict(zip(np.asarray(codes)[order].tolist(), weights, strict=True))

  result = {}
  firsts = sorted({i[0] for i in ids})
  first = cut(firsts, table[0, 0, firsts])
  for a in firsts:
    seconds = sorted({i[1] for i in ids if i[0] == a})
    second = cut(seconds, table[1, a, seconds])
    for b in seconds:
      result[a, b] = first.get(a, 0) * second.get(b, 0)
  return result


@pytest.mark.parametrize('confined', [True, False])
@pytest.mark.parametrize(
  'settings',
  [{}, {'temperature': 0.6}, {'top_k': 2}, {'top_k': 3, 'top_p': 0.8}],
)
def test_samples_follow_the_cut_and_renormalised_distribution(
  settings, confined
):
  ids = [(0, 1), (0, 3), (1, 0), (1, 1), (1, 2), (2, 3)]
  trie = None
  if confined:
    trie = prefix_trie.PrefixTrie.build(np.array(ids), _CODES_PER_LEVEL)
  else:
    ids = list(itertools.product(range(3), range(4)))
  table = _table()
  num_samples = 20_000
  drawn = _sample(
    table, jax.random.key(3), trie, num_samples=num_samples, **settings
  )
  assert bool(drawn.valid.all())
  expected = _distribution(table, ids, **settings)
  for user in range(2):
    codes = np.asarray(drawn.codes[user, :, 0])
    for (a, b), probability in expected.items():
      share = np.mean((codes == (a, b)).all(-1))
      # Five standard errors of a share.
      error = np.sqrt(probability * (1 - probability) / num_samples)
      assert abs(share - probability) <= 5 * error + 1e-12
    # Log-probabilities are the model's own, not the cut distribution's.
    own = table[0, 0, codes[:, 0]] + table[1, codes[:, 0], codes[:, 1]]
    np.testing.assert_allclose(drawn.log_probs[user], own, rtol=1e-5)


def test_the_key_decides_and_users_draw_independently():
  table = _table()
  first = _sample(table, jax.random.key(0), None, num_samples=64)
  again = _sample(table, jax.random.key(0), None, num_samples=64)
  other = _sample(table, jax.random.key(1), None, num_samples=64)
  np.testing.assert_array_equal(first.codes, again.codes)
  assert np.any(np.asarray(first.codes) != np.asarray(other.codes))
  assert np.any(np.asarray(first.codes[0]) != np.asarray(first.codes[1]))


def test_sessions_without_repeats_hold_distinct_ids():
  ids = np.array([(0, 1), (0, 3), (1, 0)])
  trie = prefix_trie.PrefixTrie.build(ids, _CODES_PER_LEVEL)
  drawn = _sample(
    _table(),
    jax.random.key(0),
    trie,
    num_samples=32,
    num_items=3,
    forbid_repeats=True,
  )
  assert bool(drawn.valid.all())
  leaves = np.sort(np.asarray(drawn.leaves), -1)
  np.testing.assert_array_equal(leaves, np.broadcast_to([0, 1, 2], (2, 32, 3)))


def test_excluded_ids_are_never_drawn_and_excluding_all_draws_nothing():
  ids = np.array([(0, 1), (0, 3), (1, 0)])
  trie = prefix_trie.PrefixTrie.build(ids, _CODES_PER_LEVEL)
  exclude = jnp.asarray(np.stack([ids, [[0, 1], [0, 3], [-1, -1]]]))
  drawn = _sample(
    _table(), jax.random.key(0), trie, exclude, num_samples=32, top_p=0.9
  )
  assert not bool(drawn.valid[0].any())
  assert np.all(np.asarray(drawn.log_probs[0]) == -np.inf)
  assert bool(drawn.valid[1].all())
  assert np.all(np.asarray(drawn.codes[1]) == (1, 0))


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'temperature': 0.0}, 'temperature=0.0 must be positive'),
    ({'top_p': 0.0}, r'top_p=0.0 must lie in \(0, 1\]'),
    ({'top_k': 0}, 'top_k=0 must be positive'),
  ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    _sample(_table(), jax.random.key(0), None, num_samples=2, **settings)
