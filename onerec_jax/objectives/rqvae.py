"""Reconstruction and commitment of the RQ-VAE, with dead codes drawn anew.

The resets happen inside the compiled step: the use of the codes and what was
added to them are model state, which the loop carries and saves.
"""

from typing import Any
from typing import NamedTuple
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from onerec_jax import batch as batch_lib
from onerec_jax.data import vector_batches
from onerec_jax.model import rqvae
from onerec_jax.objectives import base


class ModelState(TypedDict):
  """What is known of the vectors and the codes, not trained by gradient."""

  mean: batch_lib.Leaf  # float32 [D]; of the vectors
  scale: batch_lib.Leaf  # float32 []; standard deviation over all dimensions
  usage: batch_lib.Leaf  # float32 [L, C]; average use, 1: that of a mean code
  offset: batch_lib.Leaf  # float32 [L, C, Z]; added to the codebooks


class Reset(NamedTuple):
  """Codes after the dead ones were drawn anew."""

  usage: Float[Array, 'L C']
  offset: Float[Array, 'L C Z']
  num_reset: Float[Array, '']


def initial_state(
  model: rqvae.RQVAE,
  vectors: Float[np.ndarray, 'I D'],
) -> ModelState:
  """Returns the state at step 0: every code is in mean use.

    mean = Σ_i x_i / I;  scale^2 = Σ_i |x_i - mean|^2 / (I · D)

  One scale for all dimensions keeps their relative size, which is meant: the
  vectors are weighted blocks of principal components, and giving the last
  component the weight of the first would quantize noise.

  Args:
    model: its config says whether vectors are standardised at all.
    vectors: of all items. [I, D]
  """
  c = model.config
  mean, scale = np.zeros(model.dim), 1.0
  if c.standardize:
    mean = vectors.mean(0, dtype=np.float64)
    scale = float(np.sqrt(np.mean((vectors - mean) ** 2))) or 1.0
  shape = (model.levels, model.codes_per_level)
  return {
    'mean': np.asarray(mean, np.float32),
    'scale': np.asarray(scale, np.float32),
    'usage': np.ones(shape, np.float32),
    'offset': np.zeros((*shape, c.latent_dim), np.float32),
  }


def standardize(
  vectors: Float[Array, 'B D'], state: ModelState
) -> Float[Array, 'B D']:
  """Returns (x - mean) / scale."""
  return (vectors - state['mean'][None]) / state['scale']


