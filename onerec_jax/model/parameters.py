"""Parameter boxes: logical axis names and a NumPy initialiser per parameter.

`jax.eval_shape(model.init)` gives the boxes and `materialize` the values,
without compiling anything; values depend on the path and the seed only, never
on devices.
"""

import dataclasses
import hashlib
from typing import Any
from typing import Literal

import jax
import numpy as np
from flax import linen as nn
from flax import struct


@dataclasses.dataclass(frozen=True)
class Initializer:
  """How a parameter starts: N(0, stddev^2), or ones."""

  kind: Literal['normal', 'ones'] = 'normal'
  stddev: float = 1.0  # 'normal' only

  def values(
    self, shape: tuple[int, ...], generator: np.random.Generator
  ) -> np.ndarray:
    """Returns float32 values drawn from `generator`."""
    if self.kind == 'ones':
      return np.ones(shape, np.float32)
    values = generator.standard_normal(shape, np.float32)
    return values * np.float32(self.stddev)


class Parameter(nn.LogicallyPartitioned):
  """A parameter with one logical axis name (or None) per dimension."""

  initializer: Initializer = struct.field(
    default=Initializer(), pytree_node=False
  )

  def unbox(self, apply_constraint: bool = True) -> Any:
    # Shardings are set where parameters are placed, not where they are read.
    del apply_constraint
    return self.value


def declare(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  names: tuple[str | None, ...],
  initializer: Initializer,
) -> jax.Array:
  """Creates parameter `name` of `module` (call from its setup).

  Args:
    module: the Linen module that owns the parameter.
    name: unique in the module.
    shape: sizes, float32.
    names: logical axis of each dimension.
    initializer: starting values.

  Returns:
    The unboxed value.
  Raises:
    ValueError: shape and names differ in length, or the parameters given to
      `apply` have another shape.
  """
  if len(shape) != len(names):
    raise ValueError(
      f'Parameter {name!r} has shape {shape} but logical axes {names}; give'
      ' one name or None per dimension.'
    )
  if not module.is_initializing() and module.has_variable('params', name):
    # module.param would trace `make` for its shape, at every read: more than a
    # quarter of the time of tracing a model.
    value = module.get_variable('params', name)
    value = value.unbox() if _is_box(value) else value
    if tuple(value.shape) != shape:
      raise ValueError(
        f'Parameter {"/".join((*module.path, name))} has shape'
        f' {tuple(value.shape)}, but the settings of the model make it'
        f' {shape}: use those that the parameters were made with.'
      )
    return jax.numpy.asarray(value)

  def make(key: jax.Array) -> Parameter:
    if initializer.kind == 'ones':
      value = jax.numpy.ones(shape, np.float32)
    else:
      value = initializer.stddev * jax.random.normal(key, shape, np.float32)
    return Parameter(value, names=names, initializer=initializer)  # type: ignore[call-arg] # fields of a flax struct

  # Restored and initial parameters may be NumPy; indexing one with a tracer
  # would fail.
  return jax.numpy.asarray(module.param(name, make))


def _is_box(value: Any) -> bool:
  return isinstance(value, Parameter)


def _map_boxes(function: Any, abstract: Any) -> Any:
  def checked(path: Any, box: Any) -> Any:
    if not _is_box(box):
      raise TypeError(
        f'{jax.tree_util.keystr(path)} is a {type(box).__name__}, expected'
        ' model.parameters.Parameter: create it with parameters.declare.'
      )
    return function(path, box)

  return jax.tree_util.tree_map_with_path(checked, abstract, is_leaf=_is_box)


def materialize(abstract: Any, *, seed: int) -> Any:
  """Returns starting values of all parameters as NumPy arrays.

  Args:
    abstract: tree of `Parameter` boxes, from `onerec.abstract_params` or
      `jax.eval_shape(model.init, ...)['params']`.
    seed: of the run.

  Returns:
    The same tree with float32 arrays in place of boxes.
  """

  def make(path: Any, box: Parameter) -> np.ndarray:
    # A generator per path: a new parameter leaves all others as they were.
    text = f'{seed}:{jax.tree_util.keystr(path)}'
    digest = hashlib.sha256(text.encode()).digest()
    generator = np.random.Generator(
      np.random.PCG64(int.from_bytes(digest[:16], 'little'))
    )
    return box.initializer.values(tuple(box.value.shape), generator)

  return _map_boxes(make, abstract)


def shapes(abstract: Any) -> Any:
  """Returns the tree with a jax.ShapeDtypeStruct per parameter."""
  return _map_boxes(
    lambda _, box: jax.ShapeDtypeStruct(box.value.shape, box.value.dtype),
    abstract,
  )


def logical_names(abstract: Any) -> Any:
  """Returns the tree with a tuple of axis names (or None) per parameter.

  Map over it with `is_leaf=lambda x: isinstance(x, tuple)`.
  """
  return _map_boxes(lambda _, box: tuple(box.names), abstract)


def count(params: Any) -> int:
  """Returns the number of parameters of a tree of arrays or boxes."""
  return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
