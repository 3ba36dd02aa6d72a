"""OneRec, SASRec and the floors on an Amazon set, from kept figures.

Those of public_benchmark.py, the whole or what runs on a CPU.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from experiments import measured_runs
from onerec_jax.stages import published
from onerec_jax.stages import report_next_item_rows as next_item_rows

SETS = ('Beauty', 'Sports')
OURS, SASREC = 'OneRec', 'SASRec'
# Rows of the sweep, as they are shown.
_ROWS = {
  'OneRec': f'{OURS} + transitions',
  'OneRec, the model alone': f'{OURS} alone',
  'SASRec, cross-entropy, and transitions': f'{SASREC} + transitions',
  'SASRec, cross-entropy': f'{SASREC} alone',
}

# Metric -> {'mean', 'low', 'high'}.
Figures = Mapping[str, Mapping[str, float]]
# Samples seen, recall@10 of validation users.
Curve = tuple[Sequence[float], Sequence[float]]


class NextItem(NamedTuple):
  """Of test users."""

  seeds: int
  ours: dict[str, Figures]  # by title, final lists first
  sasrec: dict[str, Figures]  # empty: not measured
  floors: dict[str, Figures]
  curves: dict[str, Curve]  # by method

  def best_floor(self) -> Figures:
    """Returns that with the highest recall@10."""
    return max(self.floors.values(), key=lambda f: f['recall@10']['mean'])


def read(data: str) -> NextItem | None:
  """Returns what is kept of one of `SETS`; None: nothing."""
  name = data.lower()
  for sweep in (f'public_benchmark_{name}', f'public_benchmark_{name}_cpu'):
    run = measured_runs.read(sweep)
    if run is not None:
      return _of_sweep(run['sweep'])
  return None


def published_figures(data: str, method: str) -> Mapping[str, float]:
  """Returns metric -> value of TIGER's table (2305.05065)."""
  return published.NEXT_ITEM[f'{data}/{method}']


def _of_sweep(sweep: Mapping[str, Any]) -> NextItem:
  rows = {row['name']: row for row in sweep['rows']}
  of = {
    kind: {
      title: rows[name]['figures']
      for name, title in _ROWS.items()
      if title.startswith(kind) and name in rows
    }
    for kind in (OURS, SASREC)
  }
  curves: dict[str, Curve] = {}
  for name, title in _ROWS.items():
    curve = next_item_rows.mean_curve(rows[name]) if name in rows else None
    if curve is not None:  # that of rows with one training is the same
      curves[title.partition(' ')[0]] = curve
  return NextItem(
    seeds=len(sweep['seeds']),
    ours=of[OURS],
    sasrec=of[SASREC],
    floors={row['name']: row['figures'] for row in sweep['floors']},
    curves=curves,
  )
