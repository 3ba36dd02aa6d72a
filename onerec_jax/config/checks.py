"""Checks that span settings; every problem is named at once."""

from collections.abc import Iterator

from onerec_jax.config import alignment_checks
from onerec_jax.config import decoding_checks
from onerec_jax.config.experiment import STAGES
from onerec_jax.config.experiment import Experiment
from onerec_jax.config.model import ModelConfig
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
  yield from _token_problems(e.model)
  yield from _catalogue_problems(e)
  yield from decoding_checks.problems(e)
  yield from _train_problems('pretrain', e.pretrain, e.data.history_length)
  if 'reward' in e.stages:
    yield from _train_problems('reward', e.reward, e.data.history_length)
    yield from alignment_checks.reward_problems(e)
  if 'align' in e.stages:
    yield from _train_problems('align', e.align, e.data.history_length)
    yield from alignment_checks.preference_problems(e)
  if 'p_score' in e.stages:
    yield from _train_problems('p_score', e.p_score, e.data.history_length)
    yield from alignment_checks.p_score_problems(e)
  if 'reinforce' in e.stages:
    yield from _train_problems('reinforce', e.reinforce, e.data.history_length)
    yield from alignment_checks.reinforce_problems(e)
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
  yield from _mesh_problems(e)


def _token_problems(model: ModelConfig) -> Iterator[str]:
  for name in ('user_buckets', 'id_buckets'):
    if getattr(model, name) < 0:
      yield (
        f'model.{name}={getattr(model, name)} must be at least 0; 0 is none.'
      )


def _catalogue_problems(e: Experiment) -> Iterator[str]:
  """Problems of probabilities that are over the catalogue only."""
  if e.model.normalise_over == 'codes' or e.architecture != 'onerec':
    return
  aligned = [s for s in ('align', 'reinforce') if s in e.stages]
  if aligned:
    yield (
      f"model.normalise_over='catalogue' does not go with stages {aligned},"
      ' which compare probabilities over all codes: set'
      " model.normalise_over='codes', or leave these stages out."
    )
  if e.evaluate.decoding.constrain == 'none':
    yield (
      "model.normalise_over='catalogue' knows nothing of what is no item: set"
      " evaluate.decoding.constrain='trie', or model.normalise_over='codes'."
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
  if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
    yield (
      f'{path}.profile_steps={steps} must be empty or (first, last), counted'
      ' from 1.'
    )


def _mesh_problems(e: Experiment) -> Iterator[str]:
  mesh, moe = e.mesh, e.model.moe
  axes = (mesh.data, mesh.fsdp, mesh.expert)
  if sum(a == -1 for a in axes) > 1 or any(a == 0 or a < -1 for a in axes):
    yield (
      f'mesh (data, fsdp, expert)={axes}: sizes are positive, and at most one'
      ' is -1.'
    )
  if mesh.preset == 'by_size' and axes[:2] != (-1, 1):
    yield (
      f"mesh.preset='by_size' chooses mesh.data={mesh.data} and mesh.fsdp="
      f'{mesh.fsdp} itself: leave them at -1 and 1, or set mesh.preset='
      "'explicit'."
    )
  if mesh.preset == 'by_size' and mesh.expert < 1:
    yield (
      f'mesh.expert={mesh.expert} must be at least 1 with mesh.preset='
      "'by_size': the largest size wanted, e.g. 8."
    )
  if mesh.slices < 1:
    yield f'mesh.slices={mesh.slices} must be at least 1.'
  elif mesh.data > 0 and mesh.data % mesh.slices:
    yield (
      f'mesh.data={mesh.data} is not divisible by mesh.slices={mesh.slices}:'
      ' only the data axis crosses slices. Set mesh.data=-1.'
    )
  if moe.enabled and mesh.expert > 0 and moe.num_experts % mesh.expert:
    yield (
      f'model.moe.num_experts={moe.num_experts} is not divisible by'
      f' mesh.expert={mesh.expert}.'
    )
  if moe.capacity_factor < 1:
    yield (
      f'model.moe.capacity_factor={moe.capacity_factor} must be at least 1:'
      ' below it tokens are dropped even where every expert gets as many.'
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
  if pathways.hidden_dim is not None and pathways.hidden_dim < 1:
    yield (
      f'model.pathways.hidden_dim={pathways.hidden_dim} must be at least 1, or'
      ' None.'
    )
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
