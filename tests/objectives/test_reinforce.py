"""The reinforcement objective: on its generator, off it, and without groups."""

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
from onerec_jax.objectives import pretrain
from onerec_jax.objectives import reinforce

_ROWS, _USERS, _G = 8, 8, 5
_TRAIN = config.TrainConfig()
_SETTINGS = config.ReinforceConfig(weight=3.0, format_weight=0.5)


@pytest.fixture(scope='module')
def setup(codes, make_model):
  model = make_model(items=1)
  catalogue = batch_lib.Catalogue(jnp.asarray(codes))
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  bias = jnp.asarray(onerec.initial_router_bias(model.config))
  return model, params, catalogue, bias


def _log_probs(setup, users, codes, params=None):
  model, own, catalogue, bias = setup
  encode, score = reinforce.make_encode(model), reinforce.make_score(model)

  @jax.jit
  def call(params, users, codes):
    encoded = encode(params, bias, catalogue, users)
    return score(params, bias, encoded, codes, codes[..., 0] >= 0)

  return call(own if params is None else params, users, codes)


@pytest.fixture(scope='module')
def batch(setup, make_sessions):
  """Groups of the policy itself: the last two users are filler."""
  rng = np.random.default_rng(3)
  users = make_sessions(2, _USERS, history=4)
  sizes = setup[0].vocabulary.codes_per_level
  codes = np.stack([rng.integers(0, k, (_USERS, _G)) for k in sizes], axis=2)
  codes[1, 3:] = -1  # a group of three
  codes = codes.astype(np.int32)
  legal = (rng.random((_USERS, _G)) < 0.7) & (codes[..., 0] >= 0)
  legal[0], legal[2] = True, False
  rewards = np.where(legal, rng.random((_USERS, _G)), 0).astype(np.float32)
  rewards[3] = np.where(legal[3], 0.5, 0)  # no spread among the legal ones
  log_probs = np.array(_log_probs(setup, users, codes))
  real = np.arange(_USERS) < _USERS - 2
  true = np.where(legal, 1 - rewards, np.nan).astype(np.float32)
  true[0] = np.nan
  return batch_lib.ReinforceBatch(
    session=make_sessions(1, _ROWS, history=3),
    groups=batch_lib.GroupBatch(
      session=dataclasses.replace(users, example_mask=real),
      codes=codes,
      old_log_probs=log_probs,
      reference_log_probs=log_probs,
      rewards=rewards,
      legal=legal,
      format_mask=rng.random((_USERS, _G)) < 0.6,
      true_rewards=true,
    ),
  )


@functools.lru_cache
def _compiled(model, settings, with_gradient):
  objective = reinforce.make_objective(model, _TRAIN, settings)

  @jax.jit
  def call(params, bias, catalogue, batch):
    def loss(params):
      output = objective(params, bias, {'catalogue': catalogue}, batch, None)
      return output.loss.value(), output

    if with_gradient:
      return jax.value_and_grad(loss, has_aux=True)(params)
    return loss(params), None

  return call


def _run(setup, batch, *, settings=_SETTINGS, model=None):
  # The usual case gives the gradient too, so that it is compiled once.
  usual = settings == _SETTINGS and model is None
  call = _compiled(model or setup[0], settings, usual)
  (value, output), gradient = call(setup[1], setup[3], setup[2], batch)
  metrics = {k: v for k, v in output.metrics.items() if not v.total.ndim}
  return float(value), jax.device_get(metrics), gradient


def _next_token_loss(setup, batch):
  model, params, catalogue, bias = setup
  objective = pretrain.make_objective(model, _TRAIN)
  frozen = {'catalogue': catalogue}
  output = jax.jit(lambda p, b: objective(p, bias, frozen, b, None))(
    params, batch.session
  )
  return float(output.loss.value())


def _value(mean):
  return float(mean.total) / float(mean.count)


def _off_policy(batch, seed=0):
  """The same groups from a generator that was elsewhere."""
  rng = np.random.default_rng(seed)
  old = batch.groups.old_log_probs
  shifted = old + rng.normal(0, 0.5, old.shape).astype(np.float32)
  groups = dataclasses.replace(batch.groups, old_log_probs=shifted)
  return dataclasses.replace(batch, groups=groups)


