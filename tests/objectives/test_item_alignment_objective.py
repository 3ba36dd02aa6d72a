"""Item alignment objective: terms, weights, filler rows, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import item_pairs
from onerec_jax.losses import contrastive
from onerec_jax.model import item_alignment
from onerec_jax.model import parameters
from onerec_jax.objectives import item_alignment as objective_lib

_CONFIG = config.ItemAlignmentConfig(
  num_queries=2,
  dim=8,
  num_layers=1,
  num_heads=2,
  mlp_dim=8,
  temperature=0.2,
  caption_tokens=4,
  caption_dim=8,
  caption_weight=0.3,
  dropout_rate=0.5,
)
_MODEL = item_alignment.ItemAligner(
  _CONFIG, item_alignment.TokenLayout((2,), (3,)), vocabulary_size=6
)
_OBJECTIVE = objective_lib.make_objective(_MODEL)


@pytest.fixture(scope='module')
def params():
  boxes = item_alignment.abstract_params(_MODEL)
  return jax.tree.map(jnp.asarray, parameters.materialize(boxes, seed=0))


@pytest.fixture(scope='module')
def batch():
  """Five pairs of six items; the last row is filler."""
  rng = np.random.default_rng(0)
  table = rng.standard_normal((6, 2, 3), np.float32)
  # Item 1 is a target twice and a trigger; 2 has two targets.
  items = np.array([[0, 1], [2, 1], [1, 3], [2, 5], [0, 0]], np.int32)
  words = rng.integers(0, 6, (5, 4)).astype(np.int32)
  word_mask = np.arange(4) < np.array([4, 2, 0, 3, 0])[:, None]
  mask = np.arange(5) < 4
  return item_pairs.ItemPairBatch(
    items=jnp.asarray(items),
    mask=jnp.asarray(mask),
    tokens=jnp.asarray(table[items]),
    token_mask=jnp.ones((5, 2, 2), bool),
    words=jnp.asarray(words),
    word_mask=jnp.asarray(word_mask),
  )


def _run(params, batch, key=None):
  return _OBJECTIVE(params, {}, None, batch, key)


def test_the_loss_is_the_sum_of_both_terms_computed_apart(params, batch):
  output = _run(params, batch)

  def encode(side):
    return _MODEL.apply(
      {'params': params},
      batch.tokens[:4, side],
      batch.token_mask[:4, side],
      method='encode',
    )

  triggers, targets = encode(0), encode(1)
  score = np.asarray(
    contrastive.similarities(triggers, targets, similarity='flat')
  )
  # By hand: trigger 0 may not be compared with the other 1; trigger 2 neither
  # with 1 nor with 5, both its own; trigger 1 not with itself.
  compared = [[0, 2, 3], [1, 2], [2, 3], [3, 2]]
  contrast = [
    np.log(np.exp(score[i, c] / 0.2).sum()) - score[i, c[0]] / 0.2
    for i, c in enumerate(compared)
  ]
  logits = np.asarray(
    _MODEL.apply(
      {'params': params}, triggers, batch.words[:4], method='caption_logits'
    ),
    np.float64,
  )
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  words = np.asarray(batch.words)
  nats = [
    -log_probs[i, k, words[i, k]]
    for i in range(4)
    for k in range(4)
    if batch.word_mask[i, k]
  ]
  assert len(nats) == 9
  expected = np.mean(contrast) + 0.3 * np.mean(nats)
  np.testing.assert_allclose(output.loss.value(), expected, rtol=1e-5)
  values = {k: float(v.value()) for k, v in output.metrics.items()}
  np.testing.assert_allclose(values['contrastive'], np.mean(contrast), 1e-5)
  np.testing.assert_allclose(values['caption'], np.mean(nats), rtol=1e-5)
  assert values['negatives'] == (2 + 1 + 1 + 1) / 4
  np.testing.assert_allclose(
    values['similarity'], np.diag(score).mean(), rtol=1e-5
  )
  assert float(output.counts['examples']) == 4


def test_filler_rows_change_nothing(params, batch):
  whole = _run(params, batch)
  part = _run(params, jax.tree.map(lambda x: x[:4], batch))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (whole.loss, whole.metrics),
    (part.loss, part.metrics),
  )


def test_gradients_reach_every_parameter_and_are_finite(params, batch):
  gradients = jax.grad(lambda p: _run(p, batch).loss.value())(params)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all()
    assert np.any(gradient), jax.tree_util.keystr(path)
  empty = dataclasses.replace(
    batch,
    mask=jnp.zeros(5, bool),
    token_mask=jnp.zeros((5, 2, 2), bool),
    word_mask=jnp.zeros((5, 4), bool),
  )
  value, gradients = jax.value_and_grad(lambda p: _run(p, empty).loss.value())(
    params
  )
  assert value == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_a_key_means_dropout(params, batch):
  still = [_run(params, batch).loss.value() for _ in range(2)]
  assert still[0] == still[1]
  dropped = _run(params, batch, jax.random.key(0)).loss.value()
  assert abs(dropped - still[0]) > 1e-3


def test_without_words_only_the_pairs_count(params, batch):
  model = item_alignment.ItemAligner(_CONFIG, _MODEL.layout, 0)
  objective = objective_lib.make_objective(model)
  bare = dataclasses.replace(batch, words=None, word_mask=None)
  params = {k: v for k, v in params.items() if k != 'decoder'}
  output = objective(params, {}, None, bare, None)
  assert 'caption' not in output.metrics
  np.testing.assert_array_equal(
    output.loss.value(), output.metrics['contrastive'].value()
  )
