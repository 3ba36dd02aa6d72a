import math

import pytest

from onerec_jax import accelerators


def test_a_device_kind_belongs_to_its_longest_prefix():
  # 'TPU v5' alone is what v5p calls itself.
  for kind, name in (
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
  ):
    found = accelerators.of_device_kind(kind)
    assert found is not None
    assert found.name == name
  assert accelerators.of_device_kind('cpu') is None


def test_the_peak_of_a_device_is_not_that_of_a_chip_with_two():
  # tpu7x: 2307 TFLOP/s per chip, two JAX devices.
  assert accelerators.peak_flops('TPU7x') == 2307e12 / 2
  assert accelerators.peak_flops('TPU v5 lite') == 197e12
  assert accelerators.peak_flops('cpu') is None


@pytest.mark.parametrize('name', accelerators.slice_names())
def test_every_slice_is_consistent(name):
  found = accelerators.tpu_slice(name)
  sizes = [int(size) for size in found.topology.split('x')]
  assert math.prod(sizes) == found.chips
  counted = int(name.split('-')[1])
  assert counted == found.chips * (found.generation.cores_per_chip_in_name or 0)
  assert found.generation.name == name.split('-')[0]
  assert found.chips % found.hosts == 0
  assert found.num_devices == found.chips * (2 if 'tpu7x' in name else 1)
  if found.hosts > 1:
    assert found.chips // found.hosts == found.generation.chips_per_host


def test_slices_are_found_by_both_names_of_google():
  found = accelerators.tpu_slice('v5p-128')
  assert (found.chips, found.hosts) == (64, 16)
  assert accelerators.tpu_slice('v5litepod-16').name == 'v5e-16'


def test_an_unknown_slice_names_the_nearest():
  with pytest.raises(ValueError, match=r"'v6-16'. Nearest: .*v6e-16"):
    accelerators.tpu_slice('v6-16')
  with pytest.raises(ValueError, match=r'Known: v5p-8, v5p-16'):
    accelerators.tpu_slice('v5p-100')


def test_an_unknown_accelerator_names_the_nearest():
  with pytest.raises(ValueError, match='Nearest: h100, h200'):
    accelerators.generation('h150')
