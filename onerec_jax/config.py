"""Every knob of an experiment, with its unit, default and reason.

The dataclasses are the only place where a default lives (hence the length).
Experiment files (`experiments/*.py`) start from `default_config()` and change
fields; `from_config_dict` makes one validated, frozen `Experiment` of them.
Imports no JAX, so that a recipe loads at once.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Literal

import ml_collections
from ml_collections import config_dict

Stage = Literal[
  'prepare', 'embed', 'tokenize', 'pretrain', 'evaluate', 'report'
]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)


# --- Data -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TablesConfig:
  """A user's own tables (`data.source = 'tables'`): paths and column names.

  Paths may be .parquet or .csv.  A column name of None means the table has no
  such column.
  """

  interactions: str | None = None  # required: path of the interaction table
  items: str | None = None  # optional: path of the item table
  users: str | None = None  # optional: path of the user table
  user_column: str = 'user_id'
  item_column: str = 'item_id'
  timestamp_column: str = 'timestamp'
  timestamp_unit: Literal['s', 'ms', 'us', 'ns'] = 's'
  session_column: str | None = None  # explicit session id, if logged
  feedback_columns: tuple[str, ...] = ()  # numeric or boolean, kept by name
  item_title_column: str | None = 'title'  # shown by recommend and report
  item_text_columns: tuple[str, ...] = ()  # joined for the text embedder
  item_category_columns: tuple[str, ...] = ()  # '|'-separated values allowed
  user_feature_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Size of the simulated world (`data.source = 'synthetic'`)."""

  num_users: int = 300
  num_items: int = 200
  num_clusters: int = 8  # latent tastes; also the item category
  events_per_user: int = 40  # mean; at least 8 each


@dataclasses.dataclass(frozen=True)
class PositiveConfig:
  """Which interactions count as positive feedback (spec §3.1).

  An interaction is positive if any named feedback column is above 0 (all
  interactions when `any_of` is empty) and its rating reaches `min_rating`.
  """

  any_of: tuple[str, ...] = ()
  min_rating: float | None = None


@dataclasses.dataclass(frozen=True)
class SessionFilterConfig:
  """High-quality sessions (spec §6): watched AND (watch time OR interaction).

  Applied to training sessions of kind 'id', 'gap' and 'day'.
  """

  enabled: bool = False
  min_watched: int = 5  # items actually watched in the session
  watched_column: str | None = None  # > 0 means watched; None: all are
  watch_time_column: str | None = None
  # Total watch time a session must reach, in the column's unit; None: the
  # median over all sessions of the data set (the papers give no number).
  min_watch_time: float | None = None
  interaction_columns: tuple[str, ...] = ()  # likes, shares, collects ...


@dataclasses.dataclass(frozen=True)
class SessionsConfig:
  """How target sessions are cut from a user's events (spec §6)."""

  # next_items: any m positives that follow each other; id: the logged session
  # id; gap: a new session after `gap_minutes` without events; day: UTC days.
  kind: Literal['next_items', 'id', 'gap', 'day'] = 'next_items'
  items_per_session: int = 5  # m: target items of one training example
  gap_minutes: float = 30.0
  filter: SessionFilterConfig = SessionFilterConfig()


