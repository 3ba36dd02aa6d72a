"""The table's lines on cost curves and on GPUs, out of their result files."""

from collections.abc import Mapping
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks import summary_rows

# --- Curves -----------------------------------------------------------------

_AXES = {
  'items': 'items in the trie, 1e4 … 1e7',
  'history': 'history, 64 … 4096 items',
  'experts': 'experts, 8 … 64',
  'beams': 'beams, 8 … 512',
  'devices': 'fake devices, 1 … 8',
}


def curves() -> list[str]:
  """Returns the lines on how costs grow, and on the trie."""
  found = harness.read('cost_curves').get('curves', {})
  rows = []
  for name, what in _AXES.items():
    value = met = None
    if name in found:
      verdicts = {
        label: series['verdict']
        for label, series in found[name]['series'].items()
      }
      value = '; '.join(f'{label}: {v}' for label, v in verdicts.items())
      met = all(v.startswith('no cliff') for v in verdicts.values())
    rows.append(summary_rows.row(f'cost by {what}', 'no cliff', value, met))
  return rows + _trie(found.get('items'))


def _trie(found: Mapping[str, Any] | None) -> list[str]:
  memory = small = compiled = none = None
  if found:
    series = found['series']['bytes per item beside the bitmap']['values']
    small = max(series) <= 12
    memory = ', '.join(
      f'{number:.0e}: {each:.1f} B and {bitmap / 1e6:.1f} MB'
      for number, each, bitmap in zip(
        found['x'], series, found['bitmap_bytes'], strict=True
      )
    )
    counts = found['compilations_at_refresh']
    compiled, none = ', '.join(map(str, counts)), not any(counts)
  return [
    summary_rows.row(
      'trie of 3 × 8192 codes: bytes per item, and of the bitmap',
      '≤ 12 B and the bitmap',
      memory,
      small,
    ),
    summary_rows.row(
      'programs compiled at a catalogue refresh', '0', compiled, none
    ),
  ]


# --- GPU --------------------------------------------------------------------

# What has a published anchor: OneRec trains at 23.7 % and decodes at 28.8 %.
_MFU_TASKS = {
  'train 0.1b': 'training, v1 recipe 0.1b, bf16: MFU (OneRec: 23.7 %)',
  'train 1b': 'training, v1 recipe 1b, bf16: MFU (OneRec: 23.7 %)',
  'decode 0.1b, 128 beams': 'sessions of 5 by 128 beams, 0.1b: MFU (28.8 %)',
  'decode 0.1b, 512 beams': 'sessions of 5 by 512 beams, 0.1b: MFU (28.8 %)',
}
_RATIO_TASKS = {
  'training step against T5': (
    'training step, TIGER shapes: speed over HuggingFace T5 (PyTorch)',
    1.1,
  ),
  'beam search against T5': (
    'beam search, 50 beams, trie, batch 32: speed over `generate`',
    20.0,
  ),
  'session beam': ('session beam, 128 beams: speed over tiled beams', 3.0),
}


def gpu() -> list[str]:
  """Returns the lines on GPUs; what failed there counts as not measured."""
  tasks = {
    name: task
    for name, task in harness.read('gpu_window').get('tasks', {}).items()
    if task['status'] == 'measured'
  }
  where = tasks.get('device', {}).get('device_kind', 'GPU')
  rows = []
  for name, what in _MFU_TASKS.items():
    value = met = None
    task = tasks.get(name)
    if task and task['mfu'] is not None:
      value = f'{task["mfu"]:.1%}'
      if 'users_per_second' in task:
        value += f', {task["users_per_second"]:.0f} users/s'
      value += f' at batch {task["batch_size"]}'
      value += ''.join(
        f'; {other.removeprefix(f"{name}, ")} {found["mfu"]:.1%}'
        for other, found in tasks.items()
        if other.startswith(f'{name}, ')
      )
      met = task['mfu'] >= 0.4
    rows.append(summary_rows.row(f'{where}: {what}', '≥ 40 %', value, met))
  for result in tasks.get('experts', {}).get('results', [None]):
    rows.append(_gpu_moe(where, result))
  for name, (what, least) in _RATIO_TASKS.items():
    entry = tasks.get(name, {}).get('ratio')
    value = met = None
    if entry:
      value = summary_rows.spread(entry, 'wall')
      met = entry['wall_ratio_median'] >= least
    rows.append(
      summary_rows.row(f'{where}: {what}', f'≥ {least:g} ×', value, met)
    )
  return rows


def _gpu_moe(where: str, result: Mapping[str, Any] | None) -> str:
  if result is None:
    what = 'dropless MoE layer, E 8, 24, 64: time over its FLOP floor'
    return summary_rows.row(f'{where}: {what}', '≤ 1.5 ×', None)
  key = 'tokens, embed, hidden, experts'
  return summary_rows.row(
    f'{where}: dropless MoE layer, top-2, {key} = {result[key]}: time over its'
    ' FLOP floor',
    '≤ 1.5 ×',
    *summary_rows.floor(result, 'ragged', 'wall'),
  )
