"""Stage `pretrain`: trains OneRec, or an item-level baseline in its place.

Reads data/ and tokenizer/, writes pretrain/.  Only wires the parts together;
the loop is train/loop.py, the losses are objectives/{pretrain,sequential}.py.
"""

import functools
import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import metrics
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import catalogue_ranking
from onerec_jax.decoding import recommend
from onerec_jax.model import flops
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.model import sequential as sequence_model
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain as objective_lib
from onerec_jax.objectives import sequential as sequential_objective
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import table
from onerec_jax.stages import counted_transitions
from onerec_jax.stages import sequential
from onerec_jax.stages import starting_vectors
from onerec_jax.stages import training_setup
from onerec_jax.stages import user_pathways

STAGE = 'pretrain'
_TOP_K = 10
BEST_METRIC = f'valid/recall@{_TOP_K}'


def make_model(
  experiment: config_lib.Experiment,
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh | None,
  pathways: user_pathways.UserPathways | None = None,
) -> onerec.OneRec:
  """Returns the model that an experiment trains on these semantic IDs.

  Args:
    experiment: settings of the model.
    ids: semantic IDs of the items.
    mesh: where it runs.
    pathways: from `user_pathways.read`, None with encoder='history'.
  """
  return onerec.OneRec(
    config=experiment.model,
    vocabulary=ids.vocabulary(experiment.model.user_buckets),
    items_per_session=experiment.data.sessions.items_per_session,
    dropout_bits=experiment.pretrain.dropout_bits,
    mesh=mesh,
    sizes=None if pathways is None else pathways.features.sizes,
  )


def make_catalogue(
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh,
  pathways: user_pathways.UserPathways | None = None,
) -> batch_lib.Catalogue:
  """Returns what the models know of every item, whole on every device."""
  whole = sharding.replicated(mesh)
  features = None
  if pathways is not None:
    features = jax.tree.map(
      lambda x: sharding.place(x, whole), pathways.features.items
    )
  return batch_lib.Catalogue(sharding.place(ids.codes, whole), features)


