"""Captions: vocabulary, order of the words, masks."""

import numpy as np

from onerec_jax.data import captions

_TEXTS = ['Red lipstick, RED gloss', '', "lipstick: o'brien_red x2", '--']


def _words(made):
  return [
    [made.vocabulary[w] for w, m in zip(row, mask, strict=True) if m]
    for row, mask in zip(made.words, made.mask, strict=True)
  ]


def test_words_are_lower_cased_and_keep_their_order():
  made = captions.make_captions(_TEXTS, num_words=5, vocabulary_size=99)
  assert _words(made) == [
    ['red', 'lipstick', 'red', 'gloss'],
    [],
    ['lipstick', "o'brien", 'red', 'x2'],
    [],
  ]
  # Three times red, twice lipstick, then by the alphabet.
  assert made.vocabulary == ('red', 'lipstick', 'gloss', "o'brien", 'x2')
  assert made.words.dtype == np.int32


def test_words_outside_the_vocabulary_make_room_for_the_next():
  made = captions.make_captions(_TEXTS, num_words=2, vocabulary_size=2)
  assert made.vocabulary == ('red', 'lipstick')
  assert _words(made) == [['red', 'lipstick'], [], ['lipstick', 'red'], []]
  # The most frequent word has number 0, so that only the mask tells padding.
  assert made.words[0].tolist() == [0, 1]
  assert made.mask[1].tolist() == [False, False]


def test_data_without_any_word_have_no_captions():
  for texts in (['', ' -- '], []):
    assert captions.make_captions(texts, num_words=4, vocabulary_size=9) is None
