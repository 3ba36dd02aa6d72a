"""Every stage on a small simulated world, no download, about a minute on CPU.

  make smoke

Expect: all stages complete, and a report in runs/smoke/report/report.html.
The numbers only show that the model learns; the claims are elsewhere.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'smoke'

  config.data.source = 'synthetic'
  config.data.history_length = 16
  config.data.sessions.items_per_session = 2

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

  config.evaluate.bootstrap_samples = 200
  config.evaluate.decoding.num_beams = 20
  return config
