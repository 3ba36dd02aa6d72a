"""One training step and one evaluation step, each a single compiled call.

Metrics stay on the device as sums; a step with a non-finite loss or gradient
changes nothing and is remembered, so that the loop can stop and name it.
"""

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from onerec_jax import batch as batch_lib
from onerec_jax import sharding
from onerec_jax.objectives import base
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
  """Sums over the steps since the last log line, on the device."""

  steps: Any  # int32 []
  metrics: dict[str, batch_lib.Mean]  # 'loss', 'gradient_norm' and more
  counts: dict[str, Any]  # f32 []; see LossOutput.counts
  bad_step: Any  # int32 []; first non-finite step, counted from 1; 0: none
  bad_metrics: Any  # bool [metrics], in sorted order; at bad_step
  bad_gradients: Any  # bool [parameters], in tree order; at bad_step


class Outcome(NamedTuple):
  """What one batch does to the state, and reports."""

  state: state_lib.TrainState  # unchanged if not healthy
  metrics: dict[str, batch_lib.Mean]  # 'loss', 'gradient_norm' and more
  counts: dict[str, Any]  # f32 []; see LossOutput.counts
  first_bad: Any  # bool []; not finite, and no step before was
  bad_metrics: Any  # bool [metrics], in sorted order
  bad_gradients: Any  # bool [parameters], in tree order


# (state, bad_step, frozen, batch) -> Outcome
Update = Callable[[state_lib.TrainState, Any, Any, Any], Outcome]


def _all_finite(tree: Any) -> jax.Array:
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
  )


def _add(
  totals: Totals,
  metrics: Mapping[str, batch_lib.Mean],
  counts: Mapping[str, jax.Array],
) -> Totals:
  return dataclasses.replace(
    totals,
    steps=totals.steps + 1,
    metrics={k: totals.metrics[k] + metrics[k] for k in totals.metrics},
    counts={k: totals.counts[k] + counts[k] for k in totals.counts},
  )


def make_update(
  objective: base.Objective,
  optimizer: optimizer_lib.Optimizer,
  *,
  seed: int,
  ema_decay: float | None,
) -> Update:
  """Returns the step without its sums, for `make_train_step`.

    g = ∇ loss(params; key = fold_in(key(seed), step))
    params <- params + optimizer(g);  ema <- d * ema + (1 - d) * params
    model_state <- what the objective returned

  If the loss or any gradient is not finite, or `bad_step` says that one was
  before, the state stays as it was.

  Args:
    objective: the loss.
    optimizer: from `optimizer.make_optimizer`.
    seed: of all random numbers of the run.
    ema_decay: d; None: no average.
  """

  def update(
    state: state_lib.TrainState, bad_step: Any, frozen: Any, batch: Any
  ) -> Outcome:
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_fn(params: Any) -> tuple[jax.Array, base.LossOutput]:
      output = objective(params, state.model_state, frozen, batch, key)
      return output.loss.value(), output

    (loss, output), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params
    )
    # --- Is everything finite? ---
    squares = jnp.stack(
      [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)]
    )
    metrics = {
      'loss': output.loss,
      'gradient_norm': batch_lib.Mean(
        jnp.sqrt(jnp.sum(squares)), jnp.ones((), jnp.float32)
      ),
      **output.metrics,
    }
    bad_gradients = ~jnp.isfinite(squares)
    healthy = jnp.isfinite(loss) & ~jnp.any(bad_gradients)
    # --- Update ---
    updates, opt_state = optimizer.transformation.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay is not None:
      ema_params = optax.incremental_update(
        params, state.ema_params, 1 - ema_decay
      )
    new = state_lib.TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      model_state=output.model_state,
      ema_params=ema_params,
    )
    keep = healthy & (bad_step == 0)
    return Outcome(
      state=jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, state),
      metrics=metrics,
      counts=dict(output.counts),
      first_bad=~healthy & (bad_step == 0),
      bad_metrics=jnp.stack(
        [~_all_finite(metrics[name]) for name in sorted(metrics)]
      ),
      bad_gradients=bad_gradients,
    )

  # Compiled only inside `make_train_step`, as if written there.  Traced once:
  # JAX remembers what it traced for the shapes of the sums.
  return jax.jit(update, inline=True)


