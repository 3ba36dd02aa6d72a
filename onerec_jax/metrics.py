"""Ranking metrics, list quality and AUC, in NumPy.

Every metric is returned per user (or per row), so that slices, intervals and
paired differences are made by the caller from one array.  Pure functions: no
files, no model, no JAX.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped

NO_ITEM = -1  # fills a recommended list that is shorter than its array
NOT_RANKED = np.iinfo(np.int32).max  # rank of a target outside the list


# --- Ranks ------------------------------------------------------------------


def target_ranks(
  recommended: Int[np.ndarray, 'B K'], targets: Int[np.ndarray, 'B M']
) -> Int[np.ndarray, 'B M']:
  """Rank of each target item in its user's list, by item.

    rank = 1 + position of the target in the list

  Args:
    recommended: item indices, best first, no repeats; NO_ITEM fills. [B, K]
    targets: item indices; entries to be ignored may hold anything. [B, M]
  Returns:
    1-based ranks, NOT_RANKED where the list lacks the target. [B, M]
  """
  return _first_match(recommended, targets, np.arange(recommended.shape[1]))


def target_ranks_by_id(
  recommended: Int[np.ndarray, 'B K'],
  targets: Int[np.ndarray, 'B M'],
  *,
  id_of_item: Int[np.ndarray, ' num_items'],
) -> Int[np.ndarray, 'B M']:
  """Rank of each target's semantic ID among the distinct IDs of the list.

    rank = 1 + number of distinct IDs before the first item with the target's

  Items that share an ID share its credit, as in peers that score the
  generated ID and never resolve it to one item.  Do not mix with item ranks.

  Args:
    recommended: item indices, best first; NO_ITEM fills. [B, K]
    targets: item indices, all valid (mask the result, not the input). [B, M]
    id_of_item: a number per item, equal exactly for items that share an ID.
  Returns:
    1-based ranks, NOT_RANKED where no listed item has the target's ID. [B, M]
  """
  listed = recommended != NO_ITEM
  ids = np.where(listed, id_of_item[np.where(listed, recommended, 0)], NO_ITEM)
  # [B, K]: True where an ID appears for the first time in the row.
  same = ids[:, :, None] == ids[:, None, :]
  is_new = listed & (same.argmax(axis=2) == np.arange(ids.shape[1])[None])
  distinct_before = np.cumsum(is_new, axis=1) - is_new
  return _first_match(ids, id_of_item[targets], distinct_before)


def _first_match(
  listed: Int[np.ndarray, 'B K'],
  wanted: Int[np.ndarray, 'B M'],
  position: Int[np.ndarray, '*b K'],
) -> Int[np.ndarray, 'B M']:
  """1 + `position` of the first entry equal to `wanted`, or NOT_RANKED."""
  if listed.shape[1] == 0:
    return np.full(wanted.shape, NOT_RANKED, np.int64)
  hit = (listed[:, None, :] == wanted[:, :, None]) & (
    listed[:, None, :] != NO_ITEM
  )
  first = hit.argmax(axis=2)
  position = np.broadcast_to(position, listed.shape)
  ranks = np.take_along_axis(position, first, axis=1) + 1
  return np.where(hit.any(axis=2), ranks, NOT_RANKED).astype(np.int64)


# --- Ranking metrics, per user ----------------------------------------------


def hit_at_k(
  ranks: Int[np.ndarray, 'B M'],
  where: Bool[np.ndarray, 'B M'] | None = None,
  *,
  k: int,
) -> Float[np.ndarray, ' B']:
  """1 if any target is among the first k, else 0. [B]

  Args:
    ranks: 1-based ranks of the targets. [B, M]
    where: which targets exist; None: all. [B, M]
    k: length of the list that is judged.
  """
  return np.asarray(_found(ranks, where, k).any(axis=1), np.float64)


def recall_at_k(
  ranks: Int[np.ndarray, 'B M'],
  where: Bool[np.ndarray, 'B M'] | None = None,
  *,
  k: int,
) -> Float[np.ndarray, ' B']:
  """Share of the targets among the first k; equals the hit rate if M = 1.

    recall@k = |{targets with rank <= k}| / |targets|

  Args and Returns: as `hit_at_k`; a user without targets scores 0.
  Reference: spec 16.2.
  """
  targets = _count(ranks, where)
  return _found(ranks, where, k).sum(axis=1) / np.maximum(targets, 1)


def ndcg_at_k(
  ranks: Int[np.ndarray, 'B M'],
  where: Bool[np.ndarray, 'B M'] | None = None,
  *,
  k: int,
) -> Float[np.ndarray, ' B']:
  """Discounted gain over the best possible one; 1/log2(rank+1) if M = 1.

    ndcg@k = sum_{rank <= k} 1/log2(rank+1) / sum_{i=1}^{min(k, |targets|)}
             1/log2(i+1)

  Args and Returns: as `hit_at_k`; a user without targets scores 0.
  Reference: Jarvelin & Kekalainen 2002; spec 16.2.
  """
  gain = _found(ranks, where, k) / np.log2(ranks + 1.0)
  discounts = 1 / np.log2(np.arange(1, k + 1) + 1.0)
  ideal = np.concatenate([[0.0], np.cumsum(discounts)])
  best = ideal[np.minimum(_count(ranks, where), k)]
  return gain.sum(axis=1) / np.where(best > 0, best, 1.0)


def mrr_at_k(
  ranks: Int[np.ndarray, 'B M'],
  where: Bool[np.ndarray, 'B M'] | None = None,
  *,
  k: int,
) -> Float[np.ndarray, ' B']:
  """1 / rank of the first target found among the first k, else 0. [B]

  Args: as `hit_at_k`.
  """
  return np.asarray(
    np.max(_found(ranks, where, k) / ranks, axis=1, initial=0.0)
  )


RANKING_METRICS: dict[str, Callable[..., np.ndarray]] = {
  'recall': recall_at_k,
  'ndcg': ndcg_at_k,
  'mrr': mrr_at_k,
  'hit': hit_at_k,
}


def _found(ranks, where, k: int) -> np.ndarray:
  found = ranks <= k
  return found if where is None else found & where


def _count(ranks, where) -> np.ndarray:
  if where is None:
    return np.full(ranks.shape[0], ranks.shape[1])
  return where.sum(axis=1)


# --- List quality -----------------------------------------------------------


def coverage_at_k(
  recommended: Int[np.ndarray, 'B K'], *, num_items: int, k: int
) -> float:
  """Share of the catalogue that is in at least one user's first k."""
  shown = recommended[:, :k]
  return np.unique(shown[shown != NO_ITEM]).size / num_items


