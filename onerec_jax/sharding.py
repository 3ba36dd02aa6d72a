"""Which mesh axis each logical axis is sharded over; nothing else decides it.

Refuses to guess: an unknown name, two names on one mesh axis, a batch that
does not divide, and a large array left whole on every device all raise.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

# No tensor axis: it pays where mlp_dim / axis exceeds the tokens that hide a
# collective (about 5,100 on v6e), so never for embed_dim <= 2048.
AXES = ('data', 'fsdp', 'expert')

# preset='by_size': most devices that one copy of the weights is split over.
# 64 leave 0.7 GB of a 2.6 B model's f32 state on each (16 B per parameter);
# beyond, all-gathers get longer rings for memory that is no longer scarce.
MAX_SHARDS = 64

# Logical axis -> mesh axes; () keeps the axis whole.  The batch runs over all
# three, so that dense layers are data parallel everywhere; dense weights are
# split over fsdp and expert alike, or else they would be whole on each
# expert shard.  Experts stay where they are and tokens move: their weights are
# never gathered, which would move some 75 times the bytes of the decoder's
# tokens (64 rows a device, 24 experts).
RULES: Mapping[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp', 'expert'),
  'length': (),
  'vocab': (),
  'embed': ('fsdp', 'expert'),
  'heads': (),
  'head_dim': (),
  'mlp': (),
  'expert': ('expert',),
  'expert_mlp': (),
  'layers': (),
  'codes': (),
  'buckets': (),
}
# An array with an 'expert' axis has spent that mesh axis; its moments take fsdp
# (`moment_sharding`).  On a mesh of expert = 1 it is split as any dense weight.
_BESIDE_EXPERT: Mapping[str, tuple[str, ...]] = {'embed': ()}
_WITHOUT_EXPERT_AXIS: Mapping[str, tuple[str, ...]] = {
  'expert': (),
  'embed': ('fsdp',),
}
# Activations: 'embed' is whole where 'batch' took every mesh axis.
_BESIDE_BATCH: Mapping[str, tuple[str, ...]] = {'embed': (), 'expert': ()}

# Largest array (bytes) that may be whole on every device when fsdp or expert
# is above 1: below this, gathering costs more than the memory is worth.
MAX_WHOLE_BYTES = 1 << 20


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


def check_axes(mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError unless the mesh has all axes that the rules name."""
  missing = [axis for axis in AXES if axis not in mesh.axis_names]
  if missing:
    raise ValueError(
      f'The mesh has the axes {tuple(mesh.axis_names)} and lacks {missing}:'
      ' make it by sharding.make_mesh, where an axis may have size 1.'
    )


def spec(
  names: Sequence[str | None], *, expert_axis: bool = True
) -> PartitionSpec:
  """Returns the mesh axes of an array whose axes carry logical `names`.

  Args:
    names: one logical axis per array axis; None keeps the axis whole.
    expert_axis: False: of a mesh with expert = 1, where weights of experts are
      split over fsdp and gathered layer by layer.

  Raises:
    ValueError: a name is not in `RULES`, or two names need one mesh axis.
  """
  names = tuple(names)
  for name in names:
    if name is not None and name not in RULES:
      raise ValueError(
        f'Unknown logical axis {name!r} in {names}. Known: {sorted(RULES)}. Add'
        ' it to onerec_jax/sharding.py.'
      )
  rules = dict(RULES)
  if 'expert' in names:
    rules.update(_BESIDE_EXPERT if expert_axis else _WITHOUT_EXPERT_AXIS)
  if 'batch' in names:
    rules.update(_BESIDE_BATCH)
  owner: dict[str, str] = {}
  entries: list[tuple[str, ...] | str | None] = []
  for name in names:
    axes = () if name is None else rules[name]
    for axis in axes:
      if axis in owner:
        raise ValueError(
          f'Logical axes {owner[axis]!r} and {name!r} of {names} both want the'
          f' mesh axis {axis!r}. Name one of them None, or change RULES in'
          ' onerec_jax/sharding.py.'
        )
      owner[axis] = str(name)
    entries.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*entries)


