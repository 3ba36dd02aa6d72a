"""Stage `align`: rounds of preference pairs and training on them (IPA).

Round t: the model after round t - 1 generates, the reward model chooses best
and worst, and training on L_NTP + λ L_DPO starts from that same model, which
is the reference.  Every round has its folder, round_01 and so on.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import Literal

from absl import logging
from etils import epath

from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import preference_pairs
from onerec_jax.objectives import align as objective_lib
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_model as reward_lib
from onerec_jax.stages import rollouts
from onerec_jax.stages import session_comparison
from onerec_jax.stages import session_evaluation
from onerec_jax.stages import trained as trained_lib
from onerec_jax.stages import training_setup
from onerec_jax.train import contract
from onerec_jax.train import job as job_lib
from onerec_jax.train import preemption

STAGE = 'align'


def round_folder(workdir: workdir_lib.Workdir, number: int) -> epath.Path:
  """Returns the folder of round 1, 2, ...: pairs, checkpoints and logs."""
  return workdir.folder(STAGE) / f'round_{number:02d}'


def last_round_folder(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> epath.Path:
  """Returns where the aligned model is."""
  return round_folder(workdir, experiment.preference.rounds)


def load_final(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  parameter_dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> trained_lib.Trained:
  """Returns the model after alignment, or the pre-trained one without it.

  Args:
    experiment: present settings.
    workdir: of the run.
    parameter_dtype: of the parameters in memory; training needs 'float32'.

  Raises:
    FileNotFoundError: a stage has not run; says which.
  """
  if STAGE in experiment.stages:
    return trained_lib.load(
      experiment,
      workdir,
      which='latest',
      folder=last_round_folder(experiment, workdir),
      parameter_dtype=parameter_dtype,
    )
  return trained_lib.load(
    experiment,
    workdir,
    which=experiment.evaluate.checkpoint,
    parameter_dtype=parameter_dtype,
  )


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Aligns the pre-trained model, continuing where a killed run stopped.

  Returns:
    Per round: pairs, skips and their reasons, seconds by kind, final figures.

  Raises:
    contract.Mismatch: the pre-trained or the reward model does not fit.
    ValueError: no pair could be made.
    loop.NonFinite, preemption.Preempted: see `loop.train`.
  """
  seed_model = trained_lib.load(
    experiment, workdir, which=experiment.evaluate.checkpoint
  )
  trained_lib.check_model(
    seed_model, experiment, 'the reference of this alignment'
  )
  reward = None
  if experiment.preference.pairs == 'beam_rm':
    reward = reward_lib.load(
      experiment, workdir, seed_model.ids, seed_model.mesh
    )
  store = pretrain.open_examples(experiment, workdir, 'train')
  maker = rollouts.Rollouts(
    seed_model,
    reward,
    experiment.preference,
    store,
    history_length=experiment.data.history_length,
  )
  validate = _make_validation(experiment, workdir, seed_model)
  policy, rounds, earlier_seconds = seed_model, [], 0.0
  for number in range(1, experiment.preference.rounds + 1):
    path = round_folder(workdir, number)
    path.mkdir(parents=True, exist_ok=True)
    result = distributed.from_main(
      functools.partial(_begin_round, path, experiment.align.num_steps)
    )
    if result is not None:
      earlier_seconds += result['wall_seconds']
    else:
      logging.info('round %d of %d', number, experiment.preference.rounds)
      result = _Round(
        experiment, workdir, policy, maker, validate, store, number
      ).run()
      earlier_seconds += result['earlier_seconds']
      if distributed.is_main():
        workdir_lib.write_json(path / workdir_lib.RESULT, result)
    rounds.append(result)
    policy = trained_lib.load(experiment, workdir, which='latest', folder=path)
  return {
    'loss': experiment.preference.loss,
    'pairs': experiment.preference.pairs,
    'seed_step': seed_model.step,
    'rounds': rounds,
    'training_seconds': sum(r['training_seconds'] for r in rounds),
    'earlier_seconds': earlier_seconds,
    'rollout_seconds': sum(
      sum(r['rollouts']['seconds'].values()) for r in rounds
    ),
  }


def _begin_round(path: epath.Path, num_steps: int) -> dict[str, Any] | None:
  """Returns the result of the round, None: it is to be made.

  Raises if it was begun with another number of steps.  Unlike other training
  stages a round cannot be lengthened: its pairs were counted for, and spread
  over, so many steps.
  """
  plan = workdir_lib.read_json(path / 'plan.json')
  if plan is None:
    workdir_lib.write_json(path / 'plan.json', {'num_steps': num_steps})
  elif plan['num_steps'] != num_steps:
    raise contract.Mismatch(
      f'{path} was begun with align.num_steps={plan["num_steps"]}, now it is'
      f' {num_steps}. Put it back, raise preference.rounds, or delete'
      f' {path.parent} to align anew.'
    )
  return workdir_lib.read_json(path / workdir_lib.RESULT)


