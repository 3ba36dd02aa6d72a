"""Pairs of items from training sequences, and their batches."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import sparse

from onerec_jax import config
from onerec_jax.data import captions
from onerec_jax.data import item_pairs
from onerec_jax.data import item_tokens

_CONFIG = config.ItemAlignmentConfig(
  user_to_item_window=3, item_to_item_neighbours=2
)


def _ragged(sequences):
  offsets = np.cumsum([0, *map(len, sequences)])
  return offsets, np.array([i for s in sequences for i in s], np.int32)


def _random_sequences(seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 9, rng.integers(0, 8)).tolist() for _ in range(40)]


def _vectors(seed=1):
  vectors = np.random.default_rng(seed).standard_normal((9, 4), np.float32)
  vectors[8] = 0
  return vectors


# --- User to item -----------------------------------------------------------


@pytest.mark.parametrize('window', [1, 3, 20])
def test_the_trigger_is_the_most_similar_of_the_last_positives(
  monkeypatch, window
):
  monkeypatch.setattr(item_pairs, '_TARGETS_AT_ONCE', 7)
  sequences, vectors = _random_sequences(), _vectors()
  norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
  unit = vectors.astype(np.float64) / norms
  expected = []
  for sequence in sequences:
    for place, target in enumerate(sequence):
      # Latest first; max keeps the first of equals.
      before = sequence[max(place - window, 0) : place][::-1]
      before = [x for x in before if x != target]
      if before:
        cosines = [round(float(unit[x] @ unit[target]), 6) for x in before]
        expected.append((before[cosines.index(max(cosines))], target))
  found = item_pairs.user_to_item(
    *_ragged(sequences),
    window=window,
    similarity=item_pairs.cosine_of(vectors),
  )
  assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == expected
  assert len(expected) > 50


def test_an_item_is_never_paired_with_itself():
  triggers, targets = item_pairs.user_to_item(
    *_ragged([[1, 1, 1], [2, 3, 3, 3]]),
    window=2,
    similarity=lambda a, b: (a == b).astype(float),
  )
  # In a window of two the third 3 sees only itself.
  assert triggers.tolist() == [2, 2]
  assert targets.tolist() == [3, 3]


# --- Item to item -----------------------------------------------------------


def test_neighbours_are_the_largest_similarities_of_each_row():
  matrix = np.array(
    [[0, 3, 1, 3, 0], [0] * 5, [5, 0, 0, 0, 0], [1, 2, 3, 0, 4], [0] * 5]
  )
  triggers, targets = item_pairs.item_to_item(
    sparse.csr_matrix(matrix), neighbours=2
  )
  pairs = list(zip(triggers.tolist(), targets.tolist(), strict=True))
  assert pairs == [(0, 1), (0, 3), (2, 0), (3, 4), (3, 2)]


# --- Both -------------------------------------------------------------------


def _make(sequences, **changes):
  return item_pairs.make_pairs(
    *_ragged(sequences),
    num_items=9,
    vectors=_vectors(),
    alignment=dataclasses.replace(_CONFIG, **changes),
    seed=0,
  )


def test_both_kinds_of_pairs_are_counted_and_repeatable():
  made = _make(_random_sequences())
  users = _make(_random_sequences(), item_to_item_neighbours=0)
  items = _make(_random_sequences(), user_to_item=False)
  assert made.user_to_item == users.user_to_item == len(users.triggers) > 0
  assert made.item_to_item == items.item_to_item == len(items.triggers) > 0
  for name in ('triggers', 'targets'):
    np.testing.assert_array_equal(
      getattr(made, name),
      np.concatenate([getattr(users, name), getattr(items, name)]),
    )
    np.testing.assert_array_equal(
      getattr(made, name), getattr(_make(_random_sequences()), name)
    )
  assert (made.triggers != made.targets).all()


@pytest.mark.parametrize(
  ('sequences', 'changes'),
  [
    ([[1], [2], []], {}),  # nobody has two items
    ([[1, 2], [1, 2]], {'user_to_item': False, 'item_to_item_neighbours': 0}),
  ],
)
def test_no_pair_at_all_is_refused(sequences, changes):
  with pytest.raises(ValueError, match=r'embed\.alignment has no pair'):
    _make(sequences, **changes)


# --- Batches ----------------------------------------------------------------

_PAIRS = item_pairs.ItemPairs(
  np.array([0, 1, 2, 3, 4, 5, 6], np.int32),
  np.array([1, 2, 3, 4, 5, 6, 0], np.int32),
  5,
  2,
)
# Row i holds i + 1, so that a filler row is told from item 0 by its mask only.
_TOKENS = item_tokens.ItemTokens(
  np.arange(1, 8, dtype=np.float32)[:, None, None] * np.ones((7, 2, 3), 'f4'),
  np.arange(7)[:, None] != np.array([[0, -1]]),  # item 0 lacks its first token
  (1, 1),
  (3, 3),
)
_CAPTIONS = captions.Captions(
  np.arange(7, dtype=np.int32)[:, None] * np.ones((1, 2), np.int32),
  np.ones((7, 2), bool),
  tuple('abcdefg'),
)


def _batches(captions=_CAPTIONS, **changes):
  return item_pairs.ItemPairBatches(
    _PAIRS, _TOKENS, captions, **{'batch_size': 4, 'seed': 3, **changes}
  )


def _same(a, b):
  for field in dataclasses.fields(a):
    np.testing.assert_array_equal(
      getattr(a, field.name), getattr(b, field.name)
    )


def test_every_epoch_visits_each_pair_once_in_another_order():
  batches = _batches()
  assert batches.batches_per_epoch == 2
  epochs = []
  for _ in range(2):
    drawn = [next(batches) for _ in range(2)]
    epochs.append([p for b in drawn for p in b.items[b.mask].tolist()])
    assert sorted(map(tuple, epochs[-1])) == [
      (i, (i + 1) % 7) for i in range(7)
    ]
    assert drawn[-1].mask.tolist() == [True, True, True, False]
  assert epochs[0] != epochs[1]


def test_a_batch_holds_the_tokens_of_both_items_and_the_trigger_caption():
  made = next(_batches())
  np.testing.assert_array_equal(made.tokens[..., 1, 2], made.items + 1)
  np.testing.assert_array_equal(made.token_mask[..., 0], made.items != 0)
  np.testing.assert_array_equal(made.words[:, 0], made.items[:, 0])
  assert made.tokens.dtype == np.float32 and made.items.dtype == np.int32
  assert next(_batches(captions=None)).words is None


def test_filler_rows_have_no_token_and_no_word():
  batches = _batches()
  batches.set_state({'next_index': 1})
  last = next(batches)
  assert not last.token_mask[3].any() and not last.word_mask[3].any()


def test_the_stored_position_continues_with_the_same_bits():
  batches = _batches()
  for _ in range(3):
    next(batches)
  again = _batches()
  again.set_state(json.loads(json.dumps(batches.get_state())))
  for _ in range(3):
    _same(next(again), next(batches))


def test_processes_share_the_rows_of_a_batch():
  whole = _batches()
  parts = [
    _batches(own_rows=lambda size, i=i: np.split(np.arange(size), 2)[i])
    for i in range(2)
  ]
  for _ in range(3):
    expected = next(whole)
    halves = [next(part) for part in parts]
    joined = item_pairs.ItemPairBatch(
      *(
        np.concatenate([getattr(h, f.name) for h in halves])
        for f in dataclasses.fields(expected)
      )
    )
    _same(joined, expected)
