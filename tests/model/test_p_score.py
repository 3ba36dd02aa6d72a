"""P-Score model: its formula, masks, candidates and gradients.

What runs the model stays in this file: elsewhere it would compile again.
"""

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
from onerec_jax.model import linear_part
from onerec_jax.model import p_score
from onerec_jax.model import parameters


@pytest.fixture(name='tiny', scope='module')
def fixture_tiny(tiny_p_score):
  return tiny_p_score


@pytest.fixture(scope='module')
def params(tiny):
  return tiny.make_params(tiny.make_model())


def test_logits_equal_the_formula_written_candidate_by_candidate(tiny, params):
  context = tiny.make_context()
  wide = jax.tree.map(lambda x: x.astype(np.float64), params)
  got = tiny.logits_of(params, context)
  assert got.shape == (2, 3, 3)
  for b, w in np.ndindex(2, 3):
    np.testing.assert_allclose(
      got[b, w],
      tiny.reference(wide, context, b, tiny.ITEMS[b, w]),
      rtol=1e-4,
      atol=1e-5,
    )


def test_a_fresh_model_predicts_its_biases(tiny):
  fresh = parameters.materialize(
    p_score.abstract_params(tiny.make_model()), seed=0
  )
  fresh['towers']['out_bias'] = np.float32([-2, 1])
  fresh['fusion']['out_bias'] = np.float32([3])
  np.testing.assert_array_equal(
    tiny.logits_of(fresh, tiny.make_context()),
    np.broadcast_to([-2.0, 1.0, 3.0], (2, 3, 3)),
  )


def test_outside_training_the_towers_are_averaged_with_the_linear_part(
  tiny, params
):
  context = tiny.make_context()
  model = tiny.make_model(linear_strengths=(0.1,), dropout_rate=0.0)
  rng = np.random.default_rng(3)
  tables = {
    name: rng.normal(size=box.value.shape).astype(np.float32)
    for name, box in p_score.abstract_params(model)['linear'].items()
  }
  alone = tiny.logits_of(params, context)
  both = {**params, 'linear': tables}
  part = linear_part.LinearPart(2, model.pathways, tiny.SIZES)
  linear = jax.jit(part.apply)(
    {'params': tables}, context.features, context.short, tiny.ITEMS
  )
  got = tiny.logits_of(both, context, model=model)
  np.testing.assert_allclose(
    got[..., :2], (alone[..., :2] + linear) / 2, rtol=1e-5, atol=1e-6
  )
  # The score reads what the towers have learnt.
  np.testing.assert_allclose(got[..., 2], alone[..., 2], rtol=1e-5, atol=1e-6)
  train = jax.jit(functools.partial(model.apply, deterministic=False))
  trained = train(
    {'params': both}, context, tiny.USER, tiny.ITEMS, tiny.CATALOGUE
  )
  np.testing.assert_allclose(
    trained.towers, alone[..., :2], rtol=1e-5, atol=1e-6
  )


# --- Search -------------------------------------------------------------------


def test_hard_search_ignores_events_of_other_values(tiny, params):
  model = tiny.make_model(search='hard', search_items=6)
  context = tiny.make_context()
  values = tiny.CATALOGUE.features.values[0]
  soft, hard = (
    tiny.logits_of(params, context, model=m) for m in (tiny.make_model(), model)
  )
  for b, w in np.ndindex(2, 3):
    real = np.flatnonzero(context.short.mask[b])
    wanted = set(values[tiny.ITEMS[b, w]]) - {0}
    shared = [
      n for n in real if wanted & set(values[context.short.items[b, n]])
    ]
    assert (hard[b, w] != soft[b, w]).any() or len(shared) == 3
  # An item without any value finds nothing: no interest, and finite.
  none = jax.tree.map(np.copy, tiny.CATALOGUE)
  none.features.values[0][:] = 0
  assert np.isfinite(
    tiny.logits_of(params, context, model=model, catalogue=none)
  ).all()


def test_hard_search_without_item_features_says_what_to_name(tiny):
  pathways = dataclasses.replace(tiny.GENERATOR, item_features=())
  model = tiny.make_model(
    pathways=pathways, sizes=tiny.SIZES._replace(items=()), search='hard'
  )
  with pytest.raises(
    ValueError, match=r'name one, or set p_score_model\.search'
  ):
    p_score.abstract_params(model)


# --- Masks, order, candidates -------------------------------------------------


