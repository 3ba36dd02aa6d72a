"""Stage `tokenize`: files, report, and the quality gate."""

import dataclasses
import functools
import json

import jax
import numpy as np
import polars as pl
import pytest

from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import point_shards
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.stages import tokenize

_NUM_ITEMS = 60
_EXPERIMENT = config_lib.Experiment(
  tokenizer=config_lib.TokenizerConfig(
    levels=2,
    codes_per_level=8,
    max_iterations=4,
    limits=config_lib.TokenizerLimits(max_collision_share=1.0),
  )
)


def _workdir(path) -> workdir_lib.Workdir:
  workdir = workdir_lib.Workdir(path)
  number = np.arange(_NUM_ITEMS)
  items = pl.DataFrame(
    {
      'item': number.astype(np.int32),
      'item_id': [f'id{i}' for i in number],
      'title': [f'title {i}' for i in number],
      'text': ['' for _ in number],
      'categories': [['all', f'c{i % 4}'] for i in number],
      'train_positives': number.astype(np.int32),
    }
  )
  catalog.write_tables(workdir.data, items.head(0), items, items.head(0))
  rng = np.random.default_rng(0)
  centres = 4 * rng.normal(size=(4, 5))
  workdir.stage('embed')
  with workdir.embeddings.open('wb') as file:
    np.savez(
      file,
      embeddings=(
        centres[number % 4] + rng.normal(size=(_NUM_ITEMS, 5))
      ).astype('f4'),
    )
  return workdir


def _with(**changes) -> config_lib.Experiment:
  return dataclasses.replace(
    _EXPERIMENT,
    tokenizer=dataclasses.replace(_EXPERIMENT.tokenizer, **changes),
  )


def test_files_and_result_agree(tmp_path):
  workdir = _workdir(tmp_path)
  result = tokenize.run(_EXPERIMENT, workdir)
  ids = catalog.read_semantic_ids(workdir.tokenizer / 'semantic_ids.parquet')
  assert ids.digest() == result['digest']
  with np.load(workdir.embeddings) as arrays:
    embeddings = arrays['embeddings']
  codebooks = residual_kmeans.read_codebooks(
    workdir.tokenizer / 'codebooks.npz'
  )
  np.testing.assert_array_equal(
    ids.codes, residual_kmeans.encode(codebooks, embeddings)
  )
  # Both k-means are reported; while fitting, balanced clusters are even.
  balanced = result['quantizers']['balanced_kmeans']
  for level in balanced['fit']:
    assert level['labels']['largest'] - level['labels']['smallest'] == 1
  plain = result['quantizers']['kmeans']
  assert plain['reconstruction']['relative'] < 1
  # The groups are the categories: the first code tells them apart.
  agreement = result['quality']['levels'][0]['category_agreement']
  assert agreement > 0.9 > result['quality']['category_agreement_of_all_pairs']
  assert json.loads((workdir.tokenizer / 'quality.json').read_text()) == result
  assert tokenize.run(_EXPERIMENT, workdir)['digest'] == result['digest']


def test_ids_are_fitted_on_all_devices_and_equal_those_of_one(
  tmp_path, monkeypatch
):
  split, sizes = point_shards.split, []

  def spy(points, mesh):
    sizes.append(mesh.size)
    return split(points, mesh)

  monkeypatch.setattr(point_shards, 'split', spy)
  whole = tokenize.run(_EXPERIMENT, _workdir(tmp_path / 'all'))
  assert sizes
  assert set(sizes) == {8}
  monkeypatch.setattr(
    meshes,
    'make_mesh',
    functools.partial(meshes.make_mesh, devices=jax.devices()[:1]),
  )
  alone = tokenize.run(_EXPERIMENT, _workdir(tmp_path / 'one'))
  assert alone['digest'] == whole['digest']
  assert alone['quality']['ids'] == whole['quality']['ids']


def test_append_makes_every_id_unique(tmp_path):
  workdir = _workdir(tmp_path)
  result = tokenize.run(_with(collision='append'), workdir)
  assert result['quality']['ids']['distinct'] == _NUM_ITEMS
  assert len(result['codes_per_level']) == 3


def test_ids_beyond_the_limits_fail_after_the_report_is_written(tmp_path):
  workdir = _workdir(tmp_path)
  limits = config_lib.TokenizerLimits(max_bucket=1, max_collision_share=0.0)
  experiment = _with(codes_per_level=2, limits=limits)
  with pytest.raises(ValueError, match=r'max_bucket=1') as error:
    tokenize.run(experiment, workdir)
  assert 'max_collision_share=0.0' in str(error.value)
  report = json.loads((workdir.tokenizer / 'quality.json').read_text())
  assert report['quality']['ids']['largest_bucket'] > 1


def test_embeddings_of_another_catalogue_are_refused(tmp_path):
  workdir = _workdir(tmp_path)
  with workdir.embeddings.open('wb') as file:
    np.savez(file, embeddings=np.zeros((3, 5), 'f4'))
  with pytest.raises(ValueError, match='3 rows, but the catalogue 60'):
    tokenize.run(_EXPERIMENT, workdir)


def test_more_codes_than_items_are_refused(tmp_path):
  with pytest.raises(ValueError, match='60 points cannot fill 61'):
    tokenize.run(_with(codes_per_level=61), _workdir(tmp_path))


_RQVAE = {
  'quantizer': 'rqvae',
  'rqvae': config_lib.RQVAEConfig(
    hidden_dims=(16,),
    latent_dim=4,
    batch_size=16,
    num_steps=60,
    peak_learning_rate=1e-2,
  ),
}


@pytest.mark.parametrize('collision', ['bucket', 'append', 'reassign'])
def test_rqvae_is_judged_beside_both_kmeans(tmp_path, collision):
  workdir = _workdir(tmp_path)
  result = tokenize.run(_with(collision=collision, **_RQVAE), workdir)
  assert set(result['quantizers']) == {'rqvae', 'balanced_kmeans', 'kmeans'}
  ours = result['quantizers']['rqvae']
  assert ours['training']['steps'] == 60
  assert result['earlier_seconds'] == ours['training']['earlier_seconds']
  # All errors are shares of the same vectors; 1 would be their mean alone.
  errors = [
    entry['reconstruction']['unexplained']
    for entry in (*result['quantizers'].values(), result['quality'])
  ]
  assert all(0 < error < 0.8 for error in errors)
  codebooks = residual_kmeans.read_codebooks(
    workdir.tokenizer / 'codebooks.npz'
  )
  assert codebooks.codebooks.shape == (2, 8, 4)  # of latent vectors
  # Only the rest that the policy could not separate shares an ID.
  shared = result['quality']['ids']['collision_share']
  before = ours['ids']['collision_share']
  assert before > 0
  assert shared == before if collision == 'bucket' else shared < before
  ids = catalog.read_semantic_ids(workdir.tokenizer / 'semantic_ids.parquet')
  assert ids.levels == (3 if collision == 'append' else 2)
  assert ids.digest() == result['digest']
  # A second run finds the finished training.
  again = tokenize.run(_with(collision=collision, **_RQVAE), workdir)
  assert again['digest'] == result['digest']
  assert len(list((workdir.tokenizer / 'rqvae').iterdir())) == 1


def test_rqvae_has_no_balanced_labels(tmp_path):
  with pytest.raises(ValueError, match="corpus_assignment='nearest'"):
    tokenize.run(
      _with(corpus_assignment='balanced', **_RQVAE), _workdir(tmp_path)
    )
