"""What is read of tokens beside their codes: recency and whole IDs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.model import code_embedding
from onerec_jax.semantic_ids import vocabulary

_BUCKETS = 512


@pytest.fixture(scope='module')
def case(make_case):
  return make_case(id_buckets=_BUCKETS)


def _ids(codes):
  return set(vocabulary.id_bucket(jnp.asarray(codes), _BUCKETS).tolist())


def test_recency_marks_how_many_items_ago_a_token_was():
  layout = vocabulary.Vocabulary((5, 7, 6), user_buckets=10)
  table = np.arange(6, dtype=np.float32).reshape(3, 2)
  embed = code_embedding.CodeEmbedding(
    tokens=jnp.zeros((layout.size, 2)), ids=None, recency=jnp.asarray(table),
    vocabulary=layout, dtype='float32', mesh=None,
  )  # fmt: skip
  mask = jnp.asarray([[True] * 4, [True, True, False, False]])
  per_item = 3 + 1  # codes and SEP
  got = embed.of_history(
    jnp.zeros((2, 1 + 4 * per_item), jnp.int32),
    jnp.zeros((2, 4, 3), jnp.int32),
    mask,
    separator=True,
  )
  # Items ago 3, 2, 1, 0, the last row standing for all beyond; the user first.
  np.testing.assert_array_equal(got[0, 0], table[2])
  for item, row in enumerate((2, 2, 1, 0)):
    np.testing.assert_array_equal(got[0, 1 + item * per_item], table[row])
  np.testing.assert_array_equal(got[1, 1], table[1])
  np.testing.assert_array_equal(got[1, per_item], table[1])
  np.testing.assert_array_equal(got[1, 1 + per_item], table[0])


def test_exactly_the_ids_that_are_read_get_a_gradient(case):
  codes, mask, _, target, target_mask, _ = case.inputs

  def total(params):
    output = case.apply(params, *case.inputs, deterministic=True)
    real = jnp.where(output.logits > -1e29, jnp.sin(output.logits), 0)
    return jnp.sum(real * target_mask[:, :, None, None])

  gradient = jax.jit(jax.grad(total))(case.params)['id_embedding']
  got = set(np.flatnonzero(np.abs(np.asarray(gradient)).max(-1)).tolist())
  # The last item of a session is predicted, and nothing after it.
  second = np.asarray(target_mask)[:, 1]
  want = _ids(np.asarray(codes)[np.asarray(mask)])
  want |= _ids(np.asarray(target)[second, 0])
  assert got == want


def test_rows_of_zeros_are_the_model_without(make_case, case):
  zeros = jnp.zeros_like(case.params['id_embedding'])
  params = {**case.params, 'id_embedding': zeros}
  np.testing.assert_array_equal(
    case.call(params, *case.inputs).logits, make_case().output().logits
  )
  assert (case.output().logits != make_case().output().logits).any()


def test_without_separator_and_user_the_last_code_gets_the_id(make_case):
  # One item of history: its ID's row and the row of its last code are added
  # to the same token, so that they may be exchanged.
  case = make_case(
    id_buckets=_BUCKETS, history=1, history_separator=False, user_buckets=0,
    tie_head=False,
  )  # fmt: skip
  codes = jnp.zeros_like(case.inputs[0])
  inputs = (codes, *case.inputs[1:])
  row = vocabulary.id_bucket(codes[0, 0], _BUCKETS)
  token = case.model.vocabulary.tokens(codes[0, 0])[-1]
  embedding = jnp.asarray(case.params['embedding'])
  ids = jnp.asarray(case.params['id_embedding'])
  moved = {
    **case.params,
    'embedding': embedding.at[token].set(ids[row]),
    'id_embedding': ids.at[row].set(embedding[token]),
  }

  @jax.jit
  def states(params, *inputs):
    return case.apply(params, *inputs, method='encode').states

  np.testing.assert_allclose(
    states(moved, *inputs[:3]), states(case.params, *inputs[:3]), atol=1e-6
  )


def test_buckets_are_those_of_the_formula():
  def by_hand(codes, size):
    mixed = 0
    for code in codes:
      mixed = (mixed ^ code) * 0x9E3779B1 % 2**32
      mixed ^= mixed >> 15
    return mixed % size

  codes = np.array([[0, 0, 0], [1, 2, 3], [8191, 0, 8191], [3, 2, 1]], np.int32)
  got = vocabulary.id_bucket(jnp.asarray(codes), 1000)
  assert got.tolist() == [by_hand(c, 1000) for c in codes.tolist()]


def test_buckets_are_filled_as_by_chance():
  # Neighbours in every level, as the IDs of a catalogue are.
  grid = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing='ij'), -1)
  codes = grid.reshape(-1, 3).astype(np.int32)
  size = len(codes)
  used = len(np.unique(vocabulary.id_bucket(jnp.asarray(codes), size)))
  # n balls in n boxes: (1 - 1/e) n of them used, give or take 0.4 sqrt(n).
  expected = (1 - np.exp(-1)) * size
  assert abs(used - expected) < 5 * 0.4 * size**0.5


def test_the_token_after_a_prefix_is_begin_or_its_last_code():
  layout = vocabulary.Vocabulary((4, 4, 2))
  codes = jnp.asarray([[[1, 2, 0], [3, 0, 1]]], jnp.int32)
  got = [layout.last_token(codes[..., :l]).tolist() for l in range(4)]
  begin = vocabulary.BOS
  assert got == [[[begin, begin]], [[4, 6]], [[9, 7]], [[11, 12]]]
