import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import PartitionSpec

from experiments import paper_sizes
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.aot import assumed
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary


def _mesh(data=-1, fsdp=1, expert=1, num_devices=8):
  return meshes.make_mesh(
    config.MeshConfig(data, fsdp, expert), jax.devices()[:num_devices]
  )


def test_a_mesh_without_all_axes_is_refused():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  for call in (
    lambda: sharding.batch_sharding(mesh),
    lambda: sharding.check_batch_size(mesh, 8, 'pretrain.batch_size'),
    lambda: sharding.parameter_sharding(mesh, ('embed', 'mlp'), (8, 8)),
  ):
    with pytest.raises(ValueError, match=r"lacks \['fsdp', 'expert'\]"):
      call()


def test_dense_weights_are_split_over_fsdp_and_expert():
  assert sharding.spec(('embed', 'mlp')) == PartitionSpec(
    ('fsdp', 'expert'), None
  )


_EXPERTS = ('layers', 'expert', 'embed', 'expert_mlp')


def test_expert_weights_are_split_over_expert_alone_and_their_moments_twice():
  mesh, shape = _mesh(2, 2, 2), (3, 4, 6, 8)
  weights = sharding.parameter_sharding(mesh, _EXPERTS, shape)
  assert weights.spec == PartitionSpec(None, 'expert', None, None)
  moments = sharding.moment_sharding(weights, shape)
  assert moments.spec == PartitionSpec(None, 'expert', 'fsdp', None)
  # 7 columns do not divide over fsdp: the next axis takes it.
  odd = sharding.moment_sharding(weights, (3, 4, 7, 8))
  assert odd.spec == PartitionSpec(None, 'expert', None, 'fsdp')


def test_without_an_expert_axis_experts_are_split_as_dense_weights():
  mesh, shape = _mesh(2, 4, 1), (3, 4, 8, 8)
  weights = sharding.parameter_sharding(mesh, _EXPERTS, shape)
  assert weights.spec == PartitionSpec(None, None, 'fsdp', None)
  assert sharding.moment_sharding(weights, shape) == weights


def test_moments_of_dense_weights_lie_where_the_weights_do():
  mesh = _mesh(2, 2, 2)
  weights = sharding.parameter_sharding(mesh, ('embed', 'mlp'), (8, 8))
  assert sharding.moment_sharding(weights, (8, 8)) == weights


def test_activations_are_split_over_the_batch_alone():
  assert sharding.spec(('batch', 'length', 'embed')) == PartitionSpec(
    ('data', 'fsdp', 'expert'), None, None
  )


def test_an_unknown_logical_axis_raises():
  with pytest.raises(ValueError, match="Unknown logical axis 'btach'"):
    sharding.spec(('btach', 'embed'))


@pytest.mark.parametrize(
  'names', [('embed', 'embed'), ('batch', 'batch'), ('expert', 'expert')]
)
def test_two_names_on_one_mesh_axis_raise(names):
  with pytest.raises(ValueError, match='both want the mesh axis'):
    sharding.spec(names)


def test_every_rule_names_known_mesh_axes():
  for axes in sharding.RULES.values():
    assert set(axes) <= set(meshes.AXES)


def test_a_batch_that_does_not_divide_names_sizes_that_do():
  with pytest.raises(ValueError, match=r'pretrain.batch_size=16 or 24'):
    sharding.check_batch_size(_mesh(), 20, 'pretrain.batch_size')
  sharding.check_batch_size(_mesh(), 24, 'pretrain.batch_size')


def test_parameters_are_really_split():
  mesh = _mesh(2, 2, 2)
  value = np.arange(16 * 6, dtype=np.float32).reshape(16, 6)
  shardings = sharding.parameter_shardings(
    mesh, {'kernel': ('embed', 'mlp')}, {'kernel': value}
  )
  placed = sharding.place({'kernel': value}, shardings)['kernel']
  # fsdp * expert = 4 ways on the first axis.
  assert {s.data.shape for s in placed.addressable_shards} == {(4, 6)}
  np.testing.assert_array_equal(placed, value)


