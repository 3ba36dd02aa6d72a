"""Stage `pretrain`: trains OneRec to predict the next session.

Reads data/ and tokenizer/, writes pretrain/.  Only wires the parts together;
the loop is train/loop.py, the loss objectives/pretrain.py.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import metrics
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import recommend
from onerec_jax.model import flops
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import pretrain as objective_lib
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import table
from onerec_jax.train import contract
from onerec_jax.train import loop
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib

STAGE = 'pretrain'
_TOP_K = 10
BEST_METRIC = f'valid/recall@{_TOP_K}'


def make_model(
  experiment: config_lib.Experiment,
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh | None,
) -> onerec.OneRec:
  """Returns the model that an experiment trains on these semantic IDs."""
  return onerec.OneRec(
    config=experiment.model,
    vocabulary=ids.vocabulary(experiment.model.user_buckets),
    items_per_session=experiment.data.sessions.items_per_session,
    dropout_bits=experiment.pretrain.dropout_bits,
    mesh=mesh,
  )


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
  mesh = sharding.make_mesh(experiment.mesh)
  sharding.check_batch_size(
    mesh, experiment.evaluate.batch_size, 'evaluate.batch_size'
  )
  ids = read_semantic_ids(workdir)
  store = _open(workdir, 'train')
  plan = pipeline.train_plan(
    store.index, data=data, train=train, seed=experiment.seed
  )
  padding = plan.padding_share(
    items_per_session=data.sessions.items_per_session
  )
  # --- Model and state ---
  model = make_model(experiment, ids, mesh)
  boxes = onerec.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=experiment.seed)
  optimizer = optimizer_lib.make_optimizer(
    train.optimizer,
    num_steps=train.num_steps,
    decay=optimizer_lib.decay_mask(names),
  )
  agreed = contract.make_contract(
    stage=STAGE,
    experiment=experiment,
    semantic_ids=ids.digest(),
    params=params,
    names=names,
  )
  num_total = state_lib.num_parameters(params)
  num_active = _active_parameters(params, names, experiment.model)
  state = state_lib.create(
    params,
    onerec.initial_router_bias(experiment.model),
    optimizer.transformation,
    ema=train.ema_decay is not None,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, params),
  )
  del params
  whole = sharding.replicated(mesh)
  frozen: objective_lib.Frozen = {
    'item_codes': sharding.place(ids.codes, whole)
  }
  logging.info(
    '%d parameters (%d active per token) on %d devices; %d examples and %d'
    ' batches per epoch; history padding %.1f %%',
    num_total,
    num_active,
    mesh.size,
    plan.examples_per_epoch,
    plan.batches_per_epoch,
    100 * padding.history,
  )
  # --- Train ---
  valid = _valid_batches(experiment, workdir)
  process = {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }
  job = loop.Job(
    objective=objective_lib.make_objective(model, train),
    optimizer=optimizer,
    train=train,
    seed=experiment.seed,
    mesh=mesh,
    folder=workdir.stage(STAGE),
    contract=agreed,
    batches=pipeline.train_batches(
      store, data=data, train=train, seed=experiment.seed, **process
    ),
    frozen=frozen,
    valid_batches=lambda: (batch for batch, _ in valid),
    evaluate=_recall(experiment, model, ids, valid, frozen, mesh),
    best_metric=BEST_METRIC,
    best_mode='max',
    flops=lambda batch: _train_flops(model, batch),
    batches_per_epoch=plan.batches_per_epoch,
  )
  result = loop.train(job, state)
  seconds = result.seconds
  busy = max(seconds['train'], 1e-9)
  return {
    'steps': int(result.state.step),
    'epochs': train.num_steps / plan.batches_per_epoch,
    'examples_seen': int(result.counts['examples']),
    'tokens_seen': int(result.counts['tokens']),
    'examples_per_epoch': plan.examples_per_epoch,
    'best_step': result.best['step'] if result.best else None,
    'best': result.best,
    'final': result.final,
    'examples_per_second': result.counts['examples'] / busy,
    'tokens_per_second': result.counts['tokens'] / busy,
    'training_seconds': seconds['train'],
    'compile_seconds': seconds['compile'],
    'validation_seconds': seconds['validate'],
    'checkpoint_seconds': seconds['checkpoint'],
    'data_wait_share': seconds['wait'] / busy,
    'padding_share': padding._asdict(),
    'num_parameters': num_total,
    'num_active_parameters': num_active,
    'semantic_ids': ids.digest(),
    'mesh': dict(mesh.shape),
    'device': mesh.devices.flat[0].device_kind,
  }


def _open(workdir: workdir_lib.Workdir, split: str) -> examples.ExampleStore:
  path = workdir.data / 'examples' / f'{split}.arrayrecord'
  return examples.ExampleStore(workdir.require(path, 'prepare'))


def _train_flops(model: onerec.OneRec, batch: batch_lib.SessionBatch) -> float:
  """Returns the model FLOPs of a training step on these rows."""
  rows, history_items = batch.history_items.shape
  return rows * flops.train_flops(
    model.config,
    model.vocabulary,
    history_items=history_items,
    items_per_session=batch.target_items.shape[1],
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


def _valid_batches(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> Sequence[tuple[batch_lib.SessionBatch, np.ndarray]]:
  """Returns the validation batches and what their users have seen.

  Kept in memory; none if never used.  Like the final evaluation, recall
  excludes all that was seen, not only the history that the encoder reads.
  """
  train = experiment.pretrain
  if not train.evaluate_every_steps:
    return ()
  store = _open(workdir, 'valid')
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
      process_index=jax.process_index(),
      process_count=jax.process_count(),
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
  experiment: config_lib.Experiment,
  model: onerec.OneRec,
  ids: table.SemanticIds,
  batches: Sequence[tuple[batch_lib.SessionBatch, np.ndarray]],
  frozen: objective_lib.Frozen,
  mesh: jax.sharding.Mesh,
) -> Callable[[Any, Any, Callable[[], None]], Mapping[str, float]]:
  """Returns the function that measures recall and NDCG of generated items."""
  recommender = recommend.make_recommender(
    model, experiment.evaluate.decoding, top_k=_TOP_K
  )
  trie = prefix_trie.PrefixTrie.build(
    ids.codes, ids.codes_per_level, rank_in_bucket=ids.rank_in_bucket
  )
  whole = sharding.replicated(mesh)
  trie = sharding.place(trie, jax.tree.map(lambda _: whole, trie))
  gather = jax.jit(lambda x: x, out_shardings=whole)

  def evaluate(
    params: Any, router_bias: Any, poll: Callable[[], None]
  ) -> Mapping[str, float]:
    recalls, gains = [], []
    for local in batches:
      poll()
      batch, seen = sharding.place_batch(local, mesh)
      found = recommender(
        params, router_bias, frozen['item_codes'], trie, batch, seen
      )
      items, targets, where, rows = jax.device_get(
        gather(
          (
            found.items,
            batch.target_items,
            batch.target_mask,
            batch.example_mask,
          )
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
