"""Makes the preference pairs of a round: generate, score, choose, remember.

Each chunk of users is written when it is done, so that a killed run goes on
where it was.  Trains nothing.
"""

import functools
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import distributed
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.data import preference_pairs
from onerec_jax.objectives import align as objective_lib
from onerec_jax.ops import preference_pairs as pair_ops
from onerec_jax.stages import beam_sessions
from onerec_jax.stages import reward_model as reward_lib
from onerec_jax.stages import trained as trained_lib

# Batches per file of finished users.
_BATCHES_PER_CHUNK = 16


class Rollouts:
  """Makes pairs with a frozen policy, which is also the reference.

  Compiled once; the policies of later rounds are of the same shape.
  """

  def __init__(
    self,
    policy: trained_lib.Trained,
    reward: reward_lib.RewardModel | None,
    preference: config.PreferenceConfig,
    store: examples.ExampleStore,
    *,
    history_length: int,
  ):
    """Prepares decoding and scoring; compiled at first use.

    Args:
      policy: of the first round.
      reward: scores; None for logged pairs.
      preference: settings of pairs and rollouts.
      store: the training examples.
      history_length: items the encoder reads.
    """
    self._policy = policy
    self._reward = reward
    self._preference = preference
    self._store = store
    rollout = preference.rollout
    self._history_length = history_length + rollout.continue_items
    shards = policy.mesh.size
    self._rows = -(-preference.rollout_batch_size // shards) * shards
    self._mine = sharding.own_rows(policy.mesh)(self._rows)
    self._beam = beam_sessions.SessionBeam(policy, store, rollout)
    self._log_probs = jax.jit(
      objective_lib.make_score(
        policy.model, continue_items=rollout.continue_items
      )
    )
    self._choose = jax.jit(
      lambda rewards, legal, items: pair_ops.choose_pairs(
        rewards,
        legal,
        items,
        num_rejected=preference.num_rejected,
        min_gap=preference.min_reward_gap,
      )
    )

  def make(
    self,
    policy: trained_lib.Trained,
    example_ids: np.ndarray,
    folder: epath.Path,
    *,
    key: tuple[int, ...],
    poll: Callable[[], None],
  ) -> tuple[preference_pairs.Pairs, dict[str, Any]]:
    """Returns the pairs of these examples and what making them showed.

    Args:
      policy: generates, and gives the reference log-probabilities.
      example_ids: samples that shall have a pair. [P]
      folder: of the round; chunks are kept in its rollouts/.
      key: names the random stream, e.g. (seed, round).
      poll: called between batches; raises where the run shall stop.

    Raises:
      ValueError: not one pair could be made; says why.
    """
    self._policy = policy
    size = self._rows * _BATCHES_PER_CHUNK
    parts, reports = [], []
    for number, first in enumerate(range(0, len(example_ids), size)):
      path = folder / 'rollouts' / f'chunk_{number:05d}.npz'
      report_path = path.parent / f'{path.stem}.json'
      report = distributed.from_main(
        functools.partial(workdir_lib.read_json, report_path)
      )
      if report is not None:  # it is written after the pairs
        parts.append(preference_pairs.read(path))
        reports.append(report)
        continue
      ids = example_ids[first : first + size]
      chunk, report = self._chunk(ids, key=(*key, number), poll=poll)
      if distributed.is_main():
        preference_pairs.write(path, chunk)
        workdir_lib.write_json(report_path, report)
      parts.append(chunk)
      reports.append(report)
      logging.info(
        'pairs of %d of %d users', first + len(ids), len(example_ids)
      )
    pairs = preference_pairs.concatenate(parts)
    statistics = workdir_lib.sum_reports(reports)
    if not len(pairs.example_ids):
      raise ValueError(
        f'None of {len(example_ids)} users gave a preference pair:'
        f' {statistics["skipped"]}. With "equal_rewards", the reward model'
        ' does not tell the candidates apart: look at the AUC of the stage'
        ' `reward`, or raise preference.rollout.num_beams. With'
        ' "too_few_candidates", set preference.rollout.constrain=\'trie\'.'
      )
    return pairs, statistics

  def _chunk(
    self,
    example_ids: np.ndarray,
    *,
    key: tuple[int, ...],
    poll: Callable[[], None],
  ) -> tuple[preference_pairs.Pairs, dict[str, Any]]:
    make = (
      self._beam_pairs
      if self._preference.pairs == 'beam_rm'
      else self._logged_pairs
    )
    parts, reports = [], []
    for ids in self._batches(example_ids):
      poll()
      pairs, report = make(ids, key)
      parts.append(pairs)
      reports.append(report)
    return preference_pairs.concatenate(parts), workdir_lib.sum_reports(reports)

  def _batches(self, example_ids: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(example_ids), self._rows):
      taken = example_ids[first : first + self._rows]
      ids = np.full(self._rows, -1)
      ids[: len(taken)] = taken
      yield ids

  def _users(self, ids: np.ndarray, num_items: int) -> batch_lib.SessionBatch:
    return pipeline.session_batch(
      self._store,
      ids,
      history_length=self._history_length,
      items_per_session=num_items,
    )

  def _beam_pairs(
    self, ids: np.ndarray, key: tuple[int, ...]
  ) -> tuple[preference_pairs.Pairs, dict[str, Any]]:
    """Best and worst session of the policy's own beam, by the reward model."""
    del key  # beam search draws nothing
    policy, reward = self._policy, self._reward
    assert reward is not None
    start = time.perf_counter()
    found = self._beam(
      self._users(ids[self._mine], 1),
      params=policy.params,
      router_bias=policy.router_bias,
    )
    history_items, history_mask = sharding.gather(
      (found.placed.history_items, found.placed.history_mask)
    )
    items, legal = found.items, found.legal
    generated = time.perf_counter()
    mask = np.broadcast_to(legal[..., None], items.shape)
    predictions = reward.score(
      history_items, history_mask, np.maximum(items, 0), mask
    )
    rewards = pair_ops.aggregate_rewards(
      jnp.asarray(predictions),
      jnp.asarray(legal),
      weights=tuple(reward.weights),
      kind=reward.config.aggregate,
    )
    choice = jax.device_get(self._choose(rewards, legal, items))
    scored = time.perf_counter()
    places = np.asarray(choice.indices)
    rewards = np.asarray(rewards)
    real = ids >= 0
    kept = np.asarray(choice.valid) & real
    picked = np.take_along_axis(items, places[..., None], 1)
    pairs = self._with_reference(
      found.placed,
      ids,
      np.maximum(picked, 0),
      np.broadcast_to(kept[:, None, None], picked.shape),
      kept,
      rewards=np.take_along_axis(rewards, places, 1),
      predictions=np.take_along_axis(predictions, places[..., None], 1),
    )
    reasons = np.asarray(choice.reason)[real & ~kept]
    counted = legal & real[:, None]
    plain = (predictions * np.asarray(reward.weights)).sum(axis=2)
    return pairs, {
      'users': int(real.sum()),
      'pairs': int(kept.sum()),
      'skipped': {
        reason.name.lower(): int((reasons == reason).sum())
        for reason in pair_ops.PairReason
        if reason != pair_ops.PairReason.OK
      },
      'candidates': int((found.valid & real[:, None]).sum()),
      'legal': int(counted.sum()),
      'reward_sum': float(plain[counted].sum()),
      'chosen_reward_sum': float(
        np.take_along_axis(plain, places, 1)[kept, 0].sum()
      ),
      'rejected_reward_sum': float(
        np.take_along_axis(plain, places, 1)[kept, 1:].mean(axis=1).sum()
      ),
      'seconds': {
        'generate': generated - start,
        'score': scored - generated,
        'reference': time.perf_counter() - scored,
      },
    }

  def _logged_pairs(
    self, ids: np.ndarray, key: tuple[int, ...]
  ) -> tuple[preference_pairs.Pairs, dict[str, Any]]:
    """The logged session against sessions of other users.

    Our choice: 2502.18965 does not say how its baselines' pairs were made.
    """
    start = time.perf_counter()
    number = self._preference.rollout.num_items
    users = self._users(ids, number)
    real = users.example_mask
    width = self._preference.num_rejected
    others = preference_pairs.other_examples(
      self._store.index,
      np.maximum(ids, 0),
      count=width,
      key=(*key, int(ids[0])),
    )
    others = np.where(real[:, None], others, -1)
    rejected = [self._users(others[:, k], number) for k in range(width)]
    sessions = [users, *rejected]
    items = np.stack([s.target_items for s in sessions], 1)
    mask = np.stack([s.target_mask for s in sessions], 1)
    # Sessions of one length: a sum over more tokens is no comparison.
    mask = np.broadcast_to(mask.all(axis=1, keepdims=True), mask.shape)
    same = (items == items[:, :1])[:, 1:] | ~mask[:, 1:]
    kept = real & mask.any(axis=(1, 2)) & ~same.all(axis=2).any(axis=1)
    made = time.perf_counter()
    shape = items.shape[:2]
    pairs = self._with_reference(
      sharding.place_rows(users, self._policy.mesh),
      ids,
      items,
      mask & kept[:, None, None],
      kept,
      rewards=np.zeros(shape, np.float32),
      predictions=np.full((*shape, 1), np.nan, np.float32),
    )
    return pairs, {
      'users': int(real.sum()),
      'pairs': int(kept.sum()),
      'skipped': {'same_session': int((real & ~kept).sum())},
      'seconds': {
        'generate': made - start,
        'score': 0.0,
        'reference': time.perf_counter() - made,
      },
    }

  def _with_reference(
    self,
    placed: batch_lib.SessionBatch,
    ids: np.ndarray,
    items: np.ndarray,
    mask: np.ndarray,
    kept: np.ndarray,
    *,
    rewards: np.ndarray,
    predictions: np.ndarray,
  ) -> preference_pairs.Pairs:
    """Returns the kept rows with the reference's log-probabilities."""
    policy = self._policy
    items = items.astype(np.int32)
    candidates = sharding.place_rows((items, np.array(mask)), policy.mesh)
    log_probs = np.asarray(
      sharding.gather(
        self._log_probs(
          policy.params,
          policy.router_bias,
          policy.catalogue,
          placed,
          *candidates,
        )
      )
    )
    return preference_pairs.Pairs(
      example_ids=ids[kept],
      items=items[kept],
      mask=np.array(mask)[kept],
      reference_log_probs=log_probs[kept].astype(np.float32),
      rewards=rewards[kept].astype(np.float32),
      predictions=predictions[kept].astype(np.float32),
    )
