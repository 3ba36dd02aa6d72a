import dataclasses
import math

import numpy as np
import pytest
from scipy import sparse

from onerec_jax import config
from onerec_jax.data import cooccurrence
from onerec_jax.data import item_content
from onerec_jax.data import item_vectors
from onerec_jax.data import minilm

WORDS = ('red lipstick gloss', 'blue garden hose', 'jazz piano record')


def make_view(num_items=30, num_users=60, seed=0):
  """Three tastes: item i belongs to taste i % 3; users stay in one taste."""
  rng = np.random.default_rng(seed)
  sequences = []
  for user in range(num_users):
    own = np.arange(user % 3, num_items - 3, 3)  # the last three are never met
    sequences.append(rng.permutation(own)[:6])
  return item_content.DatasetView(
    item_ids=np.array([f'item{i}' for i in range(num_items)]),
    texts=[f'{WORDS[i % 3]} number{i % 7}' for i in range(num_items)],
    categories=[[f'c{i % 3}', f'd{i % 2}'] for i in range(num_items)],
    offsets=np.cumsum([0, *map(len, sequences)]),
    items=np.concatenate(sequences).astype(np.int32),
  )


def part(kind, **changes):
  return config.EmbedPart(kind=kind, **({'dim': 4} | changes))


def taste_gap(values, items):
  """Mean cosine inside a taste minus between tastes."""
  cosine = values[items] @ values[items].T
  same = (items[:, None] % 3) == (items[None] % 3)
  other = ~same
  np.fill_diagonal(same, False)
  return cosine[same].mean() - cosine[other].mean()


KINDS = ('text', 'categories', 'cooccurrence', 'swing')


# --- Blocks -----------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_a_block_separates_tastes_and_has_unit_rows(kind):
  block = item_vectors.build_part(part(kind), make_view(), seed=0)
  known = np.flatnonzero(~block.empty)
  assert block.values.dtype == np.float32
  assert block.values.shape[0] == 30 and block.values.shape[1] <= 4
  np.testing.assert_allclose(
    np.linalg.norm(block.values[known], axis=1), 1, rtol=1e-5
  )
  assert taste_gap(block.values, known) > 0.5
  assert 0 < block.explained <= 1 + 1e-6


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_seed_gives_the_same_block(kind):
  blocks = [
    item_vectors.build_part(part(kind), make_view(), seed=3) for _ in range(2)
  ]
  np.testing.assert_array_equal(blocks[0].values, blocks[1].values)


@pytest.mark.parametrize('kind', ['cooccurrence', 'swing'])
def test_items_never_met_in_training_get_the_zero_block(kind):
  block = item_vectors.build_part(part(kind), make_view(), seed=0)
  assert block.empty[-3:].all() and not block.empty[:-3].any()
  assert not block.values[-3:].any()


@pytest.mark.parametrize('kind', ['text', 'categories'])
def test_items_without_content_get_the_zero_block(kind):
  view = make_view()
  view = dataclasses.replace(
    view,
    texts=['', '  ', '!', *view.texts[3:]],
    categories=[[], [], [], *view.categories[3:]],
  )
  block = item_vectors.build_part(part(kind), view, seed=0)
  assert block.empty.tolist() == [True] * 3 + [False] * 27
  assert not block.values[:3].any()


@pytest.mark.parametrize(
  ('kind', 'message'),
  [
    ('text', "kind='text' has nothing .* no item has a text"),
    ('minilm', 'no item has a text'),
    ('categories', 'no item has a category'),
    ('cooccurrence', 'no two items meet'),
    ('swing', 'no two users share two items'),
  ],
)
def test_a_part_without_data_says_so(kind, message):
  view = item_content.DatasetView(
    item_ids=np.array(['a', 'b']),
    texts=['', ''],
    categories=[[], []],
    offsets=np.array([0, 1]),
    items=np.array([1], np.int32),
  )
  with pytest.raises(ValueError, match=message):
    item_vectors.build_part(part(kind), view, seed=0)


