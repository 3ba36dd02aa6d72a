"""Beam search against exhaustive enumeration with a toy step function."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.decoding import beam_search
from onerec_jax.semantic_ids import prefix_trie
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
  def step(table, weights, tokens, position, level, cache):
    fed = cache['tokens'][0].at[:, :, position].set(tokens)
    context = (fed * weights[None, None]).sum(-1) % 97
    users = jnp.arange(table.shape[0])[:, None]
    return table[users, context, max(level, 0)], {'tokens': fed[None]}

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


def _catalogue(codes_per_level, num_items, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, codes_per_level, (num_items, len(codes_per_level)))


def _ranking(toy, user, sessions):
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
    functools.partial(Toy.step, table, weights),
    cache,
    trie=trie,
    exclude_codes=exclude_codes,
    **settings,
  )


def _search(toy, trie, exclude_codes=None, **settings):
  return _run(
    toy.table,
    toy.weights.astype(np.int32),
    toy.cache(),
    trie,
    exclude_codes,
    codes_per_level=toy.codes_per_level,
    **settings,
  )


def _assert_equals_ranking(result, user, expected):
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


# K off the word size, unequal levels, lists, one item, a full ID space.
_CASES = [
  ((33, 7, 40), 60, 2**20),
  ((33, 7, 40), 60, 60),
  ((6,), 6, 2**20),
  ((6, 6), 1, 0),
  ((2, 2, 2), 30, 0),
]


@pytest.mark.parametrize('codes_per_level, num_items, limit', _CASES)
def test_a_beam_wider_than_the_catalogue_returns_the_exact_full_ranking(
  codes_per_level, num_items, limit
):
  codes = _catalogue(codes_per_level, num_items)
  toy = Toy(codes_per_level, num_users=2, num_items=1)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  result = _search(toy, trie, num_beams=num_items + 5)
  sessions = [(c,) for c in sorted({tuple(c) for c in codes})]
  for user in range(2):
    _assert_equals_ranking(result, user, _ranking(toy, user, sessions))
  legal = np.asarray(trie.lookup(result.codes))
  np.testing.assert_array_equal(legal, result.leaves)


def _brute_force_beam(toy, user, ids, width, num_items, forbid_repeats):
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
          else _last_term(toy, user, padded)
        )
        grown.append((score + gain, longer))
    beams = sorted(grown, key=lambda b: -b[0])[:width]
  return [
    (s, tuple(f[i : i + levels] for i in range(0, len(f), levels)))
    for s, f in beams
  ]


def _last_term(toy, user, padded):
  """Log-probability of the last code of an unfinished session."""
  levels = len(toy.codes_per_level)
  last = (*padded[-1], *(0,) * (levels - len(padded[-1])))
  return toy.log_probs(user, [*padded[:-1], last])[-1][len(padded[-1]) - 1]


@pytest.mark.parametrize(
  'codes_per_level, width, limit', [((3, 30, 9), 7, 200), ((33, 4, 5), 3, 0)]
)
def test_narrow_beams_equal_a_textbook_beam_search(
  codes_per_level, width, limit
):
  trie = prefix_trie.PrefixTrie.build(  # room for every case below
    _catalogue(codes_per_level, 80), codes_per_level, max_bitmap_bytes=limit
  )
  for seed in range(5):
    codes = _catalogue(codes_per_level, 10 + 12 * seed, seed + 1)
    toy = Toy(codes_per_level, num_users=2, num_items=1, seed=seed)
    result = _search(toy, trie.refresh(codes), num_beams=width)
    ids = sorted({tuple(c) for c in codes.tolist()})
    for user in range(2):
      expected = _brute_force_beam(toy, user, ids, width, 1, False)
      _assert_equals_ranking(result, user, expected)


@pytest.mark.parametrize(
  'num_items, limit, forbid_repeats',
  [(2, 0, False), (2, 2**20, True), (3, 0, True), (3, 2**20, False)],
)
def test_sessions_equal_enumeration(num_items, limit, forbid_repeats):
  codes = np.array([[0, 1], [0, 2], [1, 0], [3, 3], [3, 3]])
  codes_per_level = (4, 4)
  toy = Toy(codes_per_level, num_users=2, num_items=num_items, seed=3)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  result = _search(
    toy,
    trie,
    num_beams=4**num_items + 3,
    num_items=num_items,
    forbid_repeats=forbid_repeats,
  )
  ids = sorted({tuple(c) for c in codes.tolist()})
  sessions = [
    s
    for s in itertools.product(ids, repeat=num_items)
    if not forbid_repeats or len(set(s)) == num_items
  ]
  for user in range(2):
    _assert_equals_ranking(result, user, _ranking(toy, user, sessions))


@pytest.mark.parametrize(
  'limit, forbid_repeats', [(0, True), (2**20, True), (0, False)]
)
def test_narrow_session_beams_equal_a_textbook_beam_search(
  limit, forbid_repeats
):
  # Crowded prefixes, so that exclusions and repeats use them up together.
  codes_per_level = (3, 4)
  codes = _catalogue(codes_per_level, 9, seed=5)
  toy = Toy(codes_per_level, num_users=2, num_items=3, seed=5)
  trie = prefix_trie.PrefixTrie.build(
    codes, codes_per_level, max_bitmap_bytes=limit
  )
  excluded = np.stack([codes[:3], [codes[4], codes[4], [-1, -1]]])
  result = _search(
    toy,
    trie,
    jnp.asarray(excluded),
    num_beams=6,
    num_items=3,
    forbid_repeats=forbid_repeats,
  )
  ids = {tuple(c) for c in codes.tolist()}
  for user in range(2):
    allowed = sorted(ids - {tuple(c) for c in excluded[user].tolist()})
    expected = _brute_force_beam(toy, user, allowed, 6, 3, forbid_repeats)
    assert expected
    _assert_equals_ranking(result, user, expected)


def test_a_session_longer_than_the_catalogue_without_repeats_is_empty():
  codes = np.array([[0, 1], [1, 1]])
  toy = Toy((2, 2), num_users=1, num_items=3)
  trie = prefix_trie.PrefixTrie.build(codes, (2, 2))
  result = _search(toy, trie, num_beams=4, num_items=3, forbid_repeats=True)
  assert not result.valid.any()


def test_repeats_under_a_narrow_beam_never_strand_it():
  # One beam, two IDs under one prefix and one elsewhere: after two items of
  # the favourite prefix it must leave it instead of dying there.
  codes = np.array([[0, 0], [0, 1], [1, 0]])
  for seed in range(8):
    toy = Toy((2, 2), num_users=3, num_items=3, seed=seed)
    trie = prefix_trie.PrefixTrie.build(codes, (2, 2))
    result = _search(toy, trie, num_beams=1, num_items=3, forbid_repeats=True)
    assert result.valid.all()
    leaves = np.sort(np.asarray(result.leaves)[:, 0], -1)
    np.testing.assert_array_equal(leaves, np.tile([0, 1, 2], (3, 1)))


@pytest.mark.parametrize('limit, width', [(0, 5), (2**20, 5), (0, 64)])
def test_exclusion_equals_filtering_afterwards(limit, width):
  codes_per_level = (7, 9, 35)
  trie = prefix_trie.PrefixTrie.build(
    _catalogue(codes_per_level, 120), codes_per_level, max_bitmap_bytes=limit
  )
  for seed in range(4):
    rng = np.random.default_rng(seed)
    codes = _catalogue(codes_per_level, 60, seed)
    # Crowd a prefix, so that it can be used up.
    codes[:6] = [[0, 0, c] for c in range(6)]
    toy = Toy(codes_per_level, num_users=2, num_items=1, seed=seed)
    excluded = np.stack([codes[rng.permutation(60)[:20]] for _ in range(2)])
    excluded[0, :6] = codes[:6]
    excluded[:, 6] = excluded[:, 7]  # a repeat counts once
    excluded[:, 8] = -1
    excluded[:, 9] = [6, 8, 34]  # most likely not in the catalogue
    ids = sorted({tuple(c) for c in codes.tolist()})
    result = _search(
      toy, trie.refresh(codes), jnp.asarray(excluded), num_beams=width
    )
    for user in range(2):
      seen = {tuple(c) for c in excluded[user].tolist()}
      allowed = [i for i in ids if i not in seen]
      # Narrow: still the beam of the smaller catalogue, no beam wasted.
      expected = (
        _ranking(toy, user, [(i,) for i in allowed])
        if width > len(ids)
        else _brute_force_beam(toy, user, allowed, width, 1, False)
      )
      _assert_equals_ranking(result, user, expected)


def test_excluding_everything_leaves_no_valid_result():
  codes = _catalogue((5, 5), 8)
  toy = Toy((5, 5), num_users=2, num_items=1)
  trie = prefix_trie.PrefixTrie.build(codes, (5, 5))
  excluded = np.stack([codes, codes])
  excluded[1, 0] = -1  # the second user keeps one item, if its ID is unique
  left = {tuple(c) for c in codes.tolist()} - {
    tuple(c) for c in excluded[1].tolist()
  }
  result = _search(toy, trie, jnp.asarray(excluded), num_beams=6)
  assert not result.valid[0].any()
  assert np.isfinite(np.asarray(result.entropy)).all()
  _assert_equals_ranking(result, 1, _ranking(toy, 1, [(i,) for i in left]))


def test_free_decoding_ranks_the_whole_code_space():
  codes_per_level, num_items = (3, 2), 2
  toy = Toy(codes_per_level, num_users=2, num_items=num_items, seed=1)
  for forbid_repeats in (False, True):
    result = _search(
      toy,
      None,
      num_beams=40,
      num_items=num_items,
      forbid_repeats=forbid_repeats,
    )
    space = list(itertools.product(*map(range, codes_per_level)))
    sessions = [
      s
      for s in itertools.product(space, repeat=num_items)
      if not forbid_repeats or len(set(s)) == num_items
    ]
    for user in range(2):
      _assert_equals_ranking(result, user, _ranking(toy, user, sessions))
    assert np.all(np.asarray(result.leaves) == -1)


def test_free_decoding_equals_a_trie_that_holds_every_id():
  codes_per_level = (4, 33)
  space = np.array(list(itertools.product(*map(range, codes_per_level))))
  toy = Toy(codes_per_level, num_users=3, num_items=1, seed=2)
  trie = prefix_trie.PrefixTrie.build(space, codes_per_level)
  free = _search(toy, None, num_beams=10)
  confined = _search(toy, trie, num_beams=10)
  np.testing.assert_array_equal(free.codes, confined.codes)
  np.testing.assert_array_equal(free.log_probs, confined.log_probs)


def test_capacity_changes_nothing_and_a_refresh_does_not_compile():
  codes_per_level = (20, 20, 20)
  codes = _catalogue(codes_per_level, 30)
  toy = Toy(codes_per_level, num_users=2, num_items=2)
  traces = []

  @jax.jit
  def search(cache, trie):
    traces.append(1)
    return beam_search.search(
      functools.partial(
        Toy.step, jnp.asarray(toy.table), jnp.asarray(toy.weights, jnp.int32)
      ),
      cache,
      trie=trie,
      codes_per_level=codes_per_level,
      num_beams=8,
      num_items=2,
      forbid_repeats=True,
    )

  for limit in (1000, 2**20):
    exact = prefix_trie.PrefixTrie.build(
      codes, codes_per_level, max_bitmap_bytes=limit
    )
    roomy = prefix_trie.PrefixTrie.build(
      codes, codes_per_level, 64, max_bitmap_bytes=limit
    )
    jax.tree.map(
      np.testing.assert_array_equal,
      search(toy.cache(), exact),
      search(toy.cache(), roomy),
    )
    traces.clear()
    search(toy.cache(), roomy.refresh(_catalogue(codes_per_level, 40, 9)))
    assert not traces


def test_entropy_is_that_of_the_models_distributions():
  codes_per_level = (4, 3)
  codes = np.array([[0, 0], [1, 2], [1, 1], [3, 0]])
  toy = Toy(codes_per_level, num_users=2, num_items=1, seed=7)
  trie = prefix_trie.PrefixTrie.build(codes, codes_per_level)
  result = _search(toy, trie, num_beams=16)
  for user in range(2):

    def entropy(prefix, user=user):
      l = len(prefix)
      log_probs = np.array(
        [
          _last_term(toy, user, [(*prefix, c)])
          for c in range(codes_per_level[l])
        ]
      )
      return -(np.exp(log_probs) * log_probs).sum()

    # All three first codes of the catalogue stay in a beam of 16.
    expected = [entropy(()), np.mean([entropy((c,)) for c in (0, 1, 3)])]
    np.testing.assert_allclose(result.entropy[user], expected, rtol=1e-5)


def test_exclusions_without_a_trie_are_refused():
  toy = Toy((3, 3), num_users=1, num_items=1)
  with pytest.raises(ValueError, match='exclude_codes needs a trie'):
    _search(toy, None, jnp.zeros((1, 1, 2), jnp.int32), num_beams=2)


def test_a_trie_of_other_levels_is_refused():
  toy = Toy((3, 3), num_users=1, num_items=1)
  trie = prefix_trie.PrefixTrie.build(np.array([[0, 1]]), (3, 4))
  with pytest.raises(ValueError, match=r'\(3, 4\), the model \(3, 3\)'):
    _search(toy, trie, num_beams=2)


def test_a_widened_cache_is_refused():
  toy = Toy((3, 3), num_users=1, num_items=1)
  with pytest.raises(ValueError, match='expected 1: create it with beams=1'):
    beam_search.search(
      functools.partial(Toy.step, toy.table, toy.weights),
      {'tokens': jnp.zeros((1, 1, 4, 3), jnp.int32)},
      trie=None,
      codes_per_level=(3, 3),
      num_beams=4,
    )
