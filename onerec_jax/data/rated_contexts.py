"""Contexts with counters: how often a user has earned each label so far.

A ranking model reads more of a user than his latest events: the rates of all
his events, as user features beside those of the user table.  They are of
events before the position only.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import user_context

# Events of the mean rate that a rate begins with.
_PRIOR_COUNT = 10.0
_RATE_BUCKETS = 16  # of equal count
_COUNT_BUCKETS = 20  # powers of 2


class RatedContexts:
  """Makes the contexts of a `ContextMaker`, with the user's rates in them.

  Of each label two features are appended to the user's: none yet (0) or the
  bucket of the smoothed rate among the events where it is known,
    (positive + a · mean) / (known + a),
  and, once, the bucket of the number of events.

  Args:
    contexts: without rates.
    labels: (name, values) per label; 1: it happened, 0: not, NaN: unknown; of
      all events.
    dim: width of each feature's embedding.
  """

  def __init__(
    self,
    contexts: user_context.ContextMaker,
    labels: tuple[tuple[str, Float[np.ndarray, ' E']], ...],
    *,
    dim: int,
  ):
    self._contexts = contexts
    events = contexts.events
    self._counts, self._edges = [], []
    training = np.flatnonzero(events.split == 0)
    users = events.user[training].astype(np.int64)
    positions = training - events.offsets[users]
    self._means = []
    for _, values in labels:
      known, positive = np.isfinite(values), values == 1
      self._counts.append((_until(known), _until(positive)))
      self._means.append(
        float(positive[training].sum() / max(known[training].sum(), 1))
      )
      rates, some = self._rates(len(self._counts) - 1, users, positions)
      inner = np.linspace(0, 1, _RATE_BUCKETS + 1)[1:-1]
      fitted = rates[some]
      self._edges.append(
        np.unique(np.quantile(fitted, inner)) if len(fitted) else np.zeros(0)
      )
    added = [
      config.UserFeature(f'rate of {name}', dim=dim) for name, _ in labels
    ]
    added.append(config.UserFeature('number of events', dim=dim))
    sizes = [len(edges) + 2 for edges in self._edges] + [_COUNT_BUCKETS + 1]
    plain = contexts.pathways
    self.pathways = dataclasses.replace(
      plain, user_features=(*plain.user_features, *added)
    )
    whole = contexts.features.sizes
    self.sizes = whole._replace(users=(*whole.users, *sizes))

  @property
  def features(self) -> features_lib.Features:
    """Features of users and items, without rates."""
    return self._contexts.features

  @property
  def events(self) -> event_table.EventTable:
    return self._contexts.events

  def __call__(
    self, users: Int[np.ndarray, ' B'], positions: Int[np.ndarray, ' B']
  ) -> batch.UserContext:
    """Returns what is known of users before an event; see `ContextMaker`."""
    context = self._contexts(users, positions)
    real = users >= 0
    rates = self._ids(
      np.where(real, users, 0).astype(np.int64), np.where(real, positions, 0)
    )
    features = np.concatenate(
      [context.features, rates * real[:, None]], axis=1
    ).astype(np.int32)
    return dataclasses.replace(context, features=features)

  def _rates(
    self, label: int, users: np.ndarray, positions: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns smoothed rates, and whether the label was ever known."""
    first = self.events.offsets[users]
    known, positive = (
      until[first + positions] - until[first] for until in self._counts[label]
    )
    mean = self._means[label]
    rate = (positive + _PRIOR_COUNT * mean) / (known + _PRIOR_COUNT)
    return rate, known > 0

  def _ids(
    self, users: np.ndarray, positions: np.ndarray
  ) -> Int32[np.ndarray, 'B R']:
    columns = []
    for label, edges in enumerate(self._edges):
      rate, some = self._rates(label, users, positions)
      columns.append(some * (1 + np.searchsorted(edges, rate, side='right')))
    number = np.log2(1 + positions.astype(np.float64)).astype(np.int64)
    columns.append(1 + np.minimum(number, _COUNT_BUCKETS - 1))
    return np.stack(columns, axis=1).astype(np.int32)


def _until(values: np.ndarray) -> np.ndarray:
  """Returns how many entries before each place are True, and how many are."""
  return np.concatenate([[0], np.cumsum(values, dtype=np.int32)])