@dataclasses.dataclass(frozen=True)
class SplitConfig:
  """How interactions are split into training, validation and test.

  leave_one_out: a user's last positive is the test target, the last but one
  the validation target (with logged sessions: the last two sessions that hold
  a positive).  by_time: targets before `validation_start` train,
  before `test_start` validate, after it test; a target's history is whatever
  happened before the target, so nothing leaks backwards.
  """

  kind: Literal['leave_one_out', 'by_time'] = 'leave_one_out'
  # ISO-8601 UTC instants, e.g. '2022-05-01'.  Required by 'by_time'.
  validation_start: str | None = None
  test_start: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What `prepare` reads and how it is cut into examples."""

  source: Literal[
    'movielens',
    'amazon_sequences',
    'amazon_reviews',
    'kuairand',
    'tables',
    'synthetic',
  ] = 'synthetic'
  # Folder in the source's official layout.  None: movielens is fetched to
  # the cache, tables takes its own paths, synthetic needs none.
  path: str | None = None
  # movielens: '100k' or '1m'.  amazon_*: the file prefix, e.g. 'Beauty'.
  # kuairand: 'pure', '1k' or '27k'.  Others: None.
  variant: str | None = None
  tables: TablesConfig = TablesConfig()
  synthetic: SyntheticConfig = SyntheticConfig()
  positive: PositiveConfig = PositiveConfig()
  # Users and items below these counts of positives are dropped, repeatedly
  # until stable (k-core).  1: those with at least one positive;
  # min_item_positives=0 keeps the whole item table.
  min_user_positives: int = 3
  min_item_positives: int = 1
  sessions: SessionsConfig = SessionsConfig()
  split: SplitConfig = SplitConfig()
  history_length: int = 50  # most recent positives the encoder reads (n)


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """How examples become batches."""

  # all: every allowed target start, each epoch.  random_offset: starts m
  # apart, from an offset drawn anew per user and epoch, so that every event
  # is a target about once per epoch.
  windows: Literal['all', 'random_offset'] = 'random_offset'
  # History lengths (items) that batches are padded to; the last must be
  # data.history_length.  More buckets: less padding, more compilations.
  length_buckets: tuple[int, ...] = ()
  prefetch_batches: int = 4  # prepared ahead by a thread; 0: none


# --- Items ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EmbedPart:
  """One block of the item embedding; blocks are standardised, then weighted.

  kind: 'array' (a .npy/.npz file, row = item in the order of items.parquet
  or keyed by item id), 'text' (TF-IDF + truncated SVD), 'minilm' (MiniLM-L6
  run in JAX from the packaged weights), 'categories' (multi-hot + SVD),
  'cooccurrence' (PPMI of training sequences + SVD), 'swing' (Swing
  item-to-item similarity + SVD).
  """

  kind: Literal[
    'array', 'text', 'minilm', 'categories', 'cooccurrence', 'swing'
  ] = 'text'
  dim: int = 64  # size of the block after reduction
  weight: float = 1.0  # norm of the block in the concatenated vector
  path: str | None = None  # 'array' only
  window: int = 5  # 'cooccurrence' only: events on each side


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
  parts: tuple[EmbedPart, ...] = (
    EmbedPart(kind='text'),
    EmbedPart(kind='cooccurrence'),
  )


@dataclasses.dataclass(frozen=True)
class TokenizerLimits:
  """The tokenize stage fails when its quality report is beyond these."""

  min_utilisation: float = 0.5  # share of codes used, worst level
  max_bucket: int | None = None  # most items that may share one ID
  max_collision_share: float = 0.5  # share of items without an ID of their own


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Residual quantizer (spec §2)."""

  levels: int = 3  # L
  codes_per_level: int = 256  # K; the papers use 8192
  # kmeans: plain Lloyd.  balanced_kmeans: exact cluster sizes.
  quantizer: Literal['kmeans', 'balanced_kmeans'] = 'balanced_kmeans'
  # rounds: parallel greedy rounds on the nearest candidates (default).
  # sequential: the literal Algorithm 1 of 2502.18965, ~9 % more inertia.
  balanced_assignment: Literal['rounds', 'sequential'] = 'rounds'
  init: Literal['random', 'kmeans++'] = 'random'
  max_iterations: int = 50
  tolerance: float = 1e-4  # stop: relative change of inertia
  # nearest: argmin for all items, the printed formula.  balanced: corpus
  # items keep the balanced label (spec §2.2 inconsistency).
  corpus_assignment: Literal['nearest', 'balanced'] = 'nearest'
  # bucket: items sharing an ID stay together, ranked by popularity.
  # append: TIGER's extra code per item of a bucket.  reassign: a colliding
  # item moves to its next-best free code on the last level.
  collision: Literal['bucket', 'append', 'reassign'] = 'bucket'
  # Most items used to fit the codebooks; the rest is only encoded.
  max_fit_items: int = 2_000_000
  limits: TokenizerLimits = TokenizerLimits()


# --- Model ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Mixture-of-experts feed-forward of the decoder (spec §5)."""

  enabled: bool = True
  num_experts: int = 24
  top_k: int = 2  # experts per token
  expert_dim: int = 1024  # hidden width of one expert
  activation: Literal['relu', 'gelu', 'swiglu'] = 'relu'
  gate: Literal['softmax', 'sigmoid'] = 'softmax'
  normalize_top_k: bool = False  # True: kept gates sum to 1
  # Loss-free balancing: b += u * sign(e) or b += u * e, e = (mean-c)/mean.
  # none: no balancing.
  balancing: Literal['none', 'sign', 'proportional'] = 'proportional'
  bias_update_rate: float = 1e-3  # u
  # dense: every expert on every token (oracle).  grouped: dropless, sort +
  # grouped matmul (ragged_dot on TPU/GPU, blocks on CPU; both exact).
  dispatch: Literal['dense', 'grouped'] = 'grouped'


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """OneRec v1 encoder-decoder (spec §3.1, §4.2)."""

  embed_dim: int = 128  # D
  num_heads: int = 4  # H
  head_dim: int = 32  # need not be D / H
  encoder_layers: int = 2
  decoder_layers: int = 2
  mlp_dim: int = 256  # hidden width of the dense feed-forwards
  mlp_activation: Literal['relu', 'gelu', 'swiglu'] = 'relu'
  moe: MoEConfig = MoEConfig()
  dropout_rate: float = 0.1  # of embeddings, hidden units and block outputs
  # Of attention weights (T5: as dropout_rate); 0 saves time, most on CPU.
  attention_dropout_rate: float = 0.1
  history_separator: bool = True  # SEP after each history item (spec §3.1)
  user_buckets: int = 0  # > 0: a hashed user token before the history
  # Adds a learned embedding of how many items ago it was to every history
  # token (spec §3.1: learned positions are an option).  T5's relative bias
  # alone tells cross-attention nothing about recency.
  history_recency: bool = False
  relative_buckets: int = 32  # T5 relative position bias
  relative_max_distance: int = 128  # tokens; also the rows of the recency table
  tie_head: bool = True  # output head = code embeddings
  # Cross-attention while training: absorbed folds W_k, W_v into the queries
  # (exact, fewer FLOPs when target tokens < head_dim); projected is the
  # textbook form; auto takes absorbed when it costs fewer FLOPs.
  cross_attention: Literal['auto', 'absorbed', 'projected'] = 'auto'
  scan_layers: bool = True
  remat: bool = False  # recompute layer activations in the backward pass
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'


