"""Judges the generated sessions of several models on the same users.

One reward model scores all of them; in a simulated world its law gives the
true expected reward beside it, so that a model which only pleases the reward
model is found out.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import session_rewards
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import synthetic
from onerec_jax.data import synthetic_rewards
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.ops import history as history_ops
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward_figures
from onerec_jax.stages import reward_model as reward_lib
from onerec_jax.stages import session_evaluation
from onerec_jax.stages import trained as trained_lib

_DYNAMICS_USERS = 4  # whose predictions are kept for the report


class Truth(NamedTuple):
  """The simulated world, in dense indices of the prepared data."""

  world: synthetic.World
  users: Int[np.ndarray, ' users']  # row of the world of each dense user
  items: Int[np.ndarray, ' items']
  targets: tuple[config.RewardTarget, ...]
  quantiles: Mapping[str, float | None]


class Judge(NamedTuple):
  """Whom and what generated sessions are judged by."""

  experiment: config.Experiment
  workdir: workdir_lib.Workdir
  store: examples.ExampleStore
  ids: Int[np.ndarray, ' U']  # examples of the test users
  scorer: session_evaluation.Scorer
  truth: Truth | None

  @property
  def stage(self) -> config.Stage:
    """Stage that trained the judge."""
    return 'reward'

  @property
  def names(self) -> tuple[str, ...]:
    """Reward targets."""
    return self.scorer.judge.names

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of `Measured.values`."""
    found = session_evaluation.columns(self.names)
    if self.truth is not None:
      found += session_evaluation.columns(self.names, prefix='true_')
    return found

  @property
  def settings(self) -> config.SessionEvaluationConfig:
    """How many users and sessions."""
    return self.experiment.evaluate.sessions

  @property
  def asked(self) -> dict[str, int]:
    """Answers per user, as result files name them."""
    return {
      'sessions_per_user': self.settings.num_sessions,
      'items_per_session': self.scorer.judge.config.items_per_session,
    }


class Measured(NamedTuple):
  """What one model's sessions are worth."""

  values: Float[np.ndarray, 'U columns']  # NaN: user without a legal session
  sessions: session_evaluation.Sessions
  rewards: Float[np.ndarray, 'U G X']
  legality: dict[str, float]  # share of legal sessions and items

  @property
  def answers(self) -> Int[np.ndarray, 'U G M']:
    """Dense items, -1: none."""
    return self.sessions.items


def make_judge(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  split: str,
  max_users: int | None,
) -> Judge:
  """Returns the judge of an experiment whose stage `reward` is complete.

  Args:
    experiment: settings of reward model and decoding.
    workdir: of the run.
    split: whose users are answered, 'valid' or 'test'.
    max_users: so many of them, evenly spaced; None: all.

  Raises:
    FileNotFoundError: a stage has not run.
    contract.Mismatch: the reward model was trained on other semantic IDs.
  """
  mesh = trained_lib.make_mesh(experiment.mesh)
  model = reward_lib.load(
    experiment, workdir, pretrain.read_semantic_ids(workdir), mesh
  )
  store = pretrain.open_examples(experiment, workdir, split)
  return Judge(
    experiment=experiment,
    workdir=workdir,
    store=store,
    ids=session_evaluation.choose_users(store, max_users=max_users),
    scorer=session_evaluation.Scorer(
      model, store, history_length=experiment.data.history_length
    ),
    truth=_truth(experiment, workdir, model),
  )


def _truth(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  model: reward_lib.RewardModel,
) -> Truth | None:
  if experiment.data.source != 'synthetic':
    return None
  result = workdir.result(reward_lib.STAGE) or {}
  users = catalog.read_users(workdir.data)['user_id'].to_list()
  return Truth(
    world=synthetic.make_world(experiment.data.synthetic, seed=experiment.seed),
    users=synthetic_rewards.world_index(users),
    items=synthetic_rewards.world_index(
      catalog.item_ids(workdir.data).tolist()
    ),
    targets=model.config.targets,
    quantiles={t['name']: t['quantile'] for t in result['targets']},
  )


def measure(judge: Judge, trained: trained_lib.Trained) -> Measured:
  """Returns the rewards of a model's sessions for the judge's users.

  Args:
    judge: users and reward model.
    trained: on the same catalogue; its semantic IDs may be others.
  """
  e = judge.experiment
  num_items = judge.scorer.judge.config.items_per_session
  sessions = session_evaluation.make_generator(
    trained, e, judge.store, num_items=num_items
  )(judge.ids)
  rewards = judge.scorer(judge.ids, sessions)
  return Measured(
    values=_user_values(judge, sessions, rewards),
    sessions=sessions,
    rewards=rewards,
    legality=_legality(judge, trained, num_items),
  )


def _user_values(
  judge: Judge,
  sessions: session_evaluation.Sessions,
  rewards: Float[np.ndarray, 'U G X'],
) -> Float[np.ndarray, 'U columns']:
  weights = judge.scorer.judge.weights
  scored = [rewards]
  if judge.truth is not None:
    scored.append(true_rewards(judge, judge.truth, sessions))
  return np.concatenate(
    [
      session_rewards.user_rewards(
        session_evaluation.with_total(values, weights), sessions.legal
      )
      for values in scored
    ],
    axis=1,
  )


def validation_figures(
  judge: Judge, sessions: session_evaluation.Sessions
) -> dict[str, float]:
  """Returns every column's mean over users as 'valid/...', for the log.

  Users without a legal session are left out.
  """
  values = _user_values(judge, sessions, judge.scorer(judge.ids, sessions))
  some = sessions.legal.any(axis=1)
  if not some.any():
    raise ValueError(
      'No validation user got a legal session, so there is nothing to score.'
      " Set preference.rollout.constrain='trie'."
    )
  means = values[some].mean(axis=0)
  return {
    f'valid/{name}': float(value)
    for name, value in zip(judge.columns, means, strict=True)
  }


