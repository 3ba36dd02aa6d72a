"""What all training stages set up alike: state, contract, job and figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax.objectives import base
from onerec_jax.stages import training_setup

_NAMES = {'w': ('embed', 'mlp'), 'b': ('mlp',)}
_TRAIN = config.TrainConfig(
  batch_size=8,
  num_steps=3,
  optimizer=config.OptimizerConfig(
    name='adamw', weight_decay=0.1, warmup_steps=0, peak_learning_rate=0.1
  ),
  log_every_steps=1,
  evaluate_every_steps=0,
  checkpoint_every_steps=3,
)


class _Rows:
  """The same rows at every step; counts how often it was asked."""

  def __init__(self):
    self.drawn = 0

  def __next__(self):
    self.drawn += 1
    return np.ones((8, 4), np.float32)

  def get_state(self):
    return {'drawn': self.drawn}

  def set_state(self, state):
    self.drawn = state['drawn']


def _objective(params, model_state, frozen, batch, key):
  del key
  error = (batch @ params['w'] + params['b'][None] - frozen) ** 2
  loss = base.mean_of(error[:, 0], jnp.ones(8, bool))
  return base.LossOutput(loss, {}, model_state, {'examples': loss.count})


def _setup(**changes):
  mesh = meshes.make_mesh(config.MeshConfig(data=-1, fsdp=2))
  params = {'w': np.ones((4, 2), np.float32), 'b': np.ones(2, np.float32)}
  return training_setup.make_setup(
    stage='pretrain',
    experiment=config.Experiment(seed=3),
    train=_TRAIN,
    mesh=mesh,
    names=_NAMES,
    params=params,
    **changes,
  )


def test_parameters_are_sharded_by_their_names_and_counted():
  setup = _setup(model_state=np.zeros(5, np.float32))
  assert setup.num_parameters == 10
  assert setup.state.params['w'].sharding.spec[0] == ('fsdp', 'expert')
  assert setup.state.params['b'].sharding.is_fully_replicated
  np.testing.assert_array_equal(setup.state.model_state, np.zeros(5))
  assert setup.state.ema_params is None


def test_the_contract_binds_ids_settings_and_axes():
  setup = _setup(semantic_ids='abc')
  assert setup.contract.semantic_ids == 'abc'
  assert setup.contract.experiment['seed'] == 3
  assert setup.contract.parameters['w']['axes'] == ['embed', 'mlp']


@pytest.mark.parametrize(
  ('decay', 'changed'), [(None, True), ({'w': False, 'b': False}, False)]
)
def test_weight_decay_is_by_the_mask(decay, changed):
  setup = _setup(decay=decay)
  zero = jax.tree.map(np.zeros_like, jax.device_get(setup.state.params))
  updates, _ = setup.optimizer.transformation.update(
    zero, setup.state.opt_state, setup.state.params
  )
  assert bool(np.any(np.asarray(updates['w']) != 0)) == changed
  assert not np.any(np.asarray(updates['b']))


def test_a_run_trains_and_its_figures_say_how(tmp_path):
  setup, rows = _setup(semantic_ids='abc'), _Rows()
  result = setup.run(
    epath.Path(tmp_path), _objective, rows, frozen=np.float32(0)
  )
  figures = setup.figures(result)
  assert rows.drawn == figures['steps'] == 3
  assert figures['final']['loss'] < 25.0  # (4 + 1)^2 at step 0
  assert figures['num_parameters'] == 10
  assert figures['semantic_ids'] == 'abc'
  assert figures['mesh'] == dict(setup.mesh.shape)
  assert figures['device'] == 'cpu'
  assert figures['best'] is None and figures['best_step'] is None
  assert figures['training_seconds'] > 0
  assert figures['earlier_seconds'] == 0.0
  # Called again it finds its checkpoint, and nothing is left to do.
  setup = _setup(semantic_ids='abc')
  again = setup.run(
    epath.Path(tmp_path), _objective, rows, frozen=np.float32(0)
  )
  assert rows.drawn == 3
  assert again.final == result.final
  # What the first call took until its checkpoint is not forgotten.
  seconds = setup.figures(again)
  assert 0 < seconds['earlier_seconds'] <= figures['wall_seconds']
  assert seconds['earlier_seconds'] < seconds['wall_seconds']
