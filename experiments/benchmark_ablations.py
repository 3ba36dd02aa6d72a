"""What makes OneRec's figures on Amazon Beauty: codes, vectors, experts.

  python -m onerec_jax.main sweep \
    --config=experiments/benchmark_ablations.py:codes --config.data.path=DIR \
    --workdir=runs/ablation_codes

`:codes` balanced against plain k-means against RQ-VAE at 3 x 256 codes of the
same vectors, and the 2 x 2,048 of onerec_amazon.py; `:vectors` behaviour, text
and both; `:experts` MoE against a dense feed-forward of equal active FLOPs.
Three seeds, protocol and floors of public_benchmark.py.  The model alone ranks,
without counted transitions.  A row costs what OneRec does there: 2,500 steps a
seed.  Measured, recall@10 of one seed at 1,000 steps: 2 x 2,048 codes .091; at
3 x 256 balanced .084, plain k-means .083, RQ-VAE .074; behaviour alone .087,
text alone .054; dense .085.
"""

from typing import Any

import ml_collections

from experiments import onerec_amazon
from experiments import public_benchmark

VARIANTS = ('codes', 'vectors', 'experts')

_TITLES = {
  'codes': 'Amazon Beauty 2014, semantic IDs',
  'vectors': 'Amazon Beauty 2014, item vectors',
  'experts': 'Amazon Beauty 2014, experts',
}


def get_config(variant: str = 'codes') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'Unknown variant {variant!r}; known: {VARIANTS}.')
  config: Any = onerec_amazon.get_config('beauty')
  rows = _rows(variant, config)
  public_benchmark.set_ranking(
    config, title=_TITLES[variant], base=rows[0]['name']
  )
  config.name = f'benchmark_ablations_{variant}'
  # It is the model that is taken apart.
  config.evaluate.decoding.transition_weight = 0.0
  config.sweep.rows = rows
  return config


def _row(name: str, **overrides: Any) -> dict[str, Any]:
  return {'name': name, 'overrides': overrides}


def _rows(variant: str, config: Any) -> tuple[dict[str, Any], ...]:
  """The recipe itself first, to which the others are compared."""
  match variant:
    case 'codes':
      size = {'levels': 3, 'codes_per_level': 256}
      return (
        _row('balanced k-means, 2 x 2,048'),
        *(
          _row(f'{name}, 3 x 256', tokenizer={**size, 'quantizer': quantizer})
          for name, quantizer in (
            ('balanced k-means', 'balanced_kmeans'),
            ('k-means', 'kmeans'),
            ('RQ-VAE', 'rqvae'),
          )
        ),
      )
    case 'vectors':
      behaviour, text = config.embed.parts
      return (
        _row('behaviour and text'),
        _row('behaviour', embed={'parts': (behaviour,)}),
        _row('text', embed={'parts': (text,)}),
      )
    case _:
      # A token meets top_k experts: one feed-forward as wide as these.
      active = config.model.moe.top_k * config.model.moe.expert_dim
      return (
        _row(f'{config.model.moe.num_experts} experts'),
        _row('dense', model={'mlp_dim': active, 'moe': {'enabled': False}}),
      )
