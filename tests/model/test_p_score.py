"""P-Score model: its formula, search, masks, candidates and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import interest_search
from onerec_jax.model import p_score
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

_LEVELS = (3, 5)
_NUM_ITEMS, _NUM_USERS = 11, 4
_SIZES = batch_lib.FeatureSizes(_NUM_ITEMS, users=(4,), items=(5, 4))
_CONFIG = config_lib.PScoreConfig(
  towers=(config_lib.PScoreTower('ltr'), config_lib.PScoreTower('wtr')),
  embed_dim=8,
  num_heads=2,
  history_length=6,
  search_items=3,
  tower_dims=(6, 5),
  fusion_dims=(7,),
  dropout_rate=0.3,
)
_GENERATOR = config_lib.PathwaysConfig(
  user_id_buckets=10,
  user_features=(config_lib.UserFeature('gender'),),
  item_features=(
    config_lib.ItemFeature('tag', max_values=2),
    config_lib.ItemFeature('author', max_values=1),
  ),
  event_features=(config_lib.EventFeature('play', buckets=3),),
  labels=('like', 'follow'),
  age_buckets=4,
)


def _model(mesh=None, pathways=_GENERATOR, sizes=_SIZES, **changes):
  config = dataclasses.replace(_CONFIG, **changes)
  return p_score.PScore(
    config,
    p_score.pathways_of(config, pathways),
    sizes,
    vocabulary_lib.Vocabulary(_LEVELS),
    mesh=mesh,
  )


def _params(model):
  params = parameters.materialize(p_score.abstract_params(model), seed=0)
  rng = np.random.default_rng(1)
  # Fresh towers predict their bias, and fresh item embeddings are 0.
  return jax.tree.map(
    lambda x: (
      x if np.any(x) else rng.normal(0, 0.5, size=x.shape).astype(np.float32)
    ),
    params,
  )


@pytest.fixture(scope='module')
def params():
  return _params(_model())


def _catalogue(seed=5):
  rng = np.random.default_rng(seed)
  return batch_lib.Catalogue(
    codes=np.stack([rng.integers(0, n, _NUM_ITEMS) for n in _LEVELS], 1).astype(
      np.int32
    ),
    features=batch_lib.ItemFeatures(
      (
        rng.integers(0, 5, (_NUM_ITEMS, 2), np.int32),
        rng.integers(0, 4, (_NUM_ITEMS, 1), np.int32),
      )
    ),
  )


_CATALOGUE = _catalogue()
_CATALOGUE_ON_DEVICE = jax.tree.map(jnp.asarray, _CATALOGUE)


def _context(rows=2, length=6, seed=0):
  rng = np.random.default_rng(seed)
  events = batch_lib.EventSequence(
    # Distinct: equal items have equal scores, and the search prefers late ones.
    items=np.stack(
      [rng.permutation(_NUM_ITEMS)[:length] for _ in range(rows)]
    ).astype(np.int32),
    mask=np.arange(length)[None] >= rng.integers(0, 3, rows)[:, None],
    age=rng.integers(0, 5, (rows, length), np.int32),
    numbers=rng.integers(0, 4, (rows, length, 1), np.int32),
    labels=rng.integers(0, 2, (rows, length, 2)).astype(np.float32),
    label_mask=rng.random((rows, length, 2)) < 0.8,
  )
  return batch_lib.UserContext(
    rng.integers(0, 4, (rows, 1), np.int32), events, None, None
  )


_USER = np.arange(2, dtype=np.int32)
_ITEMS = np.array([[1, 7, 4], [9, 0, 3]], np.int32)


def _with_events(context, **changes):
  events = dataclasses.replace(context.short, **changes)
  return dataclasses.replace(context, short=events)


@functools.cache
def _compiled(model):
  def call(params, context, user, items, catalogue):
    return model.apply(
      {'params': params}, context, user, items, catalogue, deterministic=True
    )

  return jax.jit(call)


def _logits(params, context, items=_ITEMS, model=None, catalogue=_CATALOGUE):
  user = np.arange(len(items), dtype=np.int32)
  output = _compiled(model or _model())(params, context, user, items, catalogue)
  return np.concatenate([output.towers, output.p[..., None]], axis=-1)


# --- Independent reference, one candidate at a time ---------------------------


def _norm(x, scale):
  return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def _item(p, item):
  tokens = [3 + _CATALOGUE.codes[item, 0], 6 + _CATALOGUE.codes[item, 1]]
  x = p['code_embedding'][tokens].sum(axis=0) + p['item_embedding'][item]
  for q, values in enumerate(_CATALOGUE.features.values):
    known = [v for v in values[item] if v > 0]
    if known:
      x = x + 0.5 * p['features'][f'feature_{q}'][known].mean(axis=0)
  return x  # 0.5: two levels and two features, 1 / sqrt(4)


def _event(p, events, b, n, vector):
  logged = events.label_mask[b, n]
  happened = events.labels[b, n] * logged
  table = p['events']
  parts = np.concatenate(
    [
      vector,
      table['number_0'][events.numbers[b, n, 0]],
      table['age'][events.age[b, n]],
      happened @ table['labels'][0] + logged @ table['labels'][1],
    ]
  )
  return _norm(vector + parts @ p['event_kernel'], p['event_norm']['scale'])


def _network(p, x):
  """Logits and last hidden states of all towers."""
  logits, states = [], []
  for t in range(len(p['out'])):
    hidden, i = x, 0
    while f'kernel_{i}' in p:
      hidden = np.maximum(hidden @ p[f'kernel_{i}'][t] + p[f'bias_{i}'][t], 0)
      i += 1
    logits.append(hidden @ p['out'][t] + p['out_bias'][t])
    states.append(hidden)
  return np.array(logits), np.concatenate(states)


def _reference(p, context, b, item, search_items=3):
  """Towers' logits, then that of the P-Score."""
  events, heads, width = context.short, 2, 4
  real = np.flatnonzero(events.mask[b])
  vectors = {n: _item(p['items'], events.items[b, n]) for n in real}
  target = _item(p['items'], item)
  found = sorted(real, key=lambda n: -(vectors[n] @ target))[:search_items]
  states = {n: _event(p, events, b, n, vectors[n]) for n in real}
  v = _norm(target, p['target_norm']['scale'])
  # Exact search unit.
  interest = np.zeros(8)
  net = p['search_attention']
  for h in range(heads):
    q, k, val = (net[name][:, h] for name in ('query', 'key', 'value'))
    scores = np.array([(v @ q) @ (states[n] @ k) for n in found])
    weights = np.exp(scores * width**-0.5)
    mixed = sum(
      w * (states[n] @ val)
      for w, n in zip(weights / weights.sum(), found, strict=True)
    )
    interest += mixed @ net['out'][h]
  # Short term.
  net, short = p['short_attention'], np.zeros(8)
  for n in real:
    e = states[n]
    hidden = sum(
      x @ kernel for x, kernel in zip((v, e, v * e), net['inner'], strict=True)
    )
    short += (np.maximum(hidden + net['bias'], 0) @ net['outer']) * e
  mean = sum(states.values()) / len(real)

  def user(part):
    row = part['features']['feature_0'][context.features[b, 0]]
    return row @ part['kernel']

  about = user(p['user'])
  x = [about, v, interest, short, v * interest, v * short, mean, v * mean]
  towers, hidden = _network(p['towers'], np.concatenate(x))
  own, about = _item(p['fusion_items'], item), user(p['fusion_user'])
  fused, _ = _network(
    p['fusion'], np.concatenate([hidden, about, own, about * own])
  )
  bias = 4 * p['item_bias'][item, :3]
  return np.concatenate([towers, fused]) + bias + bias @ p['bias_mix']


