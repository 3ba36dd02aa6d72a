"""Loss-free balancing."""

import jax.numpy as jnp
import numpy as np

from onerec_jax.losses import router

_LOAD = jnp.asarray([10.0, 2.0, 4.0, 0.0])


def test_sign_rule_by_hand():
  # mean 4: too many, too few, exactly the mean, too few.
  bias = router.update_bias(jnp.zeros(4), _LOAD, rule='sign', rate=1e-3)
  np.testing.assert_allclose(bias, [-1e-3, 1e-3, 0, 1e-3], rtol=1e-6)


def test_proportional_rule_by_hand():
  bias = router.update_bias(jnp.ones(4), _LOAD, rule='proportional', rate=1e-3)
  # (4 - c) / 4 = -1.5, 0.5, 0, 1.
  np.testing.assert_allclose(
    bias, [1 - 1.5e-3, 1 + 0.5e-3, 1, 1 + 1e-3], rtol=1e-6
  )


def test_rule_none_freezes_the_bias():
  bias = jnp.asarray([1.0, 2.0, 3.0, 4.0])
  assert router.update_bias(bias, _LOAD, rule='none', rate=1.0) is bias


def test_max_violation_by_hand():
  # (10 - 4) / 4; an even load violates nothing.
  load = jnp.stack([_LOAD, jnp.full(4, 3.0)])
  np.testing.assert_allclose(router.max_violation(load), [1.5, 0.0])


def test_layers_are_balanced_on_their_own():
  load = jnp.stack([_LOAD, _LOAD[::-1]])
  bias = router.update_bias(jnp.zeros((2, 4)), load, rule='sign', rate=1.0)
  np.testing.assert_array_equal(bias[1], bias[0][::-1])


def test_scaling_the_load_changes_nothing():
  a, b = (
    router.update_bias(jnp.zeros(4), load, rule='proportional', rate=1e-3)
    for load in (_LOAD, 100 * _LOAD)
  )
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_no_tokens_leave_the_bias_finite_and_unchanged():
  for rule in ('sign', 'proportional'):
    bias = router.update_bias(jnp.zeros(4), jnp.zeros(4), rule=rule, rate=1e-3)
    np.testing.assert_array_equal(bias, np.zeros(4))
  assert float(router.max_violation(jnp.zeros(4))) == 0
