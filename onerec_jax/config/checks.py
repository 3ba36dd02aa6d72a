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
  if 'p_score' in e.stages:
    yield from _train_problems('p_score', e.p_score, e.data.history_length)
    yield from _p_score_problems(e)
  if 'reinforce' in e.stages:
    yield from _train_problems('reinforce', e.reinforce, e.data.history_length)
    yield from _reinforce_problems(e)
  yield from _pathways_problems(e)
  yield from _item_alignment_problems(e)
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


def _pathways_problems(e: Experiment) -> Iterator[str]:
  model, pathways = e.model, e.model.pathways
  if model.moe.location == 'both' and model.encoder != 'pathways':
    yield (
      "model.moe.location='both' needs model.encoder='pathways'; the encoder of"
      ' v1 is dense.'
    )
  for name in (
    'max_events',
    'max_cluster_size',
    'snapshot_events',
    'iterations',
  ):
    if getattr(e.lifelong, name) < 1:
      yield f'lifelong.{name}={getattr(e.lifelong, name)} must be at least 1.'
  if e.lifelong.workers < 0:
    yield f'lifelong.workers={e.lifelong.workers} must not be negative.'
  if ('lifelong' in e.stages) != (pathways.lifelong_length > 0):
    yield (
      f'model.pathways.lifelong_length={pathways.lifelong_length} and'
      f' stages={e.stages} contradict each other: the lifelong pathway needs'
      " the stage 'lifelong', and nothing else reads it."
    )
  if model.encoder == 'history':
    if pathways.lifelong_length:
      yield (
        "model.pathways.lifelong_length needs model.encoder='pathways', got"
        " 'history'."
      )
    return
  if e.architecture != 'onerec':
    yield (
      "model.encoder='pathways' is an encoder of architecture='onerec', got"
      f' {e.architecture!r}.'
    )
  for path, length in (
    ('short_length', pathways.short_length),
    ('positive_length', pathways.positive_length),
    ('lifelong_length', pathways.lifelong_length),
    ('age_dim', pathways.age_dim),
    ('user_id_buckets', pathways.user_id_buckets),
  ):
    if length < 0:
      yield f'model.pathways.{path}={length} must not be negative.'
  if not (
    pathways.short_length or pathways.positive_length
    or pathways.lifelong_length
  ):  # fmt: skip
    yield (
      'model.pathways has no events to read: set short_length,'
      ' positive_length or lifelong_length above 0.'
    )
  if pathways.lifelong_length and model.embed_dim % model.num_heads:
    yield (
      f'model.embed_dim={model.embed_dim} is not divisible by'
      f' model.num_heads={model.num_heads}, as the queries of the lifelong'
      ' pathway need it.'
    )
  for i, feature in enumerate(pathways.event_features):
    if not 1 <= feature.buckets < 2**16 - 1:
      yield (
        f'model.pathways.event_features[{i}].buckets={feature.buckets} must'
        f' lie in 1..{2**16 - 2}.'
      )
  for path, value, default in (
    ('history_recency', model.history_recency, False),
    ('user_buckets', model.user_buckets, 0),
  ):
    if value != default:
      yield (
        f"model.{path}={value} is a setting of model.encoder='history'; with"
        f" 'pathways' leave it at {default}."
      )
  for where, feature in (
    *(
      (f'user_features[{i}].column', f.column)
      for i, f in enumerate(pathways.user_features)
    ),
    *(
      (f'item_features[{i}].name', f.name)
      for i, f in enumerate(pathways.item_features)
    ),
    *(
      (f'event_features[{i}].column', f.column)
      for i, f in enumerate(pathways.event_features)
    ),
  ):
    if not feature:
      yield f'model.pathways.{where} is empty: name it.'
  for path, decoding in (
    ('evaluate.decoding', e.evaluate.decoding),
    ('preference.rollout', e.preference.rollout),
  ):
    if decoding.continue_items:
      yield (
        f'{path}.continue_items={decoding.continue_items} must be 0 with'
        " model.encoder='pathways', which reads the latest events itself."
      )


def _p_score_problems(e: Experiment) -> Iterator[str]:
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


def _reinforce_problems(e: Experiment) -> Iterator[str]:
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


def _item_alignment_problems(e: Experiment) -> Iterator[str]:
  a = e.embed.alignment
  if not a.enabled:
    return
  if not a.user_to_item and not a.item_to_item_neighbours:
    yield (
      'embed.alignment has no pairs to align to: set user_to_item=True or'
      ' item_to_item_neighbours above 0.'
    )
  if a.dim % a.num_heads:
    yield (
      f'embed.alignment.dim={a.dim} is not divisible by'
      f' embed.alignment.num_heads={a.num_heads}.'
    )
  if a.temperature <= 0:
    yield f'embed.alignment.temperature={a.temperature} must be positive.'
  if a.batch_size < 2:
    yield (
      f'embed.alignment.batch_size={a.batch_size} must be at least 2: the'
      ' other pairs are the negatives.'
    )
  for name in ('num_queries', 'num_layers', 'num_steps', 'num_heads'):
    if getattr(a, name) < 1:
      yield f'embed.alignment.{name}={getattr(a, name)} must be at least 1.'


def validate(experiment: Experiment) -> Experiment:
  """Returns `experiment`, or raises ValueError naming every bad setting."""
  problems = list(_problems(experiment))
  if problems:
    raise ValueError('Bad configuration:\n  ' + '\n  '.join(problems))
  return experiment
