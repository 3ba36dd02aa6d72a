"""Settings of OneRec and of the item-level baselines."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  """Mixture-of-experts feed-forward of the decoder (2502.18965, 3.2)."""

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
  # How tokens reach experts on other devices (mesh.expert > 1) while training.
  # all_gather: every device of an expert group sees the group's tokens;
  # dropless.  all_to_all: each token goes to the devices of its experts, which
  # have room for capacity_factor times the mean; what finds no room is
  # dropped, last choices first, and counted (router/drop_share).  Decoding and
  # the log-probabilities of generated items are dropless with both.
  exchange: Literal['all_gather', 'all_to_all'] = 'all_gather'
  capacity_factor: float = 1.25  # 'all_to_all' only; at least 1
  # both: encoder='pathways' only; the encoder's feed-forwards are experts too.
  location: Literal['decoder', 'both'] = 'decoder'


@dataclasses.dataclass(frozen=True)
class UserFeature:
  """A column of the user table that the user-static pathway embeds."""

  column: str = ''
  dim: int = 64
  buckets: int = 32  # numbers: quantiles over the users
  max_values: int = 1000  # text: most frequent values; others share an id


@dataclasses.dataclass(frozen=True)
class ItemFeature:
  """A property of items: their categories that begin with `prefix`."""

  name: str = ''  # as shown: aid, tag, dur ...
  prefix: str = ''  # e.g. 'author:'; '': all categories
  dim: int = 128
  max_values: int = 4  # of one item; embeddings are averaged
  vocabulary: int = 100_000  # most frequent values; others are unknown
  # Lifelong clusters: the average over the cluster (the papers' "continuous"
  # features) or the representative's value.
  average: bool = False


@dataclasses.dataclass(frozen=True)
class EventFeature:
  """A number of an event (a feedback column), embedded by its logarithm."""

  column: str = ''  # e.g. 'play_time_ms'
  dim: int = 128
  buckets: int = 64  # of log(1 + value), between the training extremes


@dataclasses.dataclass(frozen=True)
class PathwaysConfig:
  """What the encoder of the report reads (2506.13695, section 2.2.1).

  Features that a data set lacks are left out of these lists; values that an
  event lacks are masked.
  """

  # semantic_id: the sum of the level embeddings, shared with the decoder;
  # item_id: a table of items.
  item_input: Literal['semantic_id', 'item_id'] = 'semantic_id'
  user_id_buckets: int = 0  # > 0: the user id is a feature, hashed
  user_id_dim: int = 64
  user_features: tuple[UserFeature, ...] = ()
  item_features: tuple[ItemFeature, ...] = ()
  event_features: tuple[EventFeature, ...] = ()
  labels: tuple[str, ...] = ()  # feedback columns; > 0: it happened
  label_dim: int = 128
  age_dim: int = 128  # time before the request; 0: not read
  age_buckets: int = 64  # of log seconds
  short_length: int = 20  # latest events of any kind; 0: no pathway
  positive_length: int = 256  # latest positive events; 0: no pathway
  lifelong_length: int = 0  # latest clusters (papers: 2000); 0: no pathway
  lifelong_queries: int = 128
  lifelong_layers: int = 2
  # Hidden units of the pathways' MLPs and of the lifelong queries' feed-forward
  # (the report names neither); None: model.embed_dim and model.mlp_dim.
  hidden_dim: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Encoder-decoder of v1 and of the technical report.

  Reference: OneRec, arXiv:2502.18965, section 3.2; technical report,
  arXiv:2506.13695, sections 2.2.2 and 2.3.
  """

  # history: v1, the positives as tokens of semantic IDs.  pathways: the
  # technical report, user features and events of several time scales.
  encoder: Literal['history', 'pathways'] = 'history'
  pathways: PathwaysConfig = PathwaysConfig()

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
  # SEP after each history item: our choice, the text of 2502.18965 has none.
  history_separator: bool = True
  user_buckets: int = 0  # > 0: a hashed user token before the history
  # Adds a learned embedding of how many items ago it was to every history
  # token, which 2502.18965 does not have.  T5's relative bias
  # alone tells cross-attention nothing about recency.
  history_recency: bool = False
  relative_buckets: int = 32  # T5 relative position bias
  relative_max_distance: int = 128  # tokens; also the rows of the recency table
  # > 0: adds a learned embedding of the whole ID, hashed to this many buckets,
  # to the last code of every item that is read.  v1 knows codes only; the
  # report's pathways read an item's own embedding (2506.13695, 2.2.1); hashed
  # n-grams are Pagnoni et al. 2024's, arXiv:2412.09871, section 3.2.1.
  id_buckets: int = 0
  tie_head: bool = True  # output head = code embeddings
  # What a code's probability is normalised over.  codes: all codes of its level
  # (the papers).  catalogue: those that follow its prefix in the catalogue, in
  # training as in decoding: nothing is spent on learning which IDs exist, and
  # nothing is known of it without the trie.
  normalise_over: Literal['codes', 'catalogue'] = 'codes'
  # Where the codes' embeddings start.  random: N(0, 1).  codebook: the
  # tokenizer's centroids, turned and scaled, so that codes that are near each
  # other are so from the first step; embeddings of whole IDs (id_buckets) at
  # what the codes leave over of the items' vectors (not of an RQ-VAE's).
  code_init: Literal['random', 'codebook'] = 'random'
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
