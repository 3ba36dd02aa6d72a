"""The technical report's system at its published sizes: a recipe for pods.

  python -m onerec_jax.main run --config=experiments/onerec_tr_paper.py:0.935b \
    --config.data.tables.interactions=gs://… --workdir=gs://…

arXiv:2506.13695, table 1: 0.015b and 0.121b are dense, 0.935b has 24 experts
with top-2 in the decoder, 2.633b with top-4 in both stacks.  Short 20, positive
256, lifelong 2000 -> 128, 3 x 8192 codes, beams and groups of 512, ECPO with
δ = 0.1 beside RSFT.  `python -m experiments.paper_sizes` counts parameters.

Not published, so ours: hidden units of pathways and lifelong queries (512 where
D is 1024), ε, the optimizer before RSFT, batch sizes, steps, sizes of the id
tables (no part of the totals, but of 0.015b: its widths alone make 5 M).
Published but at odds: 2.633b's experts are printed 2048 wide, which as SwiGLU
makes 3.8 B; 1408, half of 0.935b's 2816 for twice the experts, makes 2.68 B.
"""

import ml_collections

from onerec_jax import config as config_lib

# Size -> embed_dim, heads, layers of each stack, mlp_dim; the published ones.
_SIZES = {
  '0.015b': (128, 4, 2, 256),
  '0.121b': (1024, 8, 4, 2048),
  '0.935b': (1024, 8, 4, 2048),
  '2.633b': (1024, 8, 12, 2048),
}
VARIANTS = tuple(_SIZES)
# 8 D / 3, rounded up to a multiple of 128.
_EXPERT_DIM = 2816


