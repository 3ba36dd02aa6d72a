"""Stage `tokenize`: item embeddings to semantic IDs, with a quality gate.

Reads embed/item_embeddings.npz and the catalogue; writes codebooks.npz,
semantic_ids.parquet and quality.json, and fails when the IDs are beyond
`config.TokenizerLimits`.
"""

import dataclasses
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import collisions
from onerec_jax.semantic_ids import quality
from onerec_jax.semantic_ids import residual_kmeans

# The other quantizer is fitted for comparison only up to this catalogue size,
# as it doubles the time of the stage.
_MAX_COMPARED_ITEMS = 200_000


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Fits the codebooks, encodes the catalogue and judges the result.

  Returns:
    digest, codes_per_level, moved, unresolved; quality: `quality.report` of
    the final IDs; quantizers: by name, the configured quantizer and the other
    one at the same seed, as encoded and before collisions are resolved.

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

  # --- Fit and encode ---
  fit, codes, described = _quantize(
    embeddings, categories, config=config, seed=experiment.seed
  )
  resolution = collisions.resolve(
    codes,
    policy=config.collision,
    codebooks=fit.codebooks,
    embeddings=embeddings,
    popularity=catalog.train_counts(workdir.data),
  )
  ids = resolution.ids
  residual_kmeans.write_codebooks(folder / 'codebooks.npz', fit.codebooks)
  catalog.write_semantic_ids(
    folder / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )

  # --- Judge ---
  quantizers = {config.quantizer: described}
  if num_items <= _MAX_COMPARED_ITEMS:
    other = 'kmeans' if config.quantizer != 'kmeans' else 'balanced_kmeans'
    _, _, quantizers[other] = _quantize(
      embeddings,
      categories,
      config=dataclasses.replace(config, quantizer=other),
      seed=experiment.seed,
    )
  judged = quality.report(
    ids.codes,
    codes_per_level=ids.codes_per_level,
    embeddings=embeddings,
    reconstructed=residual_kmeans.reconstruct(
      fit.codebooks, ids.codes[:, : config.levels]
    ),
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


def _quantize(
  embeddings: np.ndarray,
  categories: list[list[str]],
  *,
  config: config_lib.TokenizerConfig,
  seed: int,
) -> tuple[residual_kmeans.Fit, np.ndarray, dict[str, Any]]:
  """Returns a fit, the codes before collisions are resolved, and a report."""
  fit = residual_kmeans.fit_codebooks(embeddings, config=config, seed=seed)
  codes = residual_kmeans.corpus_codes(
    fit, embeddings, assignment=config.corpus_assignment
  )
  described = quality.report(
    codes,
    codes_per_level=(config.codes_per_level,) * config.levels,
    embeddings=embeddings,
    reconstructed=residual_kmeans.reconstruct(fit.codebooks, codes),
    categories=categories,
  )
  # While fitting, balanced clusters are even; the nearest codes need not be.
  described['fit'] = [
    {
      **level,
      'labels': quality.usage(labels, num_codes=config.codes_per_level),
    }
    for level, labels in zip(fit.levels, fit.fitted_labels.T, strict=True)
  ]
  return fit, codes, described
