"""A whole experiment: its stages, devices, evaluation and table."""

import dataclasses
import typing
from typing import Any
from typing import Literal

from onerec_jax.config.alignment import PreferenceConfig
from onerec_jax.config.alignment import PScoreConfig
from onerec_jax.config.alignment import ReinforceConfig
from onerec_jax.config.alignment import RewardModelConfig
from onerec_jax.config.data import DataConfig
from onerec_jax.config.data import LifelongConfig
from onerec_jax.config.items import EmbedConfig
from onerec_jax.config.items import TokenizerConfig
from onerec_jax.config.model import ModelConfig
from onerec_jax.config.model import SequentialConfig
from onerec_jax.config.training import DecodingConfig
from onerec_jax.config.training import TrainConfig

Stage = Literal[
  'prepare',
  'embed',
  'tokenize',
  'lifelong',
  'pretrain',
  'reward',
  'align',
  'p_score',
  'reinforce',
  'evaluate',
  'report',
]
STAGES: tuple[Stage, ...] = typing.get_args(Stage)
# Those that any data set allows; alignment needs feedback columns.
BASE_STAGES: tuple[Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain', 'evaluate', 'report',
)  # fmt: skip
# Those of v1: with the session reward model and preference alignment.
V1_STAGES: tuple[Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain', 'reward', 'align', 'evaluate',
  'report',
)  # fmt: skip
# Those of the technical report without the lifelong pathway.
TR_STAGES: tuple[Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain', 'p_score', 'reinforce',
  'evaluate', 'report',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SessionEvaluationConfig:
  """Rewards of generated sessions (v1 Table 1); needs the stage `reward`."""

  max_users: int = 500  # test users
  num_sessions: int = 8  # candidate sessions per user, the best by the model
  resamples: int = 20  # test resamples that the ± is taken over
  resample_users: int = 200  # users of one resample
  legality_users: int = 100  # decoded once more without the trie


@dataclasses.dataclass(frozen=True)
class ItemEvaluationConfig:
  """P-Scores of generated items (2506.13695, 4.1); needs stage `p_score`."""

  max_users: int = 500  # test users
  num_items: int = 128  # generated per user, the best by the model
  pass_at: tuple[int, ...] = (8, 32, 128)  # K: the best of the first K
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
  """Several variants on the same data, judged in the same way."""

  title: str = ''
  rows: tuple[SweepRow, ...] = ()
  seeds: tuple[int, ...] = (0,)
  base: str = ''  # row the others are compared to, pairwise
  # sessions, items: rows generate sessions that the session reward model
  # judges, or items that the P-Score model does.  next_item: rows rank the
  # catalogue for the held-out item, beside the counting floors.
  judge: Literal['sessions', 'items', 'next_item'] = 'sessions'


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Device mesh; every batch is split over all three axes.

  Dense weights are split over fsdp * expert; expert weights over expert (over
  fsdp if expert = 1).  There is no tensor axis: `sharding` says why.
  """

  data: int = -1  # copies of the weights; the only axis that crosses slices
  fsdp: int = 1  # dense weights and the optimiser state of experts
  expert: int = 1  # experts stay on their devices and tokens move
  # TPU slices (groups of devices joined by the slow network) of the job.
  slices: int = 1
  # explicit: the sizes above, of which one may be -1 (the devices left).
  # by_size: data and fsdp from the number of devices; `expert` is the largest
  # size wanted, so that one recipe fits every slice (`meshes.sizes_of`).
  preset: Literal['explicit', 'by_size'] = 'explicit'


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  split: Literal['valid', 'test'] = 'test'
  batch_size: int = 64
  top_k: tuple[int, ...] = (1, 5, 10, 20)
  checkpoint: Literal['best', 'latest'] = 'best'
  # Of the parameters in memory, here and in `recommend`; bfloat16 halves them,
  # so that what a pod has trained fits a smaller machine.
  parameter_dtype: Literal['float32', 'bfloat16'] = 'float32'
  max_examples: int | None = None  # None: all
  bootstrap_samples: int = 1000  # for the 95 % intervals
  num_example_users: int = 8  # shown in the report
  decoding: DecodingConfig = DecodingConfig()
  sessions: SessionEvaluationConfig = SessionEvaluationConfig()
  p_score: ItemEvaluationConfig = ItemEvaluationConfig()


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
  lifelong: LifelongConfig = LifelongConfig()
  model: ModelConfig = ModelConfig()
  sequential: SequentialConfig = SequentialConfig()
  pretrain: TrainConfig = TrainConfig()
  reward_model: RewardModelConfig = RewardModelConfig()
  reward: TrainConfig = TrainConfig()
  preference: PreferenceConfig = PreferenceConfig()
  align: TrainConfig = TrainConfig()  # num_steps: of one round
  p_score_model: PScoreConfig = PScoreConfig()
  p_score: TrainConfig = TrainConfig()
  reinforcement: ReinforceConfig = ReinforceConfig()
  reinforce: TrainConfig = TrainConfig()
  sweep: SweepConfig = SweepConfig()
  mesh: MeshConfig = MeshConfig()
  evaluate: EvaluateConfig = EvaluateConfig()
