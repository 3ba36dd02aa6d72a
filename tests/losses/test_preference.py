"""The DPO family against golden values and closed forms in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.losses import dpo_family
from onerec_jax.losses import preference

ALL = sorted(preference.DEFAULT_BETA)
_REFERENCE_FREE = ('cpo', 'simpo')

# The golden values below were computed independently, in double precision.
# p_w, p_l, q_w, q_l; h = (-4 + 4.5) - (-6.5 + 6) = 1; 15 tokens.
PAIR = tuple(jnp.asarray([x]) for x in (-4.0, -6.5, -4.5, -6.0))
TOKENS = (jnp.asarray([15]), jnp.asarray([15]))
# Negatives (-6.5, -6.0), (-5.0, -5.2), (-8.0, -7.0).
SDPO = (
  jnp.asarray([-4.0]),
  jnp.asarray([[-6.5, -5.0, -8.0]]),
  jnp.asarray([-4.5]),
  jnp.asarray([[-6.0, -5.2, -7.0]]),
  jnp.ones((1, 3), bool),
)


def settings_of(loss, **changes):
  changes.setdefault('num_rejected', 3 if loss == 'sdpo' else 1)
  return config.PreferenceConfig(loss=loss, **changes)


def loss_of(loss, policy, reference, tokens, mask, **changes):
  return preference.preference_loss(
    *map(jnp.asarray, (policy, reference, tokens, mask)),
    settings=settings_of(loss, num_rejected=policy.shape[1] - 1, **changes),
  )


@pytest.mark.parametrize(
  ('got', 'want'),
  [
    (dpo_family.dpo_loss(*PAIR, beta=0.1), 0.6443966600735709),
    (
      dpo_family.ipo_loss(*PAIR, *TOKENS, beta=0.1, log_probs='sum'),
      16.0,  # (1 - 5)²
    ),
    (
      dpo_family.ipo_loss(*PAIR, *TOKENS, beta=0.1, log_probs='mean'),
      24.33777777777778,  # (1/15 - 5)²
    ),
    (
      dpo_family.cdpo_loss(*PAIR, beta=0.1, label_flip=0.1),
      0.6543966600735709,
    ),
    (
      dpo_family.rdpo_loss(*PAIR, beta=0.1, label_flip=0.1),
      0.6318966600735709,
    ),
    (
      dpo_family.cpo_loss(
        *PAIR[:2], TOKENS[0], beta=0.1, nll_weight=0.0, nll='sum'
      ),
      0.5759394198788436,
    ),
    (
      dpo_family.cpo_loss(
        *PAIR[:2], TOKENS[0], beta=0.1, nll_weight=1.0, nll='sum'
      ),
      4.575939419878844,
    ),
    (
      dpo_family.cpo_loss(
        *PAIR[:2], TOKENS[0], beta=0.1, nll_weight=1.0, nll='mean'
      ),
      0.8426060865455103,
    ),
    (
      dpo_family.simpo_loss(*PAIR[:2], *TOKENS, beta=2.0, margin=1.0),
      1.0810367535187386,
    ),
    (dpo_family.sdpo_loss(*SDPO, beta=0.1), 1.318013092100673),
    (dpo_family.sdpo_loss(*SDPO, beta=1.0), 0.8466524330015773),
    (dpo_family.hinge_loss(*PAIR, beta=0.1), 0.9),  # 1 - 0.1
    (dpo_family.hinge_loss(*PAIR, beta=2.0), 0.0),  # 1 - 2 < 0
  ],
)
def test_losses_equal_values_computed_independently(got, want):
  assert got.shape == (1,) and got.dtype == jnp.float32
  np.testing.assert_allclose(got[0], want, rtol=1e-6, atol=1e-6)


# --- Identities -------------------------------------------------------------


def draws(num_pairs, width, seed=0):
  """Log-probs, reference, token counts; multiples of 1/64, so that every
  difference is exact in float32 as well."""
  random = np.random.default_rng(seed)
  policy = np.round(random.normal(-30, 12, (num_pairs, width)) * 64) / 64
  shift = random.normal(0, 6, (num_pairs, width))
  reference = policy + np.round(shift * 64) / 64
  tokens = random.integers(3, 31, (num_pairs, width))
  mask = random.random((num_pairs, width)) < 0.8
  mask[:, :2] = True
  return (
    policy.astype(np.float32),
    reference.astype(np.float32),
    tokens.astype(np.int32),
    mask,
  )


def test_softmax_dpo_with_one_negative_is_dpo():
  case = draws(200, 2)
  np.testing.assert_allclose(
    loss_of('sdpo', *case, beta=0.1), loss_of('dpo', *case, beta=0.1), rtol=1e-6
  )


@pytest.mark.parametrize('loss', ['cdpo', 'rdpo'])
def test_without_flips_the_noise_aware_losses_are_dpo(loss):
  case = draws(200, 2)
  np.testing.assert_allclose(
    loss_of(loss, *case, label_flip=0.0), loss_of('dpo', *case), rtol=1e-6
  )


def test_robust_dpo_is_unbiased_under_flips():
  # E over flips of rDPO = DPO: (1-ε) rDPO(h) + ε rDPO(-h) = DPO(h).
  case = draws(200, 2)
  flipped = [x[:, ::-1] for x in case]
  mixed = 0.7 * loss_of('rdpo', *case, label_flip=0.3) + 0.3 * loss_of(
    'rdpo', *flipped, label_flip=0.3
  )
  np.testing.assert_allclose(mixed, loss_of('dpo', *case), rtol=1e-5, atol=1e-5)


# Values at h = 0; IPO: (1 / 0.2)², S-DPO: log(1 + 3), hinge: 1.
@pytest.mark.parametrize(
  ('loss', 'want'),
  [
    ('dpo', np.log(2)),
    ('cdpo', np.log(2)),
    ('rdpo', np.log(2)),
    ('ipo', 25.0),
    ('sdpo', np.log(4)),
    ('hinge', 1.0),
  ],
)
def test_a_policy_equal_to_its_reference_scores_as_undecided(loss, want):
  policy, _, tokens, mask = draws(50, 4 if loss == 'sdpo' else 2)
  mask[:] = True
  got = loss_of(loss, policy, policy, tokens, mask)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_order_of_the_negatives_does_not_matter():
  case = draws(100, 5)
  turned = [np.concatenate([x[:, :1], x[:, :0:-1]], axis=1) for x in case]
  np.testing.assert_allclose(
    loss_of('sdpo', *case), loss_of('sdpo', *turned), rtol=1e-6
  )


def test_a_masked_negative_is_as_good_as_absent():
  policy, reference, tokens, mask = draws(50, 4)
  mask[:] = [True, True, False, True]
  kept = [x[:, [0, 1, 3]] for x in (policy, reference, tokens, mask)]
  want = loss_of('sdpo', *kept)
  policy[:, 2], reference[:, 2] = np.nan, np.inf

  def total(p):
    return loss_of('sdpo', p, reference, tokens, mask).sum()

  got = loss_of('sdpo', policy, reference, tokens, mask)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  slope = jax.grad(total)(policy)
  assert np.isfinite(slope).all()
  np.testing.assert_array_equal(slope[:, 2], 0)


# --- Independent closed forms -----------------------------------------------


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def closed_form(loss, policy, reference, tokens, mask, s, beta):
  """Loss [P] and its derivative by the policy's log-probs [P, W], float64."""
  p, q, t = (np.asarray(x, np.float64) for x in (policy, reference, tokens))
  slope = np.zeros_like(p)
  if loss == 'sdpo':
    # f = log(1 + Σ e_l): df/dp_l = β e_l / (1 + Σ e), df/dp_w = -Σ_l df/dp_l
    e = np.exp(beta * ((p - q) - (p - q)[:, :1])) * mask
    e[:, 0] = 0
    total = 1 + e.sum(axis=1)
    slope[:, 1:] = beta * e[:, 1:] / total[:, None]
    slope[:, 0] = -slope[:, 1:].sum(axis=1)
    return np.log(total), slope
  by_tokens = loss == 'simpo' or (loss == 'ipo' and s.ipo_log_probs == 'mean')
  scale = 1 / t if by_tokens else np.ones_like(t)
  z = p * scale
  if loss not in _REFERENCE_FREE:
    z = z - q * scale
  h = z[:, 0] - z[:, 1]
  up, down, eps = sigmoid(beta * h), sigmoid(-beta * h), s.label_flip
  dpo, against = np.log1p(np.exp(-beta * h)), np.log1p(np.exp(beta * h))
  if loss == 'dpo':
    value, dh = dpo, -beta * down
  elif loss == 'ipo':
    value, dh = (h - 0.5 / beta) ** 2, 2 * (h - 0.5 / beta)
  elif loss == 'cdpo':
    value = (1 - eps) * dpo + eps * against
    dh = beta * (eps * up - (1 - eps) * down)
  elif loss == 'rdpo':
    value = ((1 - eps) * dpo - eps * against) / (1 - 2 * eps)
    dh = -beta * (eps * up + (1 - eps) * down) / (1 - 2 * eps)
  elif loss == 'cpo':
    value, dh = dpo, -beta * down
  elif loss == 'simpo':
    value = np.log1p(np.exp(s.margin - beta * h))
    dh = -beta * sigmoid(s.margin - beta * h)
  elif loss == 'hinge':
    value = np.maximum(0, 1 - beta * h)
    dh = np.where(1 - beta * h > 0, -beta, 0)
  slope[:, 0], slope[:, 1] = dh * scale[:, 0], -dh * scale[:, 1]
  if loss == 'cpo':
    weight = s.nll_weight / (t[:, 0] if s.cpo_nll == 'mean' else 1)
    value = value - weight * p[:, 0]
    slope[:, 0] -= weight
  return value, slope


