"""Stage 'embed': item vectors from content and training behaviour.

Writes embed/item_embeddings.npz.  The vectors see training events only;
held-out transitions are used to rate them, never to make them.
"""

import io
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from onerec_jax import config
from onerec_jax import distributed
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import captions as captions_lib
from onerec_jax.data import examples
from onerec_jax.data import item_content
from onerec_jax.data import item_pairs
from onerec_jax.data import item_tokens
from onerec_jax.data import item_vectors
from onerec_jax.data import neighbours
from onerec_jax.stages import item_alignment
from onerec_jax.stages import item_quality

_TOP_K = 10
_TRANSITIONS = 2000  # validation transitions of the quality figure


def run(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Builds the item vectors and returns what they are worth.

  Returns:
    num_items, dim, empty_share (items with a zero vector), neighbour_hit@10
    (validation transitions whose target is among the ten nearest items, the
    source excluded; None without validation examples), num_transitions, and
    per part: kind, dim, weight, explained, empty_share, seconds,
    neighbour_hit@10.  With embed.alignment, of which the vectors then are,
    'alignment': `item_alignment.Aligned.summary` and 'quality',
    `item_quality.report`.

  Raises:
    ValueError: a part or the alignment has nothing to work with.
  """
  workdir.require(workdir.data / 'items.parquet', 'prepare')
  view = item_content.read_view(workdir.data)
  transitions = neighbours.read_transitions(
    examples.ExampleStore(workdir.data / 'examples' / 'valid.arrayrecord'),
    max_examples=_TRANSITIONS,
  )

  def hit_rate(vectors: np.ndarray) -> float | None:
    if not len(transitions.sources):
      return None
    return item_vectors.neighbour_hit_rate(
      vectors, transitions.sources, transitions.targets, top_k=_TOP_K
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
  if experiment.embed.alignment.enabled:  # on all processes
    blocks = [_agreed(block) for block in blocks]
  vectors = item_vectors.join(experiment.embed.parts, blocks)
  more: dict[str, Any] = {}
  if experiment.embed.alignment.enabled:
    aligned = _align(experiment, workdir, view, blocks, vectors, transitions)
    compared = {'unaligned': vectors, 'aligned': aligned.vectors}
    if len(blocks) > 1:
      for i, (part, block) in enumerate(
        zip(experiment.embed.parts, blocks, strict=True)
      ):
        compared[f'part {i}: {part.kind}'] = block.values
    quality = item_quality.report(compared, workdir, seed=experiment.seed)
    more['alignment'] = {**aligned.summary, 'quality': quality}
    training = aligned.summary['training']
    more['earlier_seconds'] = training['earlier_seconds']
    vectors = aligned.vectors
  empty = ~np.any(vectors != 0, axis=1)
  if empty.any():
    logging.warning(
      'embed: %d of %d items have no vector from any part and will share one'
      " semantic ID; add a part, such as kind='text', that knows them.",
      empty.sum(),
      len(empty),
    )
  if distributed.is_main():
    _save(workdir.embeddings, vectors)
  return {
    'num_items': view.num_items,
    'dim': vectors.shape[1],
    'empty_share': float(empty.mean()),
    f'neighbour_hit@{_TOP_K}': hit_rate(vectors),
    'num_transitions': len(transitions.sources),
    'parts': parts,
    **more,
  }


def _agreed(block: item_vectors.Block) -> item_vectors.Block:
  """Returns the block of process 0: rounding may depend on the machine."""
  arrays = {
    'values': block.values,
    'empty': block.empty,
    'tokens': block.tokens,
  }
  return block._replace(**distributed.broadcast(arrays))


def _align(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  view: item_content.DatasetView,
  blocks: Sequence[item_vectors.Block],
  vectors: np.ndarray,
  transitions: neighbours.Transitions,
) -> item_alignment.Aligned:
  """Returns the vectors that the configured alignment makes of the parts."""
  alignment = experiment.embed.alignment
  pairs = item_pairs.make_pairs(
    view.offsets,
    view.items,
    num_items=view.num_items,
    vectors=vectors,
    alignment=alignment,
    seed=experiment.seed,
  )
  captions = None
  if alignment.caption_weight > 0:
    captions = captions_lib.make_captions(
      view.texts,
      num_words=alignment.caption_tokens,
      vocabulary_size=alignment.caption_vocabulary,
    )
    if captions is None:
      logging.warning(
        'embed.alignment.caption_weight=%g has no effect: none of the %d items'
        ' has a text or a title.',
        alignment.caption_weight,
        view.num_items,
      )
  return item_alignment.align(
    item_tokens.make_tokens(blocks),
    pairs,
    captions,
    alignment=alignment,
    seed=experiment.seed,
    mesh=meshes.make_mesh(experiment.mesh),
    folder=workdir.stage('embed') / 'alignment',
    transitions=transitions,
  )


def _save(path: epath.Path, vectors: np.ndarray) -> None:
  """Writes the file so that a reader never sees half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  buffer = io.BytesIO()
  np.savez(buffer, embeddings=vectors)
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}'
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(path)
