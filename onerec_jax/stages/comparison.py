"""Judges the lists of several methods on the same users, with the same code.

Arrays in, JSON-able figures out: metrics with intervals, list quality, slices
and the paired difference to the best floor.  Knows no model and no file.
"""

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import bootstrap
from onerec_jax import metrics

# Training frequency of the target, both ends included (peers' buckets).
FREQUENCY_SLICES = ((0, 0), (1, 5), (6, 20), (21, None))
_ASIN = re.compile(r'[0-9A-Z]{10}')
_SLICE_METRICS = ('recall', 'ndcg')


def headline_k(top_k: tuple[int, ...]) -> int:
  """Returns the list length of the headline figures: 10 where it is asked."""
  return 10 if 10 in top_k else max(top_k)


def user_values(
  ranks: Int[np.ndarray, 'B M'],
  target_mask: Bool[np.ndarray, 'B M'],
  *,
  top_k: tuple[int, ...],
) -> dict[str, np.ndarray]:
  """Returns every ranking metric per user, keyed 'recall@10' and so on."""
  return {
    f'{name}@{k}': metric(ranks, target_mask, k=k)
    for name, metric in metrics.RANKING_METRICS.items()
    for k in top_k
  }


def intervals(
  values: Mapping[str, np.ndarray], *, samples: int, seed: int
) -> dict[str, dict[str, float]]:
  """Returns mean and 95 % bootstrap bounds of every figure in `values`."""
  table = np.stack(list(values.values()), axis=1)
  draws = bootstrap.resampled_means(table, samples=samples, seed=seed)
  return {
    name: bootstrap.interval_of(table[:, i], draws[:, i])._asdict()
    for i, name in enumerate(values)
  }


def differences(
  a: Mapping[str, np.ndarray],
  b: Mapping[str, np.ndarray],
  *,
  samples: int,
  seed: int,
) -> dict[str, dict[str, float]]:
  """Returns the paired difference a - b of every figure of the same users."""
  results = bootstrap.paired_differences(
    np.stack(list(a.values()), axis=1),
    np.stack([b[name] for name in a], axis=1),
    samples=samples,
    seed=seed,
  )
  return {
    name: result._asdict() for name, result in zip(a, results, strict=True)
  }


def list_quality(
  recommended: Int[np.ndarray, 'B K'],
  *,
  k: int,
  num_items: int,
  embeddings: np.ndarray | None,
  category_of_item: np.ndarray | None,
) -> dict[str, float | None]:
  """Returns coverage and diversity of the first k of all lists.

  Args:
    recommended: item indices, metrics.NO_ITEM fills. [B, K]
    k: length of the lists that are judged.
    num_items: size of the catalogue.
    embeddings: item vectors [num_items, dim]; None: no embedding diversity.
    category_of_item: [num_items], -1 = none; None: no category diversity.
  """
  result: dict[str, float | None] = {
    f'coverage@{k}': metrics.coverage_at_k(
      recommended, num_items=num_items, k=k
    )
  }
  if embeddings is not None:
    diversity = metrics.intra_list_diversity(
      recommended, embeddings=embeddings, k=k
    )
    result[f'diversity@{k}'] = _mean_of_known(diversity)
  if category_of_item is not None and (category_of_item >= 0).any():
    share = metrics.distinct_category_share(
      recommended, category_of_item=category_of_item, k=k
    )
    result[f'distinct_categories@{k}'] = _mean_of_known(share)
  return result


def _mean_of_known(values: np.ndarray) -> float | None:
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else None


# --- Slices -----------------------------------------------------------------


def order_numbers(item_ids: np.ndarray) -> np.ndarray | None:
  """Returns numbers that compare as the original ids do, or None.

  Comparable are whole numbers, and Amazon's ten-character ASINs (as text).

  Args:
    item_ids: original ids as text. [num_items]
  """
  texts = [str(i) for i in item_ids]
  if texts and all(t.isascii() and t.isdigit() for t in texts):
    keys = np.array([int(t) for t in texts], object)
  elif texts and all(_ASIN.fullmatch(t) for t in texts):
    keys = np.array(texts)
  else:
    return None
  return np.unique(keys, return_inverse=True)[1].reshape(-1)


def frequency_slices(
  target_counts: Int[np.ndarray, ' B'],
) -> dict[str, np.ndarray]:
  """Returns a user mask per range of the target's training frequency."""
  return range_slices(target_counts, FREQUENCY_SLICES)


def range_slices(
  values: Int[np.ndarray, ' B'],
  ranges: Sequence[tuple[int, int | None]],
) -> dict[str, np.ndarray]:
  """Returns a user mask per range, both ends included; None: no upper end."""
  result = {}
  for low, high in ranges:
    name = f'{low}' if low == high else f'{low}-{high}'
    mask = values >= low
    if high is None:
      name = f'> {low - 1}'
    else:
      mask &= values <= high
    result[name] = mask
  return result


