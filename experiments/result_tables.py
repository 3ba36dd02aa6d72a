"""Markdown tables of single runs, from kept figures alone.

A run that was not made is called 'not measured', never guessed.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from experiments import measured_runs

_SHOWN = ('recall@5', 'recall@10', 'ndcg@10', 'mrr@10')
NOT_MEASURED = 'not measured'
_MAX_POINTS = 8  # of a curve in one line
_COLD_ITEMS = {
  'before': 'not added',
  'shared': '`add-items`: the nearest ID that an item has',
  'own': '`add-items --noshare_ids`',
  'nearest': 'no model: items nearest to the last one by their vectors',
}


def markdown(header: list[str], rows: list[list[str]]) -> str:
  """Returns a Markdown table; all but the first column right-aligned."""
  rule = ['---', *['---:'] * (len(header) - 1)]
  lines = [header, rule, *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def ranking(
  name: str,
  title: str,
  *,
  recipe: str | None = None,
  model: str | None = None,
) -> str:
  """Returns the comparison of a run with the counting floors.

  Args:
    name: of the result file.
    title: of the table.
    recipe: experiment file and variant; None: the file of that name.
    model: what the model is called, where it is not OneRec.
  """
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {NOT_MEASURED}.'
  result, training = run['stages']['evaluate'], run['stages']['pretrain']
  rows = []
  ordered = sorted(
    result['metrics'].items(),
    key=lambda entry: (
      entry[0] != 'onerec',
      -entry[1]['recall@10']['mean'],
    ),
  )
  for method, figures in ordered:
    called = result['methods'][method]['title']
    cells = [model if model and method == 'onerec' else called]
    for metric in _SHOWN:
      cell = f'{figures[metric]["mean"]:.4f}'
      if metric == 'recall@10':
        low, high = figures[metric]['low'], figures[metric]['high']
        cell += f' ({low:.3f}–{high:.3f})'
      cells.append(cell)
    by_id = result['metrics_by_id'][method]['recall@10']['mean']
    cells.append(f'{by_id:.4f}')
    if method == 'onerec':
      cells = [f'**{cell}**' for cell in cells]
    rows.append(cells)
  minutes = sum(s['seconds'] for s in run['stages'].values()) / 60
  difference = result['difference_to_best_floor']['recall@10']
  best = result['methods'][result['best_floor']]['title']
  history = 'excluded' if result['history_excluded'] else 'not excluded'
  names = ['recall@10 (95 %)' if m == 'recall@10' else m for m in _SHOWN]
  # A model that ranks items has no levels, and no IDs that could be illegal.
  legal = (
    f' Legal hypotheses {100 * result["legality"]:.1f} %.'
    if result['entropy_per_level']
    else ''
  )
  return '\n'.join(
    [
      f'**{title}.** {result["users"]:,} users, all {result["candidates"]:,}'
      f' items ranked, history {history}, hits counted by item.',
      '',
      markdown(['method', *names, 'recall@10 by ID'], rows),
      '',
      f'Budget: {training["steps"]:,} steps, {training["examples_seen"]:,}'
      f' examples, {training["training_seconds"] / 60:.1f} minutes of training'
      f' ({minutes:.1f} for all stages) on {run["machine"]};'
      f' {training["num_parameters"]:,} parameters. Against the best floor'
      f' ({best}), recall@10 {interval(difference)[:-1]}, paired'
      f' bootstrap).{_of_transitions(result)}{legal}'
      f' `experiments/{recipe or name + ".py"}`, commit {run["commit"]}.',
      *_against(run.get('compared')),
      *_by_samples(run.get('curve') or ()),
    ]
  )


def _against(compared: Mapping[str, Any] | None) -> list[str]:
  """Returns how the run differs from others on the same users, a paragraph."""
  if compared is None:
    return []
  first, *others = compared['runs']
  shown = [f'{name}@{compared["headline_k"]}' for name in ('recall', 'ndcg')]
  sentences = []
  for other, differences in zip(others, compared['differences'], strict=True):
    parts = [f'{m} {interval(differences[m])}' for m in shown]
    sentences.append(
      f'{first["title"]} over {other["title"]}'
      f' (`{other["experiment"]}`, step {other["step"]:,}): {", ".join(parts)}.'
    )
  return ['', f'{" ".join(sentences)} Paired over users, 95 %.']


def interval(value: Mapping[str, float]) -> str:
  """Returns a difference with its interval, signed."""
  return f'{value["mean"]:+.4f} ({value["low"]:+.4f} to {value["high"]:+.4f})'


def _by_samples(curve: Sequence[Mapping[str, float]]) -> list[str]:
  """Returns how recall on validation users grew, as a paragraph."""
  if len(curve) < 3:
    return []
  kept = curve[:: -(-len(curve) // _MAX_POINTS)]
  if kept[-1] is not curve[-1]:
    kept = [*kept, curve[-1]]
  points = ', '.join(
    f'{point["examples"] / 1000:,.0f} k: {point["recall@10"]:.3f}'
    for point in kept
  )
  return ['', f'Recall@10 of validation users by samples seen: {points}.']


def item_alignment(name: str, title: str) -> str:
  """Returns hit rates of item vectors and the quality of their codes."""
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {NOT_MEASURED}.'
  quality = run['stages']['embed']['alignment']['quality']
  splits = ('valid', 'test')
  rows = [
    [
      label,
      *(
        f'{quality["vectors"][kind][split][metric]:.4f}'
        for split in splits
        for metric in ('hit@10', 'ndcg@10')
      ),
    ]
    for label, kind in (
      ('text vectors', 'unaligned'),
      ('aligned', 'aligned'),
    )
  ]
  ratios = [quality['aligned_over_unaligned'][split] for split in splits]
  header = [
    'vectors',
    *(f'{s} {m}' for s in splits for m in ('hit@10', 'ndcg@10')),
  ]
  codes = []
  for kind, entry in run['stages']['tokenizer']['quantizers'].items():
    levels = entry['levels']
    codes.append(
      [
        kind,
        f'{entry["reconstruction"]["relative"]:.3f}',
        ' / '.join(f'{level["utilisation"]:.3f}' for level in levels),
        ' / '.join(f'{level["entropy_nats"]:.3f}' for level in levels),
        f'{100 * entry["ids"]["collision_share"]:.1f} %',
      ]
    )
  users = quality['vectors']['aligned']['test']['examples']
  return '\n'.join(
    [
      f'**{title}.** Is the next item among the ten nearest to the last one?'
      f' {users:,} users, what they have is excluded.',
      '',
      markdown(header, rows),
      '',
      'Aligned over unaligned, hit@10: '
      + '; '.join(
        f'{split} {r["ratio"]:.2f} × ({r["low"]:.2f} to {r["high"]:.2f})'
        for split, r in zip(splits, ratios, strict=True)
      )
      + '. Codes of the aligned vectors:',
      '',
      markdown(
        [
          'quantizer',
          'relative error',
          'utilisation per level',
          'entropy per level (nats)',
          'items sharing an ID',
        ],
        codes,
      ),
    ]
  )


def _of_transitions(result: dict[str, Any]) -> str:
  """Returns what counts add to a model's lists; '' where there are none."""
  if 'without_transitions' not in result['methods']:
    return ''
  gains = (
    f'{metric} {interval(result["difference_to_before"][metric])}'
    for metric in ('recall@10', 'ndcg@10')
  )
  return f' Counted transitions add {", ".join(gains)}.'


