"""Checks of reward models, alignment and reinforcement."""

import math
from collections.abc import Iterator

from onerec_jax.config.alignment import PreferenceConfig
from onerec_jax.config.experiment import Experiment


def reward_problems(e: Experiment) -> Iterator[str]:
  """Yields what is wrong with the session reward model."""
  model = e.reward_model
  if not model.targets:
    yield (
      "stages has 'reward', but reward_model.targets is empty: name at least"
      " one, e.g. ({'name': 'ltr', 'column': 'is_like', 'label': 'any'},), or"
      " take 'reward' and 'align' out of stages."
    )
  names = [t.name for t in model.targets]
  if len(set(names)) < len(names):
    yield f'reward_model.targets has a name twice: {names}.'
  for i, target in enumerate(model.targets):
    if not 0 < target.percentile <= 100:
      yield (
        f'reward_model.targets[{i}].percentile={target.percentile} must lie in'
        ' (0, 100].'
      )
  for name in (
    'items_per_session',
    'embed_dim',
    'num_heads',
    'num_layers',
    'tower_dim',
  ):
    if getattr(model, name) < 1:
      yield f'reward_model.{name}={getattr(model, name)} must be at least 1.'
  if model.embed_dim % model.num_heads:
    yield (
      f'reward_model.embed_dim={model.embed_dim} is not divisible by'
      f' reward_model.num_heads={model.num_heads}.'
    )
  if not 0 <= model.dropout_rate < 1:
    yield f'reward_model.dropout_rate={model.dropout_rate} must lie in [0, 1).'
  if not 0 < model.held_out_share < 1:
    yield (
      f'reward_model.held_out_share={model.held_out_share} must lie in (0, 1).'
    )


def preference_problems(e: Experiment) -> Iterator[str]:
  """Yields what is wrong with preference alignment."""
  p = e.preference
  if e.architecture != 'onerec':
    yield (
      f"stages has 'align', which needs architecture='onerec', not"
      f' {e.architecture!r}: item-level baselines generate no sessions.'
    )
  if p.pairs == 'beam_rm' and 'reward' not in e.stages:
    yield (
      "preference.pairs='beam_rm' needs the stage 'reward': add it to stages,"
      " or set preference.pairs='logged'."
    )
  if p.pairs == 'logged' and p.rounds != 1:
    yield (
      f"preference.rounds={p.rounds} has no meaning with pairs='logged', which"
      ' are drawn once: set preference.rounds=1 and raise align.num_steps.'
    )
  yield from preference_loss_problems(p)
  if not 0 < p.sample_share <= 1:
    yield f'preference.sample_share={p.sample_share} must lie in (0, 1].'
  if not 0 <= p.weight < math.inf:
    yield (
      f'preference.weight={p.weight} must be finite and at least 0, e.g. 1.0.'
    )
  if p.rounds < 1:
    yield f'preference.rounds={p.rounds} must be at least 1.'
  rollout, trained = p.rollout, e.data.sessions.items_per_session
  if rollout.continue_items + rollout.num_items > trained:
    yield (
      f'preference.rollout.continue_items={rollout.continue_items} plus'
      f' preference.rollout.num_items={rollout.num_items} must not exceed'
      f' data.sessions.items_per_session={trained}, the length that is trained.'
    )
  if p.pairs == 'beam_rm':
    if rollout.num_beams < 1 + p.num_rejected:
      yield (
        f'preference.rollout.num_beams={rollout.num_beams} cannot hold a best'
        f' and {p.num_rejected} worst sessions.'
      )
    if rollout.num_items != e.reward_model.items_per_session:
      yield (
        f'preference.rollout.num_items={rollout.num_items} must equal'
        f' reward_model.items_per_session={e.reward_model.items_per_session},'
        ' the session length that the reward model knows.'
      )


def preference_loss_problems(p: PreferenceConfig) -> Iterator[str]:
  """Yields what is wrong with the preference loss and its knobs."""
  if p.num_rejected < 1 or (p.num_rejected > 1 and p.loss != 'sdpo'):
    yield (
      f'preference.num_rejected={p.num_rejected} must be 1 with loss'
      f" {p.loss!r}, at least 1 with 'sdpo': only 'sdpo' compares to more."
    )
  if p.beta is not None and not 0 < p.beta < math.inf:
    yield (
      f'preference.beta={p.beta} must be positive and finite; None is the'
      " loss's default."
    )
  if not 0 <= p.label_flip < 0.5:
    yield (
      f'preference.label_flip={p.label_flip} must lie in [0, 0.5): from 0.5 on'
      ' the pairs say nothing or the opposite. Set it to 0.1, say.'
    )
  for name, value in (('margin', p.margin), ('nll_weight', p.nll_weight)):
    if not 0 <= value < math.inf:
      yield (
        f'preference.{name}={value} must be finite and at least 0, e.g. 1.0.'
      )


