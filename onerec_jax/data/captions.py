"""Item texts as words of a small vocabulary, for the caption loss.

Lower-cased words, most frequent ones only; what is not in the vocabulary is
left out.  No sub-words: this is no tokenizer for a language model.
"""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int32

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


class Captions(NamedTuple):
  """The first words of every item."""

  words: Int32[np.ndarray, 'I W']  # places in the vocabulary; 0 is a real word
  mask: Bool[np.ndarray, 'I W']  # False: padding, at the end
  vocabulary: tuple[str, ...]  # most frequent first


def make_captions(
  texts: Sequence[str], *, num_words: int, vocabulary_size: int
) -> Captions | None:
  """Returns the words of every item, or None if no item has any.

  Args:
    texts: one per item, '' for none. [I]
    num_words: words kept of an item, counted after those outside the
      vocabulary are gone.
    vocabulary_size: words in the vocabulary at most; of equally frequent ones
      the alphabetically first stay.
  """
  split = [_WORD.findall(text.lower()) for text in texts]
  counts = collections.Counter(word for words in split for word in words)
  ranked = sorted(counts, key=lambda word: (-counts[word], word))
  vocabulary = tuple(ranked[:vocabulary_size])
  if not vocabulary:
    return None
  place = {word: i for i, word in enumerate(vocabulary)}
  words = np.zeros((len(texts), num_words), np.int32)
  mask = np.zeros((len(texts), num_words), bool)
  for row, item in enumerate(split):
    known = [place[word] for word in item if word in place][:num_words]
    words[row, : len(known)] = known
    mask[row, : len(known)] = True
  return Captions(words, mask, vocabulary)
