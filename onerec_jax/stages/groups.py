"""Groups of generated items with their rewards, and what they showed.

`ItemScorer` asks the P-Score model (and a simulated world's law), `GroupMaker`
puts generation, rewards and the format reward's choice together.  Trains
nothing and writes nothing.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax import item_rewards
from onerec_jax.data import batch_plan
from onerec_jax.data import examples
from onerec_jax.data import group_batches
from onerec_jax.data import pipeline
from onerec_jax.losses import policy as policy_losses
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import item_generator
from onerec_jax.stages import p_score_model

_FORMAT = 41  # random stream; item_generator.py uses 40


# --- Rewards ----------------------------------------------------------------


class ItemScorer:
  """P-Scores, and where the world is simulated true ones, of items.

  Attributes:
    names: of the scores' last axis: the P-Score, then the towers.
  """

  def __init__(
    self,
    model: p_score_model.PScoreModel,
    truth: item_evaluation.Truth | None,
  ):
    self.names = (item_evaluation.TOTAL, *model.names)
    self._model = model
    self._truth = truth

  def place_of(self, reward: str) -> int:
    """Returns the place of a reward in `names`.

    Raises:
      ValueError: there is no such reward.
    """
    if reward not in self.names:
      raise ValueError(
        f'reinforcement.reward={reward!r} is no tower of the P-Score model;'
        f' take one of {self.names}.'
      )
    return self.names.index(reward)

  def __call__(
    self,
    users: Int[np.ndarray, ' B'],
    positions: Int[np.ndarray, ' B'],
    items: Int[np.ndarray, 'B G'],
  ) -> tuple[Float[np.ndarray, 'B G X'], Float[np.ndarray, 'B G X']]:
    """Returns predicted and true scores; NaN where there is none.

    Args:
      users: dense; -1: a filler row.
      positions: of the requests, in the users' events.
      items: dense; -1: none.
    """
    found = self._model.score(users, positions, items)
    scores = np.concatenate([found.p[..., None], found.towers], axis=2)
    true = np.full(scores.shape, np.nan)
    if self._truth is not None:
      true = self._truth(np.maximum(users, 0), items)
    return scores, true


class GroupMaker:
  """Makes the groups of users: generates, scores and rewards their items."""

  def __init__(
    self,
    generator: item_generator.ItemGenerator,
    scorer: ItemScorer,
    store: examples.ExampleStore,
    settings: config.ReinforceConfig,
    *,
    industrial: item_rewards.IndustrialReward | None,
    history_length: int,
    multiple: int,
    seed: int,
    own_rows: batch_plan.OwnRows = np.arange,
  ):
    """Takes the parts.

    Args:
      generator: of outputs.
      scorer: of items.
      store: that example ids refer to.
      settings: reward, format reward, batch size.
      industrial: None: no class of items is suppressed.
      history_length: items the encoder reads.
      multiple: users decoded at once are a multiple of this, for the mesh.
      seed: of the format reward's choices.
      own_rows: from the users decoded at once to those this process reads.
    """
    self.industrial = industrial
    self._generator = generator
    self._scorer = scorer
    self._store = store
    self._settings = settings
    self._history_length = history_length
    self.rows = -(-settings.rollout_batch_size // multiple) * multiple
    self._mine = own_rows(self.rows)
    self._seed = seed
    self._reward = scorer.place_of(settings.reward)

  def __call__(
    self,
    numbers: Int[np.ndarray, ' n'],
    example_ids: Int[np.ndarray, ' n'],
    *,
    params: Any,
    router_bias: Any,
  ) -> tuple[group_batches.Groups, dict[str, Any]]:
    """Returns the groups of at most `rows` users, and sums about them.

    Args:
      numbers: of the groups, in the run's plan.
      example_ids: of their users.
      params: of the generating policy.
      router_bias: of the generating policy.
    """
    count = len(example_ids)
    ids = np.full(self.rows, -1)
    ids[:count] = example_ids
    users = pipeline.session_batch(
      self._store,
      ids[self._mine],
      history_length=self._history_length,
      items_per_session=1,
    )
    found = self._generator(
      users, params=params, router_bias=router_bias, number=int(numbers[0])
    )
    start = time.perf_counter()
    index, real = self._store.index, ids >= 0
    positions = index.starts[np.maximum(ids, 0)].astype(np.int64)
    rows = self._store.example_rows[np.maximum(ids, 0)]
    user = np.where(real, index.users[rows], -1).astype(np.int32)
    items = np.where(real[:, None], found.items, -1)
    scores, true = self._scorer(user, positions, items)
    items, scores, true = items[:count], scores[:count], true[:count]
    rewards = item_rewards.earned(scores[..., self._reward], items)
    suppressed = None
    if self.industrial is not None:
      suppressed = self.industrial(rewards, items)
      rewards = suppressed.rewards
    chosen = np.zeros(items.shape, bool)
    if self._settings.format_weight:
      chosen = item_rewards.choose_format_samples(
        found.old_log_probs[:count].sum(axis=2),
        found.present[:count],
        count=self._settings.format_samples,
        choice=self._settings.format_choice,
        numbers=numbers,
        key=(self._seed, _FORMAT),
      )
    groups = group_batches.Groups(
      example_ids=example_ids,
      codes=found.codes[:count],
      old_log_probs=found.old_log_probs[:count],
      reference_log_probs=found.reference_log_probs[:count],
      rewards=rewards,
      legal=found.legal[:count],
      format_mask=chosen,
      true_rewards=true[..., self._reward].astype(np.float32),
    )
    report = self._report(groups, items, scores, true, suppressed)
    seconds = {**found.seconds, 'score': time.perf_counter() - start}
    return groups, {**report, 'seconds': seconds}

  def _report(
    self,
    groups: group_batches.Groups,
    items: np.ndarray,
    scores: np.ndarray,
    true: np.ndarray,
    suppressed: item_rewards.Suppressed | None,
  ) -> dict[str, Any]:
    """Returns sums over the groups; `figures` turns them into means."""
    present = groups.codes[..., 0] >= 0
    left_out = self._settings.illegal == 'left_out'
    counted = groups.legal if left_out else present
    spread = policy_losses.group_advantages(
      jnp.asarray(groups.rewards), jnp.asarray(counted)
    ).has_spread
    shown = items >= 0
    report: dict[str, Any] = {
      'groups': len(items),
      'outputs': int(present.sum()),
      'legal': int(groups.legal.sum()),
      'items': int(shown.sum()),
      'distinct_items': int(item_rewards.distinct_items(items).sum()),
      'groups_with_item': int(shown.any(axis=1).sum()),
      'groups_with_advantage': int(np.asarray(spread).sum()),
      'format_chosen': int(groups.format_mask.sum()),
      'format_legal': int((groups.format_mask & groups.legal).sum()),
    }
    for kind, values in (('reward', scores), ('true_reward', true)):
      if shown.any() and np.isfinite(values[shown]).all():
        report[kind] = {
          name: _sums(values[..., x], shown)
          for x, name in enumerate(self._scorer.names)
        }
    if suppressed is not None:
      report['industrial'] = {
        'share': float(suppressed.share.sum()),
        'groups_suppressed': int(suppressed.active.sum()),
      }
    return report


def _sums(
  values: Float[np.ndarray, 'P G'], shown: Bool[np.ndarray, 'P G']
) -> dict[str, float]:
  """Returns the sum over all items and that over the groups' best ones."""
  best = np.where(shown, values, -np.inf).max(axis=1)[shown.any(axis=1)]
  return {'total': float(values[shown].sum()), 'best': float(best.sum())}


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what merged reports say, as shares and means.

  'legality', 'seen_share' (legal, but all items of the ID are seen),
  'distinct_items' per group, 'zero_advantage_share', 'format_legality' of the
  chosen outputs, 'reward' and 'true_reward': by name, {'mean' over items,
  'best' of a group}, 'industrial': share in the window and of the groups
  whose rewards were lowered.  What was not counted is left out.
  """
  groups = max(report['groups'], 1)
  result = {
    'legality': report['legal'] / max(report['outputs'], 1),
    'seen_share': 1 - report['items'] / max(report['legal'], 1),
    'distinct_items': report['distinct_items'] / groups,
    'zero_advantage_share': 1 - report['groups_with_advantage'] / groups,
  }
  if report['format_chosen']:
    result['format_legality'] = report['format_legal'] / report['format_chosen']
  for kind in {'reward', 'true_reward'} & set(report):
    result[kind] = {
      name: {
        'mean': sums['total'] / report['items'],
        'best': sums['best'] / report['groups_with_item'],
      }
      for name, sums in report[kind].items()
    }
  if 'industrial' in report:
    result['industrial'] = {
      name: value / groups for name, value in report['industrial'].items()
    }
  return result