def test_norm_scales_and_odd_axes_are_kept_whole():
  mesh = _mesh(1, 8, 1)
  for names, shape in (
    (('layers', 'embed'), (2, 8)),
    (('embed', 'mlp'), (6, 3)),
  ):
    placed = sharding.parameter_sharding(mesh, names, shape)
    assert placed.is_fully_replicated


def test_a_large_array_is_never_whole_on_every_device_by_accident():
  # 1029 is odd: fsdp = 8 does not divide it.  1029 * 300 * 4 B > 1 MiB.
  with pytest.raises(ValueError, match=r'table .* would be whole'):
    sharding.parameter_sharding(
      _mesh(1, 8, 1), ('embed', 'mlp'), (1029, 300), path='table'
    )
  # With data parallelism only, whole is what was asked for.
  assert sharding.parameter_sharding(
    _mesh(), ('embed', 'mlp'), (1029, 300)
  ).is_fully_replicated


def test_axis_names_must_cover_the_shape():
  with pytest.raises(ValueError, match='name every axis'):
    sharding.parameter_sharding(_mesh(), ('embed',), (4, 4))


def test_a_batch_is_split_by_rows():
  batch = {'x': np.arange(16).reshape(16, 1), 'mask': np.ones(16, bool)}
  placed = sharding.place_batch(batch, _mesh(2, 2, 2))
  assert {s.data.shape for s in placed['x'].addressable_shards} == {(2, 1)}
  np.testing.assert_array_equal(placed['x'], batch['x'])


def test_placed_arrays_do_not_share_memory_with_the_host():
  # They are donated to the train step, which would write into host arrays.
  value = np.zeros(4096, np.float32)
  placed = sharding.place(value, sharding.replicated(_mesh(num_devices=1)))
  value[:] = 1.0
  assert float(placed.sum()) == 0.0


# --- Paper-scale recipes ----------------------------------------------------


@functools.cache
def _paper_boxes(name):
  made = paper_sizes.experiment(name)
  sizes = None
  if made.model.encoder == 'pathways':
    sizes = assumed.feature_sizes(made.model.pathways, 1)
  levels = made.tokenizer.levels
  model = onerec.OneRec(
    made.model,
    vocabulary.Vocabulary((made.tokenizer.codes_per_level,) * levels),
    made.data.sessions.items_per_session,
    sizes=sizes,
  )
  return made, onerec.abstract_params(model)


@pytest.mark.parametrize('name', paper_sizes.published())
@pytest.mark.parametrize(
  ('num_devices', 'slices', 'hbm_bytes'),
  [
    (16, 1, 16e9),  # v5e-16; v6e-16 has twice the memory
    (64, 1, 95e9),  # v5p-128
    (128, 2, 95e9),  # 2 x v5p-128
  ],
)
def test_paper_recipes_leave_no_large_parameter_whole(
  name, num_devices, slices, hbm_bytes
):
  made, boxes = _paper_boxes(name)
  settings = config.MeshConfig(
    preset='by_size', expert=made.mesh.expert, slices=slices
  )
  sizes = meshes.sizes_of(settings, num_devices)
  mesh = AbstractMesh(sizes, meshes.AXES, axis_types=(AxisType.Auto,) * 3)
  shapes = parameters.shapes(boxes)
  found = sharding.parameter_shardings(  # raises where one would be whole
    mesh, parameters.logical_names(boxes), shapes
  )

  def local(x, s):
    part = math.prod(s.shard_shape(x.shape))
    ways = math.prod(x.shape) // part
    if 4 * math.prod(x.shape) > sharding.MAX_WHOLE_BYTES:
      # Experts are split over their axis, all else over the whole slice.
      assert ways in (sizes[2], sizes[1] * sizes[2]) and ways > 1
    moments = sharding.moment_sharding(s, x.shape).shard_shape(x.shape)
    # Weights and gradients; two moments.
    return 4 * (2 * part + 2 * math.prod(moments))

  state = sum(jax.tree.leaves(jax.tree.map(local, shapes, found)))
  assert state < 0.35 * hbm_bytes  # the rest is for activations
