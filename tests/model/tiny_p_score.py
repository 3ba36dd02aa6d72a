"""A tiny P-Score model, its input, and its formula in NumPy; no test."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import p_score
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

LEVELS = (3, 5)
NUM_ITEMS, NUM_USERS = 11, 4
SIZES = batch_lib.FeatureSizes(NUM_ITEMS, users=(4,), items=(5, 4))
CONFIG = config_lib.PScoreConfig(
  towers=(config_lib.PScoreTower('ltr'), config_lib.PScoreTower('wtr')),
  embed_dim=8,
  num_heads=2,
  history_length=6,
  search_items=3,
  tower_dims=(6, 5),
  fusion_dims=(7,),
  dropout_rate=0.3,
)
GENERATOR = config_lib.PathwaysConfig(
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


def make_model(mesh=None, pathways=GENERATOR, sizes=SIZES, **changes):
  config = dataclasses.replace(CONFIG, **changes)
  return p_score.PScore(
    config,
    p_score.pathways_of(config, pathways),
    sizes,
    vocabulary_lib.Vocabulary(LEVELS),
    mesh=mesh,
  )


def make_params(model):
  params = parameters.materialize(p_score.abstract_params(model), seed=0)
  rng = np.random.default_rng(1)
  # Fresh towers predict their bias, and fresh item embeddings are 0.
  return jax.tree.map(
    lambda x: (
      x if np.any(x) else rng.normal(0, 0.5, size=x.shape).astype(np.float32)
    ),
    params,
  )


def make_catalogue(seed=5):
  rng = np.random.default_rng(seed)
  return batch_lib.Catalogue(
    codes=np.stack([rng.integers(0, n, NUM_ITEMS) for n in LEVELS], 1).astype(
      np.int32
    ),
    features=batch_lib.ItemFeatures(
      (
        rng.integers(0, 5, (NUM_ITEMS, 2), np.int32),
        rng.integers(0, 4, (NUM_ITEMS, 1), np.int32),
      )
    ),
  )


CATALOGUE = make_catalogue()
CATALOGUE_ON_DEVICE = jax.tree.map(jnp.asarray, CATALOGUE)


def make_context(rows=2, length=6, seed=0):
  rng = np.random.default_rng(seed)
  events = batch_lib.EventSequence(
    # Distinct: equal items have equal scores, and the search prefers late ones.
    items=np.stack(
      [rng.permutation(NUM_ITEMS)[:length] for _ in range(rows)]
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


USER = np.arange(2, dtype=np.int32)
ITEMS = np.array([[1, 7, 4], [9, 0, 3]], np.int32)


def with_events(context, **changes):
  events = dataclasses.replace(context.short, **changes)
  return dataclasses.replace(context, short=events)


@functools.cache
def compiled(model):
  def call(params, context, user, items, catalogue):
    return model.apply(
      {'params': params}, context, user, items, catalogue, deterministic=True
    )

  return jax.jit(call)


def logits_of(params, context, items=ITEMS, model=None, catalogue=CATALOGUE):
  user = np.arange(len(items), dtype=np.int32)
  output = compiled(model or make_model())(
    params, context, user, items, catalogue
  )
  return np.concatenate([output.towers, output.p[..., None]], axis=-1)


# --- Independent reference, one candidate at a time ---------------------------


def _norm(x, scale):
  return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def _item(p, item):
  tokens = [3 + CATALOGUE.codes[item, 0], 6 + CATALOGUE.codes[item, 1]]
  x = p['code_embedding'][tokens].sum(axis=0) + p['item_embedding'][item]
  for q, values in enumerate(CATALOGUE.features.values):
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


def reference(p, context, b, item, search_items=3):
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
