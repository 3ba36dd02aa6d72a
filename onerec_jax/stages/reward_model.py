"""The trained session reward model, as alignment and evaluation need it.

Read from the stage `reward` alone.  Trains nothing and writes nothing.
"""

from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.model import session_reward
from onerec_jax.objectives import reward as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.train import checkpoints
from onerec_jax.train import contract

STAGE = 'reward'


def make_model(
  experiment: config.Experiment,
  ids: table.SemanticIds,
  mesh: Mesh | None,
) -> session_reward.SessionReward:
  """Returns the reward model that an experiment trains on these IDs."""
  return session_reward.SessionReward(
    config=experiment.reward_model,
    vocabulary=ids.vocabulary(),
    num_items=ids.num_items,
    dropout_bits=experiment.reward.dropout_bits,
    mesh=mesh,
  )


class RewardModel:
  """A trained reward model and its catalogue, placed on a mesh.

  Attributes:
    names: of the targets, in the order of the scores' last axis.
    weights: ω of each target. float64 [X]
    aggregate: how targets and weights become one reward.
    config: the settings it was trained with.
    step: of the checkpoint.
  """

  def __init__(
    self,
    model: session_reward.SessionReward,
    params: object,
    ids: table.SemanticIds,
    mesh: Mesh,
    *,
    history_length: int,
    batch_size: int,
    step: int,
  ):
    """Prepares scoring; `load` is the usual way to get one.

    Args:
      model: the architecture.
      params: on the mesh.
      ids: semantic IDs it was trained with.
      mesh: where it runs.
      history_length: behaviours read (N), as in training.
      batch_size: users scored at once; rounded up to the mesh.
      step: of the checkpoint.
    """
    self.config = model.config
    self.names = tuple(target.name for target in model.config.targets)
    self.weights = np.array([target.weight for target in model.config.targets])
    self.aggregate = model.config.aggregate
    self.step = step
    self._params = params
    self._ids = ids
    self._mesh = mesh
    self._history_length = history_length
    self._rows = -(-batch_size // mesh.size) * mesh.size
    self._item_codes = sharding.place(ids.codes, sharding.replicated(mesh))
    self._score = objective_lib.make_scorer(model)

  def score(
    self,
    history_items: Int[np.ndarray, 'B N'],
    history_mask: Bool[np.ndarray, 'B N'],
    items: Int[np.ndarray, 'B W M'],
    mask: Bool[np.ndarray, 'B W M'],
  ) -> Float[np.ndarray, 'B W X']:
    """Returns the predicted probabilities of every candidate session.

    Every process gives all users and gets all scores.  Compiled once for
    given W and M: users go in groups of `batch_size`, and only the latest
    behaviours are read, as many as in training.

    Args:
      history_items: dense item indices, oldest first. [B, N]
      history_mask: False: padding, at the end or anywhere. [B, N]
      items: candidate sessions; -1 is padding. [B, W, M]
      mask: False: padding. [B, W, M]

    Returns:
      float32 in 0..1; NaN for a candidate without any item. [B, W, X]

    Raises:
      ValueError: an item is not in the catalogue.
    """
    mask = mask & (items >= 0)
    history_mask = history_mask & (history_items >= 0)
    for name, values, where in (
      ('history_items', history_items, history_mask),
      ('items', items, mask),
    ):
      largest = int(values.max(initial=-1, where=where))
      if largest >= self._ids.num_items:
        raise ValueError(
          f'{name} holds item {largest}, but the reward model knows'
          f' {self._ids.num_items} items: pass dense indices, rows of'
          ' items.parquet.'
        )
    items = np.where(mask, items, 0).astype(np.int32)
    history_items, history_mask = _latest(
      history_items, history_mask, self._history_length
    )
    parts = [np.zeros((0, items.shape[1], len(self.names)), np.float32)]
    mine = sharding.own_rows(self._mesh)(self._rows)
    for first in range(0, len(items), self._rows):
      rows = [
        sharding.fill_rows(x[first : first + self._rows], self._rows)[mine]
        for x in (history_items, history_mask, items, mask)
      ]
      placed = sharding.place_batch(rows, self._mesh)
      found = self._score(self._params, self._item_codes, *placed)
      parts.append(sharding.gather(found)[: len(items) - first])
    scores = np.concatenate(parts)
    has_items = np.any(mask, axis=2, keepdims=True)
    return np.where(has_items, scores, np.float32(np.nan))


def _latest(
  items: np.ndarray, mask: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the last `width` real items of each row, padding at the end."""
  rank_from_end = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # 1: the last
  kept = mask & (rank_from_end <= width)
  order = np.argsort(~kept, axis=1, kind='stable')[:, :width]
  items = np.take_along_axis(np.where(kept, items, 0), order, axis=1)
  kept = np.take_along_axis(kept, order, axis=1)
  missing = ((0, 0), (0, width - items.shape[1]))
  return np.pad(items, missing).astype(np.int32), np.pad(kept, missing)


def load(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  mesh: Mesh,
  *,
  which: Literal['best', 'latest'] = 'best',
  batch_size: int | None = None,
) -> RewardModel:
  """Restores the reward model, with the settings it was trained with.

  Args:
    experiment: present settings; used where the checkpoint has none.
    workdir: of the run.
    ids: semantic IDs in use.
    mesh: where it will run.
    which: checkpoint to take.
    batch_size: users scored at once; None: preference.rollout_batch_size.

  Raises:
    FileNotFoundError: the stage `reward` has not run.
    contract.Mismatch: it was trained with other semantic IDs.
  """
  try:
    restored = checkpoints.restore_for_evaluation(
      workdir.folder(STAGE), which=which, mesh=mesh, ids_digest=ids.digest()
    )
  except contract.Mismatch as error:
    raise contract.Mismatch(
      f'The reward model does not fit the items: {error} To train only the'
      f' reward model again, delete {workdir.folder(STAGE)} and run the stage'
      f' {STAGE!r}.'
    ) from error
  used = restored.experiment or experiment
  return RewardModel(
    make_model(used, ids, mesh),
    restored.params,
    ids,
    mesh,
    history_length=used.data.history_length,
    batch_size=batch_size or experiment.preference.rollout_batch_size,
    step=restored.step,
  )
