"""The report's sections on training, semantic IDs and data.

Turns what the stages have written into tables, sentences and pictures.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import schema
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_figures as figures
from onerec_jax.stages import report_words as words


def training(
  records: Sequence[Mapping[str, Any]],
  trained: Mapping[str, Any] | None,
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns the figures of training; adds its pictures."""
  if not records:
    return None
  _curves(records, pictures)
  loads = [r for r in records if r.get('router/load')]
  if loads:
    load = np.asarray(loads[-1]['router/load'], np.float64)
    fair = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-30)
    pictures.add(
      'load',
      figures.expert_load(load.tolist()),
      alt=f'Expert load at step {loads[-1]["step"]}: between {fair.min():.2f}'
      f' and {fair.max():.2f} of a fair share.',
      caption=(
        f'Tokens per expert around step {loads[-1]["step"]}, as a multiple of'
        ' a fair share (1 = balanced).'
      ),
    )
  done = trained or {}
  padding = done.get('padding_share') or {}
  rows = [
    ('steps', words.count(done.get('steps'))),
    ('passes over the data', words.number(done.get('epochs'), '.1f')),
    ('best checkpoint at step', words.count(done.get('best_step'))),
    (
      'examples per second',
      words.number(done.get('examples_per_second'), ',.0f'),
    ),
    ('tokens per second', words.number(done.get('tokens_per_second'), ',.0f')),
    ('goodput, training / all time', words.percent(done.get('goodput'))),
    ('time waiting for data', words.percent(done.get('data_wait_share'))),
    ('starting', words.seconds(done.get('start_seconds'))),
    ('compilation', words.seconds(done.get('compile_seconds'))),
    ('validation', words.seconds(done.get('validation_seconds'))),
    ('waiting for checkpoints', words.seconds(done.get('checkpoint_seconds'))),
    ('lost to restarts', words.seconds(done.get('lost_seconds'))),
    *((f'padding, {n}', words.percent(v)) for n, v in padding.items()),
  ]
  return {
    'table': {
      'columns': ['figure', 'value'],
      'rows': [{'cells': row} for row in rows if row[1] != words.UNKNOWN],
    }
  }


def _curves(
  records: Sequence[Mapping[str, Any]], pictures: words.Pictures
) -> None:
  """Adds every curve that the run has logged."""

  def add(picture: str, names: Mapping[str, str], **options: Any) -> None:
    report_curves.add_curves(
      [(0, records)], names, pictures, picture, **options
    )

  add(
    'loss',
    {'training': 'loss', 'validation': 'valid/loss'},
    caption='Loss (nats per session).',
    label='loss',
    emphasis='validation',
  )
  add(
    'recall_curve',
    {
      'Recall@10': 'valid/recall@10',
      'NDCG@10': 'valid/ndcg@10',
    },
    caption='Ranking of validation targets by the beam search.',
    label='validation',
    emphasis='Recall@10',
  )
  levels = sorted(
    {k for r in records for k in r if 'accuracy/level_' in k},
    key=lambda k: (not k.startswith('valid/'), k),
  )
  # Validation accuracies where there are any: they tell memory from skill.
  chosen = [k for k in levels if k.startswith('valid/')] or levels
  add(
    'accuracy',
    {f'level {int(k.rsplit("_", 1)[1]) + 1}': k for k in chosen},
    caption=(
      'Accuracy of each code given the true codes before it'
      f' ({"validation" if chosen != levels or not chosen else "training"}).'
    ),
    label='accuracy',
    percent=True,
  )
  add(
    'violation',
    {
      'between log lines': 'router/max_violation',
      'single batches': 'router/max_violation_batch',
    },
    caption='MaxVio: load of the busiest expert over the mean, minus 1.',
    label='MaxVio',
    emphasis='between log lines',
  )


