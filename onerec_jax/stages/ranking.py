"""Held-out users, and the ranked lists that a model or a floor gives them.

Who is asked is read once and is the same for every model; how good the lists
are is another file's matter (comparison.py).
"""

import time
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import metrics
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import baselines
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import recommend
from onerec_jax.stages import trained as trained_lib

_READ_ROWS = 4096  # users read at once


class Cases(NamedTuple):
  """The users that are asked and what each of them has seen."""

  example: np.ndarray  # int [B]
  user: np.ndarray  # int [B]; dense
  targets: np.ndarray  # int [B, M]
  target_mask: np.ndarray  # bool [B, M]
  offsets: np.ndarray  # int [B + 1]; row b saw seen[offsets[b]:offsets[b+1]]
  seen: np.ndarray  # int; all earlier positives, oldest first

  @property
  def previous(self) -> np.ndarray:
    """Last item before the target, NO_ITEM without any. [B]"""
    has = np.diff(self.offsets) > 0
    last = self.seen[np.maximum(self.offsets[1:] - 1, 0)]
    return np.where(has, last, metrics.NO_ITEM)


def read_cases(
  store: examples.ExampleStore,
  *,
  items_per_session: int,
  max_examples: int | None,
) -> Cases:
  """Returns the users of an example file, in its order.

  Args:
    store: of the split.
    items_per_session: targets read per user (M).
    max_examples: so many users, evenly spaced; None: all.
  """
  rows, seen = [], []
  for batch in pipeline.eval_batches(
    store.with_contexts(None),
    batch_size=_READ_ROWS,
    history_length=1,
    items_per_session=items_per_session,
    max_examples=max_examples,
  ):
    kept = np.flatnonzero(batch.example_mask)  # fillers are at the end
    found = pipeline.seen_items(store, batch)
    seen += [found[row] for row in kept]
    columns = (
      batch.example_id, batch.user, batch.target_items, batch.target_mask,
    )  # fmt: skip
    rows.append([column[kept] for column in columns])
  example, user, targets, target_mask = (
    np.concatenate(parts) for parts in zip(*rows, strict=True)
  )
  return Cases(
    example=example.astype(np.int64),
    user=user.astype(np.int64),
    targets=targets.astype(np.int64),
    target_mask=target_mask,
    offsets=np.concatenate([[0], np.cumsum([len(s) for s in seen])]),
    seen=np.concatenate([*seen, np.zeros(0)]).astype(np.int64),
  )


# --- A model ----------------------------------------------------------------


class Ranked(NamedTuple):
  """A model's lists for all cases."""

  answers: trained_lib.Answers
  figures: dict[str, Any]  # what decoding itself showed; JSON-able


def rank_users(
  trained: trained_lib.Trained,
  store: examples.ExampleStore,
  cases: Cases,
  settings: config.EvaluateConfig,
) -> Ranked:
  """Returns the lists of a model; every process gets all of them.

  Args:
    trained: the model.
    store: that the cases were read from.
    cases: users, at least one.
    settings: decoding, batch size and list lengths.
  """
  recommender = trained_lib.Recommender(
    trained,
    settings.decoding,
    # Every hypothesis has room for one item: the by-ID figures need them.
    top_k=max(*settings.top_k, settings.decoding.num_beams),
    batch_size=settings.batch_size,
    max_excluded=int(store.index.history_counts.max(initial=0)),
  )
  size = recommender.batch_size
  mine = sharding.own_rows(trained.mesh)(size)
  answers = []
  total = len(cases.example)
  start = first = time.perf_counter()
  for number, batch in enumerate(
    session_batches(trained, store, cases, settings, batch_size=size)
  ):
    places = (number * size + mine).tolist()
    found = recommender(batch, [_seen(cases, place) for place in places])
    kept = min(size, total - number * size)
    answers.append(trained_lib.Answers(*(a[:kept] for a in found)))
    if not number:
      first = time.perf_counter()
      logging.info('first batch, compilation included: %.1f s', first - start)
    elif number % 50 == 49:
      logging.info('%d of %d users', number * size + kept, total)
  spent = time.perf_counter() - first
  ours = trained_lib.Answers(
    *(np.concatenate(parts) for parts in zip(*answers, strict=True))
  )
  listed = (ours.items != metrics.NO_ITEM).sum(axis=1)
  generated = int(ours.generated.sum())
  return Ranked(
    ours,
    {
      'legality': int(ours.legal.sum()) / max(generated, 1),
      'hypotheses': generated,
      'empty_results': int((listed == 0).sum()),
      'short_results': int((listed < max(settings.top_k)).sum()),
      'users_with_cut_exclusions': int(
        (np.diff(cases.offsets) > recommend.MAX_EXCLUDED).sum()
      ),
      'entropy_per_level': ours.entropy.mean(axis=0).tolist(),
      'codes_per_level': list(trained.ids.codes_per_level),
      # None: a single batch, compilation cannot be told apart.
      'users_per_second': (total - size) / spent if total > size else None,
    },
  )


def session_batches(
  trained: trained_lib.Trained,
  store: examples.ExampleStore,
  cases: Cases,
  settings: config.EvaluateConfig,
  *,
  batch_size: int,
) -> Iterator[batch_lib.SessionBatch]:
  """Yields this process's rows of the cases, as the model reads them.

  Args:
    trained: the model.
    store: that the cases were read from.
    cases: users.
    settings: of decoding.
    batch_size: rows of a whole batch; the last one has fillers.
  """
  store = store.with_contexts(trained.contexts)
  mine = sharding.own_rows(trained.mesh)(batch_size)
  data = trained.experiment.data
  for first in range(0, len(cases.example), batch_size):
    taken = cases.example[first : first + batch_size]
    rows = np.full(batch_size, -1)
    rows[: len(taken)] = taken
    yield pipeline.session_batch(
      store,
      rows[mine],
      history_length=data.history_length + settings.decoding.continue_items,
      items_per_session=data.sessions.items_per_session,
    )


def _seen(cases: Cases, place: int) -> np.ndarray:
  """Returns what a case has seen; a place past the end is a filler row."""
  if place >= len(cases.example):
    return cases.seen[:0]
  return cases.seen[cases.offsets[place] : cases.offsets[place + 1]]


# --- Floors -----------------------------------------------------------------


def fit_floors(
  workdir: workdir_lib.Workdir,
) -> tuple[baselines.CountingFloor, ...]:
  """Returns the counting floors of a prepared data set."""
  sequences = catalog.training_sequences(workdir.data)
  return baselines.fit_floors(
    sequences.offsets,
    sequences.items,
    num_items=catalog.num_items(workdir.data),
  )
