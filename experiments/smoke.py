"""Every stage on a small simulated world, no download, a few minutes.

  make smoke

`:v1` is OneRec v1 with its reward model and IPA, `:tr` the technical report's
system with item alignment, all pathways, P-Score and ECPO.  Expect: all stages
complete, and reports in runs/smoke/ and runs/smoke_tr/.  The numbers only show
that the models learn; the claims are elsewhere.
"""

from typing import Any

import ml_collections

from experiments import onerec_tr_synthetic
from onerec_jax import config as config_lib

VARIANTS = ('v1', 'tr')


def get_config(variant: str = 'v1') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'smoke:{variant} is not one of {VARIANTS}.')
  return _v1() if variant == 'v1' else _technical_report()


def _technical_report() -> ml_collections.ConfigDict:
  config: Any = onerec_tr_synthetic.get_config('small')
  config.name = 'smoke_tr'
  config.stages = (
    'prepare', 'embed', 'tokenize', 'lifelong', 'pretrain', 'p_score',
    'reinforce', 'evaluate', 'report',
  )  # fmt: skip
  config.data.synthetic.num_users = 300
  config.data.synthetic.num_items = 100

  config.embed.alignment.enabled = True
  config.embed.alignment.num_queries = 2
  config.embed.alignment.dim = 32
  config.embed.alignment.num_layers = 1
  config.embed.alignment.num_heads = 2
  config.embed.alignment.mlp_dim = 64
  config.embed.alignment.caption_tokens = 8
  config.embed.alignment.caption_dim = 32
  config.embed.alignment.batch_size = 64
  config.embed.alignment.num_steps = 60

  config.model.encoder_layers = 1
  config.model.decoder_layers = 1
  config.model.pathways.lifelong_length = 8
  config.model.pathways.lifelong_queries = 2
  config.model.pathways.lifelong_layers = 1
  config.lifelong.max_cluster_size = 6
  config.lifelong.snapshot_events = 20
  config.lifelong.workers = 1

  config.pretrain.num_steps = 60
  config.pretrain.log_every_steps = 20
  config.pretrain.evaluate_every_steps = 60
  config.pretrain.evaluate_examples = 128
  config.pretrain.checkpoint_every_steps = 60
  config.p_score.num_steps = 100
  config.p_score.log_every_steps = 50
  config.p_score.evaluate_every_steps = 50
  config.p_score.checkpoint_every_steps = 50
  config.reinforcement.group_size = 8
  config.reinforce.num_steps = 20
  config.reinforce.evaluate_every_steps = 10
  config.reinforce.evaluate_examples = 64
  config.reinforce.checkpoint_every_steps = 10

  config.evaluate.bootstrap_samples = 100
  config.evaluate.max_examples = 200
  config.evaluate.decoding.num_beams = 10
  config.evaluate.p_score.num_items = 8
  config.evaluate.p_score.pass_at = (1, 8)
  config.evaluate.p_score.max_users = 100
  config.evaluate.p_score.legality_users = 50
  return config


def _v1() -> ml_collections.ConfigDict:
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