def test_logits_equal_the_formula_written_candidate_by_candidate(params):
  context = _context()
  wide = jax.tree.map(lambda x: x.astype(np.float64), params)
  got = _logits(params, context)
  assert got.shape == (2, 3, 3)
  for b, w in np.ndindex(2, 3):
    np.testing.assert_allclose(
      got[b, w],
      _reference(wide, context, b, _ITEMS[b, w]),
      rtol=1e-4,
      atol=1e-5,
    )


def test_a_fresh_model_predicts_its_biases():
  fresh = parameters.materialize(p_score.abstract_params(_model()), seed=0)
  fresh['towers']['out_bias'] = np.float32([-2, 1])
  fresh['fusion']['out_bias'] = np.float32([3])
  np.testing.assert_array_equal(
    _logits(fresh, _context()), np.broadcast_to([-2.0, 1.0, 3.0], (2, 3, 3))
  )


# --- Search -------------------------------------------------------------------


def test_soft_search_takes_the_best_and_of_equal_ones_the_latest():
  scores = jnp.array([[[5.0, 1.0, 3.0, 3.0, 3.0, 9.0]]])
  mask = jnp.array([[[True, True, True, True, True, False]]])
  # 9 is padding; 5 is the best; of the three 3s the last two.
  found = interest_search.nearest_events(scores, mask, count=3)
  np.testing.assert_array_equal(found[0, 0], [1, 0, 0, 1, 1, 0])
  everything = interest_search.nearest_events(scores, mask, count=6)
  np.testing.assert_array_equal(everything, mask)
  few = jnp.array([[[False, True, False, False, True, False]]])
  np.testing.assert_array_equal(
    interest_search.nearest_events(scores, few, count=3), few
  )


