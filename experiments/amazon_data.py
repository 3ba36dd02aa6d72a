"""Amazon 2014 as all its recipes read it, and the IDs that most of them use."""

from typing import Any

FILES = {'beauty': 'Beauty', 'sports': 'Sports_and_Outdoors'}


def set_data(
  config: Any, name: str, *, history_length: int, items_per_session: int
) -> None:
  """Sets the data set: leave-one-out over S3-Rec's sequences.

  Args:
    config: the recipe.
    name: a key of FILES.
    history_length: items that are read.
    items_per_session: items that are predicted.
  """
  config.data.source = 'amazon_sequences'
  config.data.path = 'data/amazon2014'
  config.data.variant = FILES[name]
  config.data.history_length = history_length
  config.data.sessions.items_per_session = items_per_session


def set_items(config: Any) -> None:
  """Sets vectors of behaviour and text, and 3 x 256 balanced codes."""
  config.embed.parts = (
    {'kind': 'cooccurrence', 'dim': 128, 'weight': 1.0},
    {'kind': 'text', 'dim': 64, 'weight': 0.5},
  )
  config.tokenizer.codes_per_level = 256
  config.tokenizer.collision = 'reassign'
