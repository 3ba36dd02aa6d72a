"""The alignment objective: its value at the reference, its sum, its slope."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import align
from onerec_jax.objectives import pretrain

_ROWS, _PAIRS = 8, 8
_FIELDS = {
  'items': 3,
  'moe': config.MoEConfig(num_experts=4, top_k=2, expert_dim=8),
}
_TRAIN = config.TrainConfig()
_PREFERENCE = config.PreferenceConfig(
  weight=3.0,
  beta=0.7,
  rollout=config.DecodingConfig(num_items=2, continue_items=1),
)


@pytest.fixture(scope='module')
def setup(codes, make_model):
  model = make_model(**_FIELDS)
  frozen = {
    'catalogue': batch_lib.Catalogue(jnp.asarray(codes)),
    'reference_bias': jnp.zeros((1, 4), jnp.float32),
  }
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  return model, params, frozen


@pytest.fixture(scope='module')
def make_batch(setup, make_sessions):
  """Function: real pairs -> pairs with the reference's own log-probs: h = 0."""
  model, params, frozen = setup
  users = make_sessions(2, _PAIRS, history=4)
  rng = np.random.default_rng(3)
  num_items = len(frozen['catalogue'].codes)
  items = rng.integers(0, num_items, (_PAIRS, 2, 2), np.int32)
  mask = np.ones(items.shape, bool)
  log_probs = jax.jit(align.make_score(model, continue_items=1))(
    params,
    frozen['reference_bias'],
    frozen['catalogue'],
    users,
    items,
    mask,
  )

  def make(real=_PAIRS):
    is_real = np.arange(_PAIRS) < real
    return batch_lib.PreferenceBatch(
      session=make_sessions(1, _ROWS, history=3, targets=3),
      pairs=batch_lib.PairBatch(
        session=dataclasses.replace(users, example_mask=is_real),
        items=items,
        mask=mask & is_real[:, None, None],
        reference_log_probs=np.asarray(log_probs),
        rewards=np.tile(np.float32([2.0, 0.5]), (_PAIRS, 1)),
      ),
    )

  return make


@functools.cache
def _compiled(model, preference):
  objective = align.make_objective(model, _TRAIN, preference)

  @jax.jit
  def call(params, frozen, batch):
    def loss(params):
      output = objective(params, frozen['reference_bias'], frozen, batch, None)
      return output.loss.value(), output

    return jax.value_and_grad(loss, has_aux=True)(params)

  return call


def _run(setup, batch, *, preference=_PREFERENCE, params=None, model=None):
  call = _compiled(model or setup[0], preference)
  (value, output), gradient = call(params or setup[1], setup[2], batch)
  return float(value), output, gradient


@functools.cache
def _next_token(model):
  objective = pretrain.make_objective(model, _TRAIN)
  return jax.jit(
    lambda params, frozen, sessions: objective(
      params, frozen['reference_bias'], frozen, sessions, None
    ).loss.value()
  )


def _next_token_loss(setup, batch):
  model, params, frozen = setup
  return float(_next_token(model)(params, frozen, batch.session))


def test_loss_at_the_reference_is_ln_2_per_pair_over_the_samples(
  setup, make_batch
):
  # h = 0 for every pair: -log σ(0) = ln 2; λ = 3, 5 pairs, 8 samples.
  batch = make_batch(real=5)
  value, output, _ = _run(setup, batch)
  expected = _next_token_loss(setup, batch) + 3.0 * 5 * math.log(2) / 8
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  found = output.metrics['preference/loss']
  np.testing.assert_allclose(found.value(), math.log(2), rtol=1e-5)
  assert float(found.count) == float(output.counts['pairs']) == 5
  np.testing.assert_allclose(
    output.metrics['preference/reward_gap'].value(), 1.5, rtol=1e-6
  )


def test_without_pairs_it_is_next_token_prediction(setup, make_batch):
  batch = make_batch(real=0)
  value, output, gradient = _run(setup, batch)
  np.testing.assert_allclose(value, _next_token_loss(setup, batch), rtol=1e-6)
  assert float(output.counts['pairs']) == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_a_step_down_prefers_the_chosen_sessions(setup, make_batch):
  batch = make_batch()
  only_pairs = dataclasses.replace(_PREFERENCE, weight=1e4)
  _, _, gradient = _run(setup, batch, preference=only_pairs)
  norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
  moved = jax.tree.map(lambda p, g: p - 0.05 * g / norm, setup[1], gradient)
  _, output, _ = _run(setup, batch, params=moved)
  assert float(output.metrics['preference/loss'].value()) < math.log(2)
  assert float(output.metrics['preference/margin'].value()) > 0
  assert float(output.metrics['preference/accuracy'].value()) > 0.5


def test_filler_rows_change_nothing(setup, make_batch):
  batch = make_batch(real=3)
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


def test_mean_reduction_weighs_pairs_per_sample_too(setup, make_batch):
  # loss = token mean + λ Σ / B, whatever the reduction of the token losses.
  batch = make_batch()
  train = dataclasses.replace(_TRAIN, ntp_reduction='mean')
  objective = align.make_objective(setup[0], train, _PREFERENCE)
  bias = setup[2]['reference_bias']
  output = jax.jit(lambda p, b: objective(p, bias, setup[2], b, None))(
    setup[1], batch
  )
  expected = output.metrics['token_loss'].value() + 3.0 * math.log(2)
  np.testing.assert_allclose(output.loss.value(), expected, rtol=1e-5)


def test_the_encoder_does_not_run_again_for_each_candidate(
  setup, make_sessions
):
  model, params, frozen = setup
  users = make_sessions(2, _PAIRS, history=12)
  # Blocks of experts grow in steps; all rows with all experts grow evenly.
  moe = dataclasses.replace(model.config.moe, dispatch='dense')
  model = model.clone(config=dataclasses.replace(model.config, moe=moe))
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

  # With fewer than four, XLA computes some things twice to fuse more.
  four, six, eight = operations(4), operations(6), operations(8)
  per_candidate = (eight - six) / 2
  assert six - four == pytest.approx(2 * per_candidate, rel=0.05)
  # What does not grow with the candidates is the encoder and more.
  assert four - 4 * per_candidate > 2 * per_candidate


def test_loss_is_the_same_on_eight_devices(setup, make_batch, make_model):
  batch = make_batch()
  value, _, _ = _run(setup, batch)
  mesh = meshes.make_mesh(config.MeshConfig(2, 2, 2))
  placed = sharding.place_batch(batch, mesh)
  sharded, _, _ = _run(setup, placed, model=make_model(mesh=mesh, **_FIELDS))
  np.testing.assert_allclose(sharded, value, rtol=1e-5)
