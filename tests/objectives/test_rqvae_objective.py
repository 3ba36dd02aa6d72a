"""RQ-VAE objective: the loss, and dead codes that are drawn anew."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import vector_batches
from onerec_jax.model import parameters
from onerec_jax.model import rqvae
from onerec_jax.objectives import rqvae as objective_lib

_BETA = 0.25
_LEVELS, _CODES, _DIM = 2, 4, 5


def _model(**changes):
  settings = {'hidden_dims': (6,), 'latent_dim': 3, 'commitment': _BETA}
  return rqvae.RQVAE(
    config.RQVAEConfig(**{**settings, **changes}), _DIM, _LEVELS, _CODES
  )


@pytest.fixture(scope='module')
def case():
  """A model, its parameters, its state and a batch with one filler row."""
  model = _model(dead_code_share=0.5, usage_decay=0.75)
  params = parameters.materialize(rqvae.abstract_params(model), seed=0)
  rng = np.random.default_rng(0)
  vectors = 2 + 3 * rng.standard_normal((7, _DIM), np.float32)
  state = objective_lib.initial_state(model, vectors)
  state['offset'] = 0.1 * rng.standard_normal(state['offset'].shape, np.float32)
  batch = vector_batches.VectorBatch(vectors, np.arange(7) < 6)
  return model, *jax.tree.map(jnp.asarray, (params, state, batch))


def _call(case, *, key=None, batch=None, state=None):
  model, params, first, default = case
  return objective_lib.make_objective(model)(
    params,
    state or first,
    None,
    default if batch is None else batch,
    None if key is None else jax.random.key(key),
  )


# --- The loss ---------------------------------------------------------------


def test_loss_of_one_number_worked_out_by_hand():
  # z = 2x, x̂ = z_q / 2.  x = 1.6: z = 3.2; level 0 takes 2.5 (of 0, 2.5), the
  # residual 0.7 takes 1 (of 0, 1): z_q = 3.5, x̂ = 1.75.
  # |x - x̂|² = 0.0225; |r - e|² = 0.49 + 0.09 = 0.58, counted 1 + β times.
  model = rqvae.RQVAE(
    config.RQVAEConfig(hidden_dims=(), latent_dim=1, standardize=False), 1, 2, 2
  )

  def layer(w):
    return {'layers_0': {'kernel': np.full((1, 1), w), 'bias': np.zeros(1)}}

  params = {
    'encoder': layer(2.0),
    'decoder': layer(0.5),
    'codebooks': np.array([[[0.0], [2.5]], [[0.0], [1.0]]], np.float32),
  }
  params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
  vectors = np.array([[1.6]], np.float32)
  state = objective_lib.initial_state(model, vectors)
  batch = vector_batches.VectorBatch(vectors, np.ones(1, bool))
  output = objective_lib.make_objective(model)(
    params, *jax.tree.map(jnp.asarray, (state, None, batch)), None
  )
  np.testing.assert_allclose(
    output.loss.value(), 0.0225 + 1.25 * 0.58, rtol=1e-5
  )
  np.testing.assert_allclose(
    output.metrics['commitment'].value(), 0.58, rtol=1e-5
  )


def test_loss_equals_a_numpy_reference(case):
  params, state, batch = jax.tree.map(np.asarray, case[1:])
  x = (batch.vectors[:6].astype(np.float64) - state['mean']) / state['scale']

  def mlp(tree, x):
    hidden = np.maximum(
      x @ tree['layers_0']['kernel'] + tree['layers_0']['bias'], 0
    )
    return hidden @ tree['layers_1']['kernel'] + tree['layers_1']['bias']

  residual = mlp(params['encoder'], x)
  total = np.zeros_like(residual)
  quantization = np.zeros(6)
  used = []
  for codebook in params['codebooks'] + state['offset']:
    squared = ((residual[:, None] - codebook[None]) ** 2).sum(-1)
    code = squared.argmin(1)
    quantization += squared.min(1)
    total += codebook[code]
    residual = residual - codebook[code]
    used.append(len(set(code.tolist())) / _CODES)
  reconstruction = ((x - mlp(params['decoder'], total)) ** 2).sum(1)
  output = _call(case)
  metrics = {name: m.value() for name, m in output.metrics.items()}
  np.testing.assert_allclose(
    output.loss.value(),
    (reconstruction + (1 + _BETA) * quantization).mean(),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    metrics['reconstruction'], reconstruction.mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics['commitment'], quantization.mean(), rtol=1e-5
  )
  for level in range(_LEVELS):
    assert metrics[f'utilisation/level_{level}'] == used[level]
  assert output.counts['examples'] == 6


def test_codes_learn_from_their_own_level_and_the_encoder_from_commitment(case):
  model, params, state, batch = case

  def loss(params, beta):
    other = objective_lib.make_objective(_model(commitment=beta))
    return other(params, state, None, batch, None).loss.value()

  with_term = jax.grad(loss)(params, 0.25)
  without = jax.grad(loss)(params, 0.0)
  # ∂/∂e_k Σ_rows |sg[r] - e|² / 6 = 2 / 6 Σ_{rows of k} (e_k - r), whatever β.
  x = objective_lib.standardize(batch.vectors, state)
  output = model.apply({'params': params}, x, state['offset'])
  codes, residuals, chosen = jax.tree.map(
    lambda a: np.asarray(a)[:6], output.quantized
  )
  for level in range(_LEVELS):
    expected = np.zeros((_CODES, 3))
    np.add.at(
      expected,
      codes[:, level],
      2 / 6 * (chosen[:, level] - residuals[:, level]),
    )
    for found in (with_term, without):
      np.testing.assert_allclose(
        found['codebooks'][level], expected, rtol=1e-4, atol=1e-5
      )
  kernels = [g['encoder']['layers_0']['kernel'] for g in (with_term, without)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_filler_rows_change_nothing(case):
  batch = case[3]
  sliced = vector_batches.VectorBatch(batch.vectors[:6], batch.mask[:6])
  a, b = _call(case), _call(case, batch=sliced)
  np.testing.assert_allclose(a.loss.value(), b.loss.value(), rtol=1e-6)
  for name in a.metrics:
    np.testing.assert_allclose(
      a.metrics[name].value(), b.metrics[name].value(), rtol=1e-6
    )


def test_gradients_are_finite_without_a_row_and_on_top_of_a_code(case):
  model, params, state, batch = case
  objective = objective_lib.make_objective(model)
  latents = model.apply(
    {'params': params},
    objective_lib.standardize(batch.vectors, state),
    method='encode',
  )
  exact = params['codebooks'].at[0, 1].set(latents[0] - state['offset'][0, 1])
  empty = vector_batches.VectorBatch(batch.vectors, jnp.zeros(7, bool))
  for codebooks, rows in ((exact, batch), (params['codebooks'], empty)):
    gradients = jax.grad(
      lambda p, rows=rows: objective(p, state, None, rows, None).loss.value()
    )({**params, 'codebooks': codebooks})
    for leaf in jax.tree.leaves(gradients):
      assert np.isfinite(leaf).all()


# --- The state --------------------------------------------------------------


def test_one_scale_keeps_the_relative_size_of_the_dimensions(case):
  _, _, state, batch = case
  x = np.asarray(objective_lib.standardize(batch.vectors, state), np.float64)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose((x**2).mean(), 1, rtol=1e-5)
  np.testing.assert_allclose(
    x.std(0) / x.std(0)[0],
    batch.vectors.std(0) / batch.vectors.std(0)[0],
    rtol=1e-4,
  )


def test_equal_vectors_and_raw_vectors_have_scale_one():
  state = objective_lib.initial_state(_model(), np.full((3, _DIM), 7, 'f4'))
  assert state['scale'] == 1
  raw = _model(standardize=False)
  vectors = np.random.default_rng(0).normal(3, 2, (9, _DIM)).astype('f4')
  state = objective_lib.initial_state(raw, vectors)
  assert state['scale'] == 1
  assert not state['mean'].any()


def test_evaluation_leaves_the_state_as_it_is(case):
  usage = jnp.zeros((_LEVELS, _CODES)).at[:, 0].set(1)  # the others are dead
  state = case[2] | {'usage': usage}
  output = _call(case, state=state)
  jax.tree.map(np.testing.assert_array_equal, output.model_state, state)
  assert output.metrics['resets'].value() == 0
  trained = _call(case, state=state, key=0)
  assert trained.metrics['resets'].value() > 0


def test_use_is_averaged_with_the_mean_code_as_unit(case):
  model, params, state, batch = case
  quiet = _model(dead_code_share=0.0, usage_decay=0.75)
  output = _call((quiet, params, state, batch), key=0)
  x = objective_lib.standardize(batch.vectors, state)
  codes = model.apply({'params': params}, x, state['offset']).quantized.codes
  for level in range(_LEVELS):
    counts = np.bincount(np.asarray(codes)[:6, level], minlength=_CODES)
    expected = 0.75 * 1 + 0.25 * counts / (6 / _CODES)
    np.testing.assert_allclose(
      output.model_state['usage'][level], expected, rtol=1e-6
    )
  np.testing.assert_array_equal(output.model_state['offset'], state['offset'])


# --- Resets -----------------------------------------------------------------


@functools.cache
def _reset_case():
  rng = np.random.default_rng(5)
  usage = rng.uniform(0.8, 1.2, (2, 6)).astype(np.float32)
  usage[0, [1, 4]] = 0.01
  usage[1, 5] = 0.0
  return {
    'usage': jnp.asarray(usage),
    'codebooks': jnp.asarray(rng.standard_normal((2, 6, 3), np.float32)),
    'offset': jnp.asarray(rng.standard_normal((2, 6, 3), np.float32)),
    'residuals': jnp.asarray(rng.standard_normal((5, 2, 3), np.float32)),
    'mask': jnp.asarray([True, True, False, True, True]),
  }


def _reset(*, key=0, share=0.03, **changes):
  return objective_lib.reset_dead_codes(
    **{**_reset_case(), **changes},
    dead_code_share=share,
    key=jax.random.key(key),
  )


def _rows_of(effective, residuals):
  """Row of the batch that each vector equals, up to rounding."""
  distance = np.abs(effective[:, None] - residuals[None]).max(-1)
  assert (distance.min(1) < 1e-5).all()
  return distance.argmin(1)


def test_a_dead_code_becomes_a_residual_and_live_codes_keep_their_bits():
  case = _reset_case()
  result = _reset()
  dead = np.asarray(case['usage']) < 0.03
  assert dead.sum() == 3
  assert result.num_reset == 3
  for level in range(2):
    d = dead[level]
    np.testing.assert_array_equal(
      result.offset[level][~d], case['offset'][level][~d]
    )
    np.testing.assert_array_equal(
      result.usage[level][~d], case['usage'][level][~d]
    )
    effective = np.asarray(case['codebooks'] + result.offset)[level][d]
    rows = _rows_of(effective, np.asarray(case['residuals'])[:, level])
    assert len(set(rows.tolist())) == d.sum()  # without replacement
    np.testing.assert_allclose(
      result.usage[level][d], case['usage'][level].mean(), rtol=1e-6
    )


def test_every_real_row_is_drawn_and_no_filler_row():
  case = _reset_case()
  drawn = set()
  for key in range(30):
    effective = np.asarray(case['codebooks'] + _reset(key=key).offset)
    drawn.add(
      _rows_of(effective[1, 5:], np.asarray(case['residuals'])[:, 1]).item()
    )
  assert drawn == {0, 1, 3, 4}


def test_codes_beyond_the_rows_wait_for_the_next_step():
  usage = _reset_case()['usage'].at[0, 1:].set(0.0)  # 5 dead, 4 real rows
  result = _reset(usage=usage)
  assert result.num_reset == 4 + 1
  assert np.asarray(result.usage[0] == 0).tolist() == [False] * 5 + [True]
  nobody = _reset(mask=jnp.zeros(5, bool))
  assert nobody.num_reset == 0
  np.testing.assert_array_equal(nobody.offset, _reset_case()['offset'])


def test_share_zero_never_resets():
  result = _reset(share=0.0)
  assert result.num_reset == 0
  np.testing.assert_array_equal(result.offset, _reset_case()['offset'])


def test_a_key_gives_the_same_draw_and_another_key_another():
  np.testing.assert_array_equal(_reset().offset, _reset().offset)
  assert np.any(np.asarray(_reset().offset) != np.asarray(_reset(key=1).offset))
