"""Preference pairs and groups of a trained tiny model, by untrained judges.

The same function runs in two processes and in the test's own one.
"""

import jax
import numpy as np

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.model import p_score
from onerec_jax.model import parameters
from onerec_jax.model import session_reward
from onerec_jax.stages import groups
from onerec_jax.stages import item_generator
from onerec_jax.stages import p_score_model
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_model
from onerec_jax.stages import rollouts
from onerec_jax.stages import trained as trained_lib

_USERS = 40  # three batches of 16, the last one padded


def generate(root, *, folder):
  """Returns named arrays; pairs are kept in `folder` too."""
  workdir = workdir_lib.Workdir(root)
  experiment = config.from_config_dict(workdir.config())
  model = trained_lib.load(experiment, workdir, which='latest')
  store = pretrain.open_examples(experiment, workdir, 'train')
  ids = np.arange(_USERS) * 3
  maker = rollouts.Rollouts(
    model,
    _reward_model(experiment, model),
    experiment.preference,
    store,
    history_length=experiment.data.history_length,
  )
  pairs, report = maker.make(model, ids, folder, key=(0,), poll=lambda: None)
  result = {f'pairs/{k}': v for k, v in pairs._asdict().items()}
  result['legal'] = np.array(report['legal'])
  settings = experiment.reinforcement
  group_maker = groups.GroupMaker(
    item_generator.ItemGenerator(model, store, settings, seed=0),
    groups.ItemScorer(_p_score_model(experiment, workdir, model), None),
    store,
    settings,
    industrial=None,
    history_length=experiment.data.history_length,
    multiple=model.mesh.size,
    seed=0,
    own_rows=sharding.own_rows(model.mesh),
  )
  for number, first in enumerate(range(0, 24, group_maker.rows)):
    taken = ids[first : min(first + group_maker.rows, 24)]
    found, _ = group_maker(
      first + np.arange(len(taken)),
      taken,
      params=model.params,
      router_bias=model.router_bias,
    )
    result |= {f'groups_{number}/{k}': v for k, v in found._asdict().items()}
  return result


def _placed(boxes, mesh):
  """Returns random parameters on the mesh; the last layers start at zero."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32),
    parameters.materialize(boxes, seed=1),
  )
  names = parameters.logical_names(boxes)
  return sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )


def _reward_model(experiment, model):
  judge = reward_model.make_model(experiment, model.ids, model.mesh)
  return reward_model.RewardModel(
    judge,
    _placed(session_reward.abstract_params(judge), model.mesh),
    model.ids,
    model.mesh,
    history_length=experiment.data.history_length,
    batch_size=experiment.preference.rollout_batch_size,
    step=0,
  )


def _p_score_model(experiment, workdir, model):
  contexts = p_score_model.make_contexts(experiment, workdir)
  judge = p_score_model.make_model(experiment, model.ids, contexts, model.mesh)
  return p_score_model.PScoreModel(
    judge,
    _placed(p_score.abstract_params(judge), model.mesh),
    model.ids,
    contexts,
    model.mesh,
    batch_size=experiment.reinforcement.rollout_batch_size,
    step=0,
  )
