"""A trained model with its catalogue, as evaluate and recommend need it.

Read from the work directory alone, on whatever devices there are.  Trains
nothing and writes nothing.
"""

from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.decoding import recommend as decoding
from onerec_jax.model import onerec
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import table
from onerec_jax.stages import pretrain
from onerec_jax.train import checkpoints
from onerec_jax.train import contract


class Trained(NamedTuple):
  """A model and the catalogue it speaks of, placed on `mesh`."""

  experiment: config.Experiment  # the settings it was trained with
  model: onerec.OneRec
  params: Any
  router_bias: jax.Array
  ids: table.SemanticIds
  item_codes: jax.Array  # int32 [num_items, L]
  trie: prefix_trie.PrefixTrie
  mesh: Mesh
  step: int
  differences: list[str]  # settings that changed since it was trained


class Answers(NamedTuple):
  """Ranked items of the users of one batch, as NumPy arrays."""

  items: np.ndarray  # int [B, K]; -1 fills
  scores: np.ndarray  # float [B, K]; log-probability, nats
  entropy: np.ndarray  # float [B, L]; of the code given its prefix, nats
  generated: np.ndarray  # int [B]; hypotheses
  legal: np.ndarray  # int [B]; of these, the ones that are items


def load(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  which: Literal['best', 'latest'],
) -> Trained:
  """Restores the checkpoint and everything needed to decode.

  The model is built from the settings stored in the checkpoint; where those
  of `experiment` differ, the differences are logged.

  Args:
    experiment: present settings.
    workdir: of the run.
    which: checkpoint to take.

  Raises:
    FileNotFoundError: a stage has not run; says which.
    contract.Mismatch: the semantic IDs are not those of the training.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f'evaluate and recommend run on one process, there are'
      f' {jax.process_count()}: run the command once more on one host; the'
      ' checkpoint restores on any number of devices.'
    )
  ids = pretrain.read_semantic_ids(workdir)
  mesh = _mesh(experiment.mesh)
  restored = checkpoints.restore_for_evaluation(
    workdir.folder(pretrain.STAGE),
    which=which,
    mesh=mesh,
    ids_digest=ids.digest(),
  )
  used = restored.experiment or experiment
  differences = [
    line
    for line in contract.differences(
      config.to_dict(used), config.to_dict(experiment)
    )
    if line.startswith(('data', 'embed', 'tokenizer', 'model', pretrain.STAGE))
  ]
  for line in differences:
    logging.warning('differs from the training, which counts: %s', line)
  whole = sharding.replicated(mesh)
  return Trained(
    experiment=used,
    model=pretrain.make_model(used, ids, mesh),
    params=restored.params,
    router_bias=restored.model_state,
    ids=ids,
    item_codes=jax.device_put(ids.codes, whole),
    trie=jax.device_put(
      prefix_trie.PrefixTrie.build(
        ids.codes, ids.codes_per_level, rank_in_bucket=ids.rank_in_bucket
      ),
      whole,
    ),
    mesh=mesh,
    step=restored.step,
    differences=differences,
  )


def _mesh(wanted: config.MeshConfig) -> Mesh:
  """Returns the configured mesh, or all devices as data where it cannot be."""
  try:
    return sharding.make_mesh(wanted)
  except ValueError as error:
    logging.info('%s Evaluating on all %d devices.', error, jax.device_count())
    return sharding.make_mesh(config.MeshConfig())


class Recommender:
  """Answers batches of users; compiled once for one shape of batch."""

  def __init__(
    self,
    trained: Trained,
    settings: config.DecodingConfig,
    *,
    top_k: int,
    batch_size: int,
    max_excluded: int,
  ):
    """Prepares decoding.

    Args:
      trained: from `load`.
      settings: beams, constraint, exclusions.
      top_k: items per user (K).
      batch_size: rows wanted per call.
      max_excluded: most items that any user will exclude.
    """
    self._trained = trained
    self._function = decoding.make_recommender(
      trained.model, settings, top_k=top_k
    )
    shards = trained.mesh.size
    # Every device gets the same number of rows.
    self.batch_size = -(-batch_size // shards) * shards
    self._excluded = decoding.exclusion_width(max_excluded)

  def __call__(
    self, batch: batch_lib.SessionBatch, seen: Sequence[np.ndarray]
  ) -> Answers:
    """Returns the lists of a batch, filler rows included.

    Args:
      batch: users, `batch_size` rows.
      seen: items each row must not get again, oldest first; they count only
        if decoding.exclude_history.
    """
    excluded = decoding.exclusion_array(seen, width=self._excluded)
    t = self._trained
    placed, excluded = sharding.place_batch((batch, excluded), t.mesh)
    result = jax.device_get(
      self._function(
        t.params, t.router_bias, t.item_codes, t.trie, placed, excluded
      )
    )
    return Answers(
      items=np.asarray(result.items, np.int64),
      scores=np.asarray(result.scores, np.float64),
      entropy=np.asarray(result.hypotheses.entropy, np.float64),
      generated=np.asarray(result.generated),
      legal=np.asarray(result.legal),
    )
