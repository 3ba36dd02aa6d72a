"""Which mesh axis each logical axis is sharded over, and arrays put there.

Nothing else decides it.  Refuses to guess: an unknown name, two names on one
mesh axis, a batch that does not divide, and a large array left whole on every
device all raise.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jaxtyping import Int

from onerec_jax import meshes

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


def check_axes(mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError unless the mesh has all axes that the rules name."""
  missing = [axis for axis in meshes.AXES if axis not in mesh.axis_names]
  if missing:
    raise ValueError(
      f'The mesh has the axes {tuple(mesh.axis_names)} and lacks {missing}:'
      ' make it by meshes.make_mesh, where an axis may have size 1.'
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
    shape = ' * '.join(f'{a}={mesh.shape[a]}' for a in meshes.AXES)
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


# --- Placement -----------------------------------------------------------


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


def own_rows(mesh: Mesh) -> Callable[[int], Int[np.ndarray, ' rows']]:
  """Returns the function from a batch size to this process's rows.

  They are the rows that `place_batch` puts on the devices of this
  process, in that order.  Over all processes every row comes once.  A mesh
  need not follow the order of processes, so the rows need not be adjacent.
  """
  placement = batch_sharding(mesh)

  def rows(batch_size: int) -> Int[np.ndarray, ' rows']:
    found = placement.addressable_devices_indices_map((batch_size,))
    parts = {
      index[0].indices(batch_size)[:2]
      for index in found.values()
      if index is not None
    }
    return np.concatenate([np.arange(*part) for part in sorted(parts)])

  return rows


def place_rows(batch: Any, mesh: Mesh) -> Any:
  """Returns a batch that every process holds whole as global arrays."""
  rows = batch_sharding(mesh)
  return place(batch, jax.tree.map(lambda _: rows, batch))


def gather(tree: Any) -> Any:
  """Returns device arrays as NumPy arrays, whole on every process."""

  def whole(value: Any) -> Any:
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
      return value
    if value.is_fully_replicated:
      return value
    return multihost_utils.process_allgather(value, tiled=True)

  return jax.device_get(jax.tree.map(whole, tree))