def _closed_form(batch, log_probs, illegal, s=_SETTINGS):
  """J, J_fmt of ECPO and the groups without spread, output by output."""
  g = batch.groups
  gains, formats, flat = [], [], 0
  for p in np.flatnonzero(g.session.example_mask):
    rows = np.flatnonzero(g.codes[p, :, 0] >= 0)
    ratio = np.exp((log_probs - g.old_log_probs)[p].sum(1).astype(np.float64))
    counted = [i for i in rows if illegal == 'zero_reward' or g.legal[p, i]]
    rewards = np.array([g.rewards[p, i] for i in counted], np.float64)
    terms = [0.0]
    if not len(counted) or rewards.std() < 1e-6:
      flat += 1
    else:
      a = (rewards - rewards.mean()) / rewards.std()
      r = np.minimum(ratio[counted], 1 + s.clip + s.early_clip)
      terms = np.minimum(r * a, np.clip(r, 1 - s.clip, 1 + s.clip) * a)
    gains.append(np.mean(terms))
    chosen = [i for i in rows if g.format_mask[p, i]]
    formats.append(
      np.mean([g.legal[p, i] * min(ratio[i], 1 + s.clip) for i in chosen])
      if chosen
      else 0.0
    )
  return np.mean(gains), np.mean(formats), flat


# --- Values -----------------------------------------------------------------


def test_on_its_generator_only_the_format_has_a_value(setup, batch):
  # ρ = 1: terms are advantages, whose mean is 0; the format's are 1 or 0.
  value, metrics, _ = _run(setup, batch)
  shares = [
    batch.groups.legal[p][chosen].mean()
    for p in range(_USERS - 2)
    for chosen in [batch.groups.format_mask[p] & (
      batch.groups.codes[p, :, 0] >= 0
    )]
    if chosen.any()
  ]  # fmt: skip
  expected = _next_token_loss(setup, batch) - 0.5 * np.sum(shares) / 6
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert abs(_value(metrics['policy/objective'])) < 1e-5
  np.testing.assert_allclose(_value(metrics['policy/ratio_max']), 1, rtol=1e-4)
  assert _value(metrics['policy/kl_max']) < 1e-6
  assert _value(metrics['policy/clip_share']) == 0


@pytest.mark.parametrize('illegal', ['left_out', 'zero_reward'])
def test_off_its_generator_it_equals_the_closed_form(setup, batch, illegal):
  batch = _off_policy(batch)
  g = batch.groups
  log_probs = np.asarray(_log_probs(setup, g.session, g.codes))
  settings = dataclasses.replace(_SETTINGS, illegal=illegal)
  value, metrics, _ = _run(setup, batch, settings=settings)
  gain, of_format, flat = _closed_form(batch, log_probs, illegal)
  expected = _next_token_loss(setup, batch) - 3 * gain - 0.5 * of_format
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(
    _value(metrics['policy/objective']), gain, rtol=1e-4, atol=1e-5
  )
  # Group 2 has no legal output; in group 3 the legal ones are equal, which
  # tells something only where illegal ones are worse.
  assert flat >= (2 if illegal == 'left_out' else 1)
  assert float(metrics['policy/zero_advantage_share'].total) == flat
  assert float(metrics['policy/zero_advantage_share'].count) == _USERS - 2


def test_groups_are_reported_as_they_are(setup, batch):
  _, metrics, _ = _run(setup, batch)
  g = batch.groups
  real = g.session.example_mask[:, None] & (g.codes[..., 0] >= 0)
  legal = g.legal & real
  assert _value(metrics['group/legality']) == pytest.approx(
    legal.sum() / real.sum()
  )
  assert _value(metrics['group/reward']) == pytest.approx(
    g.rewards[legal].mean(), rel=1e-5
  )
  best = [g.rewards[p][legal[p]].max() for p in range(6) if legal[p].any()]
  assert _value(metrics['group/best_reward']) == pytest.approx(
    np.mean(best), rel=1e-5
  )
  known = legal & np.isfinite(g.true_rewards)
  assert float(metrics['group/true_reward'].count) == known.sum()
  assert _value(metrics['group/true_reward']) == pytest.approx(
    g.true_rewards[known].mean(), rel=1e-5
  )
  distinct = [
    len({tuple(c) for c, ok in zip(g.codes[p], legal[p], strict=True) if ok})
    for p in range(6)
  ]
  assert _value(metrics['group/distinct_items']) == np.mean(distinct)


def test_distinct_ids_are_those_of_a_set():
  rng = np.random.default_rng(1)
  codes = rng.integers(0, 3, (50, 9, 2)).astype(np.int32)
  counted = rng.random((50, 9)) < 0.6
  counted[0] = False
  found = reinforce.distinct_ids(jnp.asarray(codes), jnp.asarray(counted))
  expected = [
    len({tuple(c) for c in codes[p][counted[p]]}) for p in range(len(codes))
  ]
  assert found.tolist() == expected