# --- Training ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  name: Literal['adam', 'adamw'] = 'adam'
  peak_learning_rate: float = 2e-4
  schedule: Literal['constant', 'cosine', 'inverse_sqrt'] = 'constant'
  warmup_steps: int = 1000
  final_learning_rate_fraction: float = 0.0  # 'cosine': end / peak
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0  # 'adamw' only; matrices and tables only
  clip_norm: float | None = 1.0  # global gradient norm; None: off


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training stage."""

  batch_size: int = 256  # global: summed over all devices
  num_steps: int = 1000
  optimizer: OptimizerConfig = OptimizerConfig()
  label_smoothing: float = 0.0
  # sum: token losses of an example are added, then averaged over examples
  # (the papers' form, spec §7).  mean: averaged over tokens.
  ntp_reduction: Literal['sum', 'mean'] = 'sum'
  # Exponential moving average of the parameters, used for evaluation; None:
  # off, else the decay per step in (0, 1).
  ema_decay: float | None = None
  log_every_steps: int = 50
  evaluate_every_steps: int = 500  # validation loss and recall; 0: never
  evaluate_examples: int = 1000  # validation examples used while training
  checkpoint_every_steps: int = 500
  keep_checkpoints: int = 2  # latest; the best by validation is kept as well
  dropout_bits: Literal['hash', 'threefry'] = 'hash'
  pipeline: PipelineConfig = PipelineConfig()
  profile_steps: tuple[int, ...] = ()  # (first, last): write a profiler trace


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Device mesh; -1 on one axis takes all devices that are left."""

  data: int = -1  # batch
  fsdp: int = 1  # batch; dense weights are sharded over it
  expert: int = 1  # batch; experts are sharded over it


