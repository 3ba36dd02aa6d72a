"""Stage `p_score`: trains the P-Score model and judges it.

Reads data/ and tokenizer/, writes p_score/.  Only wires the parts together;
the loop is train/loop.py, the loss objectives/p_score.py, the figures are
p_score_judgement.py's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import batch_plan
from onerec_jax.data import event_table
from onerec_jax.data import impressions as impressions_lib
from onerec_jax.data import linear_fit
from onerec_jax.data import logistic_baseline
from onerec_jax.data import rated_contexts
from onerec_jax.model import p_score as model_lib
from onerec_jax.model import parameters
from onerec_jax.objectives import p_score as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.stages import p_score_judgement
from onerec_jax.stages import p_score_model
from onerec_jax.stages import pretrain
from onerec_jax.stages import training_setup

STAGE = p_score_model.STAGE
BEST_METRIC = 'valid/loss'
# Fewer known training labels, or fewer of one class, are worth a warning.
_FEW_LABELS = 100


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Trains, continuing from the last checkpoint if there is one, and judges.

  The best checkpoint is chosen by the loss on (some) held-out users, and all
  figures are of held-out users.

  Returns:
    Steps and rates, sizes of the data, and per tower (in order) its label
    statistics and what `p_score_quality.quality` says of it.

  Raises:
    ValueError: no impressions or no label to learn from; says what to change.
    loop.NonFinite, contract.Mismatch, preemption.Preempted: see `loop.train`.
  """
  model_config, train = experiment.p_score_model, experiment.p_score
  mesh = meshes.make_mesh(experiment.mesh)
  sharding.check_batch_size(
    mesh, experiment.evaluate.batch_size, 'evaluate.batch_size'
  )
  ids = pretrain.read_semantic_ids(workdir)
  events = event_table.read(workdir.data)
  parts = impressions_lib.read(events, model=model_config, seed=experiment.seed)
  _report_labels(model_config, parts.train)
  contexts = p_score_model.make_contexts(experiment, workdir, events)
  plan = impressions_lib.train_plan(
    parts.train, train=train, seed=experiment.seed
  )
  # --- Model and state ---
  model = p_score_model.make_model(experiment, ids, contexts, mesh)
  boxes = model_lib.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = _starting_params(
    boxes, parts.train.labels, model_config, seed=experiment.seed
  )
  if model_config.linear_strengths:
    params = _with_linear_part(params, parts.train, ids, contexts, experiment)
  setup = training_setup.make_setup(
    stage=STAGE,
    experiment=experiment,
    train=train,
    mesh=mesh,
    names=names,
    params=params,
    semantic_ids=ids.digest(),
  )
  del params
  frozen: objective_lib.Frozen = {
    'catalogue': p_score_model.place_catalogue(ids, contexts, mesh)
  }
  logging.info(
    '%d parameters on %d devices; %d impressions and %d batches per epoch; %d'
    ' impressions held out',
    setup.num_parameters,
    mesh.size,
    len(parts.train.users),
    plan.batches_per_epoch,
    len(parts.held_out.users),
  )
  # --- Train ---
  own_rows = sharding.own_rows(mesh)
  valid = _valid_batches(experiment, parts.held_out, contexts, own_rows)
  trained = setup.run(
    workdir.stage(STAGE),
    objective_lib.make_objective(model),
    impressions_lib.train_batches(
      parts.train,
      contexts,
      train=train,
      seed=experiment.seed,
      own_rows=own_rows,
    ),
    frozen=frozen,
    valid_batches=(lambda: valid) if valid else None,
    best_metric=BEST_METRIC,
    best_mode='min',
    batches_per_epoch=plan.batches_per_epoch,
  )
  # --- Judge ---
  judged = p_score_judgement.judge(
    experiment, workdir, ids, mesh, events, parts
  )
  return {
    **setup.figures(trained),
    'epochs': train.num_steps / plan.batches_per_epoch,
    'examples_per_second': trained.counts['examples']
    / max(trained.seconds['train'], 1e-9),
    **judged,
  }


# --- Before training --------------------------------------------------------


def _report_labels(
  model: config_lib.PScoreConfig, train: impressions_lib.Impressions
) -> None:
  for x, tower in enumerate(model.towers):
    label = train.labels[:, x]
    known = int(np.isfinite(label).sum())
    positive = int((label == 1).sum())
    logging.info(
      'label %s: %s; true in %.3f %%, known for %.1f %% of %d training'
      ' impressions',
      tower.name,
      p_score_judgement.definition(tower),
      100 * positive / known,
      100 * known / len(label),
      len(label),
    )
    if min(positive, known - positive) < _FEW_LABELS:
      logging.warning(
        'label %s: only %d of %d training impressions have %s, too few to tell'
        ' the classes apart. Take another column, or more users.',
        tower.name,
        positive,
        known,
        p_score_judgement.definition(tower),
      )


def _starting_params(
  boxes: Any,
  labels: np.ndarray,
  model: config_lib.PScoreConfig,
  *,
  seed: int,
) -> Any:
  """Returns starting values whose predictions begin at the mean label.

  Without it, towers of rare events would spend their first steps on that.
  """
  params = parameters.materialize(boxes, seed=seed)
  mean = np.nanmean(labels.astype(np.float64), axis=0)
  weights = np.array([tower.weight for tower in model.towers])
  for part, start in (
    ('towers', mean),
    ('fusion', np.array([(weights @ mean) / weights.sum()])),
  ):
    start = np.clip(start, 1e-4, 1 - 1e-4)
    bias = np.log(start / (1 - start)).astype(np.float32)
    bias = distributed.broadcast(bias)
    params = {**params, part: {**params[part], 'out_bias': bias}}
  return params


def _with_linear_part(
  params: Any,
  train: impressions_lib.Impressions,
  ids: table.SemanticIds,
  contexts: rated_contexts.RatedContexts,
  experiment: config_lib.Experiment,
) -> Any:
  """Returns starting values with the linear part fitted to the labels."""
  model = experiment.p_score_model
  train = train.take(
    impressions_lib.evenly_spaced(
      len(train.users), max_impressions=logistic_baseline.MAX_IMPRESSIONS
    )
  )
  design = logistic_baseline.Design(contexts, ids.codes)
  fits = linear_fit.fit(
    design(train),
    train.labels,
    train.users,
    strengths=model.linear_strengths,
    seed=experiment.seed,
  )
  for tower, strength in zip(model.towers, fits.strengths, strict=True):
    logging.info('linear part of %s: strength %g', tower.name, strength)
  tables = design.tables(fits.coefficients)
  tables['bias'] = fits.intercepts[:, None].astype(np.float32)
  return {**params, 'linear': distributed.broadcast(tables)}


def _valid_batches(
  experiment: config_lib.Experiment,
  held_out: impressions_lib.Impressions,
  contexts: rated_contexts.RatedContexts,
  own_rows: batch_plan.OwnRows,
) -> Sequence[batch_lib.LabelledBatch]:
  """Returns the validation batches, kept in memory; none if never used."""
  if not experiment.p_score.evaluate_every_steps:
    return ()
  rows = impressions_lib.evenly_spaced(
    len(held_out.users), max_impressions=experiment.p_score.evaluate_examples
  )
  return tuple(
    impressions_lib.eval_batches(
      held_out.take(rows),
      contexts,
      batch_size=experiment.evaluate.batch_size,
      own_rows=own_rows,
    )
  )
