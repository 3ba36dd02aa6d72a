"""Residual quantizer: item embeddings to semantic-ID codes and back.

Codebooks are fitted level by level on what the levels before left over.
Items of the corpus and new items are encoded by the same compiled function.
Knows nothing of files' places, catalogues or collisions.
"""

import os
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax import sharding
from onerec_jax.semantic_ids import balanced_kmeans
from onerec_jax.semantic_ids import kmeans
from onerec_jax.semantic_ids import point_shards


class Codebooks(NamedTuple):
  codebooks: np.ndarray  # float32 [L, C, D]; centroids of each level
  mean: np.ndarray  # float32 [D]; subtracted from an embedding first


class Fit(NamedTuple):
  codebooks: Codebooks
  # Rows of `embeddings` that the codebooks were fitted on, rising. int64 [F]
  fitted_items: np.ndarray
  # Labels of the clustering; they differ from the nearest codes when the
  # clusters are balanced. int32 [F, L]
  fitted_labels: np.ndarray
  # Per level: iterations, inertia and whether it stopped before the limit.
  levels: list[dict[str, Any]]


def fit_codebooks(
  embeddings: Float[np.ndarray, 'I D'],
  *,
  config: config_lib.TokenizerConfig,
  seed: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Fit:
  """Fits the codebooks of all levels.

    r^1 = x - mean;  C^l = kmeans(r^l);  r^{l+1} = r^l - c^l[label(r^l)]

  where label is the nearest code (config.corpus_assignment = 'nearest') or
  the clustering's own ('balanced').

  Args:
    embeddings: item vectors, finite. Only the mean is removed: the relative
      scale of the dimensions is the meaning of the embedding stage. [I, D]
    config: levels, codes per level, quantizer, iterations, subsampling.
    seed: of the subsample and the initial centroids.
    mesh: devices that the items are split over; None: one device.  The result
      is the same up to the order in which floats are summed.

  Returns:
    The codebooks and how the fit went.

  Raises:
    ValueError: fewer items than codes, or values that are not finite.

  Reference: arXiv:2502.18965, section 3.1; arXiv:2506.13695, section 2.1.2.
  """
  num_items = len(embeddings)
  items = np.arange(num_items)
  if num_items > config.max_fit_items:
    items = np.random.default_rng(seed).choice(
      num_items, config.max_fit_items, replace=False
    )
    items.sort()
  mean = embeddings.mean(0, dtype=np.float64).astype(np.float32)
  residual: Any = (embeddings[items] - mean).astype(np.float32)
  shards = None
  if mesh is None or mesh.size == 1:
    residual = jnp.asarray(residual)
  else:
    residual, shards = point_shards.split(residual, mesh)
  key = jax.random.key(seed)
  codebooks, labels, levels = [], [], []
  for level in range(config.levels):
    clustering = _fit_level(
      residual,
      config=config,
      key=jax.random.fold_in(key, level),
      shards=shards,
    )
    chosen, centroids = clustering.labels, clustering.centroids
    if config.corpus_assignment == 'nearest':
      chosen = kmeans.nearest(residual, centroids, shards=shards).labels
    residual = kmeans.residuals(residual, centroids, chosen, shards=shards)
    codebooks.append(np.asarray(centroids))
    labels.append(
      np.asarray(clustering.labels)
      if shards is None
      else point_shards.fetch(clustering.labels, shards)
    )
    levels.append(
      {
        'iterations': clustering.iterations,
        'stopped_early': clustering.iterations < config.max_iterations,
        'inertia': clustering.inertia,
        'inertias': list(clustering.inertias),
      }
    )
  return Fit(
    Codebooks(np.stack(codebooks), mean), items, np.stack(labels, 1), levels
  )


def _fit_level(residual, *, config, key, shards) -> kmeans.Clustering:
  if config.quantizer == 'kmeans':
    return kmeans.fit_kmeans(
      residual,
      num_clusters=config.codes_per_level,
      key=key,
      init=config.init,
      max_iterations=config.max_iterations,
      tolerance=config.tolerance,
      shards=shards,
    )
  return balanced_kmeans.fit_balanced_kmeans(
    residual,
    num_clusters=config.codes_per_level,
    key=key,
    assignment=config.balanced_assignment,
    init=config.init,
    max_iterations=config.max_iterations,
    tolerance=config.tolerance,
    shards=shards,
  )


def corpus_codes(
  fit: Fit,
  embeddings: Float[np.ndarray, 'I D'],
  *,
  assignment: Literal['nearest', 'balanced'],
  mesh: jax.sharding.Mesh | None = None,
) -> Int[np.ndarray, 'I L']:
  """Returns the codes of the items that the codebooks belong to.

  nearest: one rule for old and new items.  balanced: items that the codebooks
  were fitted on keep the label of the clustering; the rest is nearest.

  Args:
    fit: of the same embeddings, with config.corpus_assignment = `assignment`.
    embeddings: [I, D]
    mesh: devices to encode on; None: one.

  Returns:
    codes. int32 [I, L]

  Reference: arXiv:2502.18965, section 3.1 (nearest) and Algorithm 1
    (balanced).
  """
  codes = encode(fit.codebooks, embeddings, mesh=mesh)
  if assignment == 'balanced':
    codes[fit.fitted_items] = fit.fitted_labels
  return codes


def encode(
  codebooks: Codebooks,
  embeddings: Float[np.ndarray, 'I D'],
  *,
  chunk: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Int[np.ndarray, 'I L']:
  """Encodes any items, also ones that no codebook has seen.

    s^l = argmin_k |r^l - c^l_k|^2,  r^{l+1} = r^l - c^l_{s^l}

  Args:
    codebooks: L levels.
    embeddings: [I, D]
    chunk: items on a device at a time; memory only. None: by size.
    mesh: devices to encode on; None: one.

  Returns:
    codes. int32 [I, L]

  Raises:
    ValueError: the embeddings have another width than the codebooks.

  Reference: arXiv:2502.18965, section 3.1.
  """
  levels, num_codes, dim = codebooks.codebooks.shape
  if embeddings.shape[1] != dim:
    raise ValueError(
      f'embeddings have {embeddings.shape[1]} dimensions, the codebooks'
      f' {dim}: encode with the embedder that the codebooks were fitted on.'
    )
  num_items = len(embeddings)
  codes = np.empty((num_items, levels), np.int32)
  if not num_items:
    return codes
  devices = 1 if mesh is None else mesh.size
  each = -(-num_items // devices)
  rows = min(chunk or kmeans.rows_per_chunk(each, num_codes), each) * devices
  mean, centroids = codebooks.mean, codebooks.codebooks
  if mesh is not None:
    whole = sharding.replicated(mesh)
    mean, centroids = (sharding.place(x, whole) for x in (mean, centroids))
  for start in range(0, num_items, rows):
    # The last chunk starts early enough to be whole: one compiled shape.
    start = max(min(start, num_items - rows), 0)
    part = embeddings[start : start + rows].astype(np.float32)
    if mesh is None:
      codes[start : start + rows] = _encode_rows(part, mean, centroids)
      continue
    placed, shards = point_shards.split(part, mesh)
    codes[start : start + rows] = point_shards.fetch(
      _encode_rows(placed, mean, centroids), shards
    )
  return codes


@jax.jit
def _encode_rows(
  rows: Float[Array, 'I D'],
  mean: Float[Array, ' D'],
  codebooks: Float[Array, 'L C D'],
) -> Int[Array, 'I L']:
  def quantize(residual, centroids):
    code, _ = kmeans.argmin_rows(kmeans.relative_distances(residual, centroids))
    return residual - centroids[code], code

  _, codes = jax.lax.scan(quantize, rows - mean[None], codebooks)
  return codes.T


def reconstruct(
  codebooks: Codebooks, codes: Int[np.ndarray, 'I L']
) -> Float[np.ndarray, 'I D']:
  """Returns the vectors that codes stand for.

    x̂ = mean + Σ_l c^l[s^l]

  Args:
    codebooks: L levels.
    codes: [I, L'], L' <= L; fewer levels give a coarser vector.

  Reference: arXiv:2502.18965, section 3.1.
  """
  vectors = np.broadcast_to(
    codebooks.mean, (len(codes), codebooks.mean.shape[0])
  ).astype(np.float32)
  for level in range(codes.shape[1]):
    vectors += codebooks.codebooks[level][codes[:, level]]
  return vectors


def write_codebooks(path: str | os.PathLike[str], codebooks: Codebooks) -> None:
  """Writes codebooks.npz ('codebooks' [L, C, D], 'mean' [D])."""
  with epath.Path(path).open('wb') as file:
    np.savez(file, codebooks=codebooks.codebooks, mean=codebooks.mean)


def read_codebooks(path: str | os.PathLike[str]) -> Codebooks:
  """Reads what `write_codebooks` wrote."""
  with epath.Path(path).open('rb') as file, np.load(file) as arrays:
    return Codebooks(arrays['codebooks'], arrays['mean'])
