"""KuaiRand with its official file names and columns."""

import pytest

from onerec_jax import config
from onerec_jax.data import cleaning
from onerec_jax.data import kuairand
from onerec_jax.data import schema
from onerec_jax.data import splits

LOG = (
  'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,'
  'is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms,'
  'profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n'
)
EARLY = LOG + '0,7,,,1649500000000,,1,,,,,0,,,,,,,\n'
LATE = LOG + (
  '0,8,20220425,1800,1650882384975,1,0,0,0,0,0,1,1033,168241,0,0,0,0,1\n'
  '1,8,20220425,1800,1650882384976,0,0,0,0,0,0,0,10,168241,0,0,0,1,1\n'
)
VIDEOS = (
  'video_id,author_id,video_type,upload_dt,upload_type,visible_status,'
  'video_duration,server_width,server_height,music_id,music_type,tag\n'
  '7,77,NORMAL,2022-04-10,Web,0.0,5000.0,720.0,1280.0,1,9.0,"20,43"\n'
  '8,88,AD,2022-04-10,,0.0,,720.0,1280.0,1,9.0,\n'
)
USERS = (
  'user_id,user_active_degree,is_lowactive_period,fans_user_num_range\n'
  '0,full_active,0,"[100,1k)"\n1,,,0\n'
)


def write(folder, early=EARLY, late=LATE, variant='pure'):
  data = folder / 'data'
  data.mkdir()
  data.joinpath(f'log_standard_4_08_to_4_21_{variant}.csv').write_text(early)
  data.joinpath(f'log_standard_4_22_to_5_08_{variant}.csv').write_text(late)
  # Files that must not be read: random exposure, and leaking statistics.
  data.joinpath(f'log_random_4_22_to_5_08_{variant}.csv').write_text('bad')
  data.joinpath(f'video_features_statistic_{variant}.csv').write_text('bad')
  data.joinpath(f'video_features_basic_{variant}.csv').write_text(VIDEOS)
  data.joinpath(f'user_features_{variant}.csv').write_text(USERS)


@pytest.mark.parametrize('variant', ['pure', '1k'])
def test_official_files_are_read(tmp_path, variant):
  write(tmp_path, variant=variant)
  data = schema.validate(kuairand.read(tmp_path, variant=variant))
  events = data.interactions
  assert events['user_id'].to_list() == ['0', '0']
  assert events['item_id'].to_list() == ['7', '8']
  assert events['timestamp'].to_list() == [
    1649500000000_000,
    1650882384975_000,
  ]
  assert events['is_like'].to_list() == [1.0, 0.0]
  # Unknown is not zero.
  assert events['is_click'].to_list() == [None, 1.0]
  assert data.items['categories'].to_list() == [
    ['tag:20', 'tag:43', 'author:77', 'type:NORMAL', 'upload:Web',
     'duration:2^2s'],  # 4 s <= 5 s < 8 s
    ['author:88', 'type:AD'],
  ]  # fmt: skip
  assert data.users['fans_user_num_range'].to_list() == ['[100,1k)', '0']
  assert data.users['is_lowactive_period'].to_list() == [0.0, None]


def test_rows_without_a_date_have_no_exact_time(tmp_path):
  write(tmp_path)
  data = kuairand.read(tmp_path, variant='pure')
  assert data.interactions['exact_time'].to_list() == [False, True]


def test_random_exposure_is_dropped_and_counted(tmp_path):
  write(tmp_path)
  data = kuairand.read(tmp_path / 'data', variant='pure')
  assert data.counts == {'random_exposure_rows_dropped': 1}


def test_a_bad_cell_is_named_by_file_row_and_column(tmp_path):
  write(tmp_path, late=LATE.replace(',1033,', ',soon,'))
  with pytest.raises(
    schema.DataError,
    match=r"4_22_to_5_08_pure\.csv, row 1 \(line 2\), column 'play_time_ms'",
  ):
    kuairand.read(tmp_path, variant='pure')


def test_a_missing_column_is_named(tmp_path):
  write(tmp_path, late=LATE.replace('time_ms', 'when', 1))
  with pytest.raises(schema.DataError, match="column 'time_ms': is missing"):
    kuairand.read(tmp_path, variant='pure')


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='log_standard_4_08'):
    kuairand.read(tmp_path, variant='pure')
  with pytest.raises(ValueError, match="'pure'"):
    kuairand.read(tmp_path, variant='small')


@pytest.fixture(name='pure', scope='module')
def fixture_pure(real_data_root):
  return schema.validate(
    kuairand.read(real_data_root / 'kuairand_pure', variant='pure')
  )


def test_pure_has_the_stated_rows(pure):
  events = pure.interactions
  assert len(events) == 228_329 + 817_187
  assert int((~events['exact_time']).sum()) == 817_187
  assert (len(pure.items), len(pure.users)) == (7_583, 27_285)
  late = events.filter('exact_time')
  keys = late.select('user_id', 'item_id', 'timestamp')
  assert len(keys) - keys.n_unique() == 5_885
  # Rates of the README of the data.
  assert late['is_click'].mean() == pytest.approx(0.442, abs=5e-4)
  assert late['long_view'].mean() == pytest.approx(0.311, abs=5e-4)


def test_pure_is_split_by_time(pure):
  result = cleaning.clean(
    pure,
    positive=config.PositiveConfig(any_of=('is_click', 'long_view', 'is_like')),
    min_user_positives=3,
    min_item_positives=1,
  )
  # 5,885 within the later file, and 3 rows that both files have.
  assert result.counts['duplicate_events_dropped'] == 5_888
  dropped = result.counts['events_of_dropped_users_or_items']
  kept = result.events.num_events
  assert kept + dropped + 5_888 == 228_329 + 817_187
  first, last = map(splits.microseconds, ('2022-04-30', '2022-05-01'))
  boundaries = splits.by_time(
    result.events, validation_start=first, test_start=last
  )
  where = splits.stretch(result.events, boundaries)
  time = result.events.timestamps
  assert ((where == 2) == (time >= last)).all()
  assert ((where == 0) == (time < first)).all()
  # All placeholder times lie in training.
  assert result.exact_time is not None
  assert not where[~result.exact_time].any()
