"""Meshes of every size, of fake chips and fake devices."""

import itertools
import math

import numpy as np
import pytest
from jax.sharding import AxisType

from onerec_jax import config
from onerec_jax import meshes


def _mesh(data=-1, fsdp=1, expert=1):
  return meshes.make_mesh(config.MeshConfig(data, fsdp, expert))


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
  assert tuple(mesh.shape[a] for a in meshes.AXES) == shape
  assert mesh.axis_names == ('data', 'fsdp', 'expert')


@pytest.mark.parametrize(
  ('num_devices', 'slices', 'shape'),
  [
    (1, 1, (1, 1, 1)),
    (4, 1, (1, 1, 4)),
    (8, 1, (1, 1, 8)),
    (12, 1, (1, 3, 4)),  # of 8 experts' devices 4 divide 12
    (16, 1, (1, 2, 8)),
    (64, 1, (1, 8, 8)),
    (96, 1, (2, 6, 8)),  # 48 is the largest divisor up to 64 that 8 divides
    (256, 1, (4, 8, 8)),
    (16, 2, (2, 1, 8)),
    (128, 2, (2, 8, 8)),
    (512, 2, (8, 8, 8)),
  ],
)
def test_sizes_follow_the_number_of_devices(num_devices, slices, shape):
  settings = config.MeshConfig(preset='by_size', expert=8, slices=slices)
  assert meshes.sizes_of(settings, num_devices) == shape
  assert math.prod(shape) == num_devices


def test_without_experts_weights_are_split_over_fsdp_alone():
  settings = config.MeshConfig(preset='by_size')
  assert meshes.sizes_of(settings, 12) == (1, 12, 1)
  assert meshes.sizes_of(settings, 256) == (4, 64, 1)


class _Chip:
  """A TPU as the mesh sees it; none is needed."""

  platform = 'tpu'
  core_on_chip = 0

  def __init__(self, kind, coords, number, slice_index):
    self.device_kind = kind
    self.coords = coords
    self.id = number
    self.process_index = number // 4
    self.slice_index = slice_index


def _chips(kind, topology, slices=1):
  x, y, z = topology
  places = itertools.product(range(slices), range(z), range(y), range(x))
  return [
    _Chip(kind, (a, b, c), number, s)
    for number, (s, c, b, a) in enumerate(places)
  ]


@pytest.mark.parametrize(
  ('kind', 'topology', 'slices', 'shape'),
  [
    ('TPU v5 lite', (4, 4, 1), 1, (1, 2, 8)),
    # Neither 4 x 4 nor 4 x 4 x 4 chips have a side, or two, of 8.
    ('TPU v6 lite', (4, 4, 1), 1, (1, 2, 8)),
    ('TPU v5', (4, 4, 4), 1, (1, 8, 8)),
    ('TPU v5', (4, 4, 4), 2, (2, 8, 8)),
    ('TPU v6 lite', (16, 16, 1), 1, (4, 8, 8)),
  ],
)
def test_every_topology_gets_the_mesh_of_its_size(
  kind, topology, slices, shape
):
  chips = _chips(kind, topology, slices)
  settings = config.MeshConfig(preset='by_size', expert=8, slices=slices)
  mesh = meshes.make_mesh(settings, chips)
  assert mesh.devices.shape == shape
  assert {d.id for d in mesh.devices.flat} == set(range(len(chips)))
  # Along fsdp and expert, no step leaves the slice.
  for row in mesh.devices:
    assert len({d.slice_index for d in row.flat}) == 1


@pytest.mark.parametrize('slice_of', [lambda d: d.id // 4, lambda d: d.id % 2])
def test_only_the_data_axis_crosses_slices(slice_of):
  settings = config.MeshConfig(-1, 2, 2, slices=2)
  mesh = meshes.make_mesh(settings, slice_of=slice_of)
  assert mesh.devices.shape == (2, 2, 2)
  slices = np.vectorize(slice_of)(mesh.devices)
  np.testing.assert_array_equal(
    slices, np.arange(2)[:, None, None] * [[[1, 1]] * 2]
  )


@pytest.mark.parametrize(
  ('settings', 'slice_of', 'words'),
  [
    (dict(slices=3), None, 'mesh.slices=3 does not divide 8'),
    (dict(slices=2), lambda d: 0, 'in 1 slices of 8: set mesh.slices=1'),
    (dict(), lambda d: d.id // 4, 'in 2 slices of 4: set mesh.slices=2'),
    (dict(slices=2), lambda d: d.id // 6, 'slices of 2 or 6'),
    (
      dict(slices=2, fsdp=8),
      lambda d: d.id // 4,
      'mesh.data=1 is not divisible by mesh.slices=2',
    ),
  ],
)
def test_slices_that_do_not_fit_say_what_to_set(settings, slice_of, words):
  with pytest.raises(ValueError) as error:
    meshes.make_mesh(config.MeshConfig(**settings), slice_of=slice_of)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ('mesh', 'words'),
  [
    ({'preset': 'by_size', 'fsdp': 4}, "set mesh.preset='explicit'"),
    ({'preset': 'by_size', 'data': 2}, 'leave them at -1 and 1'),
    ({'preset': 'by_size', 'expert': -1}, 'the largest size wanted'),
    ({'preset': 'by_size', 'expert': 7}, 'not divisible by mesh.expert=7'),
    ({'slices': 0}, 'mesh.slices=0 must be at least 1'),
    ({'slices': 2, 'data': 3}, 'Set mesh.data=-1'),
  ],
)
def test_mesh_settings_that_cannot_work_are_refused(mesh, words):
  with pytest.raises(ValueError) as error:
    config.from_config_dict({'mesh': mesh})
  assert words in str(error.value)


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
