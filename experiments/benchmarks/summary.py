"""One table out of the benchmarks' result files; measures nothing.

A target is met if the medians of both clocks reach it; 'no' stands where they
do not, and nothing where nothing was measured.
"""

from collections.abc import Callable

from experiments.benchmarks import harness
from experiments.benchmarks import summary_curves
from experiments.benchmarks import summary_rows

# --- Training ---------------------------------------------------------------


def _train_step() -> list[str]:
  step = harness.read('train_step')
  compiled = harness.read('train_step_compiled')
  return [
    summary_rows.ratio_row(
      'training step, TIGER shapes, dropout on, same padded batch: speed over'
      ' HuggingFace T5 (PyTorch, eager)',
      '≥ 1.1 ×',
      step.get('speed_over_torch', {}).get('ours'),
      least=1.1,
    ),
    summary_rows.ratio_row(
      '… over HuggingFace T5 by `torch.compile`',
      '≥ 1.1 ×',
      compiled.get('speed_over_torch_compiled', {}).get('ours'),
      least=1.1,
    ),
    summary_rows.ratio_row(
      'samples/s over a real Beauty epoch, ours by length bucket, over'
      ' HuggingFace T5 padded to 20 items',
      '≥ 3 ×',
      harness.read('train_epoch').get('speed_over_torch'),
      least=3,
    ),
  ]


def _groups() -> list[str]:
  found = harness.read('group_step')
  rows = []
  for method, name in (
    ('ipa', 'IPA (S-DPO, sessions of 5)'), ('ecpo', 'ECPO'),
  ):  # fmt: skip
    entry = found.get(method)
    note = ''
    if entry:
      note = (
        f'; {entry["ratio"]["cpu_ratio_median"]:.1f} × the speed of encoding a'
        ' user per output'
      )
    rows.append(
      summary_rows.ratio_row(
        f'group part of a step of {name}, 128 outputs per user: share of the'
        ' bound (encoder + G · decoder) / (G · (encoder + decoder))',
        '≥ 0.8',
        entry and entry['of_bound'],
        least=0.8,
        note=note,
      )
    )
  return rows


def _ipa() -> list[str]:
  found = harness.read('ipa_cost')
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
    summary_rows.row(
      'a round of IPA (beam 128, sessions of 5, r_DPO = 1 %) over a pretrain'
      ' pass of the same samples, wall time',
      '≤ 3 ×',
      value,
      found['ratio_median'] <= 3 if found else None,
    )
  ]


def _input_pipeline() -> list[str]:
  runs = harness.read('input_pipeline').get('runs', {})
  rows = []
  for name, what in (
    ('quickstart', 'quickstart’s sizes'), ('beauty', 'Beauty’s sizes'),
  ):  # fmt: skip
    found = runs.get(name)
    value = met = None
    if found:
      thread, none = found['thread'], found['no_thread']
      value = (
        f'{thread["wait_share_median"]:.2%}, at most'
        f' {thread["wait_share_max"]:.2%}; without the thread'
        f' {none["wait_share_median"]:.2%}'
        f' ({found["batch_milliseconds"]:.1f} ms a batch)'
      )
      met = thread['wait_share_median'] <= 0.01
    rows.append(
      summary_rows.row(
        f'share of the training that waits for data, made-up log of {what}',
        '≤ 1 %',
        value,
        met,
      )
    )
  return rows


def _start_time() -> list[str]:
  runs = harness.read('start_time').get('runs', {})
  rows = []
  for name in ('quickstart', 'beauty'):
    found = runs.get(name)
    value = met = None
    if found:
      ratio = found['ratio']
      seconds = {
        kind: found['results'][kind]['wall_seconds_median']
        for kind in ('cold', 'warm')
      }
      value = (
        f'{ratio["wall_ratio_median"]:.2f} × wall time'
        f' ({ratio["wall_ratio_min"]:.2f}–{ratio["wall_ratio_max"]:.2f});'
        f' {seconds["warm"]:.1f} s against {seconds["cold"]:.1f} s'
      )
      met = ratio['wall_ratio_median'] <= 1 / 3
    rows.append(
      summary_rows.row(
        f'process start to first training step, model of {name}: warm compile'
        ' cache over cold',
        '≤ 1/3',
        value,
        met,
      )
    )
  return rows


# --- Decoding ---------------------------------------------------------------


def _beam_search() -> list[str]:
  ratios = harness.read('beam_search').get('ratios', {})
  alone = harness.read('beam_search_1').get('ratios', {})
  sizes = harness.read('beam_search_catalogue').get('ratios', {})
  rows = [
    summary_rows.ratio_row(
      'beam search, 50 beams, 3 × 256 codes, trie, batch 32: speed over'
      ' HuggingFace `generate` with `prefix_allowed_tokens_fn`',
      '≥ 20 ×',
      ratios.get('torch_trie / ours_trie'),
      least=20,
    ),
    summary_rows.ratio_row(
      '… batch 1', '≥ 10 ×', alone.get('torch_trie / ours_trie'), least=10
    ),
  ]
  for key in (
    'ours_trie', 'ours_trie_1e4', 'ours_trie_1e5', 'ours_trie_1e6',
    'ours_trie_1e7',
  ):  # fmt: skip
    rows.append(
      summary_rows.ratio_row(
        f'constrained over unconstrained search ({key})',
        '≤ 1.05 × time',
        sizes.get(f'{key} / ours_free'),
        most=1.05,
      )
    )
  return rows


