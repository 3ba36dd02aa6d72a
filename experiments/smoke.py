"""Every stage on a small simulated world, no download, one to two minutes.

  make smoke

Expect: all stages complete, and a report in runs/smoke/report/report.html.
The numbers only show that the model learns; the claims are elsewhere.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'smoke'
  config.stages = config_lib.V1_STAGES

  config.data.source = 'synthetic'
  config.data.history_length = 16
  config.data.sessions.items_per_session = 3

  config.tokenizer.codes_per_level = 16

  config.model.embed_dim = 32
  config.model.num_heads = 2
  config.model.head_dim = 16
  config.model.encoder_layers = 1
  config.model.decoder_layers = 1
  config.model.mlp_dim = 64
  config.model.dropout_rate = 0.0
  config.model.attention_dropout_rate = 0.0
  config.model.moe.num_experts = 4
  config.model.moe.expert_dim = 64

  config.pretrain.batch_size = 64
  config.pretrain.num_steps = 300
  config.pretrain.optimizer.peak_learning_rate = 3e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 30
  config.pretrain.log_every_steps = 50
  config.pretrain.evaluate_every_steps = 100
  config.pretrain.evaluate_examples = 128
  config.pretrain.checkpoint_every_steps = 100

  config.reward_model.items_per_session = 3
  config.reward_model.targets = (
    {'name': 'swt', 'column': 'watch_time', 'label': 'saturating_sum'},
    {'name': 'vtr', 'column': 'long_view', 'label': 'mean'},
    {'name': 'wtr', 'column': 'is_follow', 'label': 'any'},
    {'name': 'ltr', 'column': 'is_like', 'label': 'any'},
  )
  config.reward_model.embed_dim = 32
  config.reward_model.num_heads = 2
  config.reward_model.num_layers = 1
  config.reward.batch_size = 64
  config.reward.num_steps = 200
  config.reward.optimizer.peak_learning_rate = 3e-3
  config.reward.optimizer.warmup_steps = 20
  config.reward.log_every_steps = 50
  config.reward.evaluate_every_steps = 100
  config.reward.evaluate_examples = 256
  config.reward.checkpoint_every_steps = 100

  config.preference.rounds = 2
  config.preference.sample_share = 0.1
  config.preference.weight = 3.0
  config.preference.rollout.num_beams = 12
  config.preference.rollout.num_items = 3
  config.align.batch_size = 64
  config.align.num_steps = 40
  config.align.optimizer.peak_learning_rate = 5e-4
  config.align.optimizer.warmup_steps = 5
  config.align.log_every_steps = 20
  config.align.evaluate_every_steps = 40
  config.align.evaluate_examples = 64
  config.align.checkpoint_every_steps = 40

  config.evaluate.bootstrap_samples = 200
  config.evaluate.decoding.num_beams = 20
  config.evaluate.sessions.max_users = 100
  config.evaluate.sessions.legality_users = 50
  return config
