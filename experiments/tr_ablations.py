"""The technical report's ablations, on the simulated world.

  python -m onerec_jax.main sweep --config=experiments/tr_ablations.py:rl \
    --workdir=runs/tr_rl

All rows are judged by one P-Score model and by the world's law; every table
shows Pass@K.  `:rl` RSFT alone against ECPO, GRPO and GBPO; `:format` without
format reward, with K random items and with the K most probable; `:group_size`;
`:rollouts` beam against sampling; `:generator` on- against off-policy;
`:pathways` features and pathways on and off; `:codebook` sizes; `:item_input`
semantic IDs against item ids.  World and budget: onerec_tr_synthetic.py.
"""

from typing import Any

import ml_collections

from experiments import onerec_tr_synthetic
from onerec_jax import config as config_lib

VARIANTS = (
  'rl', 'format', 'group_size', 'rollouts', 'generator', 'pathways',
  'codebook', 'item_input',
)  # fmt: skip

_BASE = 'pre-trained'
_BEFORE = tuple(
  s for s in config_lib.TR_STAGES if s not in ('p_score', 'reinforce')
)


def _row(name: str, **overrides: Any) -> dict[str, Any]:
  return {'name': name, 'overrides': overrides}


def _reinforced(name: str, **settings: Any) -> dict[str, Any]:
  return _row(name, reinforcement=settings)


_RSFT = _reinforced('RSFT alone', weight=0.0, format_weight=0.0)


def _rows(variant: str) -> tuple[dict[str, Any], ...]:
  before = _row(_BASE, stages=_BEFORE)
  match variant:
    case 'rl':
      return (
        before,
        _RSFT,
        *(_reinforced(n.upper(), loss=n) for n in ('ecpo', 'grpo', 'gbpo')),
      )
    case 'format':
      # With λ = 1 next-token prediction keeps the IDs legal by itself.
      strong = {'weight': 10.0, 'format_weight': 10.0}
      return (
        before,
        _RSFT,
        _reinforced('ECPO, no format reward', weight=10.0, format_weight=0.0),
        _reinforced('ECPO, 5 at random', **strong, format_choice='random'),
        _reinforced('ECPO, top 5', **strong, format_choice='top'),
      )
    case 'group_size':
      return (
        before,
        _RSFT,
        *(_reinforced(f'G = {g}', group_size=g) for g in (8, 32, 128)),
      )
    case 'rollouts':
      return (
        before,
        _RSFT,
        _reinforced('beam', rollouts='beam'),
        _reinforced(
          'top-k + top-p', rollouts='sample', sample_top_k=8, sample_top_p=0.95
        ),
      )
    case 'generator':
      return (
        before,
        _RSFT,
        _reinforced('on-policy', generator='current'),
        _reinforced('off-policy', generator='pretrained'),
      )
    case 'pathways':
      none: dict[str, Any] = {
        'short_length': 0,
        'user_features': (),
        'item_features': (),
        'event_features': (),
        'labels': (),
        'age_dim': 0,
      }
      return (
        _row('positives only', stages=_BEFORE, model={'pathways': none}),
        _row(
          'without features',
          stages=_BEFORE,
          model={
            'pathways': {k: v for k, v in none.items() if k != 'short_length'}
          },
        ),
        _row(
          'without short-term',
          stages=_BEFORE,
          model={'pathways': {'short_length': 0}},
        ),
        _row('all', stages=_BEFORE),
        # Reinforced, a model can use what it knows of the user for more than
        # to go on as the log does.
        _row('positives only + ECPO', model={'pathways': none}),
        _row('all + ECPO'),
      )
    case 'codebook':
      return tuple(
        _row(
          f'{codes} codes per level',
          stages=_BEFORE,
          tokenizer={'codes_per_level': codes},
        )
        # Four times as many as the report; 8 could not keep 400 items apart.
        for codes in (16, 32, 64)
      )
    case 'item_input':
      return tuple(
        _row(
          f'{kind} input',
          stages=_BEFORE,
          model={'pathways': {'item_input': kind}},
        )
        for kind in ('semantic_id', 'item_id')
      )
    case _:
      raise ValueError(f'tr_ablations:{variant} is not one of {VARIANTS}.')


def get_config(variant: str = 'rl') -> ml_collections.ConfigDict:
  rows = _rows(variant)
  config: Any = onerec_tr_synthetic.get_config()
  config.name = f'tr_ablations_{variant}'
  config.sweep.title = f'Technical report: {variant.replace("_", " ")}'
  config.sweep.judge = 'items'
  config.sweep.rows = rows
  # The claims are about what reinforcement adds to RSFT.
  names = [row['name'] for row in rows]
  rsft = _RSFT['name']
  config.sweep.base = rsft if rsft in names else names[0]
  return config
