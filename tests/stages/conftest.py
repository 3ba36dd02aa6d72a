"""A finished tiny run: real data files, an untrained but saved model."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import table
from onerec_jax.stages import prepare
from onerec_jax.stages import pretrain
from onerec_jax.train import checkpoints
from onerec_jax.train import contract
from onerec_jax.train import optimizer
from onerec_jax.train import state

CODES = 6  # per level; 6 * 6 IDs for 30 items, with planted collisions


def tiny_experiment() -> config.Experiment:
  """Settings of `tiny_run`."""
  return config.validate(
    config.Experiment(
      name='tiny',
      data=config.DataConfig(
        source='synthetic',
        synthetic=config.SyntheticConfig(
          num_users=20, num_items=30, num_clusters=3, events_per_user=9
        ),
        sessions=config.SessionsConfig(items_per_session=2),
        history_length=6,
      ),
      tokenizer=config.TokenizerConfig(levels=2, codes_per_level=CODES),
      model=config.ModelConfig(
        embed_dim=8,
        num_heads=2,
        head_dim=4,
        encoder_layers=1,
        decoder_layers=1,
        mlp_dim=8,
        moe=config.MoEConfig(num_experts=2, expert_dim=8),
      ),
      evaluate=config.EvaluateConfig(
        batch_size=8,
        top_k=(1, 5, 10),
        bootstrap_samples=50,
        num_example_users=3,
        decoding=config.DecodingConfig(num_beams=8),
      ),
    )
  )


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory):
  """(experiment, workdir) with data, IDs, embeddings and a checkpoint.

  Tests may add stages' outputs, but must not change what is there.
  """
  experiment = tiny_experiment()
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('tiny_run'))
  prepared = prepare.run(experiment, workdir)
  workdir.finish('prepare', {**prepared, 'seconds': 1.5})
  num_items = catalog.num_items(workdir.data)
  rng = np.random.default_rng(0)
  codes = np.stack(np.divmod(np.arange(num_items), CODES), axis=1)
  codes[1] = codes[0]  # two items with one ID
  ids = table.from_codes(
    codes,
    codes_per_level=(CODES, CODES),
    popularity=catalog.train_counts(workdir.data),
  )
  workdir.stage('tokenize')
  catalog.write_semantic_ids(
    workdir.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  workdir.stage('embed')
  with workdir.embeddings.open('wb') as file:
    np.savez(file, embeddings=rng.normal(size=(num_items, 4)))
  save_untrained(experiment, workdir, ids)
  return experiment, workdir


def save_untrained(experiment, workdir, ids) -> None:
  """Saves a checkpoint of step 0 of the experiment's model."""
  mesh = sharding.make_mesh(experiment.mesh)
  boxes = onerec.abstract_params(pretrain.make_model(experiment, ids, mesh))
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=experiment.seed)
  made = optimizer.make_optimizer(
    experiment.pretrain.optimizer,
    num_steps=1,
    decay=optimizer.decay_mask(names),
  )
  begin = state.create(
    params,
    onerec.initial_router_bias(experiment.model),
    made.transformation,
    ema=False,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, params),
  )
  agreed = contract.make_contract(
    stage=pretrain.STAGE,
    experiment=experiment,
    semantic_ids=ids.digest(),
    params=params,
    names=names,
  )
  with checkpoints.Checkpointer(
    workdir.stage(pretrain.STAGE), agreed, keep=1
  ) as saver:
    saver.save(0, begin, data={}, progress={}, best_step=None)


@pytest.fixture
def with_settings():
  """Returns a function that changes evaluate settings of an experiment."""

  def change(experiment, **settings):
    evaluate = dataclasses.replace(experiment.evaluate, **settings)
    return dataclasses.replace(experiment, evaluate=evaluate)

  return change