def get_config(size: str = '0.935b') -> ml_collections.ConfigDict:
  if size not in VARIANTS:
    raise ValueError(f'onerec_tr_paper:{size} is not one of {VARIANTS}.')
  embed, heads, layers, mlp = _SIZES[size]
  config = config_lib.default_config()
  config.name = f'onerec_tr_paper_{size}'
  config.stages = (
    'prepare', 'embed', 'tokenize', 'lifelong', 'pretrain', 'p_score',
    'reinforce', 'evaluate', 'report',
  )  # fmt: skip

  # --- Data: what the tables must hold ---
  config.data.source = 'tables'
  tables = config.data.tables
  tables.interactions = 'interactions.parquet'
  tables.items = 'items.parquet'
  tables.users = 'users.parquet'
  tables.feedback_columns = (
    'play_time', 'duration', 'is_click', 'long_view', 'is_view', 'is_like',
    'is_follow', 'is_forward', 'is_comment', 'is_hate', 'is_profile_enter',
  )  # fmt: skip
  tables.item_category_columns = ('categories',)  # 'author:17|tag:8|tag:9'
  tables.user_feature_columns = ('gender', 'age')
  config.data.positive.any_of = (
    'long_view', 'is_like', 'is_follow', 'is_forward', 'is_comment',
  )  # fmt: skip
  config.data.history_length = 256
  config.data.sessions.items_per_session = 1
  config.data.split.kind = 'by_time'
  config.data.split.validation_start = '2025-01-30'
  config.data.split.test_start = '2025-01-31'

  config.embed.parts = ({'kind': 'array', 'path': 'item_tokens.npy'},)
  config.embed.alignment.enabled = True
  config.tokenizer.codes_per_level = 8192
  config.tokenizer.quantizer = 'kmeans'
  config.tokenizer.init = 'kmeans++'
  config.lifelong.max_events = 100_000
  config.lifelong.max_cluster_size = 150
  config.lifelong.snapshot_events = 1000

  # --- Model ---
  model = config.model
  model.encoder = 'pathways'
  model.embed_dim = embed
  model.num_heads = heads
  model.head_dim = embed // heads
  model.encoder_layers = layers
  model.decoder_layers = layers
  model.mlp_dim = mlp
  model.mlp_activation = 'gelu'
  model.dropout_rate = 0.0
  model.attention_dropout_rate = 0.0
  model.remat = True
  model.compute_dtype = 'bfloat16'
  model.moe.enabled = size in ('0.935b', '2.633b')
  model.moe.num_experts = 24
  model.moe.top_k = 4 if size == '2.633b' else 2
  model.moe.location = 'both' if size == '2.633b' else 'decoder'
  model.moe.expert_dim = _EXPERT_DIM // (2 if size == '2.633b' else 1)
  model.moe.activation = 'swiglu'
  model.moe.gate = 'sigmoid'
  model.moe.normalize_top_k = True
  model.moe.balancing = 'sign'

  pathways = model.pathways
  if embed == 1024:
    pathways.hidden_dim = 512
  pathways.user_id_buckets = 1024 if size == '0.015b' else 2**18
  pathways.user_features = (
    {'column': 'gender', 'dim': 64, 'max_values': 8},
    {'column': 'age', 'dim': 64, 'max_values': 32},
  )
  authors = 16_384 if size == '0.015b' else 2**18
  tags = 12_288 if size == '0.015b' else 2**14
  pathways.item_features = (
    {
      'name': 'aid', 'prefix': 'author:', 'dim': 512, 'max_values': 1,
      'vocabulary': authors - 1,
    },
    {
      'name': 'tag', 'prefix': 'tag:', 'dim': 128, 'average': True,
      'vocabulary': tags - 1,
    },
  )  # fmt: skip
  pathways.event_features = (
    {'column': 'play_time', 'dim': 128},
    {'column': 'duration', 'dim': 128},
  )
  pathways.labels = tables.feedback_columns[2:]
  pathways.short_length = 20
  pathways.positive_length = 256
  pathways.lifelong_length = 2000

  # Any slice whose devices divide 256, the batches that are decoded.
  config.mesh.preset = 'by_size'
  config.mesh.expert = 8 if model.moe.enabled else 1

  # --- Pre-training: 54 B tokens a day there, 300 B until 0.935b converges ---
  train = config.pretrain
  train.batch_size = 8192 if size == '2.633b' else 4096
  train.num_steps = 500_000
  train.optimizer.name = 'adamw'
  train.optimizer.weight_decay = 0.01
  train.optimizer.b2 = 0.95
  train.optimizer.warmup_steps = 2000
  train.evaluate_every_steps = 10_000
  train.evaluate_examples = 16_384
  train.checkpoint_every_steps = 2500

  # --- P-Score model: the report's objectives ---
  config.p_score_model.towers = (
    {'name': 'ctr', 'column': 'is_click'},
    {'name': 'lvtr', 'column': 'long_view'},
    {'name': 'vtr', 'column': 'is_view'},
    {'name': 'ltr', 'column': 'is_like'},
    {'name': 'wtr', 'column': 'is_follow'},
    {'name': 'cmtr', 'column': 'is_comment'},
  )
  config.p_score_model.embed_dim = 128
  config.p_score.batch_size = 16_384
  config.p_score.num_steps = 100_000
  config.p_score.optimizer.name = 'adamw'
  config.p_score.evaluate_every_steps = 10_000
  config.p_score.evaluate_examples = 65_536
  config.p_score.checkpoint_every_steps = 5000

  # --- ECPO beside RSFT: groups of 512 for 1 % of the users ---
  config.reinforcement.group_size = 512
  config.reinforcement.rollout_batch_size = 256
  config.reinforcement.user_share = 0.01
  config.reinforcement.sync_every_steps = 1000
  config.reinforcement.early_clip = 0.1
  config.reinforcement.rsft_column = 'play_time'
  config.reinforcement.rsft_drop_share = 0.5
  config.reinforce.batch_size = train.batch_size
  config.reinforce.num_steps = 50_000
  config.reinforce.optimizer.name = 'adamw'
  config.reinforce.optimizer.peak_learning_rate = 8e-5
  config.reinforce.evaluate_every_steps = 5000
  config.reinforce.evaluate_examples = 4096
  config.reinforce.checkpoint_every_steps = 1000

  # --- Evaluation: Pass@K of 512 beams ---
  config.evaluate.batch_size = 256
  config.evaluate.decoding.num_beams = 512
  config.evaluate.decoding.constrain = 'none'
  config.evaluate.p_score.num_items = 512
  config.evaluate.p_score.pass_at = (8, 64, 512)
  return config
