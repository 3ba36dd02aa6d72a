"""Rewards of generated sessions, as in Table 1 of 2502.18965.

Every method answers the same users with G candidate sessions of M items; one
reward model judges them, and where the world is simulated, its law does too.
A session-wise model gives its beam; a method that ranks items gives items
1..M of its list as its first session, M+1..2M as its second, and so on (the
paper does not say).
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import session_rewards
from onerec_jax import sharding
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.stages import beam_sessions
from onerec_jax.stages import reward_model as reward_lib
from onerec_jax.stages import trained as trained_lib


class Sessions(NamedTuple):
  """Candidate sessions of U users."""

  items: Int[np.ndarray, 'U G M']  # dense items; -1: none
  legal: Bool[np.ndarray, 'U G']  # every ID has an item the user may get
  generated: int  # sessions that were generated
  existing: int  # of these, the ones whose IDs all belong to items
  existing_items: int  # items in the catalogue among all that were generated


def choose_users(
  store: examples.ExampleStore, *, max_users: int | None
) -> Int[np.ndarray, ' U']:
  """Returns example ids of one target per user, evenly spaced over users."""
  first = store.index.start_offsets()[:-1][store.index.num_starts > 0]
  count = len(first) if max_users is None else min(max_users, len(first))
  return first[np.arange(count) * len(first) // max(count, 1)]


@runtime_checkable
class Generator(Protocol):
  """Answers users with candidate sessions."""

  def __call__(
    self,
    ids: np.ndarray,
    *,
    params: Any = None,
    router_bias: Any = None,
    poll: Callable[[], None] = lambda: None,
  ) -> Sessions: ...


def make_generator(
  trained: trained_lib.Trained,
  experiment: config.Experiment,
  store: examples.ExampleStore,
  *,
  num_items: int,
  constrain: str | None = None,
) -> Generator:
  """Returns how a trained model answers users.

  Args:
    trained: the model; with other parameters, give them to the call.
    experiment: decoding settings and the number of candidates.
    store: the users' examples.
    num_items: items of a session (M).
    constrain: replaces the decoding's constraint.
  """
  num_sessions = experiment.evaluate.sessions.num_sessions
  rollout = experiment.preference.rollout
  if constrain is not None:
    rollout = dataclasses.replace(rollout, constrain=constrain)
  # The judge's experiment may have another encoder than this model.
  store = store.with_contexts(trained.contexts)
  longest = trained.experiment.data.sessions.items_per_session
  is_session_wise = (
    trained.experiment.architecture == 'onerec'
    and longest >= num_items + rollout.continue_items
  )
  if is_session_wise:
    settings = dataclasses.replace(
      rollout, num_beams=num_sessions, num_items=num_items
    )
  else:
    settings = dataclasses.replace(
      rollout,
      num_beams=num_sessions * num_items,
      num_items=1,
      continue_items=0,
    )
  return _Generator(
    trained,
    store,
    settings,
    session_wise=is_session_wise,
    shape=(num_sessions, num_items),
    batch_size=experiment.evaluate.batch_size,
  )


class _Generator:
  """Batches of users through the compiled decoding."""

  def __init__(
    self,
    trained: trained_lib.Trained,
    store: examples.ExampleStore,
    settings: config.DecodingConfig,
    *,
    session_wise: bool,
    shape: tuple[int, int],
    batch_size: int,
  ):
    self._trained = trained
    self._store = store
    self._shape = shape
    self._history_length = (
      trained.experiment.data.history_length + settings.continue_items
    )
    shards = trained.mesh.size
    self._rows = -(-batch_size // shards) * shards
    self._mine = sharding.own_rows(trained.mesh)(self._rows)
    self._search = self._ranker = None
    if session_wise:
      self._search = beam_sessions.SessionBeam(trained, store, settings)
    else:
      longest = int(store.index.history_counts.max(initial=0))
      self._ranker = trained_lib.Recommender(
        trained,
        settings,
        top_k=shape[0] * shape[1],
        batch_size=self._rows,
        max_excluded=longest,
      )

  def __call__(
    self,
    ids: np.ndarray,
    *,
    params: Any = None,
    router_bias: Any = None,
    poll: Callable[[], None] = lambda: None,
  ) -> Sessions:
    t = self._trained
    params = t.params if params is None else params
    router_bias = t.router_bias if router_bias is None else router_bias
    parts = []
    for first in range(0, len(ids), self._rows):
      poll()
      taken = ids[first : first + self._rows]
      rows = np.full(self._rows, -1)
      rows[: len(taken)] = taken
      users = pipeline.session_batch(
        self._store,
        rows[self._mine],
        history_length=self._history_length,
        items_per_session=1,
      )
      answer = (
        self._beam(users, params, router_bias)
        if self._search is not None
        else self._list(users)
      )
      parts.append(tuple(a[: len(taken)] for a in answer))
    items, legal, *counts = (
      np.concatenate(p) for p in zip(*parts, strict=True)
    )
    return Sessions(items, legal, *(int(c.sum()) for c in counts))

  def _beam(
    self, users: Any, params: Any, router_bias: Any
  ) -> tuple[np.ndarray, ...]:
    assert self._search is not None
    found = self._search(users, params=params, router_bias=router_bias)
    whole = np.asarray(np.all(found.exists, axis=2))
    return found.items, found.legal, found.valid, whole, found.exists

  def _list(self, users: Any) -> tuple[np.ndarray, ...]:
    assert self._ranker is not None
    answer = self._ranker(users, pipeline.seen_items(self._store, users))
    items = answer.items.reshape(len(answer.items), *self._shape)
    listed = np.asarray(items >= 0)
    legal = np.asarray(np.all(listed, axis=2))
    return items, legal, np.asarray(np.any(listed, axis=2)), legal, listed


class Scorer:
  """The reward model on candidate sessions of the users of a store."""

  def __init__(
    self,
    judge: reward_lib.RewardModel,
    store: examples.ExampleStore,
    *,
    history_length: int,
  ):
    self.judge = judge
    self._store = store
    self._history_length = history_length

  def __call__(
    self, ids: np.ndarray, sessions: Sessions
  ) -> Float[np.ndarray, 'U G X']:
    """Returns the predictions of every candidate; NaN where not legal."""
    users = pipeline.session_batch(
      self._store,
      ids,
      history_length=self._history_length,
      items_per_session=1,
    )
    mask = np.broadcast_to(sessions.legal[..., None], sessions.items.shape)
    return self.judge.score(
      users.history_items,
      users.history_mask,
      sessions.items.astype(np.int32),
      np.array(mask),
    )


def with_total(
  rewards: Float[np.ndarray, 'U G X'], weights: Float[np.ndarray, ' X']
) -> Float[np.ndarray, 'U G X1']:
  """Returns the rewards after their weighted sum Σ ω r."""
  total = (rewards * weights).sum(axis=2, keepdims=True)
  return np.concatenate([total, rewards], axis=2)


def columns(names: Sequence[str], *, prefix: str = '') -> tuple[str, ...]:
  """Returns the columns of `with_total`: reward_mean, reward_max, swt_mean."""
  return session_rewards.column_names(
    [f'{prefix}{name}' for name in ('reward', *names)]
  )
