"""OneRec v1 on MovieLens-100K: raw ratings to recommendations in 10 minutes.

  make quickstart

Leave-one-out, all items ranked, history excluded.  Expect Recall@10 above 0.172
(twice popularity) and above a first-order Markov chain (0.144); the README has
the measured table.  The model is small, so that two CPU cores train it in about
six minutes.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'quickstart'

  config.data.source = 'movielens'
  config.data.variant = '100k'
  config.data.history_length = 20
  # Long sessions: one pass of the encoder supervises 20 items.
  config.data.sessions.items_per_session = 20

  config.embed.parts = (
    {'kind': 'cooccurrence', 'dim': 64, 'weight': 1.0, 'window': 10},
    {'kind': 'categories', 'dim': 16, 'weight': 0.3},
    {'kind': 'text', 'dim': 16, 'weight': 0.15},
  )
  config.tokenizer.codes_per_level = 32
  config.tokenizer.collision = 'reassign'

  config.model.embed_dim = 64
  config.model.num_heads = 4
  config.model.head_dim = 16
  config.model.encoder_layers = 2
  config.model.decoder_layers = 2
  config.model.mlp_dim = 64
  config.model.dropout_rate = 0.2
  config.model.attention_dropout_rate = 0.0
  config.model.history_separator = False
  config.model.history_recency = True
  config.model.moe.num_experts = 4
  config.model.moe.expert_dim = 64
  # Four small experts and two layers: on a CPU it is quicker to compute all
  # experts than to sort tokens, and to unroll than to scan.
  config.model.moe.dispatch = 'dense'
  config.model.scan_layers = False

  config.pretrain.batch_size = 64
  config.pretrain.num_steps = 3000
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.name = 'adamw'
  config.pretrain.optimizer.peak_learning_rate = 4e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 100
  config.pretrain.optimizer.final_learning_rate_fraction = 0.02
  config.pretrain.optimizer.b2 = 0.98
  config.pretrain.optimizer.weight_decay = 0.01
  config.pretrain.log_every_steps = 100
  config.pretrain.evaluate_every_steps = 500
  config.pretrain.evaluate_examples = 943
  config.pretrain.checkpoint_every_steps = 500

  # Five known items begin the session, the answer goes on from there.
  config.evaluate.decoding.continue_items = 5
  return config
