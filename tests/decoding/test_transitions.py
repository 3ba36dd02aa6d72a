"""Counted transitions: which items follow, and how they enter lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.data import baselines
from onerec_jax.decoding import transitions
from onerec_jax.semantic_ids import prefix_trie

# 0 -> 1 (3), 2 (1), 4 (3); 1 -> 2 (5); 2 -> nothing; 3 -> 0 (2); 4 -> 3 (1)
_ROWS = {
  'offsets': np.array([0, 3, 4, 4, 5, 6]),
  'items': np.array([2, 1, 4, 2, 0, 3]),
  'weights': np.array([1.0, 3.0, 3.0, 5.0, 2.0, 1.0]),
}
_NOBODY = jnp.zeros((1, 0), jnp.int32)


def _made(**kwargs):
  settings = {'history_items': 2, 'history_decay': 0.5, 'most': 2} | kwargs
  return transitions.Transitions.of_rows(**_ROWS, **settings)


def _after(made, history, excluded=_NOBODY):
  return transitions.after(
    made,
    jnp.asarray([history]),
    jnp.ones((1, len(history)), bool),
    jnp.asarray(excluded),
  )


def _dense(followers, num_items=5):
  return np.asarray(transitions.of_items(followers, num_items))[0]


def test_the_heaviest_successors_are_kept_and_ties_go_to_the_smaller_item():
  made = _made()
  np.testing.assert_array_equal(
    made.successors, [[1, 4], [2, -1], [-1, -1], [0, -1], [3, -1]]
  )
  np.testing.assert_array_equal(
    made.weights, [[3, 3], [5, 0], [0, 0], [2, 0], [1, 0]]
  )


def test_the_last_items_count_and_older_ones_less():
  # Of 3, 0, 1 only 0 (one place back, half) and 1 are looked at.
  found = _dense(_after(_made(most=3), [3, 0, 1]))
  np.testing.assert_allclose(found, [0, 1.5, 0.5 + 5, 0, 1.5])


def test_what_is_excluded_gets_nothing():
  found = _dense(_after(_made(most=3), [0, 1], [[2, -1, 3]]))
  np.testing.assert_allclose(found, [0, 1.5, 0, 0, 1.5])


def test_what_may_not_be_recommended_gets_nothing():
  found = transitions.after(
    _made(most=3),
    jnp.asarray([[0, 1]]),
    jnp.ones((1, 2), bool),
    _NOBODY,
    jnp.asarray([True, True, False, True, True]),
  )
  np.testing.assert_allclose(_dense(found), [0, 1.5, 0, 0, 1.5])


def test_padding_changes_nothing():
  made = _made(most=3)
  padded = transitions.after(
    made,
    jnp.asarray([[1, 0, 0, 0]]),
    jnp.asarray([[True, False, False, False]]),
    _NOBODY,
  )
  np.testing.assert_allclose(_dense(padded), [0, 0, 5, 0, 0])
  nothing = transitions.after(
    made, jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), bool), _NOBODY
  )
  np.testing.assert_allclose(_dense(nothing), np.zeros(5))


def test_items_of_one_id_are_added_up():
  codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0, 1]], np.int32)
  trie = prefix_trie.PrefixTrie.build(codes, (2, 2))
  followers = _after(_made(most=3), [3, 0, 1])
  leaves = jnp.asarray([[2, 1, -1, 0]])  # (1, 0), (0, 1), none, (0, 0)
  found = transitions.of_ids(followers, trie, jnp.asarray(codes), leaves)
  np.testing.assert_allclose(found, [[5.5, 3.0, 0, 0]])


def test_they_rank_items_as_the_counting_floor_does():
  rng = np.random.default_rng(0)
  items = rng.integers(0, 12, 300).astype(np.int64)
  offsets = np.arange(0, 301, 6)
  floor = baselines.source_cooccurrence(offsets, items, num_items=12)
  made = transitions.Transitions.of_rows(
    floor.transitions.indptr,
    floor.transitions.indices,
    floor.transitions.data,
    history_items=floor.history_items,
    history_decay=floor.history_decay,
  )
  histories = rng.integers(0, 12, (7, 9))
  want = floor.scores(np.arange(0, 64, 9), histories.reshape(-1))
  found = transitions.of_items(
    transitions.after(
      made,
      jnp.asarray(histories),
      jnp.ones(histories.shape, bool),
      jnp.zeros((7, 0), jnp.int32),
    ),
    12,
  )
  # The floor divides by each row's largest and breaks ties by popularity.
  found = np.asarray(found) / np.asarray(found).max(axis=1, keepdims=True)
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_mixing_by_hand():
  scores = jnp.log(jnp.asarray([[0.2, 0.1, 0.1, 0.6]]))
  valid = jnp.asarray([[True, True, True, False]])
  counted = jnp.asarray([[0.0, 3.0, 1.0, 9.0]])  # the last is no candidate
  found = transitions.mix(scores, valid, counted, weight=0.4)
  np.testing.assert_allclose(
    np.exp(found)[0],
    [0.6 * 0.5, 0.6 * 0.25 + 0.4 * 0.75, 0.6 * 0.25 + 0.4 * 0.25, 0],
    rtol=1e-6,
  )


def test_mixing_does_not_ask_for_normalised_scores():
  rng = np.random.default_rng(1)
  scores = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
  counted = jnp.asarray(rng.uniform(size=(3, 8)), jnp.float32)
  valid = jnp.ones((3, 8), bool)
  found = transitions.mix(scores, valid, counted, weight=0.3)
  moved = transitions.mix(scores - 40, valid, 7 * counted, weight=0.3)
  np.testing.assert_allclose(found, moved, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


def test_where_nothing_is_counted_the_model_decides():
  scores = jnp.asarray([[-1.0, -900.0, -3.0], [-1.0, -2.0, -3.0]])
  valid = jnp.asarray([[True] * 3, [False] * 3])
  found = transitions.mix(scores, valid, jnp.zeros((2, 3)), weight=0.9)
  np.testing.assert_allclose(found[0], jax.nn.log_softmax(scores[0]), rtol=1e-5)
  assert np.isfinite(found[0]).all()
  assert np.isneginf(found[1]).all()


def test_transitions_that_are_missing_are_asked_for():
  with pytest.raises(ValueError, match='transitions must be given'):
    _after(None, [0])


def test_items_that_came_later_follow_nothing_and_nothing_follows_them():
  made = _made()
  more = made.with_items(7)
  np.testing.assert_array_equal(more.successors[:5], made.successors)
  np.testing.assert_array_equal(more.weights[:5], made.weights)
  assert (np.asarray(more.successors[5:]) == -1).all()
  assert not np.asarray(more.weights[5:]).any()
  # Item 6 came later: only item 0, one place back, leads anywhere.
  weights = np.asarray(transitions.of_items(_after(more, [0, 6]), 7))[0]
  np.testing.assert_allclose(weights, [0, 1.5, 0, 0, 1.5, 0, 0])
