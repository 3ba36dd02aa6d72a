"""The technical report's system on MovieLens-100K: a quick look at all of it.

  python -m onerec_jax.main run --config=experiments/onerec_tr_movielens.py \
    --workdir=runs/onerec_tr_movielens

Users' age, gender and occupation, films' genres, ratings and times; all three
event pathways, the lifelong one from clusters of everything a user has rated.
Towers of the P-Score: liked (four or five stars) and loved (five).  The data
are small and every rated film was chosen by the user, so that nobody knows
what users think of what they never rate: read the P-Scores as an example of
the machinery, not as a result.
"""

from typing import Any

import ml_collections

from experiments import quickstart
from onerec_jax import config as config_lib

_STAGES = (
  'prepare', 'embed', 'tokenize', 'lifelong', 'pretrain', 'p_score',
  'reinforce', 'evaluate', 'report',
)  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
  config: Any = quickstart.get_config()
  config.name = 'onerec_tr_movielens'
  config.stages = _STAGES
  config.reward_model = config_lib.default_config().reward_model

  config.data.sessions.items_per_session = 1
  config.tokenizer.quantizer = 'kmeans'

  model = config.model
  model.encoder = 'pathways'
  model.history_recency = False
  model.moe.activation = 'swiglu'
  model.moe.gate = 'sigmoid'
  model.pathways.user_features = (
    {'column': 'age', 'dim': 16, 'buckets': 8},
    {'column': 'gender', 'dim': 16},
    {'column': 'occupation', 'dim': 16},
  )
  model.pathways.item_features = (
    {'name': 'genre', 'dim': 16, 'max_values': 6, 'average': True},
  )
  model.pathways.event_features = (
    {'column': 'rating', 'dim': 16, 'buckets': 8},
  )
  model.pathways.age_dim = 16
  model.pathways.age_buckets = 32
  model.pathways.short_length = 10
  model.pathways.positive_length = 20
  model.pathways.lifelong_length = 16
  model.pathways.lifelong_queries = 4
  config.lifelong.max_cluster_size = 12
  config.lifelong.snapshot_events = 40

  config.pretrain.batch_size = 128
  config.pretrain.num_steps = 1500
  config.pretrain.pipeline.length_buckets = ()

  config.p_score_model.towers = (
    {'name': 'liked', 'column': 'rating', 'threshold': 3.5},
    {'name': 'loved', 'column': 'rating', 'threshold': 4.5},
  )
  config.p_score_model.embed_dim = 32
  config.p_score_model.history_length = 32
  config.p_score_model.search_items = 16
  config.p_score_model.tower_dims = (64, 32)
  config.p_score_model.fusion_dims = (64, 32)
  config.p_score_model.dropout_rate = 0.3
  config.p_score.batch_size = 256
  config.p_score.num_steps = 1000
  config.p_score.optimizer.name = 'adamw'
  config.p_score.optimizer.weight_decay = 0.1
  config.p_score.optimizer.peak_learning_rate = 1e-3
  config.p_score.optimizer.schedule = 'cosine'
  config.p_score.optimizer.warmup_steps = 50
  config.p_score.log_every_steps = 100
  config.p_score.evaluate_every_steps = 200
  config.p_score.checkpoint_every_steps = 200
  config.p_score.keep_checkpoints = 1

  config.reinforcement.group_size = 32
  config.reinforcement.user_share = 0.25
  config.reinforcement.sync_every_steps = 10
  config.reinforce.batch_size = 64
  config.reinforce.num_steps = 100
  config.reinforce.ntp_reduction = 'mean'
  config.reinforce.optimizer.peak_learning_rate = 3e-4
  config.reinforce.optimizer.warmup_steps = 10
  config.reinforce.log_every_steps = 10
  config.reinforce.evaluate_every_steps = 50
  config.reinforce.evaluate_examples = 200
  config.reinforce.checkpoint_every_steps = 50
  config.reinforce.keep_checkpoints = 1

  config.evaluate.decoding.continue_items = 0
  config.preference.rollout.continue_items = 0
  config.evaluate.p_score.num_items = 32
  config.evaluate.p_score.pass_at = (1, 8, 32)
  return config