# --- Decoding and evaluation ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
  num_beams: int = 50
  num_items: int = 1  # items generated per hypothesis (m)
  # The user's last j items are given to the decoder as the first items of the
  # session, and it goes on from there; the encoder reads those before.  0: the
  # session starts empty.  A model trained on long sessions has learnt most
  # from its later places.
  continue_items: int = 0
  constrain: Literal['none', 'trie'] = 'trie'
  exclude_history: bool = True  # seen items are not recommended again
  forbid_repeats: bool = True  # no item twice inside one session


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  split: Literal['valid', 'test'] = 'test'
  batch_size: int = 64
  top_k: tuple[int, ...] = (1, 5, 10, 20)
  checkpoint: Literal['best', 'latest'] = 'best'
  max_examples: int | None = None  # None: all
  bootstrap_samples: int = 1000  # for the 95 % intervals
  num_example_users: int = 8  # shown in the report
  decoding: DecodingConfig = DecodingConfig()


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole run: the stages and all their numbers."""

  name: str = 'default'
  seed: int = 0
  stages: tuple[Stage, ...] = STAGES
  data: DataConfig = DataConfig()
  embed: EmbedConfig = EmbedConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: ModelConfig = ModelConfig()
  pretrain: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  evaluate: EvaluateConfig = EvaluateConfig()


# --- Checks that span fields ------------------------------------------------


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
    ('pretrain.batch_size', e.pretrain.batch_size),
    ('pretrain.num_steps', e.pretrain.num_steps),
    ('pretrain.log_every_steps', e.pretrain.log_every_steps),
    ('pretrain.checkpoint_every_steps', e.pretrain.checkpoint_every_steps),
    ('pretrain.keep_checkpoints', e.pretrain.keep_checkpoints),
    ('evaluate.batch_size', e.evaluate.batch_size),
    ('evaluate.decoding.num_beams', e.evaluate.decoding.num_beams),
    ('evaluate.decoding.num_items', e.evaluate.decoding.num_items),
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
  moe = e.model.moe
  if moe.enabled and not 1 <= moe.top_k <= moe.num_experts:
    yield (
      f'model.moe.top_k={moe.top_k} must lie in 1..model.moe.num_experts='
      f'{moe.num_experts}.'
    )
  for path, rate in (
    ('model.dropout_rate', e.model.dropout_rate),
    ('model.attention_dropout_rate', e.model.attention_dropout_rate),
  ):
    if not 0 <= rate < 1:
      yield f'{path}={rate} must lie in [0, 1).'
  if not 0 <= e.pretrain.label_smoothing < 1:
    yield (
      f'pretrain.label_smoothing={e.pretrain.label_smoothing} must lie in'
      ' [0, 1).'
    )
  if e.pretrain.ema_decay is not None and not 0 < e.pretrain.ema_decay < 1:
    yield f'pretrain.ema_decay={e.pretrain.ema_decay} must lie in (0, 1).'
  buckets = e.pretrain.pipeline.length_buckets
  if buckets and (
    list(buckets) != sorted(set(buckets))
    or buckets[-1] != e.data.history_length
    or buckets[0] < 1
  ):
    yield (
      f'pretrain.pipeline.length_buckets={buckets} must rise and end at'
      f' data.history_length={e.data.history_length}.'
    )
  if e.pretrain.profile_steps and (
    len(e.pretrain.profile_steps) != 2
    or e.pretrain.profile_steps[0] > e.pretrain.profile_steps[1]
  ):
    yield (
      f'pretrain.profile_steps={e.pretrain.profile_steps} must be empty or'
      ' (first, last).'
    )
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


def validate(experiment: Experiment) -> Experiment:
  """Returns `experiment`, or raises ValueError naming every bad setting."""
  problems = list(_problems(experiment))
  if problems:
    raise ValueError('Bad configuration:\n  ' + '\n  '.join(problems))
  return experiment


# --- Conversion -------------------------------------------------------------


def default_config() -> Any:  # a ConfigDict, whose attributes are dynamic
  """Returns every field at its default, ready to be changed by a recipe."""
  return _to_config_dict(Experiment())


def to_dict(value: Any) -> Any:
  """Returns a dataclass as plain dictionaries, lists and scalars (JSON)."""
  if dataclasses.is_dataclass(value):
    return {
      f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)
    }
  if isinstance(value, tuple):
    return [to_dict(v) for v in value]
  return value


def digest(value: Any) -> str:
  """Returns a short hash of a (nested) config dataclass, stable over runs."""
  text = json.dumps(to_dict(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_config_dict(
  config: ml_collections.ConfigDict | Mapping[str, Any],
) -> Experiment:
  """Returns the validated experiment that `config` describes.

  Args:
    config: nested mapping with (some of) the fields of `Experiment`; absent
      fields take their defaults.

  Raises:
    ValueError: a key is unknown (the nearest known one is named), a value has
      the wrong type, or settings contradict each other.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return validate(_build(Experiment, config, ''))


def _to_config_dict(value: Any) -> ml_collections.ConfigDict:
  result = ml_collections.ConfigDict()
  hints = typing.get_type_hints(type(value))
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    if dataclasses.is_dataclass(item):
      result[field.name] = _to_config_dict(item)
    elif isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
      result[field.name] = tuple(_to_config_dict(v) for v in item)
    elif type(None) in typing.get_args(hints[field.name]):
      kind = next(
        t for t in typing.get_args(hints[field.name]) if t is not type(None)
      )
      placeholder = config_dict.placeholder(kind)
      placeholder.set(item)
      result[field.name] = placeholder
    else:
      result[field.name] = item
  return result.lock()


def _build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
      raise ValueError(
        f"Unknown config key '{path}{key}'. Did you mean"
        f" '{path}{near[0]}'? Known here: {', '.join(sorted(hints))}."
      )
  return cls(
    **{
      key: _convert(hints[key], value, f'{path}{key}')
      for key, value in values.items()
    }
  )


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns `value` as type `hint`, or raises naming `path`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    return _convert(next(a for a in args if a is not type(None)), value, path)
  if origin is Literal:
    if value not in args:
      near = difflib.get_close_matches(str(value), map(str, args), 1, 0.0)
      raise ValueError(
        f'{path}={value!r} is not one of {args}.'
        + (f' Did you mean {near[0]!r}?' if near else '')
      )
    return value
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(f'{path}={value!r} must be a tuple.')
    return tuple(
      _convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)
    )
  if dataclasses.is_dataclass(hint):
    if dataclasses.is_dataclass(value):
      value = to_dict(value)
    if not isinstance(value, Mapping):
      raise ValueError(f'{path}={value!r} must be a group of settings.')
    return _build(hint, value, f'{path}.')
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ValueError(
      f'{path}={value!r} has type {type(value).__name__}, expected'
      f' {hint.__name__}.'
    )
  return value
