"""Settings of a training stage and of decoding."""

import dataclasses
from typing import Literal

from onerec_jax.config.data import PipelineConfig


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
  # (2502.18965, section 3.2; 2506.13695, section 2.3).  mean: averaged over
  # tokens.
  ntp_reduction: Literal['sum', 'mean'] = 'sum'
  # > 0, pretrain of OneRec only: adds this times -log p(item) of every target,
  # where p is over all items: the state that predicts an item's first code
  # times the vector of the item, the sum of what the model reads of it.  Codes
  # and whole items share all parameters (LIGER, Yang et al. 2024,
  # arXiv:2411.18814, section 4).
  item_loss_weight: float = 0.0
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
  # (first, last), counted from 1: they are traced, into the stage's profile/.
  profile_steps: tuple[int, ...] = ()


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
  # > 0: hypotheses are ranked by log p(codes) plus this times log p(item), as
  # trained by `pretrain.item_loss_weight`; 0: by their codes alone.
  item_weight: float = 0.0
  # λ, 0 to 1: hypotheses (of item-level baselines: all items) are ranked by
  # (1 - λ) p(model) + λ p(counts), both normalised among them; the counts are
  # those of the floor 'Co-occurrence by source'.  0: the model alone.
  transition_weight: float = 0.0
