"""Parts of the item embedding as tokens."""

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import item_content
from onerec_jax.data import item_tokens
from onerec_jax.data import item_vectors


def _block(values, tokens=None):
  return item_vectors.Block(
    values.astype(np.float32), ~np.any(values != 0, axis=1), 1.0, tokens
  )


def test_parts_are_standardised_and_padded_to_the_widest():
  rng = np.random.default_rng(0)
  one = 5 + 3 * rng.standard_normal((6, 2))
  one[4] = 0
  two = rng.standard_normal((6, 3)) * np.array([10, 1, 0.1])
  made = item_tokens.make_tokens([_block(one), _block(two)])
  assert made.values.shape == (6, 2, 3)
  assert (made.num_tokens, made.widths) == ((1, 1), (2, 3))
  assert made.mask.tolist() == [[i != 4, True] for i in range(6)]
  known = np.delete(one, 4, 0)
  expected = known - known.mean(0)
  expected /= np.sqrt((expected**2).mean())
  np.testing.assert_allclose(
    np.delete(made.values[:, 0, :2], 4, 0), expected, rtol=1e-4, atol=1e-5
  )
  # Unknown is zero, not the distance from the mean; so is the padding.
  assert not made.values[4, 0].any() and not made.values[:, 0, 2].any()
  # One scale per part: the large dimension stays a hundred times the small.
  spread = made.values[:, 1].std(0)
  np.testing.assert_allclose(
    spread / spread[0], two.std(0) / two.std(0)[0], 1e-4
  )


def test_a_tensor_of_tokens_gives_as_many_tokens():
  rng = np.random.default_rng(1)
  tensor = rng.standard_normal((6, 4, 3)).astype(np.float32)
  tensor[2, 3] = 0
  made = item_tokens.make_tokens(
    [_block(np.ones((6, 2))), _block(np.ones((6, 2)), tensor)]
  )
  assert (made.num_tokens, made.widths) == ((1, 4), (2, 3))
  known = np.any(tensor != 0, axis=2)
  np.testing.assert_array_equal(made.mask[:, 1:], known)
  inside = made.values[:, 1:][known]
  np.testing.assert_allclose(inside.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose((inside**2).mean(), 1, rtol=1e-4)
  # A part that says the same of all items is zero, not NaN.
  assert made.mask[:, 0].all() and not made.values[:, 0].any()


@pytest.fixture
def view():
  return item_content.DatasetView(
    item_ids=np.array(['a', 'b', 'c', 'd']),
    texts=[''] * 4,
    categories=[[]] * 4,
    offsets=np.array([0, 1]),
    items=np.array([1], np.int32),
  )


def _array(path, view):
  part = config.EmbedPart(kind='array', dim=2, path=str(path))
  return item_vectors.build_part(part, view, seed=0)


def test_an_array_of_three_dimensions_becomes_a_block_with_tokens(
  tmp_path, view
):
  tensor = np.random.default_rng(2).standard_normal((3, 2, 5))
  tensor[1, 1] = 0
  path = tmp_path / 'tokens.npz'
  np.savez(path, embeddings=tensor, item_ids=np.array(['d', 'a', 'c']))
  block = _array(path, view)
  assert block.tokens is not None
  np.testing.assert_allclose(
    block.tokens, [tensor[1], 0 * tensor[0], tensor[2], tensor[0]], rtol=1e-6
  )
  assert block.empty.tolist() == [False, True, False, False]
  # The vector beside the tokens is that of their mean; zeros do not count.
  np.save(
    tmp_path / 'mean.npy',
    np.stack(
      [tensor[1, 0], 0 * tensor[0, 0], tensor[2].mean(0), tensor[0].mean(0)]
    ),
  )
  expected = _array(tmp_path / 'mean.npy', view)
  assert expected.tokens is None
  np.testing.assert_allclose(
    block.values @ block.values.T,
    expected.values @ expected.values.T,
    atol=1e-5,
  )


@pytest.mark.parametrize('shape', [(4,), (4, 2, 2, 2), (4, 0, 3)])
def test_arrays_of_other_shapes_are_refused(tmp_path, view, shape):
  np.save(tmp_path / 'v.npy', np.ones(shape))
  with pytest.raises(ValueError, match=r'\[items, tokens, width\]'):
    _array(tmp_path / 'v.npy', view)


def test_tokens_that_are_not_finite_are_refused(tmp_path, view):
  tensor = np.ones((4, 2, 3))
  tensor[2, 1, 0] = np.nan
  np.save(tmp_path / 'v.npy', tensor)
  with pytest.raises(ValueError, match='the first is row 2'):
    _array(tmp_path / 'v.npy', view)
