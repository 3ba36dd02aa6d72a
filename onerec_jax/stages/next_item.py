"""Judges models by the held-out next item, beside the counting floors.

Every model ranks the whole catalogue for the same users; the judge holds who
they are and trains nothing.  Seeds are averaged per user, so that intervals
speak of users and not of repeated answers of the same ones.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import config
from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.semantic_ids import table
from onerec_jax.stages import comparison
from onerec_jax.stages import ranking
from onerec_jax.stages import trained as trained_lib

_METRICS = ('recall', 'ndcg')
_LEGALITY_USERS = 1000  # decoded once more without the trie


class Judge(NamedTuple):
  """Whom the models rank the catalogue for."""

  experiment: config.Experiment
  workdir: workdir_lib.Workdir
  store: examples.ExampleStore
  cases: ranking.Cases

  @property
  def stage(self) -> config.Stage:
    """Stage that made what he knows."""
    return 'prepare'

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of `Measured.values`: recall@5, ndcg@5, recall@10, ..."""
    sizes = self.experiment.evaluate.top_k
    return tuple(f'{name}@{k}' for k in sizes for name in _METRICS)


def make_judge(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> Judge:
  """Returns the judge of an experiment whose stage `prepare` is complete.

  Raises:
    FileNotFoundError: it is not.
    ValueError: the split has no users.
  """
  settings = experiment.evaluate
  path = workdir.data / 'examples' / f'{settings.split}.arrayrecord'
  store = examples.ExampleStore(workdir.require(path, 'prepare'))
  if not store.index.num_examples:
    raise ValueError(
      f'The split {settings.split!r} has no users to rank for. Set'
      " evaluate.split='valid', or change data.split."
    )
  cases = ranking.read_cases(
    store,
    items_per_session=experiment.data.sessions.items_per_session,
    max_examples=settings.max_examples,
  )
  return Judge(experiment, workdir, store, cases)


def check_users(name: str, row: workdir_lib.Workdir, judge: Judge) -> None:
  """Raises unless a row holds out the judge's targets, and so trains on none.

  Args:
    name: of the row.
    row: its work directory.
    judge: whose users are asked.
  """
  split = judge.experiment.evaluate.split
  ours = examples.read_index(row.data / 'examples' / f'{split}.arrayrecord')
  theirs = judge.store.index
  for column in ('users', 'starts', 'history_counts'):
    if not np.array_equal(getattr(ours, column), getattr(theirs, column)):
      raise ValueError(
        f'sweep row {name!r} has other {split} users or targets'
        f' ({ours.num_examples:,}) than the sweep ({theirs.num_examples:,}):'
        ' rows may change data.history_length and, with leave_one_out,'
        ' data.sessions.items_per_session, but not which events are held out.'
      )


def check_same(first: Judge, other: Judge) -> None:
  """Raises unless two seeds ask the same users for the same items."""
  same = all(
    np.array_equal(a, b) for a, b in zip(first.cases, other.cases, strict=True)
  )
  if not same:
    raise ValueError(
      f'The data of seed {other.experiment.seed} are not those of seed'
      f' {first.experiment.seed}, so that their users cannot be averaged:'
      f' data.source={first.experiment.data.source!r} draws them anew. Set'
      " sweep.seeds to one seed, or sweep.judge='sessions'."
    )


# --- Models -----------------------------------------------------------------


class Measured(NamedTuple):
  """How well one model ranks."""

  values: Float[np.ndarray, 'U columns']
  answers: Int32[np.ndarray, 'U K']  # as long as is judged; -1: none
  # as_decoded: share of the hypotheses that belong to items; free_items: the
  # same without the trie.  Empty: an item-level baseline, which has no IDs.
  legality: dict[str, float]
  # Means of the same figures when items that share an ID share its credit.
  by_id: dict[str, float]


def measure(
  judge: Judge,
  trained: trained_lib.Trained,
  decoding: config.DecodingConfig,
) -> Measured:
  """Returns every user's figures under a model.

  Args:
    judge: users.
    trained: on the same catalogue; its semantic IDs may be others.
    decoding: the row's own; users, list lengths and whether seen items may
      come again are the judge's.
  """
  settings = judge.experiment.evaluate
  decoding = dataclasses.replace(
    decoding, exclude_history=settings.decoding.exclude_history
  )
  settings = dataclasses.replace(settings, decoding=decoding)
  cases = judge.cases
  found = ranking.rank_users(trained, judge.store, cases, settings)
  items = found.answers.items
  by_id = comparison.user_values(
    metrics.target_ranks_by_id(
      items, cases.targets, id_of_item=table.bucket_of(trained.ids.codes)
    ),
    cases.target_mask,
    top_k=settings.top_k,
  )
  return Measured(
    values=values_of(judge, items),
    # Kept with every row: what is judged, not all that was generated.
    answers=items[:, : max(settings.top_k)].astype(np.int32),
    legality=_legality(judge, trained, settings, found.figures['legality']),
    by_id={name: float(by_id[name].mean()) for name in judge.columns},
  )


def values_of(
  judge: Judge, items: Int[np.ndarray, 'U K']
) -> Float[np.ndarray, 'U columns']:
  """Returns the columns of every user's list.

  Args:
    judge: users and targets.
    items: dense, best first; -1: none.
  """
  ranks = metrics.target_ranks(items, judge.cases.targets)
  found = comparison.user_values(
    ranks, judge.cases.target_mask, top_k=judge.experiment.evaluate.top_k
  )
  return np.stack([found[name] for name in judge.columns], axis=1)


def _legality(
  judge: Judge,
  trained: trained_lib.Trained,
  settings: config.EvaluateConfig,
  as_decoded: float,
) -> dict[str, float]:
  if trained.experiment.architecture != 'onerec':
    return {}
  free = as_decoded
  if settings.decoding.constrain != 'none':
    decoding = dataclasses.replace(settings.decoding, constrain='none')
    few = ranking.read_cases(
      judge.store,
      items_per_session=1,
      max_examples=min(_LEGALITY_USERS, len(judge.cases.user)),
    )
    free = ranking.rank_users(
      trained,
      judge.store,
      few,
      dataclasses.replace(settings, decoding=decoding),
    ).figures['legality']
  return {'as_decoded': as_decoded, 'free_items': free}


# --- Floors -----------------------------------------------------------------


class Floor(NamedTuple):
  """What counting reaches for the same users."""

  title: str
  description: str
  values: Float[np.ndarray, 'U columns']


def measure_floors(judge: Judge) -> list[Floor]:
  """Returns every counting floor, from the judge's training sequences."""
  settings = judge.experiment.evaluate
  result = []
  for floor in ranking.fit_floors(judge.workdir):
    items = floor.recommend(
      judge.cases.offsets,
      judge.cases.seen,
      top_k=max(settings.top_k),
      exclude_history=settings.decoding.exclude_history,
    )
    result.append(
      Floor(floor.title, floor.description, values_of(judge, items))
    )
    logging.info('%s ranked for %d users', floor.title, len(items))
  return result


# --- Figures ----------------------------------------------------------------


def of_methods(
  judge: Judge,
  values: Mapping[str, Sequence[Float[np.ndarray, 'U columns']]],
  *,
  base: str,
) -> dict[str, dict[str, Any]]:
  """Returns figures and differences of every method, and the slices.

    figure of a user = mean over the seeds

  Args:
    judge: whose columns the values are.
    values: method -> one array per seed; a floor has one.
    base: method that the others are compared to.

  Returns:
    'methods': name -> 'users', 'figures' (mean and 95 % interval) and
    'difference' (paired); 'slices': as in the stage `evaluate`, for every
    method.
  """
  settings = judge.experiment.evaluate
  boot: dict[str, Any] = {
    'samples': settings.bootstrap_samples,
    'seed': judge.experiment.seed,
  }
  pooled = {
    name: dict(
      zip(judge.columns, np.mean(np.stack(parts), axis=0).T, strict=True)
    )
    for name, parts in values.items()
  }
  methods = {
    name: {
      'users': len(judge.cases.user),
      'figures': comparison.intervals(found, **boot),
      'difference': comparison.differences(found, pooled[base], **boot),
    }
    for name, found in pooled.items()
  }
  return {'methods': methods, 'slices': _slices(judge, pooled, boot)}


def _slices(
  judge: Judge,
  pooled: Mapping[str, Mapping[str, np.ndarray]],
  boot: Mapping[str, Any],
) -> dict[str, list[dict[str, Any]]]:
  target = judge.cases.targets[:, 0]
  masks = {
    'training frequency of the target': comparison.frequency_slices(
      catalog.train_counts(judge.workdir.data)[target]
    )
  }
  numbers = comparison.order_numbers(catalog.item_ids(judge.workdir.data))
  if numbers is not None:
    masks['order of the original ids'] = comparison.order_slices(
      judge.cases.previous, target, numbers
    )
  k = comparison.headline_k(judge.experiment.evaluate.top_k)
  return {
    kind: comparison.slice_figures(found, pooled, k=k, **boot)
    for kind, found in masks.items()
  }
