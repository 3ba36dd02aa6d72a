"""Stage `tokenize`: item embeddings to semantic IDs, with a quality gate.

Reads embed/item_embeddings.npz and the catalogue; writes codebooks.npz,
semantic_ids.parquet and quality.json, and fails when the IDs are beyond
`config.TokenizerLimits`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import collisions
from onerec_jax.semantic_ids import quality
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.stages import rqvae

# Fitted beside the configured quantizer, for comparison.
_COMPARED: tuple[Literal['balanced_kmeans', 'kmeans'], ...] = (
  'balanced_kmeans',
  'kmeans',
)
# Only up to this catalogue size, as it doubles the time of the stage.
_MAX_COMPARED_ITEMS = 200_000


class _Quantized(NamedTuple):
  """What a quantizer made of the catalogue."""

  codes: np.ndarray  # int32 [I, L]; before collisions are resolved
  codebooks: residual_kmeans.Codebooks
  points: np.ndarray  # float32 [I, Z]; what the codebooks quantize
  reconstruct: Callable[[np.ndarray], np.ndarray]  # [I, L] -> [I, D]
  details: dict[str, Any]  # how it went; extra entries of its report


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Fits the codebooks, encodes the catalogue and judges the result.

  Returns:
    digest, codes_per_level, moved, unresolved; quality: `quality.report` of
    the final IDs; quantizers: by name, the configured quantizer and both
    k-means at the same seed, as encoded and before collisions are resolved.
    All reconstructions are of the item vectors, hence comparable.

  Raises:
    ValueError: the embeddings do not fit the catalogue, there are fewer items
      than codes, or the IDs are beyond tokenizer.limits (quality.json and the
      IDs are written nevertheless, to be looked at).
  """
  config = experiment.tokenizer
  with (
    workdir.require(workdir.embeddings, 'embed').open('rb') as file,
    np.load(file) as arrays,
  ):
    embeddings = arrays['embeddings'].astype(np.float32)
  num_items = catalog.num_items(workdir.data)
  if len(embeddings) != num_items:
    raise ValueError(
      f'{workdir.embeddings} has {len(embeddings)} rows, but the catalogue'
      f' {num_items} items: run the stage embed again after prepare.'
    )
  categories = catalog.item_categories(workdir.data)
  folder = workdir.stage('tokenize')
  mesh = meshes.make_mesh(experiment.mesh)

  # --- Fit and encode ---
  if config.quantizer == 'rqvae':
    quantized = _train_rqvae(embeddings, experiment, workdir, mesh)
  else:
    quantized = _fit_kmeans(
      embeddings, config=config, seed=experiment.seed, mesh=mesh
    )
  resolution = collisions.resolve(
    quantized.codes,
    policy=config.collision,
    codebooks=quantized.codebooks,
    embeddings=quantized.points,
    popularity=catalog.train_counts(workdir.data),
  )
  ids = resolution.ids
  if distributed.is_main():
    residual_kmeans.write_codebooks(
      folder / 'codebooks.npz', quantized.codebooks
    )
    catalog.write_semantic_ids(
      folder / 'semantic_ids.parquet',
      item_ids=catalog.item_ids(workdir.data),
      codes=ids.codes,
      rank_in_bucket=ids.rank_in_bucket,
      codes_per_level=ids.codes_per_level,
    )

  # --- Judge ---
  quantizers = {
    config.quantizer: _describe(quantized, embeddings, categories, config)
  }
  for other in _COMPARED if num_items <= _MAX_COMPARED_ITEMS else ():
    if other != config.quantizer:
      fitted = _fit_kmeans(
        embeddings,
        config=dataclasses.replace(config, quantizer=other),
        seed=experiment.seed,
        mesh=mesh,
      )
      quantizers[other] = _describe(fitted, embeddings, categories, config)
  judged = quality.report(
    ids.codes,
    codes_per_level=ids.codes_per_level,
    embeddings=embeddings,
    reconstructed=quantized.reconstruct(ids.codes[:, : config.levels]),
    categories=categories,
  )
  result = {
    'digest': ids.digest(),
    'codes_per_level': list(ids.codes_per_level),
    'quantizer': config.quantizer,
    'collision': config.collision,
    'moved': resolution.moved,
    'unresolved': resolution.unresolved,
    'quality': judged,
    'quantizers': quantizers,
  }
  if config.quantizer == 'rqvae':
    training = quantized.details['training']
    result['earlier_seconds'] = training['earlier_seconds']
  if distributed.is_main():
    workdir_lib.write_json(folder / 'quality.json', result)
  for name, entry in quantizers.items():
    logging.info(
      '%s: relative reconstruction error %.4f, utilisation %s, entropy %s'
      ' nats, items sharing an ID %.2f %%, largest bucket %d',
      name,
      entry['reconstruction']['relative'],
      ' '.join(f'{level["utilisation"]:.3f}' for level in entry['levels']),
      ' '.join(f'{level["entropy_nats"]:.3f}' for level in entry['levels']),
      100 * entry['ids']['collision_share'],
      entry['ids']['largest_bucket'],
    )
  problems = quality.violations(judged, **dataclasses.asdict(config.limits))
  if problems:
    raise ValueError(
      f'The semantic IDs are beyond tokenizer.limits (report:'
      f' {folder / "quality.json"}):\n  ' + '\n  '.join(problems)
    )
  return result


