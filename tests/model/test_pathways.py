"""The encoder of the technical report: tokens, masks, experts, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters
from onerec_jax.model import pathway_encoder
from onerec_jax.model import pathways

D, B, ITEMS, EXPERTS = 16, 8, 9, 4
SHORT, POSITIVE, LIFELONG, QUERIES = 3, 4, 5, 2
TOKENS = 1 + SHORT + POSITIVE + QUERIES
PATHWAYS = config.PathwaysConfig(
  user_features=(config.UserFeature(column='age', dim=8),),
  item_features=(config.ItemFeature(name='tag', dim=8, average=True),),
  event_features=(config.EventFeature(column='play_time', dim=8, buckets=6),),
  labels=('is_like', 'is_follow'),
  label_dim=8,
  age_dim=8,
  age_buckets=7,
  short_length=SHORT,
  positive_length=POSITIVE,
  lifelong_length=LIFELONG,
  lifelong_queries=QUERIES,
  lifelong_layers=1,
)
CONFIG = config.ModelConfig(
  encoder='pathways',
  pathways=PATHWAYS,
  embed_dim=D,
  num_heads=2,
  head_dim=8,
  encoder_layers=2,
  mlp_dim=24,
  mlp_activation='gelu',
  moe=config.MoEConfig(
    num_experts=EXPERTS,
    expert_dim=16,
    activation='swiglu',
    gate='sigmoid',
    dispatch='dense',  # compiles soonest; test_onerec.py has the others
  ),
  dropout_rate=0.1,
)
SIZES = batch.FeatureSizes(num_items=ITEMS, users=(5,), items=(7,))
VECTORS = np.random.default_rng(7).normal(size=(ITEMS, D)).astype(np.float32)


def vectors(items):
  return jnp.asarray(VECTORS)[items]


def make_events(random, length, lengths, *, clusters=False):
  mask = np.arange(length) >= length - np.asarray(lengths)[:, None]
  shape = mask.shape
  logged = random.random((*shape, 2)) < 0.7
  extra = {}
  if clusters:
    weights = random.random((*shape, 1, 3))
    extra = {
      'categories': random.integers(1, 7, (*shape, 1, 3)).astype(np.int32),
      'category_weights': (weights / weights.sum(-1, keepdims=True)).astype(
        np.float32
      ),
    }
  return batch.EventSequence(
    items=(random.integers(0, ITEMS, shape) * mask).astype(np.int32),
    mask=mask,
    age=random.integers(0, 8, shape).astype(np.int32),
    numbers=random.integers(0, 7, (*shape, 1)).astype(np.int32),
    labels=(random.random((*shape, 2)) < 0.5).astype(np.float32),
    label_mask=logged,
    **extra,
  )


def make_context(seed=0):
  """The first user has no event; the second has some of every kind."""
  random = np.random.default_rng(seed)

  def lengths(most):
    return np.concatenate([[0, most], random.integers(1, most + 1, B - 2)])

  return batch.UserContext(
    features=random.integers(0, 5, (B, 1)).astype(np.int32),
    short=make_events(random, SHORT, lengths(SHORT)),
    positive=make_events(random, POSITIVE, lengths(POSITIVE)),
    lifelong=make_events(random, LIFELONG, lengths(LIFELONG), clusters=True),
  )


CONTEXT = make_context()


def with_clusters(count):
  """CONTEXT with the latest clusters only."""
  latest = jax.tree.map(lambda x: x[:, LIFELONG - count :], CONTEXT.lifelong)
  return dataclasses.replace(CONTEXT, lifelong=latest if count else None)


FEATURES = batch.ItemFeatures(
  (np.random.default_rng(3).integers(0, 7, (ITEMS, 2)).astype(np.int32),)
)
USER = np.arange(B, dtype=np.int32)
BIAS = np.random.default_rng(5).normal(0, 0.01, (2, EXPERTS))
BIAS = jnp.asarray(BIAS, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Case:
  """An encoder with parameters."""

  model: pathway_encoder.PathwayEncoder
  boxes: dict
  params: dict

  @property
  def bias(self):
    return BIAS if pathway_encoder.has_experts(self.model.config) else None

  @functools.cached_property
  def call(self):
    """jit(params, context, features, bias, seeds) -> encoded, stats."""

    def run(params, context, features, bias, seeds):
      return self.model.apply(
        {'params': params},
        context,
        jnp.asarray(USER),
        vectors,
        features,
        seeds,
        bias,
      )

    return jax.jit(run)

  def __call__(self, context=CONTEXT, seeds=None):
    return self.call(self.params, context, FEATURES, self.bias, seeds)


def make_case(mesh=None, *, location='decoder', pathways=None, **changes):
  moe = dataclasses.replace(CONFIG.moe, location=location)
  read = dataclasses.replace(PATHWAYS, **(pathways or {}))
  c = dataclasses.replace(CONFIG, moe=moe, pathways=read, **changes)
  model = pathway_encoder.PathwayEncoder(c, SIZES, mesh)
  context = CONTEXT
  if read.lifelong_length < LIFELONG:
    context = with_clusters(read.lifelong_length)
  bias = BIAS if location == 'both' else None
  boxes = jax.eval_shape(
    lambda key, *inputs: model.init(
      key, *inputs[:2], lambda items: vectors(items) * 0, *inputs[2:]
    ),
    jax.random.key(0),
    context,
    USER,
    FEATURES,
    None,
    bias,
  )['params']
  return Case(model, boxes, parameters.materialize(boxes, seed=0))


@pytest.fixture(name='case', scope='module')
def fixture_case():
  return make_case()


@pytest.fixture(name='experts', scope='module')
def fixture_experts():
  return make_case(location='both')


def test_the_papers_sequence_has_405_tokens():
  paper = config.PathwaysConfig(lifelong_length=2000)
  assert pathways.num_tokens(paper) == 1 + 20 + 256 + 128
  assert pathways.num_tokens(config.PathwaysConfig()) == 1 + 20 + 256


def real_tokens():
  """The mask of CONTEXT by its stated rule."""
  lifelong = np.repeat(CONTEXT.lifelong.mask.any(1)[:, None], QUERIES, axis=1)
  user = np.ones((B, 1), bool)
  return np.concatenate(
    [user, CONTEXT.short.mask, CONTEXT.positive.mask, lifelong], axis=1
  )


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
def fixture_tokens(case):
  @jax.jit
  def run(params, *inputs):
    return case.model.apply(
      {'params': params},
      *inputs,
      method=lambda m, context, user, features: m.pathways(
        context, user, vectors, features
      ),
    )

  return jax.tree.map(np.asarray, run(case.params, CONTEXT, USER, FEATURES))


def test_the_stack_equals_numpy_on_the_real_tokens_alone(case, tokens):
  np.testing.assert_array_equal(tokens.mask, real_tokens())
  got, stats = case()
  assert stats is None
  np.testing.assert_array_equal(got.mask, real_tokens())
  np.testing.assert_array_equal(np.asarray(got.states)[~real_tokens()], 0)
  for row in range(B):
    keep = real_tokens()[row]
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


def test_user_and_events_pass_through_the_mlp_of_their_pathway(case, tokens):
  tokens = tokens.states
  p = case.params['pathways']
  user = p['users']['feature_0'][CONTEXT.features[:, 0]]
  np.testing.assert_allclose(
    tokens[:, 0], mlp(user, p['user_mlp']), rtol=1e-5, atol=1e-5
  )
  # The latest positive event of the second user.
  e = jax.tree.map(lambda a: a[1, -1], CONTEXT.positive)
  tags = FEATURES.values[0][e.items]
  table = p['events']['item_features']['feature_0']
  vector = np.concatenate(
    [
      VECTORS[e.items],
      table[tags[tags > 0]].sum(0) / max((tags > 0).sum(), 1),
      p['events']['number_0'][e.numbers[0]],
      p['events']['age'][e.age],
      (e.labels * e.label_mask) @ p['events']['labels'][0]
      + e.label_mask @ p['events']['labels'][1],
    ]
  )
  np.testing.assert_allclose(
    tokens[1, SHORT + POSITIVE],
    mlp(vector, p['positive_mlp']),
    rtol=1e-5,
    atol=1e-5,
  )


# --- Masks ------------------------------------------------------------------


def test_what_padding_holds_changes_nothing(case):
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
    CONTEXT,
    short=scrambled(CONTEXT.short),
    positive=scrambled(CONTEXT.positive),
    lifelong=scrambled(CONTEXT.lifelong),
  )
  np.testing.assert_array_equal(case(other)[0].states, case()[0].states)


def test_padded_clusters_are_as_good_as_absent(case):
  few = np.asarray(CONTEXT.lifelong.mask.sum(1) <= 3)
  assert 1 < few.sum() < B
  got = make_case(pathways={'lifelong_length': 3})(with_clusters(3))[0].states
  np.testing.assert_allclose(
    np.asarray(got)[few],
    np.asarray(case()[0].states)[few],
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_user_without_events_is_one_token_with_finite_gradients(case):
  encoded, _ = case()
  np.testing.assert_array_equal(
    encoded.mask[0], [True] + [False] * (TOKENS - 1)
  )
  nobody = jax.tree.map(np.zeros_like, CONTEXT)

  def total(params):
    states = case.call(params, nobody, FEATURES, None, None)[0].states
    return jnp.sum(jnp.sin(states)), states

  gradients, states = jax.grad(total, has_aux=True)(case.params)
  assert np.isfinite(states).all() and np.abs(states[:, 0]).min() > 0
  for leaf in jax.tree.leaves(gradients):
    assert np.isfinite(leaf).all()


def test_every_pathway_and_the_order_of_events_matter(case):
  base = np.asarray(case()[0].states)[1:]
  fresh = make_context(seed=1)
  for name in ('features', 'short', 'positive', 'lifelong'):
    new = getattr(fresh, name)
    if name != 'features':
      new = dataclasses.replace(new, mask=getattr(CONTEXT, name).mask)
    got = case(dataclasses.replace(CONTEXT, **{name: new}))[0].states
    assert np.abs(np.asarray(got)[1:] - base).max() > 1e-3, name
  flipped = jax.tree.map(lambda x: x[:, ::-1], CONTEXT.short)
  flipped = dataclasses.replace(CONTEXT, short=flipped)
  assert np.abs(np.asarray(case(flipped)[0].states)[1] - base[0]).max() > 1e-3
  # Clusters are a set.
  turned = jax.tree.map(lambda x: x[:, ::-1], CONTEXT.lifelong)
  turned = dataclasses.replace(CONTEXT, lifelong=turned)
  np.testing.assert_allclose(
    np.asarray(case(turned)[0].states)[1:], base, rtol=1e-4, atol=1e-5
  )


# --- Settings ---------------------------------------------------------------


def test_item_ids_have_a_table_of_their_own():
  case = make_case(
    pathways={
      'item_input': 'item_id',
      'user_features': (),
      'lifelong_length': 0,
    }
  )
  tables = case.params['pathways']
  assert tables['item_table'].shape == (ITEMS, D)
  assert tables['user_token'].shape == (1, D)

  def refuse(items):
    raise AssertionError('semantic IDs are not read')

  context, user, features = jax.tree.map(
    jnp.asarray, (with_clusters(0), USER, FEATURES)
  )
  encoded, _ = jax.jit(
    lambda params: case.model.apply(
      {'params': params}, context, user, refuse, features, None, None
    )
  )(case.params)
  assert encoded.states.shape == (B, 1 + SHORT + POSITIVE, D)
  # Nothing is known of the first user, who is a learned token all the same.
  assert np.abs(encoded.states[0, 0]).max() > 0


def test_a_context_of_other_settings_is_refused(case):
  for changes, words in (
    ({'short': None}, 'short pathway has 0 events.*short_length=3'),
    ({'positive': CONTEXT.short}, 'positive pathway has 3 events.*length=4'),
  ):
    with pytest.raises(ValueError, match=words):
      case(dataclasses.replace(CONTEXT, **changes))


def test_a_router_bias_goes_with_experts_only(case, experts):
  with pytest.raises(ValueError, match=r"has no experts.*'decoder'.*given"):
    case.call(case.params, CONTEXT, FEATURES, BIAS, None)
  with pytest.raises(ValueError, match=r"has experts.*'both'.*None"):
    experts.call(experts.params, CONTEXT, FEATURES, None, None)


@pytest.mark.parametrize('location', ['decoder', 'both'])
def test_states_have_the_compute_type(location):
  case = make_case(location=location, compute_dtype='bfloat16', remat=True)
  encoded, stats = jax.eval_shape(
    case.call, case.params, CONTEXT, FEATURES, case.bias, None
  )
  assert encoded.states.dtype == jnp.bfloat16
  assert encoded.states.shape == (B, TOKENS, D)
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


# --- Experts and meshes -----------------------------------------------------


def test_experts_count_real_tokens_only(experts):
  encoded, stats = experts()
  assert stats.load.shape == (2, EXPERTS)
  top_k = CONFIG.moe.top_k
  np.testing.assert_array_equal(
    stats.load.sum(1), [real_tokens().sum() * top_k] * 2
  )
  pushed = experts.call(
    experts.params, CONTEXT, FEATURES, BIAS.at[:, 2].add(10.0), None
  )[1]
  np.testing.assert_array_equal(pushed.load[:, 2], [real_tokens().sum()] * 2)
  assert np.isfinite(encoded.states).all()


def gradients_of(case):
  def loss(params, context, features, bias):
    encoded, stats = case.call(params, context, features, bias, None)
    return jnp.sum(jnp.sin(encoded.states)), (encoded.states, stats.load)

  return jax.jit(jax.grad(loss, has_aux=True))


def test_a_mesh_changes_neither_states_nor_load_nor_gradients(experts):
  want = gradients_of(experts)(experts.params, CONTEXT, FEATURES, BIAS)
  mesh = meshes.make_mesh(config.MeshConfig(data=2, fsdp=2, expert=2))
  sharded = make_case(mesh=mesh, location='both')
  boxes = sharded.boxes
  shardings = sharding.parameter_shardings(
    mesh, parameters.logical_names(boxes), parameters.shapes(boxes)
  )
  params = sharding.place(sharded.params, shardings)
  # Dense weights are split over fsdp and expert, experts over expert.
  wi = params['pathways']['short_mlp']['wi']
  assert wi.addressable_shards[0].data.shape == (wi.shape[0], D // 4)
  expert = params['layers']['experts']['wi']
  assert expert.addressable_shards[0].data.shape[1] == EXPERTS // 2
  whole = sharding.replicated(mesh)
  got = gradients_of(sharded)(
    params,
    sharding.place_batch(CONTEXT, mesh),
    jax.device_put(FEATURES, whole),
    jax.device_put(BIAS, whole),
  )

  def check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5 * np.abs(b).max())

  jax.tree.map(check, got, want)
