"""The real model's beams against teacher forcing, and item lists by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.decoding import beam_search
from onerec_jax.decoding import recommend
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.ops import history as history_ops
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import vocabulary

_CODES_PER_LEVEL = (5, 7, 6)
_NUM_ITEMS = 25
_MODEL = config.ModelConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=1,
  decoder_layers=2,
  mlp_dim=32,
  moe=config.MoEConfig(num_experts=4, expert_dim=16),
  user_buckets=10,
)


def _catalogue():
  rng = np.random.default_rng(0)
  codes = rng.integers(0, _CODES_PER_LEVEL, (_NUM_ITEMS, 3)).astype(np.int32)
  codes[3] = codes[11]  # two items share an ID
  rank = np.zeros(_NUM_ITEMS, np.int32)
  rank[3] = 1  # item 11 is the more popular one
  trie = prefix_trie.PrefixTrie.build(
    codes, _CODES_PER_LEVEL, rank_in_bucket=rank
  )
  return codes, trie


def _users(history, mask=None):
  history = np.asarray(history, np.int32)
  mask = np.ones(history.shape, bool) if mask is None else np.asarray(mask)
  users = np.arange(len(history), dtype=np.int32)
  return jax.tree.map(
    jnp.asarray,
    batch_lib.SessionBatch(
      example_id=users,
      user=users,
      history_items=history,
      history_mask=mask,
      target_items=np.zeros((len(history), 1), np.int32),
      target_mask=np.zeros((len(history), 1), bool),
      example_mask=np.ones(len(history), bool),
    ),
  )


def _model(**changes):
  settings = dataclasses.replace(_MODEL, **changes)
  model = onerec.OneRec(
    settings,
    vocabulary.Vocabulary(_CODES_PER_LEVEL, settings.user_buckets),
    items_per_session=2,
  )
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  # Sharper than at the start, so that rankings do not hang on rounding.
  params['embedding'] = params['embedding'] * 3
  bias = np.random.default_rng(1).normal(0, 0.01, (2, 4)).astype(np.float32)
  return model, params, bias


def _table(codes):
  return batch_lib.Catalogue(jnp.asarray(codes))


def _forced_log_probs(
  model, params, bias, item_codes, batch, sessions, trie=None
):
  """Σ log p of each session of each user, by teacher forcing. [B, W]

  With a trie, p is over the codes that follow in it.
  """
  rows, width, items, levels = sessions.shape

  def tile(x):
    return jnp.repeat(x, width, axis=0)

  output = jax.jit(functools.partial(model.apply, deterministic=True))(
    {'params': params},
    encoder_input.EncoderInput(
      tile(item_codes[batch.history_items]),
      tile(batch.history_mask),
      tile(batch.user),
    ),
    sessions.reshape(-1, items, levels),
    jnp.ones((rows * width, items), bool),
    jnp.asarray(bias),
  )
  logits = output.logits
  if trie is not None:
    known = trie.followers(sessions.reshape(-1, items, levels))
    logits = jnp.where(known, logits, -jnp.inf)
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  picked = jnp.take_along_axis(
    log_probs, sessions.reshape(-1, items, levels)[..., None], axis=-1
  )
  return picked.sum((1, 2, 3)).reshape(rows, width)


_HISTORY = [[0, 1, 2, 5], [7, 3, 0, 0]]
_HISTORY_MASK = [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize(
  'num_items, constrain, changes',
  [(2, 'trie', {}), (1, 'none', {'moe': config.MoEConfig(enabled=False)})],
)
def test_beam_scores_are_the_teacher_forced_log_probabilities(
  num_items, constrain, changes
):
  codes, trie = _catalogue()
  model, params, bias = _model(**changes)
  batch = _users(_HISTORY, _HISTORY_MASK)
  recommender = recommend.make_recommender(
    model,
    config.DecodingConfig(
      num_beams=9, num_items=num_items, constrain=constrain
    ),
    top_k=6,
  )
  found = recommender(params, bias, _table(codes), trie, batch)
  beams = found.hypotheses
  assert bool(beams.valid.all())
  expected = _forced_log_probs(
    model, params, bias, jnp.asarray(codes), batch, beams.codes
  )
  # Cached and parallel attention re-associate sums.
  np.testing.assert_allclose(beams.log_probs, expected, rtol=1e-4, atol=1e-4)
  assert np.all(np.diff(np.asarray(beams.log_probs), axis=1) <= 0)
  legal = np.asarray(_LOOKUP(trie, beams.codes) >= 0).all(-1)
  np.testing.assert_array_equal(found.legal, legal.sum(-1))
  np.testing.assert_array_equal(found.generated, [9, 9])
  if constrain == 'trie':
    assert legal.all()
  else:
    # 24 of 210 IDs are items: free beams of a random model miss most.
    assert not legal.all()
    items = np.asarray(found.items)
    assert not set(items[0].tolist()) & {0, 1, 2, 5}


@pytest.fixture(scope='module')
def wide():
  """A small dense model and its recommender with a beam over everything."""
  model, params, bias = _model(moe=config.MoEConfig(enabled=False))
  recommender = recommend.make_recommender(
    model, config.DecodingConfig(num_beams=30), top_k=30
  )
  return model, params, bias, recommender


def test_a_wide_beam_ranks_all_items_by_teacher_forced_probability(wide):
  codes, trie = _catalogue()
  model, params, bias, recommender = wide
  batch = _users([[0, 1, 2, 5], [11, 11, 4, 4]])
  found = recommender(params, bias, _table(codes), trie, batch)
  all_ids = np.broadcast_to(codes[None, :, None], (2, _NUM_ITEMS, 1, 3))
  scores = np.asarray(
    _forced_log_probs(
      model, params, bias, jnp.asarray(codes), batch, jnp.asarray(all_ids)
    )
  )
  for user in range(2):
    seen = set(np.asarray(batch.history_items[user]).tolist())
    # Items 11 and 3 share an ID: same score, 11 first.
    items = sorted(
      set(range(_NUM_ITEMS)) - seen,
      key=lambda i: (-round(float(scores[user, i]), 4), i != 11),
    )
    got = np.asarray(found.items[user])
    assert got[: len(items)].tolist() == items
    assert np.all(got[len(items) :] == -1)
    np.testing.assert_array_equal(found.valid[user], np.arange(30) < len(items))
    np.testing.assert_allclose(
      found.scores[user][: len(items)],
      scores[user, items],
      rtol=1e-4,
      atol=1e-4,
    )


def test_over_the_catalogue_the_probabilities_of_all_items_sum_to_one():
  codes, trie = _catalogue()
  model, params, bias = _model(
    moe=config.MoEConfig(enabled=False), normalise_over='catalogue'
  )
  recommender = recommend.make_recommender(
    model, config.DecodingConfig(num_beams=30), top_k=30
  )
  batch = _users([[0, 1, 2, 5], [11, 11, 4, 4]])
  found = recommender(params, bias, _table(codes), trie, batch)
  beams = found.hypotheses
  valid = np.asarray(beams.valid)
  # Item 3 has the ID of item 11 and may still be recommended.
  np.testing.assert_array_equal(valid.sum(1), [24 - 4, 24 - 1])

  def forced(sessions):
    return np.asarray(
      _forced_log_probs(
        model,
        params,
        bias,
        jnp.asarray(codes),
        batch,
        jnp.asarray(sessions),
        trie,
      )
    )

  # An ID that was seen keeps its share: the others are not scaled up.
  seen = np.exp(forced(codes[np.asarray(batch.history_items)][:, :, None]))
  shown = np.exp(np.where(valid, beams.log_probs, -np.inf)).sum(1)
  gone = np.array([seen[0].sum(), seen[1, 2]])
  np.testing.assert_allclose(shown + gone, 1.0, rtol=1e-5)
  # Of the first level: over the codes of all IDs, seen or not.
  ids = np.unique(codes, axis=0)
  shares = np.exp(forced(np.broadcast_to(ids[None, :, None], (2, 24, 1, 3))))
  first = np.stack(
    [shares[:, ids[:, 0] == c].sum(1) for c in np.unique(ids[:, 0])], axis=1
  )
  np.testing.assert_allclose(
    beams.entropy[:, 0], -(first * np.log(first)).sum(1), rtol=1e-4
  )
  expected = forced(np.maximum(beams.codes, 0))
  np.testing.assert_allclose(
    np.asarray(beams.log_probs)[valid],
    np.asarray(expected)[valid],
    rtol=1e-4,
    atol=1e-4,
  )


def test_new_parameters_and_a_new_catalogue_do_not_compile_again(wide):
  codes, trie = _catalogue()
  _, params, bias, recommender = wide
  batch = _users([[0, 1, 2, 5], [11, 11, 4, 4]])
  recommender(params, bias, _table(codes), trie, batch)
  compiled = recommender._cache_size()
  other = np.roll(codes, 1, axis=0)
  recommender(
    jax.tree.map(lambda x: x * 0.5, params),
    bias,
    _table(other),
    trie.refresh(other),
    batch,
  )
  assert recommender._cache_size() == compiled


def test_a_recommendation_does_not_depend_on_other_users_or_padding(wide):
  codes, trie = _catalogue()
  _, params, bias, recommender = wide

  def answer(history):
    batch = _users(history, _HISTORY_MASK)
    found = recommender(params, bias, _table(codes), trie, batch)
    return np.asarray(found.items[1]), np.asarray(found.scores[1])

  items, scores = answer([[0, 1, 2, 5], [7, 3, 9, 9]])
  # Another first user, other items under the padding.
  same_items, same_scores = answer([[8, 8, 8, 20], [7, 3, 0, 24]])
  np.testing.assert_array_equal(items, same_items)
  np.testing.assert_allclose(scores, same_scores, rtol=1e-5)


@pytest.mark.parametrize('exclude_history', [True, False])
def test_given_exclusions_replace_the_history_and_can_be_switched_off(
  wide, exclude_history
):
  codes, trie = _catalogue()
  model, params, bias, _ = wide
  recommender = recommend.make_recommender(
    model,
    config.DecodingConfig(num_beams=30, exclude_history=exclude_history),
    top_k=25,
  )
  found = recommender(
    params,
    bias,
    _table(codes),
    trie,
    _users([[0, 1, 2, 5]]),
    jnp.array([[11, 6, -1]]),
  )
  items = np.asarray(found.items[0])[np.asarray(found.valid[0])]
  # Item 3 shares the ID of 11 and stays.
  dropped = {11, 6} if exclude_history else set()
  assert set(items.tolist()) == set(range(_NUM_ITEMS)) - dropped


# --- Lists by hand ----------------------------------------------------------


_RANK = jax.jit(recommend.rank_items, static_argnames='top_k')
_USED_UP = jax.jit(recommend.used_up_ids)
_LOOKUP = jax.jit(lambda trie, codes: trie.lookup(codes))


def _hand_made():
  """IDs: a = (0, 0): items 4, 1 · b = (0, 1): 0 · c = (1, 1): 2, 3, 5."""
  codes = np.array([[0, 1], [0, 0], [1, 1], [1, 1], [0, 0], [1, 1]])
  rank = np.array([0, 1, 0, 1, 0, 2])
  return codes, prefix_trie.PrefixTrie.build(codes, (2, 2), rank_in_bucket=rank)


def _beams(trie, codes, valid=None):
  codes = jnp.asarray(codes)[None]
  width = codes.shape[1]
  valid = jnp.ones((1, width), bool) if valid is None else jnp.asarray([valid])
  return beam_search.BeamResult(
    codes=codes,
    log_probs=-jnp.arange(1.0, width + 1)[None],
    leaves=_LOOKUP(trie, codes),
    valid=valid,
    entropy=jnp.zeros((1, 2)),
  )


def test_a_list_follows_beams_then_buckets_and_drops_what_is_excluded():
  _, trie = _hand_made()
  beams = _beams(trie, [[[1, 1]], [[1, 0]], [[0, 0]], [[0, 1]]])
  found = _RANK(trie, beams, jnp.array([[3, 4, -1]]), top_k=6)
  # c without 3; (1, 0) is nobody; a without 4; b.
  np.testing.assert_array_equal(found.items, [[2, 5, 1, 0, -1, -1]])
  inf = np.inf
  np.testing.assert_array_equal(found.scores, [[-1, -1, -3, -4, -inf, -inf]])
  np.testing.assert_array_equal(found.valid, [[1, 1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(found.session_items, [[[2], [-1], [1], [0]]])
  assert (int(found.generated[0]), int(found.legal[0])) == (4, 3)


def test_a_list_of_sessions_names_no_item_twice():
  _, trie = _hand_made()
  beams = _beams(trie, [[[0, 1], [0, 0]], [[0, 0], [0, 1]], [[1, 1], [0, 1]]])
  found = _RANK(trie, beams, jnp.zeros((1, 0), int), top_k=7)
  np.testing.assert_array_equal(found.items, [[0, 4, 1, 2, 3, 5, -1]])
  np.testing.assert_array_equal(found.session_items, [[[0, 4], [4, 0], [2, 0]]])


def test_invalid_beams_give_nothing():
  _, trie = _hand_made()
  beams = _beams(trie, [[[0, 1]], [[-1, -1]]], valid=[True, False])
  found = _RANK(trie, beams, jnp.zeros((1, 0), int), top_k=2)
  np.testing.assert_array_equal(found.items, [[0, -1]])
  assert (int(found.generated[0]), int(found.legal[0])) == (1, 1)


def test_an_id_is_used_up_only_when_all_its_items_are_excluded():
  codes, trie = _hand_made()
  excluded = jnp.array([[4, 1, 4, 2, 3], [4, 4, 0, -1, -1]])
  found = np.asarray(_USED_UP(trie, jnp.asarray(codes), excluded))
  # First user: a = {4, 1} is used up (4 given twice), c misses 5.  Second:
  # b, but not a, of which only 4 is given.
  rows = [sorted(map(tuple, user)) for user in found.tolist()]
  none = (-1, -1)
  assert rows[0] == [none, none, (0, 0), (0, 0), (0, 0)]
  assert rows[1] == [none, none, none, none, (0, 1)]


def test_the_last_items_are_split_off_but_never_the_only_one():
  items = jnp.asarray([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 0, 0, 0, 0]])
  mask = jnp.asarray(
    [[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4]
  )
  before, last = history_ops.split_history(items, mask, num_last=2)
  np.testing.assert_array_equal(
    jnp.where(before.mask, before.items, -1),
    [[1, 2, 3], [6, -1, -1], [8, -1, -1]],
  )
  # Padding first: the real items stand next to what is generated.
  np.testing.assert_array_equal(
    jnp.where(last.mask, last.items, -1), [[4, 5], [-1, 7], [-1, -1]]
  )


def test_no_room_for_history_beside_the_continued_items_is_an_error():
  with pytest.raises(ValueError, match='continue_items=2 leaves no history'):
    history_ops.split_history(
      jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), num_last=2
    )


def test_exclusions_keep_the_most_recent_items():
  seen = [np.array([1, 2, 3]), np.array([], np.int32)]
  np.testing.assert_array_equal(
    recommend.exclusion_array(seen, width=2), [[2, 3], [-1, -1]]
  )
  assert [recommend.exclusion_width(n) for n in (0, 1, 33, 9999)] == [
    1, 32, 64, recommend.MAX_EXCLUDED,
  ]  # fmt: skip
