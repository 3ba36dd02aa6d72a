"""Reads KuaiRand (Pure, 1K, 27K): logs, user features, basic video features.

The standard logs only: log_random is an experiment with uniform exposure.
Never the statistics file: its counts cover the test period, so that as model
input they would leak labels.
"""

import os
from typing import Any

import polars as pl
from etils import epath

from onerec_jax.data import columns
from onerec_jax.data import schema

_FEEDBACK = (
  'is_click', 'is_like', 'is_follow', 'is_comment', 'is_forward', 'is_hate',
  'long_view', 'play_time_ms', 'duration_ms', 'profile_stay_time',
  'comment_stay_time', 'is_profile_enter',
)  # fmt: skip
_USER_NUMBERS = (
  'is_lowactive_period', 'is_live_streamer', 'is_video_author',
  'follow_user_num', 'fans_user_num', 'friend_user_num', 'register_days',
)  # fmt: skip
# Official file names; 27K comes in parts.
_LOGS = {
  'pure': (
    'log_standard_4_08_to_4_21_pure.csv',
    'log_standard_4_22_to_5_08_pure.csv',
  ),
  '1k': (
    'log_standard_4_08_to_4_21_1k.csv',
    'log_standard_4_22_to_5_08_1k.csv',
  ),
  '27k': (
    'log_standard_4_08_to_4_21_27k_part1.csv',
    'log_standard_4_08_to_4_21_27k_part2.csv',
    'log_standard_4_22_to_5_08_27k_part1.csv',
    'log_standard_4_22_to_5_08_27k_part2.csv',
  ),
}


def read(path: str | os.PathLike[str], *, variant: str) -> schema.Dataset:
  """Returns KuaiRand from its official files.

  Rows without a date have a time that only orders them; they are marked
  exact_time = False.  Rows of random exposure (is_rand = 1) are dropped and
  counted, as are rows whose user, video and time occurred before
  (schema.RULES).  Videos have no titles; categories are tags, author, type,
  upload type and duration (in powers of two of a second).

  Args:
    path: the data set's folder, or the data/ folder in it.
    variant: 'pure', '1k' or '27k'.  27k has 322 million rows and needs a
      machine with some 100 GB of memory.

  Raises:
    DataError: a cell does not parse; names file, row and column.
    FileNotFoundError: a file is missing.
    ValueError: unknown variant.
  """
  if variant not in _LOGS:
    raise ValueError(
      f'data.variant={variant!r} is not a KuaiRand variant; use one of'
      f' {sorted(_LOGS)}.'
    )
  folder = epath.Path(path)
  if (folder / 'data').is_dir():
    folder = folder / 'data'
  logs, random_rows = [], 0
  for name in _LOGS[variant]:
    log, dropped = _read_log(_existing(folder, name))
    logs.append(log)
    random_rows += dropped
  interactions = pl.concat(logs)
  if interactions['exact_time'].all():
    interactions = interactions.drop('exact_time')
  items = _read_videos(_existing(folder, f'video_features_basic_{variant}.csv'))
  users = _read_users(_existing(folder, f'user_features_{variant}.csv'))
  return schema.Dataset(
    interactions=interactions,
    items=items,
    users=users,
    feedback=_FEEDBACK,
    source=f'KuaiRand-{variant}',
    has_item_table=True,
    has_user_table=True,
    counts={'random_exposure_rows_dropped': random_rows},
  )


def _existing(folder: epath.Path, name: str) -> epath.Path:
  file = folder / name
  if not file.exists():
    raise FileNotFoundError(
      f'{file} is missing. Download KuaiRand from kuairand.com, unpack it and'
      ' set data.path to the folder that holds data/.'
    )
  return file


def _read_log(file: epath.Path) -> tuple[pl.DataFrame, int]:
  names = ('user_id', 'video_id', 'date', 'time_ms', 'is_rand', *_FEEDBACK)
  frame = columns.read_delimited(file, separator=',', columns=names)
  problems: list[schema.Problem] = []
  where: dict[str, Any] = {'file': file, 'problems': problems}
  columns.require_cells(frame, ('user_id', 'video_id'), **where)
  time = columns.cast(frame, 'time_ms', pl.Int64, required=True, **where)
  is_rand = columns.cast(frame, 'is_rand', pl.Float32, **where)
  feedback = [columns.cast(frame, c, pl.Float32, **where) for c in _FEEDBACK]
  columns.raise_if_any(problems)
  random = (is_rand > 0).fill_null(False)
  result = frame.select(
    'user_id',
    pl.col('video_id').alias('item_id'),
    (time * 1000).alias('timestamp'),
    pl.col('date').is_not_null().alias('exact_time'),
    *feedback,
  ).filter(~random)
  return result, int(random.sum())


def _read_videos(file: epath.Path) -> pl.DataFrame:
  names = (
    'video_id', 'author_id', 'video_type', 'upload_type', 'video_duration',
    'tag',
  )  # fmt: skip
  frame = columns.read_delimited(file, separator=',', quote='"', columns=names)
  problems: list[schema.Problem] = []
  duration = columns.cast(
    frame, 'video_duration', pl.Float32, file=file, problems=problems
  )
  columns.require_cells(frame, ('video_id',), file=file, problems=problems)
  columns.raise_if_any(problems)
  octave = (duration / 1000).clip(lower_bound=1).log(2).floor().cast(pl.Int64)
  tags = (
    pl.col('tag').str.split(',').list.eval(pl.format('tag:{}', pl.element()))
  )
  frame = frame.with_columns(octave.alias('octave')).select(
    item_id='video_id',
    title=pl.lit(None, pl.String),
    categories=pl.concat_list(
      tags.fill_null([]),
      pl.format('author:{}', 'author_id'),
      pl.format('type:{}', 'video_type'),
      pl.format('upload:{}', 'upload_type'),
      pl.format('duration:2^{}s', 'octave'),
    ).list.drop_nulls(),
  )
  return frame.select(
    'item_id',
    'title',
    text=pl.col('categories').list.join(' '),
    categories='categories',
  )


def _read_users(file: epath.Path) -> pl.DataFrame:
  frame = columns.read_delimited(file, separator=',', quote='"')
  problems: list[schema.Problem] = []
  numbers = [
    columns.cast(frame, c, pl.Float32, file=file, problems=problems)
    for c in _USER_NUMBERS
    if c in frame.columns
  ]
  columns.require_cells(frame, ('user_id',), file=file, problems=problems)
  columns.raise_if_any(problems)
  return frame.with_columns(numbers)
