"""What item vectors are worth before and after alignment.

Next-item hit rates, neighbours and their categories, for the result of the
stage `embed`.  Held-out events are read to rate vectors, never to make them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import bootstrap
from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import neighbours

_TOP_K = 10
_SPLITS = ('valid', 'test')
# Bound the time of the report: examples of a split, and items whose
# neighbours are looked at; evenly spaced if there are more.
_MAX_EXAMPLES = 25_000
_MAX_ITEMS = 5_000
_SHOWN_ITEMS = 5
_SHOWN_NEIGHBOURS = 5
_RESAMPLES = 1_000


def report(
  vectors: Mapping[str, np.ndarray], workdir: workdir_lib.Workdir, *, seed: int
) -> dict[str, Any]:
  """Compares item vectors by their nearest items (cosine).

  Args:
    vectors: 'unaligned' and 'aligned', and others by name, one row per item
      of the catalogue; zero: no vector. [I, D] each
    workdir: of the run.
    seed: of the bootstrap.

  Returns:
    vectors: per name and split ('valid', 'test'), as far as it has examples,
      'examples', 'hit@10' and 'ndcg@10' of the first target among the unseen
      items nearest to the last history item; 'neighbour_category_share', the
      share of the ten nearest items with a category of the item (None:
      without categories).
    aligned_over_unaligned: per split, the ratio of hit@10 with the bounds of
      its paired bootstrap interval (95 %); None where unaligned never hits.
    neighbours: of the most popular items, the titles of the nearest items by
      both vectors.
  """
  result: dict[str, Any] = {'vectors': {name: {} for name in vectors}}
  ratios: dict[str, Any] = {}
  for split in _SPLITS:
    path = workdir.data / 'examples' / f'{split}.arrayrecord'
    if not path.exists():
      continue
    transitions = neighbours.read_transitions(
      examples.ExampleStore(path), max_examples=_MAX_EXAMPLES
    )
    if not len(transitions.targets):
      continue
    hits = {}
    for name, values in vectors.items():
      ranks = neighbours.target_ranks(values, transitions)[:, None]
      hits[name] = metrics.hit_at_k(ranks, k=_TOP_K)
      result['vectors'][name][split] = {
        'examples': len(ranks),
        f'hit@{_TOP_K}': float(hits[name].mean()),
        f'ndcg@{_TOP_K}': float(metrics.ndcg_at_k(ranks, k=_TOP_K).mean()),
      }
    ratios[split] = _ratio(hits['aligned'], hits['unaligned'], seed=seed)
    logging.info(
      'item vectors, %s, hit@%d of the next item: %s; aligned/unaligned %s',
      split,
      _TOP_K,
      ', '.join(f'{name} {h.mean():.4f}' for name, h in hits.items()),
      ratios[split],
    )
  result['aligned_over_unaligned'] = ratios

  # --- Neighbours ---
  num_items = catalog.num_items(workdir.data)
  categories = catalog.item_categories(workdir.data)
  count = min(num_items, _MAX_ITEMS)
  items = np.arange(count) * num_items // count
  popular = np.argsort(-catalog.train_counts(workdir.data), kind='stable')
  popular = popular[:_SHOWN_ITEMS]
  titles = catalog.item_titles(workdir.data)
  shown = [{'item': titles[i]} for i in popular.tolist()]
  top_k = min(_TOP_K, num_items - 1)
  for name, values in vectors.items():
    near = neighbours.nearest_items(values, items, top_k=top_k)
    share = neighbours.category_share(near, items, categories)
    result['vectors'][name]['neighbour_category_share'] = share
    near = neighbours.nearest_items(
      values, popular, top_k=min(_SHOWN_NEIGHBOURS, top_k)
    )
    for entry, row in zip(shown, near.tolist(), strict=True):
      entry[name] = [titles[j] for j in row if j != metrics.NO_ITEM]
  result['neighbours'] = shown
  return result


def _ratio(
  ours: np.ndarray, theirs: np.ndarray, *, seed: int
) -> dict[str, float] | None:
  """Returns mean(ours) / mean(theirs) with its interval, or None."""
  if not theirs.any():
    return None
  draws = bootstrap.resampled_means(
    np.stack([ours, theirs], axis=1), samples=_RESAMPLES, seed=seed
  )
  draws = draws[draws[:, 1] > 0]
  low, high = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
  return {
    'ratio': float(ours.mean() / theirs.mean()),
    'low': float(low),
    'high': float(high),
  }
