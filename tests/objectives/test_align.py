"""The alignment objective: its value at the reference, its sum, its slope."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import align
from onerec_jax.objectives import pretrain
from onerec_jax.semantic_ids import vocabulary

_NUM_ITEMS, _SIZES, _ROWS, _PAIRS = 12, (4, 3), 8, 8
_MODEL = config.ModelConfig(
  embed_dim=8,
  num_heads=2,
  head_dim=4,
  encoder_layers=1,
  decoder_layers=1,
  mlp_dim=8,
  dropout_rate=0.0,
  attention_dropout_rate=0.0,
  scan_layers=False,
  moe=config.MoEConfig(num_experts=4, top_k=2, expert_dim=8),
)
_TRAIN = config.TrainConfig()
_PREFERENCE = config.PreferenceConfig(
  weight=3.0,
  beta=0.7,
  rollout=config.DecodingConfig(num_items=2, continue_items=1),
)


def _model(mesh=None):
  return onerec.OneRec(
    config=_MODEL,
    vocabulary=vocabulary.Vocabulary(_SIZES),
    items_per_session=3,
    mesh=mesh,
  )


@pytest.fixture(scope='module')
def setup():
  model = _model()
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, k, _NUM_ITEMS) for k in _SIZES], axis=1)
  frozen = {
    'catalogue': batch_lib.Catalogue(jnp.asarray(codes, jnp.int32)),
    'reference_bias': jnp.zeros((1, 4), jnp.float32),
  }
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  return model, params, frozen


def _sessions(seed, rows, *, history, targets):
  rng = np.random.default_rng(seed)
  draw = lambda width: rng.integers(0, _NUM_ITEMS, (rows, width), np.int32)  # noqa: E731
  lengths = rng.integers(1, history + 1, (rows, 1))
  return batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.zeros(rows, np.int32),
    history_items=draw(history),
    history_mask=np.arange(history)[None] < lengths,
    target_items=draw(targets),
    target_mask=np.ones((rows, targets), bool),
    example_mask=np.ones(rows, bool),
  )


def _batch(setup, *, real=_PAIRS):
  """Pairs with the reference's own log-probabilities: h = 0."""
  model, params, frozen = setup
  users = _sessions(2, _PAIRS, history=4, targets=1)
  rng = np.random.default_rng(3)
  items = rng.integers(0, _NUM_ITEMS, (_PAIRS, 2, 2), np.int32)
  mask = np.ones(items.shape, bool)
  score = align.make_score(model, continue_items=1)
  log_probs = jax.jit(score)(
    params,
    frozen['reference_bias'],
    frozen['catalogue'],
    users,
    items,
    mask,
  )
  is_real = np.arange(_PAIRS) < real
  return batch_lib.PreferenceBatch(
    session=_sessions(1, _ROWS, history=3, targets=3),
    pairs=batch_lib.PairBatch(
      session=dataclasses.replace(users, example_mask=is_real),
      items=items,
      mask=mask & is_real[:, None, None],
      reference_log_probs=np.asarray(log_probs),
      rewards=np.tile(np.float32([2.0, 0.5]), (_PAIRS, 1)),
    ),
  )


def _run(setup, batch, *, preference=_PREFERENCE, params=None, model=None):
  objective = align.make_objective(model or setup[0], _TRAIN, preference)

  @jax.jit
  def call(params, batch):
    def loss(params):
      output = objective(
        params, setup[2]['reference_bias'], setup[2], batch, None
      )
      return output.loss.value(), output

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, output), gradient = call(params or setup[1], batch)
  return float(value), output, gradient


def _next_token_loss(setup, batch):
  objective = pretrain.make_objective(setup[0], _TRAIN)
  bias = setup[2]['reference_bias']
  output = jax.jit(lambda p, b: objective(p, bias, setup[2], b, None))(
    setup[1], batch.session
  )
  return float(output.loss.value())


