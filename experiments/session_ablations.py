"""Session-wise generation: OneRec trained on m = 1, 2 and 5 target items.

  python -m onerec_jax.main sweep \
    --config=experiments/session_ablations.py:movielens \
    --workdir=runs/session_movielens

Variants: kuairand (--config.data.path=DIR, the unpacked KuaiRand-Pure folder)
and movielens.  Every row answers test users with eight sessions of five items,
which one reward model judges, as in Table 1; rows with m < 5 cannot generate
such a session and give stretches of their ranked list.  Equal steps and batches
of examples, so that a larger m sees more targets for more time; three seeds.
On MovieLens m = 1 is 3 % above m = 5 by the mean reward, less than one seed is
from another; only m = 5 is legal without a trie.  On KuaiRand m = 5 is 1 %
above m = 1 by the mean and 6 % below by the best of eight sessions.
Data, model and reward model are those of table1_kuairand.py:small and
quickstart.py: 2 to 5 minutes a row and seed on two CPU cores, less on a GPU.
"""

from typing import Any

import ml_collections

from experiments import alignment_rows as rows
from experiments import quickstart
from experiments import table1_kuairand
from onerec_jax import config as config_lib

VARIANTS = ('kuairand', 'movielens')

_LENGTHS = (1, 2, 5)


def get_config(variant: str = 'movielens') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'Unknown variant {variant!r}; known: {VARIANTS}.')
  config: Any
  if variant == 'kuairand':
    config = table1_kuairand.get_config('small')
    model = table1_kuairand.LARGE_MODEL
  else:
    config = quickstart.get_config()
    model = {}
  config.name = f'session_ablations_{variant}'
  config.stages = config_lib.V1_STAGES
  config.data.sessions.items_per_session = max(_LENGTHS)
  # A session of five leaves no room for items that begin it.
  config.evaluate.decoding.continue_items = 0
  config.preference.rollout.continue_items = 0
  titles = {'kuairand': 'KuaiRand-Pure', 'movielens': 'MovieLens-100K'}
  config.sweep.title = f'{titles[variant]}, length of the target session'
  config.sweep.seeds = (0, 1, 2)
  config.sweep.base = _name(1)
  config.sweep.rows = tuple(_row(length, model) for length in _LENGTHS)
  return config


def _name(length: int) -> str:
  return f'OneRec, m = {length}'


def _row(length: int, model: dict[str, Any]) -> dict[str, Any]:
  row = rows.onerec(_name(length), None, model=model)
  row['overrides']['data'] = {'sessions': {'items_per_session': length}}
  return row
