import json

import jax
import numpy as np
import pytest

from onerec_jax.data import minilm

missing = minilm.missing_packages()
needs_packages = pytest.mark.skipif(
  bool(missing), reason=f'optional packages not installed: {missing}'
)


@pytest.fixture(scope='module')
def encoder():
  return minilm.load()


def tiny_weights(dim=24, hidden=8, layers=2, words=11):
  rng = np.random.default_rng(0)

  def array(*shape):
    return rng.normal(0, 0.5, shape).astype(np.float32)

  def dense(name, rows, columns):
    return {
      f'{name}.weight': array(layers, rows, columns),
      f'{name}.bias': array(layers, rows),
    }

  def norm(name):
    return {
      f'{name}.weight': 1 + array(layers, dim),
      f'{name}.bias': array(layers, dim),
    }

  return {
    'word_embeddings.weight': array(words, dim),
    'position_embeddings.weight': array(9, dim),
    'token_type_embeddings.weight': array(2, dim),
    'LayerNorm.weight': 1 + array(dim),
    'LayerNorm.bias': array(dim),
    'layers': {
      **dense('attention.self.query', dim, dim),
      **dense('attention.self.key', dim, dim),
      **dense('attention.self.value', dim, dim),
      **dense('attention.output.dense', dim, dim),
      **norm('attention.output.LayerNorm'),
      **dense('intermediate.dense', hidden, dim),
      **dense('output.dense', dim, hidden),
      **norm('output.LayerNorm'),
    },
  }


def numpy_bert(weights, tokens):
  """One sentence without padding, head by head."""
  from scipy import special

  def norm(x, w, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True))
    return x * w[f'{name}.weight'] + w[f'{name}.bias']

  def dense(x, w, name):
    return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  x = weights['word_embeddings.weight'][tokens]
  x = x + weights['position_embeddings.weight'][: len(tokens)]
  x = norm(x + weights['token_type_embeddings.weight'][0], weights, 'LayerNorm')
  width = x.shape[1] // 12
  for i in range(2):
    w = {k: v[i] for k, v in weights['layers'].items()}
    q, k, v = (
      dense(x, w, f'attention.self.{n}') for n in ('query', 'key', 'value')
    )
    heads = []
    for h in range(12):
      s = slice(h * width, (h + 1) * width)
      scores = q[:, s] @ k[:, s].T / np.sqrt(width)
      heads.append(special.softmax(scores, axis=-1) @ v[:, s])
    mixed = dense(np.concatenate(heads, 1), w, 'attention.output.dense')
    x = norm(x + mixed, w, 'attention.output.LayerNorm')
    hidden = dense(x, w, 'intermediate.dense')
    hidden = hidden * special.ndtr(hidden)  # exact GELU
    x = norm(x + dense(hidden, w, 'output.dense'), w, 'output.LayerNorm')
  mean = x.mean(0)
  return mean / np.linalg.norm(mean)


def padded(sentences):
  """Three sentences in a [3, 8] batch: one compilation for all tests."""
  tokens = np.zeros((3, 8), np.int32)
  mask = np.zeros((3, 8), bool)
  for row, sentence in enumerate(sentences):
    tokens[row, : len(sentence)] = sentence
    mask[row, : len(sentence)] = True
  return tokens, mask


@pytest.fixture(scope='module')
def forward():
  return jax.jit(minilm.sentence_vectors)


def test_sentence_vectors_equal_a_plain_bert(forward):
  weights = tiny_weights()
  sentences = [[1, 5, 2], [1, 7, 7, 3, 10, 2], [1, 2]]
  got = forward(weights, *padded(sentences))
  expected = [numpy_bert(weights, np.array(s)) for s in sentences]
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_masked_tokens_do_not_change_a_vector(forward):
  tokens, mask = padded([[1, 5, 2], [1, 2], [1, 8, 8, 2]])
  expected = forward(tiny_weights(), tokens, mask)
  tokens[~mask] = 9
  got = forward(tiny_weights(), tokens, mask)
  np.testing.assert_array_equal(got, expected)


def test_missing_packages_are_named_with_the_command(monkeypatch):
  monkeypatch.setattr(minilm, '_PACKAGES', ('json', 'not_installed_anywhere'))
  with pytest.raises(ModuleNotFoundError) as error:
    minilm.encode_texts(['x'])
  assert 'need not_installed_anywhere' in str(error.value)
  assert 'pip install' in str(error.value)


@needs_packages
def test_similar_sentences_are_near_and_empty_texts_are_zero(encoder):
  texts = ['red nail polish', 'a nail varnish in red', 'tax law', ' ']
  vectors = minilm.encode_texts(texts, encoder=encoder)
  assert vectors.shape == (4, 384)
  np.testing.assert_allclose(
    np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], rtol=1e-5
  )
  assert vectors[0] @ vectors[1] > 0.7 > 0.4 > vectors[0] @ vectors[2]


@needs_packages
def test_beauty_titles_give_the_published_vectors(encoder, real_data_root):
  folder = real_data_root / 'amazon2014'
  vectors = folder / 'Beauty.minilm-l6-v2.f16.npy'
  if not vectors.exists():
    pytest.skip(f'{vectors} is absent')
  # Row 1078 is longer than the model reads.
  rows = [*range(0, 12_000, 1000), 1078]
  lines = (folder / 'Beauty.items.jsonl').read_text().splitlines()
  items = [json.loads(lines[r]) for r in rows]
  # The published vectors are of the title and the path below 'Beauty'.
  texts = [f'{i["title"]}. {" > ".join(i["categories"][1:])}' for i in items]
  got = minilm.encode_texts(texts, encoder=encoder)
  expected = np.load(vectors)[list(rows)].astype(np.float32)
  cosine = (got * expected).sum(1) / np.linalg.norm(expected, axis=1)
  assert cosine.min() > 0.999
