"""Device descriptions of TPU slices that nobody has to own.

libtpu describes them by names of its own; users know v6e-16 and v5p-128.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax.experimental import topologies

from onerec_jax import accelerators
from onerec_jax.aot import environment


class Topology(NamedTuple):
  """The devices of one or several slices."""

  slice: accelerators.Slice
  num_slices: int
  devices: list[Any]  # only for compiling: nothing can be put on them


def libtpu_arguments(
  found: accelerators.Slice, *, num_slices: int
) -> tuple[str, dict[str, Any]]:
  """Returns libtpu's name of a slice and the options that go with it.

  Args:
    found: from `accelerators.tpu_slice`.
    num_slices: equal slices joined by the data-centre network.
  """
  generation = found.generation
  options: dict[str, Any] = {
    'num_slices': num_slices,
    'wrap': found.wrap,
    'chips_per_host_bounds': (1, 1, 1) if found.chips == 1 else (2, 2, 1),
  }
  if generation.libtpu_chip_config is not None:
    options['chip_config_name'] = generation.libtpu_chip_config
  return f'{generation.libtpu}:{found.topology}', options


def describe(name: str, *, num_slices: int = 1) -> Topology:
  """Returns the devices of `num_slices` slices.

  Args:
    name: user name, e.g. 'v6e-16'.
    num_slices: equal slices joined by the data-centre network.

  Raises:
    environment.LibtpuMissing: there is no libtpu.
    ValueError: the name is unknown, or libtpu does not know the slice.
  """
  if num_slices < 1:
    raise ValueError(f'--slices={num_slices} must be at least 1.')
  found = accelerators.tpu_slice(name)
  problem = environment.missing()
  if problem is not None:
    raise environment.LibtpuMissing(problem)
  libtpu_name, options = libtpu_arguments(found, num_slices=num_slices)
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=libtpu_name, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f'libtpu cannot describe {name} ({libtpu_name}, {options}): {error}'
    ) from error
  wanted = found.num_devices * num_slices
  if len(description.devices) != wanted:
    raise ValueError(
      f'libtpu gives {len(description.devices)} devices for {num_slices} x'
      f' {name}, accelerators.json says {wanted}: correct the entry.'
    )
  return Topology(found, num_slices, list(description.devices))
