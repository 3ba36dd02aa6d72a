"""The report's sections on the stage `evaluate`: results, slices, users.

Turns its result.json into tables, sentences and pictures; computes nothing.
"""

from collections.abc import Mapping
from typing import Any

from onerec_jax.stages import evaluate
from onerec_jax.stages import report_figures as figures
from onerec_jax.stages import report_words as words


def results(
  result: Mapping[str, Any], pictures: words.Pictures
) -> dict[str, Any]:
  """Returns what the section on results shows."""
  k = result['headline_k']
  recall = f'recall@{k}'
  methods, scores = result['methods'], result['metrics']
  bars = [(methods[m]['title'], scores[m][recall]) for m in scores]
  ours = methods[evaluate.OURS]['title']
  pictures.add(
    'recall',
    figures.method_bars(bars, ours=ours, label=f'Recall@{k}'),
    alt=f'Recall@{k}: '
    + ', '.join(f'{name} {words.four(v["mean"])}' for name, v in bars),
    caption=f'Recall@{k} by item with 95 % intervals.',
  )
  entropy, sizes = result['entropy_per_level'], result['codes_per_level']
  pictures.add(
    'entropy',
    figures.entropy_bars(entropy, sizes),
    alt='Predictive entropy per level in nats: '
    + ', '.join(f'{e:.2f}' for e in entropy),
    caption=(
      'How undecided the model is at each level of the ID, along the beam'
      ' before any constraint (nats). A falling staircase is healthy.'
    ),
  )
  sizes = sorted({int(n.partition('@')[2]) for n in scores[evaluate.OURS]})
  # The headline stands first (phones cut the rest); NDCG@1 is Recall@1.
  names = [
    *(f'recall@{n}' for n in sizes if n != k),
    *(f'ndcg@{n}' for n in sizes if 1 < n <= k),
    f'mrr@{k}',
  ]
  history = 'excluded from' if result['history_excluded'] else 'allowed in'
  difference = result['difference_to_best_floor'][recall]
  best = methods[result['best_floor']]['title']
  return {
    'protocol': (
      f'{result["split"].capitalize()} split, {result["users"]:,} users; all'
      f' {result["candidates"]:,} items are ranked, items already seen are'
      f' {history} the answers. Hits count by item: two items that share a'
      ' semantic ID do not share credit (the figure by ID, which most'
      ' published systems report, stands beside it). Floors count training'
      ' events only.'
    ),
    'verdict': _verdict(difference, best, recall),
    'ranking': {
      'columns': [
        'method', words.label(recall), '95 %', 'by ID',
        *map(words.label, names),
      ],
      'rows': [
        {
          'ours': m == evaluate.OURS,
          'note': methods[m]['description'],
          'cells': [
            methods[m]['title'],
            words.four(scores[m][recall]['mean']),
            words.bounds(scores[m][recall]),
            words.four(result['metrics_by_id'][m][recall]['mean']),
            *(words.four(scores[m][n]['mean']) for n in names),
          ],
        }
        for m in _by_score(result)
      ],
    },
    'quality': _quality(result),
    'legality': (
      f'{100 * result["legality"]:.2f} % of {result["hypotheses"]:,} generated'
      f' hypotheses are items of the catalogue (beam {result["num_beams"]},'
      f' constraint: {result["constrained"]}). {result["empty_results"]:,}'
      f' users got no answer, {result["short_results"]:,} a short list.'
    ),
  }  # fmt: skip


def _by_score(result: Mapping[str, Any]) -> list[str]:
  """Returns the methods, ours first, then the best first."""
  recall = f'recall@{result["headline_k"]}'
  scores = result['metrics']
  return sorted(
    scores, key=lambda m: (m != evaluate.OURS, -scores[m][recall]['mean'])
  )


def _verdict(difference: Mapping[str, float], best: str, metric: str) -> str:
  low, high = difference['low'], difference['high']
  if low > 0:
    word = 'above'
  elif high < 0:
    word = 'below'
  else:
    word = 'not clearly different from'
  return (
    f'OneRec is {word} the best counting floor ({best}): {words.label(metric)}'
    f' {words.signed(difference["mean"])}, 95 % interval'
    f' {words.signed_bounds(difference)} (paired over users).'
  )


def _quality(result: Mapping[str, Any]) -> dict[str, Any]:
  quality = result['list_quality']
  columns = list(quality[evaluate.OURS])
  return {
    'columns': ['method', *map(words.label, columns)],
    'rows': [
      {
        'ours': m == evaluate.OURS,
        'cells': [
          result['methods'][m]['title'],
          *(words.four(quality[m].get(c)) for c in columns),
        ],
      }
      for m in _by_score(result)
    ],
  }


def slices(
  result: Mapping[str, Any], pictures: words.Pictures
) -> list[dict[str, Any]]:
  """Returns one table per way of slicing; adds their pictures."""
  k = result['headline_k']
  recall = f'recall@{k}'
  best = result['best_floor']
  compared = {m: result['methods'][m]['title'] for m in (evaluate.OURS, best)}
  tables = []
  for number, (title, rows) in enumerate(
    sorted(result['slices'].items(), reverse=True)
  ):
    parts = [
      f'{r["slice"]}: {words.four(r["methods"][evaluate.OURS][recall]["mean"])}'
      f' against {words.four(r["methods"][best][recall]["mean"])}'
      for r in rows
      if r['users']
    ]
    pictures.add(
      f'slice_{number}',
      figures.slice_bars(
        rows, methods=compared, metric=recall, label=f'Recall@{k}'
      ),
      alt=f'Recall@{k} by {title}, OneRec against the best floor. '
      + '; '.join(parts),
      caption=f'Recall@{k} by {title}.',
    )
    tables.append(
      {
        'caption': f'Recall@{k} by {title}',
        'columns': [
          'slice',
          'users',
          *(result['methods'][m]['title'] for m in _by_score(result)),
        ],
        'rows': [
          {
            'cells': [
              row['slice'],
              words.count(row['users']),
              *(
                words.four(
                  row['methods'].get(m, {}).get(recall, {}).get('mean')
                )
                for m in _by_score(result)
              ),
            ]
          }
          for row in rows
        ],
      }
    )  # fmt: skip
  return tables


def users(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the example users with a verdict each."""
  users = []
  for user in result['examples']:
    ranks = [t['rank'] for t in user['targets'] if t['rank'] is not None]
    best = min(ranks, default=None)
    users.append(
      {
        **user,
        'hit': best is not None and best <= result['headline_k'],
        'verdict': 'not in the list' if best is None else f'rank {best}',
      }
    )
  return users
