"""Stage `prepare`: from a data set's files to tables and example files.

Reads data.path (or fetches, or simulates) and writes the workdir's data/.
What happens to every event is decided in data/; this file only calls it in
order and reports.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import cleaning
from onerec_jax.data import examples
from onerec_jax.data import schema
from onerec_jax.data import sessions
from onerec_jax.data import sources
from onerec_jax.data import splits


def run(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Prepares the data set of an experiment.

  Returns:
    What dataset.json holds: source, statistics, counts and sentences of every
    rule, and the size of each split.

  Raises:
    DataError: the files are wrong; says where.
    ValueError: the settings ask for what the data set does not have.
  """
  data = experiment.data
  dataset = schema.validate(sources.read(data, seed=experiment.seed))
  logging.info(
    'Read %s: %d interactions.', dataset.source, len(dataset.interactions)
  )
  _check_needs_time(dataset, data)
  clean = cleaning.clean(
    dataset,
    positive=data.positive,
    min_user_positives=data.min_user_positives,
    min_item_positives=data.min_item_positives,
  )
  counts = clean.counts
  cut = sessions.cut(
    clean.events,
    sessions=data.sessions,
    session_ids=clean.session_ids,
    exact_time=clean.exact_time,
  )
  session = None
  if cut is not None:
    session = cut.number
    counts['sessions'] = cut.total
    counts['interleaved_sessions_cut'] = cut.interleaved
    counts['events_without_session'] = int((session < 0).sum())
  boundaries = _boundaries(clean.events, session, data.split)
  counts['users_train_only'] = boundaries.train_only
  targets = _targets(clean, cut, boundaries, data)

  folder = workdir.data
  folder.mkdir(parents=True, exist_ok=True)
  stretch = splits.stretch(clean.events, boundaries)
  catalog.write_tables(
    folder, *cleaning.tables(clean, session=session, stretch=stretch)
  )
  ends = boundaries.valid, boundaries.test, clean.events.offsets[1:]
  sizes = {}
  for name, found, end in zip(schema.SPLITS, targets, ends, strict=True):
    index = examples.write_examples(
      folder / 'examples' / f'{name}.arrayrecord',
      _records(clean, found, end),
      target_events='positive' if session is None else 'all',
    )
    sizes[name] = {
      'users': len(index.users),
      'examples': index.num_examples,
      'target_items': int(found.lengths.sum()),
      'events_visible': int(index.num_events.sum(dtype=np.int64)),
    }
    logging.info(
      'Split %s: %d users, %d target starts.',
      name,
      len(index.users),
      index.num_examples,
    )
  trained = np.unique(clean.events.user[targets[0].starts])
  counts['users_without_training_target'] = clean.events.num_users - len(
    trained
  )
  counts['starts_tied_with_history'] = sum(t.tied for t in targets)
  result = {
    'source': dataset.source,
    **cleaning.statistics(clean),
    'timestamps': 'microseconds UTC' if dataset.has_time else 'rank in user',
    'split': config.to_dict(data.split),
    'splits': sizes,
    'counts': counts,
    'adapter_counts': dataset.counts,
    'rules': schema.RULES,
  }
  workdir_lib.write_json(folder / 'dataset.json', result)
  logging.info(
    'Kept %d users, %d items, %d events (%d positive).',
    result['users'],
    result['items'],
    result['events'],
    result['positives'],
  )
  return result


def _check_needs_time(dataset: schema.Dataset, data: config.DataConfig) -> None:
  if dataset.has_time:
    return
  if data.split.kind == 'by_time':
    raise ValueError(
      f"data.split.kind='by_time' needs timestamps, which {dataset.source} does"
      " not have. Use data.split.kind='leave_one_out'."
    )
  if data.sessions.kind in ('gap', 'day'):
    raise ValueError(
      f'data.sessions.kind={data.sessions.kind!r} needs timestamps, which'
      f" {dataset.source} does not have. Use data.sessions.kind='next_items'."
    )


def _boundaries(
  events: schema.Events,
  session: np.ndarray | None,
  split: config.SplitConfig,
) -> splits.Boundaries:
  if split.kind == 'leave_one_out':
    return splits.leave_one_out(events, session=session)
  # config.validate has seen to it that both are set.
  return splits.by_time(
    events,
    validation_start=splits.microseconds(split.validation_start or ''),
    test_start=splits.microseconds(split.test_start or ''),
  )


def _targets(
  clean: cleaning.CleanData,
  cut: sessions.Sessions | None,
  boundaries: splits.Boundaries,
  data: config.DataConfig,
) -> list[splits.Targets]:
  """Returns the targets of train, valid and test."""
  by_time = data.split.kind == 'by_time'
  length = data.sessions.items_per_session
  if cut is None:
    return [
      splits.next_item_targets(
        clean.events,
        boundaries,
        split,
        items_per_session=length,
        held_out=split > 0,
        strictly_later=by_time,
      )
      for split in range(3)
    ]
  good = _good_sessions(clean, cut, boundaries, data.sessions.filter)
  return [
    splits.session_targets(
      clean.events,
      boundaries,
      split,
      session=cut.number,
      good=good if split == 0 else None,
      items_per_session=length,
      first_only=split > 0 and not by_time,
      strictly_later=by_time,
    )
    for split in range(3)
  ]


def _good_sessions(
  clean: cleaning.CleanData,
  cut: sessions.Sessions,
  boundaries: splits.Boundaries,
  rule: config.SessionFilterConfig,
) -> np.ndarray | None:
  """Returns which sessions pass the quality filter, None if it is off."""
  if not rule.enabled:
    return None

  def column(name: str, setting: str) -> np.ndarray:
    if name not in clean.interactions.columns:
      raise ValueError(
        f'data.sessions.filter.{setting} names {name!r}; the feedback columns'
        f' are {clean.interactions.columns[4:]}.'
      )
    return clean.feedback(name)

  watched = np.ones(clean.events.num_events, bool)
  if rule.watched_column:
    watched = column(rule.watched_column, 'watched_column') > 0
  watch_time = interacted = None
  if rule.watch_time_column:
    watch_time = column(rule.watch_time_column, 'watch_time_column')
  if rule.interaction_columns:
    interacted = np.logical_or.reduce(
      [column(c, 'interaction_columns') > 0 for c in rule.interaction_columns]
    )
  good = sessions.high_quality(
    cut,
    watched=watched,
    watch_time=watch_time,
    interacted=interacted,
    min_watched=rule.min_watched,
    min_watch_time=rule.min_watch_time,
  )
  trained = cut.number[splits.stretch(clean.events, boundaries) == 0]
  trained = np.unique(trained[trained >= 0])
  clean.counts['sessions_below_quality'] = int((~good[trained]).sum())
  return good


def _records(
  clean: cleaning.CleanData, targets: splits.Targets, end: np.ndarray
) -> Iterator[examples.UserRecord]:
  """Yields a record per user with a target, of the events before `end`."""
  events = clean.events
  user = events.user[targets.starts]
  users, first = np.unique(user, return_index=True)
  last = np.append(first[1:], len(user))
  for u, a, b in zip(users.tolist(), first, last, strict=True):
    seen = slice(events.offsets[u], end[u])
    yield examples.UserRecord(
      user=u,
      items=clean.item[seen],
      positive=events.positive[seen],
      timestamps=events.timestamps[seen],
      target_starts=(targets.starts[a:b] - events.offsets[u]).astype(np.int32),
      target_lengths=targets.lengths[a:b].astype(np.int32),
    )
