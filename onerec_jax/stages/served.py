"""Changes which items a trained model serves: fewer, or more than it met."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from onerec_jax import sharding
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import table
from onerec_jax.stages import pretrain
from onerec_jax.stages import trained as trained_lib


def restricted(
  trained: trained_lib.Trained, items: np.ndarray
) -> trained_lib.Trained:
  """Returns the model with a catalogue of some of its items.

  Args:
    trained: from `load`.
    items: dense items that may be recommended, rising, at least one.
  """
  allowed = np.zeros(len(trained.ids.codes), bool)
  allowed[items] = True
  trie = trained.trie.only(
    trained.ids.codes, items, rank_in_bucket=trained.ids.rank_in_bucket
  )
  place = trained_lib.whole_on(trained.mesh)
  return trained._replace(trie=place(trie), allowed=place(allowed))


def extended(
  trained: trained_lib.Trained,
  ids: table.SemanticIds,
  change: Callable[[Any], Any],
) -> trained_lib.Trained:
  """Returns the model with items behind those of its training.

  Args:
    trained: from `load`, of a model without features of items.
    ids: of all items, those of the training first.
    change: of the parameters, whole, NumPy.
  """
  place = trained_lib.whole_on(trained.mesh)
  params = jax.tree.map(
    lambda new, old: sharding.place(new, old.sharding),
    change(sharding.gather(trained.params)),
    trained.params,
  )
  transitions = trained.transitions
  if transitions is not None:
    transitions = place(transitions.with_items(ids.num_items))
  return trained._replace(
    params=params,
    ids=ids,
    catalogue=pretrain.make_catalogue(ids, trained.mesh),
    trie=place(
      prefix_trie.PrefixTrie.build(
        ids.codes, ids.codes_per_level, rank_in_bucket=ids.rank_in_bucket
      )
    ),
    transitions=transitions,
  )
