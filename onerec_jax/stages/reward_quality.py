"""How well one tower of the reward model predicts its label on held-out users.

Pure NumPy: AUC, AUC per user, loss against a constant, calibration, with
bootstrap intervals over users.  No files, no model.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import metrics

_NUM_BINS = 10  # of the calibration
_MIN_PROBABILITY = 1e-7  # bounds the loss of a constant of 0 or 1


def positive_threshold(
  labels: Float[np.ndarray, ' n'],
) -> tuple[float, str]:
  """Returns the number above which a label counts as positive in an AUC.

  0/1 labels: 1/2.  Soft labels: the median, or the largest label below it if
  none lies above.

  Args:
    labels: known training labels, not all equal.

  Returns:
    The threshold, and its rule in words.
  """
  values = np.unique(labels)
  if set(values.tolist()) <= {0.0, 1.0}:
    return 0.5, 'label is 1'
  median = float(np.median(labels))
  if (values > median).any():
    return median, f'label > {median:.4g}, the median of the training sessions'
  below = float(values[values < median].max())
  return below, (
    f'label > {below:.4g}, the next below the median (which is the maximum)'
  )


def binary_cross_entropy(
  predictions: Float[np.ndarray, ' n'], labels: Float[np.ndarray, ' n']
) -> Float[np.ndarray, ' n']:
  """Returns -y log p - (1 - y) log(1 - p) in nats, with p kept off 0 and 1."""
  p = np.clip(predictions, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
  return -labels * np.log(p) - (1 - labels) * np.log1p(-p)


def calibration(
  predictions: Float[np.ndarray, ' n'], labels: Float[np.ndarray, ' n']
) -> list[dict[str, float]]:
  """Returns mean prediction and mean label in bins of equal count.

  Sessions are ordered by their prediction and cut into ten parts (fewer, if
  there are fewer sessions) that differ by one in size at most.
  """
  order = np.argsort(predictions, kind='stable')
  return [
    {
      'mean_prediction': float(predictions[rows].mean()),
      'mean_label': float(labels[rows].mean()),
      'count': len(rows),
    }
    for rows in np.array_split(order, min(_NUM_BINS, len(order)) or 1)
    if len(rows)
  ]


class _WeightedAuc:
  """AUC of sessions that occur several times; sorts once."""

  def __init__(self, scores: np.ndarray, positive: np.ndarray):
    self._order = np.argsort(scores, kind='stable')
    ranked = scores[self._order]
    new = np.ones(len(ranked), bool)
    new[1:] = ranked[1:] != ranked[:-1]
    self._ties = np.flatnonzero(new)
    self._positive = positive[self._order].astype(np.float64)

  def __call__(self, weights: np.ndarray) -> float:
    weights = weights[self._order]
    above = np.add.reduceat(weights * self._positive, self._ties)
    below = np.add.reduceat(weights * (1 - self._positive), self._ties)
    pairs = above.sum() * below.sum()
    if not pairs:
      return float('nan')
    # Sums of products, here and below: small dot products are slow in BLAS
    # with many threads.
    won = above * (np.cumsum(below) - below / 2)
    return float(won.sum() / pairs)


def _interval(value: float, draws: np.ndarray) -> dict[str, float | None]:
  """Returns a figure with its 95 % interval; None: undefined."""
  draws = draws[np.isfinite(draws)]
  if not np.isfinite(value) or not len(draws):
    return {'value': None, 'low': None, 'high': None}
  low, high = np.quantile(draws, [0.025, 0.975])
  return {'value': float(value), 'low': float(low), 'high': float(high)}


def tower_quality(
  predictions: Float[np.ndarray, ' n'],
  labels: Float[np.ndarray, ' n'],
  users: Int[np.ndarray, ' n'],
  *,
  threshold: float,
  constant: float,
  samples: int,
  seed: int,
) -> dict[str, Any]:
  """Compares the predictions of one tower to its labels.

  Intervals are percentiles over resamples of the users, with all of their
  sessions; the same resamples serve all figures.

  Args:
    predictions: probabilities of the tower. [n]
    labels: 0..1; NaN: unknown, left out. [n]
    users: of each session. [n]
    threshold: labels above it are positive for the AUCs.
    constant: prediction to compare with: the mean training label.
    samples: bootstrap resamples.
    seed: of the resamples.

  Returns:
    JSON-able: 'auc', 'grouped_auc' (per user, weighted by sessions), 'bce' and
    'bce_gain' (constant minus model) with intervals; 'bce_constant',
    'mean_label', 'mean_prediction', 'positive_share', 'calibration', and the
    counts 'sessions', 'users', 'users_in_grouped_auc'.  None: undefined, as
    the AUC of one class.
  """
  known = np.isfinite(labels)
  if not known.any():
    return {'sessions': 0, 'users': 0, 'known_share': 0.0}
  share = float(known.mean())
  p, y = predictions[known].astype(np.float64), labels[known].astype(np.float64)
  positive = y > threshold
  distinct, user = np.unique(users[known], return_inverse=True)
  user = user.reshape(-1)
  own, sizes = _auc_of_users(p, positive, user, len(distinct))
  grouped = np.isfinite(own)
  own = np.where(grouped, own, 0.0)
  sizes = np.where(grouped, sizes, 0)
  loss = binary_cross_entropy(p, y)
  gain = binary_cross_entropy(np.full_like(p, constant), y) - loss
  auc = _WeightedAuc(p, positive)

  lost, gained, sessions = (
    np.bincount(user, weights=w) for w in (loss, gain, np.ones_like(loss))
  )

  def figures(counts: np.ndarray) -> tuple[float, float, float, float]:
    total, inside = (counts * sessions).sum(), (counts * sizes).sum()
    return (
      auc(counts[user]),
      float((counts * sizes * own).sum() / inside) if inside else float('nan'),
      float((counts * lost).sum() / total),
      float((counts * gained).sum() / total),
    )

  random = np.random.default_rng(seed)
  draws = np.array(
    [
      figures(
        np.bincount(
          random.integers(len(distinct), size=len(distinct)),
          minlength=len(distinct),
        ).astype(np.float64)
      )
      for _ in range(samples)
    ]
  ).reshape(samples, 4)
  whole = figures(np.ones(len(distinct)))
  names = 'auc', 'grouped_auc', 'bce', 'bce_gain'
  return {
    **{n: _interval(whole[i], draws[:, i]) for i, n in enumerate(names)},
    'bce_constant': float((loss + gain).mean()),
    'mean_label': float(y.mean()),
    'mean_prediction': float(p.mean()),
    'positive_share': float(positive.mean()),
    'sessions': len(p),
    'known_share': share,
    'users': len(distinct),
    'users_in_grouped_auc': int(grouped.sum()),
    'calibration': calibration(p, y),
  }


def _auc_of_users(
  scores: np.ndarray,
  positive: Bool[np.ndarray, ' n'],
  user: np.ndarray,
  num_users: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each user's AUC (NaN: one class only) and number of sessions."""
  order = np.argsort(user, kind='stable')
  sizes = np.bincount(user, minlength=num_users)
  parts = np.split(order, np.cumsum(sizes)[:-1])
  return np.array([metrics.auc(scores[r], positive[r]) for r in parts]), sizes
