"""The table of compiled recipes, from the JSON reports of `main aot`.

  python -m onerec_jax.aot.table tpu/aot/*.json

Prints Markdown.
"""

import json
import pathlib
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

_HEADER = (
  'recipe', 'mode', 'slice', 'mesh (data, fsdp, expert)', 'batch',
  'HBM per device', 'compiled in', 'collectives, MB per device',
  'gathered asynchronously', 'roofline',
)  # fmt: skip
_AXES = ('data', 'fsdp', 'expert')
_SHORT = {
  'all-gather': 'gather', 'all-reduce': 'reduce', 'reduce-scatter': 'scatter',
  'all-to-all': 'all-to-all', 'collective-permute': 'permute',
}  # fmt: skip


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
    gathered = found['asynchronous_share']['all-gather']
    share = '-' if gathered is None else f'{100 * gathered:.0f} %'
  return (
    report['experiment'],
    report['mode'],
    report['topology'] + many,
    ' x '.join(str(report['mesh'][axis]) for axis in _AXES),
    f'{report["sizes"]["batch_size"]:,}',
    hbm,
    f'{report["seconds"]["compile"]:.0f} s',
    collectives,
    share,
    f'{1e3 * report["roofline_seconds"]:.1f} ms',
  )


def main(arguments: Sequence[str]) -> int:
  """Prints the table of the given files; returns an exit status."""
  if not arguments:
    print(__doc__, file=sys.stderr)
    return 2
  reports = [json.loads(pathlib.Path(path).read_text()) for path in arguments]
  print(markdown(reports), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