@pytest.mark.skipif(
  bool(minilm.missing_packages()), reason='optional packages not installed'
)
def test_minilm_blocks_are_reduced_like_the_others():
  block = item_vectors.build_part(part('minilm', dim=3), make_view(), seed=0)
  assert block.values.shape == (30, 3)
  assert taste_gap(block.values, np.arange(30)) > 0.5


def test_a_low_rank_matrix_gives_fewer_columns():
  block = item_vectors.build_part(
    part('categories', dim=20), make_view(), seed=0
  )
  # Categories c0..c2 and d0, d1 sum to one in each group: rank 3 + 2 - 1.
  assert block.values.shape == (30, 4)
  np.testing.assert_allclose(block.explained, 1, rtol=1e-5)


def test_blocks_are_joined_with_their_weights():
  parts = (part('text', weight=2.0), part('cooccurrence', weight=0.5))
  result = item_vectors.build(parts, make_view(), seed=0)
  width = result.blocks[0].values.shape[1]
  norms = [
    np.linalg.norm(result.values[:-3, s], axis=1)
    for s in (slice(0, width), slice(width, None))
  ]
  np.testing.assert_allclose(norms[0], 2, rtol=1e-5)
  np.testing.assert_allclose(norms[1], 0.5, rtol=1e-5)
  # Unknown to co-occurrence, but not to text.
  np.testing.assert_allclose(
    np.linalg.norm(result.values[-3:], axis=1), 2, rtol=1e-5
  )


# --- Precomputed vectors ----------------------------------------------------


def test_an_array_in_item_order_keeps_its_geometry(tmp_path):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(30, 5)).astype(np.float16)
  np.save(tmp_path / 'v.npy', vectors)
  block = item_vectors.build_part(
    part('array', dim=9, path=str(tmp_path / 'v.npy')), make_view(), seed=0
  )
  centred = vectors.astype(np.float32) - vectors.astype(np.float32).mean(0)
  centred /= np.linalg.norm(centred, axis=1, keepdims=True)
  # Full rank: a rotation, so cosines are those of the centred input.
  np.testing.assert_allclose(
    block.values @ block.values.T, centred @ centred.T, atol=1e-5
  )
  np.testing.assert_allclose(block.explained, 1, rtol=1e-5)


def test_an_array_keyed_by_item_id_is_matched_and_gaps_are_empty(tmp_path):
  view = make_view()
  ids = view.item_ids[::-1][:20]
  vectors = np.arange(40, dtype=np.float32).reshape(20, 2) + 1
  path = str(tmp_path / 'v.npz')
  np.savez(path, item_ids=ids, embeddings=vectors)
  got = item_content.read_array(path, view)
  np.testing.assert_array_equal(got[10:], vectors[::-1])
  assert not got[:10].any()
  block = item_vectors.build_part(part('array', path=path), view, seed=0)
  assert block.empty.tolist() == [True] * 10 + [False] * 20


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'embeddings': np.ones((29, 2))}, '29 rows, the data set 30 items'),
    ({'embeddings': np.ones(30)}, 'shape'),
    ({'embeddings': np.full((30, 2), np.nan)}, '30 rows hold NaN'),
    ({'embeddings': np.array([['a']] * 30)}, 'expected numbers'),
    ({'vectors': np.ones((30, 2))}, "lacks the array 'embeddings'"),
    (
      {'embeddings': np.ones((2, 2)), 'item_ids': np.array(['x', 'y'])},
      'none of its',
    ),
    (
      {'embeddings': np.ones((2, 2)), 'item_ids': np.array(['x', 'x'])},
      'an id of its own',
    ),
  ],
)
def test_arrays_that_fit_no_catalogue_are_refused(tmp_path, arrays, message):
  path = str(tmp_path / 'v.npz')
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=message):
    item_content.read_array(path, make_view())


def test_a_missing_array_is_named():
  with pytest.raises(FileNotFoundError, match=r'nowhere\.npy'):
    item_content.read_array('nowhere.npy', make_view())


# --- Co-occurrence ----------------------------------------------------------


