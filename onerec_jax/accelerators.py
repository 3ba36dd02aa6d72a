"""Accelerators by name: peak, memory and slices, from accelerators.json.

The launch scripts under tpu/ read the same file.  No JAX, no settings.
"""

import dataclasses
import difflib
import functools
import json
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal

_PATH = pathlib.Path(__file__).parent / 'accelerators.json'


@dataclasses.dataclass(frozen=True)
class Generation:
  """One generation of accelerators; rates and memory are per JAX device."""

  name: str  # 'v5e', 'h200'
  kind: Literal['tpu', 'gpu']
  device_kinds: tuple[str, ...]  # prefixes of jax.Device.device_kind
  devices_per_chip: int  # JAX devices; 2 for tpu7x
  peak_bf16_flops: float  # dense, FLOP/s
  hbm_bytes: int
  hbm_bytes_per_second: float
  # Of TPUs only; None for GPUs.
  libtpu: str | None = None  # its name in libtpu's topologies
  libtpu_chip_config: str | None = None  # e.g. 'megacore'; None: the default
  chips_per_host: int | None = None  # in slices of several hosts
  cores_per_chip_in_name: int | None = None  # v5p-128 counts 2 per chip


@dataclasses.dataclass(frozen=True)
class Slice:
  """A TPU slice as it is rented."""

  name: str  # 'v5p-128'
  generation: Generation
  chips: int
  hosts: int
  topology: str  # '4x4x4'
  wrap: tuple[bool, bool, bool]  # axes whose links close to a ring

  @property
  def num_devices(self) -> int:
    """JAX devices of one slice."""
    return self.chips * self.generation.devices_per_chip


def generation(name: str) -> Generation:
  """Returns a generation by name, e.g. 'v6e' or 'h200'.

  Raises:
    ValueError: the name is unknown; the nearest known ones are named.
  """
  known = _generations()
  if name not in known:
    raise ValueError(_unknown('accelerator', name, known))
  return known[name]


def tpu_slice(name: str) -> Slice:
  """Returns a TPU slice by its user name, e.g. 'v6e-16'.

  'v5litepod-16' is another name of 'v5e-16'.

  Raises:
    ValueError: the name is unknown; the nearest known ones are named.
  """
  known = _slices()
  name = name.replace('v5litepod-', 'v5e-')
  if name not in known:
    raise ValueError(_unknown('TPU slice', name, known))
  return known[name]


def slice_names() -> tuple[str, ...]:
  """Returns the user names of all known TPU slices."""
  return tuple(_slices())


def of_device_kind(device_kind: str) -> Generation | None:
  """Returns the generation of `jax.Device.device_kind`; None: not known."""
  known = {
    prefix: found
    for found in _generations().values()
    for prefix in found.device_kinds
    if device_kind.startswith(prefix)
  }
  # 'TPU v5 lite' begins with 'TPU v5', which is v5p.
  return known[max(known, key=len)] if known else None


def peak_flops(device_kind: str) -> float | None:
  """Returns the bf16 peak of one JAX device in FLOP/s; None: not known."""
  found = of_device_kind(device_kind)
  return found.peak_bf16_flops if found else None


@functools.cache
def _read() -> Mapping[str, Any]:
  return json.loads(_PATH.read_text())


@functools.cache
def _generations() -> Mapping[str, Generation]:
  names = {field.name for field in dataclasses.fields(Generation)}
  return {
    name: Generation(
      name=name,
      # What only the launch scripts need (runtime versions, names of GKE) is
      # not read.
      **{k: v for k, v in values.items() if k in names - {'device_kinds'}},
      device_kinds=tuple(values['device_kinds']),
    )
    for name, values in _read()['generations'].items()
  }


@functools.cache
def _slices() -> Mapping[str, Slice]:
  return {
    name: Slice(
      name=name,
      generation=_generations()[values['generation']],
      chips=values['chips'],
      hosts=values['hosts'],
      topology=values['topology'],
      wrap=tuple(values['wrap']),
    )
    for name, values in _read()['slices'].items()
  }


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
  known = list(known)
  near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
  family = [k for k in known if k.split('-')[0] == name.split('-')[0]]
  return (
    f'Unknown {what} {name!r}. '
    + (f'Nearest: {", ".join(near)}. ' if near else '')
    + f'Known: {", ".join(family or known)}. They are listed in'
    ' onerec_jax/accelerators.json.'
  )
