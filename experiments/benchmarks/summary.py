"""One table out of the benchmarks' result files; measures nothing."""

import json
import pathlib
from typing import Any

_FOLDER = pathlib.Path(__file__).parent / 'results'
_NOT_MEASURED = 'not measured'


def _read(name: str) -> dict[str, Any]:
  path = _FOLDER / f'{name}.json'
  return json.loads(path.read_text()) if path.exists() else {}


def _row(what: str, target: str, value: str | None) -> str:
  return f'| {what} | {target} | {value or _NOT_MEASURED} |'


def _spread(entry: dict[str, Any], clock: str) -> str:
  """Returns median and range of the round-by-round ratio of a clock."""
  return (
    f'{entry[f"{clock}_ratio_median"]:.2f} × {clock} time'
    f' ({entry[f"{clock}_ratio_min"]:.2f}–{entry[f"{clock}_ratio_max"]:.2f})'
  )


def _train_step() -> list[str]:
  step = _read('train_step').get('speed_over_torch', {}).get('ours')
  epoch = _read('train_epoch').get('speed_over_torch')
  return [
    _row(
      'training step, TIGER shapes, dropout on, same padded batch: speed over'
      ' HuggingFace T5 (PyTorch)',
      '≥ 0.9 ×',
      f'{_spread(step, "cpu")}; {_spread(step, "wall")}' if step else None,
    ),
    _row(
      'samples/s over a real Beauty epoch, ours by length bucket, over'
      ' HuggingFace T5 padded to 20 items',
      '≥ 2 ×',
      f'{_spread(epoch, "cpu")}; {_spread(epoch, "wall")}' if epoch else None,
    ),
  ]


def _beam_search() -> list[str]:
  ratios = _read('beam_search').get('ratios', {})
  rows = [
    _row(
      'beam search, 50 beams, 3 × 256 codes, trie: speed over HuggingFace'
      ' `generate` with `prefix_allowed_tokens_fn`',
      '≥ 10 ×',
      f'{_spread(e, "cpu")}; {_spread(e, "wall")}'
      if (e := ratios.get('torch_trie / ours_trie'))
      else None,
    )
  ]
  for key, entry in ratios.items():
    slow, fast = key.split(' / ')
    if fast == 'ours_free':
      rows.append(
        _row(
          f'constrained over unconstrained search ({slow})',
          '≤ 1.10 × time',
          f'{_spread(entry, "cpu")}; {_spread(entry, "wall")}',
        )
      )
  return rows


def _moe() -> list[str]:
  rows = []
  for result in _read('moe_dispatch').get('results', []):
    key = 'tokens, embed, hidden, experts'
    parts = []
    for direction in ('forward', 'gradient'):
      entry = result.get(f'blocks_{direction}')
      if entry:
        parts.append(
          f'{direction} {entry["times_floor_cpu_median"]:.2f} ×'
          f' ({entry["times_floor_cpu_min"]:.2f}–'
          f'{entry["times_floor_cpu_max"]:.2f})'
        )
    rows.append(
      _row(
        f'dropless MoE layer, top-2, {key} = {result[key]}: CPU time over its'
        ' FLOP floor',
        '≤ 2 ×',
        '; '.join(parts),
      )
    )
  return rows or [_row('dropless MoE layer over its FLOP floor', '≤ 2 ×', None)]


def _kmeans() -> list[str]:
  found = _read('kmeans')
  exact = found.get('constrained', {}).get('rounds')
  faiss = found.get('faiss', {}).get('rounds')
  large = found.get('large')
  return [
    _row(
      'balanced k-means, 20,000 × 128 → 256: speed over'
      ' `k-means-constrained` (exact optimum of each iteration)',
      '≥ 20 ×',
      f'{exact["constrained_cpu_over_ours"]:.0f} × cpu,'
      f' {exact["constrained_wall_over_ours"]:.0f} × wall'
      if exact
      else None,
    ),
    _row(
      '… its inertia over that optimum',
      '≤ 1.02',
      f'{exact["inertia_over_constrained"]:.4f}' if exact else None,
    ),
    _row(
      'balanced k-means, 100,000 × 128 → 256: time over faiss (unbalanced),'
      ' compilation excluded',
      '≤ 5 ×',
      f'{faiss["cpu_over_faiss"]:.2f} × cpu,'
      f' {faiss["wall_over_faiss"]:.2f} × wall (first call'
      f' {faiss["first_call_seconds"]:.0f} s)'
      if faiss
      else None,
    ),
    _row(
      '1,000,000 × 64 → 8192, one balanced assignment: peak memory',
      'no N × K matrix',
      f'{large["peak_megabytes"] / 1e3:.1f} GB, all distances would be'
      f' {large["all_distances_would_be_megabytes"] / 1e3:.0f} GB'
      if large
      else None,
    ),
  ]


def _ipa() -> list[str]:
  found = _read('ipa_cost')
  value = None
  if found:
    split = ', '.join(
      f'{name} {seconds:.1f} s'
      for name, seconds in found['round_seconds'].items()
    )
    value = (
      f'{found["ratio_median"]:.2f} × ({found["ratio_min"]:.2f}–'
      f'{found["ratio_max"]:.2f}); {split}; the pass'
      f' {found["pretrain_seconds"]:.1f} s'
    )
  return [
    _row(
      'a round of IPA (beam 128, sessions of 5, r_DPO = 1 %) over a pretrain'
      ' pass of the same samples, wall time',
      '≤ 3 ×',
      value,
    )
  ]


def _lifelong() -> list[str]:
  rows = []
  for result in _read('lifelong_cost').get('results', []):
    found = result['returning']
    kept = {
      name: share['later']
      for name, share in found['cosine_to_nearest_kept'].items()
    }
    rows.append(
      _row(
        'compressing a history of 100,000 events (64 numbers each) to 2,000'
        f' clusters, M = {result["max_cluster_size"]}, one core'
        if result['dim'] == 64
        else f'… {result["dim"]} numbers each, M ='
        f' {result["max_cluster_size"]}',
        '≤ 2 s',
        f'{found["wall_seconds_median"]:.2f} s, at most'
        f' {found["wall_seconds_max"]:.2f} s; cosine of later events to the'
        f' nearest kept {kept["latest_2000_clusters"]:.2f}, with the last 2,000'
        f' events {kept["last_2000_events"]:.2f}',
      )
    )
  return rows or [_row('compressing 100,000 events', '≤ 2 s', None)]


def _ecpo() -> list[str]:
  runs = _read('ecpo_stability').get('runs', {})
  largest = {
    name: max(
      run['gradient_norm_max']
      for key, run in runs.items()
      if key.startswith(name)
    )
    for name in ('grpo', 'ecpo')
    if runs
  }
  return [
    _row(
      'largest gradient norm in a stress run (rare groups, bad outputs in the'
      ' log): GRPO, ECPO',
      'bounded for ECPO',
      f'{largest["grpo"]:.3g}, {largest["ecpo"]:.3g}' if largest else None,
    )
  ]


def table() -> str:
  """Returns the Markdown table of all benchmarks."""
  rows = [
    *_train_step(), *_beam_search(), *_moe(), *_ipa(), *_kmeans(),
    *_lifelong(), *_ecpo(),
  ]  # fmt: skip
  return '\n'.join(['| what | target | measured |', '|---|---|---|', *rows])
