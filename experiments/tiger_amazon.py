"""TIGER on Amazon 2014, as published: leave-one-out, full ranking.

  python -m onerec_jax.main run --config=experiments/tiger_amazon.py:beauty \
    --config.data.path=DIR --workdir=runs/tiger_beauty

Variants: beauty, sports.  Published (2305.05065, table 1): recall@5 / ndcg@5 /
recall@10 / ndcg@10 of .0454 / .0321 / .0648 / .0384 on Beauty and .0264 / .0181
/ .0400 / .0225 on Sports; expect .063 and .039 recall@10, which independent
reproductions reach, and at least 80 % of every codebook in use.  DIR holds
Beauty.sequences.txt and .items.jsonl (or Sports_and_Outdoors.*).

Not as published, and why:
  Item text is encoded by MiniLM-L6 (optional packages: see the README), as
  Sentence-T5 is in no package; vectors of one's own go in as
  --config.embed.parts="({'kind': 'array', 'dim': 768, 'path': FILE},)".
  The RQ-VAE is trained with the cures of its collapse: vectors of unit scale,
  AdamW instead of Adagrad at 0.4, dead codes drawn anew.
  Adam replaces Adafactor, so the learning rate peaks at 1e-3, not 0.01, with
  the published shape: 10,000 steps to the peak, then inverse square root.
200,000 steps of 256 are days on a few CPU cores: take an accelerator, or cut
--config.pretrain.num_steps to 20,000, after which Beauty begins to overfit.
"""

import ml_collections

from experiments import amazon_data
from onerec_jax import config as config_lib

VARIANTS = ('beauty', 'sports')


def get_config(variant: str = 'beauty') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'Unknown variant {variant!r}; known: {VARIANTS}.')
  config = config_lib.default_config()
  config.name = f'tiger_{variant}'

  amazon_data.set_data(config, variant, history_length=20, items_per_session=1)

  config.embed.parts = ({'kind': 'minilm', 'dim': 384},)
  config.tokenizer.levels = 3
  config.tokenizer.codes_per_level = 256
  config.tokenizer.quantizer = 'rqvae'
  config.tokenizer.collision = 'append'
  config.tokenizer.limits.min_utilisation = 0.8

  config.model.embed_dim = 128
  config.model.num_heads = 6
  config.model.head_dim = 64
  config.model.encoder_layers = 4
  config.model.decoder_layers = 4
  config.model.mlp_dim = 1024
  config.model.mlp_activation = 'relu'
  config.model.moe.enabled = False
  config.model.dropout_rate = 0.1
  config.model.attention_dropout_rate = 0.1
  config.model.history_separator = False
  config.model.user_buckets = 2000

  config.pretrain.batch_size = 256
  config.pretrain.num_steps = 200_000
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.optimizer.peak_learning_rate = 1e-3
  config.pretrain.optimizer.schedule = 'inverse_sqrt'
  config.pretrain.optimizer.warmup_steps = 10_000
  config.pretrain.pipeline.windows = 'all'
  config.pretrain.pipeline.length_buckets = (4, 7, 10, 14, 20)
  config.pretrain.log_every_steps = 500
  config.pretrain.evaluate_every_steps = 2500
  config.pretrain.evaluate_examples = 4096
  config.pretrain.checkpoint_every_steps = 2500

  config.evaluate.batch_size = 128
  config.evaluate.decoding.num_beams = 50
  config.evaluate.decoding.constrain = 'none'
  return config
