"""The stage `prepare` from files to examples, and that nothing leaks."""

import json

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import schema
from onerec_jax.data import splits
from onerec_jax.stages import prepare

SMALL = config.SyntheticConfig(
  num_users=25, num_items=40, num_clusters=4, events_per_user=14
)
BY_TIME = config.SplitConfig(
  kind='by_time', validation_start='2024-01-20', test_start='2024-02-01'
)


def run(tmp_path, **data):
  experiment = config.validate(
    config.Experiment(
      data=config.DataConfig(**{'synthetic': SMALL, **data}), seed=1
    )
  )
  workdir = workdir_lib.Workdir(tmp_path / 'run')
  return prepare.run(experiment, workdir), workdir


def stores(workdir):
  return {
    split: examples.ExampleStore(
      workdir.data / 'examples' / f'{split}.arrayrecord'
    )
    for split in schema.SPLITS
  }


def target_places(record, start, length, target_events):
  places = np.arange(start, len(record.items))
  if target_events == 'positive':
    places = places[record.positive[places]]
  return places[:length]


def test_the_stage_writes_tables_examples_and_statistics(tmp_path):
  result, workdir = run(tmp_path)
  assert sorted(p.name for p in workdir.data.iterdir()) == [
    'dataset.json',
    'examples',
    'interactions.parquet',
    'items.parquet',
    'users.parquet',
  ]
  stored = json.loads((workdir.data / 'dataset.json').read_text())
  assert stored == json.loads(json.dumps(result))
  events = catalog.read_interactions(workdir.data)
  assert events.columns[:5] == [
    'user', 'item', 'timestamp', 'positive', 'split',
  ]  # fmt: skip
  assert events.schema['user'] == pl.Int32
  assert events.schema['is_like'] == pl.Float32
  assert result['events'] == len(events)
  assert set(result['counts']) == set(schema.RULES) == set(result['rules'])
  # Each user: last positive tests, last but one validates, the rest trains.
  sizes = result['splits']
  assert sizes['test']['examples'] == sizes['valid']['examples'] == 25
  assert sizes['train']['events_visible'] == len(events) - 2 * 25
  assert sizes['train']['examples'] == len(events) - 3 * 25


def test_running_twice_gives_the_same_files(tmp_path):
  _, workdir = run(tmp_path)
  names = ['data/interactions.parquet', 'data/examples/train.arrayrecord']
  before = [(workdir.root / n).read_bytes() for n in names]
  run(tmp_path)
  assert [(workdir.root / n).read_bytes() for n in names] == before


def test_examples_hold_the_events_of_the_tables(tmp_path):
  _, workdir = run(
    tmp_path, positive=config.PositiveConfig(any_of=('long_view',))
  )
  events = catalog.read_interactions(workdir.data)
  assert 0 < events['positive'].sum() < len(events)
  store = stores(workdir)['test']
  for row in range(len(store)):
    record = store[row]
    mine = events.filter(pl.col('user') == record.user)
    assert mine['item'].to_list() == record.items.tolist()
    assert mine['timestamp'].to_list() == record.timestamps.tolist()
    assert mine['positive'].to_list() == record.positive.tolist()
    # The one target is the last positive event.
    assert record.target_starts.tolist() == [
      np.flatnonzero(record.positive)[-1]
    ]


def test_training_counts_are_of_training_positives_only(tmp_path):
  _, workdir = run(
    tmp_path, positive=config.PositiveConfig(any_of=('long_view',))
  )
  events = catalog.read_interactions(workdir.data)
  train = events.filter((pl.col('split') == 'train') & pl.col('positive'))
  expected = np.bincount(
    train['item'].to_numpy(), minlength=catalog.num_items(workdir.data)
  )
  counts = catalog.train_counts(workdir.data)
  np.testing.assert_array_equal(counts, expected)
  sequences = catalog.training_sequences(workdir.data)
  np.testing.assert_array_equal(
    np.bincount(sequences.items, minlength=len(counts)), expected
  )
  assert len(sequences.offsets) == len(catalog.read_users(workdir.data)) + 1


