"""GRPO, ECPO and GBPO against golden values and closed forms in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.losses import policy

_SETTINGS = config.ReinforceConfig()
# One group of four outputs; the golden values below were computed
# independently, in double precision.
REWARDS = jnp.asarray([[0.1, 0.4, 0.2, 0.9]])
ADVANTAGES = [-0.97332853, 0.0, -0.64888568, 1.62221421]
NOW = jnp.log(jnp.asarray([[0.30, 0.05, 0.02, 0.10]]))
OLD = jnp.log(jnp.asarray([[0.10, 0.05, 0.04, 0.05]]))
GBPO_ADVANTAGES = jnp.asarray([[1.0, 0.0, -1.0, -1.0]])
grpo = functools.partial(policy.grpo_terms, clip=0.2)
ecpo = functools.partial(policy.ecpo_terms, clip=0.2, early_clip=0.1)
ALL = {'grpo': grpo, 'ecpo': ecpo, 'gbpo': policy.gbpo_terms}


def everyone(values):
  return jnp.ones(values.shape, bool)


def golden_advantages(loss):
  if loss == 'gbpo':
    return GBPO_ADVANTAGES
  return policy.group_advantages(REWARDS, everyone(REWARDS)).values


# --- Golden values ----------------------------------------------------------


def test_advantages_equal_values_computed_independently():
  found = policy.group_advantages(REWARDS, everyone(REWARDS))
  np.testing.assert_allclose(found.values, [ADVANTAGES], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(found.std, [0.095**0.5], rtol=1e-6)
  assert found.has_spread.tolist() == [True]


@pytest.mark.parametrize(
  ('loss', 'terms', 'value'),
  [
    (
      'grpo',
      [-2.91998558, 0.0, -0.51910855, 1.94665705],
      0.37310926860075366,
    ),
    (
      'ecpo',
      [-1.26532708, 0.0, -0.51910855, 1.94665705],
      -0.04055535528269061,
    ),
    (
      'gbpo',  # ratios 1, 1, 0.02 / 0.98, 0.1 / 0.9
      [1.0, 0.0, -0.02040816, -0.11111111],
      -0.21712018140589567,
    ),
  ],
)
def test_terms_equal_values_computed_independently(loss, terms, value):
  found = ALL[loss](NOW, OLD, golden_advantages(loss))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, [terms], rtol=1e-6, atol=1e-7)
  mean = policy.group_mean(found, everyone(found))
  np.testing.assert_allclose(-mean, [value], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ('loss', 'slopes'),
  [
    # Outputs 2 and 3 went beyond 1 ± ε in the wanted direction: no slope.
    ('grpo', [-2.91998558, 0.0, 0.0, 0.0]),
    ('ecpo', [-1.26532708, 0.0, 0.0, 0.0]),
    ('gbpo', [1.0, 0.0, -0.02040816, -0.11111111]),  # ρ A
  ],
)
def test_gradients_equal_values_computed_independently(loss, slopes):
  advantages = golden_advantages(loss)
  found = jax.grad(lambda x: ALL[loss](x, OLD, advantages).sum())(NOW)
  np.testing.assert_allclose(found, [slopes], rtol=1e-6, atol=1e-7)


def test_the_penalty_is_zero_at_the_reference_and_known_elsewhere():
  # π_ref / π = 0.5: 0.5 - log(0.5) - 1
  found = policy.kl_penalty(jnp.log(jnp.asarray([0.2, 0.2])), jnp.log(
    jnp.asarray([0.2, 0.1])
  ))  # fmt: skip
  np.testing.assert_allclose(found, [0, -0.5 + np.log(2)], atol=1e-6)


# --- Identities -------------------------------------------------------------


def draws(count, group=4, codes=3, seed=0):
  """Log-probabilities now, before and of the reference; advantages."""
  random = np.random.default_rng(seed)
  shape = (count, group, codes)
  now = -random.exponential(2.0, shape)
  old = np.minimum(now + random.normal(0, 0.7, shape), -1e-3)
  reference = np.minimum(now + random.normal(0, 0.7, shape), -1e-3)
  advantages = random.normal(size=shape[:2])
  advantages[0] = 0
  return tuple(
    jnp.asarray(x, jnp.float32) for x in (now, old, reference, advantages)
  )


def test_early_clipping_changes_nothing_for_good_outputs():
  now, old, _, advantages = draws(200)
  good = jnp.broadcast_to(jnp.abs(advantages)[..., None], now.shape)

  def value_and_slope(terms):
    return terms(now, old, good), jax.grad(lambda x: terms(x, old, good).sum())(
      now
    )

  for a, b in zip(value_and_slope(grpo), value_and_slope(ecpo), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_bad_output_is_pushed_down_but_only_so_hard():
  log_ratio = jnp.linspace(-3, 12, 61)[None]
  old = jnp.full_like(log_ratio, -15.0)
  bad = jnp.full_like(log_ratio, -2.0)
  slope = {
    name: jax.grad(lambda x, t=terms: t(x, old, bad).sum())(old + log_ratio)[0]
    for name, terms in (('grpo', grpo), ('ecpo', ecpo))
  }
  ratio = np.exp(np.asarray(log_ratio[0]))
  near = ratio < 1.3
  np.testing.assert_allclose(slope['ecpo'][near], slope['grpo'][near])
  np.testing.assert_allclose(slope['ecpo'][~near], -2.6, rtol=1e-6)  # 1.3 A
  np.testing.assert_allclose(slope['grpo'][~near], -2 * ratio[~near], rtol=1e-5)
  assert slope['grpo'].min() < -1e5


def test_a_policy_equal_to_its_generator_follows_the_plain_gradient():
  # ρ = 1: the derivative by log π is A, nothing is clipped.
  now, _, reference, advantages = draws(50)
  for loss in ('grpo', 'ecpo'):
    settings = dataclasses.replace(_SETTINGS, loss=loss, kl_weight=0.0)

    def total(x, settings=settings):
      found = policy.policy_terms(
        x, now, reference, advantages, settings=settings
      )
      return found.terms.sum(), found

    slope, found = jax.grad(total, has_aux=True)(now)
    wanted = np.broadcast_to(advantages[..., None], now.shape)
    np.testing.assert_allclose(slope, wanted, rtol=1e-6)
    assert not found.clipped.any() and not found.early_clipped.any()


def test_order_of_the_group_does_not_matter():
  now, old, reference, _ = draws(20, group=6)
  random = np.random.default_rng(1)
  rewards = jnp.asarray(random.random((20, 6)), jnp.float32)
  order = random.permutation(6)

  def objective(now, old, reference, rewards):
    a = policy.group_advantages(rewards, everyone(rewards))
    found = policy.policy_terms(
      now, old, reference, a.values, settings=_SETTINGS
    )
    return a.values, policy.group_mean(found.terms, everyone(rewards))

  straight, value = objective(now, old, reference, rewards)
  turned, same = objective(
    *(x[:, order] for x in (now, old, reference, rewards))
  )
  np.testing.assert_allclose(straight[:, order], turned, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(value, same, rtol=1e-5, atol=1e-6)


def test_outputs_that_do_not_count_are_as_good_as_absent():
  rewards = np.array([[0.3, np.nan, 0.9, 0.1, np.inf]], np.float32)
  counted = np.isfinite(rewards)
  found = policy.group_advantages(jnp.asarray(rewards), jnp.asarray(counted))
  kept = policy.group_advantages(
    jnp.asarray(rewards[:, counted[0]]), jnp.ones((1, 3), bool)
  )
  np.testing.assert_allclose(found.values[:, counted[0]], kept.values)
  np.testing.assert_array_equal(found.values[~counted], 0)
  np.testing.assert_allclose(found.std, kept.std)
  values = np.where(counted, rewards, np.nan)
  np.testing.assert_allclose(
    policy.group_mean(jnp.asarray(values), jnp.asarray(counted)),
    [1.3 / 3],
    rtol=1e-6,
  )


def test_groups_without_spread_have_no_advantage():
  rewards = np.array(
    [[0.3] * 3, [0.3, 0.3 + 1e-7, 0.3], [0.3, 0.31, 0.3], [0.7, 0.0, 0.0]],
    np.float32,
  )
  counted = np.ones(rewards.shape, bool)
  counted[3, 1:] = False  # one output alone
  found = policy.group_advantages(jnp.asarray(rewards), jnp.asarray(counted))
  assert found.has_spread.tolist() == [False, False, True, False]
  np.testing.assert_array_equal(np.asarray(found.values)[[0, 1, 3]], 0)
  np.testing.assert_allclose(  # two at -1/√2, one at √2
    found.values[2], [-(0.5**0.5), 2**0.5, -(0.5**0.5)], rtol=1e-4
  )


# --- Independent closed forms -----------------------------------------------


def closed_form(loss, level, case, s):
  """Terms [P, G], their slope [P, G, L] and the clip masks, in float64."""
  now, old, reference, a = (np.asarray(x, np.float64) for x in case)
  if level == 'sequence' and loss != 'gbpo':
    now, old, reference = (
      x.sum(2, keepdims=True) for x in (now, old, reference)
    )
  pi, before, a = np.exp(now), np.exp(old), a[..., None] + 0 * now
  if loss == 'gbpo':
    floor = np.where(a >= 0, pi, 1 - pi)
    used = np.maximum(before, floor)
    terms = pi / used * a
    slope, clipped, early = terms, np.zeros(a.shape, bool), used > before
  else:
    ratio = pi / before
    if loss == 'ecpo':
      ratio = np.minimum(ratio, 1 + s.clip + s.early_clip)
    upper, lower = 1 + s.clip, 1 - s.clip
    clipped = ((a > 0) & (ratio > upper)) | ((a < 0) & (ratio < lower))
    terms = np.where(clipped, np.clip(ratio, lower, upper) * a, ratio * a)
    slope = np.where(clipped, 0, ratio * a)
    early = (pi / before > upper + s.early_clip) & (loss == 'ecpo')
  if loss == 'grpo':
    x = reference - now
    terms = terms - s.kl_weight * (np.exp(x) - x - 1)
    slope = slope - s.kl_weight * (1 - np.exp(x))
  width = now.shape[2]
  slope = np.broadcast_to(slope / width, case[0].shape)
  return terms.mean(2), slope, clipped, early & (a < 0)


@pytest.mark.parametrize('level', ['sequence', 'token'])
@pytest.mark.parametrize('loss', sorted(ALL))
def test_value_and_gradient_equal_the_closed_form(loss, level):
  case = draws(1000, seed=3)
  settings = dataclasses.replace(
    _SETTINGS, loss=loss, ratio_level=level, kl_weight=0.3
  )

  def total(now, old, reference):
    found = policy.policy_terms(now, old, reference, case[3], settings=settings)
    whole = found.terms - settings.kl_weight * found.penalty
    return whole.sum(), (whole, found)

  grad = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
  (slope, *others), (got, found) = grad(*case[:3])
  want, want_slope, clipped, early = closed_form(loss, level, case, settings)
  # f32: ρ up to e^5 from sums of log-probabilities.
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)
  np.testing.assert_allclose(slope, want_slope, rtol=2e-5, atol=1e-5)
  np.testing.assert_array_equal(found.clipped, clipped)
  np.testing.assert_array_equal(found.early_clipped, early)
  assert early.any() == (loss != 'grpo')
  for constant in others:  # generator and reference are not trained
    np.testing.assert_array_equal(constant, 0)


@pytest.mark.parametrize('level', ['sequence', 'token'])
@pytest.mark.parametrize('loss', sorted(ALL))
def test_gradient_is_what_finite_differences_say(loss, level):
  # The denominators of ECPO and GBPO are constants: they keep the value they
  # have at the point while log π moves.
  now, old, reference, advantages = draws(40, seed=5)
  settings = dataclasses.replace(
    _SETTINGS, loss=loss, ratio_level=level, kl_weight=0.3
  )

  def value(x):
    """Sum of all terms with frozen denominators, in float64."""
    n, o, r, a = (
      np.asarray(v, np.float64) for v in (x, old, reference, advantages)
    )
    at = np.asarray(now, np.float64)
    if level == 'sequence' and loss != 'gbpo':
      n, o, r, at = (v.sum(2, keepdims=True) for v in (n, o, r, at))
    a = a[..., None] + 0 * n
    if loss == 'gbpo':
      floor = np.where(a >= 0, np.exp(at), 1 - np.exp(at))
      return (np.exp(n) / np.maximum(np.exp(o), floor) * a).mean(2).sum()
    if loss == 'ecpo':
      o = np.maximum(at - np.log(1.3), o)
    ratio = np.exp(n - o)
    terms = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
    if loss == 'grpo':
      terms -= 0.3 * (np.exp(r - n) - (r - n) - 1)
    return terms.mean(2).sum()

  def total(x):
    found = policy.policy_terms(
      x, old, reference, advantages, settings=settings
    )
    return (found.terms - 0.3 * found.penalty).sum()

  slope = np.asarray(jax.grad(total)(now))
  random = np.random.default_rng(0)
  for _ in range(20):
    direction = random.normal(size=now.shape)
    step = 1e-6 * direction
    base = np.asarray(now, np.float64)
    numeric = (value(base + step) - value(base - step)) / 2e-6
    assert np.sum(slope * direction) == pytest.approx(
      numeric, rel=1e-4, abs=1e-4
    )


# --- Edges ------------------------------------------------------------------


@pytest.mark.parametrize('loss', sorted(ALL))
@pytest.mark.parametrize('advantage', [-2.0, 0.0, 2.0])
@pytest.mark.parametrize(
  ('now', 'old'),
  [(-1e4, 0.0), (0.0, -1e4), (0.0, 0.0), (-1e4, -1e4), (-1e30, -1e30)],
)
def test_extreme_log_probs_give_finite_values_and_gradients(
  loss, advantage, now, old
):
  settings = dataclasses.replace(_SETTINGS, loss=loss)
  shape = (1, 2, 3)

  def total(x):
    found = policy.policy_terms(
      x,
      jnp.full(shape, old),
      jnp.full(shape, old),
      jnp.full(shape[:2], advantage),
      settings=settings,
    )
    return (found.terms - found.penalty).sum(), found

  (value, found), slope = jax.value_and_grad(total, has_aux=True)(
    jnp.full(shape, now)
  )
  assert np.isfinite(value) and np.isfinite(slope).all()
  assert np.isfinite(found.ratio).all() and np.isfinite(found.kl).all()
  if loss == 'ecpo' and advantage < 0 and now > old:
    np.testing.assert_allclose(slope, -2.6, rtol=1e-5)  # (1 + ε + δ) A


def test_early_clipping_is_exact_far_from_zero():
  # log π near -1e4 has a float32 spacing of 1e-3, more than 1e-6 of log 1.3.
  now = jnp.full((1, 1), -9000.0)
  slope = jax.grad(lambda x: ecpo(x, now - 50, jnp.full((1, 1), -1.0)).sum())(
    now
  )
  np.testing.assert_allclose(slope, -1.3, rtol=1e-6)


def test_bfloat16_log_probs_are_subtracted_in_float32():
  now = jnp.asarray([[-100.0]], jnp.bfloat16)
  old = jnp.asarray([[-100.5]], jnp.bfloat16)
  found = policy.log_ratio(now, old)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, 0.5)


@pytest.mark.parametrize('clip', [0.0, 1.0, -0.2])
def test_a_clip_outside_its_range_is_refused(clip):
  with pytest.raises(ValueError, match=r'reinforcement\.clip'):
    policy.grpo_terms(NOW, OLD, GBPO_ADVANTAGES, clip=clip)


def test_an_early_clip_of_zero_is_refused():
  with pytest.raises(ValueError, match=r'reinforcement\.early_clip'):
    policy.ecpo_terms(NOW, OLD, GBPO_ADVANTAGES, clip=0.2, early_clip=0.0)


# --- Tails ------------------------------------------------------------------


@pytest.mark.parametrize('count', [1, 2, 99, 100, 101, 350])
def test_tails_are_those_of_the_counted_values(count):
  random = np.random.default_rng(count)
  values = random.normal(size=(4, 100)).astype(np.float32)
  counted = np.zeros(400, bool)
  counted[random.permutation(400)[:count]] = True
  counted = counted.reshape(values.shape)
  kept = np.sort(values[counted])
  found = policy.tail(
    jnp.asarray(np.where(counted, values, np.nan)), jnp.asarray(counted)
  )
  np.testing.assert_allclose(found.mean, kept.mean(), rtol=1e-4, atol=1e-6)
  assert found.p99 == np.percentile(kept, 99, method='inverted_cdf')
  assert found.max == kept[-1]


def test_the_tail_of_nothing_is_zero():
  found = policy.tail(jnp.full((2, 2), jnp.nan), jnp.zeros((2, 2), bool))
  assert [float(x) for x in found] == [0, 0, 0]
