"""Trains the item alignment of the stage `embed` and applies it to all items.

Training is a job of the one loop, with checkpoints and metrics below
embed/alignment/; a cut-off stage continues.  What the vectors are worth is
judged by stages/item_quality.py.
"""

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
from jaxtyping import Float32

from onerec_jax import config as config_lib
from onerec_jax import metrics
from onerec_jax import sharding
from onerec_jax.data import captions as captions_lib
from onerec_jax.data import item_pairs
from onerec_jax.data import item_tokens
from onerec_jax.data import neighbours
from onerec_jax.model import item_alignment
from onerec_jax.model import parameters
from onerec_jax.objectives import item_alignment as objective_lib
from onerec_jax.stages import training_setup

# Where the settings of the training are, for the loop's errors.
_SETTINGS = 'embed.alignment'
_ROWS_AT_ONCE = 4096  # bounds the memory of encoding a catalogue
_WARMUP_STEPS = 100
_LOG_LINES = 20
_CHECKPOINTS = 4
_EVALUATIONS = 4
_HIT = 'valid/hit@10'


class Aligned(NamedTuple):
  """The outcome of an alignment."""

  # Queries side by side, rows of norm 1; zero where no part knows the item.
  vectors: Float32[np.ndarray, 'I QD']
  summary: dict[str, Any]  # pairs, captions and how the training went


def align(
  tokens: item_tokens.ItemTokens,
  pairs: item_pairs.ItemPairs,
  captions: captions_lib.Captions | None,
  *,
  alignment: config_lib.ItemAlignmentConfig,
  seed: int,
  mesh: jax.sharding.Mesh,
  folder: epath.Path,
  transitions: neighbours.Transitions | None = None,
) -> Aligned:
  """Trains the alignment, continuing from the last checkpoint.

  Fewer pairs than the batch size are trained on as a whole.

  Args:
    tokens: of all items.
    pairs: at least one.
    captions: of all items; None: no caption loss.
    alignment: sizes, loss and training.
    seed: of the parameters, the order of the pairs and dropout.
    mesh: the devices.
    folder: where this and other trainings are kept, each below a name made
      of its settings, tokens and pairs: none meets the checkpoints of another.
    transitions: of validation; adds 'valid/hit@10' to the metrics a few times
      (for the curve: the last parameters are taken, not the best).

  Raises:
    ValueError: a batch that does not fit the mesh.
    loop.NonFinite, preemption.Preempted: see `loop.train`.
  """
  settings = config_lib.Experiment(
    seed=seed, embed=config_lib.EmbedConfig(alignment=alignment)
  )
  watched = transitions is not None and len(transitions.targets) > 0
  train_config = _train_config(
    alignment, len(pairs.triggers), mesh, watched=watched
  )
  model = item_alignment.ItemAligner(
    alignment,
    item_alignment.TokenLayout(tokens.num_tokens, tokens.widths),
    len(captions.vocabulary) if captions else 0,
  )
  batches = item_pairs.ItemPairBatches(
    pairs,
    tokens,
    captions,
    batch_size=train_config.batch_size,
    seed=seed,
    own_rows=sharding.own_rows(mesh),
  )
  boxes = item_alignment.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=seed)
  setup = training_setup.make_setup(
    stage=_SETTINGS,
    experiment=settings,
    train=train_config,
    mesh=mesh,
    names=names,
    params=params,
  )
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def hit_rate(
    params: Any, model_state: Any, poll: Callable[[], None]
  ) -> dict[str, float]:
    del model_state
    assert transitions is not None
    vectors = encode(model, jax.device_get(whole(params)), tokens, poll=poll)
    ranks = neighbours.target_ranks(vectors, transitions)[:, None]
    return {_HIT: float(metrics.hit_at_k(ranks, k=10).mean())}

  folder = folder / _digest(settings, tokens, pairs, captions)
  folder.mkdir(parents=True, exist_ok=True)
  result = setup.run(
    folder,
    objective_lib.make_objective(model),
    batches,
    batches_per_epoch=batches.batches_per_epoch,
    evaluate=hit_rate if watched else None,
    best_metric=_HIT,
    best_mode='max',
  )
  params = jax.device_get(whole(result.state.params))
  return Aligned(
    encode(model, params, tokens),
    {
      'pairs': {
        'user_to_item': pairs.user_to_item,
        'item_to_item': pairs.item_to_item,
      },
      'captions': {
        'used': captions is not None,
        'items': int(captions.mask.any(axis=1).sum()) if captions else 0,
        'vocabulary': len(captions.vocabulary) if captions else 0,
      },
      'training': {
        **setup.figures(result),
        'epochs': train_config.num_steps / batches.batches_per_epoch,
        'batch_size': train_config.batch_size,
      },
    },
  )


