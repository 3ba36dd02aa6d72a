"""The public benchmark: TIGER, SASRec and OneRec on Amazon 2014.

  python -m onerec_jax.main sweep \
    --config=experiments/public_benchmark.py:beauty --config.data.path=DIR \
    --workdir=runs/public_benchmark_beauty

One table: OneRec, SASRec with the loss that makes it strong and with the
published one, TIGER as published, and all counting floors; next item of every
user, whole catalogue ranked, three seeds, the published rows beside; OneRec and
SASRec alone and with counted transitions.  Claim: TIGER reaches its published
figures (not measured), OneRec is above every other row (measured by beauty_cpu
and sports_cpu, experiments/README.md).

A killed sweep goes on where it was; on another machine its folder rows/ is
enough, 2 MB a row and seed, and only the row it was at begins anew.  A table is
written after every seed.  Rows are the recipes {tiger,sasrec,onerec}_amazon.py,
but for the steps.

Variants: beauty, sports; beauty_cpu, sports_cpu: OneRec and SASRec with
cross-entropy alone, at their recipes' steps, for a machine without accelerator;
`tuning`: what SASRec's and OneRec's settings are to be chosen by, six each on
validation users; `rehearsal`: 20 steps a row, to see that all of it runs.
TIGER reads MiniLM vectors (README), or those of a file:
--config.embed.parts="({'kind': 'array', 'dim': 384, 'path': FILE},)".

Cost of beauty, estimated, not measured: a seed's 48,500 steps are 5 PFLOPs, 4.5
of them TIGER's.  On an H200-class GPU small kernels bound it: at 5 ms a step 5
minutes a seed, and as much for compiling, validating and ranking.  On two CPU
cores (90 GFLOP/s) 16 hours a seed; beauty_cpu and sports_cpu an hour a seed on
one core.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import amazon_data
from experiments import onerec_amazon
from experiments import recipe_rows
from experiments import sasrec_amazon
from experiments import tiger_amazon

VARIANTS = (
  'beauty', 'sports', 'beauty_cpu', 'sports_cpu', 'tuning', 'rehearsal',
)  # fmt: skip

BASE = 'OneRec'
_TIGER = 'TIGER'
_PUBLISHED_SASREC = 'SASRec, as published'
# TIGER's learning rate does not depend on how many steps follow, and on Beauty
# it overfits from 20,000 on: these are the first of its 200,000.
_STEPS = {'TIGER': 30_000, 'SASRec': 8000, BASE: 2500}
# SASRec's best step on validation users was 2,000, on both sets.
_CPU_STEPS = {**_STEPS, 'SASRec': 3000}
_NOT_ON_CPUS = (_TIGER, _PUBLISHED_SASREC)
_FEWEST_STEPS = dict.fromkeys(_STEPS, 20)
# Learning rate, dropout.
_SASREC_TUNING = tuple(
  (rate, dropout) for rate in (5e-4, 1e-3, 2e-3) for dropout in (0.3, 0.5)
)
# Levels, codes per level, dropout.
_ONEREC_TUNING = (
  (2, 2048, 0.2), (2, 2048, 0.1), (2, 2048, 0.3), (2, 1024, 0.2),
  (2, 4096, 0.2), (3, 256, 0.2),
)  # fmt: skip
_REHEARSAL = {
  'log_every_steps': 10,
  'evaluate_every_steps': 10,
  'evaluate_examples': 128,
  'checkpoint_every_steps': 10,
}


def get_config(variant: str = 'beauty') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'Unknown variant {variant!r}; known: {VARIANTS}.')
  data, _, machine = variant.partition('_')
  data = data if data in amazon_data.FILES else 'beauty'
  # TIGER is what rows differ from: its vectors need what not everyone has,
  # and a command line changes a base, not a row.
  config: Any = tiger_amazon.get_config(data)
  set_ranking(config, title=f'Amazon {data.capitalize()} 2014', base=BASE)
  config.name = f'public_benchmark_{variant}'
  steps = _STEPS
  if variant == 'tuning':
    _tune(config)
    return config
  if variant == 'rehearsal':
    _rehearse(config)
    steps = _FEWEST_STEPS
  if machine == 'cpu':
    steps = _CPU_STEPS
  config.pretrain.num_steps = steps['TIGER']
  rows = _rows(config, data, variant, steps)
  if machine == 'cpu':
    rows = tuple(row for row in rows if row['name'] not in _NOT_ON_CPUS)
  config.sweep.rows = rows
  return config


def _rows(
  config: Any, data: str, variant: str, steps: Mapping[str, int]
) -> tuple[dict[str, Any], ...]:
  """What a short window should see first stands first.

  Rows that differ in their decoding alone share one training, whose step is
  chosen as the first of them decodes: with counts, for OneRec and for SASRec.
  """
  name = data.capitalize()
  onerec: Any = onerec_amazon.get_config(data)
  sasrec = sasrec_amazon.get_config(data)
  ours = _training(variant, steps[BASE])
  theirs = _training(variant, steps['SASRec'])
  counted = onerec.evaluate.decoding.transition_weight
  return (
    recipe_rows.row(BASE, onerec, config, pretrain=ours),
    recipe_rows.row(
      f'{BASE}, the model alone',
      onerec,
      config,
      evaluate={'decoding': {'transition_weight': 0.0}},
      pretrain=ours,
    ),
    recipe_rows.row(
      'SASRec, cross-entropy, and transitions',
      sasrec,
      config,
      evaluate={'decoding': {'transition_weight': counted}},
      pretrain=theirs,
    ),
    recipe_rows.row('SASRec, cross-entropy', sasrec, config, pretrain=theirs),
    {'name': _TIGER, 'published': f'{name}/TIGER', 'overrides': {}},
    recipe_rows.row(
      _PUBLISHED_SASREC,
      sasrec_amazon.get_config(f'{data}_bce'),
      config,
      published=f'{name}/SASRec',
      pretrain=theirs,
    ),
  )


def set_ranking(config: Any, *, title: str, base: str) -> None:
  """Sets a sweep that the next item judges, as all tables on Amazon are.

  Args:
    config: the sweep's recipe.
    title: of the table.
    base: row that the others are compared to.
  """
  config.evaluate.top_k = (5, 10)
  config.sweep.title = title
  config.sweep.judge = 'next_item'
  config.sweep.seeds = (0, 1, 2)
  config.sweep.base = base


def _training(variant: str, steps: int) -> dict[str, Any]:
  """Returns the settings of `pretrain` that a variant changes in a recipe."""
  changed: dict[str, Any] = {'num_steps': steps}
  if variant == 'rehearsal':
    changed |= _REHEARSAL
  return changed


def _rehearse(config: Any) -> None:
  config.sweep.title += ', rehearsal'
  config.sweep.seeds = (0,)
  config.embed.parts = ({'kind': 'text', 'dim': 64},)
  config.tokenizer.rqvae.num_steps = 200
  config.tokenizer.limits.min_utilisation = 0.0
  config.pretrain.update(_REHEARSAL)
  config.evaluate.max_examples = 512


def _onerec_name(levels: int, codes: int, dropout: float) -> str:
  return f'OneRec {levels} x {codes}, dropout {dropout:g}'


def _tune(config: Any) -> None:
  """Sets six settings of each, at the steps of the table."""
  config.sweep.title += ', validation users'
  config.sweep.seeds = (0,)
  config.evaluate.split = 'valid'
  config.sweep.base = _onerec_name(*_ONEREC_TUNING[0])
  sasrec = sasrec_amazon.get_config('beauty')
  onerec = onerec_amazon.get_config('beauty')
  config.sweep.rows = (
    *(
      recipe_rows.row(
        f'SASRec lr {rate:g}, dropout {dropout:g}',
        sasrec,
        config,
        sequential={'dropout_rate': dropout},
        pretrain={
          'num_steps': _STEPS['SASRec'],
          'optimizer': {'peak_learning_rate': rate},
        },
      )
      for rate, dropout in _SASREC_TUNING
    ),
    *(
      recipe_rows.row(
        _onerec_name(levels, codes, dropout),
        onerec,
        config,
        tokenizer={'levels': levels, 'codes_per_level': codes},
        model={'dropout_rate': dropout},
        pretrain={'num_steps': _STEPS[BASE]},
      )
      for levels, codes, dropout in _ONEREC_TUNING
    ),
  )