@pytest.mark.parametrize('split', [config.SplitConfig(), BY_TIME])
@pytest.mark.parametrize('kind', ['next_items', 'id', 'gap', 'day'])
def test_no_held_out_target_is_visible_to_training(tmp_path, kind, split):
  result, workdir = run(
    tmp_path,
    sessions=config.SessionsConfig(kind=kind, items_per_session=3),
    split=split,
    positive=config.PositiveConfig(any_of=('long_view', 'is_like')),
  )
  found = stores(workdir)
  events = 'positive' if kind == 'next_items' else 'all'
  seen = {}  # user -> events that training sees
  targets = {name: set() for name in schema.SPLITS}
  for name in schema.SPLITS:
    store = found[name]
    assert store.index.target_events == events
    for row in range(len(store)):
      record = store[row]
      if name == 'train':
        seen[record.user] = set(
          zip(record.items.tolist(), record.timestamps.tolist(), strict=True)
        )
      for start, length in zip(
        record.target_starts, record.target_lengths, strict=True
      ):
        assert 1 <= length <= 3
        history = record.positive[:start]
        assert history.any()
        places = target_places(record, start, length, events)
        assert len(places) == length
        for place in places.tolist():
          targets[name].add(
            (
              record.user,
              int(record.items[place]),
              int(record.timestamps[place]),
            )
          )
        if split.kind == 'by_time':
          before = record.timestamps[:start][history]
          assert before.max() < record.timestamps[start]
  assert all(targets.values()), {k: len(v) for k, v in targets.items()}
  assert not targets['train'] & targets['valid']
  assert not targets['train'] & targets['test']
  assert not targets['valid'] & targets['test']
  for name in ('valid', 'test'):
    for user, item, time in targets[name]:
      assert (item, time) not in seen.get(user, set())
  if split.kind == 'by_time':
    first, last = (
      splits.microseconds(t) for t in (split.validation_start, split.test_start)
    )
    assert max(t for *_, t in targets['train']) < first
    assert min(t for *_, t in targets['valid']) >= first
    assert max(t for *_, t in targets['valid']) < last
    assert min(t for *_, t in targets['test']) >= last
    assert all(t < first for s in seen.values() for _, t in s)
  assert (result['counts']['sessions'] == 0) == (kind == 'next_items')


def test_the_filter_removes_sessions_of_training_only(tmp_path):
  sessions = config.SessionsConfig(kind='id', items_per_session=9)
  plain, _ = run(tmp_path, sessions=sessions)
  strict, workdir = run(
    tmp_path,
    sessions=config.SessionsConfig(
      kind='id',
      items_per_session=9,
      filter=config.SessionFilterConfig(
        enabled=True,
        min_watched=3,
        watched_column='long_view',
        watch_time_column='watch_time',
        interaction_columns=('is_follow',),
      ),
    ),
  )
  removed = strict['counts']['sessions_below_quality']
  assert removed > 0
  for split in ('valid', 'test'):
    assert strict['splits'][split] == plain['splits'][split]
  # The first session of each user was no target anyway: no history.
  lost = (
    plain['splits']['train']['examples'] - strict['splits']['train']['examples']
  )
  assert 0 < lost <= removed
  # Every training target that is left has three watched events.
  events = catalog.read_interactions(workdir.data)
  store = stores(workdir)['train']
  for row in range(len(store)):
    record = store[row]
    watched = events.filter(pl.col('user') == record.user)['long_view']
    for start, length in zip(
      record.target_starts.tolist(), record.target_lengths.tolist(), strict=True
    ):
      assert watched[start : start + length].sum() >= 3


def test_users_of_two_positives_train_only(tmp_path):
  path = tmp_path / 'events.csv'
  path.write_text(
    'user_id,item_id,timestamp\n'
    + ''.join(f'long,i{i},{i}\n' for i in range(5))
    + 'short,i0,1\nshort,i1,2\nsingle,i2,1\n'
  )
  result, workdir = run(
    tmp_path,
    source='tables',
    tables=config.TablesConfig(interactions=str(path)),
    min_user_positives=1,
  )
  assert result['counts']['users_train_only'] == 2
  assert result['counts']['users_without_training_target'] == 1
  assert result['splits']['test']['users'] == 1
  assert result['splits']['train']['users'] == 2
  sequences = catalog.training_sequences(workdir.data)
  assert np.diff(sequences.offsets).tolist() == [3, 2, 1]


def test_settings_that_need_times_are_refused_without_them(tmp_path):
  (tmp_path / 'Toys.txt').write_text('1 1 2 3\n')
  files = {'source': 'amazon_sequences', 'path': str(tmp_path)}
  with pytest.raises(ValueError, match=r'by_time.*leave_one_out'):
    run(tmp_path, **files, variant='Toys', split=BY_TIME)
  with pytest.raises(ValueError, match=r"'gap'.*'next_items'"):
    run(
      tmp_path,
      **files,
      variant='Toys',
      sessions=config.SessionsConfig(kind='gap'),
    )


def test_a_filter_column_that_is_absent_names_those_there_are(tmp_path):
  rule = config.SessionFilterConfig(enabled=True, watched_column='seen')
  with pytest.raises(ValueError, match=r"names 'seen'.*is_like"):
    run(tmp_path, sessions=config.SessionsConfig(kind='id', filter=rule))


def test_unfetchable_sources_say_what_they_need(tmp_path):
  with pytest.raises(ValueError, match=r'needs data\.path.*only 100k'):
    run(tmp_path, source='movielens', variant='1m')