@pytest.mark.parametrize(
  ('loss', 'changes'),
  [(loss, {}) for loss in ALL]
  + [
    ('dpo', {'beta': 0.7}),
    ('ipo', {'ipo_log_probs': 'sum', 'beta': 0.3}),
    ('cdpo', {'label_flip': 0.25}),
    ('rdpo', {'label_flip': 0.25}),
    ('cpo', {'cpo_nll': 'sum', 'nll_weight': 0.5}),
    ('simpo', {'margin': 0.2, 'beta': 5.0}),
    ('sdpo', {'beta': 0.1}),
  ],
)
def test_value_and_gradient_equal_the_closed_form(loss, changes):
  case = draws(1000, 4 if loss == 'sdpo' else 2, seed=7)
  settings = settings_of(loss, **changes)
  beta = preference.beta_of(settings)
  assert beta == changes.get('beta', preference.DEFAULT_BETA[loss])
  want, want_slope = closed_form(loss, *case, settings, beta)

  def total(policy, reference):
    value = loss_of(loss, policy, reference, *case[2:], **changes)
    return value.sum(), value

  grad = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  (slope, by_reference), got = grad(*case[:2])
  # 1e-5 of a nat beside relative 1e-5: f32 rounding of β h, |β h| < 100.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(slope, want_slope, rtol=1e-5, atol=1e-6)
  # The reference is a constant.
  np.testing.assert_array_equal(by_reference, 0)


