"""Command `recommend`: ranked items for known users or for a given history.

Takes and gives original ids.  Reads the work directory, writes nothing but
the file it is asked for.
"""

import csv
import dataclasses
import difflib
import io
import json
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table
from etils import epath

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import distributed
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import user_context
from onerec_jax.stages import added_items
from onerec_jax.stages import listed_items
from onerec_jax.stages import reinforce
from onerec_jax.stages import trained as trained_lib
from onerec_jax.stages import user_pathways

_FORMATS = ('.parquet', '.csv', '.jsonl')
NEW_USER = 'new'  # user_id of the answer to a given history


class _Request(NamedTuple):
  """One user to answer."""

  user_id: str
  user: int  # dense; the number of users for one that is not in the data
  history: np.ndarray  # dense items, oldest first


def run(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  users: Sequence[str] | None,
  history: Sequence[str] | None,
  top_k: int,
  output: str | os.PathLike[str] | None,
  items: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
  """Prints, and perhaps writes, the best items of each user.

  A known user's history is all of their positive events, the held-out ones
  too; what they have met is not recommended again (unless
  evaluate.decoding.exclude_history is off).

  Args:
    experiment: its evaluate.decoding, evaluate.checkpoint and mesh count; the
      model is the trained one.
    workdir: of a finished run.
    users: original user ids; exclusive with `history`.
    history: original item ids of one new user, oldest first.
    top_k: items per user.
    output: file to write as well: .parquet, .csv or .jsonl.
    items: file of the ids that may be recommended (`listed_items`); None: all.

  Returns:
    One row per recommended item: user_id, rank, item_id, title, score.

  Raises:
    ValueError: an id is unknown (the nearest known ones are named), or the
      arguments contradict each other.
  """
  if bool(users) == bool(history):
    raise ValueError(
      'Say for whom: --users=ID,ID,... (known users) or --history=ID,ID,...'
      ' (items of a new user, oldest first); one of the two.'
    )
  if top_k < 1:
    raise ValueError(f'--top_k={top_k} must be at least 1.')
  if output is not None:
    _check_output(output)
  if users:
    requests = _known_users(workdir, users)
  else:
    requests = [_new_user(workdir, history or ())]
  rows = _answer(experiment, workdir, requests, top_k=top_k, items=items)
  if distributed.is_main():
    _print(workdir, requests, rows)
    if output is not None:
      write_rows(output, rows)
      print(f'Wrote {len(rows)} rows to {output}')
  return rows


# --- Who is asked for -------------------------------------------------------


def _index_of(
  wanted: Sequence[str], known: Mapping[str, int], what: str
) -> list[int]:
  """Returns the place of each id; an unknown one raises with near ids."""
  unknown = [i for i in wanted if i not in known]
  if unknown:
    near = {i: difflib.get_close_matches(i, known, n=3) for i in unknown[:5]}
    hints = [
      f'{i!r}' + (f' (near: {", ".join(n)})' if n else '')
      for i, n in near.items()
    ]
    examples = ', '.join(list(known)[:3])
    raise ValueError(
      f'Unknown {what} id {"; ".join(hints)}'
      + (f' and {len(unknown) - 5} more' if len(unknown) > 5 else '')
      + f'. The run knows {len(known):,} {what}s, e.g. {examples}. Ids are'
      ' those of the raw data.'
    )
  return [known[i] for i in wanted]


def _known_users(
  workdir: workdir_lib.Workdir, users: Sequence[str]
) -> list[_Request]:
  ids = catalog.read_users(workdir.data)['user_id'].to_list()
  wanted = [u.strip() for u in users]
  places = _index_of(wanted, {u: i for i, u in enumerate(ids)}, 'user')
  events = catalog.read_interactions(workdir.data)
  positive = events['positive'].to_numpy()
  user = events['user'].to_numpy()[positive]
  item = events['item'].to_numpy()[positive]
  return [
    _Request(user_id, place, item[user == place])
    for user_id, place in zip(wanted, places, strict=True)
  ]


def _new_user(workdir: workdir_lib.Workdir, history: Sequence[str]) -> _Request:
  ids = added_items.catalogue(workdir).item_ids.tolist()
  places = _index_of(
    [i.strip() for i in history], {t: i for i, t in enumerate(ids)}, 'item'
  )
  num_users = len(catalog.read_users(workdir.data))
  return _Request(NEW_USER, num_users, np.array(places, np.int32))


# --- Answers ----------------------------------------------------------------


def _answer(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  requests: Sequence[_Request],
  *,
  top_k: int,
  items: str | os.PathLike[str] | None,
) -> list[dict[str, Any]]:
  settings = experiment.evaluate
  trained = reinforce.load_final(experiment, workdir)
  trained, served = added_items.serve(trained, workdir)
  if items is not None:
    trained = listed_items.restrict(
      trained, items, served.item_ids, settings.decoding
    )
  recommender = trained_lib.Recommender(
    trained,
    settings.decoding,
    top_k=top_k,
    batch_size=min(settings.batch_size, len(requests)),
    max_excluded=max(len(r.history) for r in requests),
  )
  pathways = user_pathways.read(trained.experiment, workdir)
  if pathways is not None and any(r.user_id == NEW_USER for r in requests):
    raise ValueError(
      "A model with encoder='pathways' reads the events of known users, with"
      ' their times and feedback, and cannot answer --history: give --users.'
    )
  mine = sharding.own_rows(trained.mesh)(recommender.batch_size)
  rows: list[dict[str, Any]] = []
  for start in range(0, len(requests), recommender.batch_size):
    part = requests[start : start + recommender.batch_size]
    batch = _batch(
      part,
      trained.experiment.data,
      settings.decoding,
      recommender.batch_size,
    )
    if pathways is not None:
      batch = _with_context(batch, pathways.contexts)
    seen = [r.history for r in part]
    seen += [np.zeros(0, np.int32)] * (recommender.batch_size - len(part))
    answers = recommender(
      jax.tree.map(lambda x: x[mine], batch), [seen[row] for row in mine]
    )
    for row, request in enumerate(part):
      listed = answers.items[row]
      for rank, item in enumerate(listed[listed >= 0].tolist(), 1):
        rows.append(
          {
            'user_id': request.user_id,
            'rank': rank,
            'item_id': str(served.item_ids[item]),
            'title': served.titles[item],
            'score': float(answers.scores[row, rank - 1]),
          }
        )
  return rows


def _batch(
  requests: Sequence[_Request],
  data: config.DataConfig,
  decoding: config.DecodingConfig,
  batch_size: int,
) -> batch_lib.SessionBatch:
  """Returns the requests as a batch without targets."""
  length = data.history_length + decoding.continue_items
  items = np.zeros((batch_size, length), np.int32)
  mask = np.zeros((batch_size, length), bool)
  user = np.zeros(batch_size, np.int32)
  for row, request in enumerate(requests):
    recent = request.history[-length:]
    items[row, : len(recent)] = recent
    mask[row, : len(recent)] = True
    user[row] = request.user
  session = (batch_size, data.sessions.items_per_session)
  return batch_lib.SessionBatch(
    example_id=np.arange(batch_size, dtype=np.int32),
    user=user,
    history_items=items,
    history_mask=mask,
    target_items=np.zeros(session, np.int32),
    target_mask=np.zeros(session, bool),
    example_mask=np.arange(batch_size) < len(requests),
  )


def _with_context(
  batch: batch_lib.SessionBatch, contexts: user_context.ContextMaker
) -> batch_lib.SessionBatch:
  """Returns the batch with all that is known of its users by now."""
  users = np.where(batch.example_mask, batch.user, -1)
  ends = np.diff(contexts.events.offsets)[np.maximum(users, 0)]
  return dataclasses.replace(batch, context=contexts(users, ends))


# --- Output -----------------------------------------------------------------


def _print(
  workdir: workdir_lib.Workdir,
  requests: Sequence[_Request],
  rows: Sequence[Mapping[str, Any]],
) -> None:
  titles = added_items.catalogue(workdir).titles
  console = rich.console.Console()
  for request in requests:
    last = ' · '.join(titles[i] for i in request.history[-3:].tolist())
    console.print(
      f'User {request.user_id}: {len(request.history)} items, last: {last}',
      style='bold',
      markup=False,
    )
    table = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column('rank', justify='right')
    table.add_column('item')
    table.add_column('title')
    table.add_column('score', justify='right')
    mine = [r for r in rows if r['user_id'] == request.user_id]
    for row in mine:
      table.add_row(
        str(row['rank']),
        rich.markup.escape(row['item_id']),
        rich.markup.escape(row['title']),
        f'{row["score"]:.3f}',
      )
    console.print(table if mine else '  nothing to recommend')


def _check_output(output: str | os.PathLike[str]) -> None:
  workdir_lib.check_reachable(os.fspath(output))
  suffix = epath.Path(output).suffix
  if suffix not in _FORMATS:
    raise ValueError(
      f'--output={output} ends in {suffix!r}; use one of {", ".join(_FORMATS)}.'
    )


def write_rows(
  output: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the rows of `run` in the format that the file name says.

  Args:
    output: .parquet, .csv or .jsonl; folders are made.
    rows: from `run`.
  """
  _check_output(output)
  path = epath.Path(output)
  path.parent.mkdir(parents=True, exist_ok=True)
  columns = ('user_id', 'rank', 'item_id', 'title', 'score')
  if path.suffix == '.parquet':
    types = (str, np.int32, str, str, np.float32)
    catalog.write_predictions(
      path,
      {
        name: np.array([r[name] for r in rows], dtype)
        for name, dtype in zip(columns, types, strict=True)
      },
    )
  elif path.suffix == '.csv':
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    path.write_text(buffer.getvalue())
  else:
    lines = [json.dumps(dict(r), ensure_ascii=False) for r in rows]
    path.write_text(''.join(f'{line}\n' for line in lines))