def _session_beam() -> list[str]:
  found = harness.read('session_beam')
  what = (
    'session beam, 128 beams × 5 items × 3 levels, 512 tokens of history:'
    ' speed over beams tiled as HuggingFace does it'
  )
  memory = arrays = None
  if found:
    ours = found['results']['ours']
    large = ours['beams_times_encoder_arrays']
    arrays = not large
    memory = (
      f'{", ".join(large) or "none"}; {ours["temporary_bytes"] / 2**20:.0f} MiB'
      f' of temporary memory, tiled {found["temporary_ratio"]:.1f} ×'
    )
  return [
    summary_rows.ratio_row(what, '≥ 3 ×', found.get('ratio'), least=3),
    summary_rows.row(
      '… arrays of beams × encoder tokens', 'none', memory, arrays
    ),
  ]


# --- Experts and items ------------------------------------------------------


def _moe() -> list[str]:
  rows = []
  key = 'tokens, embed, hidden, experts'
  for result in harness.read('moe_dispatch').get('results', []):
    rows.append(
      summary_rows.row(
        f'dropless MoE layer, top-2, {key} = {result[key]}: CPU time over its'
        ' FLOP floor',
        '≤ 1.5 ×',
        *summary_rows.floor(result, 'blocks', 'cpu'),
      )
    )
  return rows or [
    summary_rows.row('dropless MoE layer over its FLOP floor', '≤ 1.5 ×', None)
  ]


def _kmeans() -> list[str]:
  found = harness.read('kmeans')
  exact = found.get('constrained', {}).get('rounds')
  faiss = found.get('faiss', {}).get('rounds')
  large = found.get('large')
  value = met = inertia = None
  if exact:
    speeds = [exact[f'constrained_{c}_over_ours'] for c in ('cpu', 'wall')]
    value = f'{speeds[0]:.0f} × cpu, {speeds[1]:.0f} × wall'
    met = min(speeds) >= 20
    inertia = exact['inertia_over_constrained']
  over = within = None
  if faiss:
    times = [faiss[f'{c}_over_faiss'] for c in ('cpu', 'wall')]
    over = (
      f'{times[0]:.2f} × cpu, {times[1]:.2f} × wall (first call'
      f' {faiss["first_call_seconds"]:.0f} s)'
    )
    within = max(times) <= 3
  return [
    summary_rows.row(
      'balanced k-means, 20,000 × 128 → 256: speed over'
      ' `k-means-constrained` (exact optimum of each iteration)',
      '≥ 20 ×',
      value,
      met,
    ),
    summary_rows.row(
      '… its inertia over that optimum',
      '≤ 1.02',
      None if inertia is None else f'{inertia:.4f}',
      None if inertia is None else inertia <= 1.02,
    ),
    summary_rows.row(
      'balanced k-means, 100,000 × 128 → 256: time over faiss (unbalanced),'
      ' compilation excluded',
      '≤ 3 ×',
      over,
      within,
    ),
    summary_rows.row(
      '1,000,000 × 64 → 8192, one balanced assignment: peak memory',
      'no N × K matrix',
      f'{large["peak_megabytes"] / 1e3:.1f} GB, all distances would be'
      f' {large["all_distances_would_be_megabytes"] / 1e3:.0f} GB'
      if large
      else None,
      large['peak_megabytes'] < large['all_distances_would_be_megabytes'] / 10
      if large
      else None,
    ),
  ]


def _lifelong() -> list[str]:
  rows = []
  for result in harness.read('lifelong_cost').get('results', []):
    found = result['returning']
    kept = {
      name: share['later']
      for name, share in found['cosine_to_nearest_kept'].items()
    }
    rows.append(
      summary_rows.row(
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
        found['wall_seconds_median'] <= 2,
      )
    )
  return rows or [summary_rows.row('compressing 100,000 events', '≤ 2 s', None)]


def _ecpo() -> list[str]:
  runs = harness.read('ecpo_stability').get('runs', {})
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
    summary_rows.row(
      'largest gradient norm in a stress run (rare groups, bad outputs in the'
      ' log): GRPO, ECPO',
      'bounded for ECPO',
      f'{largest["grpo"]:.3g}, {largest["ecpo"]:.3g}' if largest else None,
    )
  ]


_SECTIONS: tuple[Callable[[], list[str]], ...] = (
  _train_step, _beam_search, _session_beam, _moe, _groups, _ipa,
  _input_pipeline, _start_time, _kmeans, _lifelong, _ecpo,
  summary_curves.curves, summary_curves.gpu,
)  # fmt: skip


def table() -> str:
  """Returns the Markdown table of all benchmarks."""
  rows = [row for section in _SECTIONS for row in section()]
  return '\n'.join(
    ['| what | target | measured | met |', '|---|---|---|---|', *rows]
  )