# --- Edges ------------------------------------------------------------------


@pytest.mark.parametrize('loss', ALL)
@pytest.mark.parametrize(
  ('chosen', 'rejected', 'reference'),
  [
    (-1e4, 0.0, -30.0),
    (0.0, -1e4, -30.0),
    (0.0, 0.0, 0.0),
    (-1e4, -1e4, -1e4),
    (-1e4, -1e4, 0.0),
  ],
)
def test_extreme_log_probs_give_finite_values_and_gradients(
  loss, chosen, rejected, reference
):
  width = 4 if loss == 'sdpo' else 2
  policy = jnp.full((1, width), rejected).at[:, 0].set(chosen)
  evaluate = functools.partial(
    loss_of,
    loss,
    reference=jnp.full((1, width), reference),
    tokens=jnp.full((1, width), 15),
    mask=jnp.ones((1, width), bool),
  )
  value, slope = jax.value_and_grad(lambda p: evaluate(policy=p).sum())(policy)
  assert np.isfinite(value) and np.isfinite(slope).all()
  if chosen < rejected:  # a wrong order is always corrected
    assert slope[0, 0] < 0 < slope[0, 1]


@pytest.mark.parametrize('loss', ALL)
def test_an_unusable_pair_has_no_loss_and_no_gradient(loss):
  width = 4 if loss == 'sdpo' else 2
  policy, reference, tokens, mask = draws(3, width)
  mask[:] = True
  mask[1, 0] = False  # no chosen session
  mask[2, 1:] = False  # no rejected session
  policy[~mask], reference[~mask], tokens[~mask] = -np.inf, np.nan, 0

  def total(p):
    value = loss_of(loss, p, reference, tokens, mask)
    return value.sum(), value

  slope, value = jax.grad(total, has_aux=True)(policy)
  np.testing.assert_array_equal(value[1:], 0)
  np.testing.assert_array_equal(slope[1:], 0)
  assert value[0] != 0 and np.isfinite(slope).all()