def test_soft_search_equals_a_sort_on_random_scores():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.integers(0, 6, (4, 5, 12)), jnp.float32)  # ties
  mask = rng.random((4, 1, 12)) < 0.7
  found = np.asarray(
    interest_search.nearest_events(scores, jnp.asarray(mask), count=4)
  )
  for b, w in np.ndindex(4, 5):
    real = np.flatnonzero(mask[b, 0])
    best = sorted(real, key=lambda n: (-scores[b, w, n], -n))[:4]
    assert set(np.flatnonzero(found[b, w])) == set(best)


def test_hard_search_takes_the_latest_events_with_a_value_of_the_item():
  events = jnp.array([[[1, 0], [2, 3], [3, 1], [0, 0], [4, 1]]])
  items = jnp.array([[[1, 2], [0, 0], [5, 0]]])
  shared = interest_search.shares_value(events, items)
  # Value 0 is none: the second candidate shares nothing.
  np.testing.assert_array_equal(shared[0], [[1, 1, 1, 0, 1], [0] * 5, [0] * 5])
  latest = interest_search.latest_events(shared, count=2)
  np.testing.assert_array_equal(latest[0, 0], [0, 0, 1, 0, 1])


def test_hard_search_ignores_events_of_other_values(params):
  model = _model(search='hard', search_items=6)
  context = _context()
  values = _CATALOGUE.features.values[0]
  soft, hard = (_logits(params, context, model=m) for m in (_model(), model))
  for b, w in np.ndindex(2, 3):
    real = np.flatnonzero(context.short.mask[b])
    wanted = set(values[_ITEMS[b, w]]) - {0}
    shared = [
      n for n in real if wanted & set(values[context.short.items[b, n]])
    ]
    assert (hard[b, w] != soft[b, w]).any() or len(shared) == 3
  # An item without any value finds nothing: no interest, and finite.
  none = jax.tree.map(np.copy, _CATALOGUE)
  none.features.values[0][:] = 0
  assert np.isfinite(
    _logits(params, context, model=model, catalogue=none)
  ).all()


def test_hard_search_without_item_features_says_what_to_name():
  pathways = dataclasses.replace(_GENERATOR, item_features=())
  model = _model(
    pathways=pathways, sizes=_SIZES._replace(items=()), search='hard'
  )
  with pytest.raises(
    ValueError, match=r'name one, or set p_score_model\.search'
  ):
    p_score.abstract_params(model)


# --- Masks, order, candidates -------------------------------------------------


