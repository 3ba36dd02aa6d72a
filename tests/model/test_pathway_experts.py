"""Experts in the encoder of the technical report, on one device and a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters


@pytest.fixture(name='tiny', scope='module')
def fixture_tiny(tiny_pathways):
  return tiny_pathways


@pytest.fixture(name='experts', scope='module')
def fixture_experts(tiny):
  return tiny.make_case(location='both')


def test_experts_without_a_router_bias_are_refused(tiny, experts):
  with pytest.raises(ValueError, match=r"has experts.*'both'.*None"):
    experts.call(experts.params, tiny.CONTEXT, tiny.FEATURES, None, None)


def test_experts_count_real_tokens_only(tiny, experts):
  encoded, stats = experts()
  assert stats.load.shape == (2, tiny.EXPERTS)
  top_k = tiny.CONFIG.moe.top_k
  np.testing.assert_array_equal(
    stats.load.sum(1), [tiny.real_tokens().sum() * top_k] * 2
  )
  pushed = experts.call(
    experts.params,
    tiny.CONTEXT,
    tiny.FEATURES,
    tiny.BIAS.at[:, 2].add(10.0),
    None,
  )[1]
  np.testing.assert_array_equal(
    pushed.load[:, 2], [tiny.real_tokens().sum()] * 2
  )
  assert np.isfinite(encoded.states).all()


def gradients_of(case):
  def loss(params, context, features, bias):
    encoded, stats = case.call(params, context, features, bias, None)
    return jnp.sum(jnp.sin(encoded.states)), (encoded.states, stats.load)

  return jax.jit(jax.grad(loss, has_aux=True))


def test_a_mesh_changes_neither_states_nor_load_nor_gradients(tiny, experts):
  want = gradients_of(experts)(
    experts.params, tiny.CONTEXT, tiny.FEATURES, tiny.BIAS
  )
  mesh = meshes.make_mesh(config.MeshConfig(data=2, fsdp=2, expert=2))
  sharded = tiny.make_case(mesh=mesh, location='both')
  boxes = sharded.boxes
  shardings = sharding.parameter_shardings(
    mesh, parameters.logical_names(boxes), parameters.shapes(boxes)
  )
  params = sharding.place(sharded.params, shardings)
  # Dense weights are split over fsdp and expert, experts over expert.
  wi = params['pathways']['short_mlp']['wi']
  assert wi.addressable_shards[0].data.shape == (wi.shape[0], tiny.D // 4)
  expert = params['layers']['experts']['wi']
  assert expert.addressable_shards[0].data.shape[1] == tiny.EXPERTS // 2
  whole = sharding.replicated(mesh)
  got = gradients_of(sharded)(
    params,
    sharding.place_batch(tiny.CONTEXT, mesh),
    jax.device_put(tiny.FEATURES, whole),
    jax.device_put(tiny.BIAS, whole),
  )

  def check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5 * np.abs(b).max())

  jax.tree.map(check, got, want)
