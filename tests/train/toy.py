"""A three-parameter model for the loop's tests: fits y = w·x + b."""

import dataclasses
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.objectives import base
from onerec_jax.train import contract
from onerec_jax.train import job as job_lib
from onerec_jax.train import log
from onerec_jax.train import loop
from onerec_jax.train import optimizer
from onerec_jax.train import state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  x: Any  # [B, 2]
  y: Any  # [B]


class Source:
  """Batch number -> the same batch every time; a NaN at `bad`."""

  def __init__(self, batch_size: int, bad: int | None = None):
    self.batch_size = batch_size
    self.bad = bad

  def __len__(self) -> int:
    return 1_000_000

  def __getitem__(self, number: int) -> Batch:
    rng = np.random.default_rng([7, int(number)])
    x = rng.standard_normal((self.batch_size, 2), np.float32)
    y = (x @ np.array([2.0, -1.0], np.float32) + 0.5).astype(np.float32)
    if number == self.bad:
      y[0] = np.nan
    return Batch(x, y)


def objective(params, model_state, frozen, batch, key):
  """Mean squared error; noise shows that keys continue after a restart."""
  prediction = batch.x @ params['w'] + params['b']
  if key is not None:
    prediction = prediction + 0.1 * jax.random.normal(key, prediction.shape)
    model_state = model_state + 1.0
  error = jnp.square(prediction - batch.y)
  loss = base.mean_of(error, jnp.ones(error.shape, bool))
  bias = batch_lib.Mean(jnp.mean(prediction), jnp.ones((), jnp.float32))
  return base.LossOutput(
    loss, {'prediction': bias}, model_state, {'examples': loss.count}
  )


def make_job(
  folder,
  *,
  train: config.TrainConfig,
  mesh=None,
  bad=None,
  batches=None,
  digest='0123',
  experiment=None,
  **changes,
) -> tuple[job_lib.Job, state.TrainState]:
  """Returns a job and its state at step 0."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  if mesh is None:
    mesh = meshes.make_mesh(config.MeshConfig(), jax.devices()[:1])
  made = optimizer.make_optimizer(train.optimizer, num_steps=train.num_steps)
  params = {'w': np.zeros(2, np.float32), 'b': np.zeros((), np.float32)}
  if batches is None:
    batches = make_batches(train.batch_size, bad)
  start = state.create(
    params,
    np.zeros((), np.float32),
    made.transformation,
    ema=train.ema_decay is not None,
    mesh=mesh,
  )
  job = job_lib.Job(
    objective=objective,
    optimizer=made,
    train=train,
    seed=3,
    mesh=mesh,
    folder=folder,
    contract=contract.make_contract(
      stage='pretrain',
      experiment=experiment,
      semantic_ids=digest,
      params=params,
    ),
    batches=batches,
    **{
      'valid_batches': lambda: (
        Source(train.batch_size)[i] for i in range(10_000, 10_002)
      ),
      **changes,
    },
  )
  return job, start


def start_of(params, names, model_state, mesh):
  """Returns the state at step 0 of any parameters, and their contract."""
  made = optimizer.make_optimizer(config.OptimizerConfig(), num_steps=1)
  start = state.create(
    params,
    model_state,
    made.transformation,
    ema=False,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, params),
  )
  agreed = contract.make_contract(
    stage='pretrain',
    experiment=None,
    semantic_ids=None,
    params=params,
    names=names,
  )
  return start, agreed


def make_batches(batch_size: int, bad: int | None = None):
  dataset = grain.MapDataset.source(Source(batch_size, bad))
  return iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    )
  )


def config_with(**changes) -> config.TrainConfig:
  """Returns a short run; `changes` override."""
  return config.TrainConfig(
    **{
      'batch_size': 8,
      'num_steps': 20,
      'optimizer': config.OptimizerConfig(
        peak_learning_rate=0.1, warmup_steps=2
      ),
      'log_every_steps': 5,
      'evaluate_every_steps': 10,
      'checkpoint_every_steps': 5,
      **changes,
    }
  )


def run(folder, **changes) -> job_lib.Result:
  """Trains the toy; keyword `train` or fields of `make_job`."""
  train = changes.pop('train', None) or config_with()
  return loop.train(*make_job(folder, train=train, **changes))


def records(folder) -> list[dict[str, Any]]:
  return log.read_metrics(epath.Path(folder) / log.METRICS)
