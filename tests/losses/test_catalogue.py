"""Next-item losses against NumPy, and the drawing of negatives."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.losses import catalogue

_PLACES, _ITEMS, _DIM = 11, 7, 3


def _case(seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(_PLACES, _DIM)).astype(np.float32),
    rng.normal(size=(_ITEMS, _DIM)).astype(np.float32),
    rng.normal(size=_ITEMS).astype(np.float32),
    rng.integers(0, _ITEMS, _PLACES).astype(np.int32),
    rng.random(_PLACES) < 0.6,
  )


@functools.cache
def _compiled(**options):
  return jax.jit(functools.partial(catalogue.softmax_loss, **options))


def _reference(states, table, bias, labels, mask, smoothing):
  """Place by place, in double precision."""
  losses, hits = np.zeros(len(labels)), np.zeros(len(labels), bool)
  for p in np.flatnonzero(mask):
    scores = table.astype(np.float64) @ states[p] + bias
    log_probs = scores - np.log(np.exp(scores).sum())
    smooth = np.full(_ITEMS, smoothing / _ITEMS)
    smooth[labels[p]] += 1 - smoothing
    losses[p] = -(smooth * log_probs).sum()
    hits[p] = scores.argmax() == labels[p]
  return losses, hits


@pytest.mark.parametrize('chunk_size', [1, 4, 100])
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_softmax_loss_equals_numpy_for_every_chunk_size(chunk_size, smoothing):
  case = _case()
  assert 0 < case[4].sum() < _PLACES
  found = _compiled(chunk_size=chunk_size, label_smoothing=smoothing)(*case)
  losses, hits = _reference(*case, smoothing)
  np.testing.assert_allclose(found.loss, losses, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found.hit, hits)
  assert hits.any() and not hits.all()


def test_two_items_that_score_alike_cost_ln_2_and_are_no_hit():
  found = _compiled(chunk_size=1)(
    jnp.ones((1, 1)),
    jnp.ones((2, 1)),
    jnp.zeros(2),
    jnp.array([1]),
    jnp.array([True]),
  )
  np.testing.assert_allclose(found.loss, [math.log(2)], rtol=1e-6)
  assert not found.hit[0]


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1, 2))
def _gradients(*case):
  return catalogue.softmax_loss(*case, chunk_size=4).loss.sum()


def test_masked_places_are_the_same_as_absent_ones():
  states, table, bias, labels, mask = _case()
  whole = _gradients(states, table, bias, labels, mask)
  part = _gradients(states[mask], table, bias, labels[mask], mask[mask])
  np.testing.assert_allclose(whole[0][mask], part[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(whole[0][~mask], 0)
  for a, b in zip(whole[1:], part[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_are_softmax_minus_one_hot():
  states, table, bias, labels, mask = _case()
  scores = states.astype(np.float64) @ table.T + bias
  probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  error = (probs - np.eye(_ITEMS)[labels]) * mask[:, None]
  found = _gradients(states, table, bias, labels, mask)
  for value, expected in zip(
    found, (error @ table, error.T @ states, error.sum(0)), strict=True
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_with_nothing_to_predict_and_huge_scores():
  states, table, bias, labels, mask = _case()
  for value in _gradients(states, table, bias, labels, np.zeros_like(mask)):
    np.testing.assert_array_equal(value, 0)
  for value in _gradients(states * 1e6, table, bias, labels, mask):
    assert np.isfinite(value).all()


# --- Sampled items ----------------------------------------------------------


def test_binary_loss_by_hand():
  # Scores of 0 are probabilities of 1/2: ln 2 for each of 1 + 3 items.
  np.testing.assert_allclose(
    catalogue.binary_loss(jnp.zeros(1), jnp.zeros((1, 3))),
    [4 * math.log(2)],
    rtol=1e-6,
  )


def test_binary_loss_equals_numpy():
  rng = np.random.default_rng(0)
  positive, negatives = rng.normal(size=(5, 4)), rng.normal(size=(5, 4, 3))

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  expected = -np.log(sigmoid(positive)) - np.log(1 - sigmoid(negatives)).sum(-1)
  found = catalogue.binary_loss(
    jnp.asarray(positive, jnp.float32), jnp.asarray(negatives, jnp.float32)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('score', [-1e4, 1e4])
def test_binary_loss_has_finite_gradients_at_the_ends(score):
  gradient = jax.grad(
    lambda s: catalogue.binary_loss(s, s[..., None] - 1).sum()
  )(jnp.full(2, score, jnp.float32))
  assert np.isfinite(gradient).all()


def test_negatives_are_every_item_but_the_positive_one_equally_often():
  positives = jnp.repeat(jnp.arange(5), 4000).reshape(100, 200)
  drawn = catalogue.draw_negatives(
    positives, num_items=5, num_negatives=2, key=jax.random.key(0)
  )
  assert drawn.shape == (100, 200, 2)
  counts = np.zeros((5, 5))
  np.add.at(counts, (np.repeat(np.ravel(positives), 2), np.ravel(drawn)), 1)
  np.testing.assert_array_equal(np.diag(counts), 0)
  # 8000 draws over 4 items; a standard deviation is 39.
  others = counts[~np.eye(5, dtype=bool)]
  assert others.min() > 1800 and others.max() < 2200


def test_of_two_items_the_negative_is_the_other_one():
  positives = jnp.array([0, 1, 1, 0])
  drawn = catalogue.draw_negatives(
    positives, num_items=2, num_negatives=1, key=jax.random.key(3)
  )
  np.testing.assert_array_equal(drawn[:, 0], 1 - positives)
