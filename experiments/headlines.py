"""The README's first table: a line for each main figure, from kept results.

What was not measured has no line; the full tables are in experiments/README.md
and experiments/benchmarks/README.md.
"""

from collections.abc import Mapping
from typing import Any

from experiments import amazon_figures
from experiments import measured_runs
from experiments import result_tables
from experiments import sweep_tables
from experiments.benchmarks import harness

# Kept sweep, row, column, what it says.
_SWEEPS = (
  (
    'table1_synthetic_full', '+IPA', 'true_reward_mean',
    'IPA, simulated world: true reward of a session',
  ),
  (
    'table1_kuairand_small', '+IPA', 'swt_max',
    'IPA, KuaiRand-Pure: predicted watch time, best of 8 sessions',
  ),
  (
    'tr_ablations_rl', 'ECPO', 'true_p_score_mean',
    'ECPO, simulated world: true P-Score of an item',
  ),
)  # fmt: skip
# Kept benchmark, where its ratio stands, what ran, the peer.
_SPEED = (
  (
    'train_epoch', ('speed_over_torch',),
    'an epoch of Beauty', 'HuggingFace T5, PyTorch',
  ),
  (
    'beam_search', ('ratios', 'torch_trie / ours_trie'),
    'beam of 50 under the trie, batch 32', 'HuggingFace `generate`',
  ),
  (
    'session_beam', ('ratio',),
    'session beam of 128, 15 codes', 'beams tiled as HuggingFace does it',
  ),
)  # fmt: skip


def table() -> str:
  """Returns the table in Markdown."""
  rows = [
    *_next_item(),
    *_sweeps(),
    *_reinforced(),
    *_aligned_items(),
    *_speed(),
  ]
  return result_tables.markdown(['what', 'OneRec here', 'beside it'], rows)


def _next_item() -> list[list[str]]:
  rows = []
  for data in amazon_figures.SETS:
    found = amazon_figures.read(data)
    if found is None:
      continue
    beside = []
    if found.sasrec:
      beside.append(f'SASRec with cross-entropy {_model(found.sasrec)}')
    beside.append(f'best counting floor {_pair(found.best_floor())}')
    tiger = amazon_figures.published_figures(data, 'TIGER')
    beside.append(
      f'TIGER as published {tiger["recall@10"]:.3f} / {tiger["ndcg@10"]:.3f}'
    )
    beside.append(_seeds(found.seeds))
    rows.append(
      [
        f'Next item, Amazon {data}: recall@10 / NDCG@10',
        _model(found.ours, bold=True),
        '; '.join(beside),
      ]
    )
  return rows


def _seeds(number: int) -> str:
  return f'{number} seed{"s" if number > 1 else ""}'


def _model(
  lists: Mapping[str, amazon_figures.Figures], *, bold: bool = False
) -> str:
  """Returns what a model reaches, and alone if counts are in its lists."""
  first, *alone = lists.values()
  mark = '**' if bold else ''
  text = f'{mark}{_pair(first)}{mark}'
  if not alone:
    return text
  return f'{text} with counts, {_pair(alone[0])} alone'


def _pair(figures: Mapping[str, Any]) -> str:
  return ' / '.join(
    f'{figures[m]["mean"]:.3f}' for m in ('recall@10', 'ndcg@10')
  )


def _sweeps() -> list[list[str]]:
  rows = []
  for name, wanted, column, what in _SWEEPS:
    run = measured_runs.read(name)
    if run is None:
      continue
    sweep = run['sweep']
    row = next(r for r in sweep['rows'] if r['name'] == wanted)
    rows.append(
      [
        what,
        f'**{sweep_tables.change(row, column)}**',
        f'{sweep["base"]}; {_seeds(len(sweep["seeds"]))}',
      ]
    )
  return rows


def _reinforced() -> list[list[str]]:
  run = measured_runs.read('onerec_tr_kuairand_full')
  if run is None:
    return []
  row = run['stages']['evaluate']['item_rewards']['methods']['onerec']
  change = sweep_tables.change(row, 'p_score_mean')
  what = 'ECPO, KuaiRand-Pure: predicted P-Score of an item'
  return [[what, f'**{change}**', 'pre-trained; 1 seed']]


def _aligned_items() -> list[list[str]]:
  run = measured_runs.read('item_alignment_beauty')
  if run is None:
    return []
  quality = run['stages']['embed']['alignment']['quality']
  found = quality['aligned_over_unaligned']['test']
  return [
    [
      'Item alignment, Amazon Beauty: hit@10 of nearest items',
      f'**{found["ratio"]:.2f} ×** ({found["low"]:.2f} to {found["high"]:.2f})',
      'the text vectors it starts from',
    ]
  ]


def _speed() -> list[list[str]]:
  rows = []
  for name, path, what, peer in _SPEED:
    entry: Any = harness.read(name)
    for key in path:
      entry = entry.get(key) or {}
    if entry:
      ratio = f'**{entry["cpu_ratio_median"]:.1f} ×**'
      rows.append([f'Speed on a CPU: {what}', ratio, peer])
  return rows
