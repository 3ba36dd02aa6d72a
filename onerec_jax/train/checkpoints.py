"""Checkpoints: separate Orbax items, written in the background, all or none.

Items: params, ema, opt, model_state (arrays); config (contract), data
(iterator) and progress (JSON).  Refuses to continue with other semantic IDs
or other settings.
"""

import contextlib
import copy
import dataclasses
import logging as std_logging
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import Mesh

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.train import contract as contract_lib
from onerec_jax.train import state as state_lib

FOLDER = 'checkpoints'

# --- Writing ----------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides Orbax's information lines: some sixty for each checkpoint."""

  def wanted(record: std_logging.LogRecord) -> bool:
    return record.levelno > std_logging.INFO or '/orbax/' not in record.pathname

  logger = logging.get_absl_logger()
  logger.addFilter(wanted)
  try:
    yield
  finally:
    logger.removeFilter(wanted)


class _Keep:
  """Preserves the last n checkpoints and the best one."""

  def __init__(self, num_latest: int):
    self._num_latest = num_latest
    self.best_step: int | None = None

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    first = len(checkpoints) - self._num_latest
    return [
      i >= first or info.step == self.best_step
      for i, info in enumerate(checkpoints)
    ]


def _manager(
  path: epath.Path, options: ocp.CheckpointManagerOptions
) -> ocp.CheckpointManager:
  trees, texts = (
    ('params', 'ema', 'opt', 'model_state'),
    ('config', 'data', 'progress'),
  )
  return ocp.CheckpointManager(
    path,
    options=options,
    item_names=(*trees, *texts),
    item_handlers={
      **{name: ocp.StandardCheckpointHandler() for name in trees},
      **{name: ocp.JsonCheckpointHandler() for name in texts},
    },
  )


class Saved(NamedTuple):
  """All of a checkpoint, on the mesh of the run that continues."""

  state: state_lib.TrainState
  data: Any  # state of the batch iterator
  progress: dict[str, Any]  # the loop's bookkeeping
  notes: list[str]  # settings that differ without harm


class Checkpointer:
  """Saves and restores the training state of one stage.

  Use as a context manager: leaving it waits for the last write.
  """

  def __init__(
    self, folder: epath.Path, agreed: contract_lib.Contract, *, keep: int
  ):
    """Opens (and makes) folder/checkpoints.

    Args:
      folder: the stage's folder.
      agreed: contract of this run.
      keep: latest checkpoints kept; the best is kept as well.
    """
    self._path = folder / FOLDER
    self._contract = agreed
    self._keep = _Keep(keep)
    self._stack = contextlib.ExitStack()
    self._stack.enter_context(_quiet())
    self._manager = _manager(
      self._path,
      ocp.CheckpointManagerOptions(
        create=True,
        preservation_policy=self._keep,
        enable_async_checkpointing=True,
        cleanup_tmp_directories=True,
      ),
    )

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *error: Any) -> None:
    try:
      self._manager.close()
    finally:
      self._stack.close()

  def latest_step(self) -> int | None:
    """Returns the step of the last complete checkpoint, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints."""
    return sorted(self._manager.all_steps())

  def wait(self) -> None:
    """Blocks until what was saved is on disk."""
    self._manager.wait_until_finished()

  def save(
    self,
    step: int,
    state: state_lib.TrainState,
    *,
    data: Any,
    progress: Mapping[str, Any],
    best_step: int | None,
  ) -> None:
    """Starts writing a checkpoint; returns once everything is copied.

    Args:
      step: steps done; nothing happens if it is saved already.
      state: the state after that step.
      data: JSON-able state of the batch iterator.
      progress: JSON-able bookkeeping of the loop.
      best_step: the checkpoint to keep beside the last ones.
    """
    if step == self.latest_step():
      return
    self._keep.best_step = best_step
    # Written in the background, while the loop goes on counting in them.
    data, progress = copy.deepcopy((data, dict(progress)))
    items = {
      'params': ocp.args.StandardSave(state.params),
      'opt': ocp.args.StandardSave(_opt_item(state)),
      'model_state': ocp.args.StandardSave(_boxed(state.model_state)),
      'config': ocp.args.JsonSave(
        {**dataclasses.asdict(self._contract), 'versions': _versions()}
      ),
      'data': ocp.args.JsonSave({'iterator': data}),
      'progress': ocp.args.JsonSave(progress),
    }
    if state.ema_params is not None:
      items['ema'] = ocp.args.StandardSave(state.ema_params)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore(self, like: state_lib.TrainState) -> Saved:
    """Returns the latest checkpoint, placed like `like`.

    Args:
      like: a state of this run; its shapes and shardings are taken.

    Raises:
      contract.Mismatch: it belongs to other settings or semantic IDs.
    """
    step = self.latest_step()
    if step is None:
      raise FileNotFoundError(f'No complete checkpoint in {self._path}.')
    where = f'{self._path / str(step)}'
    saved = _read_contract(self._manager, step)
    notes = contract_lib.check_contract(saved, self._contract, where)
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    items: dict[str, Any] = {
      'params': ocp.args.StandardRestore(target.params),
      'opt': ocp.args.StandardRestore(_opt_item(target)),
      'model_state': ocp.args.StandardRestore(_boxed(target.model_state)),
      'data': ocp.args.JsonRestore(),
      'progress': ocp.args.JsonRestore(),
    }
    if like.ema_params is not None:
      items['ema'] = ocp.args.StandardRestore(target.ema_params)
    found = self._manager.restore(step, args=ocp.args.Composite(**items))
    self._keep.best_step = (found['progress'].get('best') or {}).get('step')
    return Saved(
      state=state_lib.TrainState(
        step=found['opt']['step'],
        params=found['params'],
        opt_state=found['opt']['opt_state'],
        model_state=_unboxed(found['model_state']),
        ema_params=found['ema'] if like.ema_params is not None else None,
      ),
      data=found['data']['iterator'],
      progress=found['progress'],
      notes=notes,
    )


