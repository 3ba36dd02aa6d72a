"""Session reward model: its formula, padding, candidates and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters
from onerec_jax.model import session_reward
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

_SIZES = (3, 5)
_NUM_ITEMS = 9
_CONFIG = config_lib.RewardModelConfig(
  targets=(
    config_lib.RewardTarget(name='ltr'),
    config_lib.RewardTarget(name='wtr'),
    config_lib.RewardTarget(name='swt'),
  ),
  embed_dim=16,
  num_heads=2,
  num_layers=2,
  tower_dim=6,
  dropout_rate=0.3,
)
_INPUTS = (
  'history_items', 'history_codes', 'history_mask', 'items', 'codes', 'mask'
)  # fmt: skip


def _model(mesh=None, **changes):
  return session_reward.SessionReward(
    dataclasses.replace(_CONFIG, **changes),
    vocabulary_lib.Vocabulary(_SIZES),
    _NUM_ITEMS,
    mesh=mesh,
  )


def _params(model):
  params = parameters.materialize(session_reward.abstract_params(model), seed=0)
  # Fresh towers predict their bias, whatever they are given.
  rng = np.random.default_rng(1)
  return {
    **params,
    **{
      name: rng.normal(size=params[name].shape).astype(np.float32)
      for name in ('tower_in_bias', 'tower_out', 'tower_out_bias')
    },
  }


@pytest.fixture(scope='module')
def params():
  return _params(_model())


def _inputs(batch=2, history=4, candidates=3, length=3):
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, n, _NUM_ITEMS) for n in _SIZES], axis=1)
  codes = codes.astype(np.int32)
  history_items = rng.integers(0, _NUM_ITEMS, (batch, history), np.int32)
  items = rng.integers(0, _NUM_ITEMS, (batch, candidates, length), np.int32)
  history_mask = rng.random((batch, history)) < 0.7
  mask = rng.random((batch, candidates, length)) < 0.7
  history_mask[:, 0] = mask[:, :, 0] = True
  values = (
    history_items, codes[history_items], history_mask, items, codes[items], mask
  )  # fmt: skip
  return dict(zip(_INPUTS, values, strict=True))


@functools.cache
def _compiled(model):
  def call(params, *inputs):
    return model.apply({'params': params}, *inputs, deterministic=True)

  return jax.jit(call)


def _logits(params, inputs, model=None):
  call = _compiled(model or _model())
  return np.asarray(call(params, *(inputs[n] for n in _INPUTS)))


# --- Independent reference, one item at a time --------------------------------


def _norm(x, scale):
  return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def _softmax_sum(scores, values):
  weights = np.exp(scores - np.max(scores))
  return (weights / weights.sum()) @ values


def _reference_vector(p, item, codes):
  tokens = [3 + codes[0], 3 + _SIZES[0] + codes[1]]
  return p['code_embedding'][tokens].sum(axis=0) + p['item_embedding'][item]


def _reference(p, behaviours, session):
  """Logits of one candidate; both arguments are lists of (item, codes)."""
  heads, width = 2, 8
  history = [
    _norm(_reference_vector(p, *b), p['history_norm']['scale'])
    for b in behaviours
  ]
  attention = p['target_attention']
  vectors = []
  for entry in session:
    x = _reference_vector(p, *entry)
    query = _norm(x, p['target_norm']['scale'])
    user = np.zeros_like(x)
    for h in range(heads):
      q, k, v = (attention[name][:, h] for name in ('query', 'key', 'value'))
      scores = [(query @ q) @ (z @ k) * width**-0.5 for z in history]
      mixed = _softmax_sum(np.array(scores), np.array([z @ v for z in history]))
      user = user + mixed @ attention['out'][h]
    parts = (x, user, x * user)
    hidden = sum(part @ p['mix_in'][i] for i, part in enumerate(parts))
    vectors.append(x + user + np.maximum(hidden, 0) @ p['mix_out'])
  for number in range(2):
    layer = p[f'session_layers_{number}']
    normed = [_norm(x, layer['norm']['scale']) for x in vectors]
    after = []
    for x, query in zip(vectors, normed, strict=True):
      for h in range(heads):
        q, k, v = (layer['attention']['qkv'][:, i, h] for i in range(3))
        scores = [(query @ q) @ (z @ k) * width**-0.5 for z in normed]
        mixed = _softmax_sum(
          np.array(scores), np.array([z @ v for z in normed])
        )
        x = x + mixed @ layer['attention']['out'][h]
      after.append(x)
    vectors = after
  total = sum(_norm(x, p['final_norm']['scale']) for x in vectors)
  logits = []
  for x in range(3):
    hidden = total @ p['tower_in'][x] + p['tower_in_bias'][x]
    logits.append(
      np.maximum(hidden, 0) @ p['tower_out'][x] + p['tower_out_bias'][x]
    )
  return np.array(logits)


def test_logits_equal_the_formula_written_item_by_item(params):
  inputs = _inputs()
  wide = jax.tree.map(lambda x: x.astype(np.float64), params)
  got = _logits(params, inputs)
  assert got.shape == (2, 3, 3)
  for b, w in np.ndindex(2, 3):
    real = inputs['history_mask'][b]
    behaviours = list(
      zip(
        inputs['history_items'][b][real],
        inputs['history_codes'][b][real],
        strict=True,
      )
    )
    real = inputs['mask'][b, w]
    session = list(
      zip(inputs['items'][b, w][real], inputs['codes'][b, w][real], strict=True)
    )
    np.testing.assert_allclose(
      got[b, w], _reference(wide, behaviours, session), rtol=1e-4, atol=1e-5
    )


def test_fresh_towers_predict_their_bias():
  model = _model()
  fresh = parameters.materialize(session_reward.abstract_params(model), seed=0)
  fresh = {**fresh, 'tower_out_bias': np.float32([-2.0, 0.0, 1.0])}
  want = np.broadcast_to([-2.0, 0.0, 1.0], (2, 3, 3))
  np.testing.assert_array_equal(_logits(fresh, _inputs()), want)


# --- Padding and order --------------------------------------------------------


def test_padding_of_history_and_session_equals_leaving_it_out(params):
  inputs = _inputs()
  inputs['history_mask'][:] = np.arange(4) < 2
  inputs['mask'][:] = np.arange(3) < 2
  short = {
    name: x[:, :, :2] if x.ndim > 2 and name in ('items', 'codes', 'mask')
    else x[:, :2]
    for name, x in inputs.items()
  }  # fmt: skip
  np.testing.assert_allclose(
    _logits(params, inputs), _logits(params, short), rtol=1e-5, atol=1e-5
  )


def test_what_lies_under_the_masks_does_not_matter(params):
  inputs = _inputs()
  other = dict(inputs)
  for where, names in (
    ('history_mask', ('history_items', 'history_codes')),
    ('mask', ('items', 'codes')),
  ):
    for name in names:
      mask = inputs[where]
      mask = mask[..., None] if name.endswith('codes') else mask
      other[name] = np.where(mask, inputs[name], (inputs[name] + 1) % 3)
  np.testing.assert_array_equal(_logits(params, inputs), _logits(params, other))


def test_order_of_behaviours_and_items_does_not_matter(params):
  inputs = _inputs()
  turned = {
    name: x[:, ::-1] if name.startswith('history') else x[:, :, ::-1]
    for name, x in inputs.items()
  }
  np.testing.assert_allclose(
    _logits(params, inputs), _logits(params, turned), rtol=1e-5, atol=1e-5
  )


def test_history_and_session_do_matter(params):
  inputs = _inputs()
  base = _logits(params, inputs)
  for name in ('history_items', 'history_codes', 'items', 'codes'):
    changed = {**inputs, name: (inputs[name] + 1) % 3}
    assert np.abs(_logits(params, changed) - base).max() > 1e-3


# --- Candidates ---------------------------------------------------------------


def test_permuting_candidates_permutes_their_scores(params):
  inputs = _inputs()
  order = np.array([2, 0, 1])
  moved = {
    name: x if name.startswith('history') else x[:, order]
    for name, x in inputs.items()
  }
  np.testing.assert_allclose(
    _logits(params, moved),
    _logits(params, inputs)[:, order],
    rtol=1e-5,
    atol=1e-5,
  )


def test_candidates_do_not_see_each_other(params):
  inputs = _inputs()
  other = {**inputs, 'items': inputs['items'].copy()}
  other['items'][:, 1] = (other['items'][:, 1] + 1) % _NUM_ITEMS
  before, after = _logits(params, inputs), _logits(params, other)
  np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
  assert (before[:, 1] != after[:, 1]).any()


def _largest_array(jaxpr):
  """Size of the largest result of any operation, inner jaxprs included."""
  largest = 0
  for equation in jaxpr.eqns:
    for value in equation.outvars:
      largest = max(largest, int(np.prod(value.aval.shape)))
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        largest = max(largest, _largest_array(inner))
  return largest


def test_history_is_not_repeated_for_every_candidate(params):
  # 2 heads * 2 items < 20 behaviours: what attention needs is smaller.
  candidates, history = 30, 20
  inputs = _inputs(1, history, candidates, 2)
  call = _compiled(_model())
  jaxpr = jax.make_jaxpr(call)(params, *(inputs[n] for n in _INPUTS))
  assert _largest_array(jaxpr.jaxpr) < candidates * history * 16


# --- Edges --------------------------------------------------------------------


@jax.jit
@jax.value_and_grad
def _value_and_gradients(params, inputs):
  logits = _model().apply(
    {'params': params}, *(inputs[n] for n in _INPUTS), deterministic=True
  )
  return jnp.sum(jnp.sin(logits))


def test_users_without_history_get_finite_scores_and_gradients(params):
  inputs = _inputs()
  inputs['history_mask'][:] = False
  inputs['mask'][0, 0] = False  # nor has this candidate any item
  value, gradients = _value_and_gradients(params, inputs)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  # Nothing of the padding gets through: one slot of it equals four.
  narrow = {
    name: x[:, :1] if name.startswith('history') else x
    for name, x in inputs.items()
  }
  np.testing.assert_allclose(
    _logits(params, inputs), _logits(params, narrow), rtol=1e-6, atol=1e-6
  )
  assert not np.any(gradients['target_attention']['value'])


def test_gradients_reach_every_parameter(params):
  _, gradients = _value_and_gradients(params, _inputs())
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.any(gradient), jax.tree_util.keystr(path)


def test_without_item_embedding_only_the_codes_count():
  model = _model(item_embedding=False)
  params = _params(model)
  assert 'item_embedding' not in params
  inputs = _inputs()
  other = {
    **inputs,
    'items': (inputs['items'] + 1) % _NUM_ITEMS,
    'history_items': (inputs['history_items'] + 1) % _NUM_ITEMS,
  }
  np.testing.assert_array_equal(
    _logits(params, inputs, model), _logits(params, other, model)
  )


def test_dropout_depends_on_the_key_and_evaluation_has_none(params):
  model, inputs = _model(), _inputs()

  @jax.jit
  def train(inputs, key):
    return model.apply(
      {'params': params},
      *(inputs[n] for n in _INPUTS),
      deterministic=False,
      rngs={'dropout': key},
    )

  first, again = (train(inputs, jax.random.key(0)) for _ in range(2))
  other = train(inputs, jax.random.key(1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  assert (first != _logits(params, inputs)).any()
  plain = _model(dropout_rate=0.0)
  np.testing.assert_array_equal(
    _logits(params, inputs), _logits(params, inputs, plain)
  )


def test_sharded_scores_equal_those_of_one_device(params):
  mesh = meshes.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))
  inputs = _inputs(batch=8)
  want = _logits(params, inputs)
  model = _model(mesh=mesh)
  names = parameters.logical_names(session_reward.abstract_params(model))
  placed = sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )
  table = placed['code_embedding']
  assert table.addressable_shards[0].data.shape == (table.shape[0], 4)
  got = _compiled(model)(
    placed, *sharding.place_batch([inputs[n] for n in _INPUTS], mesh)
  )
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
