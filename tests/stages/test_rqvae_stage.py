"""RQ-VAE training as a job of the loop."""

import dataclasses
import logging as std_logging

import jax
import numpy as np
import pytest
from absl import logging
from etils import epath

from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax.data import vector_batches
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.stages import rqvae
from onerec_jax.train import log

_RQVAE = config_lib.RQVAEConfig(
  hidden_dims=(16,),
  latent_dim=4,
  batch_size=16,
  num_steps=24,
  peak_learning_rate=3e-3,
)
_CONFIG = config_lib.TokenizerConfig(
  levels=2, codes_per_level=8, quantizer='rqvae', rqvae=_RQVAE
)


@pytest.fixture(scope='module')
def embeddings():
  rng = np.random.default_rng(0)
  centres = 3 * rng.standard_normal((12, 6), np.float32)
  return centres[np.arange(60) % 12] + rng.standard_normal((60, 6), np.float32)


@pytest.fixture(scope='module')
def mesh():
  return meshes.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])


def _train(embeddings, folder, mesh, *, seed=0, **changes):
  config = dataclasses.replace(
    _CONFIG, rqvae=dataclasses.replace(_RQVAE, **changes)
  )
  return rqvae.train(
    embeddings,
    config=config,
    seed=seed,
    mesh=mesh,
    folder=epath.Path(folder),
  )


def _records(folder):
  (run,) = epath.Path(folder).iterdir()
  return log.read_metrics(run / log.METRICS)


def _same_bits(a, b):
  jax.tree.map(
    np.testing.assert_array_equal, (a.params, a.state), (b.params, b.state)
  )


def test_training_lowers_the_loss_and_the_codes_reconstruct(
  embeddings, mesh, tmp_path
):
  trained = _train(embeddings, tmp_path, mesh, num_steps=300, batch_size=64)
  losses = [r['loss'] for r in _records(tmp_path)]
  assert losses[-1] < 0.7 * losses[0]
  codes = residual_kmeans.encode(trained.codebooks, trained.encode(embeddings))
  error = np.square(trained.reconstruct(codes) - embeddings).sum()
  assert error < 0.5 * np.square(embeddings - embeddings.mean(0)).sum()
  # Encoding is by rows: new items get the codes that they had in the corpus.
  np.testing.assert_allclose(
    trained.encode(embeddings[7:9]), trained.encode(embeddings)[7:9], rtol=1e-4
  )


@pytest.mark.parametrize('number', [5, 20])
def test_a_training_that_is_cut_off_ends_with_the_same_bits(
  embeddings, mesh, tmp_path, monkeypatch, without_times, number
):
  # Checkpoints are written every 6 of 24 steps; 24 steps are 6 epochs.
  whole = _train(embeddings, tmp_path / 'whole', mesh)
  original = vector_batches.VectorBatches.__next__

  def fail(batches):
    if batches.get_state()['next_index'] == number:
      raise KeyboardInterrupt
    return original(batches)

  with monkeypatch.context() as patch:
    patch.setattr(vector_batches.VectorBatches, '__next__', fail)
    with pytest.raises(KeyboardInterrupt):
      _train(embeddings, tmp_path / 'cut', mesh)
  cut = _train(embeddings, tmp_path / 'cut', mesh)
  _same_bits(whole, cut)
  assert without_times(_records(tmp_path / 'whole')) == without_times(
    _records(tmp_path / 'cut')
  )


def test_a_finished_training_is_not_repeated(
  embeddings, mesh, tmp_path, monkeypatch
):
  first = _train(embeddings, tmp_path, mesh)
  monkeypatch.setattr(
    vector_batches.VectorBatches, '__next__', lambda _: pytest.fail('trains')
  )
  _same_bits(first, _train(embeddings, tmp_path, mesh))