def codebooks_of(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  embeddings: np.ndarray,
) -> tuple[residual_kmeans.Codebooks, Callable[[np.ndarray], np.ndarray]]:
  """Returns the run's codebooks, and what makes item vectors their points.

  Args:
    experiment: of the run.
    workdir: where the stage is complete.
    embeddings: the item vectors that it quantized. [I, D]
  """
  path = workdir.require(workdir.tokenizer / 'codebooks.npz', 'tokenize')
  if experiment.tokenizer.quantizer != 'rqvae':
    return residual_kmeans.read_codebooks(path), lambda vectors: vectors
  trained = _rqvae_of(
    embeddings, experiment, workdir, meshes.make_mesh(experiment.mesh)
  )
  return trained.codebooks, trained.encode


def _fit_kmeans(
  embeddings: np.ndarray,
  *,
  config: config_lib.TokenizerConfig,
  seed: int,
  mesh: jax.sharding.Mesh,
) -> _Quantized:
  """Returns residual k-means of the item vectors themselves."""
  fit = residual_kmeans.fit_codebooks(
    embeddings, config=config, seed=seed, mesh=mesh
  )
  # While fitting, balanced clusters are even; the nearest codes need not be.
  levels = [
    {
      **level,
      'labels': quality.usage(labels, num_codes=config.codes_per_level),
    }
    for level, labels in zip(fit.levels, fit.fitted_labels.T, strict=True)
  ]
  return _Quantized(
    codes=residual_kmeans.corpus_codes(
      fit, embeddings, assignment=config.corpus_assignment, mesh=mesh
    ),
    codebooks=fit.codebooks,
    points=embeddings,
    reconstruct=lambda c: residual_kmeans.reconstruct(fit.codebooks, c),
    details={'fit': levels},
  )


def _train_rqvae(
  embeddings: np.ndarray,
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> _Quantized:
  """Returns residual codes of a trained encoder's latent vectors."""
  config = experiment.tokenizer
  if config.corpus_assignment != 'nearest':
    raise ValueError(
      f'tokenizer.corpus_assignment={config.corpus_assignment!r} needs balanced'
      " clusters, which tokenizer.quantizer='rqvae' has not: set"
      " tokenizer.corpus_assignment='nearest'."
    )
  trained = _rqvae_of(embeddings, experiment, workdir, mesh)
  latents = trained.encode(embeddings)
  return _Quantized(
    codes=residual_kmeans.encode(trained.codebooks, latents, mesh=mesh),
    codebooks=trained.codebooks,
    points=latents,
    reconstruct=trained.reconstruct,
    details={'training': trained.summary},
  )


def _rqvae_of(
  embeddings: np.ndarray,
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  mesh: jax.sharding.Mesh,
) -> rqvae.Trained:
  """Returns the trained RQ-VAE; trains what is left of it."""
  return rqvae.train(
    embeddings,
    config=experiment.tokenizer,
    seed=experiment.seed,
    mesh=mesh,
    folder=workdir.stage('tokenize') / 'rqvae',
  )


def _describe(
  quantized: _Quantized,
  embeddings: np.ndarray,
  categories: list[list[str]],
  config: config_lib.TokenizerConfig,
) -> dict[str, Any]:
  """Returns the report on the codes before collisions are resolved."""
  described = quality.report(
    quantized.codes,
    codes_per_level=(config.codes_per_level,) * config.levels,
    embeddings=embeddings,
    reconstructed=quantized.reconstruct(quantized.codes),
    categories=categories,
  )
  return {**described, **quantized.details}
