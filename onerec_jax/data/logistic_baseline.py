"""Logistic regression on impressions: floor and part of the P-Score model.

Reads what the towers read, in the form a linear model can: ids one-hot, the
history as shares.  `past_rates` adds counters.  Knows no order of events and
no product of features.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np
import threadpoolctl
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn import exceptions
from sklearn import linear_model

from onerec_jax import batch as batch_lib
from onerec_jax.data import batch_plan
from onerec_jax.data import impressions as impressions_lib
from onerec_jax.data import rated_contexts

# Impressions of the mean rate that a rate begins with.
_PRIOR_COUNT = 10.0
# Item rates of a training impression are of users of the other folds, else
# they would hold its own label.
_FOLDS = 5
_FOLD_STREAM = 0x666F6C64
# Inverse strengths of the L2 penalty that are tried, strongest first.
STRENGTHS = (0.01, 0.1, 1.0)
MAX_ITERATIONS = 400
# On the largest gradient.  Fits begin where the last penalty's has ended, which
# scikit-learn's 1e-4 takes for the end of the next as well.
_TOLERANCE = 1e-5
# A regression is fitted on at most so many training impressions.
MAX_IMPRESSIONS = 1_000_000
_CONTEXT_ROWS = 20_000  # impressions whose histories are in memory at once


# --- Rates ------------------------------------------------------------------


class Numbers(NamedTuple):
  """X user rates, X item rates, two counts; standardised on the training."""

  train: Float[np.ndarray, 'E F']
  held_out: Float[np.ndarray, 'H F']


def past_rates(
  parts: impressions_lib.Parts, *, num_items: int, seed: int
) -> Numbers:
  """Returns what each impression's user and item have earned so far.

    rate = (positives + a · mean) / (known + a),   given as log odds

  A user's rate is over his impressions before this one; an item's over those
  of training users, of the other folds of users if the impression trains.  So
  no number of an impression depends on its own label or on anything that its
  user did later.

  Args:
    parts: all impressions of the training stretch.
    num_items: size of the catalogue.
    seed: of the folds.
  """
  train, held_out = parts
  mean = np.nanmean(train.labels.astype(np.float64), axis=0)
  folds = batch_plan.random_bits(train.users, key=(seed, _FOLD_STREAM))
  folds = (folds % np.uint64(_FOLDS)).astype(np.int64)
  known = np.isfinite(train.labels)
  positive = train.labels == 1
  cell = folds * num_items + train.items
  tables = [
    np.stack(
      [
        np.bincount(cell, weights=w, minlength=_FOLDS * num_items)
        for w in (*values.T, np.ones(len(cell)))
      ],
      axis=-1,
    ).reshape(_FOLDS, num_items, -1)
    for values in (known, positive)
  ]
  everything = [table.sum(axis=0) for table in tables]
  others = [
    whole[train.items] - table[folds, train.items]
    for whole, table in zip(everything, tables, strict=True)
  ]
  whole = [table[held_out.items] for table in everything]
  result = []
  for impressions, (count, won) in ((train, others), (held_out, whole)):
    mine_count, mine_won = _before(impressions)
    result.append(
      np.concatenate(
        [
          _log_odds(mine_won[:, :-1], mine_count[:, :-1], mean),
          _log_odds(won[:, :-1], count[:, :-1], mean),
          np.log1p(mine_count[:, -1:]),
          np.log1p(count[:, -1:]),
        ],
        axis=1,
      )
    )
  middle, spread = result[0].mean(axis=0), result[0].std(axis=0) + 1e-6
  train_numbers, other = ((values - middle) / spread for values in result)
  return Numbers(train_numbers, other)


def _before(
  impressions: impressions_lib.Impressions,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns known and positive labels of the user before each impression.

  The last column of both counts the impressions.  [E, X + 1]
  """
  users = impressions.users
  first = np.searchsorted(users, users)
  result = []
  for values in (np.isfinite(impressions.labels), impressions.labels == 1):
    values = np.concatenate([values, np.ones((len(users), 1))], axis=1)
    until = np.cumsum(values, axis=0) - values  # of all users before too
    result.append(until - until[first])
  return result[0], result[1]


