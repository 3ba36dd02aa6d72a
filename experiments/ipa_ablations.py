"""Ablations of IPA on the simulated world: share of pairs, and model size.

  python -m onerec_jax.main sweep --config=experiments/ipa_ablations.py:r_dpo \
    --workdir=runs/r_dpo

`:r_dpo` is Figure 4 of the paper, 1 to 5 % of the samples with a pair.
`:scale` aligns models of four sizes.  World, reward model and budget are those
of table1_synthetic.py:small.
"""

from typing import Any

import ml_collections

from experiments import alignment_rows as rows
from experiments import table1_synthetic

VARIANTS = ('r_dpo', 'scale')

_MODEL = table1_synthetic.LARGE_MODEL
_SIZES = (16, 32, 64, 96)  # embed_dim


def get_config(variant: str = 'r_dpo') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'ipa_ablations:{variant} is not one of {VARIANTS}.')
  config: Any = table1_synthetic.get_config('small')
  config.name = f'ipa_ablations_{variant}'
  config.pretrain.optimizer.peak_learning_rate = (
    table1_synthetic.LEARNING_RATES[rows.BASE]
  )
  config.preference.weight = table1_synthetic.WEIGHTS['+IPA']
  if variant == 'r_dpo':
    config.sweep.title = 'Share of samples with a pair (Figure 4)'
    config.sweep.base = rows.BASE
    config.sweep.rows = (
      rows.onerec(rows.BASE, 'OneRec-1B', model=_MODEL),
      *(
        rows.ipa(
          name=f'IPA r={percent}%',
          published='+IPA' if percent == 1 else None,
          model=_MODEL,
          sample_share=percent / 100,
        )
        for percent in range(1, 6)
      ),
    )
    return config
  sizes = [_model(size) for size in _SIZES]
  config.sweep.title = 'Model size, before and after IPA'
  config.sweep.base = _name(_SIZES[0])
  config.sweep.rows = (
    *(
      rows.onerec(_name(size), None, model=model)
      for size, model in zip(_SIZES, sizes, strict=True)
    ),
    *(
      rows.ipa(name=f'{_name(size)} + IPA', published=None, model=model)
      for size, model in zip(_SIZES, sizes, strict=True)
    ),
  )
  return config


def _name(size: int) -> str:
  return f'OneRec, D={size}'


def _model(size: int) -> dict[str, int]:
  return {'embed_dim': size, 'head_dim': size // 4, 'mlp_dim': 2 * size}
