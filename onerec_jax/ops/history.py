"""Splitting users' histories on the device.  Pure array functions."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int


class MaskedItems(NamedTuple):
  """Items of each user and which of them are real."""

  items: Int[Array, 'B J']
  mask: Bool[Array, 'B J']


def split_history(
  items: Int[Array, 'B N'], mask: Bool[Array, 'B N'], *, num_last: int
) -> tuple[MaskedItems, MaskedItems]:
  """Splits off the last items of each user, but never a user's only one.

  Args:
    items: oldest first, padding at the end. [B, N]
    mask: False: padding. [B, N]
    num_last: J, below N.

  Returns:
    The items before, padding at the end [B, N - J]; the last min(J, n - 1),
    padding first [B, J].
  """
  width = items.shape[1] - num_last
  if width < 1:
    raise ValueError(
      f'continue_items={num_last} leaves no history in batches of'
      f' {items.shape[1]} items: make them data.history_length +'
      ' continue_items long.'
    )
  count = jnp.sum(mask, axis=1, keepdims=True)
  kept = jnp.maximum(count - num_last, jnp.minimum(count, 1))
  place = count - num_last + jnp.arange(num_last)[None]
  last = jnp.take_along_axis(items, jnp.maximum(place, 0), axis=1)
  before = mask[:, :width] & (jnp.arange(width)[None] < kept)
  return MaskedItems(items[:, :width], before), MaskedItems(last, place >= kept)
