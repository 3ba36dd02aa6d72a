"""The sessions that a model's own beam gives to users of an example file.

One place that decodes and says what is legal, for rollouts and evaluation.
Scores nothing.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import recommend
from onerec_jax.stages import trained as trained_lib


class BeamSessions(NamedTuple):
  """W generated sessions of M items for each of B users of a whole batch."""

  items: Int[np.ndarray, 'B W M']  # dense items; -1: none
  valid: Bool[np.ndarray, 'B W']  # a session was generated
  legal: Bool[np.ndarray, 'B W']  # every ID has an item the user may get
  exists: Bool[np.ndarray, 'B W M']  # the ID belongs to items at all
  placed: batch_lib.SessionBatch  # the users, on the mesh


class SessionBeam:
  """Decodes batches of users; compiled once for one shape of batch."""

  def __init__(
    self,
    trained: trained_lib.Trained,
    store: examples.ExampleStore,
    settings: config.DecodingConfig,
  ):
    """Prepares decoding.

    Args:
      trained: the model and its catalogue.
      store: the users' examples.
      settings: beams, items, constraint, exclusions.
    """
    self._trained = trained
    self._store = store
    self._search = recommend.make_recommender(trained.model, settings, top_k=1)
    longest = int(store.index.history_counts.max(initial=0))
    self._excluded = recommend.exclusion_width(longest)

  def __call__(
    self, users: batch_lib.SessionBatch, *, params: Any, router_bias: Any
  ) -> BeamSessions:
    """Returns the beam of every user, filler rows included.

    Args:
      users: NumPy; this process's rows of the batch.
      params: of the model.
      router_bias: of the model.
    """
    t = self._trained
    excluded = recommend.exclusion_array(
      pipeline.seen_items(self._store, users), width=self._excluded
    )
    placed, excluded = sharding.place_batch((users, excluded), t.mesh)
    found = self._search(
      params, router_bias, t.catalogue, t.trie, placed, excluded
    )
    items, valid, leaves = (
      np.asarray(x)
      for x in sharding.gather(
        (found.session_items, found.hypotheses.valid, found.hypotheses.leaves)
      )
    )
    return BeamSessions(
      items=items,
      valid=valid,
      legal=valid & np.asarray(np.all(items >= 0, axis=2)),
      exists=valid[..., None] & (leaves >= 0),
      placed=placed,
    )