def test_padding_equals_leaving_it_out(params):
  context = _context()
  context = _with_events(
    context, mask=np.broadcast_to(np.arange(6) >= 2, (2, 6))
  )
  events = context.short
  cut = {
    f.name: getattr(events, f.name)[:, 2:]
    for f in dataclasses.fields(events)
    if getattr(events, f.name) is not None
  }
  np.testing.assert_allclose(
    _logits(params, context),
    _logits(params, _with_events(context, **cut)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_what_lies_under_the_mask_does_not_matter(params):
  context = _with_events(
    _context(), mask=np.broadcast_to(np.arange(6) >= 3, (2, 6))
  )
  other = _context(seed=9).short
  hidden = ~context.short.mask
  mixed = {}
  for name in ('items', 'age', 'numbers', 'labels', 'label_mask'):
    mine, theirs = getattr(context.short, name), getattr(other, name)
    where = hidden.reshape(hidden.shape + (1,) * (mine.ndim - 2))
    mixed[name] = np.where(where, theirs, mine)
  np.testing.assert_array_equal(
    _logits(params, context), _logits(params, _with_events(context, **mixed))
  )


def test_order_of_events_does_not_matter_beside_their_age(params):
  context = _context()
  events = context.short
  turned = {
    f.name: getattr(events, f.name)[:, ::-1]
    for f in dataclasses.fields(events)
    if getattr(events, f.name) is not None
  }
  np.testing.assert_allclose(
    _logits(params, context),
    _logits(params, _with_events(context, **turned)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_everything_that_is_given_matters(params):
  context, base = _context(), _logits(params, _context())
  events = context.short
  changes = (
    _with_events(context, items=(events.items + 1) % _NUM_ITEMS),
    _with_events(context, age=(events.age + 1) % 5),
    _with_events(context, numbers=(events.numbers + 1) % 4),
    _with_events(context, labels=1 - events.labels),
    _with_events(context, label_mask=~events.label_mask),
    dataclasses.replace(context, features=(context.features + 1) % 4),
  )
  for changed in changes:
    assert np.abs(_logits(params, changed) - base).max() > 1e-4
  assert (
    np.abs(_logits(params, context, catalogue=_catalogue(6)) - base).max()
    > 1e-4
  )


def test_scores_of_many_candidates_equal_those_one_by_one(params):
  context = _context()
  together = _logits(params, context)
  for w in range(3):
    alone = _logits(params, context, items=_ITEMS[:, w : w + 1])
    np.testing.assert_allclose(
      alone[:, 0], together[:, w], rtol=1e-5, atol=1e-5
    )


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


def test_events_are_not_repeated_per_candidate(params):
  rows, length, candidates, embed = 2, 200, 64, 8
  wide = np.zeros((rows, length), np.int32)
  events = batch_lib.EventSequence(
    wide,
    np.ones(wide.shape, bool),
    wide,
    wide[..., None],
    np.zeros((rows, length, 2), np.float32),
    np.ones((rows, length, 2), bool),
  )
  context = dataclasses.replace(_context(), short=events)
  items = np.zeros((rows, candidates), np.int32)
  jaxpr = jax.make_jaxpr(_compiled(_model()))(
    params, context, _USER, items, _CATALOGUE
  )
  repeated = rows * candidates * length * embed
  assert _largest_array(jaxpr.jaxpr) < repeated // 2


# --- Gradients and dropout ----------------------------------------------------


@functools.partial(jax.jit, static_argnames=('model', 'part'))
def _gradients(params, context, *, model, part):
  def total(params):
    output = model.apply(
      {'params': params},
      context,
      jnp.asarray(_USER),
      jnp.asarray(_ITEMS),
      _CATALOGUE_ON_DEVICE,
      deterministic=True,
    )
    parts = {
      'p': jnp.sum(jnp.sin(output.p)),
      'towers': jnp.sum(jnp.sin(output.towers)),
    }
    return sum(parts.values()) if part == 'all' else parts[part]

  return jax.grad(total)(params)


def _reached(gradients):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, g in jax.tree_util.tree_leaves_with_path(gradients)
    if np.any(g)
  }


def test_the_score_teaches_towers_and_tables_nothing_by_default(params):
  context = _context()
  gradients = _gradients(params, context, model=_model(), part='p')
  # Of the items' biases only the score's own, behind those of two towers.
  assert not np.any(gradients['item_bias'][:, :2])
  assert np.any(gradients['item_bias'][:, 2])
  stopped = _reached(gradients)
  assert 'item_bias' in stopped and 'fusion/kernel_0' in stopped
  others = stopped - {'item_bias', 'bias_mix'}
  assert all(name.startswith('fusion') for name in others)
  joint = _model(stop_gradient_towers=False)
  reached = _reached(_gradients(params, context, model=joint, part='p'))
  assert {'towers/kernel_0', 'items/code_embedding', 'event_kernel'} <= reached
  # The towers' logits are not what the fusion reads.
  assert 'towers/out' not in reached


def test_gradients_reach_every_parameter_and_are_finite(params):
  gradients = _gradients(params, _context(), model=_model(), part='all')
  names = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  assert _reached(gradients) == names


def test_users_without_events_get_finite_scores_and_gradients(params):
  context = _with_events(_context(), mask=np.zeros((2, 6), bool))
  gradients = _gradients(params, context, model=_model(), part='all')
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  assert np.isfinite(_logits(params, context)).all()
  assert not np.any(gradients['search_attention']['value'])
  assert not np.any(gradients['event_kernel'])


def test_dropout_depends_on_the_key_and_evaluation_has_none(params):
  model, context = _model(), _context()

  @jax.jit
  def train(key):
    return model.apply(
      {'params': params},
      jax.tree.map(jnp.asarray, context),
      jnp.asarray(_USER),
      jnp.asarray(_ITEMS),
      _CATALOGUE_ON_DEVICE,
      deterministic=False,
      rngs={'dropout': key},
    )

  first, again, other = (train(jax.random.key(k)) for k in (0, 0, 1))
  for name in ('p', 'towers'):
    a, b, c = (getattr(x, name) for x in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
  assert (first.towers != _logits(params, context)[..., :2]).any()


# --- Settings -----------------------------------------------------------------


def test_without_any_feature_items_and_codes_are_left():
  bare = config_lib.PathwaysConfig(age_dim=0)
  sizes = batch_lib.FeatureSizes(_NUM_ITEMS, (), ())
  model = _model(pathways=bare, sizes=sizes, tower_dims=(), fusion_dims=())
  params = _params(model)
  assert 'kernel' not in params.get('user', {})
  events = dataclasses.replace(
    _context().short,
    numbers=np.zeros((2, 6, 0), np.int32),
    labels=np.zeros((2, 6, 0), np.float32),
    label_mask=np.zeros((2, 6, 0), bool),
  )
  context = batch_lib.UserContext(
    np.zeros((2, 0), np.int32), events, None, None
  )
  plain = dataclasses.replace(_CATALOGUE, features=None)
  got = _logits(params, context, model=model, catalogue=plain)
  assert np.isfinite(got).all() and np.unique(got[..., 0]).size > 1


def test_one_long_pathway_is_read_and_no_user_id():
  read = p_score.pathways_of(_CONFIG, _GENERATOR)
  assert (read.short_length, read.positive_length, read.lifelong_length) == (
    _CONFIG.history_length, 0, 0
  )  # fmt: skip
  assert read.user_id_buckets == 0
  assert [f.dim for f in read.item_features] == [8, 8]
  assert [f.max_values for f in read.item_features] == [2, 1]
  assert (read.label_dim, read.age_dim, read.event_features[0].dim) == (2, 2, 2)
  no_age = dataclasses.replace(_GENERATOR, age_dim=0)
  assert p_score.pathways_of(_CONFIG, no_age).age_dim == 0


def test_a_context_without_recent_events_is_refused(params):
  context = dataclasses.replace(_context(), short=None)
  with pytest.raises(ValueError, match=r'p_score\.pathways_of'):
    _logits(params, context)


def test_sharded_scores_equal_those_of_one_device(params):
  mesh = meshes.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))
  context = _context(rows=8)
  items = np.arange(16, dtype=np.int32).reshape(8, 2) % _NUM_ITEMS
  want = _logits(params, context, items=items)
  model = _model(mesh=mesh)
  names = parameters.logical_names(p_score.abstract_params(model))
  placed = sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )
  table = placed['items']['code_embedding']
  assert table.addressable_shards[0].data.shape == (table.shape[0], 2)
  user = np.arange(8, dtype=np.int32)
  output = _compiled(model)(
    placed,
    *sharding.place_batch((context, user, items), mesh),
    sharding.place(
      _CATALOGUE,
      jax.tree.map(lambda _: sharding.replicated(mesh), _CATALOGUE),
    ),
  )
  np.testing.assert_allclose(output.towers, want[..., :2], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(output.p, want[..., 2], rtol=1e-4, atol=1e-5)
