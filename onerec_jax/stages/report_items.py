"""The report's section on item vectors: what alignment to behaviour did.

Turns `alignment` of the stage `embed` and the codes' agreement with categories
into tables, a sentence and pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

_BEFORE, _AFTER = 'unaligned', 'aligned'
_NAMES = {_BEFORE: 'all parts, before alignment', _AFTER: 'aligned'}
_SPLITS = ('test', 'valid')  # the first that has examples is told in words
_SPLIT_NAMES = {'test': 'test', 'valid': 'validation'}


def training_records(workdir: workdir_lib.Workdir) -> list[dict[str, Any]]:
  """Returns what the last training of the alignment has logged.

  Every training has a folder of its own, named after its settings.
  """
  folder = workdir.folder('embed') / 'alignment'
  paths = list(folder.glob(f'*/{log.METRICS}')) if folder.exists() else []
  if not paths:
    return []
  if len(paths) == 1:
    return log.read_metrics(paths[0])
  return log.read_metrics(max(paths, key=lambda path: path.stat().mtime))


def section(
  result: Mapping[str, Any] | None,
  records: Sequence[Mapping[str, Any]],
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what is shown of the item alignment; adds its pictures.

  A training that is not finished shows its curves.

  Args:
    result: of the stage `embed`.
    records: of the alignment's training.
    pictures: of the page.
  """
  found = (result or {}).get('alignment')
  if found is None and (result or not records):
    return None
  _curves(records, pictures)
  if found is None:
    return {'summary': 'The stage embed is not finished.'}
  quality = found.get('quality') or {}
  return {
    'summary': _summary(found),
    'verdict': _verdict(quality),
    'hits': _hit_table(quality),
    'pairs': _pair_table(found),
    'neighbours': [
      {
        'item': entry['item'],
        'lists': [
          {'title': title, 'items': entry[name]}
          for name, title in ((_BEFORE, 'before'), (_AFTER, 'aligned'))
          if entry.get(name)
        ],
      }
      for entry in quality.get('neighbours') or ()
    ],
  }


def _curves(
  records: Sequence[Mapping[str, Any]], pictures: words.Pictures
) -> None:
  report_curves.add_curves(
    [(0, records)],
    {'pairs': 'contrastive', 'captions': 'caption'},
    pictures,
    'item_losses',
    caption=(
      'Item alignment: contrastive loss of the pairs (nats), and next-word loss'
      ' of the captions where there are any (nats per word).'
    ),
    label='loss',
  )
  report_curves.add_curves(
    [(0, records)],
    {'Hit@10': 'valid/hit@10'},
    pictures,
    'item_hit_rate',
    caption='Hit@10 of the next validation item among the nearest vectors.',
    label='Hit@10',
  )


def _summary(found: Mapping[str, Any]) -> str:
  training = found.get('training') or {}
  text = (
    f'A query transformer of'
    f' {words.compact(training.get("num_parameters"))} parameters turned the'
    f' parts of every item into one vector, trained for'
    f' {words.count(training.get("steps"))} steps of'
    f' {words.count(training.get("batch_size"))} pairs in'
    f' {log.duration(float(training.get("training_seconds") or 0))}.'
  )
  final = training.get('final') or {}
  ends = [
    f'{name} {words.fixed(final[key], 3)}'
    for name, key in (
      ('contrastive loss', 'contrastive'),
      ('caption loss per word', 'caption'),
    )
    if words.is_known(final.get(key))
  ]
  if words.is_known(final.get('accuracy')):
    ends.append(
      f'{words.percent(final["accuracy"])} of the triggers with their own'
      ' target nearest in the batch'
    )
  return text + (f' At the end: {", ".join(ends)}.' if ends else '')


def _rate(quality: Mapping[str, Any], name: str, split: str) -> Any:
  entry = (quality.get('vectors') or {}).get(name) or {}
  return (entry.get(split) or {}).get('hit@10')


def _verdict(quality: Mapping[str, Any]) -> str:
  """Returns what alignment did to the hit rate, by the ratio's interval."""
  ratios = quality.get('aligned_over_unaligned') or {}
  split = next((s for s in _SPLITS if s in ratios), None)
  if split is None:
    return ''
  before, after = (_rate(quality, name, split) for name in (_BEFORE, _AFTER))
  rates = (
    f'Hit@10 of the next item {words.fixed(before)} before and'
    f' {words.fixed(after)} after, {_SPLIT_NAMES[split]} split'
  )
  ratio = ratios[split]
  if ratio is None:
    return (
      f'How much alignment improved the vectors is not a ratio: {rates}; the'
      ' vectors before never hit.'
    )
  verb = 'did not clearly change'
  if ratio['low'] > 1:
    verb = 'raised'
  elif ratio['high'] < 1:
    verb = 'lowered'
  return (
    f'Alignment {verb} the hit rate of the vectors, {ratio["ratio"]:.2f} times'
    f' (95 % interval {ratio["low"]:.2f} to {ratio["high"]:.2f}): {rates}.'
  )


