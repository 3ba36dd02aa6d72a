"""Items that share a semantic ID: keep, append a code, or move.

Works on whole catalogues (`resolve`) and on items that arrive later
(`encode_new_items`), whose arrival never changes the ID of an older item.
Plain NumPy.
"""

from typing import Literal
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.semantic_ids import table

Policy = Literal['bucket', 'append', 'reassign']

# Rows of distances held at a time while items are moved, elements (64 MB).
_TILE_ELEMENTS = 2**24


class Resolution(NamedTuple):
  ids: table.SemanticIds
  moved: int  # items whose last code is not the nearest one ('reassign')
  # Items that share an ID although the policy should have separated them,
  # because no free code was left.  0 for 'bucket', which separates none.
  unresolved: int


def resolve(
  codes: Int[np.ndarray, 'I L'],
  *,
  policy: Policy,
  codebooks: residual_kmeans.Codebooks,
  embeddings: Float[np.ndarray, 'I D'],
  popularity: np.ndarray,
) -> Resolution:
  """Builds the table of a catalogue, with collisions handled by `policy`.

  bucket: items that share an ID stay together, most popular first.
  append: one more level numbers the items of a bucket, most popular 0
    (TIGER).  The level has as many codes as the largest bucket has items.
  reassign: the most popular item of a bucket keeps its ID; each further one,
    by falling popularity, takes the nearest code of the last level that is
    free behind the same prefix, and stays if there is none.

  Args:
    codes: as encoded. [I, L]
    policy: see above.
    codebooks: the levels' centroids ('reassign' looks at the last).
    embeddings: item vectors ('reassign'). [I, D]
    popularity: e.g. training positives; ties go to the lower item. [I]

  Reference: TIGER, arXiv:2305.05065, section 3.1 (append).
  """
  num_codes = codebooks.codebooks.shape[1]
  sizes = (num_codes,) * codes.shape[1]
  codes = np.asarray(codes, np.int32)
  if policy == 'bucket':
    ids = table.from_codes(codes, codes_per_level=sizes, popularity=popularity)
    return Resolution(ids, moved=0, unresolved=0)
  rank = table.rank_in_bucket(codes, popularity)
  if policy == 'append':
    appended = np.concatenate([codes, rank[:, None]], 1)
    ids = table.SemanticIds(
      appended, (*sizes, int(rank.max()) + 1), np.zeros_like(rank)
    )
    return Resolution(ids, moved=0, unresolved=0)
  order = np.lexsort((rank, -np.asarray(popularity, np.float64)))
  moving = order[rank[order] > 0]
  new, moved = _move(codes, moving, codebooks, embeddings)
  ids = table.from_codes(new, codes_per_level=sizes, popularity=popularity)
  return Resolution(ids, moved, unresolved=int((ids.rank_in_bucket > 0).sum()))


def encode_new_items(
  codebooks: residual_kmeans.Codebooks,
  embeddings: Float[np.ndarray, 'N D'],
  *,
  existing: table.SemanticIds,
  policy: Policy,
) -> Resolution:
  """Appends new items to a table without retraining or changing old rows.

  New items come after the old ones of their bucket, in the given order.
  append: an item takes the next number of its bucket; when the level's codes
  are used up (its size is part of the trained vocabulary), it shares the last
  number and counts as unresolved.  reassign: as in `resolve`.

  Args:
    codebooks: those that the table was made with.
    embeddings: vectors of the new items, from the same embedder. [N, D]
    existing: the table so far.
    policy: the one that the table was made with.

  Returns:
    The table of old rows followed by new rows, same codes_per_level.

  Raises:
    ValueError: the table does not fit the codebooks and the policy.
  """
  levels = codebooks.codebooks.shape[0]
  expected = levels + (policy == 'append')
  if existing.levels != expected:
    raise ValueError(
      f'The table has {existing.levels} levels, but {levels} codebooks with'
      f' policy {policy!r} make {expected}: pass the codebooks and the'
      ' tokenizer.collision that the table was made with.'
    )
  num_old = existing.num_items
  new = residual_kmeans.encode(codebooks, embeddings)
  codes = np.concatenate([existing.codes[:, :levels], new])
  moved = unresolved = 0
  if policy == 'append':
    # Numbers already given, then the next ones in order of arrival.
    number = _arrival_rank(codes, existing.codes[:, levels], num_old)
    last = existing.codes_per_level[-1] - 1
    unresolved = int((number[num_old:] > last).sum())
    codes = np.concatenate([codes, np.minimum(number, last)[:, None]], 1)
  elif policy == 'reassign':
    bucket = table.bucket_of(codes)
    taken = np.zeros(int(bucket.max()) + 1, bool)
    taken[bucket[:num_old]] = True
    # The first new item of an untaken ID keeps it.
    first_seen = np.unique(bucket, return_index=True)[1]
    keeps = np.zeros(len(codes), bool)
    keeps[first_seen] = True
    moving = np.flatnonzero(~keeps)
    moving = moving[moving >= num_old]
    everything = np.zeros((len(codes), embeddings.shape[1]), np.float32)
    everything[num_old:] = embeddings
    codes, moved = _move(codes, moving, codebooks, everything)
  rank = _arrival_rank(codes, existing.rank_in_bucket, num_old)
  if policy == 'reassign':
    unresolved = int((rank[num_old:] > 0).sum())
  ids = table.SemanticIds(
    codes.astype(np.int32), existing.codes_per_level, rank
  )
  return Resolution(ids, moved, unresolved)


