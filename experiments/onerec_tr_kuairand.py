"""The technical report's system on KuaiRand-Pure: real features and labels.

  python -m onerec_jax.main run --config=experiments/onerec_tr_kuairand.py \
    --config.data.path=DIR --workdir=runs/onerec_tr_kuairand

DIR is the unpacked KuaiRand-Pure folder (with data/ inside).  Three pathways:
user features, the latest events of any kind, the latest positive ones;
histories are too short for the lifelong one.  Towers: click, long view, like.
Their logits are averaged with those of logistic regressions on what they read.
Data, split and positives are those of onerec_v1_kuairand.py.

  python -m onerec_jax.main sweep \
    --config=experiments/onerec_tr_kuairand.py:pathways --config.data.path=DIR \
    --workdir=runs/kuairand_pathways

compares pathways and features with positives only (the report's table of
feature scaling), judged by one P-Score model.  Here that judge hardly looks at
the user: the result of the stage `p_score` says by how much lists made for each
user can be above one list for all.  `:pathways_next_item` asks the same rows
for the next item instead, where it matters who is asked.
"""

from typing import Any

import ml_collections

from experiments import onerec_v1_kuairand
from onerec_jax import config as config_lib

VARIANTS = ('full', 'pathways', 'pathways_next_item')

_USERS = (
  'user_active_degree', 'is_video_author', 'is_live_streamer',
  'follow_user_num', 'fans_user_num', 'friend_user_num', 'register_days',
)  # fmt: skip
_BEFORE = ('prepare', 'embed', 'tokenize', 'pretrain')


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'onerec_tr_kuairand:{variant} is not one of {VARIANTS}.')
  config: Any = onerec_v1_kuairand.get_config()
  config.name = f'onerec_tr_kuairand_{variant}'
  config.stages = config_lib.TR_STAGES

  config.data.history_length = 32
  config.data.sessions.items_per_session = 1
  config.embed.parts = (
    {'kind': 'categories', 'dim': 16, 'weight': 0.5},
    {'kind': 'cooccurrence', 'dim': 48, 'weight': 1.0},
  )
  config.tokenizer.codes_per_level = 64
  config.tokenizer.quantizer = 'kmeans'

  model = config.model
  model.encoder = 'pathways'
  model.encoder_layers = 2
  model.decoder_layers = 2
  model.embed_dim = 64
  model.num_heads = 4
  model.head_dim = 16
  model.mlp_dim = 128
  model.attention_dropout_rate = 0.0
  model.moe.num_experts = 4
  model.moe.expert_dim = 128
  model.moe.activation = 'swiglu'
  model.moe.gate = 'sigmoid'
  model.moe.dispatch = 'dense'
  model.scan_layers = False
  model.pathways.user_features = tuple({'column': c, 'dim': 16} for c in _USERS)
  model.pathways.item_features = (
    {'name': 'aid', 'prefix': 'author:', 'dim': 32, 'max_values': 1},
    {'name': 'tag', 'prefix': 'tag:', 'dim': 32, 'average': True},
    {'name': 'dur', 'prefix': 'duration:', 'dim': 16, 'max_values': 1},
  )
  model.pathways.event_features = (
    {'column': 'play_time_ms', 'dim': 16, 'buckets': 32},
  )
  model.pathways.labels = (
    'is_click', 'long_view', 'is_like', 'is_follow', 'is_comment',
    'is_forward', 'is_hate', 'is_profile_enter',
  )  # fmt: skip
  model.pathways.label_dim = 16
  model.pathways.age_dim = 16
  model.pathways.age_buckets = 32
  model.pathways.short_length = 20
  model.pathways.positive_length = 32

  config.pretrain.batch_size = 128
  config.pretrain.num_steps = 2000
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.peak_learning_rate = 2e-3
  config.pretrain.optimizer.warmup_steps = 100
  config.pretrain.optimizer.final_learning_rate_fraction = 0.05
  config.pretrain.pipeline.length_buckets = ()
  config.pretrain.log_every_steps = 100
  config.pretrain.evaluate_every_steps = 1000
  config.pretrain.evaluate_examples = 1000
  config.pretrain.checkpoint_every_steps = 1000
  config.pretrain.keep_checkpoints = 1

  config.p_score_model.towers = (
    {'name': 'ctr', 'column': 'is_click'},
    {'name': 'lvtr', 'column': 'long_view'},
    {'name': 'ltr', 'column': 'is_like'},
  )
  config.p_score_model.embed_dim = 48
  config.p_score_model.history_length = 32
  config.p_score_model.search_items = 16
  config.p_score_model.tower_dims = (64, 32)
  config.p_score_model.fusion_dims = (64, 32)
  config.p_score_model.dropout_rate = 0.3
  config.p_score_model.linear_strengths = (0.03, 0.1, 0.3)
  config.p_score.batch_size = 512
  # Clicks are known for 8 % of the events: more steps overfit them.
  config.p_score.num_steps = 3000
  config.p_score.ema_decay = 0.998
  config.p_score.optimizer.name = 'adamw'
  config.p_score.optimizer.weight_decay = 0.2
  config.p_score.optimizer.peak_learning_rate = 5e-3
  config.p_score.optimizer.schedule = 'cosine'
  config.p_score.optimizer.warmup_steps = 100
  config.p_score.log_every_steps = 100
  config.p_score.evaluate_every_steps = 500
  config.p_score.evaluate_examples = 8000
  config.p_score.checkpoint_every_steps = 500
  config.p_score.keep_checkpoints = 1

  config.reinforcement.group_size = 32
  config.reinforcement.user_share = 0.25
  config.reinforcement.sync_every_steps = 10
  config.reinforcement.rsft_column = 'play_time_ms'
  config.reinforce.batch_size = 64
  config.reinforce.num_steps = 300
  config.reinforce.ntp_reduction = 'mean'
  config.reinforce.optimizer.peak_learning_rate = 3e-4
  config.reinforce.optimizer.warmup_steps = 10
  config.reinforce.log_every_steps = 10
  config.reinforce.evaluate_every_steps = 50
  config.reinforce.evaluate_examples = 200
  config.reinforce.checkpoint_every_steps = 100
  config.reinforce.keep_checkpoints = 1

  config.evaluate.max_examples = 4000
  config.evaluate.decoding.num_beams = 20
  config.evaluate.p_score.num_items = 32
  config.evaluate.p_score.pass_at = (1, 8, 32)
  config.evaluate.p_score.max_users = 1000
  if variant != 'full':
    _compare_pathways(
      config, judge='items' if variant == 'pathways' else 'next_item'
    )
  return config


def _compare_pathways(config: Any, *, judge: str) -> None:
  features: dict[str, Any] = {
    'user_features': (), 'item_features': (), 'event_features': (),
    'labels': (), 'age_dim': 0,
  }  # fmt: skip
  config.sweep.title = 'KuaiRand-Pure: pathways and features'
  config.sweep.judge = judge
  config.sweep.base = 'positives only'
  config.sweep.rows = tuple(
    {
      'name': name,
      'overrides': {'stages': _BEFORE, 'model': {'pathways': changed}},
    }
    for name, changed in (
      ('positives only', {'short_length': 0, **features}),
      ('pathways, no features', features),
      ('all pathways and features', {}),
    )
  )