def test_other_settings_seeds_and_vectors_train_anew(
  embeddings, mesh, tmp_path
):
  first = _train(embeddings, tmp_path, mesh)
  for changes in (
    {'seed': 1},
    {'commitment': 1.0},
    {'embeddings': embeddings[::-1]},
  ):
    other = _train(
      changes.pop('embeddings', embeddings), tmp_path, mesh, **changes
    )
    kernels = [
      t.params['encoder']['layers_0']['kernel'] for t in (first, other)
    ]
    assert np.any(kernels[0] != kernels[1]), changes
  assert len(list(tmp_path.iterdir())) == 4


def test_first_codebooks_are_residual_kmeans_wherever_the_latents_lie():
  rng = np.random.default_rng(1)
  latents = rng.standard_normal((60, 4), np.float32)
  here, there = (
    rqvae._initial_codebooks(latents + shift, config=_CONFIG, seed=0)
    for shift in (0, 100)
  )
  # A shift moves the first level alone; f32 at 100 has 1e-5 of rounding.
  np.testing.assert_allclose(there[0], here[0] + 100, atol=1e-3)
  np.testing.assert_allclose(there[1], here[1], atol=1e-3)
  zero = np.zeros(4, np.float32)
  books = residual_kmeans.Codebooks(here, zero)
  codes = residual_kmeans.encode(books, latents)
  error = residual_kmeans.reconstruct(books, codes) - latents
  assert np.square(error).mean() < 0.5 * np.square(latents).mean()


def test_dead_codes_come_back_to_life(embeddings, mesh, tmp_path, monkeypatch):
  # All codes but one of level 0 start where no latent vector is.
  original = rqvae._initial_codebooks

  def far(latents, **kwargs):
    codebooks = original(latents, **kwargs)
    codebooks[0, 1:] += 1e3
    return codebooks

  monkeypatch.setattr(rqvae, '_initial_codebooks', far)
  used = {}
  for share in (0.0, 0.1):
    trained = _train(
      embeddings,
      tmp_path,
      mesh,
      num_steps=60,
      usage_decay=0.8,
      dead_code_share=share,
    )
    codes = residual_kmeans.encode(
      trained.codebooks, trained.encode(embeddings)
    )
    used[share] = len(np.unique(codes[:, 0]))
  assert used[0.0] == 1
  assert used[0.1] >= 7


def test_a_small_catalogue_is_one_batch_on_any_number_of_devices(
  embeddings, tmp_path, caplog
):
  mesh = meshes.make_mesh(config_lib.MeshConfig())
  assert mesh.size == 8
  logging.set_verbosity(logging.INFO)
  try:
    with caplog.at_level(std_logging.INFO, logger='absl'):
      many = _train(embeddings, tmp_path / 'many', mesh, batch_size=1024)
  finally:
    logging.set_verbosity(logging.WARNING)
  assert many.summary['batch_size'] == 64  # 60 items in 8 equal parts
  assert many.summary['epochs'] == 24
  assert any(
    'batch_size=1024 is above the 60 items' in m for m in caplog.messages
  )
  one = meshes.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
  _train(embeddings, tmp_path / 'one', one, batch_size=1024)
  losses = [
    [r['loss'] for r in _records(tmp_path / name)] for name in ('one', 'many')
  ]
  np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
  # The first codes are the means of these rows: their gradient is rounding
  # noise, which Adam's first step makes as large as any other.
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)


def test_a_batch_that_does_not_fit_the_mesh_names_the_setting(
  embeddings, tmp_path
):
  mesh = meshes.make_mesh(config_lib.MeshConfig())
  with pytest.raises(ValueError, match=r'use tokenizer\.rqvae\.batch_size=8 '):
    _train(embeddings, tmp_path, mesh, batch_size=12)


def test_more_codes_than_items_are_refused(embeddings, mesh, tmp_path):
  with pytest.raises(ValueError, match='7 points cannot fill 8'):
    _train(embeddings[:7], tmp_path, mesh)
