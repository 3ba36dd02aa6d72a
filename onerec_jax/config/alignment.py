"""Settings of reward models and of alignment by them."""

import dataclasses
from typing import Literal

from onerec_jax.config.training import DecodingConfig


@dataclasses.dataclass(frozen=True)
class RewardTarget:
  """One tower of the session reward model and its label.

  2502.18965, section 3.3.1, has the towers; the labels are our choice.

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
  """Session reward model; trained on windows of shown items.

  Reference: OneRec, arXiv:2502.18965, section 3.3.1.
  """

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
  """Preference alignment: pairs, loss and rounds (2502.18965, 3.3.2)."""

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
class PScoreTower:
  """One objective of the P-Score model: what a user does with a shown item."""

  name: str = 'ltr'  # as shown: ctr, lvtr, vtr, ltr, wtr, cmtr
  column: str = 'is_like'  # feedback column; > threshold: it happened
  threshold: float = 0.0
  weight: float = 1.0  # w in the fusion's loss; only ratios matter


@dataclasses.dataclass(frozen=True)
class PScoreConfig:
  """P-Score model: search-based interest, towers, fusion (2506.13695, 2.4.1).

  Trained on every shown event of the training stretch; what it reads of a
  user are the pathways of `model.pathways`.
  """

  towers: tuple[PScoreTower, ...] = ()
  held_out_share: float = 0.1  # of the users, for AUC and GAUC
  embed_dim: int = 64
  num_heads: int = 4
  history_length: int = 256  # events searched
  search_items: int = 50  # top-k of the general search unit
  # soft: inner product of item vectors; hard: a shared category.
  search: Literal['soft', 'hard'] = 'soft'
  tower_dims: tuple[int, ...] = (128, 64)
  fusion_dims: tuple[int, ...] = (256, 64)
  stop_gradient_towers: bool = True  # into the fusion, as Pantheon
  dropout_rate: float = 0.1
  # Inverse strengths of the L2 penalty, strongest first, of a logistic
  # regression on what the towers read, which is fitted before they train and
  # whose logits are averaged with theirs.  A fifth of the training users choose
  # the strength.  (): towers alone.
  linear_strengths: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class IndustrialRewardConfig:
  """Suppression of a class of items (2506.13695, section 4.3.3)."""

  categories: tuple[str, ...] = ()  # items with one of them; (): off
  target_share: float = 0.1  # f: of the generated items; above it ...
  factor: float = 0.5  # α: ... their reward is multiplied by this
  window: int = 10_000  # generated items that the share is taken over


@dataclasses.dataclass(frozen=True)
class ReinforceConfig:
  """Reinforcement learning beside RSFT (2506.13695, sections 2.4 and 3.3)."""

  loss: Literal['ecpo', 'grpo', 'gbpo'] = 'ecpo'
  clip: float = 0.2  # ε
  early_clip: float = 0.1  # δ of ecpo
  kl_weight: float = 0.04  # β of grpo
  ratio_level: Literal['sequence', 'token'] = 'sequence'  # gbpo: always token
  # Outputs without an item: not in the group (they have no reward, so the
  # format reward must keep them rare), or its worst, with a reward of 0.
  illegal: Literal['left_out', 'zero_reward'] = 'left_out'
  weight: float = 1.0  # λ_rl
  # The reward: 'p_score', or the name of a tower.
  reward: str = 'p_score'
  group_size: int = 512  # G items per user
  user_share: float = 0.01  # share of the samples whose user has a group
  # beam: the G best; sample: drawn with top-k and top-p.
  rollouts: Literal['beam', 'sample'] = 'beam'
  sample_top_k: int = 0  # codes; 0: all
  sample_top_p: float = 1.0
  temperature: float = 1.0
  constrain: Literal['none', 'trie'] = 'none'  # illegal ones must be seen
  # current: the policy of the last sync (on-policy); pretrained: the seed's.
  generator: Literal['current', 'pretrained'] = 'current'
  sync_every_steps: int = 1000
  rollout_batch_size: int = 32  # users decoded at once
  format_weight: float = 1.0  # λ_fmt; 0: no format reward
  format_samples: int = 5  # K of G
  format_choice: Literal['random', 'top'] = 'random'
  industrial: IndustrialRewardConfig = IndustrialRewardConfig()
  # RSFT: share of the exposure sessions that is dropped, the lowest by the
  # sum of `rsft_column`; None: nothing is dropped.
  rsft_column: str | None = None
  rsft_drop_share: float = 0.5
