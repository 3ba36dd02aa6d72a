"""What a trained P-Score model is worth, beside regressions on its features.

Asks the model about held-out users and fits the baselines; the figures
themselves are p_score_quality.py's.  Trains no model and writes nothing.
"""

from collections.abc import Iterable
from concurrent import futures
from typing import Any

import jax
import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import event_table
from onerec_jax.data import impressions as impressions_lib
from onerec_jax.data import logistic_baseline
from onerec_jax.data import rated_contexts
from onerec_jax.semantic_ids import table
from onerec_jax.stages import p_score_model
from onerec_jax.stages import p_score_quality
from onerec_jax.stages import reward_quality

# Held-out impressions that the final figures are taken over.
_JUDGED_IMPRESSIONS = 100_000
_FITS_AT_ONCE = 2  # threads; each may copy the features
# Held-out users and items of whom all pairs are scored, to see how much of the
# score is the user's own taste; items are scored in groups.
_LIST_USERS = 100
_LIST_CANDIDATES = 10_000
_CANDIDATES_AT_ONCE = 500


def definition(tower: config_lib.PScoreTower) -> str:
  """Returns the label of an impression in one line."""
  return f'{tower.column} > {tower.threshold:g}'


def judge(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  ids: table.SemanticIds,
  mesh: jax.sharding.Mesh,
  events: event_table.EventTable,
  parts: impressions_lib.Parts,
) -> dict[str, Any]:
  """Returns the figures of the best checkpoint on held-out users."""
  size, seed = experiment.evaluate.batch_size, experiment.seed
  model = p_score_model.load(
    experiment, workdir, ids, mesh, batch_size=size, events=events
  )
  rows = impressions_lib.of_whole_users(
    parts.held_out, max_impressions=_JUDGED_IMPRESSIONS, seed=seed
  )
  judged = parts.held_out.take(rows)
  found = model.score(
    judged.users, judged.positions, judged.items[:, None].astype(np.int32)
  )
  fused = found.p[:, 0].astype(np.float64)
  own = found.towers[:, 0].astype(np.float64)
  baselines = _baselines(parts, rows, ids, model.contexts, seed=seed)
  towers = []
  for x, tower in enumerate(model.config.towers):
    labels = parts.train.labels[:, x]
    labels = labels[np.isfinite(labels)]
    quality = p_score_quality.quality(
      p_score_quality.Predictions(
        own[:, x],
        fused,
        **{name: found[x].values for name, found in baselines.items()},
      ),
      judged.labels[:, x].astype(np.float64),
      judged.users.astype(np.int64),
      constant=float(labels.mean()),
      samples=experiment.evaluate.bootstrap_samples,
      seed=seed,
    )
    towers.append(
      {
        **config_lib.to_dict(tower),
        'definition': definition(tower),
        'train_impressions_known': len(labels),
        'train_known_share': len(labels) / len(parts.train.users),
        'train_mean_label': float(labels.mean()),
        'strengths': {
          name: found[x].strength for name, found in baselines.items()
        },
        'held_out': quality,
      }
    )
    logging.info('%s', _line(tower.name, quality))
  return {
    'checkpoint_step': model.step,
    'towers': towers,
    'personalisation': _personalisation(experiment, model, judged),
    'impressions': {
      'train': len(parts.train.users),
      'train_users': len(np.unique(parts.train.users)),
      'held_out': len(parts.held_out.users),
      'held_out_users': len(np.unique(parts.held_out.users)),
      'held_out_judged': len(rows),
      'held_out_users_judged': len(np.unique(judged.users)),
      # With those that have no label and are no impressions.
      'training_events': int((events.split == 0).sum()),
    },
  }


