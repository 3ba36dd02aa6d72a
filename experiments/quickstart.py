"""OneRec v1 on MovieLens-100K: raw ratings to an aligned recommender.

  make quickstart

Leave-one-out, all items ranked, history excluded.  Expect Recall@10 above 0.172
(twice popularity) and above a first-order Markov chain (0.144); then a reward
model of how much of a session of five films a user will like (four or five
stars) and love (five), and two rounds of preference alignment (IPA) that raise
it.  The README has the measured tables.  The model is small, so that two CPU
cores do all of it in under 12 minutes.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'quickstart'
  config.stages = config_lib.V1_STAGES

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

  config.reward_model.targets = (
    {'name': 'liked', 'column': 'rating', 'label': 'mean', 'threshold': 3.5},
    {'name': 'loved', 'column': 'rating', 'label': 'mean', 'threshold': 4.5},
  )
  config.reward_model.embed_dim = 32
  config.reward_model.num_layers = 1
  config.reward_model.dropout_rate = 0.3
  config.reward.batch_size = 64
  config.reward.num_steps = 1500
  config.reward.optimizer.name = 'adamw'
  config.reward.optimizer.peak_learning_rate = 1e-3
  config.reward.optimizer.schedule = 'cosine'
  config.reward.optimizer.warmup_steps = 100
  config.reward.optimizer.weight_decay = 0.1
  config.reward.log_every_steps = 250
  config.reward.evaluate_every_steps = 250
  config.reward.checkpoint_every_steps = 500

  config.preference.rounds = 2
  config.preference.sample_share = 0.1
  config.preference.weight = 5.0
  config.preference.rollout.num_beams = 24
  config.preference.rollout.num_items = 5
  config.preference.rollout.continue_items = 5
  config.align.batch_size = 64
  config.align.num_steps = 100
  config.align.ntp_reduction = 'mean'
  config.align.optimizer.peak_learning_rate = 3e-4
  config.align.optimizer.warmup_steps = 10
  config.align.log_every_steps = 25
  config.align.evaluate_every_steps = 100
  config.align.evaluate_examples = 200
  config.align.checkpoint_every_steps = 100

  # Five known items begin the session, the answer goes on from there.
  config.evaluate.decoding.continue_items = 5
  return config
