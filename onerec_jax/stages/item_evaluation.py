"""P-Scores of generated items: mean, and the best of the first K (Pass@K).

Every model answers the same users with its K best items; one P-Score model
judges them and, where the world is simulated, its law does too.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import item_rewards
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import synthetic
from onerec_jax.data import synthetic_rewards
from onerec_jax.stages import beam_sessions
from onerec_jax.stages import p_score_model
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_figures
from onerec_jax.stages import session_evaluation
from onerec_jax.stages import trained as trained_lib

TOTAL = 'p_score'  # the fused reward, beside one per tower


class Truth:
  """What items are really worth in the simulated world."""

  def __init__(
    self,
    experiment: config.Experiment,
    workdir: workdir_lib.Workdir,
  ):
    """Rebuilds the world of an experiment with data.source='synthetic'."""
    self._towers = experiment.p_score_model.towers
    self._world = synthetic.make_world(
      experiment.data.synthetic, seed=experiment.seed
    )
    users = catalog.read_users(workdir.data)['user_id'].to_list()
    self._users = synthetic_rewards.world_index(users)
    self._items = synthetic_rewards.world_index(
      catalog.item_ids(workdir.data).tolist()
    )

  def __call__(
    self, users: Int[np.ndarray, ' B'], items: Int[np.ndarray, 'B W']
  ) -> Float[np.ndarray, 'B W X1']:
    """Returns what the P-Score model estimates, by the world's law.

      tower x: P(label x);  P-Score: Σ w_x P(label x) / Σ w_x

    The fusion's loss scores one number against every label, so its optimum is
    their weighted mean.

    Args:
      users: dense. [B]
      items: dense; -1: none, gives NaN. [B, W]

    Returns:
      The P-Score, then every tower. [B, W, 1 + X]
    """
    rows = self._items[np.maximum(items, 0)]
    towers = [
      synthetic_rewards.event_probability(
        self._world,
        self._users[users],
        rows,
        column=tower.column,
        threshold=tower.threshold,
      )
      for tower in self._towers
    ]
    weights = np.array([tower.weight for tower in self._towers])
    found = np.stack(towers, axis=-1)
    total = found @ weights / weights.sum()
    found = np.concatenate([total[..., None], found], axis=-1)
    return np.where((items >= 0)[..., None], found, np.nan)


def make_truth(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> Truth | None:
  """Returns the law of the simulated world; None where nobody knows it."""
  if experiment.data.source != 'synthetic':
    return None
  return Truth(experiment, workdir)


# --- Items ------------------------------------------------------------------


class Items(NamedTuple):
  """K generated items of U users, best first by the model."""

  users: Int[np.ndarray, ' U']  # dense
  items: Int[np.ndarray, 'U K']  # dense; -1: none
  legal: Bool[np.ndarray, 'U K']
  generated: int  # IDs that were generated
  existing: int  # of these, the ones that belong to items


class Generator:
  """Answers users of an example file with a model's best items."""

  def __init__(
    self,
    trained: trained_lib.Trained,
    store: examples.ExampleStore,
    *,
    num_items: int,
    batch_size: int,
    constrain: str = 'trie',
  ):
    """Prepares decoding; compiled at first use.

    Args:
      trained: OneRec.
      store: the users' examples.
      num_items: K.
      batch_size: users decoded at once; rounded up to the mesh.
      constrain: 'trie' or 'none'.
    """
    settings = config.DecodingConfig(num_beams=num_items, num_items=1)
    if constrain == 'none':
      settings = config.DecodingConfig(
        num_beams=num_items, num_items=1, constrain='none'
      )
    self._trained = trained
    # The judge's model may read other contexts than this one.
    self._store = store = store.with_contexts(trained.contexts)
    self._beam = beam_sessions.SessionBeam(trained, store, settings)
    shards = trained.mesh.size
    self._rows = -(-batch_size // shards) * shards
    self._mine = sharding.own_rows(trained.mesh)(self._rows)

  def __call__(
    self,
    ids: Int[np.ndarray, ' U'],
    *,
    params: Any = None,
    router_bias: Any = None,
    poll: Callable[[], None] = lambda: None,
  ) -> Items:
    """Returns the items of the users of some examples.

    Args:
      ids: examples. [U]
      params: None: those of the model.
      router_bias: None: that of the model.
      poll: called between batches; raises where the run shall stop.
    """
    t = self._trained
    parts = []
    generated = existing = 0
    for first in range(0, len(ids), self._rows):
      poll()
      taken = ids[first : first + self._rows]
      rows = np.full(self._rows, -1)
      rows[: len(taken)] = taken
      users = pipeline.session_batch(
        self._store,
        rows[self._mine],
        history_length=t.experiment.data.history_length,
        items_per_session=1,
      )
      found = self._beam(
        users,
        params=t.params if params is None else params,
        router_bias=t.router_bias if router_bias is None else router_bias,
      )
      real = rows >= 0
      generated += int((found.valid & real[:, None]).sum())
      existing += int((found.exists[..., 0] & real[:, None]).sum())
      parts.append(
        (
          sharding.gather(found.placed.user)[real],
          np.where(found.legal, found.items[..., 0], -1)[real],
          found.legal[real],
        )
      )
    users, items, legal = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Items(users, items, legal, generated, existing)


# --- The judge --------------------------------------------------------------


class Judge(NamedTuple):
  """Whom and what generated items are judged by."""

  experiment: config.Experiment
  workdir: workdir_lib.Workdir
  store: examples.ExampleStore
  ids: Int[np.ndarray, ' U']  # examples of the users
  positions: Int[np.ndarray, ' U']  # of the requests, in the users' events
  model: p_score_model.PScoreModel
  truth: Truth | None

  @property
  def stage(self) -> config.Stage:
    """Stage that trained the judge."""
    return 'p_score'

  @property
  def names(self) -> tuple[str, ...]:
    """The P-Score and the towers."""
    return (TOTAL, *self.model.names)

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of `values`: p_score_mean, p_score_pass@8, ..., true_..."""
    pass_at = self.settings.pass_at
    found = item_rewards.pass_columns(self.names, pass_at)
    if self.truth is not None:
      found += item_rewards.pass_columns(
        [f'true_{n}' for n in self.names], pass_at
      )
    return found

  @property
  def settings(self) -> config.ItemEvaluationConfig:
    """How many users and items."""
    return self.experiment.evaluate.p_score

  @property
  def asked(self) -> dict[str, int]:
    """Answers per user, as result files name them."""
    return {'items_per_user': self.settings.num_items}


def make_judge(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  split: str,
  max_users: int | None,
) -> Judge:
  """Returns the judge of an experiment whose stage `p_score` is complete.

  Args:
    experiment: settings of P-Score model and evaluation.
    workdir: of the run.
    split: whose users are answered, 'valid' or 'test'.
    max_users: so many of them, evenly spaced; None: all.

  Raises:
    FileNotFoundError: a stage has not run.
    contract.Mismatch: the model was trained on other semantic IDs.
  """
  mesh = trained_lib.make_mesh(experiment.mesh)
  model = p_score_model.load(
    experiment, workdir, pretrain.read_semantic_ids(workdir), mesh
  )
  store = pretrain.open_examples(experiment, workdir, split)
  ids = session_evaluation.choose_users(store, max_users=max_users)
  return Judge(
    experiment=experiment,
    workdir=workdir,
    store=store,
    ids=ids,
    positions=store.index.starts[ids].astype(np.int64),
    model=model,
    truth=make_truth(experiment, workdir),
  )


def values(judge: Judge, found: Items) -> Float[np.ndarray, 'U columns']:
  """Returns the judge's columns for every user."""
  scores = judge.model.score(found.users, judge.positions, found.items)
  predicted = np.concatenate([scores.p[..., None], scores.towers], axis=-1)
  pass_at = judge.settings.pass_at
  parts = [item_rewards.pass_at_values(predicted, found.legal, pass_at=pass_at)]
  if judge.truth is not None:
    true = judge.truth(found.users, found.items)
    parts.append(
      item_rewards.pass_at_values(true, found.legal, pass_at=pass_at)
    )
  return np.concatenate(parts, axis=1)


class Measured(NamedTuple):
  """What one model's items are worth."""

  values: Float[np.ndarray, 'U columns']  # NaN: user without a legal item
  items: Items
  legality: dict[str, float]  # share of legal items when decoding is free

  @property
  def answers(self) -> Int[np.ndarray, 'U K']:
    """Dense items, -1: none."""
    return self.items.items


def measure(judge: Judge, trained: trained_lib.Trained) -> Measured:
  """Returns the rewards of a model's items for the judge's users."""
  settings = judge.settings
  batch_size = judge.experiment.evaluate.batch_size
  items = Generator(
    trained, judge.store, num_items=settings.num_items, batch_size=batch_size
  )(judge.ids)
  free = Generator(
    trained,
    judge.store,
    num_items=settings.num_items,
    batch_size=batch_size,
    constrain='none',
  )(judge.ids[: settings.legality_users])
  return Measured(
    values=values(judge, items),
    items=items,
    legality={'free_items': free.existing / max(free.generated, 1)},
  )


def compare(
  judge: Judge, models: Mapping[str, trained_lib.Trained], *, base: str
) -> dict[str, Any]:
  """Returns JSON-able figures of every model and its difference to `base`."""
  measured = {}
  for name, trained in models.items():
    measured[name] = measure(judge, trained)
    logging.info('P-Scores of generated items: %s done', name)
  return {
    **reward_figures.compare(judge, measured, base=base),
    'pass_at': list(judge.settings.pass_at),
  }
