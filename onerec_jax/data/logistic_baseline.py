"""Logistic regression on impressions: the floor of the P-Score model.

Reads the same user and item features and, beside them, the rates at which the
user and the item earned each label before.  Knows no order of events and no
product of features.
"""

import warnings
from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn import exceptions
from sklearn import linear_model

from onerec_jax.data import batch_plan
from onerec_jax.data import features as features_lib
from onerec_jax.data import impressions as impressions_lib

# Impressions of the mean rate that a rate begins with.
_PRIOR_COUNT = 10.0
# Item rates of a training impression are of users of the other folds, else
# they would hold its own label.
_FOLDS = 5
_FOLD_STREAM = 0x666F6C64
# Inverse strengths of the L2 penalty that are tried.
STRENGTHS = (0.01, 0.1, 1.0)
_MAX_ITERATIONS = 300


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


class Tables(NamedTuple):
  """One-hot features."""

  users: sparse.csr_matrix  # [U, *]
  items: sparse.csr_matrix  # [I, *]


def feature_tables(
  features: features_lib.Features, codes: Int[np.ndarray, 'I L']
) -> Tables:
  """Returns one-hot features of users and items, semantic IDs included."""
  sizes = features.sizes
  users = [
    one_hot(features.users[:, f : f + 1], size)
    for f, size in enumerate(sizes.users)
  ]
  items = [
    one_hot(ids, size)
    for ids, size in zip(features.items.values, sizes.items, strict=True)
  ]
  items += [
    one_hot(codes[:, l : l + 1] + 1, int(codes[:, l].max()) + 2)
    for l in range(codes.shape[1])
  ]
  return Tables(
    _side_by_side(users, len(features.users)), _side_by_side(items, len(codes))
  )


def _side_by_side(parts: list[Any], rows: int) -> sparse.csr_matrix:
  # A matrix without a column keeps the rows where there is no feature.
  return sparse.csr_matrix(
    sparse.hstack([sparse.csr_matrix((rows, 0)), *parts], 'csr')
  )


def design(
  impressions: impressions_lib.Impressions,
  numbers: Float[np.ndarray, 'E F'],
  tables: Tables,
) -> sparse.csr_matrix:  # [E, *]
  """Returns the features of impressions, one row each."""
  parts = [
    sparse.csr_matrix(numbers),
    tables.users[impressions.users],
    tables.items[impressions.items],
  ]
  return _side_by_side(parts, len(numbers))


# --- Regression -------------------------------------------------------------


def predict(
  train: sparse.csr_matrix,
  labels: Float[np.ndarray, ' E'],
  other: sparse.csr_matrix,
  *,
  strength: float,
) -> Float[np.ndarray, ' H']:
  """Fits one tower's labels and returns probabilities of other impressions.

  Args:
    train: features. [E, F]
    labels: 0 or 1; NaN: left out. One class only: it is predicted. [E]
    other: features. [H, F]
    strength: inverse of the L2 penalty.
  """
  known = np.isfinite(labels)
  if len(np.unique(labels[known])) == 1:
    return np.full(len(other.indptr) - 1, float(labels[known][0]))
  model = linear_model.LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
  with warnings.catch_warnings():
    # The last iterations change nothing that an AUC would see.
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    model.fit(train[known], labels[known].astype(np.int64))
  return np.asarray(model.predict_proba(other))[:, 1]
