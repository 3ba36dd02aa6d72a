"""What every training stage sets up, and reports, in the same way.

Parameters become a placed state with its optimizer and its contract, these a
job of the loop, and its result figures.  Knows no model and no data.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import NamedTuple

from etils import epath
from jax.sharding import Mesh

from onerec_jax import config as config_lib
from onerec_jax import sharding
from onerec_jax.objectives import base
from onerec_jax.train import contract as contract_lib
from onerec_jax.train import goodput
from onerec_jax.train import job as job_lib
from onerec_jax.train import loop
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib

# (params, model_state, poll) -> {'valid/recall@10': ...}
Evaluate = Callable[[Any, Any, Callable[[], None]], Mapping[str, float]]


class Setup(NamedTuple):
  """Step 0 of a training, placed on the mesh."""

  train: config_lib.TrainConfig
  seed: int
  mesh: Mesh
  optimizer: optimizer_lib.Optimizer
  contract: contract_lib.Contract
  state: state_lib.TrainState  # donated to the loop
  num_parameters: int

  def run(
    self,
    folder: epath.Path,
    objective: base.Objective,
    batches: job_lib.Batches,
    *,
    frozen: Any = None,
    prepare: Callable[[state_lib.TrainState, Callable[[], None]], None]
    | None = None,
    valid_batches: Callable[[], Iterable[Any]] | None = None,
    evaluate: Evaluate | None = None,
    best_metric: str = 'valid/loss',
    best_mode: Literal['max', 'min'] = 'min',
    flops: Callable[[Any], float] | None = None,
    batches_per_epoch: int | None = None,
  ) -> job_lib.Result:
    """Trains, continuing from the last checkpoint; arguments as `job.Job`.

    Raises:
      loop.NonFinite, contract.Mismatch, preemption.Preempted: see `loop.train`.
    """
    job = job_lib.Job(
      objective=objective,
      optimizer=self.optimizer,
      train=self.train,
      seed=self.seed,
      mesh=self.mesh,
      folder=folder,
      contract=self.contract,
      batches=batches,
      frozen=frozen,
      prepare=prepare,
      valid_batches=valid_batches,
      evaluate=evaluate,
      best_metric=best_metric,
      best_mode=best_mode,
      flops=flops,
      batches_per_epoch=batches_per_epoch,
    )
    return loop.train(job, self.state)

  def figures(self, result: job_lib.Result) -> dict[str, Any]:
    """Returns what the result.json of every training stage says."""
    return {
      'steps': int(result.state.step),
      'best_step': result.best['step'] if result.best else None,
      'best': result.best,
      'final': result.final,
      **goodput.figures(result.seconds),
      'num_parameters': self.num_parameters,
      'semantic_ids': self.contract.semantic_ids,
      'mesh': dict(self.mesh.shape),
      'device': self.mesh.devices.flat[0].device_kind,
    }


def make_setup(
  *,
  stage: str,
  experiment: config_lib.Experiment,
  train: config_lib.TrainConfig,
  mesh: Mesh,
  names: Any,
  params: Any,
  model_state: Any = None,
  semantic_ids: str | None = None,
  decay: Any | None = None,
) -> Setup:
  """Returns step 0 of a training.

  Args:
    stage: name for the contract and the errors, e.g. 'pretrain'.
    experiment: settings that the checkpoints are bound to.
    train: settings of this training.
    mesh: the devices.
    names: logical axes per parameter.
    params: starting values, nested dict of NumPy arrays.
    model_state: what is not trained by gradient, NumPy; None: nothing.
    semantic_ids: digest of the IDs that the parameters belong to.
    decay: which parameters weight decay shrinks; None: `decay_mask(names)`.
  """
  optimizer = optimizer_lib.make_optimizer(
    train.optimizer,
    num_steps=train.num_steps,
    decay=optimizer_lib.decay_mask(names) if decay is None else decay,
  )
  return Setup(
    train=train,
    seed=experiment.seed,
    mesh=mesh,
    optimizer=optimizer,
    contract=contract_lib.make_contract(
      stage=stage,
      experiment=experiment,
      semantic_ids=semantic_ids,
      params=params,
      names=names,
    ),
    state=state_lib.create(
      params,
      model_state,
      optimizer.transformation,
      ema=train.ema_decay is not None,
      mesh=mesh,
      shardings=sharding.parameter_shardings(mesh, names, params),
    ),
    num_parameters=state_lib.num_parameters(params),
  )
