"""What a training objective takes and returns.

The loop knows nothing else about a stage: any function of this shape trains
and validates.  Refuses side channels: all that is reported is returned.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Shaped

from onerec_jax import batch


class LossOutput(NamedTuple):
  """One batch's loss and all that is to be reported about it."""

  loss: batch.Mean  # what is minimised; scalar
  metrics: dict[str, batch.Mean]  # any shape; summed over steps, then divided
  model_state: Any  # state of the model after this batch (router bias)
  # Totals of this batch that rates are computed from, f32 scalars: 'examples'
  # and 'tokens' (targets) give examples/s and tokens/s.
  counts: Mapping[str, Float[Array, '']] = {}


# (params, model_state, frozen, batch, key) -> LossOutput.  `frozen` holds
# arrays that are not trained (item codes, reference parameters).  A key of
# None means evaluation: no dropout, and model_state is returned unchanged.
Objective = Callable[[Any, Any, Any, Any, jax.Array | None], LossOutput]


def mean_of(
  values: Shaped[Array, '*shape'], where: Bool[Array, '*shape']
) -> batch.Mean:
  """Returns the mean of `values` over the True entries of `where`, unreduced.

  Args:
    values: numbers or booleans; entries outside `where` may be non-finite.
    where: True = counted.
  """
  kept = jnp.where(where, values.astype(jnp.float32), 0.0)
  return batch.Mean(jnp.sum(kept), jnp.sum(where, dtype=jnp.float32))
