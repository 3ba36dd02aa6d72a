"""Scoring many sessions per user equals scoring each of them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax.model import encoder_input

_WIDTH, _ITEMS, _PREFIX = 3, 2, 2


def _sessions(case, *shape, seed=1):
  generator = np.random.default_rng(seed)
  sizes = case.model.vocabulary.codes_per_level
  return jnp.asarray(
    np.stack([generator.integers(0, n, shape) for n in sizes], -1), jnp.int32
  )


def _score(case, codes, mask=None, prefix=None, prefix_mask=None, params=None):
  history, history_mask, user, _, _, bias = case.inputs
  if mask is None:
    mask = jnp.ones(codes.shape[:-1], bool)
  if prefix is None:
    prefix = jnp.zeros((len(user), 0, codes.shape[-1]), jnp.int32)
  if prefix_mask is None:
    prefix_mask = jnp.ones(prefix.shape[:-1], bool)

  def score(params, history, history_mask, user, *rest):
    variables = {'params': params}
    inputs = encoder_input.EncoderInput(history, history_mask, user)
    encoded = case.model.apply(variables, inputs, method='encode')
    return case.model.apply(
      variables, encoded, *rest, method='session_log_probs'
    )

  return jax.jit(score)(
    case.params if params is None else params,
    history,
    history_mask,
    user,
    prefix,
    prefix_mask,
    codes,
    mask,
    bias,
  )


def _teacher_forced(case, codes, mask):
  """log p of the codes by the model's training path; one session per user."""
  output = case.output(target_codes=codes, target_mask=mask)
  log_probs = jax.nn.log_softmax(output.logits, axis=-1)
  return jnp.take_along_axis(log_probs, codes[..., None], -1)[..., 0]


@pytest.fixture(scope='module')
def case(make_case):
  # IDs are read as wholes too, where a session and its prefix are joined.
  return make_case(items=_ITEMS + _PREFIX, id_buckets=64)


def test_each_session_scores_as_in_teacher_forcing(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  found = _score(case, codes)
  for w in range(_WIDTH):
    alone = _teacher_forced(case, codes[:, w], jnp.ones((8, _ITEMS), bool))
    np.testing.assert_allclose(found[:, w], alone, rtol=2e-5, atol=2e-5)


def test_sessions_do_not_see_each_other(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  other = codes.at[:, 1].set(_sessions(case, 8, _ITEMS, seed=2))
  np.testing.assert_allclose(
    _score(case, codes)[:, ::2], _score(case, other)[:, ::2], atol=1e-5
  )


def test_padding_scores_zero_and_changes_nothing_before_it(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  mask = jnp.ones((8, _WIDTH, _ITEMS), bool).at[:, 1, 1].set(False)
  found, full = _score(case, codes, mask), _score(case, codes)
  np.testing.assert_array_equal(found[:, 1, 1], 0.0)
  np.testing.assert_allclose(found[:, 1, 0], full[:, 1, 0], atol=1e-5)


def test_a_prefix_is_the_beginning_of_the_session(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  prefix = _sessions(case, 8, _PREFIX, seed=3)
  found = _score(case, codes, prefix=prefix)
  for w in range(_WIDTH):
    whole = jnp.concatenate([prefix, codes[:, w]], axis=1)
    alone = _teacher_forced(case, whole, jnp.ones(whole.shape[:2], bool))
    np.testing.assert_allclose(
      found[:, w], alone[:, _PREFIX:], rtol=2e-5, atol=2e-5
    )


def test_padding_before_the_prefix_is_not_read(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  prefix = _sessions(case, 8, _PREFIX, seed=3)
  mask = jnp.tile(jnp.array([[False, True]]), (8, 1))
  np.testing.assert_allclose(
    _score(case, codes, prefix=prefix, prefix_mask=mask),
    _score(case, codes, prefix=prefix[:, 1:]),
    rtol=2e-5,
    atol=2e-5,
  )


def test_scores_have_finite_gradients_for_masked_sessions(case):
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  mask = jnp.zeros((8, _WIDTH, _ITEMS), bool).at[:, 0].set(True)

  gradient = jax.grad(
    lambda params: _score(case, codes, mask, params=params).sum()
  )(case.params)

  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  assert np.abs(gradient['embedding']).max() > 0


def test_scores_are_the_same_on_eight_devices(case, make_case):
  mesh = meshes.make_mesh(config_lib.MeshConfig(2, 2, 2))
  sharded = make_case(items=_ITEMS + _PREFIX, id_buckets=64, mesh=mesh)
  codes = _sessions(case, 8, _WIDTH, _ITEMS)
  np.testing.assert_allclose(
    _score(sharded, codes), _score(case, codes), rtol=2e-5, atol=2e-5
  )
