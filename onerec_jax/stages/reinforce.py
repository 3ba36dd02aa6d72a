"""Stage `reinforce`: RSFT and reinforcement by P-Scores, jointly.

From the pre-trained (or aligned) model: next-token prediction on the better
training examples, and a policy objective on groups that the current policy
generates every sync_every_steps.  Only wires the parts together.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import item_rewards
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import group_batches
from onerec_jax.data import pipeline
from onerec_jax.data import rsft
from onerec_jax.objectives import reinforce as objective_lib
from onerec_jax.stages import align
from onerec_jax.stages import group_supply
from onerec_jax.stages import groups as groups_lib
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import item_generator
from onerec_jax.stages import pretrain
from onerec_jax.stages import trained as trained_lib
from onerec_jax.stages import training_setup
from onerec_jax.train import job as job_lib
from onerec_jax.train import log

STAGE = 'reinforce'
_SEED_OFFSET = 500  # the samples come in another order than in pre-training


def load_final(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> trained_lib.Trained:
  """Returns the model an experiment ends with: the last one that was trained.

  For evaluation: the parameters are of evaluate.parameter_dtype.

  Raises:
    FileNotFoundError: a stage has not run; says which.
  """
  if STAGE in experiment.stages:
    return trained_lib.load(
      experiment,
      workdir,
      which='latest',
      folder=workdir.folder(STAGE),
      parameter_dtype=experiment.evaluate.parameter_dtype,
    )
  return align.load_final(
    experiment, workdir, parameter_dtype=experiment.evaluate.parameter_dtype
  )


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Trains, continuing from the last checkpoint if there is one.

  Returns:
    'before' (validation of the seed model), 'final', 'best', 'rsft',
    'rollouts' (seconds, groups and the figures of every interval), 'curves'
    (figure -> [step, value] pairs), steps and seconds.

  Raises:
    contract.Mismatch: the seed model or the P-Score model does not fit.
    ValueError: a setting cannot work with this catalogue, or nothing is left
      to learn from; says what to change.
    loop.NonFinite, preemption.Preempted: see `loop.train`.
  """
  seed_model = align.load_final(experiment, workdir)
  trained_lib.check_model(
    seed_model, experiment, 'the beginning of this reinforcement'
  )
  judge = item_evaluation.make_judge(
    experiment,
    workdir,
    split='valid',
    max_users=experiment.reinforce.evaluate_examples,
  )
  chosen = rsft.choose_examples(
    pretrain.open_examples(experiment, workdir, 'train'),
    workdir.data,
    sessions=experiment.data.sessions,
    column=experiment.reinforcement.rsft_column,
    drop_share=experiment.reinforcement.rsft_drop_share,
    seed=experiment.seed,
  )
  logging.info('RSFT: %s', chosen.report)
  training = _Training(experiment, workdir, seed_model, judge, chosen.store)
  before = training.validate_before()
  setup = training.setup()
  result = training.run(setup)
  intervals = training.supply.history()
  records = log.read_metrics(workdir.folder(STAGE) / log.METRICS)
  return {
    **setup.figures(result),
    'loss': experiment.reinforcement.loss,
    'reward': experiment.reinforcement.reward,
    'seed_step': seed_model.step,
    'p_score_step': judge.model.step,
    'samples': int(result.state.step) * experiment.reinforce.batch_size,
    'rsft': chosen.report,
    'before': before,
    'rollouts': {
      'groups': sum(r['groups'] for r in intervals),
      'seconds': workdir_lib.sum_reports([r['seconds'] for r in intervals]),
      'intervals': intervals,
    },
    'curves': curves(records),
  }


def curves(
  records: Sequence[Mapping[str, Any]],
) -> dict[str, list[list[Any]]]:
  """Returns what was logged of policy, groups and validation, with the steps.

  Args:
    records: of metrics.jsonl.
  """
  result: dict[str, list[list[Any]]] = {}
  for record in records:
    for name, value in record.items():
      if name.startswith(('policy/', 'group/', 'valid/')) and isinstance(
        value, int | float
      ):
        result.setdefault(name, []).append([record['step'], value])
  return result


