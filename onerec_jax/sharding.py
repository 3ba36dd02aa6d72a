"""Which mesh axis each logical axis is sharded over; nothing else decides it.

Refuses to guess: an unknown name, two names on one mesh axis, a batch that
does not divide, and a large array left whole on every device all raise.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

AXES = ('data', 'fsdp', 'expert')

# Logical axis -> mesh axes; () keeps the axis whole.  The batch runs over all
# three, so that dense layers are data parallel everywhere; dense weights are
# split over fsdp and expert alike, or else they would be whole on each
# expert shard.
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
# An array with an 'expert' axis has spent the mesh axis of that name.
_BESIDE_EXPERT: Mapping[str, tuple[str, ...]] = {'embed': ('fsdp',)}
# Activations: 'embed' is whole where 'batch' took every mesh axis.
_BESIDE_BATCH: Mapping[str, tuple[str, ...]] = {'embed': (), 'expert': ()}

# Largest array (bytes) that may be whole on every device when fsdp or expert
# is above 1: below this, gathering costs more than the memory is worth.
MAX_WHOLE_BYTES = 1 << 20


@runtime_checkable
class MeshSizes(Protocol):
  """Devices per mesh axis, as config.MeshConfig has them."""

  @property
  def data(self) -> int: ...
  @property
  def fsdp(self) -> int: ...
  @property
  def expert(self) -> int: ...


def make_mesh(
  mesh_config: MeshSizes, devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns the (data, fsdp, expert) mesh over all devices.

  Args:
    mesh_config: sizes; one may be -1 and takes the devices that are left.
    devices: devices to use; None: all of all processes.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [mesh_config.data, mesh_config.fsdp, mesh_config.expert]
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise ValueError(
      f'mesh (data, fsdp, expert)={tuple(sizes)}: sizes are positive, and at'
      ' most one is -1.'
    )
  known = math.prod(s for s in sizes if s != -1)
  free = [i for i, s in enumerate(sizes) if s == -1]
  if free and len(devices) % known == 0:
    sizes[free[0]] = len(devices) // known
  if math.prod(sizes) != len(devices):
    text = ' * '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))
    others = mesh_config.fsdp * mesh_config.expert
    if free:
      fix = (
        f'{known} must divide {len(devices)}; change'
        f' mesh.{" or mesh.".join(a for a in AXES if a != AXES[free[0]])}.'
      )
    elif len(devices) % others == 0:
      fix = f'set mesh.data=-1 (or {len(devices) // others}).'
    else:
      fix = 'set mesh.data=-1, mesh.fsdp=1 and mesh.expert=1.'
    raise ValueError(
      f'mesh {text} does not cover {len(devices)} devices: {fix}'
    )
  return jax.make_mesh(
    tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * 3
  )


def spec(names: Sequence[str | None]) -> PartitionSpec:
  """Returns the mesh axes of an array whose axes carry logical `names`.

  Args:
    names: one logical axis per array axis; None keeps the axis whole.

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
    rules.update(_BESIDE_EXPERT)
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


def named_sharding(mesh: Mesh, names: Sequence[str | None]) -> NamedSharding:
  """Returns `spec(names)` on `mesh`."""
  return NamedSharding(mesh, spec(names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of every batch array: axis 0 over all mesh axes."""
  return named_sharding(mesh, ('batch',))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that is whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, setting: str) -> None:
  """Raises ValueError unless every device gets the same number of rows.

  Args:
    mesh: the device mesh.
    batch_size: global batch size.
    setting: the config path to name in the error, e.g. 'pretrain.batch_size'.
  """
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
  mesh: Mesh,
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
  entries: list[Any] = list(spec(names))
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


def parameter_shardings(mesh: Mesh, names: Any, abstract: Any) -> Any:
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
