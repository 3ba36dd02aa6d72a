"""Small trainings of every stage, on one device and on meshes of eight."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import align
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain
from onerec_jax.objectives import reinforce
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import vocabulary

_ITEMS, _CODES, _LEVELS, _ROWS, EXPERTS = 12, (4, 3), 2, 16, 8
WIDTH, EXPERT_DIM, LAYERS = 16, 40, 2
_V1 = config.ModelConfig(
  embed_dim=WIDTH,
  num_heads=2,
  head_dim=8,
  encoder_layers=LAYERS,
  decoder_layers=LAYERS,
  mlp_dim=16,
  dropout_rate=0.0,
  attention_dropout_rate=0.0,
  moe=config.MoEConfig(
    num_experts=EXPERTS,
    expert_dim=EXPERT_DIM,
    dispatch='dense',  # compiles soonest; tests/ops/test_moe.py has both
  ),
)
_TR = dataclasses.replace(
  _V1,
  encoder='pathways',
  moe=config.MoEConfig(
    num_experts=EXPERTS,
    expert_dim=EXPERT_DIM,
    dispatch='dense',
    activation='swiglu',
    gate='sigmoid',
    normalize_top_k=True,
    location='both',
  ),
  pathways=config.PathwaysConfig(
    user_features=(config.UserFeature('age', dim=8),),
    item_features=(config.ItemFeature('aid', 'author:', dim=8, max_values=2),),
    event_features=(config.EventFeature('watch_time', dim=8, buckets=5),),
    labels=('like',),
    label_dim=8,
    age_dim=8,
    age_buckets=6,
    short_length=3,
    positive_length=4,
    lifelong_length=5,
    lifelong_queries=2,
    lifelong_layers=1,
  ),
)
_OVER_CATALOGUE = dataclasses.replace(
  _V1,
  encoder_layers=1,
  decoder_layers=1,
  normalise_over='catalogue',
  id_buckets=16,
)
_MESHES: dict[str, tuple[config.MeshConfig, Callable[[Any], int] | None]] = {
  'data': (config.MeshConfig(), None),
  'fsdp': (config.MeshConfig(fsdp=8), None),
  'all_axes': (config.MeshConfig(2, 2, 2), None),
  # Devices of a slice are not neighbours in the list.
  'slices': (config.MeshConfig(fsdp=2, expert=2, slices=2), lambda d: d.id % 2),
  'by_size': (config.MeshConfig(preset='by_size', expert=8), None),
}


class _Stage(NamedTuple):
  """A model, what trains it, and what it reads."""

  model: config.ModelConfig
  items: int  # per session
  objective: Callable[[onerec.OneRec], base.Objective]
  frozen: Any
  batch: Any

  def make_model(self, mesh=None):
    return onerec.OneRec(
      config=self.model,
      vocabulary=vocabulary.Vocabulary(_CODES),
      items_per_session=self.items,
      mesh=mesh,
      sizes=batch_lib.FeatureSizes(num_items=_ITEMS, users=(4,), items=(5,)),
    )


# --- Inputs -----------------------------------------------------------------


def _sessions(seed, *, history, targets, context=None):
  """Sessions of unequal length; the last row is filler."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, history + 1, (_ROWS, 1))
  items = rng.integers(1, targets + 1, (_ROWS, 1))
  return batch_lib.SessionBatch(
    example_id=np.arange(_ROWS, dtype=np.int32),
    user=np.arange(_ROWS, dtype=np.int32),
    history_items=rng.integers(0, _ITEMS, (_ROWS, history), np.int32),
    history_mask=np.arange(history)[None] < lengths,
    target_items=rng.integers(0, _ITEMS, (_ROWS, targets), np.int32),
    target_mask=np.arange(targets)[None] < items,
    example_mask=np.arange(_ROWS) < _ROWS - 1,
    context=context,
  )


def _events(rng, length):
  shape = (_ROWS, length)
  return batch_lib.EventSequence(
    items=rng.integers(0, _ITEMS, shape, np.int32),
    mask=np.arange(length) >= rng.integers(0, length, (_ROWS, 1)),
    age=rng.integers(0, 7, shape, np.int32),
    numbers=rng.integers(0, 6, (*shape, 1), np.int32),
    labels=rng.integers(0, 2, (*shape, 1)).astype(np.float32),
    label_mask=rng.random((*shape, 1)) < 0.8,
  )


def _clusters(rng, length):
  shape = (_ROWS, length, 0, 0)  # no feature is averaged
  return dataclasses.replace(
    _events(rng, length),
    categories=np.zeros(shape, np.int32),
    category_weights=np.zeros(shape, np.float32),
  )


def _catalogue():
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, k, _ITEMS) for k in _CODES], axis=1)
  features = rng.integers(0, 5, (_ITEMS, 2), np.int32)
  return batch_lib.Catalogue(
    codes.astype(np.int32), batch_lib.ItemFeatures((features,))
  )


