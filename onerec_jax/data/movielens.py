"""Reads MovieLens-100K (GroupLens or RecBole files) and MovieLens-1M.

All ratings are kept as feedback `rating`; which of them are positive is
data.positive's business.
"""

import os

import polars as pl
from etils import epath

from onerec_jax.data import columns
from onerec_jax.data import schema

_EVENT_NAMES = ('user_id', 'item_id', 'rating', 'timestamp')
_USER_NAMES_100K = ('user_id', 'age', 'gender', 'occupation', 'zip_code')
_USER_NAMES_1M = ('user_id', 'gender', 'age', 'occupation', 'zip_code')
_GENRES = (
  'unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy',
  'Crime', 'Documentary', 'Drama', 'Fantasy', 'Film-Noir', 'Horror',
  'Musical', 'Mystery', 'Romance', 'Sci-Fi', 'Thriller', 'War', 'Western',
)  # fmt: skip  # order of the 19 flags in u.item (README of ml-100k)
_ITEM_NAMES_100K = (
  'item_id', 'title', 'release_date', 'video_release_date', 'url', *_GENRES,
)  # fmt: skip


def read(path: str | os.PathLike[str], *, variant: str) -> schema.Dataset:
  """Returns MovieLens from a folder in one of its official layouts.

  100k: u.data, u.item, u.user (GroupLens), or ml-100k.inter, .item, .user
  (RecBole). 1m: ratings.dat, movies.dat, users.dat. Timestamps are seconds.

  Args:
    path: folder of the files.
    variant: '100k' or '1m'.

  Raises:
    DataError: a cell does not parse; names file, row and column.
    FileNotFoundError: the folder holds none of the layouts.
    ValueError: unknown variant.
  """
  folder = epath.Path(path)
  if variant == '100k' and (folder / 'ml-100k.inter').exists():
    return _read_recbole(folder)
  if variant == '100k' and (folder / 'u.data').exists():
    return _read_grouplens(folder)
  if variant == '1m' and (folder / 'ratings.dat').exists():
    return _read_1m(folder)
  if variant not in ('100k', '1m'):
    raise ValueError(
      f"data.variant={variant!r} is not a MovieLens variant; use '100k' or"
      " '1m'."
    )
  wanted = {'100k': 'u.data or ml-100k.inter', '1m': 'ratings.dat'}[variant]
  raise FileNotFoundError(
    f'data.path={folder} has no {wanted}. Unpack ml-{variant}.zip of'
    ' grouplens.org/datasets/movielens there, or set data.path to the folder'
    ' that holds it.'
  )


def _read_recbole(folder: epath.Path) -> schema.Dataset:
  file = folder / 'ml-100k.inter'
  events = _strip_types(columns.read_delimited(file, separator='\t'))
  problems: list[schema.Problem] = []
  interactions = _interactions(events, file, problems, header_lines=1)
  items = _strip_types(
    columns.read_delimited(folder / 'ml-100k.item', separator='\t')
  )
  year = pl.col('release_year').str.strip_chars()
  items = items.select(
    'item_id',
    title=pl.when(year.str.contains(r'^\d{4}$'))
    .then(pl.format('{} ({})', 'movie_title', year))
    .otherwise('movie_title'),
    categories=pl.col('class').fill_null('').str.split(' '),
  )
  users = _strip_types(
    columns.read_delimited(folder / 'ml-100k.user', separator='\t')
  )
  return _dataset(
    interactions, items, users, folder / 'ml-100k.user', problems, 1
  )


def _read_grouplens(folder: epath.Path) -> schema.Dataset:
  file = folder / 'u.data'
  events = columns.read_delimited(file, separator='\t', names=_EVENT_NAMES)
  problems: list[schema.Problem] = []
  interactions = _interactions(events, file, problems, header_lines=0)
  items = columns.read_delimited(
    folder / 'u.item',
    separator='|',
    names=_ITEM_NAMES_100K,
    encoding='latin-1',
  )
  items = items.select(
    'item_id',
    'title',
    categories=pl.concat_list(
      [pl.when(pl.col(g) == '1').then(pl.lit(g)) for g in _GENRES]
    ).list.drop_nulls(),
  )
  users = columns.read_delimited(
    folder / 'u.user', separator='|', names=_USER_NAMES_100K
  )
  return _dataset(interactions, items, users, folder / 'u.user', problems, 0)


def _read_1m(folder: epath.Path) -> schema.Dataset:
  file = folder / 'ratings.dat'
  events = columns.read_delimited(
    file, separator='::', names=_EVENT_NAMES, encoding='latin-1'
  )
  problems: list[schema.Problem] = []
  interactions = _interactions(events, file, problems, header_lines=0)
  items = columns.read_delimited(
    folder / 'movies.dat',
    separator='::',
    names=('item_id', 'title', 'genres'),
    encoding='latin-1',
  ).select(
    'item_id', 'title', categories=pl.col('genres').fill_null('').str.split('|')
  )
  users = columns.read_delimited(
    folder / 'users.dat',
    separator='::',
    names=_USER_NAMES_1M,
    encoding='latin-1',
  )
  return _dataset(interactions, items, users, folder / 'users.dat', problems, 0)


def _strip_types(frame: pl.DataFrame) -> pl.DataFrame:
  """RecBole headers carry a type: 'user_id:token'."""
  return frame.rename({c: c.split(':')[0] for c in frame.columns})


def _interactions(
  events: pl.DataFrame,
  file: epath.Path,
  problems: list[schema.Problem],
  header_lines: int,
) -> pl.DataFrame:
  missing = [c for c in _EVENT_NAMES if c not in events.columns]
  if missing:
    raise schema.DataError(
      [
        schema.Problem(str(file), f'is missing; has {events.columns}', column=c)
        for c in missing
      ]
    )
  columns.require_cells(
    events,
    ('user_id', 'item_id'),
    file=file,
    problems=problems,
    header_lines=header_lines,
  )
  seconds = columns.cast(
    events,
    'timestamp',
    pl.Int64,
    file=file,
    problems=problems,
    required=True,
    header_lines=header_lines,
  )
  rating = columns.cast(
    events,
    'rating',
    pl.Float32,
    file=file,
    problems=problems,
    header_lines=header_lines,
  )
  columns.raise_if_any(problems)
  return events.select(
    'user_id', 'item_id', timestamp=seconds * 1_000_000, rating=rating
  )


def _dataset(
  interactions: pl.DataFrame,
  items: pl.DataFrame,
  users: pl.DataFrame,
  user_file: epath.Path,
  problems: list[schema.Problem],
  header_lines: int,
) -> schema.Dataset:
  age = columns.cast(
    users,
    'age',
    pl.Float32,
    file=user_file,
    problems=problems,
    header_lines=header_lines,
  )
  columns.raise_if_any(problems)
  items = items.with_columns(
    categories=pl.col('categories').list.set_difference(['', 'unknown'])
  )
  return schema.Dataset(
    interactions=interactions,
    items=items.select(
      'item_id',
      'title',
      text=pl.concat_str(
        [pl.col('title'), pl.col('categories').list.join(' ')],
        separator=' ',
        ignore_nulls=True,
      ),
      categories='categories',
    ),
    users=users.with_columns(age),
    feedback=('rating',),
    source=f'MovieLens, {user_file.parent.name}',
    has_item_table=True,
    has_user_table=True,
  )