def semantic_ids(
  workdir: workdir_lib.Workdir,
  result: Mapping[str, Any] | None,
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns tables on the IDs; adds the picture of their sizes."""
  path = workdir.tokenizer / 'semantic_ids.parquet'
  if not path.exists():
    return None
  ids = catalog.read_semantic_ids(path)
  sizes = [
    np.bincount(ids.codes[:, l], minlength=count)
    for l, count in enumerate(ids.codes_per_level)
  ]
  buckets = np.unique(ids.codes, axis=0, return_counts=True)[1]
  shared = int(buckets[buckets > 1].sum())
  other = _compared_sizes(result)
  used = [float(np.mean(s > 0)) for s in sizes]
  pictures.add(
    'codes',
    figures.code_usage([s.tolist() for s in sizes], other),
    alt='Items per code, sorted. Share of codes in use per level: '
    + ', '.join(f'{100 * u:.0f} %' for u in used),
    caption=(
      'Items on each code, largest first. A flat line uses the codebook'
      ' evenly.'
      + (f' Dashed: {other[0]} on the same vectors.' if other else '')
    ),
  )
  return {
    'summary': (
      f'{ids.num_items:,} items on {buckets.size:,} different IDs;'
      f' {shared:,} items ({100 * shared / ids.num_items:.1f} %) share theirs,'
      f' {buckets.max():,} in the largest group. Table {ids.digest()}.'
    ),
    'levels': {
      'columns': [
        'level', 'codes', 'in use', 'entropy, nats', 'most possible',
        'largest', 'smallest',
      ],
      'rows': [
        {
          'cells': [
            f'level {l + 1}',
            words.count(len(s)),
            f'{100 * used[l]:.1f} %',
            f'{metrics.entropy(s):.3f}',
            f'{np.log(len(s)):.3f}',
            words.count(s.max()),
            words.count(s.min()),
          ]
        }
        for l, s in enumerate(sizes)
      ],
    },
    'quantizers': _quantizers(result),
  }  # fmt: skip


def _compared_sizes(
  result: Mapping[str, Any] | None,
) -> tuple[str, list[list[int]]] | None:
  """Returns name and items per code of the quantizer not used, if stored."""
  for name, entry in (result or {}).get('quantizers', {}).items():
    sizes = [level.get('sizes') for level in entry['levels']]
    if name != (result or {}).get('quantizer') and all(sizes):
      return str(_QUANTIZERS.get(name, name)), sizes
  return None


_QUANTIZERS = {
  'kmeans': 'plain k-means',
  'balanced_kmeans': 'balanced k-means',
  'rqvae': 'RQ-VAE',
}


def _quantizers(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """Returns the comparison of quantizers on the same vectors."""
  entries = (result or {}).get('quantizers')
  if not result or not entries:
    return None

  def per_level(entry: Mapping[str, Any], key: str, form: str) -> str:
    return ' / '.join(format(level[key], form) for level in entry['levels'])

  return {
    'caption': (
      'Quantizers on the same vectors, before collisions are resolved;'
      ' figures per level are divided by slashes'
    ),
    'columns': [
      'quantizer',
      'in use',
      'entropy, nats',
      'largest code',
      'error',
      'sharing an ID',
      'largest group',
    ],
    'rows': [
      {
        'ours': name == result.get('quantizer'),
        'cells': [
          _QUANTIZERS.get(name, name),
          per_level(entry, 'utilisation', '.0%'),
          per_level(entry, 'entropy_nats', '.2f'),
          per_level(entry, 'largest', 'd'),
          words.percent((entry.get('reconstruction') or {}).get('relative')),
          words.percent(entry['ids']['collision_share']),
          words.count(entry['ids']['largest_bucket']),
        ],
      }
      for name, entry in entries.items()
    ],
  }


def data(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sizes and the rules that touched any event."""
  sizes = [
    ('users', words.count(result.get('users'))),
    ('items', words.count(result.get('items'))),
    ('interactions', words.count(result.get('events'))),
    ('of these positive', words.count(result.get('positives'))),
    ('density', words.percent(result.get('density'), 3)),
    *(
      (f'{split} examples', words.count(found.get('examples')))
      for split in schema.SPLITS
      if (found := (result.get('splits') or {}).get(split))
    ),
  ]
  counts = {
    **(result.get('counts') or {}),
    **(result.get('adapter_counts') or {}),
  }
  rules = result.get('rules') or {}
  return {
    'sizes': {
      'columns': ['figure', 'value'],
      'rows': [{'cells': row} for row in sizes if row[1] != words.UNKNOWN],
    },
    'rules': {
      'caption': 'What was repaired, dropped or found',
      'columns': ['rule', 'count'],
      'rows': [
        {
          'cells': [name.replace('_', ' '), words.count(count)],
          'note': rules.get(name, ''),
        }
        for name, count in counts.items()
        if count
      ],
    },
  }
