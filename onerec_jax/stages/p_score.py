"""Stage `p_score`: trains the P-Score model and judges it.

Reads data/ and tokenizer/, writes p_score/.  Only wires the parts together;
the loop is train/loop.py, the loss objectives/p_score.py, the figures
p_score_quality.py.
"""

from collections.abc import Sequence
from typing import Any

import jax
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
from onerec_jax.data import logistic_baseline
from onerec_jax.data import rated_contexts
from onerec_jax.model import p_score as model_lib
from onerec_jax.model import parameters
from onerec_jax.objectives import p_score as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.stages import p_score_model
from onerec_jax.stages import p_score_quality
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_quality
from onerec_jax.stages import training_setup

STAGE = p_score_model.STAGE
BEST_METRIC = 'valid/loss'
# Fewer known training labels, or fewer of one class, are worth a warning.
_FEW_LABELS = 100
# Held-out impressions that the final figures are taken over.
_JUDGED_IMPRESSIONS = 20_000
# Training impressions that the logistic regression is fitted on; its features
# are a few thousand.
_BASELINE_IMPRESSIONS = 200_000


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
  judged = _judge(experiment, workdir, ids, mesh, events, parts)
  return {
    **setup.figures(trained),
    'epochs': train.num_steps / plan.batches_per_epoch,
    'examples_per_second': trained.counts['examples']
    / max(trained.seconds['train'], 1e-9),
    **judged,
  }


# --- Before training --------------------------------------------------------


def definition(tower: config_lib.PScoreTower) -> str:
  """Returns the label of an impression in one line."""
  return f'{tower.column} > {tower.threshold:g}'


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
      definition(tower),
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
        definition(tower),
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


# --- After training ---------------------------------------------------------


def _judge(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh,
  events: event_table.EventTable,
  parts: impressions_lib.Parts,
) -> dict[str, Any]:
  """Returns the figures of the best checkpoint on held-out users."""
  size, seed = experiment.evaluate.batch_size, experiment.seed
  model = p_score_model.load(
    experiment, workdir, ids, mesh, batch_size=size, events=events
  )
  rows = impressions_lib.of_whole_users(
    parts.held_out, max_impressions=_JUDGED_IMPRESSIONS, seed=seed
  )
  judged = parts.held_out.take(rows)
  found = model.score(
    judged.users, judged.positions, judged.items[:, None].astype(np.int32)
  )
  fused = found.p[:, 0].astype(np.float64)
  own = found.towers[:, 0].astype(np.float64)
  baseline = _baseline(parts, rows, ids, model.contexts, seed=seed)
  towers = []
  for x, tower in enumerate(model.config.towers):
    labels = parts.train.labels[:, x]
    labels = labels[np.isfinite(labels)]
    quality = p_score_quality.quality(
      p_score_quality.Predictions(own[:, x], fused, baseline[x][0]),
      judged.labels[:, x].astype(np.float64),
      judged.users.astype(np.int64),
      constant=float(labels.mean()),
      samples=experiment.evaluate.bootstrap_samples,
      seed=seed,
    )
    towers.append(
      {
        **config_lib.to_dict(tower),
        'definition': definition(tower),
        'train_impressions_known': len(labels),
        'train_known_share': len(labels) / len(parts.train.users),
        'train_mean_label': float(labels.mean()),
        'baseline_strength': baseline[x][1],
        'held_out': quality,
      }
    )
    logging.info('%s', _line(tower.name, quality))
  return {
    'checkpoint_step': model.step,
    'towers': towers,
    'impressions': {
      'train': len(parts.train.users),
      'train_users': len(np.unique(parts.train.users)),
      'held_out': len(parts.held_out.users),
      'held_out_users': len(np.unique(parts.held_out.users)),
      'held_out_judged': len(rows),
      'held_out_users_judged': len(np.unique(judged.users)),
      # With those that have no label and are no impressions.
      'training_events': int((events.split == 0).sum()),
    },
  }


def _baseline(
  parts: impressions_lib.Parts,
  rows: np.ndarray,
  ids: table.SemanticIds,
  contexts: rated_contexts.RatedContexts,
  *,
  seed: int,
) -> list[tuple[np.ndarray, float]]:
  """Returns the regression's probabilities and penalty, per tower.

  The penalty is the best for the impressions that are judged: a choice in the
  baseline's favour.
  """
  numbers = logistic_baseline.past_rates(
    parts, num_items=ids.num_items, seed=seed
  )
  features = logistic_baseline.feature_tables(contexts.features, ids.codes)
  chosen = impressions_lib.evenly_spaced(
    len(parts.train.users), max_impressions=_BASELINE_IMPRESSIONS
  )
  train, held_out = parts.train.take(chosen), parts.held_out.take(rows)
  read = logistic_baseline.design(train, numbers.train[chosen], features)
  judged = logistic_baseline.design(held_out, numbers.held_out[rows], features)
  result = []
  for x in range(train.labels.shape[1]):
    labels = held_out.labels[:, x]
    known = np.isfinite(labels)
    found = {
      strength: logistic_baseline.predict(
        read, train.labels[:, x], judged, strength=strength
      )
      for strength in logistic_baseline.STRENGTHS
    }
    losses = {
      strength: reward_quality.binary_cross_entropy(
        predictions[known], labels[known].astype(np.float64)
      ).sum()
      for strength, predictions in found.items()
    }
    best = min(losses, key=lambda strength: losses[strength])
    result.append((found[best], best))
  return result


def _line(name: str, quality: dict[str, Any]) -> str:
  """Returns one line on a tower: its AUC beside that of the baseline."""
  if not quality['tower']['sessions']:
    return f'{name}: no held-out impression has a label'

  def shown(part: str, figure: str) -> str:
    found = quality[part][figure]
    if found['value'] is None:
      return 'undefined (one class only)'
    return f'{found["value"]:.4f} [{found["low"]:.4f}, {found["high"]:.4f}]'

  return (
    f'{name}: AUC {shown("tower", "auc")}, P-Score {shown("p_score", "auc")},'
    f' logistic regression {shown("baseline", "auc")}; gain'
    f' {shown("tower_gain", "auc")}; per user'
    f' {shown("tower", "grouped_auc")}, {shown("p_score", "grouped_auc")},'
    f' {shown("baseline", "grouped_auc")}, gain'
    f' {shown("tower_gain", "grouped_auc")}'
  )
