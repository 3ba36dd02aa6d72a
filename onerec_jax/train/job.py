"""What a stage asks the training loop to do, and what it gets back.

Fields only; the loop (loop.py) does it.
"""

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

from etils import epath
from jax.sharding import Mesh

from onerec_jax import config
from onerec_jax.objectives import base
from onerec_jax.train import contract as contract_lib
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib


@runtime_checkable
class Batches(Protocol):
  """An endless iterator of batches that can be put back to any position."""

  def __next__(self) -> Any: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Job:
  """What a stage asks the loop to do."""

  objective: base.Objective
  optimizer: optimizer_lib.Optimizer
  train: config.TrainConfig
  seed: int
  mesh: Mesh
  folder: epath.Path  # the stage's: checkpoints/, metrics.jsonl, events.*
  contract: contract_lib.Contract
  batches: Batches  # NumPy arrays, this process's rows
  frozen: Any = None  # device arrays that are not trained
  # (state, poll) -> None, called before every batch is drawn: what makes
  # batches from the current parameters looks at them here.  Its time is
  # 'rollout'; poll() raises where the run is asked to stop.
  prepare: Callable[[state_lib.TrainState, Callable[[], None]], None] | None = (
    None
  )
  # Validation: the same batches each time.  None: no validation loss.
  valid_batches: Callable[[], Iterable[Any]] | None = None
  # (params, model_state, poll) -> {'valid/recall@10': ...}.  Call poll()
  # often: it raises where the run is asked to stop.
  evaluate: (
    Callable[[Any, Any, Callable[[], None]], Mapping[str, float]] | None
  ) = None
  best_metric: str = 'valid/loss'  # chooses the best checkpoint
  best_mode: Literal['max', 'min'] = 'min'
  # Model FLOPs (forward and backward) of this process's rows of a batch.
  flops: Callable[[Any], float] | None = None
  batches_per_epoch: int | None = None
  clock: Callable[[], float] = time.perf_counter  # seconds
  # clock() since which the time is this training's; None: since no stage of
  # this process has worked.
  began: float | None = None


class Result(NamedTuple):
  """A finished run."""

  state: state_lib.TrainState
  final: dict[str, Any]  # record of the last step
  best: dict[str, Any] | None  # {'step', 'metric', 'value', 'values'}
  counts: dict[str, float]  # totals over the run, e.g. 'examples'
  seconds: dict[str, float]  # of the whole run; see `goodput.NAMES`
