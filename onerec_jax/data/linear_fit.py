"""Fits the linear part of the P-Score model, one logistic regression a label.

Its features are those of logistic_baseline.py.  Reads training impressions
only; some of their users choose the penalty.
"""

from concurrent import futures
from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from scipy import sparse
from sklearn import linear_model

from onerec_jax.data import batch_plan
from onerec_jax.data import logistic_baseline

_FITS_AT_ONCE = 2  # threads; each copies the features
_CHOICE_STREAM = 0x63686F696365
_CHOOSING = 5  # one user in so many chooses the penalty
_RAREST = 1e-4  # probability of a label that never happens


class Fits(NamedTuple):
  """Logistic regressions of X labels."""

  coefficients: Float[np.ndarray, 'X F']
  intercepts: Float[np.ndarray, ' X']
  strengths: tuple[float, ...]  # inverse of each label's L2 penalty


def fit(
  features: sparse.csr_matrix,
  labels: Float[np.ndarray, 'E X'],
  users: Int[np.ndarray, ' E'],
  *,
  strengths: tuple[float, ...],
  seed: int,
) -> Fits:
  """Fits each label, with the penalty that is best for users left out.

  Of each label the strength with the least loss on a fifth of the users, when
  fitted on the others, is fitted on all.  Weaker penalties than the first that
  is worse are not tried.

  Args:
    features: [E, F]
    labels: 0 or 1; NaN: left out. [E, X]
    users: of the rows. [E]
    strengths: inverse strengths of the L2 penalty, strongest first.
    seed: of the choice of users.
  """
  bits = batch_plan.random_bits(users, key=(seed, _CHOICE_STREAM))
  choosing = bits % np.uint64(_CHOOSING) == 0

  def of_label(labels: np.ndarray) -> tuple[np.ndarray, float, float]:
    known = np.isfinite(labels)
    strength = _best_strength(
      features, labels == 1, known & ~choosing, known & choosing, strengths
    )
    line = _line(features, labels == 1, known, strength)
    return *line, strength

  with (
    logistic_baseline.quietly(),
    futures.ThreadPoolExecutor(_FITS_AT_ONCE) as pool,
  ):
    found = list(pool.map(of_label, labels.T))
  coefficients, intercepts, chosen = zip(*found, strict=True)
  return Fits(np.stack(coefficients), np.array(intercepts), chosen)


def _best_strength(
  features: sparse.csr_matrix,
  positive: Bool[np.ndarray, ' E'],
  fitted: Bool[np.ndarray, ' E'],
  judged: Bool[np.ndarray, ' E'],
  strengths: tuple[float, ...],
) -> float:
  """Returns the strength before the first whose loss is larger."""
  best, least = strengths[0], np.inf
  for strength in strengths if len(strengths) > 1 else ():
    coefficients, intercept = _line(features, positive, fitted, strength)
    logits = features[judged] @ coefficients + intercept
    signed = np.where(positive[judged], logits, -logits)
    loss = np.logaddexp(0, -signed).sum()
    if loss > least:
      break
    best, least = strength, loss
  return best


def _line(
  features: Any,  # sparse; SciPy's types do not know that it has a shape
  positive: Bool[np.ndarray, ' E'],
  taken: Bool[np.ndarray, ' E'],
  strength: float,
) -> tuple[Float[np.ndarray, ' F'], float]:
  """Returns coefficients and intercept."""
  share = positive[taken].mean() if taken.any() else 0.5
  if share in (0, 1) or not taken.any():  # one class: nothing to fit
    share = np.clip(share, _RAREST, 1 - _RAREST)
    return np.zeros(features.shape[1]), float(np.log(share / (1 - share)))
  model = linear_model.LogisticRegression(
    C=strength, max_iter=logistic_baseline.MAX_ITERATIONS
  )
  model.fit(features[taken], positive[taken])
  return model.coef_[0], float(np.asarray(model.intercept_)[0])
