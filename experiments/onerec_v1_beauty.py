"""OneRec v1 on Amazon Beauty 2014, TIGER protocol: leave-one-out, full ranking.

  python -m onerec_jax.main run --config=experiments/onerec_v1_beauty.py \
    --config.data.path=DIR --workdir=runs/beauty

DIR holds Beauty.sequences.txt (or S3-Rec's Beauty.txt) and, for item text,
Beauty.items.jsonl.  The results and their training budget are in the README.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'onerec_v1_beauty'

  config.data.source = 'amazon_sequences'
  config.data.path = 'data/amazon2014'
  config.data.variant = 'Beauty'
  config.data.history_length = 20
  config.data.sessions.items_per_session = 2

  config.embed.parts = (
    {'kind': 'text', 'dim': 96, 'weight': 1.0},
    {'kind': 'cooccurrence', 'dim': 96, 'weight': 1.0},
  )
  config.tokenizer.codes_per_level = 256
  config.tokenizer.collision = 'reassign'

  config.model.embed_dim = 128
  config.model.num_heads = 4
  config.model.head_dim = 32
  config.model.encoder_layers = 3
  config.model.decoder_layers = 3
  config.model.mlp_dim = 512
  config.model.dropout_rate = 0.2
  config.model.attention_dropout_rate = 0.0
  config.model.moe.num_experts = 8
  config.model.moe.expert_dim = 256
  config.model.history_separator = False

  config.pretrain.batch_size = 256
  config.pretrain.num_steps = 20_000
  config.pretrain.optimizer.name = 'adamw'
  config.pretrain.optimizer.peak_learning_rate = 1e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.weight_decay = 0.05
  config.pretrain.label_smoothing = 0.1
  config.pretrain.pipeline.windows = 'all'
  config.pretrain.pipeline.length_buckets = (5, 10, 20)
  config.pretrain.evaluate_every_steps = 1000
  config.pretrain.evaluate_examples = 2000
  config.pretrain.checkpoint_every_steps = 1000
  return config
