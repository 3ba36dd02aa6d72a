"""Embeddings that start at the item vectors: what is read, what is changed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import code_vectors
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.semantic_ids import table
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib
from onerec_jax.stages import pretrain
from onerec_jax.stages import starting_vectors

_BUCKETS = 64
_EXPERIMENT = config.Experiment(
  model=config.ModelConfig(
    embed_dim=8,
    num_heads=1,
    head_dim=4,
    encoder_layers=1,
    decoder_layers=1,
    mlp_dim=8,
    moe=config.MoEConfig(num_experts=2, top_k=1, expert_dim=5),
    code_init='codebook',
    id_buckets=_BUCKETS,
  ),
)
_ITEMS = 20
_CODES = np.stack([np.arange(_ITEMS) // 6, np.arange(_ITEMS) % 6], 1)
_IDS = table.from_codes(
  _CODES.astype(np.int32), codes_per_level=(8, 6), popularity=np.ones(_ITEMS)
)


def _quantizer(**changes):
  return dataclasses.replace(
    _EXPERIMENT,
    tokenizer=dataclasses.replace(_EXPERIMENT.tokenizer, **changes),
  )


@pytest.fixture
def workdir(tmp_path):
  """A tokenizer of one level (the second keeps items apart), and vectors."""
  rng = np.random.default_rng(0)
  made = workdir_lib.Workdir(tmp_path)
  made.stage('tokenize')
  made.stage('embed')
  residual_kmeans.write_codebooks(
    made.tokenizer / 'codebooks.npz',
    residual_kmeans.Codebooks(
      rng.normal(size=(1, 8, 5)).astype(np.float32), np.ones(5, np.float32)
    ),
  )
  with made.embeddings.open('wb') as file:
    np.savez(file, embeddings=rng.normal(size=(_ITEMS, 5)).astype(np.float32))
  return made


@pytest.fixture
def model():
  return pretrain.make_model(_EXPERIMENT, _IDS, None)


def test_residuals_are_what_the_codes_leave_over(workdir, model):
  found = starting_vectors.read(_EXPERIMENT, workdir, _IDS, model.vocabulary)
  assert found is not None and found.residuals is not None
  books = np.load(workdir.tokenizer / 'codebooks.npz')['codebooks']
  vectors = np.load(workdir.embeddings)['embeddings']
  for item in (0, 7, 19):
    np.testing.assert_allclose(
      found.residuals[item],
      vectors[item] - 1 - books[0, item // 6],
      rtol=1e-5,
      atol=1e-6,
    )


def test_codes_start_at_centroids_and_ids_at_residuals(workdir, model):
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  found = starting_vectors.read(_EXPERIMENT, workdir, _IDS, model.vocabulary)
  assert found is not None and found.residuals is not None
  started = starting_vectors.start(params, found)
  before, after = params['embedding'], started['embedding']
  np.testing.assert_array_equal(
    after[3:11],
    code_vectors.from_codebooks(found.codebooks, before[None, 3:11])[0],
  )
  assert np.abs(after[3:11] - before[3:11]).max() > 0.1
  np.testing.assert_array_equal(after[:3], before[:3])
  np.testing.assert_array_equal(after[11:], before[11:])
  buckets = np.asarray(
    vocabulary_lib.id_bucket(jnp.asarray(_IDS.codes), _BUCKETS)
  )
  np.testing.assert_array_equal(
    started['id_embedding'],
    code_vectors.from_residuals(
      found.codebooks, found.residuals, buckets, params['id_embedding']
    ),
  )
  moved = np.any(started['id_embedding'] != params['id_embedding'], axis=1)
  assert set(np.flatnonzero(moved)) == set(buckets)
  others = set(params) - {'embedding', 'id_embedding'}
  assert all(started[name] is params[name] for name in others)


def test_nothing_is_read_where_embeddings_start_at_random(tmp_path, model):
  random = dataclasses.replace(
    _EXPERIMENT,
    model=dataclasses.replace(_EXPERIMENT.model, code_init='random'),
  )
  nothing = workdir_lib.Workdir(tmp_path)
  assert starting_vectors.read(random, nothing, _IDS, model.vocabulary) is None


def test_ids_over_latents_stay_random(workdir, model):
  found = starting_vectors.read(
    _quantizer(quantizer='rqvae'), workdir, _IDS, model.vocabulary
  )
  assert found is not None and found.residuals is None
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  started = starting_vectors.start(params, found)
  assert started['id_embedding'] is params['id_embedding']


def test_missing_vectors_name_the_stage_that_makes_them(workdir, model):
  workdir.embeddings.unlink()
  with pytest.raises(FileNotFoundError, match="'embed'"):
    starting_vectors.read(_EXPERIMENT, workdir, _IDS, model.vocabulary)


# --- Items that came later --------------------------------------------------


def test_ids_of_new_items_start_as_if_they_had_been_there(workdir, model):
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  found = starting_vectors.read(_EXPERIMENT, workdir, _IDS, model.vocabulary)
  assert found is not None and found.residuals is not None
  codes = np.array([[4, 0], [6, 3], [0, 0]], np.int32)  # the last one is taken
  vectors = np.random.default_rng(5).normal(size=(3, 5)).astype(np.float32)
  changed = starting_vectors.with_new_items(
    params, found, workdir, codes, vectors
  )
  buckets = np.asarray(
    vocabulary_lib.id_bucket(
      jnp.asarray(np.concatenate([_IDS.codes, codes])), _BUCKETS
    )
  )
  old = set(buckets[:_ITEMS].tolist())
  fresh = [b for b in buckets[_ITEMS:].tolist() if b not in old]
  assert len(fresh) == 2, 'the codes of this test must be free'
  before, after = params['id_embedding'], changed['id_embedding']
  moved = np.flatnonzero(np.any(before != after, axis=1))
  assert set(moved.tolist()) == set(fresh)
  books = np.load(workdir.tokenizer / 'codebooks.npz')['codebooks']
  residuals = vectors - 1 - books[0, codes[:, 0]]
  expected = code_vectors.from_residuals(
    books, np.concatenate([found.residuals, residuals]), buckets, before
  )
  np.testing.assert_allclose(after[fresh], expected[fresh], rtol=1e-6)
  assert all(changed[n] is params[n] for n in set(params) - {'id_embedding'})


def test_without_residuals_parameters_stay_as_they_are(workdir, model):
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  found = starting_vectors.read(
    _quantizer(quantizer='rqvae'), workdir, _IDS, model.vocabulary
  )
  assert found is not None
  codes = np.array([[4, 0]], np.int32)
  vectors = np.ones((1, 5), np.float32)
  assert (
    starting_vectors.with_new_items(params, found, workdir, codes, vectors)
    is params
  )
