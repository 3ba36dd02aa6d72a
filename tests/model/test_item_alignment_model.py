"""Item aligner: projections, masks, causal captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import item_alignment
from onerec_jax.model import parameters
from onerec_jax.model import qformer

_CONFIG = config.ItemAlignmentConfig(
  num_queries=2,
  dim=8,
  num_layers=1,
  num_heads=2,
  mlp_dim=12,
  caption_tokens=5,
  caption_dim=6,
  caption_layers=1,
  dropout_rate=0.5,
)
_LAYOUT = item_alignment.TokenLayout(num_tokens=(1, 2), widths=(3, 4))
_MODEL = item_alignment.ItemAligner(_CONFIG, _LAYOUT, vocabulary_size=7)


@pytest.fixture(scope='module')
def case():
  """Parameters, tokens of 4 items (some unknown) and captions of 3."""
  boxes = item_alignment.abstract_params(_MODEL)
  params = parameters.materialize(boxes, seed=0)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), 'f4'), params
  )
  tokens = rng.standard_normal((4, 3, 4)).astype(np.float32)
  tokens[:, 0, 3] = 0  # padding of the narrower part
  mask = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
  words = rng.integers(0, 7, (3, 5)).astype(np.int32)
  return params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(words)


def _apply(params, *args, method=None, **kwargs):
  return _MODEL.apply({'params': params}, *args, method=method, **kwargs)


def test_each_part_is_projected_by_its_own_matrix(case):
  params, tokens, mask, _ = case
  found = _apply(params, tokens, mask, method='encode')
  assert found.shape == (4, 2, 8)
  x = np.zeros((4, 3, 8))
  for place, part in enumerate((0, 1, 1)):
    kernel = np.asarray(params[f'projection_{part}'])
    x[:, place] = np.asarray(tokens)[:, place, : len(kernel)] @ kernel
  x += np.asarray(params['slots'])[None]
  inner = qformer.QFormer(
    num_queries=2, dim=8, num_layers=1, num_heads=2, mlp_dim=12
  )
  expected = inner.apply(
    {'params': params['qformer']}, jnp.asarray(x, jnp.float32), mask
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_unknown_parts_and_padding_do_not_count(case):
  params, tokens, mask, _ = case
  found = _apply(params, tokens, mask, method='encode')
  junk = jnp.where(mask[..., None], tokens, 99.0).at[:, 0, 3].set(99.0)
  np.testing.assert_allclose(
    _apply(params, junk, mask, method='encode'), found, rtol=1e-5, atol=1e-6
  )
  # Of an item that no part knows, nothing is known.
  np.testing.assert_array_equal(found[3], params['qformer']['queries'])


def test_tokens_of_one_part_are_told_apart(case):
  params, tokens, mask, _ = case
  swapped = tokens[:1, jnp.array([0, 2, 1])]
  a, b = (
    _apply(params, x, mask[:1], method='encode') for x in (tokens[:1], swapped)
  )
  assert np.abs(a - b).max() > 1e-3


def test_captions_are_of_the_first_rows(case):
  params, tokens, mask, words = case
  output = _apply(params, tokens, mask, words)
  assert output.logits.shape == (3, 5, 7)
  np.testing.assert_allclose(
    output.logits,
    _apply(params, output.vectors[:3], words, method='caption_logits'),
    rtol=1e-5,
    atol=1e-5,
  )
  assert _apply(params, tokens, mask, None).logits is None


def test_a_word_depends_on_the_item_and_the_words_before_it_alone(case):
  params, tokens, mask, words = case
  logits = _apply(params, tokens, mask, words).logits
  other = words.at[:, 2].set((words[:, 2] + 1) % 7)
  changed = np.abs(_apply(params, tokens, mask, other).logits - logits)
  assert changed[:, :3].max() < 1e-5  # words 0, 1, 2 are predicted before it
  assert (changed[:, 3:].max(axis=(0, 2)) > 1e-3).all()
  moved = np.abs(_apply(params, tokens + 1, mask, words).logits - logits)
  assert (moved[:2].max(axis=2) > 1e-4).all()


def test_dropout_needs_a_key(case):
  params, tokens, mask, words = case
  outputs = [
    _apply(
      params,
      tokens,
      mask,
      words,
      deterministic=False,
      rngs={'dropout': jax.random.key(seed)},
    )
    for seed in (0, 0, 1)
  ]
  jax.tree.map(np.testing.assert_array_equal, outputs[0], outputs[1])
  for a, b in zip(outputs[0], outputs[2], strict=True):
    assert np.abs(a - b).max() > 0.1


def test_every_parameter_has_a_place_on_a_mesh():
  boxes = item_alignment.abstract_params(_MODEL)
  mesh = meshes.make_mesh(config.MeshConfig(data=4, fsdp=2))
  shardings = sharding.parameter_shardings(
    mesh, parameters.logical_names(boxes), parameters.shapes(boxes)
  )
  assert shardings['projection_0'].spec[1] is not None
  assert shardings['decoder']['words'].spec[1] is not None


def test_without_a_vocabulary_there_is_no_decoder():
  model = item_alignment.ItemAligner(_CONFIG, _LAYOUT, vocabulary_size=0)
  assert 'decoder' not in item_alignment.abstract_params(model)
