"""OneRec on Amazon 2014, TIGER protocol: leave-one-out, full ranking.

  python -m onerec_jax.main run --config=experiments/onerec_amazon.py:beauty \
    --config.data.path=DIR --workdir=runs/onerec_amazon

Variants: beauty, sports.  Test users, three seeds (public_benchmark.py),
recall@10 / NDCG@10: on Beauty .102 / .062, without counted transitions .098 /
.057, above every floor (.084 / .052) and SASRec with cross-entropy (.092 /
.056, with the same counts .097 / .060); on Sports .063 / .037 and .056 / .031
(floor .051 / .032, SASRec .052 / .031, with counts .059 / .035).  DIR holds
Beauty.sequences.txt and .items.jsonl (or Sports_and_Outdoors.*).

What makes it strong where there are 12,000 items and 130,000 targets.
Probabilities over the codes that follow in the catalogue, and code embeddings
that start at the codebooks: without the two, recall@10 of validation users is
.042 after 1,000 steps, with them .095.  Codebooks as large against the
catalogue as the paper's: 2,048 codes on the first of two levels, six items on
each, so that the first code nearly names the item and rare items share it with
those bought with them.  Vectors of behaviour and text; no two items share an
ID.  Sessions of ten targets from a random place: every event is predicted, also
from within a session, and a request goes on from the last item (from none, two
or three it is worse on validation users).  Dropout, weight decay, averaged
parameters; the step is chosen on 4,096 validation users.  Dropout .2 instead of
.3 brought recall@10 of these from .119 to .126; label smoothing nothing.

Embeddings of whole IDs that start at what the codes leave over of an item's
vector (a third of the variance on Beauty, two fifths on Sports), and scores of
whole items learned beside the codes: test users .0951 / .0556 to .0989 / .0575
on Beauty, .0542 / .0296 to .0555 / .0305 on Sports, in 2,500 steps instead of
4,000.  IDs that start at random overfit (.0534 / .0289 on Sports).  Dropout .3
and weight decay .2 change nothing on Sports (.0552 / .0307).

Counted transitions (decoding/transitions.py) hold what the model does not: on
all validation users, Beauty .0730 to .0776 and Sports .0389 to .045 by NDCG@10.
Weights of .4 to .6 are level there; more than the beam's 50 hypotheses, or
candidates of the counts' own, bring nothing.  What they add is in the users
whose next item has a larger id than the last: the files sort what was bought on
one day by id.

A step is 37 GFLOPs at 5 items of history and 60 at 20 (padded); 2,500 take some
35 minutes on one CPU core.
"""

import ml_collections

from experiments import amazon_data
from onerec_jax import config as config_lib

VARIANTS = ('beauty', 'sports')


def get_config(variant: str = 'beauty') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'Unknown variant {variant!r}; known: {VARIANTS}.')
  config = config_lib.default_config()
  config.name = f'onerec_amazon_{variant}'

  amazon_data.set_data(config, variant, history_length=20, items_per_session=10)

  amazon_data.set_items(config)
  config.tokenizer.levels = 2
  config.tokenizer.codes_per_level = 2048

  config.model.embed_dim = 128
  config.model.num_heads = 4
  config.model.head_dim = 32
  config.model.encoder_layers = 2
  config.model.decoder_layers = 2
  config.model.mlp_dim = 512
  config.model.dropout_rate = 0.2
  config.model.attention_dropout_rate = 0.0
  config.model.history_separator = False
  config.model.history_recency = True
  config.model.normalise_over = 'catalogue'
  config.model.code_init = 'codebook'
  config.model.id_buckets = 2**16
  config.model.moe.num_experts = 8
  config.model.moe.expert_dim = 256
  config.model.scan_layers = False

  config.pretrain.batch_size = 256
  config.pretrain.num_steps = 2500
  config.pretrain.ntp_reduction = 'mean'
  config.pretrain.item_loss_weight = 0.5
  config.pretrain.ema_decay = 0.998
  config.pretrain.optimizer.name = 'adamw'
  config.pretrain.optimizer.peak_learning_rate = 3e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.optimizer.warmup_steps = 200
  config.pretrain.optimizer.final_learning_rate_fraction = 0.02
  config.pretrain.optimizer.b2 = 0.98
  config.pretrain.optimizer.weight_decay = 0.05
  config.pretrain.pipeline.length_buckets = (5, 20)
  config.pretrain.log_every_steps = 100
  config.pretrain.evaluate_every_steps = 250
  config.pretrain.evaluate_examples = 4096
  config.pretrain.checkpoint_every_steps = 250

  config.evaluate.batch_size = 128
  config.evaluate.decoding.continue_items = 1
  config.evaluate.decoding.item_weight = 1.0
  config.evaluate.decoding.transition_weight = 0.5
  return config