def test_bfloat16_log_probs_are_subtracted_in_float32():
  # All exact in bfloat16; h = (-100 + 99) - (-100.5 + 100) = -0.5
  policy = jnp.asarray([[-100.0, -100.5]], jnp.bfloat16)
  reference = jnp.asarray([[-99.0, -100.0]], jnp.bfloat16)
  mask, tokens = jnp.ones((1, 2), bool), jnp.full((1, 2), 15)
  got = loss_of('dpo', policy, reference, tokens, mask, beta=1.0)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, np.log1p(np.exp([0.5])), rtol=1e-6)
  direct = dpo_family.simpo_loss(
    policy[:, 0], policy[:, 1], tokens[:, 0], tokens[:, 1], beta=3.0, margin=0.0
  )
  # β (p_w - p_l) / 15 = 0.1
  np.testing.assert_allclose(direct, np.log1p(np.exp([-0.1])), rtol=1e-6)


def test_implicit_rewards_are_scaled_log_ratios_without_gradient():
  policy = jnp.asarray([[-4.0, -6.5]])
  reference = jnp.asarray([[-4.5, -6.0]])
  rewards = functools.partial(preference.implicit_rewards, beta=0.1)
  np.testing.assert_allclose(
    rewards(policy, reference), [[0.05, -0.05]], rtol=1e-6
  )
  slope = jax.grad(lambda p: rewards(p, reference).sum())(policy)
  np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize('loss', ALL)
def test_a_beta_of_zero_is_refused(loss):
  case = draws(2, 4 if loss == 'sdpo' else 2)
  with pytest.raises(ValueError, match=r'beta=0\.0 must be positive'):
    loss_of(loss, *case, beta=0.0)


@pytest.mark.parametrize(
  ('loss', 'knob'), [('simpo', 'margin'), ('cpo', 'nll_weight')]
)
@pytest.mark.parametrize('value', [-0.1, np.inf, np.nan])
def test_a_margin_or_weight_below_zero_or_not_finite_is_refused(
  loss, knob, value
):
  with pytest.raises(ValueError, match=rf'preference\.{knob}='):
    loss_of(loss, *draws(2, 2), **{knob: value})


@pytest.mark.parametrize('loss', ['cdpo', 'rdpo'])
@pytest.mark.parametrize('label_flip', [0.5, -0.1])
def test_flips_that_say_nothing_are_refused(loss, label_flip):
  with pytest.raises(ValueError, match='label_flip'):
    loss_of(loss, *draws(2, 2), label_flip=label_flip)


def test_more_sessions_than_the_loss_compares_are_refused():
  with pytest.raises(ValueError, match="only 'sdpo'"):
    loss_of('dpo', *draws(2, 4))
  with pytest.raises(ValueError, match='4 sessions per pair'):
    preference.preference_loss(
      *map(jnp.asarray, draws(2, 4)),
      settings=settings_of('sdpo', num_rejected=2),
    )
