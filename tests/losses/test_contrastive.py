"""In-batch contrastive loss of item pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.losses import contrastive

_TAU = 0.3


def _cosines(x, y, similarity):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if similarity == 'mean_pool':
    x, y = x.mean(1), y.mean(1)
  x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
  norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
  return x @ y.T / norms


def _reference(triggers, targets, similarity, excluded=None):
  """The printed formula, one pair at a time, in float64."""
  score = _cosines(triggers, targets, similarity) / _TAU
  losses = []
  for i in range(len(score)):
    others = [
      j
      for j in range(len(score))
      if j == i or excluded is None or not excluded[i][j]
    ]
    losses.append(-score[i, i] + np.log(np.exp(score[i, others]).sum()))
  return np.array(losses)


@pytest.fixture(scope='module')
def case():
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.standard_normal((6, 2, 3), np.float32)) for _ in range(2)
  )


def _loss(triggers, targets, mask=None, **changes):
  mask = jnp.ones(len(triggers), bool) if mask is None else mask
  return contrastive.item_to_item_loss(
    triggers, targets, mask, **{'temperature': _TAU, **changes}
  )


def test_loss_of_two_orthogonal_pairs_by_hand():
  # Cosine 1 with the own target, 0 with the other: log(e^{1/τ} + 1) - 1/τ.
  x = jnp.eye(2)[:, None, :]
  found = _loss(x, 3 * x, temperature=0.5)
  np.testing.assert_allclose(
    found.loss, np.full(2, np.log(np.exp(2) + 1) - 2), rtol=1e-6
  )
  assert found.correct.tolist() == [True, True]
  np.testing.assert_allclose(found.similarity, [1, 1], rtol=1e-6)
  assert found.negatives.tolist() == [1, 1]
  # Targets exchanged: cosine 0 with the own one, 1 with the other.
  found = _loss(x, x[::-1], temperature=0.5)
  np.testing.assert_allclose(
    found.loss, np.full(2, np.log(np.exp(2) + 1)), rtol=1e-6
  )
  assert found.correct.tolist() == [False, False]


@pytest.mark.parametrize('similarity', ['flat', 'mean_pool'])
def test_loss_equals_the_printed_formula(case, similarity):
  found = _loss(*case, similarity=similarity)
  np.testing.assert_allclose(
    found.loss, _reference(*case, similarity), rtol=1e-5
  )
  score = _cosines(*case, similarity)
  np.testing.assert_array_equal(
    found.correct, score.argmax(1) == np.arange(len(score))
  )
  np.testing.assert_allclose(found.similarity, np.diag(score), rtol=1e-5)


def test_the_two_similarities_differ(case):
  flat, pooled = (
    contrastive.similarities(*case, similarity=s) for s in ('flat', 'mean_pool')
  )
  assert np.abs(flat - pooled).max() > 0.1


def test_only_one_direction_is_scored(case):
  triggers, targets = case
  forward = _loss(triggers, targets).loss
  backward = _loss(targets, triggers).loss
  assert np.abs(forward - backward).max() > 0.1


def test_excluded_targets_leave_the_sum_but_never_the_own_one(case):
  excluded = np.random.default_rng(1).random((6, 6)) < 0.5
  np.fill_diagonal(excluded, True)
  found = _loss(*case, excluded=jnp.asarray(excluded))
  expected = _reference(*case, 'flat', excluded)
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4, atol=1e-6)
  assert np.abs(expected - _reference(*case, 'flat')).max() > 0.1
  np.testing.assert_array_equal(found.negatives, 6 - excluded.sum(1))


def test_masked_pairs_are_as_good_as_absent(case):
  triggers, targets = case
  mask = np.array([True, False, True, True, False, True])
  excluded = np.random.default_rng(2).random((6, 6)) < 0.3
  whole = _loss(
    triggers, targets, jnp.asarray(mask), excluded=jnp.asarray(excluded)
  )
  part = _loss(
    triggers[mask], targets[mask], excluded=jnp.asarray(excluded[mask][:, mask])
  )
  for a, b in zip(whole, part, strict=True):
    np.testing.assert_allclose(np.asarray(a)[mask], b, rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(a)[~mask])


def test_order_of_the_pairs_only_reorders_the_losses(case):
  triggers, targets = case
  order = np.array([4, 1, 0, 5, 3, 2])
  np.testing.assert_allclose(
    _loss(triggers[order], targets[order]).loss,
    np.asarray(_loss(triggers, targets).loss)[order],
    rtol=1e-5,
  )


@pytest.mark.parametrize('similarity', ['flat', 'mean_pool'])
def test_gradient_equals_a_difference_quotient(case, similarity):
  rng = np.random.default_rng(3)
  step = [rng.standard_normal(x.shape) for x in case]

  def reference(distance):
    moved = [
      np.asarray(x, np.float64) + distance * s
      for x, s in zip(case, step, strict=True)
    ]
    return _reference(*moved, similarity).sum()

  expected = (reference(1e-5) - reference(-1e-5)) / 2e-5
  loss = functools.partial(_loss, similarity=similarity)
  gradients = jax.grad(lambda x: loss(*x).loss.sum())(case)
  found = sum(
    (np.asarray(g) * s).sum() for g, s in zip(gradients, step, strict=True)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('scale', [0.0, 1e-20, 1e15])
def test_gradients_are_finite_where_vectors_vanish_or_nothing_is_left(
  case, scale
):
  triggers, targets = case
  triggers = scale * triggers

  def total(triggers, targets, mask, excluded):
    return _loss(triggers, targets, mask, excluded=excluded).loss.sum()

  for mask in (jnp.zeros(6, bool), jnp.ones(6, bool)):
    for excluded in (jnp.zeros((6, 6), bool), jnp.ones((6, 6), bool)):
      value, gradients = jax.value_and_grad(total, argnums=(0, 1))(
        triggers, targets, mask, excluded
      )
      assert np.isfinite(value)
      assert all(np.isfinite(g).all() for g in gradients)
      if not mask.any() or excluded.all():
        np.testing.assert_allclose(value, 0, atol=1e-5)


def test_false_negatives_are_found_by_item():
  pairs = [(1, 2), (1, 3), (4, 2), (5, 1), (6, 7), (4, 9)]
  triggers, targets = (jnp.asarray(x) for x in zip(*pairs, strict=True))
  # The last pair is filler: 9 stays a negative of the other pair of 4.
  mask = jnp.arange(6) < 5
  found = np.asarray(contrastive.false_negatives(triggers, targets, mask))
  known = {pair for pair in pairs[:5]}
  for i, (trigger, _) in enumerate(pairs[:5]):
    for j, (_, target) in enumerate(pairs[:5]):
      no_negative = (trigger, target) in known or trigger == target
      assert found[i, j] == no_negative, (i, j)
  assert not found[2, 5]
  # Trigger 1 keeps 7 alone: 2 and 3 are its own, 1 is itself.
  assert found[0, :5].tolist() == [True, True, True, True, False]
