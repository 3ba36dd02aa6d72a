"""Next-code likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.losses import likelihood

_SIZES = (3, 5)


def _case():
  generator = np.random.default_rng(0)
  logits = generator.standard_normal((2, 3, 2, 5)).astype(np.float32)
  codes = np.stack(
    [generator.integers(0, n, (2, 3)) for n in _SIZES], -1
  ).astype(np.int32)
  mask = np.asarray([[True, True, False], [True, False, False]])
  return jnp.asarray(logits), jnp.asarray(codes), jnp.asarray(mask)


def test_loss_by_hand():
  # p = (1/4, 3/4): -log p = log 4 and log(4/3); eps = 0.2 mixes in the mean.
  logits = jnp.log(jnp.asarray([[[[1.0, 3.0]]]]))
  codes = jnp.asarray([[[0]]])
  mask = jnp.asarray([[True]])
  plain = likelihood.next_code_loss(logits, codes, mask, codes_per_level=(2,))
  np.testing.assert_allclose(plain.loss, [[[np.log(4)]]], rtol=1e-6)
  assert not plain.correct.any()
  smooth = likelihood.next_code_loss(
    logits, codes, mask, codes_per_level=(2,), label_smoothing=0.2
  )
  want = 0.8 * np.log(4) + 0.2 * (np.log(4) + np.log(4 / 3)) / 2
  np.testing.assert_allclose(smooth.loss, [[[want]]], rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_equals_numpy_level_by_level(smoothing):
  logits, codes, mask = _case()
  got = likelihood.next_code_loss(
    logits, codes, mask, codes_per_level=_SIZES, label_smoothing=smoothing
  )
  for b in range(2):
    for m in range(3):
      for level, size in enumerate(_SIZES):
        row = np.asarray(logits[b, m, level, :size], np.float64)
        log_probs = row - np.log(np.exp(row).sum())
        code = int(codes[b, m, level])
        want = -(1 - smoothing) * log_probs[code] - smoothing * log_probs.mean()
        if not mask[b, m]:
          want = 0.0
        np.testing.assert_allclose(got.loss[b, m, level], want, rtol=1e-5)
        hit = bool(mask[b, m]) and log_probs.argmax() == code
        assert bool(got.correct[b, m, level]) == hit


def test_logits_beyond_a_level_have_no_influence():
  logits, codes, mask = _case()
  other = logits.at[:, :, 0, 3:].set(100.0)
  for smoothing in (0.0, 0.1):
    a, b = (
      likelihood.next_code_loss(
        x, codes, mask, codes_per_level=_SIZES, label_smoothing=smoothing
      )
      for x in (logits, other)
    )
    np.testing.assert_array_equal(a.loss, b.loss)
    np.testing.assert_array_equal(a.correct, b.correct)


def test_shifting_a_levels_logits_changes_nothing():
  logits, codes, mask = _case()
  a, b = (
    likelihood.next_code_loss(x, codes, mask, codes_per_level=_SIZES).loss
    for x in (logits, logits + 7.0)
  )
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_is_finite_when_everything_is_masked_or_certain():
  logits, codes, mask = _case()

  def total(logits, mask):
    return likelihood.next_code_loss(
      logits, codes, mask, codes_per_level=_SIZES, label_smoothing=0.1
    ).loss.sum()

  nothing = jax.grad(total)(logits, jnp.zeros_like(mask))
  np.testing.assert_array_equal(nothing, np.zeros(logits.shape))
  hit = codes[..., None] == jnp.arange(5)[None, None, None]
  certain = jax.grad(total)(jnp.where(hit, 1e4, -1e4), mask)
  assert np.isfinite(certain).all()


def test_only_allowed_codes_share_the_probability():
  # Of weights (1, 3, 4) the last is not allowed: p = 1/4 and 3/4.
  logits = jnp.log(jnp.asarray([[[[1.0, 3.0, 4.0]]]]))
  codes, mask = jnp.asarray([[[1]]]), jnp.asarray([[True]])

  def loss(logits, smoothing):
    return likelihood.next_code_loss(
      logits,
      codes,
      mask,
      codes_per_level=(3,),
      allowed=jnp.asarray([[[[True, True, False]]]]),
      label_smoothing=smoothing,
    )

  plain = loss(logits, 0.0)
  np.testing.assert_allclose(plain.loss, [[[np.log(4 / 3)]]], rtol=1e-6)
  assert plain.correct.all()  # the third is likelier, but not allowed
  want = 0.8 * np.log(4 / 3) + 0.2 * (np.log(4) + np.log(4 / 3)) / 2
  np.testing.assert_allclose(loss(logits, 0.2).loss, [[[want]]], rtol=1e-6)
  gradient = jax.grad(lambda x: loss(x, 0.2).loss.sum())(logits)[0, 0, 0]
  # p - (1 - eps) target - eps / 2, and nothing at what is not allowed.
  np.testing.assert_allclose(
    gradient, [0.25 - 0.1, 0.75 - 0.8 - 0.1, 0.0], atol=1e-6
  )
