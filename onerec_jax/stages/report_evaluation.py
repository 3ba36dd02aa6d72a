"""The report's sections on the stage `evaluate`: results, slices, users.

Turns its result.json into tables, sentences and pictures; computes nothing.
"""

from collections.abc import Mapping
from typing import Any

from onerec_jax.stages import predictions
from onerec_jax.stages import report_figures as figures
from onerec_jax.stages import report_words as words

# What the light bar is, by the method that ours went on from.
_EARLIER = {
  predictions.BEFORE: ' Light: the same model before {}, which is no floor.',
  predictions.ALONE: ' Light: the same model without counts.',
  None: '',
}


def results(
  result: Mapping[str, Any],
  pictures: words.Pictures,
  *,
  cause: str = 'Alignment',
) -> dict[str, Any]:
  """Returns what the section on results shows.

  Args:
    result: of the stage `evaluate`.
    pictures: of the page.
    cause: what came between the pre-trained and the final model.
  """
  k = result['headline_k']
  recall = f'recall@{k}'
  methods, scores = result['methods'], result['metrics']
  bars = [(methods[m]['title'], scores[m][recall]) for m in scores]
  ours = methods[predictions.OURS]['title']
  earlier = predictions.earlier(scores)
  pictures.add(
    'recall',
    figures.method_bars(
      bars,
      ours=ours,
      label=f'Recall@{k}',
      before=methods[earlier]['title'] if earlier else None,
    ),
    alt=f'Recall@{k}: '
    + ', '.join(f'{name} {words.four(v["mean"])}' for name, v in bars),
    caption=f'Recall@{k} by item with 95 % intervals.'
    + _EARLIER[earlier].format(cause.lower()),
  )
  entropy, sizes = result['entropy_per_level'], result['codes_per_level']
  if entropy:  # a model that ranks items has no levels
    pictures.add(
      'entropy',
      figures.entropy_bars(entropy, sizes),
      alt='Predictive entropy per level in nats: '
      + ', '.join(f'{e:.2f}' for e in entropy),
      caption=(
        'How undecided the model is at each level of the ID, along the beam'
        ' over all that it gives probability to (nats). A falling staircase is'
        ' healthy.'
      ),
    )
  sizes = sorted({int(n.partition('@')[2]) for n in scores[predictions.OURS]})
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
    'verdict': _verdict(difference, ours, best, recall),
    'alignment': _alignment(result, recall, cause),
    'ranking': {
      'columns': [
        'method', words.label(recall), '95 %', 'by ID',
        *map(words.label, names),
      ],
      'rows': [
        {
          'ours': m == predictions.OURS,
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
      f'{_answers(result, cause)} {result["empty_results"]:,} users got no'
      f' answer, {result["short_results"]:,} a short list.'
    ),
  }  # fmt: skip


def _by_score(result: Mapping[str, Any]) -> list[str]:
  """Returns the methods: ours, what it went on from, then the best first."""
  recall = f'recall@{result["headline_k"]}'
  scores = result['metrics']
  first = {predictions.OURS: 0, predictions.earlier(scores): 1}
  return sorted(
    scores, key=lambda m: (first.get(m, 2), -scores[m][recall]['mean'])
  )


def _verdict(
  difference: Mapping[str, float], ours: str, best: str, metric: str
) -> str:
  low, high = difference['low'], difference['high']
  if low > 0:
    word = 'above'
  elif high < 0:
    word = 'below'
  else:
    word = 'not clearly different from'
  return (
    f'{ours} is {word} the best counting floor ({best}): {words.label(metric)}'
    f' {words.signed(difference["mean"])}, 95 % interval'
    f' {words.signed_bounds(difference)} (paired over users).'
  )


def _alignment(result: Mapping[str, Any], metric: str, cause: str) -> str:
  """Returns what was added to the ranking; '' where nothing was."""
  differences = result.get('difference_to_before')
  if not differences:
    return ''
  difference = differences[metric]
  verb = {1: 'raised', -1: 'lowered', 0: 'did not clearly change'}
  counted = predictions.earlier(result['metrics']) == predictions.ALONE
  return (
    f'{"Counted transitions" if counted else cause}'
    f' {verb[words.direction(difference)]} {words.label(metric)}:'
    f' {words.signed(difference["mean"])}, 95 % interval'
    f' {words.signed_bounds(difference)} (paired over users).'
    + ('' if counted else ' It is trained for rewards, not for this ranking.')
  )


def _answers(result: Mapping[str, Any], cause: str) -> str:
  """Returns what the lists were made of, in one sentence."""
  if not result['entropy_per_level']:
    return 'Every item of the catalogue was ranked.'
  return (
    f'{100 * result["legality"]:.2f} % of {result["hypotheses"]:,} generated'
    f' hypotheses are items of the catalogue (beam {result["num_beams"]},'
    f' constraint: {result["constrained"]}){_legality_before(result, cause)}.'
  )


def _legality_before(result: Mapping[str, Any], cause: str) -> str:
  before = (result.get('legality_by_model') or {}).get(predictions.BEFORE)
  if before is None:
    return ''
  return f', {100 * before:.2f} % before {cause.lower()}'


def _quality(result: Mapping[str, Any]) -> dict[str, Any]:
  quality = result['list_quality']
  columns = list(quality[predictions.OURS])
  return {
    'columns': ['method', *map(words.label, columns)],
    'rows': [
      {
        'ours': m == predictions.OURS,
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
  earlier = predictions.earlier(result['metrics'])
  compared = {
    m: result['methods'][m]['title']
    for m in (predictions.OURS, earlier, best)
    if m is not None
  }
  tables = []
  for number, (title, rows) in enumerate(
    sorted(result['slices'].items(), reverse=True)
  ):
    parts = [
      f'{r["slice"]}: '
      + ' against '.join(
        words.four(r['methods'][m][recall]['mean'])
        for m in (predictions.OURS, best)
      )
      for r in rows
      if r['users']
    ]
    pictures.add(
      f'slice_{number}',
      figures.slice_bars(
        rows,
        methods=compared,
        metric=recall,
        label=f'Recall@{k}',
        before=earlier,
      ),
      alt=f'Recall@{k} by {title}, ours against the best floor. '
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