def share_ids(
  codebooks: residual_kmeans.Codebooks,
  embeddings: Float[np.ndarray, 'N D'],
  *,
  existing: table.SemanticIds,
) -> Resolution:
  """Appends new items to a table under IDs that older items have.

    id(x) = argmin over the IDs u of the table of |x - Σ_l c^l_{u_l}|^2

  A model knows these IDs, so that it reads and generates new items at once, as
  what they are most like.  They come behind the older items of their ID, in
  the given order; ties go to the ID of the lower codes.

  Args:
    codebooks: those that the table was made with.
    embeddings: vectors of the new items, from the same embedder. [N, D]
    existing: the table so far; a level of numbers ('append') stands for
      nothing, so that the first item of a bucket is shared with.
  """
  taken = np.unique(existing.codes, axis=0)
  levels = len(codebooks.codebooks)
  centroids = residual_kmeans.reconstruct(codebooks, taken[:, :levels])
  norms = (centroids**2).sum(1)
  codes = np.empty((len(embeddings), existing.levels), np.int32)
  rows = max(1, _TILE_ELEMENTS // len(taken))
  for start in range(0, len(embeddings), rows):
    products = embeddings[start : start + rows] @ centroids.T
    codes[start : start + rows] = taken[np.argmin(norms - 2 * products, axis=1)]
  whole = np.concatenate([existing.codes, codes])
  rank = _arrival_rank(whole, existing.rank_in_bucket, existing.num_items)
  ids = table.SemanticIds(whole, existing.codes_per_level, rank)
  return Resolution(ids, moved=0, unresolved=0)


def _arrival_rank(codes, old_rank, num_old) -> np.ndarray:
  """Returns old ranks, continued for new rows in order of arrival."""
  bucket = table.bucket_of(codes)
  next_rank = np.zeros(int(bucket.max(initial=-1)) + 1, np.int32)
  np.maximum.at(next_rank, bucket[:num_old], old_rank + 1)
  new_bucket = bucket[num_old:]
  arrival = table.rank_in_bucket(new_bucket[:, None], np.zeros(len(new_bucket)))
  return np.concatenate([old_rank, next_rank[new_bucket] + arrival]).astype(
    np.int32
  )


def _move(codes, moving, codebooks, embeddings) -> tuple[np.ndarray, int]:
  """Gives the items `moving` (in this order) free last codes, if any."""
  codes = codes.copy()
  last = codebooks.codebooks[-1]
  prefix = table.bucket_of(codes[:, :-1])
  used: dict[int, np.ndarray] = {}
  crowded = np.isin(prefix, prefix[moving])
  pairs = zip(
    prefix[crowded].tolist(), codes[crowded, -1].tolist(), strict=True
  )
  for group, code in pairs:
    used.setdefault(group, np.zeros(len(last), bool))[code] = True
  moved = 0
  rows = max(1, _TILE_ELEMENTS // len(last))
  for start in range(0, len(moving), rows):
    items = moving[start : start + rows]
    residual = embeddings[items] - residual_kmeans.reconstruct(
      codebooks, codes[items, :-1]
    )
    distances = (last**2).sum(1)[None] - 2 * residual @ last.T
    for item, row in zip(items, distances, strict=True):
      free = used[int(prefix[item])]
      if free.all():
        continue
      code = int(np.argmin(np.where(free, np.inf, row)))
      free[code] = True
      codes[item, -1] = code
      moved += 1
  return codes, moved