def read_semantic_ids(workdir: workdir_lib.Workdir) -> table.SemanticIds:
  """Returns the semantic IDs of the work directory's items.

  Raises:
    FileNotFoundError: a stage before has not run.
    ValueError: the table does not fit the items.
  """
  path = workdir.require(workdir.tokenizer / 'semantic_ids.parquet', 'tokenize')
  ids = catalog.read_semantic_ids(path)
  num_items = catalog.num_items(workdir.data)
  if ids.num_items != num_items:
    raise ValueError(
      f'{path} has {ids.num_items} items, {workdir.data / "items.parquet"} has'
      f' {num_items}: run the stages `embed` and `tokenize` again.'
    )
  return ids


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Trains, continuing from the last checkpoint if there is one.

  Returns:
    Final and best figures, steps, examples, rates, seconds, sizes.

  Raises:
    loop.NonFinite, contract.Mismatch, preemption.Preempted: see `loop.train`.
  """
  train, data = experiment.pretrain, experiment.data
  mesh = meshes.make_mesh(experiment.mesh)
  sharding.check_batch_size(
    mesh, experiment.evaluate.batch_size, 'evaluate.batch_size'
  )
  learner = _make_learner(experiment, workdir, mesh)
  store = open_examples(experiment, workdir, 'train')
  plan = pipeline.train_plan(
    store.index, data=data, train=train, seed=experiment.seed
  )
  padding = plan.padding_share(
    items_per_session=data.sessions.items_per_session
  )
  # --- Model and state ---
  names = parameters.logical_names(learner.boxes)
  params = parameters.materialize(learner.boxes, seed=experiment.seed)
  if learner.starts is not None:
    params = starting_vectors.start(params, learner.starts)
  num_active = _active_parameters(params, names, experiment.model)
  setup = training_setup.make_setup(
    stage=STAGE,
    experiment=experiment,
    train=train,
    mesh=mesh,
    names=names,
    params=params,
    model_state=learner.model_state,
    semantic_ids=learner.semantic_ids,
  )
  del params
  logging.info(
    '%d parameters (%d active per token) on %d devices; %d examples and %d'
    ' batches per epoch; history padding %.1f %%',
    setup.num_parameters,
    num_active,
    mesh.size,
    plan.examples_per_epoch,
    plan.batches_per_epoch,
    100 * padding.history,
  )
  # --- Train ---
  valid = _valid_batches(experiment, workdir, mesh)
  result = setup.run(
    workdir.stage(STAGE),
    learner.objective,
    pipeline.train_batches(
      store,
      data=data,
      train=train,
      seed=experiment.seed,
      own_rows=sharding.own_rows(mesh),
    ),
    frozen=learner.frozen,
    valid_batches=lambda: (batch for batch, _ in valid),
    evaluate=_recall(learner.rank, valid, mesh),
    best_metric=BEST_METRIC,
    best_mode='max',
    flops=learner.flops,
    batches_per_epoch=plan.batches_per_epoch,
  )
  busy = max(result.seconds['train'], 1e-9)
  return {
    **setup.figures(result),
    'epochs': train.num_steps / plan.batches_per_epoch,
    'examples_seen': int(result.counts['examples']),
    'tokens_seen': int(result.counts['tokens']),
    'examples_per_epoch': plan.examples_per_epoch,
    'examples_per_second': result.counts['examples'] / busy,
    'tokens_per_second': result.counts['tokens'] / busy,
    'padding_share': padding._asdict(),
    'num_active_parameters': num_active,
  }


def open_examples(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir, split: str
) -> examples.ExampleStore:
  """Returns the prepared examples of 'train', 'valid' or 'test'.

  Their batches have a context if the experiment's encoder reads one.
  """
  path = workdir.data / 'examples' / f'{split}.arrayrecord'
  pathways = user_pathways.read(experiment, workdir)
  store = examples.ExampleStore(
    workdir.require(path, 'prepare'),
    contexts=None if pathways is None else pathways.contexts,
  )
  if pathways is not None:
    event_table.check_index(pathways.contexts.events, store.index)
  return store


# --- Architectures ----------------------------------------------------------


# (params, model_state, batch, excluded items [B, X]) -> items [B, K]
_Rank = Callable[[Any, Any, batch_lib.SessionBatch, jax.Array], jax.Array]


class _Learner(NamedTuple):
  """What an architecture brings to the training."""

  boxes: Any  # tree of parameters.Parameter
  model_state: Any  # of step 0, NumPy
  objective: base.Objective
  frozen: Any  # what the objective reads beside, on the mesh
  semantic_ids: str | None  # digest of the IDs that the parameters belong to
  rank: _Rank  # the best items that are not excluded
  flops: Callable[[batch_lib.SessionBatch], float]
  # Where embeddings start; None: at random.
  starts: starting_vectors.StartingVectors | None = None


def _make_learner(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> _Learner:
  if experiment.architecture == 'onerec':
    return _make_onerec(experiment, workdir, mesh)
  return _make_baseline(experiment, workdir, mesh)


def _make_onerec(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> _Learner:
  ids = read_semantic_ids(workdir)
  pathways = user_pathways.read(experiment, workdir)
  model = make_model(experiment, ids, mesh, pathways)
  whole = sharding.replicated(mesh)
  catalogue = make_catalogue(ids, mesh, pathways)
  trie = prefix_trie.PrefixTrie.build(
    ids.codes, ids.codes_per_level, rank_in_bucket=ids.rank_in_bucket
  )
  trie = jax.tree.map(lambda x: sharding.place(x, whole), trie)
  recommender = recommend.make_recommender(
    model, experiment.evaluate.decoding, top_k=_TOP_K
  )
  transitions = counted_transitions.read(
    experiment.evaluate.decoding, workdir, mesh
  )
  return _Learner(
    boxes=onerec.abstract_params(model),
    model_state=onerec.initial_router_bias(experiment.model),
    objective=objective_lib.make_objective(model, experiment.pretrain),
    frozen=objective_lib.make_frozen(model, catalogue, trie),
    semantic_ids=ids.digest(),
    rank=lambda params, router_bias, batch, seen: (
      recommender(
        params, router_bias, catalogue, trie, batch, seen, transitions
      ).items
    ),
    flops=functools.partial(
      _train_flops,
      model,
      scored_items=ids.num_items if experiment.pretrain.item_loss_weight else 0,
    ),
    starts=starting_vectors.read(experiment, workdir, ids, model.vocabulary),
  )


def _make_baseline(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> _Learner:
  catalogue = sequential.read_catalogue(experiment, workdir)
  model = sequential.make_model(experiment, catalogue, mesh)
  whole = sharding.replicated(mesh)
  attributes = sharding.place(
    catalogue.attributes, jax.tree.map(lambda _: whole, catalogue.attributes)
  )
  ranker = catalogue_ranking.make_ranker(
    model, experiment.evaluate.decoding, top_k=_TOP_K
  )
  transitions = counted_transitions.read(
    experiment.evaluate.decoding, workdir, mesh
  )
  return _Learner(
    boxes=sequence_model.abstract_params(model),
    model_state=None,
    objective=sequential_objective.make_objective(model, experiment.pretrain),
    frozen={'attributes': attributes},
    semantic_ids=None,
    rank=lambda params, _, batch, seen: (
      ranker(params, attributes, batch, seen, transitions).items
    ),
    flops=functools.partial(sequential.train_flops, model),
  )


def _train_flops(
  model: onerec.OneRec, batch: batch_lib.SessionBatch, *, scored_items: int
) -> float:
  """Returns the model FLOPs of a training step on these rows."""
  rows, history_items = batch.history_items.shape
  return rows * flops.train_flops(
    model.config,
    model.vocabulary,
    history_items=history_items,
    items_per_session=batch.target_items.shape[1],
    scored_items=scored_items,
  )


def _active_parameters(
  params: Any, names: Any, model: config_lib.ModelConfig
) -> int:
  """Returns the parameters one token meets: top_k of the experts' weights."""
  share = model.moe.top_k / model.moe.num_experts
  sizes = jax.tree.map(
    lambda n, x: x.size * (share if 'expert_mlp' in n else 1.0),
    names,
    params,
    is_leaf=sharding.is_axis_names,
  )
  return round(math.fsum(jax.tree.leaves(sizes)))


