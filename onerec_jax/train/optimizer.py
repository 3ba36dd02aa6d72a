"""The Optax optimizer and learning-rate schedule that a config describes.

Weight decay touches matrices and tables only.  Knows no model.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from onerec_jax import config
from onerec_jax import sharding


class Optimizer(NamedTuple):
  """An Optax transformation and the schedule inside it."""

  transformation: optax.GradientTransformation
  learning_rate: Callable[[Any], jax.Array]  # steps done -> rate of the next


def learning_rate(
  optimizer: config.OptimizerConfig, *, num_steps: int
) -> Callable[[Any], jax.Array]:
  """Returns the learning rate as a function of the steps already done.

    warm-up:       peak * (s + 1) / w                          for s < w
    constant:      peak
    cosine:        peak * (f + (1 - f) * (1 + cos(π t)) / 2),
                   t = (s - w) / (num_steps - w), at most 1
    inverse_sqrt:  peak * sqrt(max(w, 1) / (s + 1))

  where w = warmup_steps and f = final_learning_rate_fraction.

  Args:
    optimizer: the settings.
    num_steps: steps of the whole run, where 'cosine' ends.
  Reference: inverse_sqrt is Vaswani et al. 2017, arXiv:1706.03762, eq. 3.
  """
  warmup = optimizer.warmup_steps
  peak = optimizer.peak_learning_rate
  fraction = optimizer.final_learning_rate_fraction

  def rate(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    if optimizer.schedule == 'constant':
      after = jnp.full_like(step, peak)
    elif optimizer.schedule == 'cosine':
      t = jnp.clip((step - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
      after = peak * (fraction + (1 - fraction) * (1 + jnp.cos(jnp.pi * t)) / 2)
    else:
      after = peak * jnp.sqrt(max(warmup, 1) / (step + 1))
    rising = peak * (step + 1) / max(warmup, 1)
    return jnp.where(step < warmup, rising, after)

  return rate


def decay_mask(names: Any) -> Any:
  """Returns which parameters decay: those with two axes besides 'layers'.

  Args:
    names: tree of tuples of logical axis names, one per parameter.
  """
  return jax.tree.map(
    lambda n: sum(name != 'layers' for name in n) >= 2,
    names,
    is_leaf=sharding.is_axis_names,
  )


def make_optimizer(
  optimizer: config.OptimizerConfig,
  *,
  num_steps: int,
  decay: Any | None = None,
) -> Optimizer:
  """Returns the optimizer: clip, Adam, decoupled decay, learning rate.

    p <- p - rate(s) * (adam(clip(g)) + weight_decay * p)

  Args:
    optimizer: the settings.
    num_steps: steps of the whole run.
    decay: tree of bool, True = decays (see `decay_mask`); None: all do.

  Raises:
    ValueError: weight decay is set for 'adam'.
  Reference: decoupled decay is Loshchilov & Hutter 2019, arXiv:1711.05101.
  """
  if optimizer.name == 'adam' and optimizer.weight_decay:
    raise ValueError(
      f'optimizer.weight_decay={optimizer.weight_decay} has no effect with'
      " optimizer.name='adam': set optimizer.name='adamw' or"
      ' optimizer.weight_decay=0.'
    )
  rate = learning_rate(optimizer, num_steps=num_steps)
  parts = []
  if optimizer.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(optimizer.clip_norm))
  parts.append(
    optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps)
  )
  if optimizer.weight_decay:
    parts.append(optax.add_decayed_weights(optimizer.weight_decay, decay))
  parts.append(optax.scale_by_learning_rate(rate))
  # Jitted for the log, which would compile the schedule operation by operation.
  return Optimizer(optax.chain(*parts), jax.jit(rate))
