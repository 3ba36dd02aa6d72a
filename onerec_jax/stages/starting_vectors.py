"""Where the embeddings of codes and of whole IDs start: at the item vectors.

Reads what `embed` and `tokenize` wrote, for model.code_init='codebook'.
"""

from typing import Any
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.semantic_ids import code_vectors
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.semantic_ids import table
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib


class StartingVectors(NamedTuple):
  """What the tokenizer knows of codes and items."""

  vocabulary: vocabulary_lib.Vocabulary
  codebooks: Float[np.ndarray, 'L C Z']
  # What the codes leave over of every item's vector; None: embeddings of whole
  # IDs, if there are any, stay random.
  residuals: Float[np.ndarray, 'I Z'] | None
  codes: Int[np.ndarray, 'I K']  # K = L, or more where IDs have a suffix


def read(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  vocabulary: vocabulary_lib.Vocabulary,
) -> StartingVectors | None:
  """Returns the starting vectors, None: embeddings start at random.

  The codebooks of an RQ-VAE divide its latents, which are not kept: there the
  embeddings of whole IDs stay random.

  Raises:
    FileNotFoundError: `embed` or `tokenize` has not run.
  """
  if experiment.model.code_init == 'random':
    return None
  found = _codebooks(workdir)
  residuals = None
  if experiment.model.id_buckets and experiment.tokenizer.quantizer != 'rqvae':
    vectors = workdir.require(workdir.embeddings, 'embed')
    with vectors.open('rb') as file, np.load(file) as stored:
      residuals = _left_over(found, stored['embeddings'], ids.codes)
  return StartingVectors(vocabulary, found.codebooks, residuals, ids.codes)


def _codebooks(workdir: workdir_lib.Workdir) -> residual_kmeans.Codebooks:
  path = workdir.require(workdir.tokenizer / 'codebooks.npz', 'tokenize')
  return residual_kmeans.read_codebooks(path)


def _left_over(
  found: residual_kmeans.Codebooks, vectors: np.ndarray, codes: np.ndarray
) -> Float[np.ndarray, 'I Z']:
  """Returns item vectors minus the centroids of their codes."""
  return vectors - residual_kmeans.reconstruct(
    found, codes[:, : len(found.codebooks)]
  )


def start(params: Any, vectors: StartingVectors) -> Any:
  """Returns parameters whose embeddings start at the item vectors.

  Codes that only keep items of one ID apart have no centroid and stay random.
  """
  levels, size = vectors.codebooks.shape[:2]
  starts = np.asarray(vectors.vocabulary.offsets[:levels])
  rows = starts[:, None] + np.arange(size)[None]
  embedding = np.array(params['embedding'])
  embedding[rows] = code_vectors.from_codebooks(
    vectors.codebooks, embedding[rows]
  )
  params = {**params, 'embedding': embedding}
  if vectors.residuals is None:
    return params
  ids = np.asarray(params['id_embedding'])
  buckets = vocabulary_lib.id_bucket(jnp.asarray(vectors.codes), len(ids))
  return {
    **params,
    'id_embedding': code_vectors.from_residuals(
      vectors.codebooks, vectors.residuals, np.asarray(buckets), ids
    ),
  }


def with_new_items(
  params: Any,
  vectors: StartingVectors,
  workdir: workdir_lib.Workdir,
  codes: Int[np.ndarray, 'N K'],
  item_vectors: Float[np.ndarray, 'N Z'],
) -> Any:
  """Returns trained parameters in which IDs of new items have an embedding.

  It is the one that they would have started with.  Buckets of IDs that were
  trained stay as they are.

  Args:
    params: trained, whole, NumPy.
    vectors: of the training.
    workdir: with the codebooks.
    codes: IDs of the new items.
    item_vectors: of the new items.
  """
  if vectors.residuals is None:
    return params
  embedding = np.asarray(params['id_embedding'])
  buckets = np.asarray(
    vocabulary_lib.id_bucket(
      jnp.asarray(np.concatenate([vectors.codes, codes])), len(embedding)
    )
  )
  residuals = _left_over(_codebooks(workdir), item_vectors, codes)
  started = code_vectors.from_residuals(
    vectors.codebooks,
    # With those of the training, whose scale theirs is.
    np.concatenate([vectors.residuals, residuals]),
    buckets,
    embedding,
  )
  old = len(vectors.codes)
  fresh = np.setdiff1d(buckets[old:], buckets[:old])
  result = embedding.copy()
  result[fresh] = started[fresh]
  return {**params, 'id_embedding': result}
