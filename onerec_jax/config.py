"""Every knob of an experiment, with its unit, default and reason.

The dataclasses are the only place where a default lives (hence the length).
Experiment files (`experiments/*.py`) start from `default_config()` and change
fields; `from_config_dict` makes one validated, frozen `Experiment` of them.
Imports no JAX, so that a recipe loads at once.
"""

import dataclasses
import typing
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Literal

import ml_collections

from onerec_jax import config_tree

Stage = Literal[
  'prepare',
  'embed',
  'tokenize',
  'pretrain',
  'reward',
  'align',
  'evaluate',
  'report',
]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)
# Without preference alignment, which needs feedback columns.
BASE_STAGES: tuple[Stage, ...] = tuple(
  s for s in STAGES if s not in ('reward', 'align')
)

to_dict = config_tree.to_dict
digest = config_tree.digest


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
  # Share of the jumps that go to any unseen item, whatever the taste.  Without
  # such traffic nobody can learn what a user thinks of what he never sees.
  exploration: float = 0.0


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
class RQVAEConfig:
  """TIGER's residual-quantized autoencoder (spec §16.1)."""

  hidden_dims: tuple[int, ...] = (512, 256, 128)  # encoder MLP; mirrored
  latent_dim: int = 32  # of the codes
  commitment: float = 0.25  # β
  # The published recipe (Adagrad 0.4 on raw vectors) collapses; inputs are
  # standardised, the optimizer is AdamW and dead codes are drawn anew.
  standardize: bool = True
  batch_size: int = 1024
  num_steps: int = 4000
  peak_learning_rate: float = 3e-3  # cosine to 0, 100 warm-up steps
  weight_decay: float = 1e-4
  usage_decay: float = 0.99  # of the average use of a code, per step
  # A code used less than this share of the mean use is put on a random
  # residual of the batch; 0: never.
  dead_code_share: float = 0.03


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Residual quantizer (spec §2)."""

  levels: int = 3  # L
  codes_per_level: int = 256  # K; the papers use 8192
  # kmeans: plain Lloyd.  balanced_kmeans: exact cluster sizes.  rqvae: TIGER's
  # autoencoder, trained with the settings in `rqvae`.
  quantizer: Literal['kmeans', 'balanced_kmeans', 'rqvae'] = 'balanced_kmeans'
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
  rqvae: RQVAEConfig = RQVAEConfig()
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


@dataclasses.dataclass(frozen=True)
class SequentialConfig:
  """Item-level baselines: SASRec, BERT4Rec, FDSA (`architecture`)."""

  embed_dim: int = 64  # D
  num_heads: int = 2
  num_layers: int = 2
  mlp_dim: int = 256
  dropout_rate: float = 0.2
  # softmax: cross-entropy over the whole catalogue.  bce: binary against
  # `num_negatives` items drawn uniformly, as SASRec was published.
  loss: Literal['softmax', 'bce'] = 'softmax'
  num_negatives: int = 1  # 'bce' only
  # True: every position of history and targets is predicted, as published;
  # False: the target items only.
  predict_history: bool = True
  mask_share: float = 0.2  # BERT4Rec: positions hidden while training
  max_attributes: int = 8  # FDSA: attributes of an item that are read


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


# --- Decoding ---------------------------------------------------------------


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


# --- Preference alignment ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RewardTarget:
  """One tower of the session reward model and its label (spec §9).

  With v the values of `column` over the items of a session, e = [v >
  threshold]:
    any:             1 if any e, else 0
    mean:            mean of e
    saturating_sum:  min(1, Σ v / q), q = `percentile` of the training sums
  A session with unknown (null) values has no label, unless 'any' is already 1.
  """

  name: str = 'ltr'  # as shown: swt, vtr, wtr, ltr ...
  column: str = 'is_like'  # feedback column
  label: Literal['any', 'mean', 'saturating_sum'] = 'any'
  threshold: float = 0.0  # 'any' and 'mean'
  percentile: float = 95.0  # 'saturating_sum', in (0, 100]
  weight: float = 1.0  # ω in the scalar reward


@dataclasses.dataclass(frozen=True)
class RewardModelConfig:
  """Session reward model (spec §9); trained on windows of shown items."""

  targets: tuple[RewardTarget, ...] = ()
  items_per_session: int = 5  # consecutive shown items that are one session
  held_out_share: float = 0.1  # of the users, for AUC and calibration
  embed_dim: int = 128  # D_r
  num_heads: int = 4
  num_layers: int = 2  # self-attention over the session
  tower_dim: int = 64  # hidden width of a tower
  dropout_rate: float = 0.1
  item_embedding: bool = True  # beside the sum of the code embeddings
  # Scalar reward of a candidate: Σ ω z, z the prediction standardised over
  # the user's candidates; Σ ω r; or Π r^ω.
  aggregate: Literal['zscore_sum', 'sum', 'product'] = 'zscore_sum'


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """Preference alignment: pairs, loss and rounds (spec §10)."""

  loss: Literal[
    'dpo', 'ipo', 'cdpo', 'rdpo', 'cpo', 'simpo', 'sdpo', 'hinge'
  ] = 'dpo'
  # beam_rm: best and worst of the model's own beam by the reward model (IPA).
  # logged: the logged session against sessions of other users.
  pairs: Literal['beam_rm', 'logged'] = 'beam_rm'
  beta: float | None = None  # None: preference.DEFAULT_BETA of the loss
  label_flip: float = 0.1  # ε of cdpo and rdpo
  margin: float = 1.0  # γ of simpo
  nll_weight: float = 1.0  # α of cpo
  cpo_nll: Literal['mean', 'sum'] = 'mean'  # of the chosen session's tokens
  ipo_log_probs: Literal['mean', 'sum'] = 'mean'  # over the session's tokens
  num_rejected: int = 1  # sessions against the chosen one; sdpo: 3
  weight: float = 1.0  # λ
  sample_share: float = 0.01  # r_DPO: share of the samples with a pair
  # T: rounds of align.num_steps steps; the model after a round generates the
  # next round's pairs and is its reference.
  rounds: int = 3
  min_reward_gap: float = 1e-6  # pairs nearer than this are skipped
  rollout: DecodingConfig = DecodingConfig(num_beams=128, num_items=5)
  rollout_batch_size: int = 32  # users decoded at once


@dataclasses.dataclass(frozen=True)
class SessionEvaluationConfig:
  """Rewards of generated sessions (v1 Table 1); needs the stage `reward`."""

  max_users: int = 500  # test users
  num_sessions: int = 8  # candidate sessions per user, the best by the model
  resamples: int = 20  # test resamples that the ± is taken over
  resample_users: int = 200  # users of one resample
  legality_users: int = 100  # decoded once more without the trie


@dataclasses.dataclass(frozen=True)
class SweepRow:
  """One row of a table: the experiment with some settings changed."""

  name: str = ''
  published: str | None = None  # name of the row in the paper's table
  overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """Several variants on the same data, judged by one reward model."""

  title: str = ''
  rows: tuple[SweepRow, ...] = ()
  seeds: tuple[int, ...] = (0,)
  base: str = ''  # row the others are compared to, pairwise


# --- Devices, evaluation, experiment ----------------------------------------


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Device mesh; -1 on one axis takes all devices that are left."""

  data: int = -1  # batch
  fsdp: int = 1  # batch; dense weights are sharded over it
  expert: int = 1  # batch; experts are sharded over it


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
  sessions: SessionEvaluationConfig = SessionEvaluationConfig()


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole run: the stages and all their numbers."""

  name: str = 'default'
  seed: int = 0
  stages: tuple[Stage, ...] = BASE_STAGES
  # What `pretrain` trains: OneRec (and TIGER, which is a setting of it) with
  # `model`, or an item-level baseline with `sequential`.
  architecture: Literal['onerec', 'sasrec', 'bert4rec', 'fdsa'] = 'onerec'
  data: DataConfig = DataConfig()
  embed: EmbedConfig = EmbedConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  model: ModelConfig = ModelConfig()
  sequential: SequentialConfig = SequentialConfig()
  pretrain: TrainConfig = TrainConfig()
  reward_model: RewardModelConfig = RewardModelConfig()
  reward: TrainConfig = TrainConfig()
  preference: PreferenceConfig = PreferenceConfig()
  align: TrainConfig = TrainConfig()  # num_steps: of one round
  sweep: SweepConfig = SweepConfig()
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


# --- Conversion -------------------------------------------------------------


def default_config() -> Any:  # a ConfigDict, whose attributes are dynamic
  """Returns every field at its default, ready to be changed by a recipe."""
  return config_tree.to_config_dict(Experiment())


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
  return validate(config_tree.build(Experiment, config, ''))