def named_sharding(
  mesh: Mesh | AbstractMesh, names: Sequence[str | None]
) -> NamedSharding:
  """Returns `spec(names)` on `mesh`."""
  check_axes(mesh)
  return NamedSharding(mesh, spec(names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of every batch array: axis 0 over all mesh axes."""
  return named_sharding(mesh, ('batch',))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that is whole on every device.

  On purpose whole: scalars and router biases; and per item, what every device
  looks up at random: codes (4 B per level), item features (4 B per value) and,
  to decode, the trie (at most 11 B).  For 3 levels and 8 values that is 0.55 GB
  for 1e7 items and 5.5 GB for 1e8: a third of a v5e chip, 6 % of a v5p.
  """
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, setting: str) -> None:
  """Raises ValueError unless every device gets the same number of rows.

  Args:
    mesh: the device mesh.
    batch_size: global batch size.
    setting: the config path to name in the error, e.g. 'pretrain.batch_size'.
  """
  check_axes(mesh)
  shards = mesh.size
  if batch_size % shards:
    down = max(batch_size // shards, 1) * shards
    shape = ' * '.join(f'{a}={mesh.shape[a]}' for a in AXES)
    raise ValueError(
      f'{setting}={batch_size} is not divisible by {shape} = {shards} devices;'
      f' use {setting}={down} or {down + shards}.'
    )


def is_axis_names(value: Any) -> bool:
  """Returns whether `value` is the axis names of one array (a tree leaf)."""
  return isinstance(value, tuple) and all(
    name is None or isinstance(name, str) for name in value
  )


def parameter_sharding(
  mesh: Mesh | AbstractMesh,
  names: Sequence[str | None],
  shape: Sequence[int],
  *,
  itemsize: int = 4,
  path: str = 'parameter',
) -> NamedSharding:
  """Returns the sharding of one parameter.

  Two rules keep an axis whole where `spec` would split it: arrays with fewer
  than two axes besides 'layers' (norm scales), and axes that the mesh axes do
  not divide.

  Args:
    mesh: the device mesh.
    names: logical axis names, one per axis of `shape`.
    shape: shape of the parameter.
    itemsize: bytes per element.
    path: name of the parameter, for errors.

  Raises:
    ValueError: names and shape differ in length, or an array above
      `MAX_WHOLE_BYTES` would be whole on every device of fsdp and expert.
  """
  if len(names) != len(shape):
    raise ValueError(
      f'{path}: {len(names)} logical axes {tuple(names)} for shape'
      f' {tuple(shape)}; name every axis.'
    )
  check_axes(mesh)
  entries: list[Any] = list(spec(names, expert_axis=mesh.shape['expert'] > 1))
  if sum(name != 'layers' for name in names) < 2:
    entries = [None] * len(entries)
  for i, (entry, size) in enumerate(zip(entries, shape, strict=True)):
    axes = (entry,) if isinstance(entry, str) else entry or ()
    if size % math.prod(mesh.shape[a] for a in axes):
      entries[i] = None
  split = math.prod(
    mesh.shape[axis]
    for entry in entries
    for axis in ((entry,) if isinstance(entry, str) else entry or ())
  )
  num_bytes = math.prod(shape) * itemsize
  ways = mesh.shape['fsdp'] * mesh.shape['expert']
  if ways > 1 and split == 1 and num_bytes > MAX_WHOLE_BYTES:
    raise ValueError(
      f'{path} {tuple(shape)} with axes {tuple(names)} ({num_bytes / 2**20:.1f}'
      f' MiB) would be whole on every device of mesh.fsdp='
      f'{mesh.shape["fsdp"]}, mesh.expert={mesh.shape["expert"]}: make its'
      f" 'embed' or 'expert' axis divisible by {ways}, or set mesh.fsdp=1 and"
      ' mesh.expert=1.'
    )
  return NamedSharding(mesh, PartitionSpec(*entries))


def moment_sharding(
  parameter: NamedSharding, shape: Sequence[int]
) -> NamedSharding:
  """Returns the sharding of a parameter's moments in the optimizer (ZeRO-1).

  That of the parameter; but where experts are split over expert alone, moments
  are split over fsdp too, along the first later axis that fsdp divides.  Only
  the update is gathered, once a step and outside the layers.

  Args:
    parameter: of `parameter_sharding`.
    shape: shape of the parameter.
  """
  fsdp = parameter.mesh.shape.get('fsdp', 1)
  entries = list(parameter.spec)
  if fsdp == 1 or 'expert' not in entries:
    return parameter
  for i in range(entries.index('expert') + 1, len(shape)):
    if entries[i] is None and shape[i] % fsdp == 0:
      entries[i] = 'fsdp'
      break
  return NamedSharding(parameter.mesh, PartitionSpec(*entries))


def parameter_shardings(
  mesh: Mesh | AbstractMesh, names: Any, abstract: Any
) -> Any:
  """Returns a sharding per parameter.

  Args:
    mesh: the device mesh.
    names: tree of tuples of logical axis names.
    abstract: tree of arrays or ShapeDtypeStructs of the same structure.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, n, x: parameter_sharding(
      mesh,
      n,
      x.shape,
      itemsize=np.dtype(x.dtype).itemsize,
      path=jax.tree_util.keystr(path, simple=True, separator='/'),
    ),
    names,
    abstract,
    is_leaf=is_axis_names,
  )


def place(tree: Any, shardings: Any) -> Any:
  """Returns NumPy arrays, equal on every process, as global device arrays."""

  def put(value: Any, sharding: NamedSharding) -> jax.Array:
    value = np.asarray(value)
    return jax.make_array_from_callback(
      value.shape,
      sharding,
      # A copy: the device buffer may alias host memory on CPU, and is donated.
      lambda index: np.array(value[index], copy=True),
    )

  return jax.tree.map(put, tree, shardings)


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """Returns this process's rows of a batch as global arrays on the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (x.shape[0] * jax.process_count(), *x.shape[1:])
    ),
    batch,
  )


def fill_rows(values: np.ndarray, rows: int) -> np.ndarray:
  """Returns `values` with zero (False) rows added up to `rows`."""
  missing = [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1)
  return np.pad(values, missing)