def abstract_totals(
  update: Update, state: state_lib.TrainState, frozen: Any, batch: Any
) -> Totals:
  """Returns shapes and dtypes of the sums that `update` needs.

  Args:
    update: from `make_update`.
    state: arrays or ShapeDtypeStructs, as the next two.
    frozen: what is not trained.
    batch: of one step.
  """
  # The number of the bad step is another integer in the place of the step's:
  # an argument anywhere else would make JAX trace twice.
  outcome = jax.eval_shape(update, state, state.step, frozen, batch)
  scalar: Any = jax.ShapeDtypeStruct((), jnp.int32)
  return Totals(
    steps=scalar,
    metrics=outcome.metrics,
    counts=outcome.counts,
    bad_step=scalar,
    bad_metrics=outcome.bad_metrics,
    bad_gradients=outcome.bad_gradients,
  )


def zero_totals(
  update: Update,
  state: state_lib.TrainState,
  frozen: Any,
  batch: Any,
  mesh: Mesh,
) -> Totals:
  """Returns empty sums for the metrics that `update` reports, on the mesh."""
  zeros = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype),
    abstract_totals(update, state, frozen, batch),
  )
  whole = sharding.replicated(mesh)
  return sharding.place(zeros, jax.tree.map(lambda _: whole, zeros))


def make_train_step(
  update: Update, *, shardings: state_lib.TrainState, mesh: Mesh
) -> Callable[..., tuple[state_lib.TrainState, Totals]]:
  """Returns (state, totals, frozen, batch) -> (state, totals), compiled.

  `state` and `totals` are donated.  From the first step that is not finite on,
  the state stays as it was, and `totals.bad_step` says when that was.

  Args:
    update: from `make_update`.
    shardings: a TrainState of shardings.
    mesh: the device mesh.
  """

  def train_step(
    state: state_lib.TrainState, totals: Totals, frozen: Any, batch: Any
  ) -> tuple[state_lib.TrainState, Totals]:
    new = update(state, totals.bad_step, frozen, batch)
    first = new.first_bad
    totals = _add(totals, new.metrics, new.counts)
    totals = dataclasses.replace(
      totals,
      bad_step=jnp.where(first, state.step + 1, totals.bad_step),
      bad_metrics=jnp.where(first, new.bad_metrics, totals.bad_metrics),
      bad_gradients=jnp.where(first, new.bad_gradients, totals.bad_gradients),
    )
    return new.state, totals

  return jax.jit(
    train_step,
    donate_argnums=(0, 1),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )


def make_eval_step(
  objective: base.Objective, *, mesh: Mesh
) -> Callable[..., Totals]:
  """Returns (totals, params, model_state, frozen, batch) -> totals, compiled.

  The objective is called with key None: no dropout, model state kept.
  """

  def eval_step(
    totals: Totals, params: Any, model_state: Any, frozen: Any, batch: Any
  ) -> Totals:
    output = objective(params, model_state, frozen, batch, None)
    zero = jnp.zeros((), jnp.float32)
    metrics = {
      'loss': output.loss,
      'gradient_norm': batch_lib.Mean(zero, zero),
      **output.metrics,
    }
    return _add(totals, metrics, output.counts)

  return jax.jit(
    eval_step, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )


def describe_bad_step(totals: Totals, params: Any) -> str:
  """Returns which step was not finite, and what in it.

  Args:
    totals: on the host, with bad_step > 0.
    params: on the device; as they were before that step.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  paths = [jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in flat]
  bad_params = jax.device_get(
    jax.jit(lambda leaves: [~_all_finite(x) for x in leaves])(
      [x for _, x in flat]
    )
  )

  def listed(flags: Any, labels: list[str]) -> str:
    bad = [n for n, f in zip(labels, flags, strict=True) if f]
    more = f' and {len(bad) - 8} more' if len(bad) > 8 else ''
    return (', '.join(bad[:8]) + more) if bad else 'none'

  return (
    f'Step {int(totals.bad_step)} is not finite. Metrics:'
    f' {listed(totals.bad_metrics, sorted(totals.metrics))}. Gradients:'
    f' {listed(totals.bad_gradients, paths)}. Parameters before the step:'
    f' {listed(bad_params, paths)}.'
  )


class CompiledPerShape:
  """A jitted function that compiles ahead of its first call per batch shape.

  So that compile seconds are known apart from step seconds.  The batch is the
  last argument; all others keep their shapes and shardings.
  """

  def __init__(
    self, function: Any, *, clock: Callable[[], float] = time.perf_counter
  ):
    self._function = function
    self._clock = clock
    self._compiled: dict[Any, Any] = {}
    self.seconds = 0.0  # spent tracing and compiling

  def __call__(self, *args: Any) -> Any:
    shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args[-1]))
    if shapes not in self._compiled:
      start = self._clock()
      self._compiled[shapes] = self._function.lower(*args).compile()
      self.seconds += self._clock() - start
    return self._compiled[shapes](*args)