def _train_config(
  alignment: config_lib.ItemAlignmentConfig,
  num_pairs: int,
  mesh: jax.sharding.Mesh,
  *,
  watched: bool,
) -> config_lib.TrainConfig:
  """Returns the loop's settings; few pairs are one batch."""
  steps, batch_size = alignment.num_steps, alignment.batch_size
  sharding.check_batch_size(mesh, batch_size, f'{_SETTINGS}.batch_size')
  if num_pairs < batch_size:
    batch_size = -(-num_pairs // mesh.size) * mesh.size
    logging.info(
      '%s.batch_size=%d is above the %d pairs: every step takes all of them'
      ' (%d rows on %d devices).',
      _SETTINGS,
      alignment.batch_size,
      num_pairs,
      batch_size,
      mesh.size,
    )
  return config_lib.TrainConfig(
    batch_size=batch_size,
    num_steps=steps,
    optimizer=config_lib.OptimizerConfig(
      name='adamw',
      peak_learning_rate=alignment.peak_learning_rate,
      schedule='cosine',
      warmup_steps=min(_WARMUP_STEPS, steps // 10),
      weight_decay=alignment.weight_decay,
    ),
    log_every_steps=max(steps // _LOG_LINES, 1),
    evaluate_every_steps=max(steps // _EVALUATIONS, 1) if watched else 0,
    checkpoint_every_steps=max(steps // _CHECKPOINTS, 1),
    keep_checkpoints=1,
  )


def _digest(
  settings: config_lib.Experiment,
  tokens: item_tokens.ItemTokens,
  pairs: item_pairs.ItemPairs,
  captions: captions_lib.Captions | None,
) -> str:
  contents = hashlib.sha256()
  arrays = [tokens.values, tokens.mask, pairs.triggers, pairs.targets]
  arrays += [captions.words, captions.mask] if captions else []
  for array in arrays:
    contents.update(f'{array.shape} {array.dtype.str} '.encode())
    contents.update(np.ascontiguousarray(array).data)
  return config_lib.digest(
    (
      settings.seed,
      str(config_lib.to_dict(settings.embed)),
      contents.hexdigest(),
    )
  )


# --- Encoding ---------------------------------------------------------------


@functools.partial(jax.jit, static_argnames='model')
def _encode(
  model: item_alignment.ItemAligner,
  params: Any,
  tokens: jax.Array,
  mask: jax.Array,
) -> jax.Array:
  """Returns vectors of norm 1, of 0 where no token is real. [rows, Q·D]"""
  queries = model.apply({'params': params}, tokens, mask, method='encode')
  assert isinstance(queries, jax.Array)
  flat = queries.astype(jnp.float32).reshape(len(queries), -1)
  square = jnp.sum(jnp.square(flat), axis=1, keepdims=True)
  flat = flat * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
  return jnp.where(jnp.any(mask, axis=1, keepdims=True), flat, 0)


def encode(
  model: item_alignment.ItemAligner,
  params: Any,
  tokens: item_tokens.ItemTokens,
  *,
  poll: Callable[[], None] = lambda: None,
) -> Float32[np.ndarray, 'I QD']:
  """Returns the aligned vectors of all items.

    v = [m_1, …, m_Q] / |[m_1, …, m_Q]|

  so that distances, which the tokenizer works with, order items as the
  similarity 'flat' does.  Items that no part knows get zeros.

  Args:
    model: the aligner.
    params: its parameters.
    tokens: of all items.
    poll: called between chunks.
  """
  total = len(tokens.values)
  count = min(_ROWS_AT_ONCE, total)
  alignment = model.config
  result = np.empty((total, alignment.num_queries * alignment.dim), np.float32)
  for start in range(0, total, count):
    poll()
    # The last chunk starts early enough to be whole: one compiled shape.
    start = min(start, total - count)
    rows = slice(start, start + count)
    result[rows] = _encode(
      model, params, tokens.values[rows], tokens.mask[rows]
    )
  return result