def _hit_table(quality: Mapping[str, Any]) -> dict[str, Any]:
  """Returns one row per kind of vectors, the aligned first."""
  vectors: Mapping[str, Mapping[str, Any]] = quality.get('vectors') or {}
  splits = [s for s in _SPLITS if any(s in v for v in vectors.values())]
  order = [n for n in (_AFTER, _BEFORE) if n in vectors]
  order += [n for n in vectors if n not in order]
  examples = [
    f'{words.count(vectors[_AFTER][s].get("examples"))} {_SPLIT_NAMES[s]}'
    for s in splits
    if s in vectors.get(_AFTER, {})
  ]
  return {
    'caption': (
      'Item vectors: the user’s next item among the unseen ones nearest to the'
      f' last item ({" and ".join(examples) or "no"} examples), and the share'
      ' of an item’s ten nearest that have a category of it'
    ),
    'columns': [
      'vectors',
      *(
        f'{figure}, {_SPLIT_NAMES[s]}'
        for s in splits
        for figure in ('Hit@10', 'NDCG@10')
      ),
      'of a shared category',
    ],
    'rows': [
      {
        'ours': name == _AFTER,
        'cells': [
          _NAMES.get(name, name),
          *(
            words.fixed((vectors[name].get(s) or {}).get(key))
            for s in splits
            for key in ('hit@10', 'ndcg@10')
          ),
          words.percent(vectors[name].get('neighbour_category_share')),
        ],
      }
      for name in order
    ],
  }


def _pair_table(found: Mapping[str, Any]) -> dict[str, Any]:
  pairs = found.get('pairs') or {}
  captions = found.get('captions') or {}
  total = sum(pairs.values())
  rows = [
    (
      name,
      f'{words.count(pairs[key])}'
      f' ({words.percent(pairs[key] / max(total, 1))})',
    )
    for name, key in (
      ('pairs from users', 'user_to_item'),
      ('pairs from items (Swing)', 'item_to_item'),
    )
    if key in pairs
  ]
  if captions.get('used'):
    rows += [
      ('items with a caption', words.count(captions.get('items'))),
      ('words of the captions', words.count(captions.get('vocabulary'))),
    ]
  else:
    rows.append(('captions', 'none'))
  training = found.get('training') or {}
  rows.append(
    ('passes over the pairs', words.number(training.get('epochs'), '.1f'))
  )
  return {
    'caption': (
      'What the alignment was trained on; a pair from users is a target and the'
      ' most similar of the items before it'
    ),
    'columns': ['figure', 'value'],
    'rows': [{'cells': row} for row in rows if row[1] != words.UNKNOWN],
  }


def categories(tokenized: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns how the codes agree with categories; None where unknown.

  Args:
    tokenized: result of the stage `tokenize`.
  """
  quality = (tokenized or {}).get('quality') or {}
  levels = quality.get('levels') or ()
  if not any(
    words.is_known(level.get('category_agreement'))
    or level.get('category_information')
    for level in levels
  ):
    return None
  rows = []
  for number, level in enumerate(levels, 1):
    known = level.get('category_information') or {}
    rows.append(
      {
        'cells': [
          f'level {number}',
          words.fixed(level.get('category_agreement'), 3),
          words.fixed(known.get('nmi'), 3),
          words.percent(known.get('purity')),
          words.percent(known.get('largest')),
        ]
      }
    )
  apart = quality.get('category_agreement_of_all_pairs')
  return {
    'caption': (
      'Codes and categories: mean similarity of the categories of two items'
      ' with the same codes up to this level'
      + (f' ({apart:.3f} of any two)' if words.is_known(apart) else '')
      + '; of the level’s code and the main category, the normalised mutual'
      ' information and the share of items in their code’s most frequent'
      ' category, beside that of a single code'
    ),
    'columns': [
      'level', 'same codes', 'information', 'purity', 'purity of one code',
    ],
    'rows': rows,
  }  # fmt: skip
