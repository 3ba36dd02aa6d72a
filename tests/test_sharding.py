import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec

from onerec_jax import config
from onerec_jax import sharding


def _mesh(data=-1, fsdp=1, expert=1, num_devices=8):
  return sharding.make_mesh(
    config.MeshConfig(data, fsdp, expert), jax.devices()[:num_devices]
  )


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((-1, 2, 2), (2, 2, 2)),
    ((1, -1, 4), (1, 2, 4)),
    ((2, 2, -1), (2, 2, 2)),
    ((1, 1, 8), (1, 1, 8)),
  ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, shape):
  mesh = _mesh(*sizes)
  assert tuple(mesh.shape[a] for a in sharding.AXES) == shape
  assert mesh.axis_names == ('data', 'fsdp', 'expert')


def test_mesh_axes_are_auto():
  # Explicit axes (the default of make_mesh) refuse argsort on sharded axes.
  assert set(_mesh().axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  ('sizes', 'words'),
  [
    ((1, 1, 1), 'set mesh.data=-1'),
    ((2, 2, 1), 'set mesh.data=-1 (or 4)'),
    ((-1, 3, 1), '3 must divide 8; change mesh.fsdp or mesh.expert'),
    ((16, 1, 1), 'set mesh.data=-1 (or 8)'),
    ((1, 3, 1), 'set mesh.data=-1, mesh.fsdp=1 and mesh.expert=1'),
    ((-1, -1, 1), 'at most one is -1'),
    ((0, 1, 1), 'sizes are positive'),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_to_set(sizes, words):
  with pytest.raises(ValueError) as error:
    _mesh(*sizes)
  assert words in str(error.value)


def test_dense_weights_are_split_over_fsdp_and_expert():
  assert sharding.spec(('embed', 'mlp')) == PartitionSpec(
    ('fsdp', 'expert'), None
  )


def test_expert_weights_are_split_over_expert_and_fsdp_once_each():
  names = ('layers', 'expert', 'embed', 'expert_mlp')
  assert sharding.spec(names) == PartitionSpec(None, 'expert', 'fsdp', None)


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
    assert set(axes) <= set(sharding.AXES)


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
