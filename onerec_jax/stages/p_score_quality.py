"""What the P-Score model is worth on held-out users, beside the baselines.

Pure NumPy: figures of one tower's predictions.  No files, no model.
"""

import itertools
from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import metrics
from onerec_jax.stages import reward_quality

# Resamples of a difference, each of which sorts all impressions anew.
_MAX_SAMPLES = 200
_THRESHOLD = 0.5  # labels are 0 or 1
_UNDEFINED: dict[str, float | None] = dict.fromkeys(('value', 'low', 'high'))


class Predictions(NamedTuple):
  """Probabilities of one tower's label, for the same impressions."""

  tower: Float[np.ndarray, ' n']  # of the tower itself
  p_score: Float[np.ndarray, ' n']  # of the one score of all towers
  # Of logistic regressions: on the features, and on past rates as well.
  logistic: Float[np.ndarray, ' n']
  logistic_rates: Float[np.ndarray, ' n']


MODELS = ('tower', 'p_score')
BASELINES = ('logistic', 'logistic_rates')


def gain_key(model: str, baseline: str) -> str:
  """Returns the key in the result of what a model is above a baseline."""
  return f'{model}_over_{baseline}'


def quality(
  predictions: Predictions,
  labels: Float[np.ndarray, ' n'],
  users: Int[np.ndarray, ' n'],
  *,
  constant: float,
  samples: int,
  seed: int,
) -> dict[str, Any]:
  """Compares predictions of one label with it and with each other.

  Args:
    predictions: see there.
    labels: 0 or 1; NaN: unknown, left out. [n]
    users: of each impression. [n]
    constant: prediction to compare with: the mean training label.
    samples: bootstrap resamples of the users.
    seed: of the resamples.

  Returns:
    JSON-able: the fields of `Predictions`, each as
    `reward_quality.tower_quality` returns it (a session is an impression),
    and 'tower_over_logistic' and so on, every model over every baseline, with
    'auc' and 'grouped_auc' and their 95 % intervals.  The loss and the
    calibration of the P-Score say little: it is no estimate of one label.
  """
  result: dict[str, Any] = {
    name: reward_quality.tower_quality(
      values,
      labels,
      users,
      threshold=_THRESHOLD,
      constant=constant,
      samples=samples,
      seed=seed,
    )
    for name, values in predictions._asdict().items()
  }
  for model, baseline in itertools.product(MODELS, BASELINES):
    result[gain_key(model, baseline)] = gains(
      getattr(predictions, model),
      getattr(predictions, baseline),
      labels,
      users,
      samples=min(samples, _MAX_SAMPLES),
      seed=seed,
    )
  return result


def gains(
  ours: Float[np.ndarray, ' n'],
  theirs: Float[np.ndarray, ' n'],
  labels: Float[np.ndarray, ' n'],
  users: Int[np.ndarray, ' n'],
  *,
  samples: int,
  seed: int,
) -> dict[str, dict[str, float | None]]:
  """Returns by how much one prediction's AUC and GAUC exceed another's.

  Both are measured on the same resamples of users, with all of their
  impressions, so that what makes a user easy cancels.

  Args:
    ours: prediction. [n]
    theirs: prediction to compare with. [n]
    labels: 0 or 1; NaN: left out. [n]
    users: of each impression. [n]
    samples: resamples of the 95 % intervals.
    seed: of the resamples.
  """
  known = np.isfinite(labels)
  if not known.any():
    return {'auc': dict(_UNDEFINED), 'grouped_auc': dict(_UNDEFINED)}
  order = np.flatnonzero(known)[np.argsort(users[known], kind='stable')]
  users, positive = users[order], labels[order] > _THRESHOLD
  both = ours[order], theirs[order]
  starts = np.flatnonzero(np.diff(users, prepend=-1))
  rows = np.split(np.arange(len(users)), starts[1:])
  own = np.array(
    [[metrics.auc(x[r], positive[r]) for r in rows] for x in both]
  ).reshape(2, -1)
  sizes = np.array([len(r) for r in rows]) * np.isfinite(own[0])
  apart = np.where(sizes > 0, own[0] - own[1], 0.0)

  def figures(chosen: np.ndarray) -> tuple[float, float]:
    taken = np.concatenate([rows[i] for i in chosen])
    first, second = (metrics.auc(x[taken], positive[taken]) for x in both)
    inside = sizes[chosen].sum()
    grouped = (sizes * apart)[chosen].sum() / inside if inside else np.nan
    return first - second, float(grouped)

  random = np.random.default_rng(seed)
  whole = figures(np.arange(len(rows)))
  draws = np.array(
    [
      figures(random.integers(len(rows), size=len(rows)))
      for _ in range(samples)
    ]
  ).reshape(-1, 2)
  return {
    name: _interval(whole[i], draws[:, i])
    for i, name in enumerate(('auc', 'grouped_auc'))
  }


def personalisation(
  scores: Float[np.ndarray, 'U I'],
  *,
  list_items: int,
  samples: int,
  seed: int,
) -> dict[str, Any]:
  """Returns what a list of his own is worth to a user, beside one for all.

    one list  mean_u mean of p_ui over the K items with the largest mean_u p_ui
    own list  mean_u mean of the K largest p_ui
    gain      own list / one list - 1

  No generator that knows its users can be above one that does not by more than
  the gain, in the eyes of whoever has given these scores.

  Args:
    scores: probabilities of users and items. [U, I]
    list_items: K.
    samples: resamples of the users, for the 95 % interval of the gain.
    seed: of the resamples.
  """
  count = min(list_items, scores.shape[1])
  own = np.sort(scores, axis=1)[:, -count:].mean(axis=1)
  best = np.argsort(-scores.mean(axis=0), kind='stable')[:count]
  one = scores[:, best].mean(axis=1)
  random = np.random.default_rng(seed)
  drawn = random.integers(len(own), size=(samples, len(own)))
  draws = own[drawn].mean(axis=1) / one[drawn].mean(axis=1) - 1
  return {
    'all_items': float(scores.mean()),
    'one_list': float(one.mean()),
    'own_list': float(own.mean()),
    'gain': _interval(own.mean() / one.mean() - 1, draws),
  }


def _interval(value: float, draws: np.ndarray) -> dict[str, float | None]:
  """Returns a figure with its 95 % interval; None: undefined."""
  draws = draws[np.isfinite(draws)]
  if not np.isfinite(value) or not len(draws):
    return dict(_UNDEFINED)
  low, high = np.quantile(draws, [0.025, 0.975])
  return {'value': float(value), 'low': float(low), 'high': float(high)}
