"""Trains the RQ-VAE of the stage `tokenize` and applies it to the catalogue.

Training is a job of the one loop, with checkpoints and metrics below
tokenizer/rqvae/; a cut-off stage continues.  What the codes are worth is
judged by stages/tokenize.py.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import sharding
from onerec_jax.data import vector_batches
from onerec_jax.model import parameters
from onerec_jax.model import rqvae
from onerec_jax.objectives import rqvae as objective_lib
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.stages import training_setup
from onerec_jax.train import optimizer as optimizer_lib

# Where the settings of the training are, for the loop's errors.
_SETTINGS = 'tokenizer.rqvae'
# Rows per code that the first codebooks are fitted on, at least.
_ROWS_PER_CODE = 4
_ROWS_AT_ONCE = 8192  # bounds the memory of encoding a catalogue
_WARMUP_STEPS = 100
_LOG_LINES = 20
_CHECKPOINTS = 4


class Trained(NamedTuple):
  """A trained RQ-VAE, on the host."""

  model: rqvae.RQVAE
  params: Any
  state: objective_lib.ModelState
  summary: dict[str, Any]  # how the training went

  @property
  def codebooks(self) -> residual_kmeans.Codebooks:
    """The code vectors in use; they quantize latent vectors."""
    vectors = self.params['codebooks'] + self.state['offset']
    return residual_kmeans.Codebooks(
      np.asarray(vectors), np.zeros(vectors.shape[-1], np.float32)
    )

  def encode(
    self, embeddings: Float[np.ndarray, 'I D']
  ) -> Float[np.ndarray, 'I Z']:
    """Returns the latent vectors of items, old or new."""
    return _by_chunks(_encode, self.model, self.params, self.state, embeddings)

  def reconstruct(
    self, codes: Int[np.ndarray, 'I L']
  ) -> Float[np.ndarray, 'I D']:
    """Returns the item vectors that codes stand for."""
    latents = residual_kmeans.reconstruct(self.codebooks, codes)
    return _by_chunks(_decode, self.model, self.params, self.state, latents)


def train(
  embeddings: Float[np.ndarray, 'I D'],
  *,
  config: config_lib.TokenizerConfig,
  seed: int,
  mesh: jax.sharding.Mesh,
  folder: epath.Path,
) -> Trained:
  """Trains an RQ-VAE on item vectors, continuing from the last checkpoint.

  Codebooks start as residual k-means of the untrained encoder's output on the
  first batch.  A catalogue smaller than the batch is trained on as a whole.

  Args:
    embeddings: item vectors, finite. [I, D]
    config: levels, codes per level and `rqvae`.
    seed: of the parameters, the order of the items and the resets.
    mesh: the devices.
    folder: where this and other trainings are kept, each below a name made
      of its settings and vectors: none meets the checkpoints of another.

  Raises:
    ValueError: fewer items than codes, values that are not finite, or a batch
      that does not fit the mesh.
    loop.NonFinite, preemption.Preempted: see `loop.train`.
  """
  settings = _experiment(config, seed)
  train_config = _train_config(config.rqvae, len(embeddings), mesh)
  model = rqvae.RQVAE(
    config.rqvae, embeddings.shape[1], config.levels, config.codes_per_level
  )
  batches = vector_batches.VectorBatches(
    embeddings,
    batch_size=train_config.batch_size,
    seed=seed,
    own_rows=sharding.own_rows(mesh),
  )
  model_state = distributed.broadcast(
    objective_lib.initial_state(model, embeddings)
  )
  boxes = rqvae.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=seed)
  first = batches.order(0)[
    : max(train_config.batch_size, _ROWS_PER_CODE * config.codes_per_level)
  ]
  params['codebooks'] = distributed.broadcast(
    _initial_codebooks(
      _by_chunks(_encode, model, params, model_state, embeddings[first]),
      config=config,
      seed=seed,
    )
  )
  decay = optimizer_lib.decay_mask(names)
  # A decaying code vector would leave the residuals it stands for.
  decay['codebooks'] = False
  setup = training_setup.make_setup(
    stage=_SETTINGS,
    experiment=settings,
    train=train_config,
    mesh=mesh,
    names=names,
    params=params,
    model_state=model_state,
    decay=decay,
  )
  folder = folder / _digest(settings, embeddings)
  folder.mkdir(parents=True, exist_ok=True)
  result = setup.run(
    folder,
    objective_lib.make_objective(model),
    batches,
    batches_per_epoch=batches.batches_per_epoch,
  )
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  params, model_state = jax.device_get(
    whole((result.state.params, result.state.model_state))
  )
  return Trained(
    model,
    params,
    model_state,
    {
      **setup.figures(result),
      'epochs': train_config.num_steps / batches.batches_per_epoch,
      'batch_size': train_config.batch_size,
    },
  )


def _experiment(
  config: config_lib.TokenizerConfig, seed: int
) -> config_lib.Experiment:
  """Returns the settings that the training depends on, all else at default.

  So that another evaluation or another collision policy does not refuse the
  checkpoint.
  """
  return config_lib.Experiment(
    seed=seed,
    tokenizer=config_lib.TokenizerConfig(
      levels=config.levels,
      codes_per_level=config.codes_per_level,
      quantizer='rqvae',
      init=config.init,
      max_iterations=config.max_iterations,
      tolerance=config.tolerance,
      rqvae=config.rqvae,
    ),
  )


def _digest(settings: config_lib.Experiment, embeddings: np.ndarray) -> str:
  contents = np.ascontiguousarray(embeddings, '<f4').tobytes()
  return config_lib.digest(
    (
      settings.seed,
      str(config_lib.to_dict(settings.tokenizer)),
      hashlib.sha256(contents).hexdigest(),
    )
  )


def _train_config(
  config: config_lib.RQVAEConfig, num_items: int, mesh: jax.sharding.Mesh
) -> config_lib.TrainConfig:
  """Returns the loop's settings; a small catalogue is one batch."""
  sharding.check_batch_size(mesh, config.batch_size, f'{_SETTINGS}.batch_size')
  batch_size = config.batch_size
  if num_items < batch_size:
    batch_size = -(-num_items // mesh.size) * mesh.size
    logging.info(
      '%s.batch_size=%d is above the %d items: every step takes all of them'
      ' (%d rows on %d devices).',
      _SETTINGS,
      config.batch_size,
      num_items,
      batch_size,
      mesh.size,
    )
  return config_lib.TrainConfig(
    batch_size=batch_size,
    num_steps=config.num_steps,
    optimizer=config_lib.OptimizerConfig(
      name='adamw',
      peak_learning_rate=config.peak_learning_rate,
      schedule='cosine',  # to 0: a tenth less error than a constant rate
      warmup_steps=min(_WARMUP_STEPS, config.num_steps // 10),
      weight_decay=config.weight_decay,
      clip_norm=None,  # Adam is indifferent to the scale of the loss
    ),
    log_every_steps=max(config.num_steps // _LOG_LINES, 1),
    evaluate_every_steps=0,
    checkpoint_every_steps=max(config.num_steps // _CHECKPOINTS, 1),
    keep_checkpoints=1,
  )


def _initial_codebooks(
  latents: np.ndarray, *, config: config_lib.TokenizerConfig, seed: int
) -> np.ndarray:
  """Returns residual k-means of latent vectors. float32 [L, C, Z]"""
  fit = residual_kmeans.fit_codebooks(
    latents,
    config=dataclasses.replace(
      config, quantizer='kmeans', corpus_assignment='nearest'
    ),
    seed=seed,
  )
  codebooks = fit.codebooks.codebooks.copy()
  codebooks[0] += fit.codebooks.mean[None]
  return codebooks


@functools.partial(jax.jit, static_argnames='model')
def _encode(
  model: rqvae.RQVAE, params: Any, state: Any, rows: jax.Array
) -> jax.Array:
  """Returns latent vectors of item vectors. [rows, Z]"""
  vectors = objective_lib.standardize(rows, state)
  latents = model.apply({'params': params}, vectors, method='encode')
  assert isinstance(latents, jax.Array)
  return latents


@functools.partial(jax.jit, static_argnames='model')
def _decode(
  model: rqvae.RQVAE, params: Any, state: Any, rows: jax.Array
) -> jax.Array:
  """Returns item vectors of quantized latent vectors. [rows, D]"""
  vectors = model.apply({'params': params}, rows, method='decode')
  assert isinstance(vectors, jax.Array)
  return vectors * state['scale'] + state['mean'][None]


def _by_chunks(
  function: Callable[..., jax.Array],
  model: rqvae.RQVAE,
  params: Any,
  state: Any,
  rows: np.ndarray,
) -> np.ndarray:
  """Applies `_encode` or `_decode` to a bounded number of rows at a time."""
  count = min(_ROWS_AT_ONCE, len(rows))
  result: np.ndarray | None = None
  for start in range(0, len(rows), count):
    # The last chunk starts early enough to be whole: one compiled shape.
    start = min(start, len(rows) - count)
    part = jnp.asarray(rows[start : start + count], jnp.float32)
    values = np.asarray(function(model, params, state, part))
    if result is None:
      result = np.empty((len(rows), values.shape[1]), np.float32)
    result[start : start + count] = values
  assert result is not None
  return result