class _Round:
  """One round: pairs from the policy, then training from it."""

  def __init__(
    self,
    experiment: config_lib.Experiment,
    workdir: workdir_lib.Workdir,
    policy: trained_lib.Trained,
    maker: rollouts.Rollouts,
    validate: training_setup.Evaluate | None,
    store: examples.ExampleStore,
    number: int,
  ):
    self._experiment = experiment
    self._workdir = workdir
    self._policy = policy
    self._maker = maker
    self._validate = validate
    self._store = store
    self._number = number
    self._folder = round_folder(workdir, number)
    # Other samples in other order each round.  Dropout keeps the seed of the
    # run, which is part of the compiled step.
    self._seed = experiment.seed + 1000 * number

  def run(self) -> dict[str, Any]:
    pairs, statistics = self._pairs()
    setup = self._setup()
    result = self._train(setup, pairs)
    return {
      'round': self._number,
      **setup.figures(result),
      'samples': int(result.state.step) * self._experiment.align.batch_size,
      'rollouts': statistics,
    }

  def _pairs(self) -> tuple[preference_pairs.Pairs, dict[str, Any]]:
    e, preference = self._experiment, self._experiment.preference
    samples = e.align.num_steps * e.align.batch_size
    # At least one: a share of nothing would be a silent no-op.
    count = max(round(preference.sample_share * samples), 1)
    ids = preference_pairs.choose_examples(
      self._store.index.num_examples, count=count, key=(self._seed,)
    )
    if len(ids) < count:
      logging.info(
        'pairs: every one of %d training examples instead of %d',
        len(ids),
        count,
      )
    with preemption.StopSignal() as stop:

      def poll() -> None:
        if stop.requested():
          logging.warning('SIGTERM: stopped while making pairs.')
          raise preemption.Preempted(preemption.PREEMPTED_STATUS)

      pairs, statistics = self._maker.make(
        self._policy, ids, self._folder, key=(self._seed,), poll=poll
      )
    logging.info(
      'pairs: %d of %d users; skipped %s; seconds %s',
      statistics['pairs'],
      statistics['users'],
      statistics['skipped'],
      {k: round(v, 1) for k, v in statistics['seconds'].items()},
    )
    return pairs, statistics

  def _setup(self) -> training_setup.Setup:
    """Returns step 0 of the round: the policy, with a fresh optimizer."""
    policy, train = self._policy, self._experiment.align
    if self._validate is None:
      train = dataclasses.replace(train, evaluate_every_steps=0)
    return trained_lib.make_setup(
      policy, stage=STAGE, experiment=self._experiment, train=train
    )

  def _train(
    self, setup: training_setup.Setup, pairs: preference_pairs.Pairs
  ) -> job_lib.Result:
    e, policy = self._experiment, self._policy
    own_rows = sharding.own_rows(policy.mesh)
    frozen: objective_lib.Frozen = {
      'catalogue': policy.catalogue,
      'reference_bias': policy.router_bias,
    }
    batches = preference_pairs.PreferenceBatches(
      pipeline.train_batches(
        self._store,
        data=e.data,
        train=e.align,
        seed=self._seed,
        own_rows=own_rows,
      ),
      self._store,
      pairs,
      num_steps=e.align.num_steps,
      history_length=e.data.history_length
      + e.preference.rollout.continue_items,
      multiple=policy.mesh.size,
      key=(self._seed,),
      own_rows=own_rows,
    )
    return setup.run(
      self._folder,
      objective_lib.make_objective(policy.model, e.align, e.preference),
      batches,
      frozen=frozen,
      evaluate=self._validate,
      best_metric='valid/reward_mean',
      best_mode='max',
    )


def _make_validation(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  model: trained_lib.Trained,
) -> training_setup.Evaluate | None:
  """Returns the function that scores sessions of validation users, if any."""
  if 'reward' not in experiment.stages:
    if experiment.align.evaluate_every_steps:
      logging.info("no validation: stages has no 'reward' to judge sessions by")
    return None
  if not experiment.align.evaluate_every_steps:
    return None
  judge = session_comparison.make_judge(
    experiment,
    workdir,
    split='valid',
    max_users=experiment.align.evaluate_examples,
  )
  generator = session_evaluation.make_generator(
    model,
    experiment,
    judge.store,
    num_items=experiment.reward_model.items_per_session,
  )

  def evaluate(
    params: Any, router_bias: Any, poll: Callable[[], None]
  ) -> Mapping[str, float]:
    found = generator(
      judge.ids, params=params, router_bias=router_bias, poll=poll
    )
    return session_comparison.validation_figures(judge, found)

  return evaluate