def test_window_counts_equal_a_double_loop():
  rng = np.random.default_rng(0)
  sequences = [rng.integers(0, 6, rng.integers(0, 9)) for _ in range(12)]
  got = cooccurrence.window_counts(
    np.cumsum([0, *map(len, sequences)]),
    np.concatenate(sequences),
    num_items=6,
    window=3,
  ).toarray()
  expected = np.zeros((6, 6))
  for sequence in sequences:
    for a, i in enumerate(sequence):
      for b, j in enumerate(sequence):
        if i != j and 0 < abs(a - b) <= 3:
          expected[i, j] += (4 - abs(a - b)) / 3
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ppmi_equals_the_formula_term_by_term():
  rng = np.random.default_rng(0)
  counts = np.triu(rng.integers(0, 4, (5, 5)).astype(float), 1)
  counts += counts.T
  got = cooccurrence.ppmi(sparse.csr_matrix(counts)).toarray()
  c = counts.sum(1)
  total = sum(x**0.75 for x in c)
  for i in range(5):
    for j in range(5):
      n = counts[i, j]
      expected = 0.0
      if n:
        pmi = math.log(n * total / (c[i] * c[j] ** 0.75))
        expected = max(0.0, pmi) * n / (n + 1)
      np.testing.assert_allclose(got[i, j], expected, rtol=1e-6, atol=1e-12)


def test_items_that_meet_by_chance_have_no_ppmi():
  # Everybody meets everybody equally often: PMI = log(1 / (1 - 1/n)) is tiny,
  # only the missing diagonal keeps it above zero.
  counts = sparse.csr_matrix(np.ones((50, 50)) - np.eye(50))
  assert cooccurrence.ppmi(counts).max() < 0.02


# --- Quality ----------------------------------------------------------------


def test_the_hit_rate_counts_targets_among_the_nearest():
  angles = np.radians([0, 10, 30, 80, 180])
  vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
  vectors = np.concatenate([vectors, np.zeros((1, 2))])
  # From item 0 the order is 1, 2, 3, (the zero vector), 4.
  hit = item_vectors.neighbour_hit_rate
  sources, targets = np.array([0, 0, 0, 0, 0, 5]), np.array([1, 2, 3, 4, 5, 0])
  assert hit(vectors, sources, targets, top_k=1) == 1 / 6
  assert hit(vectors, sources, targets, top_k=2) == 2 / 6
  assert hit(vectors, sources, targets, top_k=5) == 4 / 6
  assert hit(vectors, sources[:0], targets[:0], top_k=5) == 0


def test_equal_vectors_do_not_hit_by_luck():
  vectors = np.ones((20, 3))
  assert (
    item_vectors.neighbour_hit_rate(
      vectors, np.array([0]), np.array([1]), top_k=10
    )
    == 0
  )


# --- Items that came later --------------------------------------------------


@pytest.mark.parametrize('kind', ['text', 'categories'])
def test_content_parts_see_their_own_items_as_they_did(kind):
  fitted = item_vectors.fit_part(part(kind, dim=30), make_view(), seed=0)
  assert fitted.encode is not None
  again = fitted.encode(make_view())
  np.testing.assert_allclose(again.values, fitted.block.values, atol=1e-5)
  np.testing.assert_array_equal(again.empty, fitted.block.empty)


def test_arrays_see_their_own_items_as_they_did_tokens_too(tmp_path):
  tensor = np.random.default_rng(2).normal(size=(30, 2, 5)).astype(np.float32)
  tensor[3] = 0
  tensor[4, 1] = 0
  path = tmp_path / 'tokens.npz'
  np.savez(path, embeddings=tensor, item_ids=make_view().item_ids)
  fitted = item_vectors.fit_part(
    part('array', dim=5, path=str(path)), make_view(), seed=0
  )
  assert fitted.encode is not None
  again = fitted.encode(make_view())
  np.testing.assert_allclose(again.values, fitted.block.values, atol=1e-5)
  np.testing.assert_array_equal(again.tokens, tensor)
  assert again.empty.tolist() == [i == 3 for i in range(30)]


@pytest.mark.parametrize('kind', ['cooccurrence', 'swing'])
def test_parts_of_behaviour_do_not_see_later_items(kind):
  assert item_vectors.fit_part(part(kind), make_view(), seed=0).encode is None
