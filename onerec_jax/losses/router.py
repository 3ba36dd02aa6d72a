"""Loss-free balancing of expert load: the bias update and its measure.

Pure array functions.  The bias is state of training, never a parameter.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float


def update_bias(
  bias: Float[Array, '*layers E'],
  load: Float[Array, '*layers E'],
  *,
  rule: Literal['none', 'sign', 'proportional'],
  rate: float,
) -> Float[Array, '*layers E']:
  """Returns the selection bias after a training step.

    sign: b_i += u sign(c_mean - c_i)
    proportional: b_i += u (c_mean - c_i) / c_mean

  Args:
    bias: b, zeros at the start. [..., E]
    load: c, unmasked tokens each expert received in the step just done, summed
      over all devices. [..., E]
    rule: 'none' returns `bias`.
    rate: u, per step.

  Returns:
    [..., E]; unchanged where no token was routed.
  Reference: Wang et al. 2024, arXiv:2408.15664, Algorithm 1 and table 3.
  """
  if rule == 'none':
    return bias
  mean = jnp.mean(load, axis=-1, keepdims=True)
  error = mean - load
  if rule == 'sign':
    return bias + rate * jnp.sign(error)
  return bias + rate * error / jnp.maximum(mean, 1e-9)  # 0/0: no tokens


def max_violation(load: Float[Array, '*layers E']) -> Float[Array, '*layers']:
  """Returns MaxVio = (max_i c_i - mean c) / mean c per layer; 0 if unused.

  Args:
    load: tokens per expert. [..., E]
  Reference: Wang et al. 2024, arXiv:2408.15664, eq. 4.
  """
  mean = jnp.mean(load, axis=-1)
  return (jnp.max(load, axis=-1) - mean) / jnp.maximum(mean, 1e-9)
