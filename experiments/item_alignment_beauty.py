"""Item text aligned to behaviour on Amazon Beauty 2014 (2506.13695, 2.1.1).

  python -m onerec_jax.main run --config=experiments/item_alignment_beauty.py \
    --config.data.path=DIR --workdir=runs/item_alignment_beauty

A QFormer turns the MiniLM vector of an item's text into four vectors that are
near those of the items the same users took, learnt from training events alone.
embed/result.json has, under alignment/quality, how often the next item is among
the ten unseen ones nearest to the last, unaligned and aligned: expect .061 and
.086 for validation, on which the settings were chosen, and .059 and .078 for
test, 1.31 times (95 %: 1.27 to 1.36).  tokenizer/result.json compares RQ-VAE
with k-means, plain and balanced, on the aligned vectors: expect k-means to
reconstruct better (.134 and .131 of the squared norm are lost, RQ-VAE .174) and
a higher entropy of the first level (5.43 and 5.53 nats, RQ-VAE 5.18).  Six
minutes of CPU time, about nine on two cores that are shared.

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