def _log_odds(
  positive: np.ndarray, known: np.ndarray, mean: np.ndarray
) -> np.ndarray:
  rate = (positive + _PRIOR_COUNT * mean) / (known + _PRIOR_COUNT)
  return np.log(rate) - np.log1p(-rate)


# --- Features ---------------------------------------------------------------


def one_hot(
  ids: Int[np.ndarray, 'n V'], size: int
) -> sparse.csr_matrix:  # [n, size]
  """Returns a row per row of `ids` with 1 at each of its ids except 0."""
  row, place = np.nonzero(ids)
  return sparse.csr_matrix(
    (np.ones(len(row)), (row, ids[row, place])), shape=(len(ids), size)
  )


class Design:
  """Makes the features of impressions: everything the towers read.

    user      one-hot features, the buckets of his rates among them
    item      one-hot features, semantic ID and the item itself
    history   of the events the towers see: share of each code, number bucket
              and age bucket; of each label, how often it happened where it
              was logged, and how often it was logged

  An impression's own event is not among the events before it, so that no
  feature holds its label.

  Args:
    contexts: what the towers read of a user before an event.
    codes: semantic IDs of all items.
  """

  def __init__(
    self,
    contexts: rated_contexts.RatedContexts,
    codes: Int[np.ndarray, 'I L'],
  ):
    self._contexts = contexts
    self._codes = codes
    count, items = len(codes), contexts.features.items.values
    self._items = _side_by_side(
      [
        sparse.identity(count, format='csr'),
        *(
          one_hot(ids, size)
          for ids, size in zip(items, contexts.sizes.items, strict=True)
        ),
        *(
          one_hot(level[:, None] + 1, int(level.max()) + 2) for level in codes.T
        ),
      ],
      count,
    )

  def __call__(
    self, impressions: impressions_lib.Impressions
  ) -> sparse.csr_matrix:  # [E, *]
    """Returns one row per impression."""
    count = len(impressions.users)
    rows = [
      np.arange(first, min(first + _CONTEXT_ROWS, count))
      for first in range(0, count, _CONTEXT_ROWS)
    ]
    return sparse.csr_matrix(
      sparse.vstack([self._rows(impressions.take(r)) for r in rows], 'csr')
    )

  def tables(
    self, coefficients: Float[np.ndarray, 'X F']
  ) -> dict[str, Float[np.ndarray, 'X _']]:
    """Returns what each id adds to the logit; names of model/linear_part.py.

    All that is known of an item is one number.  Ids that occur nowhere add 0.

    Args:
      coefficients: of the features of `__call__`, in their order. [X, F]
    """
    contexts, left = self._contexts, coefficients

    def take(width: int, rows: int) -> np.ndarray:
      nonlocal left
      taken, left = left[:, :width], left[:, width:]
      return np.pad(taken, ((0, 0), (0, rows - width)))

    items: Any = self._items
    width = items.shape[1]
    result = {'item': np.asarray(take(width, width) @ items.T)}
    for u, size in enumerate(contexts.sizes.users):
      result[f'user_{u}'] = take(size, size)
      result[f'user_{u}'][:, 0] = 0  # unknown: `one_hot` has no 1 there
    result['event'] = np.zeros((len(coefficients), len(self._codes)))
    for level in self._codes.T:
      width = int(level.max()) + 1
      result['event'] += take(width, width)[:, level]
    buckets = [f.buckets for f in contexts.pathways.event_features]
    for f, edges in enumerate(contexts.features.edges):
      result[f'number_{f}'] = take(len(edges) + 2, 1 + buckets[f])
    width = contexts.pathways.age_buckets + 1
    result['age'] = take(width, width)
    width = len(contexts.pathways.labels)
    result['happened'], result['logged'] = (
      take(width, width),
      take(width, width),
    )
    assert not left.size, left.shape
    return {name: t.astype(np.float32) for name, t in result.items()}

  def _rows(
    self, impressions: impressions_lib.Impressions
  ) -> sparse.csr_matrix:
    context = self._contexts(impressions.users, impressions.positions)
    parts: list[Any] = [self._items[impressions.items]]
    parts += [
      one_hot(context.features[:, f : f + 1], size)
      for f, size in enumerate(self._contexts.sizes.users)
    ]
    if context.short is not None:
      parts += self._history(context.short)
    return _side_by_side(parts, len(impressions.users))

  def _history(self, events: batch_lib.EventSequence) -> Iterator[Any]:
    """Yields blocks that say what the events were like, on average."""
    mask = events.mask
    for level in self._codes.T:
      yield _shares(level[events.items], mask, int(level.max()) + 1)
    for f, edges in enumerate(self._contexts.features.edges):
      yield _shares(events.numbers[..., f], mask, len(edges) + 2)
    yield _shares(events.age, mask, self._contexts.pathways.age_buckets + 1)
    logged = events.label_mask.sum(axis=1)
    happened = events.labels.sum(axis=1)
    yield sparse.csr_matrix(happened / np.maximum(logged, 1))
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    yield sparse.csr_matrix(logged / count)


