"""The smallest system that several CPU processes can train and use."""

from typing import Any

import ml_collections

from onerec_jax import config as config_lib

ROWS = 16  # of every batch: two on each of eight devices


def get_config() -> ml_collections.ConfigDict:
  config: Any = config_lib.default_config()
  config.name = 'tiny'
  config.stages = ('prepare', 'embed', 'tokenize', 'pretrain', 'evaluate')

  config.data.source = 'synthetic'
  config.data.synthetic.num_users = 90
  config.data.synthetic.num_items = 60
  config.data.synthetic.num_clusters = 4
  config.data.synthetic.events_per_user = 12
  config.data.history_length = 6
  config.data.sessions.items_per_session = 2

  config.embed.parts = (
    {'kind': 'cooccurrence', 'dim': 8, 'weight': 1.0, 'window': 3},
  )
  config.tokenizer.levels = 2
  config.tokenizer.codes_per_level = 8
  config.tokenizer.quantizer = 'kmeans'
  config.tokenizer.limits.min_utilisation = 0.0
  config.tokenizer.limits.max_collision_share = 1.0

  config.model.embed_dim = 16
  config.model.num_heads = 2
  config.model.head_dim = 8
  config.model.encoder_layers = 1
  config.model.decoder_layers = 1
  config.model.mlp_dim = 16
  config.model.moe.num_experts = 2
  config.model.moe.expert_dim = 16
  config.model.moe.dispatch = 'dense'
  config.model.scan_layers = False

  config.pretrain.batch_size = ROWS
  config.pretrain.log_every_steps = 5
  config.pretrain.evaluate_every_steps = 0
  config.pretrain.checkpoint_every_steps = 1000
  config.pretrain.optimizer.peak_learning_rate = 3e-3
  config.pretrain.optimizer.warmup_steps = 2

  config.reward_model.items_per_session = 2
  config.reward_model.targets = ({'name': 'ltr', 'column': 'is_like'},)
  config.reward_model.embed_dim = 8
  config.reward_model.num_heads = 2
  config.reward_model.num_layers = 1
  config.preference.rollout_batch_size = ROWS
  config.preference.rollout.num_beams = 4
  config.preference.rollout.num_items = 2

  config.p_score_model.towers = ({'name': 'ltr', 'column': 'is_like'},)
  config.p_score_model.embed_dim = 8
  config.p_score_model.num_heads = 2
  config.model.pathways.short_length = 4
  config.reinforcement.rollout_batch_size = ROWS
  config.reinforcement.group_size = 4
  config.reinforcement.format_samples = 2
  config.reinforcement.rollouts = 'sample'

  config.evaluate.batch_size = ROWS
  config.evaluate.top_k = (1, 5)
  config.evaluate.bootstrap_samples = 20
  config.evaluate.num_example_users = 2
  config.evaluate.decoding.num_beams = 8
  return config