class _Training:
  """The parts of the stage's training."""

  def __init__(
    self,
    experiment: config_lib.Experiment,
    workdir: workdir_lib.Workdir,
    seed_model: trained_lib.Trained,
    judge: item_evaluation.Judge,
    store: examples.ExampleStore,
  ):
    self._experiment = experiment
    self._seed_model = seed_model
    self._folder = workdir.stage(STAGE)
    e, settings, mesh = experiment, experiment.reinforcement, seed_model.mesh
    own_rows = sharding.own_rows(mesh)
    self._plan = group_batches.GroupPlan(
      store.index.num_examples,
      batch_size=e.reinforce.batch_size,
      user_share=settings.user_share,
      seed=e.seed,
    )
    self._batches = group_batches.GroupBatches(
      pipeline.train_batches(
        store,
        data=e.data,
        train=e.reinforce,
        seed=e.seed + _SEED_OFFSET,
        own_rows=own_rows,
      ),
      store,
      self._plan,
      history_length=e.data.history_length,
      multiple=mesh.size,
      own_rows=own_rows,
    )
    generator = item_generator.ItemGenerator(
      seed_model, store, settings, seed=e.seed
    )
    maker = groups_lib.GroupMaker(
      generator,
      groups_lib.ItemScorer(judge.model, judge.truth),
      store,
      settings,
      industrial=_industrial(settings.industrial, workdir),
      history_length=e.data.history_length,
      multiple=mesh.size,
      seed=e.seed,
      own_rows=own_rows,
    )
    fixed = None
    if settings.generator == 'pretrained':
      fixed = group_supply.Policy(seed_model.params, seed_model.router_bias)
    self.supply = group_supply.GroupSupply(
      maker,
      self._batches,
      self._plan,
      self._folder,
      num_steps=e.reinforce.num_steps,
      sync_every_steps=settings.sync_every_steps,
      checkpoint_every_steps=e.reinforce.checkpoint_every_steps,
      generator=fixed,
      group_size=settings.group_size,
      levels=len(seed_model.ids.codes_per_level),
      needs_advantage=settings.weight > 0 and not settings.format_weight,
      digest=self._digest(judge),
    )
    self._validate = _make_validation(experiment, seed_model, judge)
    self._valid_store = judge.store

  def _digest(self, judge: item_evaluation.Judge) -> str:
    """Names all that groups depend on but the policy's parameters."""
    e = self._experiment
    parts = [
      config_lib.to_dict(e)['reinforcement'],
      e.seed,
      e.reinforce.batch_size,
      e.data.history_length,
      self._seed_model.ids.digest(),
      self._seed_model.step,
      judge.model.step,
    ]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]

  def validate_before(self) -> dict[str, float] | None:
    """Returns the figures of the seed model, from the file if there is one."""
    if self._validate is None:
      return None
    path = self._folder / group_supply.BEFORE
    found = distributed.from_main(
      functools.partial(workdir_lib.read_json, path)
    )
    if found is None:
      model = self._seed_model
      found = dict(
        self._validate(model.params, model.router_bias, lambda: None)
      )
      if distributed.is_main():
        workdir_lib.write_json(path, found)
    return found

  def setup(self) -> training_setup.Setup:
    """Returns step 0: the seed model, with a fresh optimizer."""
    return trained_lib.make_setup(
      self._seed_model,
      stage=STAGE,
      experiment=self._experiment,
      train=self._experiment.reinforce,
    )

  def run(self, setup: training_setup.Setup) -> job_lib.Result:
    """Trains, continuing from the last checkpoint."""
    e, model = self._experiment, self._seed_model
    frozen: objective_lib.Frozen = {'catalogue': model.catalogue}
    return setup.run(
      self._folder,
      objective_lib.make_objective(model.model, e.reinforce, e.reinforcement),
      self._batches,
      frozen=frozen,
      prepare=self.supply.prepare,
      valid_batches=self._valid_batches,
      evaluate=self._validate,
      best_metric=f'valid/{e.reinforcement.reward}_mean',
      best_mode='max',
    )

  def _valid_batches(self) -> Iterator[batch_lib.ReinforceBatch]:
    """Yields validation samples without groups, for the next-token loss."""
    e = self._experiment
    for sessions in pipeline.eval_batches(
      self._valid_store,
      batch_size=e.reinforce.batch_size,
      history_length=e.data.history_length,
      items_per_session=e.data.sessions.items_per_session,
      max_examples=e.reinforce.evaluate_examples,
      own_rows=sharding.own_rows(self._seed_model.mesh),
    ):
      yield self._batches.without_groups(
        sessions,
        group_size=e.reinforcement.group_size,
        levels=len(self._seed_model.ids.codes_per_level),
      )


def _industrial(
  settings: config_lib.IndustrialRewardConfig, workdir: workdir_lib.Workdir
) -> item_rewards.IndustrialReward | None:
  if not settings.categories:
    return None
  categories = catalog.item_categories(workdir.data)
  return item_rewards.IndustrialReward(
    item_rewards.suppressed_items(categories, settings.categories), settings
  )


def _make_validation(
  experiment: config_lib.Experiment,
  model: trained_lib.Trained,
  judge: item_evaluation.Judge,
) -> training_setup.Evaluate | None:
  """Returns the function that judges validation users' items, if wanted.

  Decoding is free, as in the legality studies; rewards are those of the legal
  items that the user has not seen.
  """
  if not experiment.reinforce.evaluate_every_steps:
    return None
  generator = item_evaluation.Generator(
    model,
    judge.store,
    num_items=experiment.evaluate.p_score.num_items,
    batch_size=experiment.evaluate.batch_size,
    constrain='none',
  )

  def evaluate(
    params: Any, router_bias: Any, poll: Callable[[], None]
  ) -> Mapping[str, float]:
    found = generator(
      judge.ids, params=params, router_bias=router_bias, poll=poll
    )
    values = item_evaluation.values(judge, found)
    some = found.legal.any(axis=1)
    if not some.any():
      logging.warning('No validation user got a legal item: rewards are 0.')
      values, some = np.zeros_like(values), np.ones_like(some)
    result = {
      f'valid/{name}': float(value)
      for name, value in zip(judge.columns, _means(values[some]), strict=True)
      if np.isfinite(value)
    }
    result['valid/legality'] = found.existing / max(found.generated, 1)
    result['valid/users_with_item'] = float(found.legal.any(axis=1).mean())
    return result

  return evaluate


def _means(values: np.ndarray) -> np.ndarray:
  """Returns the mean of each column's known values; NaN: it has none."""
  known = np.isfinite(values)
  total = np.where(known, values, 0).sum(axis=0)
  count = known.sum(axis=0)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)