def test_padding_equals_leaving_it_out(tiny, params):
  context = tiny.make_context()
  context = tiny.with_events(
    context, mask=np.broadcast_to(np.arange(6) >= 2, (2, 6))
  )
  events = context.short
  cut = {
    f.name: getattr(events, f.name)[:, 2:]
    for f in dataclasses.fields(events)
    if getattr(events, f.name) is not None
  }
  np.testing.assert_allclose(
    tiny.logits_of(params, context),
    tiny.logits_of(params, tiny.with_events(context, **cut)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_what_lies_under_the_mask_does_not_matter(tiny, params):
  context = tiny.with_events(
    tiny.make_context(), mask=np.broadcast_to(np.arange(6) >= 3, (2, 6))
  )
  other = tiny.make_context(seed=9).short
  hidden = ~context.short.mask
  mixed = {}
  for name in ('items', 'age', 'numbers', 'labels', 'label_mask'):
    mine, theirs = getattr(context.short, name), getattr(other, name)
    where = hidden.reshape(hidden.shape + (1,) * (mine.ndim - 2))
    mixed[name] = np.where(where, theirs, mine)
  np.testing.assert_array_equal(
    tiny.logits_of(params, context),
    tiny.logits_of(params, tiny.with_events(context, **mixed)),
  )


def test_order_of_events_does_not_matter_beside_their_age(tiny, params):
  context = tiny.make_context()
  events = context.short
  turned = {
    f.name: getattr(events, f.name)[:, ::-1]
    for f in dataclasses.fields(events)
    if getattr(events, f.name) is not None
  }
  np.testing.assert_allclose(
    tiny.logits_of(params, context),
    tiny.logits_of(params, tiny.with_events(context, **turned)),
    rtol=1e-5,
    atol=1e-5,
  )


def test_everything_that_is_given_matters(tiny, params):
  context, base = (
    tiny.make_context(),
    tiny.logits_of(params, tiny.make_context()),
  )
  events = context.short
  changes = (
    tiny.with_events(context, items=(events.items + 1) % tiny.NUM_ITEMS),
    tiny.with_events(context, age=(events.age + 1) % 5),
    tiny.with_events(context, numbers=(events.numbers + 1) % 4),
    tiny.with_events(context, labels=1 - events.labels),
    tiny.with_events(context, label_mask=~events.label_mask),
    dataclasses.replace(context, features=(context.features + 1) % 4),
  )
  for changed in changes:
    assert np.abs(tiny.logits_of(params, changed) - base).max() > 1e-4
  assert (
    np.abs(
      tiny.logits_of(params, context, catalogue=tiny.make_catalogue(6)) - base
    ).max()
    > 1e-4
  )


def test_scores_of_many_candidates_equal_those_one_by_one(tiny, params):
  context = tiny.make_context()
  together = tiny.logits_of(params, context)
  for w in range(3):
    alone = tiny.logits_of(params, context, items=tiny.ITEMS[:, w : w + 1])
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


def test_events_are_not_repeated_per_candidate(tiny, params):
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
  context = dataclasses.replace(tiny.make_context(), short=events)
  items = np.zeros((rows, candidates), np.int32)
  jaxpr = jax.make_jaxpr(tiny.compiled(tiny.make_model()))(
    params, context, tiny.USER, items, tiny.CATALOGUE
  )
  repeated = rows * candidates * length * embed
  assert _largest_array(jaxpr.jaxpr) < repeated // 2


# --- Gradients and dropout ----------------------------------------------------


@pytest.fixture(name='gradients_of', scope='module')
def fixture_gradients_of(tiny):
  """Function (params, context, *, model, part) -> gradients."""

  @functools.partial(jax.jit, static_argnames=('model', 'part'))
  def run(params, context, *, model, part):
    def total(params):
      output = model.apply(
        {'params': params},
        context,
        jnp.asarray(tiny.USER),
        jnp.asarray(tiny.ITEMS),
        tiny.CATALOGUE_ON_DEVICE,
        deterministic=True,
      )
      parts = {
        'p': jnp.sum(jnp.sin(output.p)),
        'towers': jnp.sum(jnp.sin(output.towers)),
      }
      return sum(parts.values()) if part == 'all' else parts[part]

    return jax.grad(total)(params)

  return run


def _reached(gradients):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, g in jax.tree_util.tree_leaves_with_path(gradients)
    if np.any(g)
  }


def test_the_score_teaches_towers_and_tables_nothing_by_default(
  tiny, gradients_of, params
):
  context = tiny.make_context()
  gradients = gradients_of(params, context, model=tiny.make_model(), part='p')
  # Of the items' biases only the score's own, behind those of two towers.
  assert not np.any(gradients['item_bias'][:, :2])
  assert np.any(gradients['item_bias'][:, 2])
  stopped = _reached(gradients)
  assert 'item_bias' in stopped and 'fusion/kernel_0' in stopped
  others = stopped - {'item_bias', 'bias_mix'}
  assert all(name.startswith('fusion') for name in others)
  joint = tiny.make_model(stop_gradient_towers=False)
  reached = _reached(gradients_of(params, context, model=joint, part='p'))
  assert {'towers/kernel_0', 'items/code_embedding', 'event_kernel'} <= reached
  # The towers' logits are not what the fusion reads.
  assert 'towers/out' not in reached


def test_towers_teach_each_others_item_biases_but_not_that_of_the_score(
  tiny, params
):
  context = tiny.make_context()

  def first_tower(params):
    output = tiny.compiled(tiny.make_model())(
      params, context, tiny.USER, tiny.ITEMS, tiny.CATALOGUE
    )
    return jnp.sum(jnp.sin(output.towers[..., 0]))

  gradients = jax.grad(first_tower)(params)['item_bias']
  shown = np.unique(tiny.ITEMS)
  # Columns: two towers, the score, and what fills the table up to 8.
  assert gradients[shown, 0].all() and gradients[shown, 1].all()
  assert not gradients[:, 2:].any()


def test_gradients_reach_every_parameter_and_are_finite(
  tiny, gradients_of, params
):
  gradients = gradients_of(
    params, tiny.make_context(), model=tiny.make_model(), part='all'
  )
  names = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  assert _reached(gradients) == names


def test_users_without_events_get_finite_scores_and_gradients(
  tiny, gradients_of, params
):
  context = tiny.with_events(tiny.make_context(), mask=np.zeros((2, 6), bool))
  gradients = gradients_of(params, context, model=tiny.make_model(), part='all')
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  assert np.isfinite(tiny.logits_of(params, context)).all()
  assert not np.any(gradients['search_attention']['value'])
  assert not np.any(gradients['event_kernel'])


def test_dropout_depends_on_the_key_and_evaluation_has_none(tiny, params):
  model, context = tiny.make_model(), tiny.make_context()

  @jax.jit
  def train(key):
    return model.apply(
      {'params': params},
      jax.tree.map(jnp.asarray, context),
      jnp.asarray(tiny.USER),
      jnp.asarray(tiny.ITEMS),
      tiny.CATALOGUE_ON_DEVICE,
      deterministic=False,
      rngs={'dropout': key},
    )

  first, again, other = (train(jax.random.key(k)) for k in (0, 0, 1))
  for name in ('p', 'towers'):
    a, b, c = (getattr(x, name) for x in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
  assert (first.towers != tiny.logits_of(params, context)[..., :2]).any()


# --- Settings -----------------------------------------------------------------


def test_without_any_feature_items_and_codes_are_left(tiny):
  bare = config_lib.PathwaysConfig(age_dim=0)
  sizes = batch_lib.FeatureSizes(tiny.NUM_ITEMS, (), ())
  model = tiny.make_model(
    pathways=bare, sizes=sizes, tower_dims=(), fusion_dims=()
  )
  params = tiny.make_params(model)
  assert 'kernel' not in params.get('user', {})
  events = dataclasses.replace(
    tiny.make_context().short,
    numbers=np.zeros((2, 6, 0), np.int32),
    labels=np.zeros((2, 6, 0), np.float32),
    label_mask=np.zeros((2, 6, 0), bool),
  )
  context = batch_lib.UserContext(
    np.zeros((2, 0), np.int32), events, None, None
  )
  plain = dataclasses.replace(tiny.CATALOGUE, features=None)
  got = tiny.logits_of(params, context, model=model, catalogue=plain)
  assert np.isfinite(got).all() and np.unique(got[..., 0]).size > 1


def test_one_long_pathway_is_read_and_no_user_id(tiny):
  read = p_score.pathways_of(tiny.CONFIG, tiny.GENERATOR)
  assert (read.short_length, read.positive_length, read.lifelong_length) == (
    tiny.CONFIG.history_length, 0, 0
  )  # fmt: skip
  assert read.user_id_buckets == 0
  assert [f.dim for f in read.item_features] == [8, 8]
  assert [f.max_values for f in read.item_features] == [2, 1]
  assert (read.label_dim, read.age_dim, read.event_features[0].dim) == (2, 2, 2)
  no_age = dataclasses.replace(tiny.GENERATOR, age_dim=0)
  assert p_score.pathways_of(tiny.CONFIG, no_age).age_dim == 0


def test_a_context_without_recent_events_is_refused(tiny, params):
  context = dataclasses.replace(tiny.make_context(), short=None)
  with pytest.raises(ValueError, match=r'p_score\.pathways_of'):
    tiny.logits_of(params, context)


def test_sharded_scores_equal_those_of_one_device(tiny, params):
  mesh = meshes.make_mesh(config_lib.MeshConfig(data=2, fsdp=4))
  context = tiny.make_context(rows=8)
  items = np.arange(16, dtype=np.int32).reshape(8, 2) % tiny.NUM_ITEMS
  want = tiny.logits_of(params, context, items=items)
  model = tiny.make_model(mesh=mesh)
  names = parameters.logical_names(p_score.abstract_params(model))
  placed = sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )
  table = placed['items']['code_embedding']
  assert table.addressable_shards[0].data.shape == (table.shape[0], 2)
  user = np.arange(8, dtype=np.int32)
  output = tiny.compiled(model)(
    placed,
    *sharding.place_batch((context, user, items), mesh),
    sharding.place(
      tiny.CATALOGUE,
      jax.tree.map(lambda _: sharding.replicated(mesh), tiny.CATALOGUE),
    ),
  )
  np.testing.assert_allclose(output.towers, want[..., :2], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(output.p, want[..., 2], rtol=1e-4, atol=1e-5)
