"""The encoder of the technical report: tokens, masks, settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.model import pathway_encoder
from onerec_jax.model import pathways


@pytest.fixture(name='tiny', scope='module')
def fixture_tiny(tiny_pathways):
  return tiny_pathways


@pytest.fixture(name='case', scope='module')
def fixture_case(tiny):
  return tiny.make_case()


def test_the_papers_sequence_has_405_tokens():
  paper = config.PathwaysConfig(lifelong_length=2000)
  assert pathways.num_tokens(paper) == 1 + 20 + 256 + 128
  assert pathways.num_tokens(config.PathwaysConfig()) == 1 + 20 + 256


# --- Against NumPy ----------------------------------------------------------


def norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def layer_by_hand(x, mask, p, number):
  """Pre-norm attention and GELU feed-forward of one user. [S, D]"""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64)[number], p)
  y = norm(x, p['attention_norm']['scale'])
  q, k, v = np.einsum('td,dphk->pthk', y, p['attention']['qkv'])
  scores = np.einsum('thk,shk->hts', q, k) / np.sqrt(8)
  scores = np.where(mask, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  y = np.einsum('hts,shk->thk', weights, v)
  x = x + np.einsum('thk,hkd->td', y, p['attention']['out'])
  y = norm(x, p['mlp_norm']['scale']) @ p['mlp']['wi']
  # The tanh form of the GELU, which jax.nn.gelu takes.
  y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
  return x + y @ p['mlp']['wo']


@pytest.fixture(name='tokens', scope='module')
def fixture_tokens(tiny, case):
  @jax.jit
  def run(params, *inputs):
    return case.model.apply(
      {'params': params},
      *inputs,
      method=lambda m, context, user, features: m.pathways(
        context, user, tiny.vectors, features
      ),
    )

  return jax.tree.map(
    np.asarray, run(case.params, tiny.CONTEXT, tiny.USER, tiny.FEATURES)
  )


def test_the_stack_equals_numpy_on_the_real_tokens_alone(tiny, case, tokens):
  np.testing.assert_array_equal(tokens.mask, tiny.real_tokens())
  got, stats = case()
  assert stats is None
  np.testing.assert_array_equal(got.mask, tiny.real_tokens())
  np.testing.assert_array_equal(np.asarray(got.states)[~tiny.real_tokens()], 0)
  for row in range(tiny.B):
    keep = tiny.real_tokens()[row]
    # Mask = slice: padding is left out here, and masked in the model.
    x = (tokens.states[row] + case.params['positions'])[keep]
    for number in range(2):
      x = layer_by_hand(x, keep[keep], case.params['layers'], number)
    want = norm(x, case.params['final_norm']['scale'])
    np.testing.assert_allclose(
      np.asarray(got.states)[row, keep], want, rtol=1e-4, atol=1e-5
    )


def mlp(x, p):
  hidden = x @ p['wi']
  return np.where(hidden > 0, hidden, 0.01 * hidden) @ p['wo']


def test_user_and_events_pass_through_the_mlp_of_their_pathway(
  tiny, case, tokens
):
  tokens = tokens.states
  p = case.params['pathways']
  user = p['users']['feature_0'][tiny.CONTEXT.features[:, 0]]
  np.testing.assert_allclose(
    tokens[:, 0], mlp(user, p['user_mlp']), rtol=1e-5, atol=1e-5
  )
  # The latest positive event of the second user.
  e = jax.tree.map(lambda a: a[1, -1], tiny.CONTEXT.positive)
  tags = tiny.FEATURES.values[0][e.items]
  table = p['events']['item_features']['feature_0']
  vector = np.concatenate(
    [
      tiny.VECTORS[e.items],
      table[tags[tags > 0]].sum(0) / max((tags > 0).sum(), 1),
      p['events']['number_0'][e.numbers[0]],
      p['events']['age'][e.age],
      (e.labels * e.label_mask) @ p['events']['labels'][0]
      + e.label_mask @ p['events']['labels'][1],
    ]
  )
  np.testing.assert_allclose(
    tokens[1, tiny.SHORT + tiny.POSITIVE],
    mlp(vector, p['positive_mlp']),
    rtol=1e-5,
    atol=1e-5,
  )


# --- Masks ------------------------------------------------------------------


def test_what_padding_holds_changes_nothing(tiny, case):
  random = np.random.default_rng(11)

  def scrambled(events):
    # Drawn anew, but for the mask.
    def mix(name):
      old = getattr(events, name)
      if old is None:
        return None
      mask = events.mask.reshape(*events.mask.shape, *[1] * (old.ndim - 2))
      return np.where(mask, old, random.permutation(old.ravel())[0] + 1).astype(
        old.dtype
      )

    names = [f.name for f in dataclasses.fields(events) if f.name != 'mask']
    return dataclasses.replace(events, **{name: mix(name) for name in names})

  other = dataclasses.replace(
    tiny.CONTEXT,
    short=scrambled(tiny.CONTEXT.short),
    positive=scrambled(tiny.CONTEXT.positive),
    lifelong=scrambled(tiny.CONTEXT.lifelong),
  )
  np.testing.assert_array_equal(case(other)[0].states, case()[0].states)


def test_padded_clusters_are_as_good_as_absent(tiny, case):
  few = np.asarray(tiny.CONTEXT.lifelong.mask.sum(1) <= 3)
  assert 1 < few.sum() < tiny.B
  shorter = tiny.make_case(pathways={'lifelong_length': 3})
  got = shorter(tiny.with_clusters(3))[0].states
  np.testing.assert_allclose(
    np.asarray(got)[few],
    np.asarray(case()[0].states)[few],
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_user_without_events_is_one_token_with_finite_gradients(tiny, case):
  encoded, _ = case()
  np.testing.assert_array_equal(
    encoded.mask[0], [True] + [False] * (tiny.TOKENS - 1)
  )
  nobody = jax.tree.map(np.zeros_like, tiny.CONTEXT)

  def total(params):
    states = case.call(params, nobody, tiny.FEATURES, None, None)[0].states
    return jnp.sum(jnp.sin(states)), states

  gradients, states = jax.grad(total, has_aux=True)(case.params)
  assert np.isfinite(states).all() and np.abs(states[:, 0]).min() > 0
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()


def test_every_pathway_and_the_order_of_events_matter(tiny, case):
  base = np.asarray(case()[0].states)[1:]
  fresh = tiny.make_context(seed=1)
  for name in ('features', 'short', 'positive', 'lifelong'):
    new = getattr(fresh, name)
    if name != 'features':
      new = dataclasses.replace(new, mask=getattr(tiny.CONTEXT, name).mask)
    got = case(dataclasses.replace(tiny.CONTEXT, **{name: new}))[0].states
    assert np.abs(np.asarray(got)[1:] - base).max() > 1e-3, name
  flipped = jax.tree.map(lambda x: x[:, ::-1], tiny.CONTEXT.short)
  flipped = dataclasses.replace(tiny.CONTEXT, short=flipped)
  assert np.abs(np.asarray(case(flipped)[0].states)[1] - base[0]).max() > 1e-3
  # Clusters are a set.
  turned = jax.tree.map(lambda x: x[:, ::-1], tiny.CONTEXT.lifelong)
  turned = dataclasses.replace(tiny.CONTEXT, lifelong=turned)
  np.testing.assert_allclose(
    np.asarray(case(turned)[0].states)[1:], base, rtol=1e-4, atol=1e-5
  )


# --- Settings ---------------------------------------------------------------


def test_item_ids_have_a_table_of_their_own(tiny):
  case = tiny.make_case(
    pathways={
      'item_input': 'item_id',
      'user_features': (),
      'lifelong_length': 0,
    }
  )
  tables = case.params['pathways']
  assert tables['item_table'].shape == (tiny.ITEMS, tiny.D)
  assert tables['user_token'].shape == (1, tiny.D)

  def refuse(items):
    raise AssertionError('semantic IDs are not read')

  context, user, features = jax.tree.map(
    jnp.asarray, (tiny.with_clusters(0), tiny.USER, tiny.FEATURES)
  )
  encoded, _ = jax.jit(
    lambda params: case.model.apply(
      {'params': params}, context, user, refuse, features, None, None
    )
  )(case.params)
  assert encoded.states.shape == (
    tiny.B,
    1 + tiny.SHORT + tiny.POSITIVE,
    tiny.D,
  )
  # Nothing is known of the first user, who is a learned token all the same.
  assert np.abs(encoded.states[0, 0]).max() > 0


def test_a_context_of_other_settings_is_refused(tiny, case):
  for changes, words in (
    ({'short': None}, 'short pathway has 0 events.*short_length=3'),
    (
      {'positive': tiny.CONTEXT.short},
      'positive pathway has 3 events.*length=4',
    ),
  ):
    with pytest.raises(ValueError, match=words):
      case(dataclasses.replace(tiny.CONTEXT, **changes))


def test_a_router_bias_without_experts_is_refused(tiny, case):
  with pytest.raises(ValueError, match=r"has no experts.*'decoder'.*given"):
    case.call(case.params, tiny.CONTEXT, tiny.FEATURES, tiny.BIAS, None)


@pytest.mark.parametrize('location', ['decoder', 'both'])
def test_states_have_the_compute_type(tiny, location):
  case = tiny.make_case(location=location, compute_dtype='bfloat16', remat=True)
  encoded, stats = jax.eval_shape(
    case.call, case.params, tiny.CONTEXT, tiny.FEATURES, case.bias, None
  )
  assert encoded.states.dtype == jnp.bfloat16
  assert encoded.states.shape == (tiny.B, tiny.TOKENS, tiny.D)
  assert (stats is None) == (location == 'decoder')
  assert stats is None or stats.load.dtype == jnp.float32


def test_dropout_follows_its_seeds(case):
  seeds = np.random.default_rng(0).integers(0, 2**32, (10, 2), np.uint32)

  def split(seeds):
    inner = seeds[2:].reshape(2, pathway_encoder.SITES, 2)
    return jnp.asarray(seeds[:2]), jnp.asarray(inner)

  first, again = (case(seeds=split(seeds))[0].states for _ in range(2))
  other = case(seeds=split(seeds + np.uint32(1)))[0].states
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and (first != case()[0].states).any()
