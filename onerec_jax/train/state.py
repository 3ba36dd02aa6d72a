"""What one training step maps to the next: everything a checkpoint needs.

No Flax: parameters are a plain nested dictionary of arrays.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from onerec_jax import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State after `step` steps."""

  step: Any  # int32 []; steps done
  params: Any  # nested dict of f32 arrays
  opt_state: Any  # Optax
  model_state: Any  # not trained by gradient: router bias f32 [layers, E]
  ema_params: Any  # averaged params, or None


def create(
  params: Any,
  model_state: Any,
  transformation: optax.GradientTransformation,
  *,
  ema: bool,
  mesh: Mesh,
  shardings: Any | None = None,
) -> TrainState:
  """Returns step 0, placed on the mesh.

  Args:
    params: nested dict of NumPy arrays, the same on every process.
    model_state: tree of NumPy arrays; whole on every device.
    transformation: the optimizer.
    ema: whether averaged parameters are kept; they start equal to `params`.
    mesh: the device mesh.
    shardings: a sharding per parameter; None: whole on every device.
  """
  whole = sharding.replicated(mesh)
  if shardings is None:
    shardings = jax.tree.map(lambda _: whole, params)
  ema_params = sharding.place(params, shardings) if ema else None
  placed = sharding.place(params, shardings)
  opt_shardings = shardings_of(
    _abstract_optimizer(transformation, placed, mesh)
  )
  opt_state = jax.jit(transformation.init, out_shardings=opt_shardings)(placed)
  return TrainState(
    step=sharding.place(np.zeros((), np.int32), whole),
    params=placed,
    opt_state=opt_state,
    model_state=sharding.place(
      model_state, jax.tree.map(lambda _: whole, model_state)
    ),
    ema_params=ema_params,
  )


def abstract(
  params: Any,
  model_state: Any,
  transformation: optax.GradientTransformation,
  *,
  ema: bool,
  mesh: Mesh,
) -> TrainState:
  """Returns shapes, dtypes and shardings of what `create` makes.

  Args:
    params: a ShapeDtypeStruct with its sharding per parameter.
    model_state: tree of arrays or ShapeDtypeStructs; whole on every device.
    transformation: the optimizer.
    ema: whether averaged parameters are kept.
    mesh: the device mesh.
  """
  whole = sharding.replicated(mesh)
  return TrainState(
    step=jax.ShapeDtypeStruct((), np.int32, sharding=whole),
    params=params,
    opt_state=_abstract_optimizer(transformation, params, mesh),
    model_state=jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      model_state,
    ),
    ema_params=params if ema else None,
  )


def _abstract_optimizer(
  transformation: optax.GradientTransformation, params: Any, mesh: Mesh
) -> Any:
  """Returns the optimizer's state; see `sharding.moment_sharding`."""
  whole = sharding.replicated(mesh)
  return optax.tree_utils.tree_map_params(
    transformation,
    lambda x, p: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.moment_sharding(p.sharding, x.shape)
    ),
    jax.eval_shape(transformation.init, params),
    params,
    transform_non_params=lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=whole
    ),
  )


def shardings_of(tree: Any) -> Any:
  """Returns the sharding of every array of a tree."""
  return jax.tree.map(lambda x: x.sharding, tree)


def num_parameters(params: Any) -> int:
  """Returns the number of trained values."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
