"""The mixture-of-experts layer reports what its exchange drops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax.model import moe
from onerec_jax.model import parameters

_ROWS, _LENGTH, _WIDTH, _EXPERTS = 16, 16, 4, 8
_CONFIG = config.ModelConfig(
  embed_dim=_WIDTH,
  moe=config.MoEConfig(
    num_experts=_EXPERTS, expert_dim=8, dispatch='dense', capacity_factor=1.0
  ),
)


def _run(exchange, mesh):
  layer = moe.MoEFeedForward(_CONFIG, mesh)
  x = np.random.default_rng(0).normal(size=(_ROWS, _LENGTH, _WIDTH))
  mask = jnp.ones((_ROWS, _LENGTH), bool)
  # The bias makes expert 0 every token's first choice and 1 its second.
  bias = jnp.zeros(_EXPERTS).at[0].set(200.0).at[1].set(100.0)
  call = functools.partial(layer.apply, exchange=exchange)
  inputs = (jnp.asarray(x, jnp.float32), mask, bias)
  boxes = jax.eval_shape(
    functools.partial(layer.init, exchange=exchange), jax.random.key(0), *inputs
  )
  params = parameters.materialize(boxes['params'], seed=0)
  y, stats = jax.jit(call)({'params': params}, *inputs)
  assert isinstance(stats, moe.RouterStats)
  np.testing.assert_array_equal(stats.load, [256, 256, 0, 0, 0, 0, 0, 0])
  return np.asarray(y), float(stats.dropped)


@pytest.fixture(scope='module')
def mesh():
  return meshes.make_mesh(config.MeshConfig(expert=8))


def test_slots_beyond_the_capacity_are_counted(mesh):
  # Each device has 32 tokens, 64 slots, 8 on average per other device; that
  # is its room there.  Experts 0 and 1 are on two devices, and 32 - 8 slots
  # of each device miss either.
  y, dropped = _run('all_to_all', mesh)
  assert dropped == 8 * 2 * (32 - 8)
  want, none = _run('all_gather', mesh)
  assert none == 0
  # The first 8 tokens of each device are served as if there were room.
  served = np.zeros(_ROWS * _LENGTH, bool).reshape(8, 32)
  served[:, :8] = True
  served = served.reshape(_ROWS, _LENGTH)
  np.testing.assert_allclose(y[served], want[served], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(y[~served], 0)


def test_one_device_has_room_for_all():
  y, dropped = _run('all_to_all', None)
  assert dropped == 0
  assert (np.abs(y).sum(axis=-1) > 0).all()


def test_room_below_the_mean_is_refused():
  with pytest.raises(ValueError, match=r'capacity_factor=0\.5'):
    config.from_config_dict(
      {
        'model': {
          'moe': dataclasses.asdict(_CONFIG.moe) | {'capacity_factor': 0.5}
        }
      }
    )
