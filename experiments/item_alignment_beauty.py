"""Item text aligned to behaviour on Amazon Beauty 2014 (technical report, 2.1.1).

  python -m onerec_jax.main run --config=experiments/item_alignment_beauty.py \
    --config.data.path=DIR --workdir=runs/item_alignment_beauty

A QFormer turns the MiniLM vector of an item's text into four vectors that are
near those of the items the same users took, learnt from training events alone.
embed/result.json has, under alignment/quality, the rate at which the next item
is among the ten nearest to the last one, unaligned and aligned, for validation
(on which the settings were chosen) and test: expect 1.3 times.  tokenizer/
result.json compares RQ-VAE with k-means, plain and balanced, on the aligned
vectors: reconstruction, use and entropy of every level, agreement with the
categories.  About six minutes on two CPU cores.

DIR holds Beauty.sequences.txt and Beauty.items.jsonl.  MiniLM-L6 needs its
optional packages (see the README) and takes two minutes more; vectors of one's
own, one or several per item, go in as
--config.embed.parts="({'kind': 'array', 'dim': 384, 'path': FILE},)".
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'item_alignment_beauty'
  config.stages = ('prepare', 'embed', 'tokenize')

  config.data.source = 'amazon_sequences'
  config.data.path = 'data/amazon2014'
  config.data.variant = 'Beauty'
  config.data.history_length = 20

  config.embed.parts = ({'kind': 'minilm', 'dim': 384},)
  config.embed.alignment.enabled = True
  config.embed.alignment.dim = 128
  config.embed.alignment.num_layers = 2
  config.embed.alignment.num_heads = 4
  config.embed.alignment.mlp_dim = 256
  config.embed.alignment.temperature = 0.06
  # Of Beauty's short histories the next item is what counts: a long window
  # pairs items that are alike already.
  config.embed.alignment.user_to_item_window = 3
  config.embed.alignment.caption_weight = 0.1
  config.embed.alignment.caption_tokens = 8
  config.embed.alignment.caption_vocabulary = 1024
  config.embed.alignment.caption_dim = 64
  config.embed.alignment.batch_size = 512
  config.embed.alignment.num_steps = 1400
  config.embed.alignment.peak_learning_rate = 3e-3

  config.tokenizer.codes_per_level = 256
  config.tokenizer.quantizer = 'rqvae'
  config.tokenizer.collision = 'reassign'
  config.tokenizer.rqvae.hidden_dims = (256, 128)
  config.tokenizer.rqvae.num_steps = 1000
  return config
