"""Ranking the whole catalogue: exclusions by hand, scores against the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.decoding import catalogue_ranking
from onerec_jax.decoding import transitions
from onerec_jax.model import parameters
from onerec_jax.model import sequential

_ITEMS = 10
_KINDS = ('sasrec', 'bert4rec', 'fdsa')
_CONFIG = config.SequentialConfig(
  embed_dim=8, num_heads=2, num_layers=1, mlp_dim=8, dropout_rate=0.0
)


def _setup(kind):
  model = sequential.SequenceModel(
    kind, _CONFIG, num_items=_ITEMS, max_length=6, num_attributes=3
  )
  params = parameters.materialize(sequential.abstract_params(model), seed=0)
  params['table'] = params['table'] * 20
  attributes = None
  if kind == 'fdsa':
    ids = jnp.arange(_ITEMS)[:, None] % 3
    attributes = sequential.ItemAttributes(ids, jnp.ones_like(ids, bool))
  return model, params, attributes


def _users(history, lengths):
  history = np.asarray(history, np.int32)
  rows = len(history)
  users = np.arange(rows, dtype=np.int32)
  return jax.tree.map(
    jnp.asarray,
    batch_lib.SessionBatch(
      example_id=users,
      user=users,
      history_items=history,
      history_mask=np.arange(history.shape[1])[None]
      < np.asarray(lengths)[:, None],
      target_items=np.zeros((rows, 1), np.int32),
      target_mask=np.zeros((rows, 1), bool),
      example_mask=np.ones(rows, bool),
    ),
  )


def test_excluded_items_drop_out_and_nothing_fills_the_rest():
  scores = jnp.array([[0.1, 0.4, 0.3, 0.2], [4.0, 4.0, -2.0, 5.0]])
  excluded = jnp.array([[1, 1, -1], [3, 0, 2]])
  found = catalogue_ranking.best_items(scores, excluded, top_k=5)
  np.testing.assert_array_equal(
    found.items, [[2, 3, 0, -1, -1], [1, -1, -1, -1, -1]]
  )
  np.testing.assert_array_equal(found.valid, np.asarray(found.items) >= 0)
  np.testing.assert_allclose(
    found.scores,
    [[0.3, 0.2, 0.1, -np.inf, -np.inf], [4.0, *[-np.inf] * 4]],
    rtol=1e-6,
  )


def test_ties_go_to_the_smaller_item_and_nothing_need_be_excluded():
  found = catalogue_ranking.best_items(
    jnp.array([[1.0, 2.0, 2.0]]), jnp.zeros((1, 0), jnp.int32), top_k=2
  )
  np.testing.assert_array_equal(found.items, [[1, 2]])


@pytest.mark.parametrize('kind', _KINDS)
def test_the_list_is_a_sort_of_all_scores_without_the_excluded(kind):
  model, params, attributes = _setup(kind)
  batch = _users([[3, 4, 5, 1], [7, 0, 0, 0], [0, 0, 0, 0]], [4, 1, 0])
  log_probs = np.asarray(
    jax.jit(catalogue_ranking.score_items, static_argnums=0)(
      model, params, attributes, batch
    )
  )
  np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-5)
  seen = jnp.array([[2, 6], [7, -1], [-1, -1]])
  decoding = config.DecodingConfig()
  every = dataclasses.replace(decoding, exclude_history=False)
  for settings, given, excluded in (
    (decoding, None, [{3, 4, 5, 1}, {7}, set()]),
    (decoding, seen, [{2, 6}, {7}, set()]),  # replaces the history
    (every, seen, [set()] * 3),
  ):
    rank = catalogue_ranking.make_ranker(model, settings, top_k=_ITEMS)
    found = rank(params, attributes, batch, given)
    for row, gone in enumerate(excluded):
      order = [i for i in np.argsort(-log_probs[row]) if i not in gone]
      wanted = order + [-1] * len(gone)
      assert np.asarray(found.items[row]).tolist() == wanted
      np.testing.assert_allclose(
        found.scores[row, : len(order)], log_probs[row, order], rtol=1e-5
      )


def _to_the_next():
  """Counts in which every item leads to the next one."""
  return transitions.Transitions.of_rows(
    np.arange(_ITEMS + 1),
    (np.arange(_ITEMS) + 1) % _ITEMS,
    np.ones(_ITEMS),
    history_items=1,
    history_decay=1.0,
  )


@pytest.mark.parametrize('weight', [0.0, 0.25])
def test_only_what_is_allowed_is_listed(weight):
  model, params, attributes = _setup('sasrec')
  batch = _users([[3, 4, 5], [7, 9, 9]], [3, 1])
  counts = _to_the_next()
  settings = config.DecodingConfig(transition_weight=weight)
  rank = catalogue_ranking.make_ranker(model, settings, top_k=_ITEMS)
  allowed = jnp.isin(jnp.arange(_ITEMS), jnp.array([1, 3, 6, 8]))
  found = rank(params, attributes, batch, None, counts, allowed)
  log_probs = jax.jit(catalogue_ranking.score_items, static_argnums=0)(
    model, params, attributes, batch
  )
  for row, (left, after) in enumerate([([1, 6, 8], 6), ([1, 3, 6, 8], 8)]):
    want = np.exp(np.asarray(log_probs[row], np.float64))[left]
    want = (1 - weight) * want / want.sum() + weight * (np.array(left) == after)
    listed = [i for i in found.items[row].tolist() if i >= 0]
    assert listed == np.array(left)[np.argsort(-want)].tolist()
    assert np.asarray(found.valid[row]).sum() == len(left)


def test_counts_are_mixed_into_the_probabilities_of_what_is_left():
  model, params, attributes = _setup('sasrec')
  batch = _users([[3, 4, 5], [7, 9, 9], [2, 9, 9]], [3, 1, 1])
  counts = _to_the_next()
  settings = config.DecodingConfig(transition_weight=0.25)
  rank = catalogue_ranking.make_ranker(model, settings, top_k=_ITEMS)
  found = rank(params, attributes, batch, transitions=counts)
  log_probs = jax.jit(catalogue_ranking.score_items, static_argnums=0)(
    model, params, attributes, batch
  )
  for row, (seen, after) in enumerate([([3, 4, 5], 6), ([7], 8), ([2], 3)]):
    want = np.exp(np.asarray(log_probs[row], np.float64))
    want[seen] = 0
    want *= 0.75 / want.sum()
    if after < _ITEMS:
      want[after] += 0.25
    left = _ITEMS - len(seen)
    np.testing.assert_array_equal(
      found.items[row][:left], np.argsort(-want)[:left]
    )
    np.testing.assert_allclose(
      np.exp(found.scores[row][:left]), np.sort(want)[::-1][:left], rtol=1e-4
    )
    assert np.all(np.asarray(found.items[row][left:]) == -1)


@pytest.mark.parametrize('kind', _KINDS)
def test_padding_of_the_history_changes_no_score(kind):
  model, params, attributes = _setup(kind)
  score = jax.jit(catalogue_ranking.score_items, static_argnums=0)
  short = score(model, params, attributes, _users([[3, 4]], [2]))
  long = score(model, params, attributes, _users([[3, 4, 9, 9]], [2]))
  np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-6)
