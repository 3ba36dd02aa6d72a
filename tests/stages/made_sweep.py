"""What a sweep that sessions judge leaves, made up; no test by itself."""

import numpy as np

from onerec_jax.stages import published

TARGETS = ('swt', 'vtr', 'wtr', 'ltr')
# Row -> row of Table 1 it is put beside.
ROWS = {
  'SASRec': 'SASRec',
  'BERT4Rec': 'BERT4Rec',
  'FDSA': 'FDSA',
  'TIGER small': 'TIGER-0.1B',
  'TIGER': 'TIGER-1B',
  'OneRec small': 'OneRec-0.1B',
  'OneRec': 'OneRec-1B',
  'OneRec + DPO': '+DPO',
  'OneRec + IPO': '+IPO',
  'OneRec + cDPO': '+cDPO',
  'OneRec + rDPO': '+rDPO',
  'OneRec + CPO': '+CPO',
  'OneRec + SimPO': '+simPO',
  'OneRec + S-DPO': '+S-DPO',
  'OneRec + IPA': '+IPA',
}
FEW = {'OneRec': 'OneRec-1B', 'IPA': '+IPA', 'SASRec': 'SASRec'}
BASE = 'OneRec'


def result(
  rows=ROWS, *, truth: bool = True, seeds: int = 3, levels=None, per_round=True
) -> dict:
  """The JSON of `sweep.run`, from the published figures.

  Args:
    rows: name -> published row or None.
    truth: whether the world is simulated.
    seeds: number of seeds.
    levels: name -> value by which predicted rewards of a row are multiplied.
    per_round: whether rounds hold true rewards.
  """
  rng = np.random.default_rng(0)
  columns = [f'{t}_{p}' for t in ('reward', *TARGETS) for p in ('mean', 'max')]
  if truth:
    columns += [f'true_{c}' for c in columns]
  means = {}
  for name, source in rows.items():
    row = published.TABLE_1[published.find(source) or published.BASE]
    scale = (levels or {}).get(name, 1.0)
    values = {c: row[c][0] * scale for c in published.COLUMNS}
    for part in ('mean', 'max'):
      values[f'reward_{part}'] = sum(values[f'{t}_{part}'] for t in TARGETS)
    for c in list(values):
      values[f'true_{c}'] = 0.5 * values[c]
    means[name] = values
  table = []
  for name, source in rows.items():
    figs, differences = {}, {}
    for c in columns:
      mean, before = means[name][c], means[BASE][c]
      half = 0.004 * before * (name != BASE)
      figs[c] = {
        'mean': mean, 'std': 0.05 * mean, 'low': 0.97 * mean,
        'high': 1.03 * mean,
      }  # fmt: skip
      differences[c] = {
        'mean': mean - before, 'low': mean - before - half,
        'high': mean - before + half, 'share_above_zero': 0.9,
      }  # fmt: skip
    aligned = '+' in (source or '')
    rounds = [
      {
        'round': t,
        'rollouts': {
          'pairs': 40, 'skipped': {'equal_rewards': 2}, 'legal': 100,
          'reward_sum': 100 * (0.7 + 0.03 * t + 0.01 * rng.normal()),
          **(
            {'true_reward_sum': 100 * (0.66 + 0.01 * t)}
            if truth and per_round
            else {}
          ),
        },
        'final': {},
      }
      for t in (1, 2, 3)
    ]  # fmt: skip
    table.append(
      {
        'name': name,
        'published': source,
        'users': 500 * seeds,
        'users_without_session': 0,
        'figures': figs,
        'difference': differences,
        'seeds': [
          {c: means[name][c] * (1 + 0.01 * rng.normal()) for c in columns}
          for _ in range(seeds)
        ],
        'legality': [
          {} if source in published.ITEM_LEVEL
          else {'free_sessions': 0.93, 'free_items': 0.985}
          for _ in range(seeds)
        ],
        'num_parameters': 1_234_567,
        'seconds': 71.5,
        'rounds': [rounds if aligned else None for _ in range(seeds)],
      }
    )  # fmt: skip
  return {
    'title': 'Table 1 on a simulated world',
    'base': BASE,
    'seeds': list(range(seeds)),
    'columns': columns,
    'seconds': 600.0,
    'sessions_per_user': 8,
    'items_per_session': 5,
    'reward_model': [
      {
        'targets': [
          {'name': t, 'definition': '', 'held_out': {'sessions': 0}}
          for t in TARGETS
        ]
      }
    ],
    'rows': table,
  }


def row_of(sweep: dict, name: str) -> dict:
  """The row of this name."""
  return next(r for r in sweep['rows'] if r['name'] == name)


def set_difference(row: dict, column: str, mean: float, half: float) -> None:
  """Overwrites one difference to the base."""
  row['difference'][column] |= {
    'mean': mean, 'low': mean - half, 'high': mean + half,
  }  # fmt: skip


def with_broken_row() -> dict:
  """A sweep with the row 'broken', whose model made no legal session."""
  sweep = result({BASE: 'OneRec-1B', 'broken': '+IPA', 'IPA': '+DPO'})
  row = row_of(sweep, 'broken')
  for kind in ('figures', 'difference'):
    for values in row[kind].values():
      values.update(dict.fromkeys(values, float('nan')))
  row['seeds'] = [dict.fromkeys(s, float('nan')) for s in row['seeds']]
  return sweep