def intra_list_diversity(
  recommended: Int[np.ndarray, 'B K'],
  *,
  embeddings: Float[np.ndarray, 'num_items dim'],
  k: int,
) -> Float[np.ndarray, ' B']:
  """1 - mean cosine over the pairs of different items in the first k.

    ILD = 1 - (|sum_i x_i|^2 - n) / (n (n - 1)),  x_i of unit length

  Args:
    recommended: item indices; NO_ITEM fills. [B, K]
    embeddings: one vector per item; zero vectors count as cosine 0.
    k: length of the list that is judged.
  Returns:
    Diversity in [0, 2]; NaN for lists of fewer than two items. [B]
  Reference: Ziegler et al. 2005.
  """
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  units = embeddings / np.where(norms > 0, norms, 1.0)
  result = np.full(recommended.shape[0], np.nan)
  step = max(1, 2**22 // max(1, k * units.shape[1]))  # 4M floats at once
  for start in range(0, recommended.shape[0], step):
    shown = recommended[start : start + step, :k]
    mask = shown != NO_ITEM
    vectors = units[np.where(mask, shown, 0)].astype(np.float64)
    vectors *= mask[:, :, None]
    own = np.square(vectors).sum(axis=(1, 2))
    total = np.square(vectors.sum(axis=1)).sum(axis=1)
    n = mask.sum(axis=1)
    pairs = np.where(n > 1, n * (n - 1), 1)
    result[start : start + step] = np.where(
      n > 1, 1 - (total - own) / pairs, np.nan
    )
  return result


def distinct_category_share(
  recommended: Int[np.ndarray, 'B K'],
  *,
  category_of_item: Int[np.ndarray, ' num_items'],
  k: int,
) -> Float[np.ndarray, ' B']:
  """Number of different categories in the first k / number of items there.

  Items without a category (-1) are left out; NaN if none is left. [B]
  """
  shown = recommended[:, :k]
  listed = shown != NO_ITEM
  category = np.where(listed, category_of_item[np.where(listed, shown, 0)], -1)
  category = np.sort(category, axis=1)
  known = category >= 0
  is_new = known.copy()
  is_new[:, 1:] &= category[:, 1:] != category[:, :-1]
  count = known.sum(axis=1)
  return np.where(count > 0, is_new.sum(axis=1) / np.maximum(count, 1), np.nan)


def entropy(
  weights: Shaped[np.ndarray, '*b C'], axis: int = -1
) -> Float[np.ndarray, '*b']:
  """Entropy of non-negative weights normalised to 1, in nats.

    H = -sum_c p_c ln p_c,  p = weights / sum(weights);  0 ln 0 = 0

  Reference: spec 2.4 (natural logarithm) and 13.1.
  """
  weights = np.asarray(weights, np.float64)
  total = weights.sum(axis=axis, keepdims=True)
  probs = weights / np.where(total > 0, total, 1.0)
  terms = probs * np.log(np.where(probs > 0, probs, 1.0))
  return np.asarray(-np.sum(terms, axis=axis))


# --- AUC --------------------------------------------------------------------


def auc(
  scores: Float[np.ndarray, ' n'], labels: Bool[np.ndarray, ' n']
) -> float:
  """Probability that a positive scores above a negative; ties count 1/2.

    AUC = (sum of the positives' mid-ranks - P (P + 1) / 2) / (P N)

  Returns:
    NaN if there are only positives or only negatives.
  """
  positives = int(labels.sum())
  negatives = labels.size - positives
  if positives == 0 or negatives == 0:
    return float('nan')
  _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  mid_ranks = (last - (counts - 1) / 2)[place.reshape(-1)]
  above = mid_ranks[labels].sum() - positives * (positives + 1) / 2
  return float(above / (positives * negatives))


def grouped_auc(
  scores: Float[np.ndarray, ' n'],
  labels: Bool[np.ndarray, ' n'],
  groups: Int[np.ndarray, ' n'],
) -> float:
  """GAUC: AUC inside each group (user), weighted by the group's size.

  Groups with one class only are left out, in the sum and in the weights.

  Returns:
    NaN if no group has both classes.
  Reference: Zhu et al. 2017, arXiv:1703.02091, section 5.
  """
  order = np.argsort(groups, kind='stable')
  starts = np.flatnonzero(np.diff(groups[order])) + 1
  total = weight = 0.0
  for rows in np.split(order, starts):
    value = auc(scores[rows], labels[rows])
    if not np.isnan(value):
      total += value * rows.size
      weight += rows.size
  return total / weight if weight else float('nan')