def make_objective(model: rqvae.RQVAE) -> base.Objective:
  """Returns the RQ-VAE objective on `vector_batches.VectorBatch`.

    mean over rows of |x - x̂|^2 + Σ_l |sg[r_l] - e_l|^2 + β |r_l - sg[e_l]|^2

  with x the standardised vector, r_l the residual of level l, e_l its code
  vector.  With a key, the use of every code is averaged and dead codes are
  drawn anew (`reset_dead_codes`); without, the state stays as it is.

  Metrics: 'reconstruction' (the first term), 'commitment' (the last, without
  β), 'utilisation/level_l' (share of the level's codes that the batch uses:
  at most rows / C), 'resets' (codes drawn anew, per step).

  Args:
    model: the model; its parameters are the objective's.
  Reference: TIGER, arXiv:2305.05065, section 3.1.
  """
  c = model.config

  def objective(
    params: Any,
    model_state: ModelState,
    frozen: Any,
    batch: vector_batches.VectorBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    del frozen
    vectors = standardize(batch.vectors, model_state)
    output = model.apply({'params': params}, vectors, model_state['offset'])
    assert isinstance(output, rqvae.RQVAEOutput)
    codes, residuals, chosen = output.quantized
    stop = jax.lax.stop_gradient
    reconstruction = jnp.sum(
      jnp.square(vectors - output.reconstruction), axis=1
    )
    codebook = jnp.sum(jnp.square(stop(residuals) - chosen), axis=(1, 2))
    commitment = jnp.sum(jnp.square(residuals - stop(chosen)), axis=(1, 2))
    loss = reconstruction + codebook + c.commitment * commitment
    used = count_codes(codes, batch.mask, num_codes=model.codes_per_level)
    metrics = {
      'reconstruction': base.mean_of(reconstruction, batch.mask),
      'commitment': base.mean_of(commitment, batch.mask),
    }
    for level in range(model.levels):
      metrics[f'utilisation/level_{level}'] = base.mean_of(
        used[level] > 0, jnp.ones(used[level].shape, bool)
      )
    resets = jnp.zeros((), jnp.float32)
    if key is not None:
      share = used / jnp.maximum(jnp.mean(used, axis=1, keepdims=True), 1e-9)
      usage = c.usage_decay * model_state['usage'] + (1 - c.usage_decay) * share
      reset = reset_dead_codes(
        usage,
        stop(params['codebooks']),
        model_state['offset'],
        stop(residuals),
        batch.mask,
        dead_code_share=c.dead_code_share,
        key=key,
      )
      resets = reset.num_reset
      model_state = {
        **model_state,
        'usage': reset.usage,
        'offset': reset.offset,
      }
    metrics['resets'] = batch_lib.Mean(resets, jnp.ones((), jnp.float32))
    counts = {'examples': jnp.sum(batch.mask, dtype=jnp.float32)}
    return base.LossOutput(
      base.mean_of(loss, batch.mask), metrics, model_state, counts
    )

  return objective


def count_codes(
  codes: jax.Array, mask: Bool[Array, ' B'], *, num_codes: int
) -> Float[Array, 'L C']:
  """Returns how many rows use each code.

  Args:
    codes: [B, L]
    mask: False: the row does not count. [B]
    num_codes: C
  """
  ones = mask.astype(jnp.float32)
  return jax.vmap(lambda c: jax.ops.segment_sum(ones, c, num_codes))(codes.T)


def reset_dead_codes(
  usage: Float[Array, 'L C'],
  codebooks: Float[Array, 'L C Z'],
  offset: Float[Array, 'L C Z'],
  residuals: Float[Array, 'B L Z'],
  mask: Bool[Array, ' B'],
  *,
  dead_code_share: float,
  key: jax.Array,
) -> Reset:
  """Puts every dead code on a random residual of the batch.

    dead: u_lk < dead_code_share · mean_k u_lk
    o_lk <- r_il - c_lk and u_lk <- mean_k u_lk, for a random row i

  Rows are drawn without replacement on each level; if there are more dead
  codes than rows, the rest waits for the next step.  Live codes keep their
  offset and use to the last bit.

  Args:
    usage: average use u. [L, C]
    codebooks: parameters c, without offset. [L, C, Z]
    offset: o. [L, C, Z]
    residuals: what each level quantizes, r. [B, L, Z]
    mask: False: a row that is not drawn. [B]
    dead_code_share: 0: no code is ever dead.
    key: random key, used once.

  Reference: Dhariwal et al. 2020, arXiv:2005.00341, section 3.1 (random
    restarts of codes in a residual of the batch).
  """
  mean = jnp.mean(usage, axis=1, keepdims=True)
  dead = usage < dead_code_share * mean
  # The n-th dead code takes the n-th row of a random order, real rows first.
  draws = jax.random.uniform(key, residuals.shape[1::-1])  # [L, B]
  order = jnp.argsort(jnp.where(mask[None], draws, 2.0), axis=1)
  nth = jnp.cumsum(dead, axis=1) - 1
  dead &= nth < jnp.sum(mask)
  rows = jnp.take_along_axis(order, jnp.where(dead, nth, 0), axis=1)
  drawn = jax.vmap(lambda r, i: r[i], in_axes=(1, 0))(residuals, rows)
  return Reset(
    jnp.where(dead, mean, usage),
    jnp.where(dead[..., None], drawn - codebooks, offset),
    jnp.sum(dead, dtype=jnp.float32),
  )
