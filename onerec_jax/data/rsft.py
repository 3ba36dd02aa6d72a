"""Rejection sampling for fine-tuning: training examples of good sessions.

Drops the examples of the exposure sessions that were watched least.  Reads
only what training may see; never touches the example file.
"""

import copy
import dataclasses
import os
from typing import Any
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.data import batch_plan
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import examples
from onerec_jax.data import schema
from onerec_jax.data import sessions as sessions_lib

_TIES = 20  # random stream; batch_plan uses 0..2, preference_pairs 10..12


class Chosen(NamedTuple):
  """The examples to train on, and what became of the others."""

  store: examples.ExampleStore  # example ids count the kept ones only
  report: dict[str, Any]  # JSON-able counts


def choose_examples(
  store: examples.ExampleStore,
  folder: str | os.PathLike[str],
  *,
  sessions: config.SessionsConfig,
  column: str | None,
  drop_share: float,
  seed: int,
) -> Chosen:
  """Drops the examples of the bottom share of exposure sessions.

  An exposure session is all that was shown to a user in one go, positive or
  not: the session that `prepare` cut, or with kind 'next_items' events without
  a pause longer than sessions.gap_minutes.  Events without a session or a real
  time are sessions of one event.  Sessions are ranked by Σ column over their
  training events, ties at random; one with an unknown value is kept.

  Args:
    store: training examples.
    folder: the workdir's data/.
    sessions: data.sessions.
    column: reinforcement.rsft_column; None: everything is kept.
    drop_share: reinforcement.rsft_drop_share, in [0, 1).
    seed: of the ties.

  Raises:
    ValueError: the column or the share cannot be used, or nothing is left.
  Reference: OneRec technical report, arXiv:2506.13695, §3.3.
  """
  index = store.index
  if column is None:
    return Chosen(store, {'column': None, 'examples': index.num_examples})
  if not 0 <= drop_share < 1:
    raise ValueError(
      f'reinforcement.rsft_drop_share={drop_share} must lie in [0, 1).'
    )
  events = event_table.read(folder)
  event_table.check_index(events, index)
  values = events.column(column, 'reinforcement.rsft_column')
  number = _session_numbers(events, folder, sessions)
  trained = events.split == schema.SPLITS.index('train')
  count = int(number.max(initial=-1)) + 1
  known = np.isfinite(values)
  total = np.bincount(
    number[trained],
    weights=np.where(known, values, 0)[trained].astype(np.float64),
    minlength=count,
  )
  unknown = np.zeros(count, bool)
  unknown[number[trained & ~known]] = True
  # --- Rank the sessions that hold an example ---
  user = index.users[store.example_rows]
  own = number[events.offsets[user] + index.starts]
  candidates = np.unique(own)
  ranked = candidates[~unknown[candidates]]
  ties = batch_plan.random_bits(ranked, key=(seed, _TIES))
  ranked = ranked[np.lexsort((ties, total[ranked]))]
  dropped = ranked[: int(drop_share * len(ranked))]
  is_dropped = np.zeros(count, bool)
  is_dropped[dropped] = True
  kept = ~is_dropped[own]
  report = {
    'column': column,
    'sessions': len(candidates),
    'sessions_unknown': len(candidates) - len(ranked),
    'sessions_dropped': len(dropped),
    # The largest sum that was dropped, in the column's unit.
    'threshold': float(total[dropped[-1]]) if len(dropped) else None,
    'examples_before': index.num_examples,
    'examples': int(kept.sum()),
  }
  if not report['examples']:
    raise ValueError(
      f'RSFT leaves none of {index.num_examples} training examples: {report}.'
      ' Lower reinforcement.rsft_drop_share, or set rsft_column=None.'
    )
  return Chosen(select_examples(store, kept), report)


def _session_numbers(
  events: event_table.EventTable,
  folder: str | os.PathLike[str],
  sessions: config.SessionsConfig,
) -> Int[np.ndarray, ' E']:
  """Returns the session of every event; each has one."""
  if sessions.kind == 'next_items':
    cut = sessions_lib.cut(
      schema.Events(events.offsets, events.timestamps, events.positive),
      sessions=dataclasses.replace(sessions, kind='gap'),
      session_ids=None,
      exact_time=events.exact_time,
    )
    assert cut is not None
    number = cut.number
  else:
    column = catalog.read_interactions(folder)['session']
    number = column.fill_null(-1).to_numpy().astype(np.int64)
  alone = number < 0
  first = int(number.max(initial=-1)) + 1
  return np.where(alone, first + np.cumsum(alone) - 1, number)


def select_examples(
  store: examples.ExampleStore, kept: Bool[np.ndarray, ' S']
) -> examples.ExampleStore:
  """Returns the same records with some of the examples.

  Args:
    store: left as it is; the decoded events are shared.
    kept: which examples; ids of the result count these. [S]
  """
  index, rows = store.index, store.example_rows
  result = copy.copy(store)
  result.index = dataclasses.replace(
    index,
    num_starts=np.bincount(rows[kept], minlength=len(index.users)).astype(
      np.int32
    ),
    starts=index.starts[kept],
    target_lengths=index.target_lengths[kept],
    history_counts=index.history_counts[kept],
  )
  result.example_rows = result.index.example_rows()
  return result