def cold_items(name: str, title: str) -> str:
  """Returns what became of items that came after training.

  Args:
    name: of the kept run of cold_items.py.
    title: of the table.
  """
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {NOT_MEASURED}.'
  found = run['stages']['cold_items']
  rows = []
  for way, label in _COLD_ITEMS.items():
    figures = found['figures'][way]
    cells = [
      _with_interval(figures[f'{group}/recall@{k}'])
      for group in ('cold', 'warm')
      for k in (10, 50)
    ]
    rows.append([label, *cells, f'{figures["warm/new@10"]["mean"]:.2f}'])
  header = [
    'items that came after training', 'recall@10 of these (95 %)',
    'recall@50 of these', 'recall@10 of the others', 'recall@50 of the others',
    'of them among the first ten of the others',
  ]  # fmt: skip
  users, training = found['users'], run['stages']['pretrain']
  note = (
    f'{found["new_items"]:,} items came after training on {found["items"]:,};'
    f' {users["cold"]:,} users whose last item is one of them,'
    f' {users["warm"]:,} others; history excluded; one seed.'
  )
  budget = (
    f'{training["steps"]:,} steps on {run["machine"]}.'
    f' `experiments/cold_items.py`, commit {run["commit"]}.'
  )
  table = markdown(header, rows)
  return f'**{title}.** {note}\n\n{table}\n\n{budget}'


def _with_interval(figure: Mapping[str, float]) -> str:
  mean, low, high = (figure[key] for key in ('mean', 'low', 'high'))
  return f'{mean:.4f} ({low:.4f}–{high:.4f})'


def tokenizer() -> str:
  """Returns the quality of the semantic IDs of the kept runs."""
  rows = []
  for name in ('quickstart', 'onerec_v1_beauty', 'onerec_v1_kuairand'):
    run = measured_runs.read(name)
    if run is None:
      continue
    result = run['stages']['tokenizer']
    entries = {f'{k}, as encoded': v for k, v in result['quantizers'].items()}
    collision = f'{result["quantizer"]}, final ({result["collision"]})'
    entries[collision] = result['quality']
    for label, entry in entries.items():
      levels = entry['levels']
      rows.append(
        [
          f'{name}: {label}',
          ' / '.join(f'{level["utilisation"]:.3f}' for level in levels),
          ' / '.join(f'{level["entropy_nats"]:.3f}' for level in levels),
          f'{entry["reconstruction"]["relative"]:.3f}',
          f'{100 * entry["ids"]["collision_share"]:.1f} %',
          str(entry['ids']['largest_bucket']),
        ]
      )
  if not rows:
    return f'**Semantic IDs**: {NOT_MEASURED}.'
  header = [
    'semantic IDs', 'utilisation per level', 'entropy per level (nats)',
    'relative error', 'items sharing an ID', 'largest bucket',
  ]  # fmt: skip
  return markdown(header, rows)
