"""Checks that span settings; every problem is named at once."""

from collections.abc import Iterator

from onerec_jax.config.experiment import STAGES
from onerec_jax.config.experiment import Experiment
from onerec_jax.config.training import TrainConfig


def _problems(experiment: Experiment) -> Iterator[str]:
  """Yields one sentence per setting that cannot work."""
  e = experiment
  known = {stage: i for i, stage in enumerate(STAGES)}
  order = [known[s] for s in e.stages]
  if order != sorted(set(order)):
    yield f'stages={e.stages} must follow the order {STAGES} without repeats.'
  for path, value in (
    ('data.history_length', e.data.history_length),
    ('data.sessions.items_per_session', e.data.sessions.items_per_session),
    ('tokenizer.levels', e.tokenizer.levels),
    ('tokenizer.codes_per_level', e.tokenizer.codes_per_level),
    ('model.embed_dim', e.model.embed_dim),
    ('model.num_heads', e.model.num_heads),
    ('model.encoder_layers', e.model.encoder_layers),
    ('model.decoder_layers', e.model.decoder_layers),
    ('evaluate.batch_size', e.evaluate.batch_size),
    ('evaluate.decoding.num_beams', e.evaluate.decoding.num_beams),
    ('evaluate.decoding.num_items', e.evaluate.decoding.num_items),
    ('sequential.embed_dim', e.sequential.embed_dim),
    ('sequential.num_layers', e.sequential.num_layers),
    ('sequential.num_negatives', e.sequential.num_negatives),
  ):
    if value < 1:
      yield f'{path}={value} must be at least 1.'
  decoding = e.evaluate.decoding
  if decoding.continue_items < 0 or (
    decoding.continue_items + decoding.num_items
    > e.data.sessions.items_per_session
  ):
    yield (
      f'evaluate.decoding.continue_items={decoding.continue_items} plus'
      f' evaluate.decoding.num_items={decoding.num_items} must not exceed'
      ' data.sessions.items_per_session='
      f'{e.data.sessions.items_per_session}, the length that is trained.'
    )
  sequential = e.sequential
  if sequential.embed_dim % sequential.num_heads:
    yield (
      f'sequential.embed_dim={sequential.embed_dim} is not divisible by'
      f' sequential.num_heads={sequential.num_heads}.'
    )
  if not 0 < sequential.mask_share < 1:
    yield f'sequential.mask_share={sequential.mask_share} must lie in (0, 1).'
  moe = e.model.moe
  if moe.enabled and not 1 <= moe.top_k <= moe.num_experts:
    yield (
      f'model.moe.top_k={moe.top_k} must lie in 1..model.moe.num_experts='
      f'{moe.num_experts}.'
    )
  for path, rate in (
    ('model.dropout_rate', e.model.dropout_rate),
    ('model.attention_dropout_rate', e.model.attention_dropout_rate),
    ('sequential.dropout_rate', sequential.dropout_rate),
  ):
    if not 0 <= rate < 1:
      yield f'{path}={rate} must lie in [0, 1).'
  yield from _train_problems('pretrain', e.pretrain, e.data.history_length)
  if 'reward' in e.stages:
    yield from _train_problems('reward', e.reward, e.data.history_length)
    yield from _reward_problems(e)
  if 'align' in e.stages:
    yield from _train_problems('align', e.align, e.data.history_length)
    yield from _preference_problems(e)
  split = e.data.split
  if split.kind == 'by_time' and not (
    split.validation_start and split.test_start
  ):
    yield (
      "data.split.kind='by_time' needs data.split.validation_start and"
      " data.split.test_start, e.g. '2022-05-01'."
    )
  needs_path = ('amazon_sequences', 'amazon_reviews', 'kuairand')
  if e.data.source in needs_path and not e.data.path:
    yield (
      f'data.source={e.data.source!r} needs data.path, the folder of its files.'
    )
  if e.data.source == 'tables' and not e.data.tables.interactions:
    yield (
      "data.source='tables' needs data.tables.interactions, the path of a"
      ' .parquet or .csv file.'
    )
  if not 0 <= e.data.synthetic.exploration <= 1:
    yield (
      f'data.synthetic.exploration={e.data.synthetic.exploration} must lie in'
      ' [0, 1].'
    )
  if not e.embed.parts:
    yield 'embed.parts is empty: name at least one source of item vectors.'
  for i, part in enumerate(e.embed.parts):
    if part.kind == 'array' and not part.path:
      yield f"embed.parts[{i}].kind='array' needs embed.parts[{i}].path."
  axes = (e.mesh.data, e.mesh.fsdp, e.mesh.expert)
  if sum(a == -1 for a in axes) > 1 or any(a == 0 or a < -1 for a in axes):
    yield (
      f'mesh (data, fsdp, expert)={axes}: sizes are positive, and at most one'
      ' is -1.'
    )
  if moe.enabled and e.mesh.expert > 0 and moe.num_experts % e.mesh.expert:
    yield (
      f'model.moe.num_experts={moe.num_experts} is not divisible by'
      f' mesh.expert={e.mesh.expert}.'
    )


def _train_problems(
  path: str, train: TrainConfig, history_length: int
) -> Iterator[str]:
  for name in (
    'batch_size',
    'num_steps',
    'log_every_steps',
    'checkpoint_every_steps',
    'keep_checkpoints',
  ):
    if getattr(train, name) < 1:
      yield f'{path}.{name}={getattr(train, name)} must be at least 1.'
  if not 0 <= train.label_smoothing < 1:
    yield f'{path}.label_smoothing={train.label_smoothing} must lie in [0, 1).'
  if train.ema_decay is not None and not 0 < train.ema_decay < 1:
    yield f'{path}.ema_decay={train.ema_decay} must lie in (0, 1).'
  buckets = train.pipeline.length_buckets
  if buckets and (
    list(buckets) != sorted(set(buckets))
    or buckets[-1] != history_length
    or buckets[0] < 1
  ):
    yield (
      f'{path}.pipeline.length_buckets={buckets} must rise and end at'
      f' data.history_length={history_length}.'
    )
  steps = train.profile_steps
  if steps and (len(steps) != 2 or steps[0] > steps[1]):
    yield f'{path}.profile_steps={steps} must be empty or (first, last).'


def _reward_problems(e: Experiment) -> Iterator[str]:
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


def _preference_problems(e: Experiment) -> Iterator[str]:
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
  if p.num_rejected < 1 or (p.num_rejected > 1 and p.loss != 'sdpo'):
    yield (
      f'preference.num_rejected={p.num_rejected} must be 1 with loss'
      f' {p.loss!r}; only sdpo compares to more.'
    )
  if not 0 < p.sample_share <= 1:
    yield f'preference.sample_share={p.sample_share} must lie in (0, 1].'
  if not 0 <= p.label_flip < 0.5:
    yield f'preference.label_flip={p.label_flip} must lie in [0, 0.5).'
  if p.beta is not None and p.beta <= 0:
    yield f'preference.beta={p.beta} must be positive.'
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


def validate(experiment: Experiment) -> Experiment:
  """Returns `experiment`, or raises ValueError naming every bad setting."""
  problems = list(_problems(experiment))
  if problems:
    raise ValueError('Bad configuration:\n  ' + '\n  '.join(problems))
  return experiment
