"""Stage `reward`: trains the session reward model and judges it.

Reads data/ and tokenizer/, writes reward/.  Only wires the parts together;
the loop is train/loop.py, the loss objectives/reward.py, the figures
reward_quality.py.
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
from onerec_jax.data import catalog
from onerec_jax.data import reward_examples
from onerec_jax.model import parameters
from onerec_jax.model import session_reward
from onerec_jax.objectives import reward as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_model
from onerec_jax.stages import reward_quality
from onerec_jax.stages import training_setup

STAGE = reward_model.STAGE
BEST_METRIC = 'valid/loss'
# Fewer known training labels, or fewer of one class, are worth a warning.
_FEW_LABELS = 100


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Trains, continuing from the last checkpoint if there is one, and judges.

  The best checkpoint is chosen by the loss on (some) held-out users, and all
  figures are of held-out users: the choice of one of a few checkpoints is the
  only thing they have in common with the training.

  Returns:
    Steps and rates, sizes of the data, and per target (in order) its label,
    label statistics, AUC, loss and calibration.

  Raises:
    ValueError: no sessions or no label to learn from; says what to change.
    loop.NonFinite, contract.Mismatch, preemption.Preempted: see `loop.train`.
  """
  model_config, train = experiment.reward_model, experiment.reward
  mesh = meshes.make_mesh(experiment.mesh)
  sharding.check_batch_size(
    mesh, experiment.evaluate.batch_size, 'evaluate.batch_size'
  )
  ids = pretrain.read_semantic_ids(workdir)
  written = _write_examples(experiment, workdir)
  _report_labels(model_config, written)
  plan = reward_examples.labelled_plan(
    written.train,
    model=model_config,
    data=experiment.data,
    train=train,
    seed=experiment.seed,
  )
  # --- Model and state ---
  model = reward_model.make_model(experiment, ids, mesh)
  boxes = session_reward.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = _starting_params(boxes, written.train.labels, seed=experiment.seed)
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
    'item_codes': sharding.place(ids.codes, sharding.replicated(mesh))
  }
  logging.info(
    '%d parameters on %d devices; %d sessions of %d users and %d batches per'
    ' epoch; %d sessions of %d users held out',
    setup.num_parameters,
    mesh.size,
    written.train.store.index.num_examples,
    len(written.train.store),
    plan.batches_per_epoch,
    written.held_out.store.index.num_examples,
    len(written.held_out.store),
  )
  # --- Train ---
  own_rows = sharding.own_rows(mesh)
  valid = _valid_batches(experiment, written.held_out, own_rows)
  trained = setup.run(
    workdir.stage(STAGE),
    objective_lib.make_objective(model),
    reward_examples.labelled_batches(
      written.train,
      model=model_config,
      data=experiment.data,
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
  judged = _judge(experiment, workdir, ids, mesh, written)
  return {
    **setup.figures(trained),
    'epochs': train.num_steps / plan.batches_per_epoch,
    'examples_per_second': trained.counts['examples']
    / max(trained.seconds['train'], 1e-9),
    'aggregate': model_config.aggregate,
    **judged,
  }


# --- Examples ---------------------------------------------------------------


def _write_examples(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> reward_examples.Written:
  """Returns the labelled sessions, which process 0 writes for all."""
  folder, model = workdir.stage(STAGE) / 'examples', experiment.reward_model
  made: list[reward_examples.Written] = []
  distributed.run_on_main(
    lambda: made.append(
      reward_examples.write_reward_examples(
        folder,
        catalog.read_interactions(workdir.data),
        model=model,
        seed=experiment.seed,
      )
    )
  )
  facts = distributed.from_main(
    lambda: (made[0].quantiles, made[0].events, made[0].events_in_windows)
  )
  if made:
    return made[0]
  quantiles, events, events_in_windows = facts
  return reward_examples.Written(
    train=reward_examples.open_part(folder, 'train', model=model),
    held_out=reward_examples.open_part(folder, 'held_out', model=model),
    quantiles=tuple(quantiles),
    events=events,
    events_in_windows=events_in_windows,
  )


# --- Before training --------------------------------------------------------


def _report_labels(
  model: config_lib.RewardModelConfig, written: reward_examples.Written
) -> None:
  for x, target in enumerate(model.targets):
    label = written.train.labels[:, x]
    known = int(np.isfinite(label).sum())
    logging.info(
      'label %s: %s; mean %.4f, known for %.1f %% of %d training sessions',
      target.name,
      definition(target, written.quantiles[x]),
      np.nanmean(label),
      100 * known / len(label),
      len(label),
    )
    if known < _FEW_LABELS:
      logging.warning(
        'label %s is known for %d training sessions only: its tower will not'
        ' be worth much. Take another column, or more users.',
        target.name,
        known,
      )
      continue
    threshold, rule = reward_quality.positive_threshold(_known(label))
    positive = int((label > threshold).sum())
    if min(positive, known - positive) < _FEW_LABELS:
      logging.warning(
        'label %s: %d of %d training sessions have %s, too few to tell the'
        ' classes apart. Take another column, or more users.',
        target.name,
        positive,
        known,
        rule,
      )


def _known(labels: np.ndarray) -> np.ndarray:
  return labels[np.isfinite(labels)].astype(np.float64)


def definition(target: config_lib.RewardTarget, quantile: float | None) -> str:
  """Returns the label of a session in one line."""
  if target.label == 'saturating_sum':
    return (
      f'min(1, sum of {target.column} / {quantile:.6g}), the'
      f' {target.percentile:g}th percentile of the training sums'
    )
  event = f'{target.column} > {target.threshold:g}'
  if target.label == 'any':
    return f'1 if any item has {event}'
  return f'share of the items with {event}'


def _starting_params(boxes: Any, labels: np.ndarray, *, seed: int) -> Any:
  """Returns starting values whose towers begin at the mean label.

  Without it, towers of rare events would spend their first steps on that.
  """
  params = parameters.materialize(boxes, seed=seed)
  mean = np.clip(np.nanmean(labels, axis=0), 1e-4, 1 - 1e-4)
  bias = np.log(mean / (1 - mean)).astype(np.float32)
  return {**params, 'tower_out_bias': distributed.broadcast(bias)}


def _valid_batches(
  experiment: config_lib.Experiment,
  held_out: reward_examples.LabelledStore,
  own_rows: batch_plan.OwnRows,
) -> Sequence[batch_lib.LabelledBatch]:
  """Returns the validation batches, kept in memory; none if never used."""
  if not experiment.reward.evaluate_every_steps:
    return ()
  return tuple(
    reward_examples.labelled_eval_batches(
      held_out,
      model=experiment.reward_model,
      batch_size=experiment.evaluate.batch_size,
      history_length=experiment.data.history_length,
      max_examples=experiment.reward.evaluate_examples,
      own_rows=own_rows,
    )
  )


# --- After training ---------------------------------------------------------


def _judge(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh,
  written: reward_examples.Written,
) -> dict[str, Any]:
  """Returns the figures of the best checkpoint on all held-out users.

  Whole sessions only, where there are any: candidates to be scored have
  items_per_session items, and short sessions are easy to tell apart.
  """
  size = experiment.evaluate.batch_size
  model = reward_model.load(experiment, workdir, ids, mesh, batch_size=size)
  scores, labels, users, lengths = [], [], [], []
  for rows in reward_examples.labelled_eval_batches(
    written.held_out,
    model=model.config,
    batch_size=size,
    history_length=experiment.data.history_length,
  ):
    session, real = rows.session, np.asarray(rows.session.example_mask)
    found = model.score(
      session.history_items,
      session.history_mask,
      session.target_items[:, None],
      session.target_mask[:, None],
    )
    scores.append(found[real, 0])
    labels.append(np.where(rows.label_mask, rows.labels, np.nan)[real])
    users.append(session.user[real])
    lengths.append(session.target_mask.sum(axis=1)[real])
  whole = np.concatenate(lengths) == model.config.items_per_session
  if not whole.any():
    logging.warning(
      'No held-out session has reward_model.items_per_session=%d items: judged'
      ' on shorter ones.',
      model.config.items_per_session,
    )
    whole[:] = True
  scores = np.concatenate(scores)[whole]
  labels = np.concatenate(labels)[whole]
  users = np.concatenate(users)[whole].astype(np.int64)
  targets = []
  for x, target in enumerate(model.config.targets):
    train_labels = _known(written.train.labels[:, x])
    threshold, rule = reward_quality.positive_threshold(train_labels)
    quality = reward_quality.tower_quality(
      scores[:, x],
      labels[:, x],
      users,
      threshold=threshold,
      constant=float(train_labels.mean()),
      samples=experiment.evaluate.bootstrap_samples,
      seed=experiment.seed,
    )
    targets.append(
      {
        **config_lib.to_dict(target),
        'definition': definition(target, written.quantiles[x]),
        'quantile': written.quantiles[x],
        'positive_rule': rule,
        'train_sessions_known': len(train_labels),
        'train_known_share': len(train_labels) / len(written.train.labels),
        'train_mean_label': float(train_labels.mean()),
        'held_out': quality,
      }
    )
    logging.info('%s', _line(target.name, quality))
  return {
    'checkpoint_step': model.step,
    'targets': targets,
    'sessions': {
      'items_per_session': model.config.items_per_session,
      'train': written.train.store.index.num_examples,
      'train_users': len(written.train.store),
      'held_out': written.held_out.store.index.num_examples,
      'held_out_users': len(written.held_out.store),
      'held_out_judged': len(users),
      'training_events': written.events,
      'training_events_in_sessions': written.events_in_windows,
    },
  }


def _line(name: str, quality: dict[str, Any]) -> str:
  """Returns one line on a tower: AUC, AUC per user, loss, labels."""
  if not quality['sessions']:
    return f'{name}: no held-out session has a label'

  def shown(figure: dict[str, float | None]) -> str:
    if figure['value'] is None:
      return 'undefined (one class only)'
    text = '{value:.3f}'
    if figure['low'] is not None:
      text += ' [{low:.3f}, {high:.3f}]'
    return text.format(**figure)

  return (
    f'{name}: AUC {shown(quality["auc"])}, per user'
    f' {shown(quality["grouped_auc"])}; BCE {quality["bce"]["value"]:.4f},'
    f' constant {quality["bce_constant"]:.4f}; mean label'
    f' {quality["mean_label"]:.4f}, prediction'
    f' {quality["mean_prediction"]:.4f}; {quality["sessions"]} sessions of'
    f' {quality["users"]} users'
  )
