import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onerec_jax import config
from onerec_jax.train import optimizer as optimizer_lib


def _rates(num_steps, steps, **changes):
  rate = optimizer_lib.learning_rate(
    config.OptimizerConfig(peak_learning_rate=0.5, **changes),
    num_steps=num_steps,
  )
  return [float(rate(s)) for s in steps]


def test_warm_up_rises_to_the_peak_and_stays():
  # Four steps up: peak * (s + 1) / 4.
  got = _rates(100, [0, 1, 3, 4, 99], warmup_steps=4, schedule='constant')
  np.testing.assert_allclose(got, [0.125, 0.25, 0.5, 0.5, 0.5], rtol=1e-6)


def test_cosine_falls_from_the_peak_to_its_final_fraction():
  # After warm-up of 10: t = (s - 10) / 100; s = 60 is half way, where cos = 0.
  got = _rates(
    110,
    [9, 10, 60, 110, 500],
    warmup_steps=10,
    schedule='cosine',
    final_learning_rate_fraction=0.1,
  )
  middle = 0.5 * (0.1 + 0.9 * 0.5)
  np.testing.assert_allclose(got, [0.5, 0.5, middle, 0.05, 0.05], rtol=1e-5)


def test_inverse_square_root_halves_when_steps_quadruple():
  # peak * sqrt(16 / (s + 1)).
  got = _rates(100, [15, 63, 255], warmup_steps=16, schedule='inverse_sqrt')
  np.testing.assert_allclose(got, [0.5, 0.25, 0.125], rtol=1e-6)


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'inverse_sqrt'])
def test_no_warm_up_starts_at_the_peak_and_is_finite(schedule):
  got = _rates(10, range(12), warmup_steps=0, schedule=schedule)
  assert got[0] == 0.5
  assert all(math.isfinite(rate) for rate in got)


def test_first_adam_step_moves_each_parameter_by_the_learning_rate():
  # Bias-corrected Adam: m/sqrt(v) = g/|g|, whatever the gradient's size.
  optimizer = optimizer_lib.make_optimizer(
    config.OptimizerConfig(
      peak_learning_rate=0.1, warmup_steps=0, clip_norm=None
    ),
    num_steps=10,
  )
  params = {'w': jnp.array([1.0, 1.0])}
  state = optimizer.transformation.init(params)
  gradients = {'w': jnp.array([3.0, -2e-3])}
  updates, _ = optimizer.transformation.update(gradients, state, params)
  np.testing.assert_allclose(updates['w'], [-0.1, 0.1], rtol=1e-4)


def test_two_steps_match_a_numpy_adamw():
  settings = config.OptimizerConfig(
    name='adamw',
    peak_learning_rate=0.1,
    warmup_steps=2,
    weight_decay=0.01,
    clip_norm=1.0,
    b1=0.9,
    b2=0.99,
    eps=1e-6,
  )
  optimizer = optimizer_lib.make_optimizer(settings, num_steps=10)
  gradients = [np.array([[3.0, 4.0]]), np.array([[0.3, -0.1]])]
  params = {'w': jnp.array([[0.5, -0.5]])}
  state = optimizer.transformation.init(params)
  w, m, v = np.array([[0.5, -0.5]]), 0.0, 0.0
  for t, g in enumerate(gradients, 1):
    updates, state = optimizer.transformation.update(
      {'w': jnp.asarray(g, jnp.float32)}, state, params
    )
    params = optax.apply_updates(params, updates)
    g = g / max(1.0, np.sqrt((g**2).sum()))  # norm 5, then below 1
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6)
    w = w - 0.1 * (t / 2) * (step + 0.01 * w)
  np.testing.assert_allclose(params['w'], w, rtol=1e-5)


def test_only_matrices_and_tables_decay():
  names = {
    'table': ('vocab', 'embed'),
    'stacked_scale': ('layers', 'embed'),
    'stacked_kernel': ('layers', 'embed', 'mlp'),
    'scale': ('embed',),
  }
  assert optimizer_lib.decay_mask(names) == {
    'table': True,
    'stacked_scale': False,
    'stacked_kernel': True,
    'scale': False,
  }
  optimizer = optimizer_lib.make_optimizer(
    config.OptimizerConfig(name='adamw', weight_decay=0.1, warmup_steps=0),
    num_steps=10,
    decay=optimizer_lib.decay_mask(names),
  )
  params = jax.tree.map(
    lambda _: jnp.ones(2), names, is_leaf=lambda x: isinstance(x, tuple)
  )
  state = optimizer.transformation.init(params)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.transformation.update(zero, state, params)
  assert float(jnp.abs(updates['stacked_scale']).max()) == 0
  # -rate * decay * p = -2e-4 * 0.1
  np.testing.assert_allclose(updates['table'], -2e-5, rtol=1e-5)


def test_decay_without_adamw_is_an_error():
  with pytest.raises(ValueError, match=r"set optimizer\.name='adamw'"):
    optimizer_lib.make_optimizer(
      config.OptimizerConfig(name='adam', weight_decay=0.1), num_steps=10
    )