def _shares(
  ids: Int[np.ndarray, 'n N'], mask: Bool[np.ndarray, 'n N'], size: int
) -> sparse.csr_matrix:  # [n, size]
  """Returns the share of a row's unmasked places that hold each id."""
  row, place = np.nonzero(mask)
  weights = 1 / np.bincount(row, minlength=len(ids))[row]
  return sparse.csr_matrix(
    (weights, (row, ids[row, place])), shape=(len(ids), size)
  )


def with_numbers(
  read: sparse.csr_matrix, numbers: Float[np.ndarray, 'E F']
) -> sparse.csr_matrix:  # [E, *]
  """Returns features with dense numbers beside them, as of `past_rates`."""
  return _side_by_side([sparse.csr_matrix(numbers), read], len(numbers))


def _side_by_side(parts: list[Any], rows: int) -> sparse.csr_matrix:
  # A matrix without a column keeps the rows where there is no feature.
  return sparse.csr_matrix(
    sparse.hstack([sparse.csr_matrix((rows, 0)), *parts], 'csr')
  )


# --- Regression -------------------------------------------------------------


@contextlib.contextmanager
def quietly() -> Iterator[None]:
  """Within it fits run on one thread each, and may end before they converge.

  Vectors of the coefficients' length are short: more threads only wait.  The
  last iterations change nothing that an AUC would see.  Both settings are the
  process's: enter it once, around all threads that fit.
  """
  with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    yield


class Prediction(NamedTuple):
  """Of one fit."""

  strength: float  # inverse of the L2 penalty
  values: Float[np.ndarray, ' H']  # probabilities


def predictions(
  train: sparse.csr_matrix,
  labels: Float[np.ndarray, ' E'],
  other: sparse.csr_matrix,
) -> Iterator[Prediction]:
  """Fits one tower's labels and yields what each penalty predicts.

  From the strongest penalty on, each fit beginning where the last has ended.

  Args:
    train: features. [E, F]
    labels: 0 or 1; NaN: left out. One class only: it is predicted. [E]
    other: features. [H, F]
  """
  known = np.isfinite(labels)
  if len(np.unique(labels[known])) == 1:
    always = np.full(len(other.indptr) - 1, float(labels[known][0]))
    yield Prediction(STRENGTHS[0], always)
    return
  if not known.all():  # else there is no need to copy
    train = train[known]
  positive = labels[known].astype(np.int64)
  model = linear_model.LogisticRegression(
    max_iter=MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True
  )
  for strength in STRENGTHS:
    model.set_params(C=strength)
    model.fit(train, positive)
    yield Prediction(strength, np.asarray(model.predict_proba(other))[:, 1])
