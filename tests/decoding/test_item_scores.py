"""Lists by item scores and counts beside the probabilities of codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.decoding import beam_search
from onerec_jax.decoding import recommend
from onerec_jax.decoding import transitions
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import vocabulary

_SIZES, _NUM_ITEMS = (5, 7), 25
_MODEL = config.ModelConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=1,
  decoder_layers=1,
  mlp_dim=32,
  moe=config.MoEConfig(enabled=False),
  id_buckets=64,
)


@pytest.fixture(scope='module')
def case():
  """Model, parameters, router bias, codes, trie and two users."""
  rng = np.random.default_rng(0)
  places = rng.choice(np.prod(_SIZES), _NUM_ITEMS, replace=False)
  codes = np.stack(np.unravel_index(places, _SIZES), 1).astype(np.int32)
  model = onerec.OneRec(
    _MODEL, vocabulary.Vocabulary(_SIZES), items_per_session=3
  )
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  # Far from uniform, so that lists do not hang on rounding.
  params = {
    **params,
    'embedding': params['embedding'] * 2,
    'id_embedding': params['id_embedding'] * 20,
  }
  users = jax.tree.map(
    jnp.asarray,
    batch_lib.SessionBatch(
      example_id=np.arange(2, dtype=np.int32),
      user=np.zeros(2, np.int32),
      history_items=np.array([[0, 1, 2, 5], [7, 3, 0, 0]], np.int32),
      history_mask=np.array([[True] * 4, [True, True, False, False]]),
      target_items=np.zeros((2, 1), np.int32),
      target_mask=np.zeros((2, 1), bool),
      example_mask=np.ones(2, bool),
    ),
  )
  bias = jnp.asarray(onerec.initial_router_bias(_MODEL))
  trie = prefix_trie.PrefixTrie.build(codes, _SIZES)
  return model, params, bias, codes, trie, users


def _recommend(case, *, counts=None, **decoding):
  model, params, bias, codes, trie, users = case
  recommender = recommend.make_recommender(
    model, config.DecodingConfig(num_beams=30, **decoding), top_k=_NUM_ITEMS
  )
  catalogue = batch_lib.Catalogue(jnp.asarray(codes))
  return recommender(params, bias, catalogue, trie, users, transitions=counts)


def _forced_scores(case, *, split):
  """`starts` of teacher forcing times the vector of every item. [2, I]

  The decoder is given the last `split` items as the first of the session.
  """
  model, params, bias, codes, _, users = case
  found = []
  for row in range(2):
    history = np.asarray(users.history_items[row])[users.history_mask[row]]
    cut = len(history) - split
    session = [*history[cut:], 0]  # what is predicted does not matter
    output = jax.jit(functools.partial(model.apply, deterministic=True))(
      {'params': params},
      encoder_input.EncoderInput(
        jnp.asarray(codes[history[:cut]][None]),
        jnp.ones((1, cut), bool),
        jnp.zeros(1, jnp.int32),
      ),
      jnp.asarray(codes[session][None]),
      jnp.ones((1, split + 1), bool),
      bias,
    )
    vectors = model.apply(
      {'params': params}, jnp.asarray(codes), method='item_vectors'
    )
    found.append(np.asarray(vectors @ output.starts[0, -1]))
  return np.stack(found)


@pytest.mark.parametrize('split', [0, 1])
def test_hypotheses_are_ranked_by_codes_and_item_together(case, split):
  users = case[-1]
  by_codes = _recommend(case, continue_items=split)
  both = _recommend(case, continue_items=split, item_weight=0.5)
  scores = _forced_scores(case, split=split)
  moved = 0
  for row in range(2):
    seen = np.asarray(users.history_items[row])[users.history_mask[row]]
    left = _NUM_ITEMS - len(seen)
    items = np.asarray(by_codes.items[row])[:left]
    want = np.asarray(by_codes.scores[row])[:left] + 0.5 * scores[row, items]
    order = np.argsort(-want)
    np.testing.assert_array_equal(both.items[row][:left], items[order])
    np.testing.assert_allclose(
      both.scores[row][:left], want[order], rtol=1e-4, atol=1e-4
    )
    # What was seen stays out, and nothing takes its place.
    assert np.all(np.asarray(both.items[row])[left:] == -1)
    np.testing.assert_array_equal(
      both.hypotheses.valid[row], by_codes.hypotheses.valid[row]
    )
    moved += (order != np.arange(left)).sum()
  assert moved > 10  # else the scores would not have been asked


@pytest.mark.parametrize('item_weight', [0.0, 2.0])
def test_counted_transitions_are_mixed_into_the_list(case, item_weight):
  rng = np.random.default_rng(2)
  offsets = np.arange(0, 3 * _NUM_ITEMS + 1, 3)
  counts = transitions.Transitions.of_rows(
    offsets,
    rng.integers(0, _NUM_ITEMS, 3 * _NUM_ITEMS),
    rng.uniform(1, 2, 3 * _NUM_ITEMS),
    history_items=2,
    history_decay=0.5,
  )
  users = case[-1]
  alone = _recommend(case, item_weight=item_weight)
  both = _recommend(
    case, item_weight=item_weight, transition_weight=0.6, counts=counts
  )
  moved = 0
  for row in range(2):
    seen = np.asarray(users.history_items[row])[users.history_mask[row]]
    left = _NUM_ITEMS - len(seen)
    items = np.asarray(alone.items[row])[:left]
    own = np.asarray(alone.scores[row])[:left] / (1 + item_weight)
    own = np.exp(own) / np.exp(own).sum()
    share = np.zeros(_NUM_ITEMS)
    for ago, item in enumerate(seen[::-1][:2]):
      near, kept = counts.successors[item], counts.weights[item]
      np.add.at(share, near[near >= 0], 0.5**ago * kept[near >= 0])
    share = share[items] / share[items].sum()
    want = 0.4 * own + 0.6 * share
    order = np.argsort(-want, kind='stable')
    np.testing.assert_array_equal(both.items[row][:left], items[order])
    np.testing.assert_allclose(
      np.exp(both.scores[row][:left]), want[order], rtol=1e-3, atol=1e-6
    )
    assert np.all(np.asarray(both.items[row])[left:] == -1)
    moved += (order != np.arange(left)).sum()
  assert moved > 10  # else the counts would not have been asked


def test_invalid_hypotheses_stay_last_and_ties_keep_their_order():
  valid = np.array([[True, True, True, False]])
  hypotheses = beam_search.BeamResult(
    codes=jnp.arange(4)[None, :, None, None],
    log_probs=jnp.where(valid, jnp.array([[-1.0, -2.0, -3.0, 0.0]]), -jnp.inf),
    leaves=jnp.arange(4)[None, :, None],
    valid=jnp.asarray(valid),
    entropy=jnp.zeros((1, 1)),
  )
  found = recommend.by_scores(hypotheses, jnp.array([[-1.0, 1.0, -1.0, 9.0]]))
  np.testing.assert_array_equal(found.codes.ravel(), [1, 0, 2, 3])
  np.testing.assert_array_equal(found.leaves.ravel(), [1, 0, 2, 3])
  np.testing.assert_array_equal(found.log_probs, [[1.0, -1.0, -1.0, -np.inf]])
  np.testing.assert_array_equal(found.valid, valid)