def order_slices(
  previous: Int[np.ndarray, ' B'],
  target: Int[np.ndarray, ' B'],
  numbers: Int[np.ndarray, ' num_items'],
) -> dict[str, np.ndarray]:
  """Returns user masks: target's original id larger / smaller than the last.

  Logs whose ties are left in id order make 'larger' both frequent and easy;
  a fair order gives about half of the users each.

  Args:
    previous: last history item, metrics.NO_ITEM without history. [B]
    target: the item to be predicted. [B]
    numbers: from `order_numbers`. [num_items]
  """
  has = previous != metrics.NO_ITEM
  before = numbers[np.where(has, previous, 0)]
  return {
    'larger id than the item before': has & (numbers[target] > before),
    'smaller or equal': has & (numbers[target] <= before),
  }


def slice_figures(
  masks: Mapping[str, np.ndarray],
  values: Mapping[str, Mapping[str, np.ndarray]],
  *,
  k: int,
  samples: int,
  seed: int,
) -> list[dict[str, Any]]:
  """Returns users and headline metrics of every method, one row per slice.

  Args:
    masks: slice name -> users in it. [B] each
    values: method -> figure -> value per user. [B] each
    k: list length of the figures that are kept.
    samples: bootstrap resamples.
    seed: of the bootstrap.
  """
  names = [f'{name}@{k}' for name in _SLICE_METRICS]
  rows = []
  for label, mask in masks.items():
    count = int(mask.sum())
    methods = {
      method: intervals(
        {n: figures[n][mask] for n in names}, samples=samples, seed=seed
      )
      for method, figures in values.items()
      if count
    }
    rows.append({'slice': label, 'users': count, 'methods': methods})
  return rows


# --- All of it --------------------------------------------------------------


def compare(
  lists: Mapping[str, np.ndarray],
  *,
  ours: str,
  before: str | None = None,
  targets: Int[np.ndarray, 'B M'],
  target_mask: Bool[np.ndarray, 'B M'],
  previous: Int[np.ndarray, ' B'],
  top_k: tuple[int, ...],
  id_of_item: Int[np.ndarray, ' num_items'],
  train_counts: Int[np.ndarray, ' num_items'],
  item_ids: np.ndarray,
  embeddings: np.ndarray | None,
  category_of_item: np.ndarray | None,
  samples: int,
  seed: int,
) -> dict[str, Any]:
  """Returns all figures of all methods on the same users (JSON-able).

  Args:
    lists: method -> recommended items, NO_ITEM fills. [B, K]
    ours: the method that is compared with the others, the floors.
    before: our model before alignment, which is no floor; None: there is none.
    targets: items to be predicted, all valid indices. [B, M]
    target_mask: which of them exist; the first always does. [B, M]
    previous: last history item of the user, NO_ITEM without history. [B]
    top_k: list lengths to report.
    id_of_item: equal for items with equal semantic IDs. [num_items]
    train_counts: training events per item. [num_items]
    item_ids: original ids. [num_items]
    embeddings: item vectors, or None. [num_items, dim]
    category_of_item: category numbers, -1 = none, or None. [num_items]
    samples: bootstrap resamples.
    seed: of the bootstrap.
  """
  k = headline_k(top_k)
  boot = {'samples': samples, 'seed': seed}
  values = {
    method: user_values(
      metrics.target_ranks(items, targets), target_mask, top_k=top_k
    )
    for method, items in lists.items()
  }
  by_id = {
    method: user_values(
      metrics.target_ranks_by_id(items, targets, id_of_item=id_of_item),
      target_mask,
      top_k=top_k,
    )
    for method, items in lists.items()
  }
  floors = [method for method in lists if method not in (ours, before)]
  best = max(floors, key=lambda m: values[m][f'recall@{k}'].mean())
  target = targets[:, 0]
  slices = {
    'training frequency of the target': slice_figures(
      frequency_slices(train_counts[target]), values, k=k, **boot
    )
  }
  numbers = order_numbers(item_ids)
  if numbers is not None:
    slices['order of the original ids'] = slice_figures(
      order_slices(previous, target, numbers), values, k=k, **boot
    )
  moved = None
  if before is not None:
    moved = differences(values[ours], values[before], **boot)
  return {
    'headline_k': k,
    'difference_to_before': moved,
    'metrics': {m: intervals(v, **boot) for m, v in values.items()},
    'metrics_by_id': {m: intervals(v, **boot) for m, v in by_id.items()},
    'list_quality': {
      method: list_quality(
        items,
        k=k,
        num_items=train_counts.size,
        embeddings=embeddings,
        category_of_item=category_of_item,
      )
      for method, items in lists.items()
    },
    'best_floor': best,
    'difference_to_best_floor': differences(values[ours], values[best], **boot),
    'slices': slices,
  }