# --- Gradients --------------------------------------------------------------


def test_on_its_generator_the_gradient_is_that_of_the_rewards(setup, batch):
  # ∇ J = mean over users of mean_i A_i ∇ log π(o_i), and with A = 1 for the
  # legal ones of those chosen for the format.
  model, params, catalogue, bias = setup
  _, _, gradient = _run(setup, batch)
  g = batch.groups
  present = g.codes[..., 0] >= 0
  counted, chosen = g.legal & present, g.format_mask & present
  force = np.zeros(g.rewards.shape, np.float32)
  for p in range(_USERS - 2):
    r = g.rewards[p][counted[p]].astype(np.float64)
    if len(r) and r.std() > 1e-6:
      force[p][counted[p]] = 3 * (r - r.mean()) / r.std() / len(r)
    force[p] += 0.5 * (counted & chosen)[p] / max(chosen[p].sum(), 1)
  force /= _USERS - 2
  encode, score = reinforce.make_encode(model), reinforce.make_score(model)
  next_token = pretrain.make_objective(model, _TRAIN)

  def loss(params, batch, present):
    groups = batch.groups
    encoded = encode(params, bias, catalogue, groups.session)
    found = score(params, bias, encoded, groups.codes, present)
    samples = next_token(
      params, bias, {'catalogue': catalogue}, batch.session, None
    )
    return samples.loss.value() - jnp.sum(found.sum(2) * force)

  wanted = jax.jit(jax.grad(loss))(params, batch, present)
  for got, want in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True
  ):
    scale = float(jnp.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * scale)


def test_without_groups_it_is_next_token_prediction(setup, batch):
  nobody = dataclasses.replace(
    batch.groups.session, example_mask=np.zeros(_USERS, bool)
  )
  groups = dataclasses.replace(
    batch.groups,
    session=nobody,
    codes=np.full_like(batch.groups.codes, -1),
    true_rewards=np.full_like(batch.groups.true_rewards, np.nan),
  )
  value, metrics, gradient = _run(
    setup, dataclasses.replace(batch, groups=groups)
  )
  np.testing.assert_allclose(value, _next_token_loss(setup, batch), rtol=1e-6)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  for name, mean in metrics.items():
    if name.startswith(('policy/', 'group/')):
      assert float(mean.count) == 0 and float(mean.total) == 0


def test_filler_rows_and_absent_outputs_change_nothing(setup, batch):
  batch = _off_policy(batch)
  g = batch.groups
  kept = g.session.example_mask[:, None] & (g.codes[..., 0] >= 0)
  spoiled = dataclasses.replace(
    g,
    old_log_probs=np.where(kept[..., None], g.old_log_probs, 7).astype('f4'),
    rewards=np.where(kept, g.rewards, 1e9).astype(np.float32),
    legal=g.legal | ~kept,
    format_mask=g.format_mask | ~kept,
  )
  value, metrics, _ = _run(setup, batch)
  other, same, _ = _run(setup, dataclasses.replace(batch, groups=spoiled))
  np.testing.assert_allclose(value, other, rtol=1e-6)
  for name in metrics:
    np.testing.assert_allclose(
      metrics[name].total, same[name].total, rtol=1e-5, atol=1e-6
    )


def test_grpo_pays_for_leaving_the_seed_model(setup, batch):
  # x = log(π_ref / π) of an output: e^x - x - 1, over the legal outputs.
  settings = config.ReinforceConfig(
    loss='grpo', kl_weight=0.2, weight=1.0, format_weight=0.0
  )
  groups = dataclasses.replace(
    batch.groups, reference_log_probs=batch.groups.old_log_probs + 0.3
  )
  value, metrics, _ = _run(
    setup, dataclasses.replace(batch, groups=groups), settings=settings
  )
  penalty = math.exp(0.6) - 0.6 - 1  # two codes of 0.3
  assert _value(metrics['policy/reference_kl']) == pytest.approx(
    penalty, rel=1e-3
  )
  # Five of six groups have a legal output.
  expected = _next_token_loss(setup, batch) + 0.2 * penalty * 5 / 6
  assert value == pytest.approx(expected, rel=1e-4)


def test_loss_is_the_same_on_eight_devices(setup, batch, make_model):
  batch = _off_policy(batch)
  value, _, _ = _run(setup, batch)
  mesh = meshes.make_mesh(config.MeshConfig(2, 2, 2))
  placed = sharding.place_batch(batch, mesh)
  sharded, _, _ = _run(setup, placed, model=make_model(items=1, mesh=mesh))
  np.testing.assert_allclose(sharded, value, rtol=1e-5)