def test_loss_at_the_reference_is_ln_2_per_pair_over_the_samples(setup):
  # h = 0 for every pair: -log σ(0) = ln 2; λ = 3, 5 pairs, 8 samples.
  batch = _batch(setup, real=5)
  value, output, _ = _run(setup, batch)
  expected = _next_token_loss(setup, batch) + 3.0 * 5 * math.log(2) / 8
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  found = output.metrics['preference/loss']
  np.testing.assert_allclose(found.value(), math.log(2), rtol=1e-5)
  assert float(found.count) == float(output.counts['pairs']) == 5
  np.testing.assert_allclose(
    output.metrics['preference/reward_gap'].value(), 1.5, rtol=1e-6
  )


def test_without_pairs_it_is_next_token_prediction(setup):
  batch = _batch(setup, real=0)
  value, output, gradient = _run(setup, batch)
  np.testing.assert_allclose(value, _next_token_loss(setup, batch), rtol=1e-6)
  assert float(output.counts['pairs']) == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_a_step_down_prefers_the_chosen_sessions(setup):
  batch = _batch(setup)
  only_pairs = dataclasses.replace(_PREFERENCE, weight=1e4)
  _, _, gradient = _run(setup, batch, preference=only_pairs)
  norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
  moved = jax.tree.map(lambda p, g: p - 0.05 * g / norm, setup[1], gradient)
  _, output, _ = _run(setup, batch, params=moved)
  assert float(output.metrics['preference/loss'].value()) < math.log(2)
  assert float(output.metrics['preference/margin'].value()) > 0
  assert float(output.metrics['preference/accuracy'].value()) > 0.5


def test_filler_rows_change_nothing(setup):
  batch = _batch(setup, real=3)
  pairs = batch.pairs
  spoiled = dataclasses.replace(
    pairs,
    items=np.where(pairs.mask, pairs.items, 7),
    reference_log_probs=np.where(
      pairs.session.example_mask[:, None], pairs.reference_log_probs, 1e9
    ).astype(np.float32),
  )
  value, _, _ = _run(setup, batch)
  other, _, _ = _run(setup, dataclasses.replace(batch, pairs=spoiled))
  np.testing.assert_allclose(value, other, rtol=1e-6)


def test_mean_reduction_weighs_pairs_per_sample_too(setup):
  # loss = token mean + λ Σ / B, whatever the reduction of the token losses.
  batch = _batch(setup)
  train = dataclasses.replace(_TRAIN, ntp_reduction='mean')
  objective = align.make_objective(setup[0], train, _PREFERENCE)
  bias = setup[2]['reference_bias']
  output = jax.jit(lambda p, b: objective(p, bias, setup[2], b, None))(
    setup[1], batch
  )
  expected = output.metrics['token_loss'].value() + 3.0 * math.log(2)
  np.testing.assert_allclose(output.loss.value(), expected, rtol=1e-5)


def test_the_encoder_does_not_run_again_for_each_candidate(setup):
  model, params, frozen = setup
  users = _sessions(2, _PAIRS, history=4, targets=1)
  score = align.make_score(model, continue_items=0)

  def operations(width):
    shape = (_PAIRS, width, 2)
    compiled = (
      jax.jit(score)
      .lower(
        params,
        frozen['reference_bias'],
        frozen['catalogue'],
        users,
        np.zeros(shape, np.int32),
        np.ones(shape, bool),
      )
      .compile()
    )
    return compiled.cost_analysis()['flops']

  one, two, three = operations(1), operations(2), operations(3)
  per_candidate = three - two
  # What does not grow with the candidates is the encoder and more.
  assert two - one == pytest.approx(per_candidate, rel=0.1)
  assert one > 1.3 * per_candidate


def test_loss_is_the_same_on_eight_devices(setup):
  batch = _batch(setup)
  value, _, _ = _run(setup, batch)
  mesh = sharding.make_mesh(config.MeshConfig(2, 2, 2))
  placed = sharding.place_batch(batch, mesh)
  sharded, _, _ = _run(setup, placed, model=_model(mesh))
  np.testing.assert_allclose(sharded, value, rtol=1e-5)