def _pretrain(model, item_weight=0.0):
  rng = np.random.default_rng(1)
  context = None
  if model.encoder == 'pathways':
    context = batch_lib.UserContext(
      features=rng.integers(0, 4, (_ROWS, 1), np.int32),
      short=_events(rng, 3),
      positive=_events(rng, 4),
      lifelong=_clusters(rng, 5),
    )
  items = 1 if context else 2
  frozen: pretrain.Frozen = {'catalogue': _catalogue()}
  if model.normalise_over == 'catalogue':
    codes = np.asarray(frozen['catalogue'].codes)
    frozen['trie'] = prefix_trie.PrefixTrie.build(codes, _CODES)
  return _Stage(
    model,
    items,
    lambda model: pretrain.make_objective(
      model, config.TrainConfig(item_loss_weight=item_weight)
    ),
    frozen,
    _sessions(2, history=3, targets=items, context=context),
  )


def _dpo(model):
  settings = config.PreferenceConfig(
    weight=3.0,
    beta=0.7,
    rollout=config.DecodingConfig(num_items=2, continue_items=1),
  )
  rng = np.random.default_rng(3)
  pairs = (_ROWS, 2, 2)
  return _Stage(
    model,
    3,
    lambda model: align.make_objective(model, config.TrainConfig(), settings),
    {
      'catalogue': _catalogue(),
      'reference_bias': np.zeros((LAYERS, EXPERTS), np.float32),
    },
    batch_lib.PreferenceBatch(
      session=_sessions(4, history=3, targets=3),
      pairs=batch_lib.PairBatch(
        session=_sessions(5, history=4, targets=1),
        items=rng.integers(0, _ITEMS, pairs, np.int32),
        mask=np.ones(pairs, bool),
        reference_log_probs=rng.normal(-8, 1, pairs[:2]).astype(np.float32),
        rewards=np.tile(np.float32([2.0, 0.5]), (_ROWS, 1)),
      ),
    ),
  )


def _ecpo(model):
  settings = config.ReinforceConfig(weight=3.0, format_weight=0.5)
  rng = np.random.default_rng(6)
  group = (_ROWS, 5)
  codes = np.stack([rng.integers(0, k, group) for k in _CODES], axis=2)
  log_probs = rng.normal(-1.2, 0.3, codes.shape).astype(np.float32)
  legal = rng.random(group) < 0.7
  return _Stage(
    model,
    1,
    lambda model: reinforce.make_objective(
      model, config.TrainConfig(), settings
    ),
    {'catalogue': _catalogue()},
    batch_lib.ReinforceBatch(
      session=_sessions(7, history=3, targets=1),
      groups=batch_lib.GroupBatch(
        session=_sessions(8, history=4, targets=1),
        codes=codes.astype(np.int32),
        old_log_probs=log_probs,
        reference_log_probs=log_probs,
        rewards=np.where(legal, rng.random(group), 0).astype(np.float32),
        legal=legal,
        format_mask=rng.random(group) < 0.6,
        true_rewards=np.full(group, np.nan, np.float32),
      ),
    ),
  )


STAGES = {
  'v1': functools.partial(_pretrain, _V1),
  'catalogue': functools.partial(_pretrain, _OVER_CATALOGUE, item_weight=0.5),
  'tr': functools.partial(_pretrain, _TR),
  'dpo': functools.partial(_dpo, _V1),
  'ecpo': functools.partial(_ecpo, _V1),
}


# --- Loss and gradients -----------------------------------------------------


def run(stage, params, frozen, batch, mesh=None):
  """Returns loss, metrics, router bias after the step, and gradients."""
  objective = stage.objective(stage.make_model(mesh))
  bias = onerec.initial_router_bias(stage.model)

  @jax.jit
  def call(params, bias, frozen, batch):
    def loss(params):
      output = objective(params, bias, frozen, batch, jax.random.key(0))
      return output.loss.value(), (output.metrics, output.model_state)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, (metrics, state)), gradients = call(params, bias, frozen, batch)
  return jax.device_get((value, metrics, state, gradients))


def starting_values(stage):
  return parameters.materialize(
    onerec.abstract_params(stage.make_model()), seed=0
  )


@functools.cache
def oracle(name):
  stage = STAGES[name]()
  found = run(stage, starting_values(stage), stage.frozen, stage.batch)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(found[3]))
  return found


def place(stage, name):
  settings, slice_of = _MESHES[name]
  mesh = meshes.make_mesh(settings, slice_of=slice_of)
  names = parameters.logical_names(onerec.abstract_params(stage.make_model()))
  values = starting_values(stage)
  shardings = sharding.parameter_shardings(mesh, names, values)
  whole = sharding.replicated(mesh)
  return (
    mesh,
    sharding.place(values, shardings),
    jax.tree.map(lambda x: sharding.place(x, whole), stage.frozen),
    sharding.place_batch(stage.batch, mesh),
  )


def assert_close(got, want):
  def check(a, b):
    # f32 sums in another order, through the backward pass.
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * np.abs(b).max())

  jax.tree.map(check, got, want)
