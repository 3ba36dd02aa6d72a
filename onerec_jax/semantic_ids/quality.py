"""How good a set of semantic IDs is, before any model is trained on it.

Pure NumPy on codes; returns plain dictionaries for result.json.  Judges no
recommendations: that is `evaluate`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import table


def usage(codes: Int[np.ndarray, ' I'], *, num_codes: int) -> dict[str, Any]:
  """Describes how evenly the codes of one level are used.

    utilisation = #{k: n_k > 0} / C;  entropy = -Σ_k p_k ln p_k, p_k = n_k / I
    gini = Σ_j (2j - C - 1) n_(j) / (C · I), n_(1) <= ... <= n_(C)

  Args:
    codes: code of each item. [I], I >= 1
    num_codes: C

  Returns:
    utilisation (0..1), entropy_nats, max_entropy_nats (ln C), smallest and
    largest (items per code) and gini (0 = even, towards 1 = one code).

  Reference: arXiv:2506.13695, table of tokenizer metrics.
  """
  counts = np.bincount(codes, minlength=num_codes)
  share = counts[counts > 0] / len(codes)
  place = 2 * np.arange(1, num_codes + 1) - num_codes - 1
  return {
    'codes': num_codes,
    'utilisation': float((counts > 0).mean()),
    'entropy_nats': float(-(share * np.log(share)).sum()) + 0.0,
    'max_entropy_nats': float(np.log(num_codes)),
    'smallest': int(counts.min()),
    'largest': int(counts.max()),
    'gini': float((place * np.sort(counts)).sum() / (num_codes * len(codes))),
  }


def reconstruction(
  embeddings: Float[np.ndarray, 'I D'],
  reconstructed: Float[np.ndarray, 'I D'],
) -> dict[str, float]:
  """Measures what the codes lose of the embeddings.

    mse = mean((x - x̂)^2) over items and dimensions
    relative = Σ|x - x̂|^2 / Σ|x|^2;  unexplained = Σ|x - x̂|^2 / Σ|x - x̄|^2

  Args:
    embeddings: x. [I, D]
    reconstructed: x̂. [I, D]

  Reference: arXiv:2506.13695, table of tokenizer metrics (scale unstated, so
    all three are given).
  """
  x = np.asarray(embeddings, np.float64)
  error = ((x - reconstructed) ** 2).sum()
  tiny = np.finfo(np.float64).tiny  # all-zero or constant embeddings
  return {
    'mse': float(error / x.size),
    'relative': float(error / max((x**2).sum(), tiny)),
    'unexplained': float(error / max(((x - x.mean(0)) ** 2).sum(), tiny)),
  }


def sharing(bucket: Int[np.ndarray, ' I']) -> dict[str, Any]:
  """Describes how many items share a bucket.

  Args:
    bucket: number of the bucket of each item. [I], I >= 1

  Returns:
    distinct (buckets in use), collision_share (share of items that are not
    alone) and largest_bucket.
  """
  counts = np.bincount(bucket)
  return {
    'distinct': int((counts > 0).sum()),
    'collision_share': float(counts[counts > 1].sum() / len(bucket)),
    'largest_bucket': int(counts.max()),
  }


def category_agreement(
  bucket: Int[np.ndarray, ' I'], categories: Sequence[Sequence[str]]
) -> float | None:
  """Returns how alike the categories of two items in one bucket are.

  Mean cosine, over all pairs of different items in one bucket, of their
  category vectors: 1 for each category of the item, weighted by its inverse
  document frequency ln(I / n_c), so that what all items share counts nothing.

  Args:
    bucket: number of the bucket of each item. [I]
    categories: names, possibly none, of each item. [I]

  Returns:
    A value in 0..1; None when no two items with categories share a bucket.
  """
  names = {name for item in categories for name in item}
  number = {name: i for i, name in enumerate(sorted(names))}
  pairs = sorted(
    (i, number[name]) for i, item in enumerate(categories) for name in set(item)
  )
  if not pairs:
    return None
  item, category = np.array(pairs).T
  weight = np.log(len(categories) / np.bincount(category))[category]
  length = np.sqrt(np.bincount(item, weight**2, len(categories)))
  known = length > 0
  keep = known[item]
  item, category = item[keep], category[keep]
  weight = weight[keep] / length[item]
  # Σ_{i≠j} u_i·u_j = |Σ_i u_i|^2 - Σ_i |u_i|^2 within each bucket.
  _, cell = np.unique(
    np.stack([bucket[item], category], 1), axis=0, return_inverse=True
  )
  sums = np.bincount(cell.reshape(-1), weight)
  counts = np.bincount(bucket[known]).astype(np.float64)
  num_pairs = (counts * (counts - 1)).sum()
  if num_pairs == 0:
    return None
  return float(((sums**2).sum() - known.sum()) / num_pairs)


def category_information(
  codes: Int[np.ndarray, ' I'], categories: Sequence[Sequence[str]]
) -> dict[str, Any] | None:
  """Returns how much a level's codes and the items' main categories agree.

    nmi = I(code; category) / ((H(code) + H(category)) / 2)
    purity = Σ_k max_c n_kc / I;  largest = max_c n_c / I

  The main category of an item is the first that at most half of the items
  have: paths begin with what all items share.  Items without one are left
  out.  Both figures rise with the number of codes, so that they compare
  quantizers of one size; `largest` is the purity of a single code.

  Args:
    codes: code of each item. [I]
    categories: names of each item, general ones first. [I]

  Returns:
    items (with a main category), categories (distinct ones), nmi, purity and
    largest, all in 0..1; None with fewer than two main categories.
  """
  counts: dict[str, int] = {}
  for names in categories:
    for name in set(names):
      counts[name] = counts.get(name, 0) + 1
  half = len(categories) / 2
  main = [
    next((name for name in names if counts[name] <= half), None)
    for names in categories
  ]
  known = [i for i, name in enumerate(main) if name is not None]
  names = np.array([main[i] for i in known], dtype=str)
  found, category = np.unique(names, return_inverse=True)
  if len(found) < 2:
    return None
  code = np.unique(codes[known], return_inverse=True)[1].reshape(-1)
  joint = np.zeros((code.max() + 1, len(found)))
  np.add.at(joint, (code, category), 1 / len(code))

  def entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())

  of_code, of_category = entropy(joint.sum(1)), entropy(joint.sum(0))
  shared = of_code + of_category - entropy(joint.reshape(-1))
  return {
    'items': len(category),
    'categories': len(found),
    'nmi': max(2 * shared / (of_code + of_category), 0.0),
    'purity': float(joint.max(axis=1).sum()),
    'largest': float(joint.sum(0).max()),
  }


def report(
  codes: Int[np.ndarray, 'I L'],
  *,
  codes_per_level: tuple[int, ...],
  embeddings: Float[np.ndarray, 'I D'] | None = None,
  reconstructed: Float[np.ndarray, 'I D'] | None = None,
  categories: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
  """Describes a set of semantic IDs.

  Args:
    codes: [I, L], I >= 1
    codes_per_level: [L]
    embeddings: with `reconstructed`: adds 'reconstruction'. [I, D]
    reconstructed: vectors that the codes stand for. [I, D]
    categories: adds 'category_agreement' per prefix and over all pairs, and
      'category_information' per level.

  Returns:
    items; levels: `usage` of each level with 'prefix': `sharing` of the codes
    up to that level; ids: `sharing` of whole IDs; and the optional parts.
  """
  levels = []
  for level, num_codes in enumerate(codes_per_level):
    prefix = table.bucket_of(codes[:, : level + 1])
    entry = usage(codes[:, level], num_codes=num_codes)
    entry['prefix'] = sharing(prefix)
    if categories is not None:
      entry['category_agreement'] = category_agreement(prefix, categories)
      entry['category_information'] = category_information(
        codes[:, level], categories
      )
    levels.append(entry)
  result = {
    'items': len(codes),
    'levels': levels,
    'ids': sharing(table.bucket_of(codes)),
  }
  if categories is not None:
    everything = np.zeros(len(codes), np.int64)
    result['category_agreement_of_all_pairs'] = category_agreement(
      everything, categories
    )
  if embeddings is not None and reconstructed is not None:
    result['reconstruction'] = reconstruction(embeddings, reconstructed)
  return result


def violations(
  quality: dict[str, Any],
  *,
  min_utilisation: float,
  max_bucket: int | None,
  max_collision_share: float,
) -> list[str]:
  """Returns one sentence for each limit that a report is beyond.

  Args:
    quality: from `report`.
    min_utilisation: least share of codes in use, on every level.
    max_bucket: most items with one ID; None: any.
    max_collision_share: largest share of items without an ID of their own.
  """
  found = []
  for level, entry in enumerate(quality['levels']):
    if entry['utilisation'] < min_utilisation:
      found.append(
        f'level {level} uses {entry["utilisation"]:.1%} of its'
        f' {entry["codes"]} codes, tokenizer.limits.min_utilisation='
        f'{min_utilisation}: lower tokenizer.codes_per_level, or use'
        " tokenizer.quantizer='balanced_kmeans'."
      )
  ids = quality['ids']
  if max_bucket is not None and ids['largest_bucket'] > max_bucket:
    found.append(
      f'{ids["largest_bucket"]} items share one ID,'
      f' tokenizer.limits.max_bucket={max_bucket}: raise tokenizer.levels or'
      " codes_per_level, or set tokenizer.collision='reassign'."
    )
  if ids['collision_share'] > max_collision_share:
    found.append(
      f'{ids["collision_share"]:.1%} of the items share their ID,'
      f' tokenizer.limits.max_collision_share={max_collision_share}: raise'
      ' tokenizer.levels or codes_per_level, or set tokenizer.collision.'
    )
  return found
