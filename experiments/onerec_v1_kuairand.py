"""OneRec v1 on KuaiRand-Pure: short video, real feedback, split by time.

  python -m onerec_jax.main run --config=experiments/onerec_v1_kuairand.py \
    --config.data.path=DIR --workdir=runs/kuairand

DIR is the unpacked KuaiRand-Pure folder (with data/ inside).  A positive is a
click or a long view; targets are the next five positives; training targets lie
before 30 April, validation on 30 April, test from 1 May 2022.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'onerec_v1_kuairand'

  config.data.source = 'kuairand'
  config.data.path = 'data/kuairand_pure'
  config.data.variant = 'pure'
  config.data.positive.any_of = ('is_click', 'long_view', 'is_like')
  config.data.min_user_positives = 5
  config.data.split.kind = 'by_time'
  config.data.split.validation_start = '2022-04-30'
  config.data.split.test_start = '2022-05-01'
  config.data.history_length = 64
  config.data.sessions.items_per_session = 5

  config.embed.parts = (
    {'kind': 'categories', 'dim': 32, 'weight': 0.5},
    {'kind': 'cooccurrence', 'dim': 96, 'weight': 1.0},
  )
  config.tokenizer.codes_per_level = 128
  config.tokenizer.collision = 'reassign'

  config.model.moe.num_experts = 8
  config.model.moe.expert_dim = 256

  config.pretrain.batch_size = 256
  config.pretrain.num_steps = 5000
  config.pretrain.optimizer.peak_learning_rate = 1e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 500
  config.pretrain.pipeline.length_buckets = (16, 32, 64)
  return config
