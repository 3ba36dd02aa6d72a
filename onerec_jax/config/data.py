"""Settings of logs, sessions, splits and batches."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TablesConfig:
  """A user's own tables (`data.source = 'tables'`): paths and column names.

  Paths may be .parquet or .csv.  A column name of None means the table has no
  such column.
  """

  interactions: str | None = None  # required: path of the interaction table
  items: str | None = None  # optional: path of the item table
  users: str | None = None  # optional: path of the user table
  user_column: str = 'user_id'
  item_column: str = 'item_id'
  timestamp_column: str = 'timestamp'
  timestamp_unit: Literal['s', 'ms', 'us', 'ns'] = 's'
  session_column: str | None = None  # explicit session id, if logged
  feedback_columns: tuple[str, ...] = ()  # numeric or boolean, kept by name
  item_title_column: str | None = 'title'  # shown by recommend and report
  item_text_columns: tuple[str, ...] = ()  # joined for the text embedder
  item_category_columns: tuple[str, ...] = ()  # '|'-separated values allowed
  user_feature_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """Size of the simulated world (`data.source = 'synthetic'`)."""

  num_users: int = 300
  num_items: int = 200
  num_clusters: int = 8  # latent tastes; also the item category
  events_per_user: int = 40  # mean; at least 8 each
  # Share of the jumps that go to any unseen item, whatever the taste.  Without
  # such traffic nobody can learn what a user thinks of what he never sees.
  exploration: float = 0.0
  # Users get an age group and a gender that go with their taste, items an
  # author and tags that go with their cluster and quality.
  profiles: bool = False


@dataclasses.dataclass(frozen=True)
class PositiveConfig:
  """Which interactions count as positive feedback (2502.18965, section 3.1).

  An interaction is positive if any named feedback column is above 0 (all
  interactions when `any_of` is empty) and its rating reaches `min_rating`.
  """

  any_of: tuple[str, ...] = ()
  min_rating: float | None = None


@dataclasses.dataclass(frozen=True)
class SessionFilterConfig:
  """High-quality sessions: watched AND (watch time OR interaction).

  The criteria are those of 2502.18965, section 3.2; that they combine this way
  is our choice.

  Applied to training sessions of kind 'id', 'gap' and 'day'.
  """

  enabled: bool = False
  min_watched: int = 5  # items actually watched in the session
  watched_column: str | None = None  # > 0 means watched; None: all are
  watch_time_column: str | None = None
  # Total watch time a session must reach, in the column's unit; None: the
  # median over all sessions of the data set (the papers give no number).
  min_watch_time: float | None = None
  interaction_columns: tuple[str, ...] = ()  # likes, shares, collects ...


@dataclasses.dataclass(frozen=True)
class SessionsConfig:
  """How target sessions are cut from a user's events.

  A session of 2502.18965, section 3.2, is what one request returned; the cuts
  for data that do not log requests are our choice.
  """

  # next_items: any m positives that follow each other; id: the logged session
  # id; gap: a new session after `gap_minutes` without events; day: UTC days.
  kind: Literal['next_items', 'id', 'gap', 'day'] = 'next_items'
  items_per_session: int = 5  # m: target items of one training example
  gap_minutes: float = 30.0
  filter: SessionFilterConfig = SessionFilterConfig()


@dataclasses.dataclass(frozen=True)
class SplitConfig:
  """How interactions are split into training, validation and test.

  leave_one_out: a user's last positive is the test target, the last but one
  the validation target (with logged sessions: the last two sessions that hold
  a positive).  by_time: targets before `validation_start` train,
  before `test_start` validate, after it test; a target's history is whatever
  happened before the target, so nothing leaks backwards.
  """

  kind: Literal['leave_one_out', 'by_time'] = 'leave_one_out'
  # ISO-8601 UTC instants, e.g. '2022-05-01'.  Required by 'by_time'.
  validation_start: str | None = None
  test_start: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What `prepare` reads and how it is cut into examples."""

  source: Literal[
    'movielens',
    'amazon_sequences',
    'amazon_reviews',
    'kuairand',
    'tables',
    'synthetic',
  ] = 'synthetic'
  # Folder in the source's official layout.  None: movielens is fetched to
  # the cache, tables takes its own paths, synthetic needs none.
  path: str | None = None
  # movielens: '100k' or '1m'.  amazon_*: the file prefix, e.g. 'Beauty'.
  # kuairand: 'pure', '1k' or '27k'.  Others: None.
  variant: str | None = None
  tables: TablesConfig = TablesConfig()
  synthetic: SyntheticConfig = SyntheticConfig()
  positive: PositiveConfig = PositiveConfig()
  # Users and items below these counts of positives are dropped, repeatedly
  # until stable (k-core).  1: those with at least one positive;
  # min_item_positives=0 keeps the whole item table.
  min_user_positives: int = 3
  min_item_positives: int = 1
  sessions: SessionsConfig = SessionsConfig()
  split: SplitConfig = SplitConfig()
  history_length: int = 50  # most recent positives the encoder reads (n)


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """How examples become batches."""

  # all: every allowed target start, each epoch.  random_offset: starts m
  # apart, from an offset drawn anew per user and epoch, so that every event
  # is a target about once per epoch.
  windows: Literal['all', 'random_offset'] = 'random_offset'
  # History lengths (items) that batches are padded to; the last must be
  # data.history_length.  More buckets: less padding, more compilations.
  length_buckets: tuple[int, ...] = ()
  prefetch_batches: int = 4  # prepared ahead by a thread; 0: none


@dataclasses.dataclass(frozen=True)
class LifelongConfig:
  """Stage `lifelong`: histories in few clusters (2506.13695, section 2.2.1)."""

  max_events: int = 100_000  # latest of a user that are read
  # M: larger clusters are split again.  About 3 max_events / lifelong_length
  # keeps nearly all clusters: uneven splits leave more than the even rule says.
  max_cluster_size: int = 50
  # A history is compressed anew each time it has grown by this many events;
  # an example reads the last snapshot before it, so nothing leaks backwards.
  snapshot_events: int = 100
  iterations: int = 5  # of each k-means
  workers: int = 0  # processes; 0: one per core
