"""P-Score objective: two losses over known labels only, and the scorer."""

import dataclasses

import jax
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.model import p_score as model_lib
from onerec_jax.model import parameters
from onerec_jax.objectives import p_score
from onerec_jax.semantic_ids import vocabulary

_NUM_ITEMS, _ROWS, _EVENTS = 9, 4, 3
_WEIGHTS = 2.0, 0.5
_CONFIG = config.PScoreConfig(
  towers=(
    config.PScoreTower('ltr', weight=_WEIGHTS[0]),
    config.PScoreTower('wtr', weight=_WEIGHTS[1]),
  ),
  embed_dim=4,
  num_heads=2,
  history_length=_EVENTS,
  search_items=2,
  tower_dims=(3,),
  fusion_dims=(3,),
  dropout_rate=0.2,
)
_MODEL = model_lib.PScore(
  _CONFIG,
  model_lib.pathways_of(_CONFIG, config.PathwaysConfig(age_buckets=4)),
  batch_lib.FeatureSizes(_NUM_ITEMS, (), ()),
  vocabulary.Vocabulary((3, 3)),
)
_OBJECTIVE = p_score.make_objective(_MODEL)
_SCORE = p_score.make_scorer(_MODEL)


def _params():
  boxes = model_lib.abstract_params(_MODEL)
  params = parameters.materialize(boxes, seed=0)
  rng = np.random.default_rng(1)  # fresh towers predict their bias only
  for part in ('towers', 'fusion'):
    shape = params[part]['out'].shape
    params[part]['out'] = rng.normal(size=shape).astype(np.float32)
  return params


_PARAMS = _params()
_CATALOGUE = batch_lib.Catalogue(
  np.stack(np.divmod(np.arange(_NUM_ITEMS), 3), axis=1).astype(np.int32)
)


def _batch():
  rng = np.random.default_rng(2)
  shape = _ROWS, _EVENTS
  events = batch_lib.EventSequence(
    items=rng.integers(0, _NUM_ITEMS, shape, np.int32),
    mask=np.arange(_EVENTS)[None] >= np.array([0, 1, 3, 2])[:, None],
    age=rng.integers(0, 5, shape, np.int32),
    numbers=np.zeros((*shape, 0), np.int32),
    labels=np.zeros((*shape, 0), np.float32),
    label_mask=np.zeros((*shape, 0), bool),
  )
  session = batch_lib.SessionBatch(
    example_id=np.arange(_ROWS, dtype=np.int32),
    user=np.zeros(_ROWS, np.int32),
    history_items=np.zeros((_ROWS, 1), np.int32),
    history_mask=np.zeros((_ROWS, 1), bool),
    target_items=rng.integers(0, _NUM_ITEMS, (_ROWS, 1), np.int32),
    target_mask=np.ones((_ROWS, 1), bool),
    example_mask=np.ones(_ROWS, bool),
    context=batch_lib.UserContext(
      np.zeros((_ROWS, 0), np.int32), events, None, None
    ),
  )
  return batch_lib.LabelledBatch(
    session,
    labels=rng.integers(0, 2, (_ROWS, 2)).astype(np.float32),
    # The second label of row 1 and all of row 2 are unknown.
    label_mask=np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool),
  )


@jax.jit
def _train(params, batch, catalogue):
  def loss(params):
    frozen = {'catalogue': catalogue}
    output = _OBJECTIVE(params, None, frozen, batch, jax.random.key(0))
    return output.loss.value(), output

  return jax.value_and_grad(loss, has_aux=True)(params)


@jax.jit
def _evaluate(params, batch, catalogue):
  return _OBJECTIVE(params, None, {'catalogue': catalogue}, batch, None)


def _scores(batch):
  session = batch.session
  found = _SCORE(
    _PARAMS, _CATALOGUE, session.context, session.user, session.target_items
  )
  return np.asarray(found.p)[:, 0], np.asarray(found.towers)[:, 0]


