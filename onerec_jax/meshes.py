"""Meshes of all sizes: how many devices each axis gets, and which ones.

Refuses a mesh that leaves devices out, and a copy of the weights that crosses
slices.  Knows no array.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import Mesh

# No tensor axis: it pays where mlp_dim / axis exceeds the tokens that hide a
# collective (about 5,100 on v6e), so never for embed_dim <= 2048.
AXES = ('data', 'fsdp', 'expert')

# preset='by_size': most devices that one copy of the weights is split over.
# 64 leave 0.7 GB of a 2.6 B model's f32 state on each (16 B per parameter);
# beyond, all-gathers get longer rings for memory that is no longer scarce.
MAX_SHARDS = 64


@runtime_checkable
class MeshSettings(Protocol):
  """What config.MeshConfig has; explained there."""

  @property
  def data(self) -> int: ...
  @property
  def fsdp(self) -> int: ...
  @property
  def expert(self) -> int: ...
  @property
  def slices(self) -> int: ...
  @property
  def preset(self) -> Literal['explicit', 'by_size']: ...


def sizes_of(settings: MeshSettings, num_devices: int) -> tuple[int, int, int]:
  """Returns the sizes of the (data, fsdp, expert) axes.

  explicit: the settings, with -1 replaced by what is left.  by_size:

    expert = gcd(settings.expert, devices of a slice)
    fsdp = s / expert,  s the largest divisor of the devices of a slice that
      expert divides and that is at most MAX_SHARDS
    data = the rest, slices included

  so with expert=8: 4 devices (1, 1, 4); 8 (1, 1, 8); 16 (1, 2, 8); 64
  (1, 8, 8); 256 (4, 8, 8); 2 slices of 64 (2, 8, 8).  A larger expert axis
  costs dense layers nothing, as they are split over fsdp * expert.

  Args:
    settings: of the mesh.
    num_devices: all devices of the job.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or a slice
      would hold a part of a copy of the weights.
  """
  slices = settings.slices
  if slices < 1 or num_devices % slices:
    raise ValueError(
      f'mesh.slices={slices} does not divide {num_devices} devices: set'
      ' mesh.slices to the number of slices of the job.'
    )
  if settings.preset == 'by_size':
    return _sizes_by_size(settings.expert, num_devices, slices)
  sizes = [settings.data, settings.fsdp, settings.expert]
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise ValueError(
      f'mesh (data, fsdp, expert)={tuple(sizes)}: sizes are positive, and at'
      ' most one is -1.'
    )
  known = math.prod(s for s in sizes if s != -1)
  free = [i for i, s in enumerate(sizes) if s == -1]
  if free and num_devices % known == 0:
    sizes[free[0]] = num_devices // known
  if math.prod(sizes) != num_devices:
    text = ' * '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))
    others = settings.fsdp * settings.expert
    if free:
      fix = (
        f'{known} must divide {num_devices}; change'
        f' mesh.{" or mesh.".join(a for a in AXES if a != AXES[free[0]])}.'
      )
    elif num_devices % others == 0:
      fix = f'set mesh.data=-1 (or {num_devices // others}).'
    else:
      fix = 'set mesh.data=-1, mesh.fsdp=1 and mesh.expert=1.'
    raise ValueError(f'mesh {text} does not cover {num_devices} devices: {fix}')
  data, fsdp, expert = sizes
  if data % slices:
    raise ValueError(
      f'mesh.data={data} is not divisible by mesh.slices={slices}: only data'
      f' crosses slices. Set mesh.fsdp={fsdp} and mesh.expert={expert} so that'
      f' their product divides the {num_devices // slices} devices of a slice.'
    )
  return data, fsdp, expert


def _sizes_by_size(
  expert: int, num_devices: int, slices: int
) -> tuple[int, int, int]:
  in_slice = num_devices // slices
  expert = math.gcd(expert, in_slice)
  shards = max(
    s
    for s in range(expert, in_slice + 1, expert)
    if in_slice % s == 0 and s <= max(expert, MAX_SHARDS)
  )
  return num_devices // shards, shards // expert, expert


def make_mesh(
  settings: MeshSettings,
  devices: Sequence[Any] | None = None,
  *,
  slice_of: Callable[[Any], int] | None = None,
) -> Mesh:
  """Returns the (data, fsdp, expert) mesh over all devices.

  Neighbours along expert, then fsdp, are near each other in the slice; slices
  lie one after the other along data, so that the slow network between them
  carries the gradients once per step and nothing else.

  Args:
    settings: sizes or preset, and slices.
    devices: devices to use; None: all of all processes.
    slice_of: slice of a device; None: what the device says, and where it says
      nothing (CPU), its process if settings.slices > 1.

  Raises:
    ValueError: see `sizes_of`; or the devices lie in other slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  data, fsdp, expert = sizes_of(settings, len(devices))
  groups: dict[int, list[Any]] = {}
  for device in devices:
    index = (slice_of or _slice_of)(device)
    if index is None:
      index = device.process_index if settings.slices > 1 else 0
    groups.setdefault(index, []).append(device)
  lengths = sorted({len(group) for group in groups.values()})
  if len(groups) != settings.slices or len(lengths) > 1:
    raise ValueError(
      f'mesh.slices={settings.slices}, but the {len(devices)} devices lie in'
      f' {len(groups)} slices of {" or ".join(map(str, lengths))}: set'
      f' mesh.slices={len(groups)}, with slices of one size.'
    )
  # jax.make_mesh is not enough: it takes one slice, and but for v5e it gives
  # up where a logical axis is not a product of whole physical ones, as
  # expert = 8 on 4 x 4 chips.
  parts = [
    mesh_utils.create_device_mesh(
      (data // settings.slices, fsdp, expert),
      groups[index],
      allow_split_physical_axes=True,
    )
    for index in sorted(groups)
  ]
  return Mesh(np.concatenate(parts), AXES, axis_types=(AxisType.Auto,) * 3)


def _slice_of(device: Any) -> int | None:
  return getattr(device, 'slice_index', None)
