"""A pod's checkpoint on a small machine: parameters alone, any mesh, any dtype.

Saved on eight devices with dense weights and experts sharded, read on one.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary
from onerec_jax.train import checkpoints
from onerec_jax.train import contract

_MODEL = config.ModelConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=1,
  decoder_layers=1,
  mlp_dim=16,
  moe=config.MoEConfig(num_experts=4, expert_dim=16),
)


@pytest.fixture(scope='module')
def pod(toy, tmp_path_factory):
  """(stage folder, parameters, router bias) of a run on fsdp 2 x expert 4."""
  mesh = meshes.make_mesh(config.MeshConfig(data=1, fsdp=2, expert=4))
  model = onerec.OneRec(_MODEL, vocabulary.Vocabulary((16, 16)), 2, mesh=mesh)
  boxes = onerec.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=3)
  bias = np.linspace(0.1, 0.4, 4, dtype=np.float32)[None]
  begin, agreed = toy.start_of(params, names, bias, mesh)
  folder = workdir.Workdir(tmp_path_factory.mktemp('pod')).stage('pretrain')
  with checkpoints.Checkpointer(folder, agreed, keep=1) as saver:
    saver.save(7, begin, data={}, progress={}, best_step=None)
  whole = contract.flatten(jax.tree.map(lambda x: x.shape, begin.params))
  local = {
    name: array.addressable_shards[0].data.shape
    for name, array in contract.flatten(begin.params).items()
  }
  # Both axes split something, or the test would show nothing.
  assert {np.prod(whole[n]) // np.prod(local[n]) for n in whole} >= {4, 8}
  # A laptop has no use for the moments.
  shutil.rmtree(folder / 'checkpoints' / '7' / 'opt')
  return folder, params, bias


def _restore(folder, **changes):
  return checkpoints.restore_for_evaluation(
    folder,
    **{
      'which': 'latest',
      'mesh': meshes.make_mesh(config.MeshConfig(), jax.devices()[:1]),
      **changes,
    },
  )


def test_one_device_gets_the_bits_that_eight_saved(pod):
  folder, params, bias = pod
  restored = _restore(folder)
  assert restored.step == 7
  flat = contract.flatten(restored.params)
  assert set(flat) == set(contract.flatten(params))
  for name, value in contract.flatten(params).items():
    assert flat[name].dtype == jnp.float32
    assert len(flat[name].sharding.device_set) == 1
    np.testing.assert_array_equal(flat[name], value)
  np.testing.assert_array_equal(restored.model_state, bias)


def test_bfloat16_rounds_every_parameter_and_nothing_else(pod):
  folder, params, bias = pod
  restored = _restore(folder, dtype='bfloat16')
  flat = contract.flatten(restored.params)
  for name, value in contract.flatten(params).items():
    assert flat[name].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
      np.asarray(flat[name]), value.astype(jnp.bfloat16)
    )
  # Half the memory.
  assert sum(x.nbytes for x in flat.values()) * 2 == sum(
    x.nbytes for x in contract.flatten(params).values()
  )
  assert restored.model_state.dtype == jnp.float32
  np.testing.assert_array_equal(restored.model_state, bias)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_another_mesh_gets_its_own_shards(pod, dtype):
  folder, params, _ = pod
  mesh = meshes.make_mesh(
    config.MeshConfig(data=1, fsdp=4, expert=1), jax.devices()[:4]
  )
  flat = contract.flatten(_restore(folder, mesh=mesh, dtype=dtype).params)
  split = [n for n, x in flat.items() if not x.sharding.is_fully_replicated]
  assert split
  for name, value in contract.flatten(params).items():
    np.testing.assert_array_equal(
      np.asarray(flat[name]), value.astype(jnp.dtype(dtype))
    )


def test_integers_are_not_rounded():
  assert checkpoints._read_as(np.dtype('int32'), 'bfloat16') == np.int32
