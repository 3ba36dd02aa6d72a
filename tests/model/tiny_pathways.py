"""A tiny encoder of the technical report and its input; no test by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.model import parameters
from onerec_jax.model import pathway_encoder

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


def real_tokens():
  """The mask of CONTEXT by its stated rule."""
  lifelong = np.repeat(CONTEXT.lifelong.mask.any(1)[:, None], QUERIES, axis=1)
  user = np.ones((B, 1), bool)
  return np.concatenate(
    [user, CONTEXT.short.mask, CONTEXT.positive.mask, lifelong], axis=1
  )
