"""The trained P-Score model, as reinforcement and evaluation need it.

Read from the stages `prepare`, `tokenize` and `p_score` alone.  Trains
nothing and writes nothing.
"""

from typing import Literal
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import impressions
from onerec_jax.data import rated_contexts
from onerec_jax.data import user_context
from onerec_jax.model import p_score
from onerec_jax.objectives import p_score as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.train import checkpoints
from onerec_jax.train import contract

STAGE = 'p_score'


class PScores(NamedTuple):
  """Probabilities of candidate items; NaN where there is no item."""

  p: Float[np.ndarray, 'B W']  # P-Score
  towers: Float[np.ndarray, 'B W X']  # in the order of PScoreModel.names


def make_contexts(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  events: event_table.EventTable | None = None,
) -> rated_contexts.RatedContexts:
  """Returns what makes the contexts that the P-Score model reads.

  Args:
    experiment: settings of the P-Score model.
    workdir: of the run.
    events: all events, if they are in memory already.
  """
  model = experiment.p_score_model
  pathways = p_score.pathways_of(model, experiment.model.pathways)
  if events is None:
    events = event_table.read(workdir.data)
  features = features_lib.make_features(workdir.data, events, pathways)
  labels, _ = impressions.label_events(events, model.towers)
  return rated_contexts.RatedContexts(
    user_context.ContextMaker(pathways, features, events),
    tuple((tower.name, labels[:, x]) for x, tower in enumerate(model.towers)),
    dim=p_score.feature_dim(model),
  )


def make_model(
  experiment: config.Experiment,
  ids: table.SemanticIds,
  contexts: rated_contexts.RatedContexts,
  mesh: Mesh | None,
) -> p_score.PScore:
  """Returns the P-Score model that an experiment trains on these IDs."""
  return p_score.PScore(
    config=experiment.p_score_model,
    pathways=contexts.pathways,
    sizes=contexts.sizes,
    vocabulary=ids.vocabulary(),
    dropout_bits=experiment.p_score.dropout_bits,
    mesh=mesh,
  )


def place_catalogue(
  ids: table.SemanticIds, contexts: rated_contexts.RatedContexts, mesh: Mesh
) -> batch_lib.Catalogue:
  """Returns codes and features of all items, whole on every device."""
  catalogue = batch_lib.Catalogue(ids.codes, contexts.features.items)
  whole = sharding.replicated(mesh)
  return sharding.place(catalogue, jax.tree.map(lambda _: whole, catalogue))


class PScoreModel:
  """A trained P-Score model and its catalogue, placed on a mesh.

  Attributes:
    names: of the towers, in the order of the scores' last axis.
    num_items: of the catalogue.
    config: the settings it was trained with.
    contexts: makes what is read of users.
    step: of the checkpoint.
  """

  def __init__(
    self,
    model: p_score.PScore,
    params: object,
    ids: table.SemanticIds,
    contexts: rated_contexts.RatedContexts,
    mesh: Mesh,
    *,
    batch_size: int,
    step: int,
  ):
    """Prepares scoring; `load` is the usual way to get one.

    Args:
      model: the architecture.
      params: on the mesh.
      ids: semantic IDs it was trained with.
      contexts: of `make_contexts`.
      mesh: where it runs.
      batch_size: users scored at once; rounded up to the mesh.
      step: of the checkpoint.
    """
    self.config = model.config
    self.names = tuple(tower.name for tower in model.config.towers)
    self.contexts = contexts
    self.step = step
    self._params = params
    self.num_items = ids.num_items
    self._mesh = mesh
    self._rows = -(-batch_size // mesh.size) * mesh.size
    self._catalogue = place_catalogue(ids, contexts, mesh)
    self._score = objective_lib.make_scorer(model)

  def score(
    self,
    users: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, ' B'],
    items: Int[np.ndarray, 'B W'],
  ) -> PScores:
    """Returns the predictions for candidate items.

    Every process gives all users and gets all predictions.  Compiled once for
    a given W: users go in groups of `batch_size`.

    Args:
      users: dense; -1: a filler row. [B]
      positions: of the requests, in the users' events. [B]
      items: candidates; -1: none. [B, W]

    Raises:
      ValueError: an item is not in the catalogue.
    """
    largest = int(items.max(initial=-1))
    if largest >= self.num_items:
      raise ValueError(
        f'items holds item {largest}, but the P-Score model knows'
        f' {self.num_items} items: pass dense indices, rows of items.parquet.'
      )
    count, width = items.shape
    fused = [np.zeros((0, width), np.float32)]
    towers = [np.zeros((0, width, len(self.names)), np.float32)]
    mine = sharding.own_rows(self._mesh)(self._rows)
    for first in range(0, count, self._rows):
      real = first + mine < count
      rows = np.where(real, first + mine, 0)
      user = np.where(real, users[rows], -1)
      context, user, candidates = sharding.place_batch(
        (
          self.contexts(user, np.where(real, positions[rows], 0)),
          np.maximum(user, 0).astype(np.int32),
          np.maximum(items[rows], 0).astype(np.int32),
        ),
        self._mesh,
      )
      found = sharding.gather(
        self._score(self._params, self._catalogue, context, user, candidates)
      )
      fused.append(found.p[: count - first])
      towers.append(found.towers[: count - first])
    none = items < 0
    return PScores(
      np.where(none, np.float32(np.nan), np.concatenate(fused)),
      np.where(none[..., None], np.float32(np.nan), np.concatenate(towers)),
    )


def load(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  mesh: Mesh,
  *,
  which: Literal['best', 'latest'] = 'best',
  batch_size: int | None = None,
  events: event_table.EventTable | None = None,
) -> PScoreModel:
  """Restores the P-Score model, with the settings it was trained with.

  Args:
    experiment: present settings; used where the checkpoint has none.
    workdir: of the run.
    ids: semantic IDs in use.
    mesh: where it will run.
    which: checkpoint to take.
    batch_size: users scored at once; None: reinforcement.rollout_batch_size.
    events: all events, if they are in memory already.

  Raises:
    FileNotFoundError: the stage `p_score` has not run.
    contract.Mismatch: it was trained with other semantic IDs.
  """
  folder = workdir.folder(STAGE)
  try:
    restored = checkpoints.restore_for_evaluation(
      folder, which=which, mesh=mesh, ids_digest=ids.digest()
    )
  except contract.Mismatch as error:
    raise contract.Mismatch(
      f'The P-Score model does not fit the items: {error} To train only the'
      f' P-Score model again, delete {folder} and run the stage {STAGE!r}.'
    ) from error
  used = restored.experiment or experiment
  contexts = make_contexts(used, workdir, events)
  return PScoreModel(
    make_model(used, ids, contexts, mesh),
    restored.params,
    ids,
    contexts,
    mesh,
    batch_size=batch_size or experiment.reinforcement.rollout_batch_size,
    step=restored.step,
  )
