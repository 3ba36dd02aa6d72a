"""OneRec v1 on Amazon Beauty 2014, TIGER protocol: leave-one-out, full ranking.

  python -m onerec_jax.main run --config=experiments/onerec_v1_beauty.py \
    --config.data.path=DIR --workdir=runs/beauty

DIR holds Beauty.sequences.txt (or S3-Rec's Beauty.txt) and, for item text,
Beauty.items.jsonl.  Sized for a few CPU cores and well under an hour; the
quality of its IDs is in experiments/README.md.  onerec_amazon.py is stronger.
"""

import ml_collections

from experiments import amazon_data
from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'onerec_v1_beauty'

  amazon_data.set_data(
    config, 'beauty', history_length=20, items_per_session=10
  )

  amazon_data.set_items(config)

  config.model.embed_dim = 128
  config.model.num_heads = 4
  config.model.head_dim = 32
  config.model.encoder_layers = 2
  config.model.decoder_layers = 2
  config.model.mlp_dim = 256
  config.model.dropout_rate = 0.3
  config.model.attention_dropout_rate = 0.0
  config.model.history_separator = False
  config.model.history_recency = True
  config.model.moe.num_experts = 4
  config.model.moe.expert_dim = 256
  config.model.scan_layers = False

  config.pretrain.batch_size = 256
  config.pretrain.num_steps = 1800
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.name = 'adamw'
  config.pretrain.optimizer.peak_learning_rate = 3e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 150
  config.pretrain.optimizer.final_learning_rate_fraction = 0.02
  config.pretrain.optimizer.b2 = 0.98
  config.pretrain.optimizer.weight_decay = 0.05
  config.pretrain.pipeline.length_buckets = (5, 20)
  config.pretrain.log_every_steps = 100
  config.pretrain.evaluate_every_steps = 600
  config.pretrain.evaluate_examples = 1024
  config.pretrain.checkpoint_every_steps = 300

  config.evaluate.batch_size = 128
  config.evaluate.decoding.continue_items = 3
  return config