# Orbax refuses bare arrays and empty trees; the marker makes the tree a tree.
def _boxed(tree: Any) -> dict[str, Any]:
  if jax.tree.leaves(tree):
    return {'value': tree}
  return {'empty': np.zeros((), np.int32)}


def _unboxed(item: Mapping[str, Any]) -> Any:
  return item.get('value')


def _opt_item(state: state_lib.TrainState) -> dict[str, Any]:
  return {'step': state.step, 'opt_state': state.opt_state}


def _versions() -> dict[str, str]:
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  return {name: metadata.version(name) for name in packages}


def _read_contract(
  manager: ocp.CheckpointManager, step: int
) -> contract_lib.Contract:
  found = manager.restore(
    step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
  )['config']
  fields = {f.name for f in dataclasses.fields(contract_lib.Contract)}
  return contract_lib.Contract(
    **{k: v for k, v in found.items() if k in fields}
  )


# --- Reading for evaluation -------------------------------------------------


def _read_as(stored: np.dtype, wanted: str) -> np.dtype:
  floating = jnp.issubdtype(stored, jnp.floating)
  return jnp.dtype(wanted) if floating else stored


class Restored(NamedTuple):
  """A trained model, as evaluation needs it."""

  params: Any  # the averaged parameters if the run kept an average
  model_state: Any
  experiment: config.Experiment | None  # None: trained without settings
  ids_digest: str | None  # semantic IDs it was trained with
  step: int


def restore_for_evaluation(
  folder: epath.Path,
  *,
  which: Literal['best', 'latest'],
  mesh: Mesh,
  ids_digest: str | None = None,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Restored:
  """Returns the parameters of a trained stage, on any number of devices.

  Needs the stage's folder alone: shapes and logical axes are in the
  checkpoint.  Optimizer state is not read, nor need it be there.

  Args:
    folder: of the training stage, e.g. `workdir.folder('pretrain')`.
    which: the best by the validation metric (the latest if none was
      measured), or the latest.
    mesh: where the parameters go.
    ids_digest: digest of the semantic IDs in use; None: not checked.
    dtype: what floating-point parameters are rounded to while they are read;
      'bfloat16' takes half the memory.  The model state keeps its own.

  Raises:
    FileNotFoundError: there is no complete checkpoint.
    contract.Mismatch: the checkpoint was trained with other semantic IDs.
  """
  path = folder / FOLDER
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist: run the stage {folder.name!r} with the same'
      ' --workdir first.'
    )
  with (
    _quiet(),
    _manager(path, ocp.CheckpointManagerOptions(create=False)) as manager,
  ):
    step = manager.latest_step()
    if step is None:
      raise FileNotFoundError(
        f'{path} holds no complete checkpoint: run {folder.name!r} until its'
        ' first checkpoint (checkpoint_every_steps).'
      )
    if which == 'best':
      progress = manager.restore(
        step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
      )['progress']
      step = (progress.get('best') or {}).get('step', step)
    saved = _read_contract(manager, step)
    if ids_digest is not None:
      contract_lib.check_semantic_ids(
        saved.semantic_ids, ids_digest, str(path / str(step))
      )
    target = contract_lib.nest(
      {
        name: jax.ShapeDtypeStruct(
          tuple(p['shape']),
          _read_as(np.dtype(p['dtype']), dtype),
          sharding=sharding.parameter_sharding(
            mesh, p['axes'], p['shape'], path=name
          ),
        )
        for name, p in saved.parameters.items()
      }
    )
    item = 'ema' if (path / str(step) / 'ema').exists() else 'params'
    whole = sharding.replicated(mesh)
    metadata_tree = manager.item_metadata(step)['model_state']
    model_state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
      dict(getattr(metadata_tree, 'tree', metadata_tree)),
    )
    found = manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          item: ocp.args.StandardRestore(target),
          'model_state': ocp.args.StandardRestore(model_state),
        }
      ),
    )
  return Restored(
    params=found[item],
    model_state=_unboxed(found['model_state']),
    experiment=config.from_config_dict(saved.experiment)
    if saved.experiment
    else None,
    ids_digest=saved.semantic_ids,
    step=step,
  )