def p_score_problems(e: Experiment) -> Iterator[str]:
  """Yields what is wrong with the P-Score model."""
  model = e.p_score_model
  names = [tower.name for tower in model.towers]
  if not names:
    yield (
      "stages has 'p_score', but p_score_model.towers is empty: name at least"
      " one, e.g. ({'name': 'ltr', 'column': 'is_like'},)."
    )
  if len(set(names)) < len(names) or 'p_score' in names:
    yield (
      f'p_score_model.towers has the names {names}: they must differ from each'
      " other and from 'p_score'."
    )
  for i, tower in enumerate(model.towers):
    if tower.weight <= 0:
      yield f'p_score_model.towers[{i}].weight={tower.weight} must be positive.'
  for name in ('embed_dim', 'num_heads', 'history_length', 'search_items'):
    if getattr(model, name) < 1:
      yield f'p_score_model.{name}={getattr(model, name)} must be at least 1.'
  if model.embed_dim % model.num_heads:
    yield (
      f'p_score_model.embed_dim={model.embed_dim} is not divisible by'
      f' p_score_model.num_heads={model.num_heads}.'
    )
  if model.search_items > model.history_length:
    yield (
      f'p_score_model.search_items={model.search_items} exceeds'
      f' p_score_model.history_length={model.history_length}.'
    )
  if not model.tower_dims or not model.fusion_dims:
    yield 'p_score_model.tower_dims and fusion_dims must not be empty.'
  strengths = model.linear_strengths
  if any(s <= 0 for s in strengths) or list(strengths) != sorted(strengths):
    yield (
      f'p_score_model.linear_strengths={strengths} must be positive and'
      ' ascending, e.g. (0.03, 0.1, 0.3); () for no linear part.'
    )
  if not 0 < model.held_out_share < 1:
    yield (
      f'p_score_model.held_out_share={model.held_out_share} must lie in (0, 1).'
    )
  if model.search == 'hard' and not e.model.pathways.item_features:
    yield (
      "p_score_model.search='hard' compares the first of"
      ' model.pathways.item_features, which is empty: name one, or set'
      " search='soft'."
    )


def reinforce_problems(e: Experiment) -> Iterator[str]:
  """Yields what is wrong with reinforcement."""
  r = e.reinforcement
  if 'p_score' not in e.stages:
    yield "stages has 'reinforce', which needs 'p_score': add it to stages."
  if e.architecture != 'onerec':
    yield (
      f"stages has 'reinforce', which needs architecture='onerec', not"
      f' {e.architecture!r}.'
    )
  known = ['p_score', *(tower.name for tower in e.p_score_model.towers)]
  if r.reward not in known:
    yield f'reinforcement.reward={r.reward!r} must be one of {known}.'
  if r.group_size < 2:
    yield (
      f'reinforcement.group_size={r.group_size} must be at least 2: advantages'
      ' compare the items of a group.'
    )
  if not 0 < r.user_share <= 1:
    yield f'reinforcement.user_share={r.user_share} must lie in (0, 1].'
  if not 0 < r.clip < 1:
    yield f'reinforcement.clip={r.clip} must lie in (0, 1).'
  if r.early_clip <= 0:
    yield f'reinforcement.early_clip={r.early_clip} must be positive.'
  if r.temperature <= 0:
    yield f'reinforcement.temperature={r.temperature} must be positive.'
  if not 0 < r.sample_top_p <= 1:
    yield f'reinforcement.sample_top_p={r.sample_top_p} must lie in (0, 1].'
  if r.sync_every_steps < 1:
    yield (
      f'reinforcement.sync_every_steps={r.sync_every_steps} must be at least 1.'
    )
  if r.format_weight and not 1 <= r.format_samples <= r.group_size:
    yield (
      f'reinforcement.format_samples={r.format_samples} must lie in'
      f' 1..group_size={r.group_size}.'
    )
  if not 0 <= r.rsft_drop_share < 1:
    yield (
      f'reinforcement.rsft_drop_share={r.rsft_drop_share} must lie in [0, 1).'
    )
  industrial = r.industrial
  if industrial.categories and not (
    0 < industrial.factor < 1 and 0 <= industrial.target_share < 1
  ):
    yield (
      f'reinforcement.industrial.factor={industrial.factor} must lie in (0, 1)'
      f' and target_share={industrial.target_share} in [0, 1).'
    )
  k = e.evaluate.p_score
  if not k.pass_at or max(k.pass_at) > k.num_items or min(k.pass_at) < 1:
    yield (
      f'evaluate.p_score.pass_at={k.pass_at} must lie in'
      f' 1..evaluate.p_score.num_items={k.num_items}.'
    )
