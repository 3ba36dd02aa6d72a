"""Reward objective: loss over known labels only, and the scorer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.model import parameters
from onerec_jax.model import session_reward
from onerec_jax.objectives import reward
from onerec_jax.semantic_ids import vocabulary

_NUM_ITEMS = 12
_SIZES = (4, 3)
_MODEL = session_reward.SessionReward(
  config.RewardModelConfig(
    targets=(
      config.RewardTarget(name='ltr'),
      config.RewardTarget(name='swt'),
    ),
    embed_dim=8,
    num_heads=2,
    num_layers=1,
    tower_dim=4,
    dropout_rate=0.2,
  ),
  vocabulary.Vocabulary(_SIZES),
  _NUM_ITEMS,
)


def _params():
  boxes = session_reward.abstract_params(_MODEL)
  params = parameters.materialize(boxes, seed=0)
  rng = np.random.default_rng(1)  # fresh towers predict their bias only
  out = rng.normal(size=params['tower_out'].shape).astype(np.float32)
  return {**params, 'tower_out': out}


_PARAMS = _params()
_RANDOM = np.random.default_rng(0)
_CODES = np.stack(
  [_RANDOM.integers(0, k, _NUM_ITEMS) for k in _SIZES], axis=1
).astype(np.int32)
_OBJECTIVE = reward.make_objective(_MODEL)
_SCORE = reward.make_scorer(_MODEL)


def _batch():
  rng = np.random.default_rng(2)
  rows = 4
  session = batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.zeros(rows, np.int32),
    history_items=rng.integers(0, _NUM_ITEMS, (rows, 3), np.int32),
    history_mask=np.arange(3)[None] < np.array([3, 1, 2, 3])[:, None],
    target_items=rng.integers(0, _NUM_ITEMS, (rows, 2), np.int32),
    target_mask=np.arange(2)[None] < np.array([2, 1, 2, 2])[:, None],
    example_mask=np.ones(rows, bool),
  )
  return batch_lib.LabelledBatch(
    session,
    labels=rng.random((rows, 2)).astype(np.float32),
    # The second label of row 1 and all of row 2 are unknown.
    label_mask=np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool),
  )


@jax.jit
def _train(params, batch):
  def loss(params):
    frozen = {'item_codes': jnp.asarray(_CODES)}
    output = _OBJECTIVE(params, None, frozen, batch, jax.random.key(0))
    return output.loss.value(), output

  return jax.value_and_grad(loss, has_aux=True)(params)


@jax.jit
def _evaluate(params, batch):
  frozen = {'item_codes': jnp.asarray(_CODES)}
  return _OBJECTIVE(params, None, frozen, batch, None)


def _scores(session):
  return np.asarray(
    _SCORE(
      _PARAMS,
      _CODES,
      session.history_items,
      session.history_mask,
      session.target_items[:, None],
      session.target_mask[:, None],
    )
  )[:, 0]


def test_loss_sums_known_targets_and_averages_examples_with_a_label():
  batch = _batch()
  p = _scores(batch.session).astype(np.float64)
  y = batch.labels.astype(np.float64)
  losses = -y * np.log(p) - (1 - y) * np.log(1 - p)
  known = batch.label_mask
  output = _evaluate(_PARAMS, batch)
  # Three of the four examples have a label, five labels are known.
  assert output.loss.count == 3
  np.testing.assert_allclose(output.loss.total, losses[known].sum(), rtol=1e-5)
  for x, (name, count) in enumerate((('ltr', 3), ('swt', 2))):
    bce, shown = (output.metrics[f'{m}/{name}'] for m in ('bce', 'prediction'))
    assert bce.count == shown.count == count
    np.testing.assert_allclose(
      bce.total, losses[known[:, x], x].sum(), rtol=1e-5
    )
    np.testing.assert_allclose(shown.total, p[known[:, x], x].sum(), rtol=1e-5)
  assert set(output.metrics) == {
    'bce/ltr', 'bce/swt', 'prediction/ltr', 'prediction/swt'
  }  # fmt: skip
  assert output.counts == {'examples': 3}
  assert output.model_state is None


def test_unknown_labels_and_filler_rows_change_nothing():
  batch, other = _batch(), _batch()
  other.labels[~other.label_mask] = np.nan
  # Row 2 counts for nothing in either, as it has no label.
  other.session.example_mask[2] = False
  other.label_mask[2] = True
  for call in (_evaluate, _train):
    for a, b in zip(
      jax.tree.leaves(call(_PARAMS, batch)),
      jax.tree.leaves(call(_PARAMS, other)),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_order_of_examples_does_not_matter():
  batch = _batch()
  turned = jax.tree.map(lambda x: x[::-1].copy(), batch)
  for a, b in zip(
    jax.tree.leaves(_evaluate(_PARAMS, batch)),
    jax.tree.leaves(_evaluate(_PARAMS, turned)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
  batch = _batch()
  batch.label_mask[:] = False
  (value, output), gradients = _train(_PARAMS, batch)
  assert value == 0
  assert output.loss == (0, 0)
  assert all(not np.any(g) for g in jax.tree.leaves(gradients))


def test_gradients_are_finite_without_history_and_with_certain_labels():
  batch = _batch()
  batch.session.history_mask[:] = False
  batch.labels[:] = [[0, 1]] * 4
  extreme = {**_PARAMS, 'tower_out': 1e4 * _PARAMS['tower_out']}
  (value, _), gradients = _train(extreme, batch)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_only_training_drops_units():
  batch = _batch()
  trained = _train(_PARAMS, batch)[0][1]
  evaluated = _evaluate(_PARAMS, batch)
  assert trained.loss.total != evaluated.loss.total


@pytest.mark.parametrize('padding', [-1, 0, _NUM_ITEMS + 5])
def test_scores_are_probabilities_and_padding_may_be_any_number(padding):
  session = _batch().session
  want = _scores(session)
  assert want.shape == (4, 2)
  assert (want > 0).all() and (want < 1).all()
  session.history_items[~session.history_mask] = padding
  session.target_items[~session.target_mask] = padding
  np.testing.assert_array_equal(_scores(session), want)
