"""OneRec v1, Table 1, on KuaiRand-Pure: short video with real feedback.

  python -m onerec_jax.main sweep --config=experiments/table1_kuairand.py \
    --config.data.path=DIR --workdir=runs/table1_kuairand

DIR is the unpacked KuaiRand-Pure folder (with data/ inside).  Rows as in
table1_synthetic.py; rewards are predictions of a session reward model trained
on the sessions shown before 30 April 2022, for users of 1-8 May.  Watch time
and follows are logged from 25 April only: 7 % of the training sessions have
their labels, and 70 of those a follow, too few for its tower to mean anything.
`:small` is one seed of shorter runs.
"""

from typing import Any

import ml_collections

from experiments import alignment_rows as rows
from experiments import onerec_v1_kuairand
from onerec_jax import config as config_lib

SMALL_MODEL = {'embed_dim': 32, 'head_dim': 8, 'mlp_dim': 64}
LARGE_MODEL = {'embed_dim': 64, 'head_dim': 16, 'mlp_dim': 128}

VARIANTS = ('full', 'small')


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'table1_kuairand:{variant} is not one of {VARIANTS}.')
  small = variant == 'small'
  config: Any = onerec_v1_kuairand.get_config()
  config.name = f'table1_kuairand_{variant}'
  config.stages = config_lib.V1_STAGES

  config.data.history_length = 32
  config.embed.parts = (
    {'kind': 'categories', 'dim': 16, 'weight': 0.5},
    {'kind': 'cooccurrence', 'dim': 48, 'weight': 1.0},
  )
  config.tokenizer.codes_per_level = 64
  config.tokenizer.rqvae.hidden_dims = (128, 64)
  config.tokenizer.rqvae.num_steps = 2000

  config.model.encoder_layers = 2
  config.model.decoder_layers = 2
  config.model.attention_dropout_rate = 0.0
  config.model.history_separator = False
  config.model.history_recency = True
  config.model.moe.num_experts = 4
  config.model.moe.expert_dim = 128
  config.model.moe.dispatch = 'dense'
  config.model.scan_layers = False

  config.pretrain.batch_size = 64
  config.pretrain.num_steps = 1500 if small else 4000
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.peak_learning_rate = 2e-3
  config.pretrain.optimizer.warmup_steps = 100
  config.pretrain.optimizer.final_learning_rate_fraction = 0.05
  config.pretrain.pipeline.length_buckets = (16, 32)
  config.pretrain.log_every_steps = 250
  config.pretrain.evaluate_every_steps = config.pretrain.num_steps // 2
  config.pretrain.evaluate_examples = 500
  config.pretrain.checkpoint_every_steps = config.pretrain.num_steps // 2
  config.pretrain.keep_checkpoints = 1

  config.reward_model.targets = (
    {'name': 'swt', 'column': 'play_time_ms', 'label': 'saturating_sum'},
    {'name': 'vtr', 'column': 'long_view', 'label': 'mean'},
    {'name': 'wtr', 'column': 'is_follow', 'label': 'any'},
    {'name': 'ltr', 'column': 'is_like', 'label': 'any'},
  )
  config.reward_model.embed_dim = 64
  config.reward_model.num_layers = 1
  config.reward.batch_size = 256
  config.reward.num_steps = 1500 if small else 4000
  config.reward.optimizer.peak_learning_rate = 1e-3
  config.reward.optimizer.schedule = 'cosine'
  config.reward.optimizer.warmup_steps = 100
  config.reward.log_every_steps = 250
  config.reward.evaluate_every_steps = 250
  config.reward.evaluate_examples = 4000
  config.reward.checkpoint_every_steps = 250
  config.reward.keep_checkpoints = 1

  rows.set_table_1(
    config,
    title='Table 1 on KuaiRand-Pure',
    small_model=SMALL_MODEL,
    large_model=LARGE_MODEL,
    small=small,
  )
  return config
