"""Points whose rows are split over all devices of a mesh.

What k-means needs to give there what it gives on one device: rows of the
points by their global number, and the best rows of all devices.  Points are
never gathered.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import sharding


class Shards(NamedTuple):
  """Where the rows of some points are: device after device, equally many."""

  mesh: Mesh
  num_points: int  # rows behind these fill the last devices up; never read

  @property
  def axes(self) -> tuple[str, ...]:
    """Mesh axes that the rows are split over."""
    return tuple(self.mesh.axis_names)


def split(points: Float[np.ndarray, 'I D'], mesh: Mesh) -> tuple[Any, Shards]:
  """Returns points on the devices, with zero rows added up to their multiple.

  Args:
    points: the same on every process.
    mesh: more than one device.
  """
  rows = -(-len(points) // mesh.size) * mesh.size
  placed = sharding.place(
    sharding.fill_rows(points, rows), sharding.batch_sharding(mesh)
  )
  return placed, Shards(mesh, len(points))


def fetch(values: Array, shards: Shards) -> np.ndarray:
  """Returns the values of all points, on every process."""
  if not values.is_fully_addressable:
    values = _gather(values, mesh=shards.mesh)
  return np.array(values)[: shards.num_points]


@functools.partial(jax.jit, static_argnames='mesh')
def _gather(values: Array, *, mesh: Mesh) -> Array:
  whole = sharding.replicated(mesh)
  return jax.lax.with_sharding_constraint(values, whole)


def on_shards(
  local: Callable[..., Any], shards: Shards, *, in_rows: str, out_rows: str
) -> Callable[..., Any]:
  """Returns the function that runs `local` on every device.

  Args:
    local: (real, *arguments) -> results, where real [I'] says which of the
      device's rows are points.  Reductions over devices are its own, over
      `shards.axes`.
    shards: of the points.
    in_rows: a letter per argument: r, rows of points; w, whole everywhere.
    out_rows: the same, per result; one letter: the result itself.
  """
  specs = {'r': PartitionSpec(shards.axes), 'w': PartitionSpec()}
  outs = tuple(specs[letter] for letter in out_rows)

  def run(*arguments: Any) -> Any:
    size = arguments[in_rows.index('r')].shape[0]
    rows = first_row(shards, size) + jnp.arange(size)
    return local(rows < shards.num_points, *arguments)

  return jax.shard_map(
    run,
    mesh=shards.mesh,
    in_specs=tuple(specs[letter] for letter in in_rows),
    out_specs=outs if len(out_rows) > 1 else specs[out_rows],
    check_vma=False,  # loops start from constants
  )


def first_row(shards: Shards, size: int) -> Int[Array, '']:
  """Returns the number of this device's first row (inside `on_shards`)."""
  return jax.lax.axis_index(shards.axes) * size


def take(
  points: Float[Array, 'I D'], rows: Int[Array, ' N'], shards: Shards | None
) -> Float[Array, 'N D']:
  """Returns points[rows], whole on every device.

  Args:
    points: split as `shards` says; None: on one device.
    rows: global numbers.
    shards: of the points.
  """
  if shards is None:
    return points[rows]

  def local(real: Any, points: Any, rows: Any) -> Any:
    del real
    own = rows - first_row(shards, points.shape[0])
    inside = (own >= 0) & (own < points.shape[0])
    found = points[jnp.clip(own, 0, points.shape[0] - 1)]
    # One device has each row, the others add zeros.
    return jax.lax.psum(jnp.where(inside[:, None], found, 0), shards.axes)

  return on_shards(local, shards, in_rows='rw', out_rows='w')(points, rows)


def largest(
  values: Float[Array, ' S'], *, count: int, shards: Shards
) -> tuple[Float[Array, ' k'], Int[Array, ' k']]:
  """Returns the `count` largest values of all devices and their global rows.

  At ties the lower row.  Inside `on_shards`; whole on every device.
  """
  size = values.shape[0]
  best, rows = jax.lax.top_k(values, min(count, size))
  best, rows = jax.lax.all_gather(
    (best, rows + first_row(shards, size)), shards.axes, tiled=True
  )
  # Devices lie in the order of rows, so a tie still goes to the lower one.
  best, place = jax.lax.top_k(best, count)
  return best, rows[place]


def limits(
  costs: Float[Array, ' S'],
  starts: Int[Array, ' C'],
  counts: Int[Array, ' C'],
  room: Int[Array, ' C'],
  shards: Shards,
) -> tuple[Int[Array, ' C'], Int[Array, ' C']]:
  """Returns how many of its proposals to each cluster this device may place.

  Together the devices place the `room` cheapest proposals of a cluster, at
  ties the lower rows: the choice that sorting all of them would make.  Only
  counts travel: 32 bisections find the cost that `room` proposals stay below.

  Args:
    costs: of this device's proposals, by cluster and then rising. [S]
    starts: place of each cluster's first proposal. [C]
    counts: proposals to each cluster. [C]
    room: free places, of all devices. [C]
    shards: of the points.

  Returns:
    limit of this device [C] and proposals of all devices [C].
  """
  keys = _ordered(costs)
  total = jax.lax.psum(counts, shards.axes)

  def below(threshold):
    return _count_below(keys, starts, counts, threshold)

  def try_bit(i, threshold):
    higher = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    fits = jax.lax.psum(below(higher), shards.axes) <= room
    return jnp.where(fits, higher, threshold)

  # The largest key with at most `room` proposals below it.
  threshold = jax.lax.fori_loop(
    0, 32, try_bit, jnp.zeros(room.shape, jnp.uint32)
  )
  less = below(threshold)
  ties = below(threshold + 1) - less
  of_all = jax.lax.all_gather(ties, shards.axes)  # [devices, C]
  before = jnp.arange(of_all.shape[0]) < jax.lax.axis_index(shards.axes)
  left = room - jax.lax.psum(less, shards.axes)
  left = left - jnp.sum(jnp.where(before[:, None], of_all, 0), axis=0)
  limit = less + jnp.clip(left, 0, jnp.maximum(ties, 0))
  return jnp.where(total <= room, counts, limit), total


def _ordered(values: Float[Array, ' S']) -> Array:
  """Returns integers in the order of the values."""
  values = jnp.where(values == 0, 0.0, values)  # -0.0 is no less than 0.0
  bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits >= sign, ~bits, bits | sign)


def _count_below(keys, starts, counts, threshold):
  """Returns how many keys of each segment, rising, lie below a threshold."""
  size = keys.shape[0]

  def halve(_, ends):
    low, high = ends
    middle = (low + high) // 2
    less = keys[jnp.minimum(middle, size - 1)] < threshold
    go_on = low < high
    return (
      jnp.where(go_on & less, middle + 1, low),
      jnp.where(go_on & ~less, middle, high),
    )

  low, _ = jax.lax.fori_loop(
    0, size.bit_length(), halve, (starts, starts + counts)
  )
  return low - starts


def mask_rows(
  labels: Int[Array, ' I'], real: Bool[Array, ' I']
) -> Int[Array, ' I']:
  """Returns labels that are 0 where there is no point, so that they rest."""
  return jnp.where(real, labels, 0)
