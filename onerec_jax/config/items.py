"""Settings of item vectors and semantic IDs."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EmbedPart:
  """One block of the item embedding; blocks are standardised, then weighted.

  kind: 'array' (a .npy/.npz file, row = item in the order of items.parquet
  or keyed by item id; of shape [items, T, d], its vector is the mean token),
  'text' (TF-IDF + truncated SVD), 'minilm' (MiniLM-L6 run in JAX from the
  packaged weights), 'categories' (multi-hot + SVD), 'cooccurrence' (PPMI of
  training sequences + SVD), 'swing' (Swing item-to-item similarity + SVD).
  """

  kind: Literal[
    'array', 'text', 'minilm', 'categories', 'cooccurrence', 'swing'
  ] = 'text'
  dim: int = 64  # size of the block after reduction
  weight: float = 1.0  # norm of the block; `alignment` does not read it
  path: str | None = None  # 'array' only
  window: int = 5  # 'cooccurrence' only: events on each side


@dataclasses.dataclass(frozen=True)
class ItemAlignmentConfig:
  """Item vectors aligned to behaviour by a QFormer (2506.13695, 2.1.1).

  The parts of `embed` become an item's tokens, one each ('array' parts of
  shape [items, T, d] give T), and the vectors of all queries, side by side,
  the item vector.
  """

  enabled: bool = False
  num_queries: int = 4
  dim: int = 512  # d_t: of tokens and queries
  num_layers: int = 4  # N_c
  num_heads: int = 8
  mlp_dim: int = 2048
  residual: bool = True  # False: the literal formula, without residuals
  # flat: cosine of all queries side by side; mean_pool: of their mean.
  similarity: Literal['flat', 'mean_pool'] = 'flat'
  temperature: float = 0.07  # τ
  # Pairs (trigger, target): user_to_item takes a target's most similar item
  # among the user's last positives, item_to_item the nearest by Swing.
  user_to_item: bool = True
  user_to_item_window: int = 20  # positives before the target
  item_to_item_neighbours: int = 10  # per item; 0: none
  swing_alpha: float = 1.0
  swing_max_users: int = 500  # users drawn per item, which bounds the cost
  # Next-token loss (mean per word) on the item's text by a small causal decoder
  # that is given the queries as prefix; 0 or data without text: none.
  caption_weight: float = 1.0
  caption_tokens: int = 32
  caption_vocabulary: int = 4096  # most frequent words
  caption_dim: int = 128
  caption_layers: int = 1
  dropout_rate: float = 0.1
  batch_size: int = 256  # pairs; the other pairs' targets are the negatives
  num_steps: int = 2000
  peak_learning_rate: float = 3e-4  # cosine to 0, 100 warm-up steps
  weight_decay: float = 0.01


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
  parts: tuple[EmbedPart, ...] = (
    EmbedPart(kind='text'),
    EmbedPart(kind='cooccurrence'),
  )
  alignment: ItemAlignmentConfig = ItemAlignmentConfig()


@dataclasses.dataclass(frozen=True)
class TokenizerLimits:
  """The tokenize stage fails when its quality report is beyond these."""

  min_utilisation: float = 0.5  # share of codes used, worst level
  max_bucket: int | None = None  # most items that may share one ID
  max_collision_share: float = 0.5  # share of items without an ID of their own


@dataclasses.dataclass(frozen=True)
class RQVAEConfig:
  """TIGER's residual-quantized autoencoder (2305.05065, 3.1)."""

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
  """Residual quantizer (2502.18965, section 3.1; 2506.13695, 2.1.2)."""

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
  # items keep the label of Algorithm 1, which may differ from that formula.
  corpus_assignment: Literal['nearest', 'balanced'] = 'nearest'
  # bucket: items sharing an ID stay together, ranked by popularity.
  # append: TIGER's extra code per item of a bucket.  reassign: a colliding
  # item moves to its next-best free code on the last level.
  collision: Literal['bucket', 'append', 'reassign'] = 'bucket'
  # Most items used to fit the codebooks; the rest is only encoded.
  max_fit_items: int = 2_000_000
  rqvae: RQVAEConfig = RQVAEConfig()
  limits: TokenizerLimits = TokenizerLimits()
