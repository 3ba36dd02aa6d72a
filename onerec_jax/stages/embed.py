"""Stage 'embed': item vectors from content and training behaviour.

Writes embed/item_embeddings.npz.  The vectors see training events only;
validation transitions are used to rate them, never to make them.
"""

import io
import time
import uuid
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import examples
from onerec_jax.data import item_vectors
from onerec_jax.data import pipeline

_TOP_K = 10
_TRANSITIONS = 2000  # validation transitions of the quality figure
_BATCH_SIZE = 256


def run(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Builds the item vectors and returns what they are worth.

  Returns:
    num_items, dim, empty_share (items with a zero vector), neighbour_hit@10
    (validation transitions whose target is among the ten nearest items, the
    source excluded; None without validation examples), num_transitions, and
    per part: kind, dim, weight, explained, empty_share, seconds,
    neighbour_hit@10.
  """
  workdir.require(workdir.data / 'items.parquet', 'prepare')
  view = item_vectors.read_view(workdir.data)
  sources, targets = _validation_transitions(workdir)

  def hit_rate(vectors: np.ndarray) -> float | None:
    if not len(sources):
      return None
    return item_vectors.neighbour_hit_rate(
      vectors, sources, targets, top_k=_TOP_K
    )

  blocks, parts = [], []
  for part in experiment.embed.parts:
    start = time.monotonic()
    block = item_vectors.build_part(part, view, seed=experiment.seed)
    blocks.append(block)
    parts.append(
      {
        'kind': part.kind,
        'dim': block.values.shape[1],
        'weight': part.weight,
        'explained': block.explained,
        'empty_share': float(block.empty.mean()),
        'seconds': time.monotonic() - start,
        f'neighbour_hit@{_TOP_K}': hit_rate(block.values),
      }
    )
    logging.info('embed: %s', parts[-1])
  vectors = item_vectors.join(experiment.embed.parts, blocks)
  empty = ~np.any(vectors != 0, axis=1)
  if empty.any():
    logging.warning(
      'embed: %d of %d items have no vector from any part and will share one'
      " semantic ID; add a part, such as kind='text', that knows them.",
      empty.sum(),
      len(empty),
    )
  _save(workdir.embeddings, vectors)
  return {
    'num_items': view.num_items,
    'dim': vectors.shape[1],
    'empty_share': float(empty.mean()),
    f'neighbour_hit@{_TOP_K}': hit_rate(vectors),
    'num_transitions': len(sources),
    'parts': parts,
  }


def _validation_transitions(
  workdir: workdir_lib.Workdir,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the last history item and the first target of some examples."""
  store = examples.ExampleStore(workdir.data / 'examples' / 'valid.arrayrecord')
  pairs = [np.zeros((2, 0), np.int32)]
  for batch in pipeline.eval_batches(
    store,
    batch_size=_BATCH_SIZE,
    history_length=1,
    items_per_session=1,
    max_examples=_TRANSITIONS,
  ):
    keep = (batch.history_mask & batch.target_mask)[:, 0]
    both = np.stack([batch.history_items[:, 0], batch.target_items[:, 0]])
    pairs.append(both[:, keep])
  sources, targets = np.concatenate(pairs, axis=1)
  return sources, targets


def _save(path: epath.Path, vectors: np.ndarray) -> None:
  """Writes the file so that a reader never sees half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez(buffer, embeddings=vectors)
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(path)
