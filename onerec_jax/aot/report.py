"""The report of a compilation: a table to read and a JSON file to compare.

Formats and judges; compiles nothing and knows no paths of its own.
"""

import dataclasses
import json
import os
from typing import Any

import rich.box
import rich.console
import rich.table
from etils import epath

from onerec_jax import workdir as workdir_lib
from onerec_jax.aot import compilation
from onerec_jax.aot import findings as findings_lib

OUT_OF_MEMORY = 2  # exit status
_GB = 1e9


def exit_status(result: compilation.Result) -> int:
  """Returns 0 where the program fits, else `OUT_OF_MEMORY`."""
  return 0 if result.fits else OUT_OF_MEMORY


def to_json(result: compilation.Result) -> dict[str, Any]:
  """Returns the result as plain JSON values, with the shares it implies."""
  values = json.loads(json.dumps(dataclasses.asdict(result)))
  found = result.findings
  if found is not None:
    values['findings']['asynchronous_share'] = {
      'all-gather': found.asynchronous_share('all-gather'),
      'all': found.asynchronous_share(),
    }
  return values


def write(result: compilation.Result, path: str | os.PathLike[str]) -> None:
  """Writes the result as JSON; local or gs://."""
  file = epath.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_json(file, to_json(result))


def show(
  result: compilation.Result, console: rich.console.Console | None = None
) -> None:
  """Prints the result."""
  console = console or rich.console.Console()
  title = f'{result.experiment} · {result.mode} · {slices(result)}'
  table = rich.table.Table(
    title=title, box=rich.box.SIMPLE, show_header=False, padding=(0, 1, 0, 0)
  )
  table.add_column('what')
  table.add_column('value')
  for what, value in _rows(result):
    table.add_row(what, value)
  console.print(table)
  if result.findings is not None and result.findings.collectives:
    console.print(_collectives(result.findings))
  for line in warnings(result):
    console.print(f'! {line}', markup=False, highlight=False)
  console.print(verdict(result), style='bold', markup=False, highlight=False)


def slices(result: compilation.Result) -> str:
  """Returns 'v5p-128 x 2', without the factor where there is one slice."""
  many = f' x {result.slices}' if result.slices > 1 else ''
  return result.topology + many


def verdict(result: compilation.Result) -> str:
  """Returns one line that says whether the program fits."""
  memory, of = result.memory or {}, result.hbm_bytes / _GB
  used = memory.get('used')
  if result.fits:
    return (
      f'FITS: {used / _GB:.1f} of {of:.1f} GB per device'
      if used is not None
      else 'FITS'
    )
  wants = f'{used / _GB:.1f} GB' if used is not None else 'more'
  return (
    f'OUT OF MEMORY: wants {wants} of {of:.1f} GB per device. Use a larger'
    ' slice, a smaller batch, model.remat=True, or split weights over more'
    ' devices (mesh.fsdp).'
  )


def warnings(result: compilation.Result) -> list[str]:
  """Returns what the program does that it should not; [] where all is well."""
  found = result.findings
  if found is None:
    return []
  lines = []
  for gathers, where in (
    (found.expert_weight_gathers, 'in every layer'),
    (found.expert_update_gathers, 'once per step, behind the optimizer'),
  ):
    if gathers:
      moved = sum(g.bytes * g.executions for g in gathers) / _GB
      lines.append(
        f'expert weights are all-gathered {where}: {moved:.2f} GB. Raise'
        ' mesh.expert and lower mesh.fsdp.'
      )
  for arrays, what in (
    (found.score_arrays, 'scores of all pairs of encoder tokens'),
    (found.beam_state_arrays, 'encoder states repeated for every beam'),
  ):
    if arrays:
      lines.append(
        f'{what}: {arrays[0].what}, {arrays[0].bytes / _GB:.2f} GB'
        f' ({arrays[0].where[-80:]}).'
      )
  if found.wide_float_sorts:
    worst = max(found.wide_float_sorts, key=lambda f: f.bytes)
    lines.append(f'a full sort of scores: {worst.what} ({worst.where[-80:]}).')
  if found.unknown_loops:
    lines.append(
      f'{found.unknown_loops} loops of unknown length are counted once.'
    )
  return lines


def _rows(result: compilation.Result) -> list[tuple[str, str]]:
  mesh = ' '.join(f'{k} {v}' for k, v in result.mesh.items())
  sizes = ', '.join(
    f'{k.replace("_", " ")} {v:,}' for k, v in result.sizes.items()
  )
  flags = 'none' if not result.flags else f'{len(result.flags)} of tpu/flags'
  rows = [
    ('devices', f'{result.num_devices} x {result.device_kind}; mesh {mesh}'),
    ('sizes', sizes),
    ('parameters', f'{result.num_parameters:,}'),
    ('libtpu flags', flags),
    (
      'model FLOPs',
      f'{result.model_flops / 1e12:.1f} T; {result.roofline_seconds * 1e3:.1f}'
      ' ms at the bf16 peak of all devices',
    ),
    (
      'seconds',
      ', '.join(f'{k} {v:.0f}' for k, v in result.seconds.items()),
    ),
  ]
  memory = result.memory or {}
  if memory:
    parts = ', '.join(f'{k} {v / _GB:.2f}' for k, v in memory.items())
    rows.append(('GB per device', parts))
  found = result.findings
  if found is not None:
    widest = f', the widest {found.sorts[0].what}' if found.sorts else ''
    rows += [
      (
        'sorts',
        f'{sum(f.executions for f in found.sorts):.0f}{widest};'
        f' {len(found.wide_float_sorts)} of scores;'
        f' {found.top_k_calls:.0f} top-k kernels',
      ),
      ('layout copies', f'{found.relayout_bytes / _GB:.2f} GB'),
      ('Pallas kernels', f'{found.kernels:.0f} executions'),
    ]
  if result.executable_bytes is not None:
    rows.append(('executable', f'{result.executable_bytes / 1e6:.0f} MB'))
  return rows


def _collectives(found: findings_lib.Findings) -> rich.table.Table:
  table = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
  table.add_column('collective')
  for name in ('executions', 'MB per device', 'asynchronous'):
    table.add_column(name, justify='right')
  for kind, c in sorted(found.collectives.items(), key=lambda x: -x[1].bytes):
    table.add_row(
      kind,
      f'{c.executions:,.0f}',
      f'{c.bytes / 1e6:,.1f}',
      _percent(c.asynchronous_bytes / c.bytes if c.bytes else None),
    )
  return table


def _percent(share: float | None) -> str:
  return '' if share is None else f'{100 * share:.0f} %'