def true_rewards(
  judge: Judge, truth: Truth, sessions: session_evaluation.Sessions
) -> Float[np.ndarray, 'U G X']:
  """Returns the expected labels of every session by the world's law."""
  count, width, length = sessions.items.shape
  users = pipeline.session_batch(
    judge.store, judge.ids, history_length=1, items_per_session=1
  ).user
  found = synthetic_rewards.true_reward(
    truth.world,
    np.repeat(truth.users[users], width),
    truth.items[np.maximum(sessions.items, 0)].reshape(-1, length),
    np.repeat(sessions.legal.reshape(-1)[:, None], length, axis=1),
    targets=truth.targets,
    quantiles=truth.quantiles,
  )
  return found.reshape(count, width, -1)


def _legality(
  judge: Judge, trained: trained_lib.Trained, num_items: int
) -> dict[str, float]:
  """Returns the share of sessions that are legal when decoding is free."""
  if trained.experiment.architecture != 'onerec':
    return {}
  chosen = judge.ids[: judge.settings.legality_users]
  free = session_evaluation.make_generator(
    trained,
    judge.experiment,
    judge.store,
    num_items=num_items,
    constrain='none',
  )(chosen)
  return {
    'free_sessions': free.existing / max(free.generated, 1),
    'free_items': free.existing_items / max(free.generated * num_items, 1),
  }


def compare(
  judge: Judge, models: Mapping[str, trained_lib.Trained], *, base: str
) -> dict[str, Any]:
  """Returns figures of the models, with their prediction dynamics."""
  measured = {}
  for name, trained in models.items():
    measured[name] = measure(judge, trained)
    logging.info('rewards of generated sessions: %s done', name)
  return {
    **reward_figures.compare(judge, measured, base=base),
    'dynamics': dynamics(judge, models, measured[base]),
  }


# --- Prediction dynamics ----------------------------------------------------


def dynamics(
  judge: Judge,
  models: Mapping[str, trained_lib.Trained],
  candidates: Measured,
) -> list[dict[str, Any]]:
  """Returns how the models predict the codes of high-reward items.

  For some users, the first item of the candidate session with the highest
  reward: every level's softmax given the item's own codes before, per model
  (2502.18965, section 5.4).  The session begins as in the rollouts.

  Args:
    judge: users and reward model.
    models: session-wise models on the same semantic IDs.
    candidates: sessions of the model before alignment.
  """
  weights = judge.scorer.judge.weights
  total = session_evaluation.with_total(candidates.rewards, weights)[..., 0]
  legal = candidates.sessions.legal
  # A beginning of the session that is shorter would need padding.
  long = judge.store.index.history_counts[judge.ids] > (
    judge.experiment.preference.rollout.continue_items
  )
  rows = np.flatnonzero(legal.any(axis=1) & long)[:_DYNAMICS_USERS]
  if not len(rows):
    return []
  best = np.where(legal[rows], total[rows], -np.inf).argmax(axis=1)
  sessions = candidates.sessions.items[rows, best]
  titles = catalog.item_titles(judge.workdir.data)
  result = [
    {
      'item': titles[session[0]],
      'reward': float(total[row, place]),
      'codes': [],
      'probabilities': {},
    }
    for row, place, session in zip(rows, best, sessions, strict=True)
  ]
  for name, trained in models.items():
    probs = _first_item_probabilities(judge, trained, judge.ids[rows], sessions)
    codes = trained.ids.codes[sessions[:, 0]]
    for entry, code, values in zip(result, codes, probs, strict=True):
      entry['codes'] = code.tolist()
      entry['probabilities'][name] = [
        values[level, :size].round(6).tolist()
        for level, size in enumerate(trained.ids.codes_per_level)
      ]
  return result


def _first_item_probabilities(
  judge: Judge,
  trained: trained_lib.Trained,
  ids: np.ndarray,
  sessions: Int[np.ndarray, 'U M'],
) -> Float[np.ndarray, 'U L C']:
  """Returns the softmax of every level of the session's first item."""
  shards = trained.mesh.size
  rows = -(-len(ids) // shards) * shards
  padded = np.full(rows, -1)
  padded[: len(ids)] = ids
  last = judge.experiment.preference.rollout.continue_items
  users = pipeline.session_batch(
    judge.store.with_contexts(trained.contexts),
    padded,
    history_length=trained.experiment.data.history_length + last,
    items_per_session=1,
  )
  items = np.zeros((rows, 1), np.int32)
  items[: len(ids), 0] = sessions[:, 0]

  @jax.jit
  def predict(
    params: Any, router_bias: Any, catalogue: Any, users: Any, items: Any
  ) -> jax.Array:
    history, prefix = history_ops.split_history(
      users.history_items, users.history_mask, num_last=last
    )
    session = jnp.concatenate([prefix.items, items], axis=1)
    inputs = encoder_input.of_batch(users, catalogue)
    output = trained.model.apply(
      {'params': params},
      inputs._replace(codes=catalogue.codes[history.items], mask=history.mask),
      catalogue.codes[session],
      jnp.ones(session.shape, bool),
      router_bias,
      deterministic=True,
    )
    assert isinstance(output, onerec.OneRecOutput)
    return jax.nn.softmax(output.logits[:, last], axis=-1)

  placed, items = sharding.place_rows((users, items), trained.mesh)
  probs = predict(
    trained.params, trained.router_bias, trained.catalogue, placed, items
  )
  return np.asarray(sharding.gather(probs))[: len(ids)]
