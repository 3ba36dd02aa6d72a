"""The technical report's system on a simulated world with a known optimum.

  python -m onerec_jax.main run --config=experiments/onerec_tr_synthetic.py \
    --workdir=runs/onerec_tr_synthetic

Users with profiles, two pathways, one item per answer, a P-Score model and
ECPO with the format reward.  Claim: ECPO with P-Score raises the true reward
of generated items over the pre-trained model; experiments/README.md has the
figures.  `:small` is a world for tests and smoke runs.
"""

import ml_collections

from onerec_jax import config as config_lib

VARIANTS = ('full', 'small')


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'onerec_tr_synthetic:{variant} is not one of {VARIANTS}.')
  small = variant == 'small'
  config = config_lib.default_config()
  config.name = f'onerec_tr_synthetic_{variant}'
  config.stages = config_lib.TR_STAGES

  config.data.source = 'synthetic'
  config.data.synthetic.num_users = 600 if small else 8_000
  config.data.synthetic.num_items = 120 if small else 400
  config.data.synthetic.num_clusters = 12
  config.data.synthetic.events_per_user = 40
  # Half of the jumps ignore the taste: without such traffic nothing in the log
  # tells what users think of what they are never shown.
  config.data.synthetic.exploration = 0.5
  config.data.synthetic.profiles = True
  config.data.positive.any_of = ('long_view',)
  config.data.history_length = 24
  config.data.sessions.items_per_session = 1

  config.embed.parts = (
    {'kind': 'cooccurrence', 'dim': 48, 'weight': 1.0, 'window': 5},
    {'kind': 'categories', 'dim': 16, 'weight': 0.3},
  )
  config.tokenizer.codes_per_level = 16
  config.tokenizer.quantizer = 'kmeans'
  config.tokenizer.collision = 'reassign'

  model = config.model
  model.encoder = 'pathways'
  model.encoder_layers = 2
  model.decoder_layers = 2
  model.embed_dim = 32 if small else 64
  model.num_heads = 4
  model.head_dim = 8 if small else 16
  model.mlp_dim = 64 if small else 128
  model.dropout_rate = 0.1
  model.attention_dropout_rate = 0.0
  model.moe.num_experts = 4
  model.moe.expert_dim = 96
  model.moe.activation = 'swiglu'
  model.moe.gate = 'sigmoid'
  model.moe.dispatch = 'dense'
  model.scan_layers = False
  model.pathways.user_features = (
    {'column': 'age', 'dim': 16},
    {'column': 'gender', 'dim': 16},
  )
  model.pathways.item_features = (
    {'name': 'aid', 'prefix': 'author:', 'dim': 16, 'max_values': 1},
    {'name': 'tag', 'prefix': 'tag:', 'dim': 16, 'average': True},
  )
  model.pathways.event_features = (
    {'column': 'watch_time', 'dim': 16, 'buckets': 16},
  )
  model.pathways.labels = ('long_view', 'is_like', 'is_follow')
  model.pathways.label_dim = 16
  model.pathways.age_dim = 16
  model.pathways.age_buckets = 16
  model.pathways.short_length = 12
  model.pathways.positive_length = 16

  config.pretrain.batch_size = 128
  config.pretrain.num_steps = 200 if small else 2000
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.peak_learning_rate = 2e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 50
  config.pretrain.optimizer.final_learning_rate_fraction = 0.05
  config.pretrain.log_every_steps = 100
  config.pretrain.evaluate_every_steps = config.pretrain.num_steps // 2
  config.pretrain.evaluate_examples = 500
  config.pretrain.checkpoint_every_steps = config.pretrain.num_steps // 2
  config.pretrain.keep_checkpoints = 1

  config.p_score_model.towers = (
    {'name': 'lvtr', 'column': 'long_view'},
    {'name': 'ltr', 'column': 'is_like'},
    {'name': 'wtr', 'column': 'is_follow'},
  )
  config.p_score_model.embed_dim = 16 if small else 32
  config.p_score_model.history_length = 24
  config.p_score_model.search_items = 12
  config.p_score_model.tower_dims = (64, 32)
  config.p_score_model.fusion_dims = (64, 32)
  config.p_score.batch_size = 256
  config.p_score.num_steps = 300 if small else 2500
  config.p_score.optimizer.name = 'adamw'
  config.p_score.optimizer.weight_decay = 0.05
  config.p_score.optimizer.peak_learning_rate = 2e-3
  config.p_score.optimizer.schedule = 'cosine'
  config.p_score.optimizer.warmup_steps = 50
  config.p_score.log_every_steps = 100
  config.p_score.evaluate_every_steps = config.p_score.num_steps // 5
  config.p_score.evaluate_examples = 4000
  config.p_score.checkpoint_every_steps = config.p_score.num_steps // 5
  config.p_score.keep_checkpoints = 1

  rl = config.reinforcement
  rl.group_size = 16 if small else 32
  rl.user_share = 0.25
  rl.sync_every_steps = 10
  rl.format_samples = 5
  rl.rsft_column = 'watch_time'
  config.reinforce.batch_size = 64
  config.reinforce.num_steps = 40 if small else 300
  config.reinforce.ntp_reduction = 'mean'
  config.reinforce.optimizer.peak_learning_rate = 3e-4
  config.reinforce.optimizer.warmup_steps = 10
  config.reinforce.log_every_steps = 10
  config.reinforce.evaluate_every_steps = 20 if small else 50
  config.reinforce.evaluate_examples = 200
  config.reinforce.checkpoint_every_steps = 20 if small else 100
  config.reinforce.keep_checkpoints = 1

  config.evaluate.max_examples = 2000
  config.evaluate.decoding.num_beams = 20
  config.evaluate.p_score.num_items = 32
  config.evaluate.p_score.pass_at = (1, 8, 32)
  return config
