"""Vocabulary: token blocks do not overlap and follow the stated layout."""

import jax.numpy as jnp
import numpy as np

from onerec_jax.semantic_ids import vocabulary


def test_layout_is_specials_then_levels_then_users():
  layout = vocabulary.Vocabulary((4, 4, 2), user_buckets=5)
  assert layout.offsets == (3, 7, 11)
  assert layout.user_offset == 13
  assert layout.size == 18
  assert layout.levels == 3
  assert layout.max_codes == 4


def test_tokens_are_the_codes_shifted_by_their_level():
  layout = vocabulary.Vocabulary((4, 4, 2))
  codes = jnp.asarray([[0, 0, 0], [3, 2, 1]], jnp.int32)
  np.testing.assert_array_equal(layout.tokens(codes), [[3, 7, 11], [6, 9, 12]])


def test_every_code_has_a_token_of_its_own():
  layout = vocabulary.Vocabulary((4, 3, 5), user_buckets=2)
  tokens = [
    int(layout.tokens(jnp.asarray([c0, c1, c2], jnp.int32))[level])
    for level in range(3)
    for c0, c1, c2 in [(c % 4, c % 3, c % 5) for c in range(15)]
  ]
  assert len(set(tokens)) == 4 + 3 + 5
  assert min(tokens) == vocabulary.NUM_SPECIALS
  assert max(tokens) == layout.user_offset - 1
