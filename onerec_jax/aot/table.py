"""The table of compiled recipes, from the JSON reports of `main aot`.

  python -m onerec_jax.aot.table tpu/aot/*.json

Prints Markdown; `python -m experiments.results --write` puts the table of
`FOLDER` into tpu/README.md.
"""

import json
import pathlib
import sys
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.aot import modes

FOLDER = pathlib.Path(__file__).parents[2] / 'tpu' / 'aot'

_HEADER = (
  'recipe', 'mode', 'slice', 'mesh (data, fsdp, expert)', 'batch',
  'HBM per device', 'compiled in', 'collectives, MB per device',
  'asynchronous: gathers, all', 'roofline',
)  # fmt: skip
_AXES = ('data', 'fsdp', 'expert')
_SHORT = {
  'all-gather': 'gather', 'all-reduce': 'reduce', 'reduce-scatter': 'scatter',
  'all-to-all': 'all-to-all', 'collective-permute': 'permute',
}  # fmt: skip


def read(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
  """Returns reports, recipe by recipe, the small sizes first."""
  reports = [json.loads(path.read_text()) for path in paths]
  return sorted(
    reports,
    key=lambda r: (
      r['experiment'].rpartition('_')[0],
      r['num_parameters'],
      modes.MODES.index(r['mode']),
      r['topology'],
    ),
  )


def of_recipes() -> str:
  """Returns the table of the committed reports, for tpu/README.md."""
  return markdown(read(FOLDER.glob('*.json'))).rstrip()


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table, one row per report, in their order.

  Args:
    reports: of `report.to_json`.
  """
  rows = [_HEADER, *(_row(report) for report in reports)]
  lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
  lines.insert(1, '|' + '---|' * len(_HEADER))
  return '\n'.join(lines) + '\n'


def _row(report: Mapping[str, Any]) -> tuple[str, ...]:
  many = f' x {report["slices"]}' if report['slices'] > 1 else ''
  memory = report['memory'] or {}
  of = report['hbm_bytes'] / 1e9
  hbm = '-'
  if 'used' in memory:
    hbm = f'{memory["used"] / 1e9:.1f} of {of:.0f} GB'
  if not report['fits']:
    hbm = f'out of memory ({hbm})'
  compiled = f'{report["seconds"]["compile"]:.0f} s'
  if report['optimization_level']:
    compiled += f', {report["optimization_level"]}'
  collectives = share = '-'
  if report['findings'] is not None:
    found = report['findings']
    largest = sorted(
      found['collectives'].items(), key=lambda item: -item[1]['bytes']
    )
    parts = [
      f'{_SHORT.get(kind, kind)} {c["bytes"] / 1e6:,.0f}'
      for kind, c in largest
      if c['bytes'] >= 1e6
    ]
    collectives = ', '.join(parts) or 'none'
    shares = found['asynchronous_share']
    if shares['all'] is not None:
      share = f'{_percent(shares["all-gather"])}, {_percent(shares["all"])}'
  return (
    report['experiment'],
    report['mode'],
    report['topology'] + many,
    ' x '.join(str(report['mesh'][axis]) for axis in _AXES),
    f'{report["sizes"]["batch_size"]:,}',
    hbm,
    compiled,
    collectives,
    share,
    f'{1e3 * report["roofline_seconds"]:.1f} ms',
  )


def _percent(share: float | None) -> str:
  return '-' if share is None else f'{100 * share:.0f} %'


def main(arguments: Sequence[str]) -> int:
  """Prints the table of the given files; returns an exit status."""
  if not arguments:
    print(__doc__, file=sys.stderr)
    return 2
  print(markdown(read(pathlib.Path(path) for path in arguments)), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
