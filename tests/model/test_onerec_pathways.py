"""OneRec with the encoder of the technical report, both FFN placements."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary

_ITEMS, _ROWS, _LEVELS = 9, 8, 2
_SIZES = batch_lib.FeatureSizes(num_items=_ITEMS, users=(3,), items=(4, 5))
_MODEL = config.ModelConfig(
  encoder='pathways',
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=2,
  decoder_layers=1,
  mlp_dim=16,
  dropout_rate=0.0,
  attention_dropout_rate=0.0,
  moe=config.MoEConfig(
    num_experts=4, top_k=2, expert_dim=8, activation='swiglu', gate='sigmoid'
  ),
  pathways=config.PathwaysConfig(
    user_features=(config.UserFeature('age', dim=4),),
    item_features=(
      config.ItemFeature('aid', 'author:', dim=4, max_values=1),
      config.ItemFeature('tag', 'tag:', dim=4, max_values=2, average=True),
    ),
    event_features=(config.EventFeature('watch_time', dim=4, buckets=5),),
    labels=('like',),
    label_dim=4,
    age_dim=4,
    age_buckets=6,
    short_length=3,
    positive_length=4,
    lifelong_length=5,
    lifelong_queries=2,
    lifelong_layers=1,
  ),
)


def _model(location='decoder', mesh=None, **changes):
  moe = dataclasses.replace(_MODEL.moe, location=location)
  return onerec.OneRec(
    config=dataclasses.replace(_MODEL, moe=moe, **changes),
    vocabulary=vocabulary.Vocabulary((4, 3)),
    items_per_session=1,
    mesh=mesh,
    sizes=_SIZES,
  )


def _events(random, length, *, clusters=False):
  shape = (_ROWS, length)
  known = np.arange(length) >= random.integers(0, length, (_ROWS, 1))
  weights = random.random((*shape, 1, 2)).astype(np.float32)
  return batch_lib.EventSequence(
    items=random.integers(0, _ITEMS, shape, np.int32),
    mask=known,
    age=random.integers(0, 7, shape, np.int32),
    numbers=random.integers(0, 6, (*shape, 1), np.int32),
    labels=random.integers(0, 2, (*shape, 1)).astype(np.float32),
    label_mask=random.random((*shape, 1)) < 0.8,
    categories=(
      random.integers(0, 5, (*shape, 1, 2), np.int32) if clusters else None
    ),
    category_weights=weights / weights.sum(-1, keepdims=True)
    if clusters
    else None,
  )


@pytest.fixture(scope='module')
def inputs():
  random = np.random.default_rng(0)
  users = batch_lib.SessionBatch(
    example_id=np.arange(_ROWS, dtype=np.int32),
    user=np.arange(_ROWS, dtype=np.int32),
    history_items=np.zeros((_ROWS, 2), np.int32),
    history_mask=np.ones((_ROWS, 2), bool),
    target_items=np.zeros((_ROWS, 1), np.int32),
    target_mask=np.ones((_ROWS, 1), bool),
    example_mask=np.ones(_ROWS, bool),
    context=batch_lib.UserContext(
      features=random.integers(0, 3, (_ROWS, 1), np.int32),
      short=_events(random, 3),
      positive=_events(random, 4),
      lifelong=_events(random, 5, clusters=True),
    ),
  )
  catalogue = batch_lib.Catalogue(
    jnp.asarray(
      np.stack([np.arange(_ITEMS) % 4, np.arange(_ITEMS) % 3], 1), jnp.int32
    ),
    batch_lib.ItemFeatures(
      (
        jnp.asarray(random.integers(0, 4, (_ITEMS, 1)), jnp.int32),
        jnp.asarray(random.integers(0, 5, (_ITEMS, 2)), jnp.int32),
      )
    ),
  )
  targets = random.integers(0, 3, (_ROWS, 1, _LEVELS), np.int32)
  return users, catalogue, jnp.asarray(targets)


def _params(model):
  return parameters.materialize(onerec.abstract_params(model), seed=0)


def _call(model):
  @jax.jit
  def call(params, users, catalogue, targets, bias):
    return model.apply(
      {'params': params},
      encoder_input.of_batch(users, catalogue),
      targets,
      jnp.ones(targets.shape[:2], bool),
      bias,
      deterministic=True,
    )

  return call


def _bias(model):
  return jnp.asarray(onerec.initial_router_bias(model.config))


@pytest.mark.parametrize(('location', 'layers'), [('decoder', 1), ('both', 3)])
def test_router_counts_the_layers_that_have_experts(inputs, location, layers):
  model = _model(location)
  users, catalogue, targets = inputs
  output = _call(model)(_params(model), users, catalogue, targets, _bias(model))
  assert output.router.load.shape == (layers, 4)
  assert output.logits.shape == (_ROWS, 1, _LEVELS, 4)
  tokens = (_LEVELS + 1) * _ROWS
  np.testing.assert_allclose(output.router.load[-1].sum(), 2 * tokens)
  if location == 'both':  # every real encoder token takes two slots
    context = users.context
    real = _ROWS + context.short.mask.sum() + context.positive.mask.sum()
    real += 2 * context.lifelong.mask.any(1).sum()  # the queries
    np.testing.assert_allclose(output.router.load[0].sum(), 2 * real)


def test_every_pathway_and_feature_is_read(inputs):
  model = _model()
  users, catalogue, targets = inputs
  call, params, bias = _call(model), _params(model), _bias(model)
  before = call(params, users, catalogue, targets, bias).logits

  def changed(**parts):
    context = dataclasses.replace(users.context, **parts)
    other = dataclasses.replace(users, context=context)
    return np.abs(call(params, other, catalogue, targets, bias).logits - before)

  context = users.context
  assert changed(features=(context.features + 1) % 3).max() > 1e-4
  for name in ('short', 'positive', 'lifelong'):
    events = getattr(context, name)
    for field, value in (
      ('items', (events.items + 1) % _ITEMS),
      ('age', (events.age + 1) % 7),
      ('numbers', (events.numbers + 1) % 6),
      ('labels', 1 - events.labels),
    ):
      moved = dataclasses.replace(events, **{field: value})
      assert changed(**{name: moved}).max() > 1e-5, (name, field)


def test_history_of_v1_is_not_read(inputs):
  model = _model()
  users, catalogue, targets = inputs
  call, params, bias = _call(model), _params(model), _bias(model)
  other = dataclasses.replace(users, history_items=users.history_items + 1)
  np.testing.assert_array_equal(
    call(params, users, catalogue, targets, bias).logits,
    call(params, other, catalogue, targets, bias).logits,
  )


@pytest.mark.parametrize('location', ['decoder', 'both'])
def test_decoding_step_by_step_equals_teacher_forcing(inputs, location):
  model = _model(location)
  users, catalogue, targets = inputs
  params, bias = _params(model), _bias(model)
  want = jax.nn.log_softmax(
    _call(model)(params, users, catalogue, targets, bias).logits, axis=-1
  )

  @jax.jit
  def decode(params, users, catalogue, targets, bias):
    apply = lambda *args, method: model.apply(  # noqa: E731
      {'params': params}, *args, method=method
    )
    inputs = encoder_input.of_batch(users, catalogue)
    encoded = apply(inputs, bias, method='encode')
    none = targets[:, :0]
    context = apply(
      encoded, none, jnp.zeros(none.shape[:2], bool), bias,
      method='start_decoding',
    )  # fmt: skip
    cache = model.init_cache(batch=_ROWS, beams=1, length=_LEVELS + 1)
    found = []
    for level in range(_LEVELS):
      log_probs, cache = apply(
        targets[..., :level], jnp.asarray(level), cache, context, bias,
        method='decode_step',
      )  # fmt: skip
      found.append(log_probs)
    return jnp.stack(found, axis=2)

  got = decode(params, users, catalogue, targets, bias)
  for level, size in enumerate((4, 3)):
    np.testing.assert_allclose(
      got[:, :, level, :size], want[:, :, level, :size], rtol=2e-5, atol=2e-5
    )


def test_items_of_the_pathways_are_read_with_their_whole_ids(inputs):
  users, catalogue, _ = jax.tree.map(jnp.asarray, inputs)
  model = _model(id_buckets=64)
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  bias = jnp.asarray(onerec.initial_router_bias(model.config))

  def total(table):
    encoded = model.apply(
      {'params': {**params, 'id_embedding': table}},
      encoder_input.of_batch(users, catalogue),
      bias,
      method='encode',
    )
    return jnp.sum(jnp.sin(encoded.states))

  gradient = jax.jit(jax.grad(total))(params['id_embedding'])
  context = users.context
  items = np.concatenate(
    [
      np.asarray(events.items)[np.asarray(events.mask)]
      for events in (context.short, context.positive, context.lifelong)
    ]
  )
  read = vocabulary.id_bucket(catalogue.codes[np.unique(items)], 64)
  got = np.flatnonzero(np.abs(np.asarray(gradient)).max(-1))
  assert got.tolist() == np.unique(read).tolist()


def test_sharded_model_equals_one_device(inputs):
  users, catalogue, targets = inputs
  single = _model('both')
  params, bias = _params(single), _bias(single)
  want = _call(single)(params, users, catalogue, targets, bias)
  mesh = meshes.make_mesh(config.MeshConfig(data=2, fsdp=2, expert=2))
  model = _model('both', mesh)
  names = parameters.logical_names(onerec.abstract_params(model))
  placed = sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )
  rows, codes = sharding.place_batch((users, np.asarray(targets)), mesh)
  got = _call(model)(placed, rows, catalogue, codes, bias)
  np.testing.assert_allclose(got.logits, want.logits, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(got.router.load, want.router.load)


def test_a_batch_without_context_is_an_error_that_says_so(inputs):
  users, catalogue, targets = inputs
  model = _model()
  bare = dataclasses.replace(users, context=None)
  with pytest.raises(ValueError, match='context'):
    _call(model)(_params(model), bare, catalogue, targets, _bias(model))