def _personalisation(
  experiment: config_lib.Experiment,
  model: p_score_model.PScoreModel,
  judged: impressions_lib.Impressions,
) -> dict[str, Any]:
  """Returns how much better a user's own best list is than one for all."""
  last = np.flatnonzero(np.diff(judged.users, append=-1))
  last = last[
    impressions_lib.evenly_spaced(len(last), max_impressions=_LIST_USERS)
  ]
  users, positions = judged.users[last], judged.positions[last]
  items = impressions_lib.evenly_spaced(
    model.num_items, max_impressions=_LIST_CANDIDATES
  ).astype(np.int32)
  parts = []
  for first in range(0, len(items), _CANDIDATES_AT_ONCE):
    group = items[first : first + _CANDIDATES_AT_ONCE]
    # One shape is compiled; -1 is no item.
    group = np.pad(
      group, (0, _CANDIDATES_AT_ONCE - len(group)), constant_values=-1
    )
    found = model.score(
      users, positions, np.broadcast_to(group, (len(users), len(group))).copy()
    )
    both = np.concatenate([found.p[..., None], found.towers], axis=-1)
    parts.append(both[:, group >= 0])
  scores = np.concatenate(parts, axis=1).astype(np.float64)
  list_items = experiment.evaluate.p_score.num_items
  return {
    'users': len(users),
    'items': len(items),
    'items_per_list': list_items,
    'scores': {
      name: p_score_quality.personalisation(
        scores[..., x],
        list_items=list_items,
        samples=experiment.evaluate.bootstrap_samples,
        seed=experiment.seed,
      )
      for x, name in enumerate(('p_score', *model.names))
    },
  }


def _baselines(
  parts: impressions_lib.Parts,
  rows: np.ndarray,
  ids: table.SemanticIds,
  contexts: rated_contexts.RatedContexts,
  *,
  seed: int,
) -> dict[str, list[logistic_baseline.Prediction]]:
  """Returns what the regressions predict, per tower; keys: BASELINES.

  The penalty is the best for the impressions that are judged: a choice in the
  baselines' favour.
  """
  chosen = impressions_lib.evenly_spaced(
    len(parts.train.users), max_impressions=logistic_baseline.MAX_IMPRESSIONS
  )
  train, judged = parts.train.take(chosen), parts.held_out.take(rows)
  design = logistic_baseline.Design(contexts, ids.codes)
  read = design(train), design(judged)
  numbers = logistic_baseline.past_rates(
    parts, num_items=ids.num_items, seed=seed
  )
  rated = (
    logistic_baseline.with_numbers(read[0], numbers.train[chosen]),
    logistic_baseline.with_numbers(read[1], numbers.held_out[rows]),
  )
  features: dict[str, tuple[Any, Any]] = dict(
    zip(p_score_quality.BASELINES, (read, rated), strict=True)
  )

  def fit(name: str, x: int) -> logistic_baseline.Prediction:
    of_training, of_judged = features[name]
    return _best(
      logistic_baseline.predictions(of_training, train.labels[:, x], of_judged),
      judged.labels[:, x].astype(np.float64),
    )

  places = range(train.labels.shape[1])
  with (
    logistic_baseline.quietly(),
    futures.ThreadPoolExecutor(_FITS_AT_ONCE) as pool,
  ):
    found = {
      name: [pool.submit(fit, name, x) for x in places] for name in features
    }
    return {name: [f.result() for f in fits] for name, fits in found.items()}


def _best(
  found: Iterable[logistic_baseline.Prediction], labels: np.ndarray
) -> logistic_baseline.Prediction:
  """Returns the prediction before the first whose loss is larger."""
  known, best, least = np.isfinite(labels), None, np.inf
  for prediction in found:
    loss = reward_quality.binary_cross_entropy(
      prediction.values[known], labels[known]
    ).sum()
    if best is not None and loss > least:
      break
    best, least = prediction, loss
  assert best is not None
  return best


def _line(name: str, quality: dict[str, Any]) -> str:
  """Returns one line on a tower: its AUC beside those of the baselines."""
  if not quality['tower']['sessions']:
    return f'{name}: no held-out impression has a label'

  def shown(part: str, figure: str) -> str:
    found = quality[part][figure]
    if found['value'] is None:
      return 'undefined (one class only)'
    return f'{found["value"]:.4f} [{found["low"]:.4f}, {found["high"]:.4f}]'

  def line(figure: str) -> str:
    against = (
      f'{words} {shown(baseline, figure)} (tower'
      f' {shown(p_score_quality.gain_key("tower", baseline), figure)} above)'
      for baseline, words in (
        ('logistic', 'logistic regression'),
        ('logistic_rates', 'with past rates'),
      )
    )
    return (
      f'{shown("tower", figure)}, P-Score {shown("p_score", figure)},'
      f' {", ".join(against)}'
    )

  return f'{name}: AUC {line("auc")}; per user {line("grouped_auc")}'
