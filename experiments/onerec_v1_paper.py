"""OneRec v1 at the published sizes (arXiv:2502.18965): a recipe for pods.

  python -m onerec_jax.main run --config=experiments/onerec_v1_paper.py \
    --config.data.tables.interactions=gs://… --workdir=gs://…

3 x 8192 codes, 256 history items, sessions of 5, 24 experts with top-2, Adam
2e-4, beam 128.  Widths and depths are not published: those of spec §14.3.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'onerec_v1_paper'

  config.data.source = 'tables'
  config.data.tables.interactions = 'interactions.parquet'
  config.data.history_length = 256
  config.data.sessions.kind = 'id'
  config.data.sessions.items_per_session = 5
  config.data.sessions.filter.enabled = True
  config.data.split.kind = 'by_time'
  config.data.split.validation_start = '2025-01-30'
  config.data.split.test_start = '2025-01-31'

  config.tokenizer.codes_per_level = 8192

  config.model.embed_dim = 512
  config.model.num_heads = 8
  config.model.head_dim = 64
  config.model.encoder_layers = 6
  config.model.decoder_layers = 6
  config.model.mlp_dim = 1024
  config.model.moe.num_experts = 24
  config.model.moe.expert_dim = 1024
  config.model.remat = True
  config.model.compute_dtype = 'bfloat16'

  config.pretrain.batch_size = 4096
  config.pretrain.num_steps = 100_000
  config.pretrain.evaluate_every_steps = 5000
  config.pretrain.checkpoint_every_steps = 2500
  config.pretrain.pipeline.length_buckets = (64, 128, 256)
  config.mesh.fsdp = 4

  config.evaluate.decoding.num_beams = 128
  config.evaluate.decoding.num_items = 5
  return config