# --- Validation -------------------------------------------------------------


def _valid_batches(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> Sequence[tuple[batch_lib.SessionBatch, np.ndarray]]:
  """Returns the validation batches and what their users have seen.

  Kept in memory; none if never used.  Like the final evaluation, recall
  excludes all that was seen, not only the history that the encoder reads.
  """
  train = experiment.pretrain
  if not train.evaluate_every_steps:
    return ()
  store = open_examples(experiment, workdir, 'valid')
  width = recommend.exclusion_width(
    int(store.index.history_counts.max(initial=0))
  )
  batches = tuple(
    (
      batch,
      recommend.exclusion_array(pipeline.seen_items(store, batch), width=width),
    )
    for batch in pipeline.eval_batches(
      store,
      batch_size=experiment.evaluate.batch_size,
      history_length=experiment.data.history_length
      + experiment.evaluate.decoding.continue_items,
      items_per_session=experiment.data.sessions.items_per_session,
      max_examples=train.evaluate_examples,
      own_rows=sharding.own_rows(mesh),
    )
  )
  if not batches:
    raise ValueError(
      'The validation split has no examples, so no best checkpoint can be'
      f' chosen. Set {STAGE}.evaluate_every_steps=0, or look at data.split and'
      ' dataset.json.'
    )
  return batches


def _recall(
  rank: _Rank,
  batches: Sequence[tuple[batch_lib.SessionBatch, np.ndarray]],
  mesh: jax.sharding.Mesh,
) -> Callable[[Any, Any, Callable[[], None]], Mapping[str, float]]:
  """Returns the function that measures recall and NDCG of the ranked items."""
  gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def evaluate(
    params: Any, model_state: Any, poll: Callable[[], None]
  ) -> Mapping[str, float]:
    recalls, gains = [], []
    for local in batches:
      poll()
      batch, seen = sharding.place_batch(local, mesh)
      found = rank(params, model_state, batch, seen)
      items, targets, where, rows = jax.device_get(
        gather(
          (found, batch.target_items, batch.target_mask, batch.example_mask)
        )
      )
      ranks = metrics.target_ranks(items[rows], targets[rows])
      recalls.append(metrics.recall_at_k(ranks, where[rows], k=_TOP_K))
      gains.append(metrics.ndcg_at_k(ranks, where[rows], k=_TOP_K))
    return {
      BEST_METRIC: float(np.mean(np.concatenate(recalls))),
      f'valid/ndcg@{_TOP_K}': float(np.mean(np.concatenate(gains))),
    }

  return evaluate