def _bce(p, y):
  p, y = p.astype(np.float64), y.astype(np.float64)
  return -y * np.log(p) - (1 - y) * np.log(1 - p)


def test_loss_adds_towers_and_the_weighted_score_over_known_labels():
  batch = _batch()
  p, towers = _scores(batch)
  own = _bce(towers, batch.labels)
  common = _bce(p[:, None], batch.labels)
  known = batch.label_mask
  output = _evaluate(_PARAMS, batch, _CATALOGUE)
  total = (own + np.array(_WEIGHTS) * common)[known].sum()
  assert output.loss.count == 3  # rows with a label
  np.testing.assert_allclose(output.loss.total, total, rtol=1e-5)
  for x, (name, count) in enumerate((('ltr', 3), ('wtr', 2))):
    for kind, values in (
      ('bce', own[:, x]),
      ('fusion_bce', common[:, x]),
      ('prediction', towers[:, x]),
    ):
      metric = output.metrics[f'{kind}/{name}']
      assert metric.count == count
      np.testing.assert_allclose(
        metric.total, values[known[:, x]].sum(), rtol=1e-5
      )
  np.testing.assert_allclose(
    output.metrics['p_score'].value(), p[[0, 1, 3]].mean(), rtol=1e-5
  )
  assert len(output.metrics) == 7
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
      jax.tree.leaves(call(_PARAMS, batch, _CATALOGUE)),
      jax.tree.leaves(call(_PARAMS, other, _CATALOGUE)),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
  batch = _batch()
  batch.label_mask[:] = False
  (value, output), gradients = _train(_PARAMS, batch, _CATALOGUE)
  assert value == 0
  assert output.loss == (0, 0)
  assert all(not np.any(g) for g in jax.tree.leaves(gradients))


def test_gradients_are_finite_where_predictions_are_certain_and_wrong():
  batch = _batch()
  extreme = dict(_PARAMS)
  for part in ('towers', 'fusion'):
    bias = np.full_like(_PARAMS[part]['out_bias'], 1e4)
    extreme[part] = {**_PARAMS[part], 'out_bias': bias}
  batch.labels[:] = 0
  (value, _), gradients = _train(extreme, batch, _CATALOGUE)
  assert np.isfinite(value) and value > 1e3
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_only_training_drops_units():
  batch = _batch()
  trained = _train(_PARAMS, batch, _CATALOGUE)[0][1]
  evaluated = _evaluate(_PARAMS, batch, _CATALOGUE)
  assert trained.loss.total != evaluated.loss.total


@pytest.mark.parametrize('part', ['towers', 'fusion'])
def test_scores_are_probabilities_of_the_logits(part):
  batch = _batch()
  certain = {
    **_PARAMS,
    part: jax.tree.map(np.zeros_like, _PARAMS[part]),
  }
  session = batch.session
  found = _SCORE(
    certain, _CATALOGUE, session.context, session.user, session.target_items
  )
  changed = found.towers if part == 'towers' else found.p
  np.testing.assert_array_equal(changed, np.full(changed.shape, 0.5))
  kept = found.p if part == 'towers' else found.towers
  assert ((kept > 0) & (kept < 1)).all() and not (kept == 0.5).any()


def test_the_settings_of_a_tower_are_not_read_from_another():
  swapped = dataclasses.replace(_CONFIG, towers=_CONFIG.towers[::-1])
  objective = p_score.make_objective(
    dataclasses.replace(_MODEL, config=swapped)
  )
  batch = _batch()
  output = jax.jit(
    lambda batch, catalogue: objective(
      _PARAMS, None, {'catalogue': catalogue}, batch, None
    )
  )(batch, _CATALOGUE)
  p, towers = _scores(batch)
  losses = _bce(towers, batch.labels)
  losses += np.array(_WEIGHTS[::-1]) * _bce(p[:, None], batch.labels)
  np.testing.assert_allclose(
    output.loss.total, losses[batch.label_mask].sum(), rtol=1e-5
  )
