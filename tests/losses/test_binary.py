"""Binary cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.losses import binary


@pytest.mark.parametrize(
  ('logit', 'label', 'want'),
  [
    (0.0, 1.0, np.log(2)),
    (0.0, 0.3, np.log(2)),  # σ = 1/2 whatever the label
    (np.log(3), 1.0, np.log(4 / 3)),  # σ = 3/4
    (np.log(3), 0.0, np.log(4)),
    (np.log(3), 0.5, (np.log(4) + np.log(4 / 3)) / 2),
  ],
)
def test_loss_by_hand(logit, label, want):
  got = binary.binary_cross_entropy(
    jnp.float32(logit)[None], jnp.float32(label)[None]
  )
  np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_loss_equals_numpy_on_soft_labels():
  random = np.random.default_rng(0)
  logits = 3 * random.standard_normal((50, 4))
  labels = random.random((50, 4))
  probs = 1 / (1 + np.exp(-logits))
  want = -labels * np.log(probs) - (1 - labels) * np.log(1 - probs)
  got = binary.binary_cross_entropy(
    jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_swapping_the_classes_negates_the_logit():
  logits = jnp.linspace(-4.0, 4.0, 9)
  labels = jnp.linspace(0.0, 1.0, 9)
  np.testing.assert_allclose(
    binary.binary_cross_entropy(logits, labels),
    binary.binary_cross_entropy(-logits, 1 - labels),
    rtol=1e-6,
  )


def test_the_gradient_is_the_error_and_finite_at_extremes():
  logits = jnp.asarray([-1e4, -2.0, 0.0, 2.0, 1e4])
  labels = jnp.asarray([1.0, 0.25, 0.25, 0.25, 0.0])
  loss, gradient = jax.value_and_grad(
    lambda z: binary.binary_cross_entropy(z, labels).sum()
  )(logits)
  assert np.isfinite(loss)
  # d loss / dz = σ(z) - y.
  want = 1 / (1 + np.exp(-np.clip(np.asarray(logits), -80, 80))) - labels
  np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-7)
