"""The simulated world follows the law that it states."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax.data import schema
from onerec_jax.data import synthetic

SIZE = config.SyntheticConfig(
  num_users=60, num_items=48, num_clusters=4, events_per_user=20
)


@pytest.fixture(name='data', scope='module')
def fixture_data():
  return schema.validate(synthetic.read(SIZE, seed=3))


def numbers(column, prefix):
  return column.str.strip_prefix(prefix).cast(pl.Int64).to_numpy()


def test_the_same_seed_gives_the_same_log(data):
  again = synthetic.read(SIZE, seed=3)
  assert data.interactions.equals(again.interactions)
  assert data.items.equals(again.items)
  other = synthetic.read(SIZE, seed=4)
  assert not data.interactions.equals(other.interactions)


def test_sizes_and_lengths_are_as_asked(data):
  assert (len(data.items), len(data.users)) == (48, 60)
  lengths = data.interactions.group_by('user_id').len()['len']
  assert lengths.min() >= 8
  # Mean of 60 Poisson(12) + 8: standard error 12**0.5 / 60**0.5 = 0.45.
  assert abs(lengths.mean() - 20) < 5 * 0.45


def test_no_item_is_seen_twice_and_time_runs_forward(data):
  events = data.interactions
  assert len(events) == events.select('user_id', 'item_id').n_unique()
  steps = events.select(
    pl.col('timestamp').diff().over('user_id').drop_nulls()
  )['timestamp']
  assert steps.min() > 0


def test_sessions_last_minutes_and_lie_hours_apart(data):
  events = data.interactions.with_columns(
    step=pl.col('timestamp').diff().over('user_id'),
    same=pl.col('session_id') == pl.col('session_id').shift().over('user_id'),
  ).drop_nulls('step')
  minute = 60_000_000
  assert events.filter('same')['step'].max() <= 2 * minute
  assert events.filter(~pl.col('same'))['step'].min() >= 6 * 60 * minute
  assert data.interactions.group_by('session_id').len()['len'].max() <= 8
  # A session belongs to one user.
  owners = data.interactions.group_by('session_id').agg(
    pl.col('user_id').n_unique()
  )
  assert owners['user_id'].max() == 1


def test_next_item_probabilities_match_the_formula_by_hand():
  # 2 clusters of 4 items: rings 0 2 4 6 and 1 3 5 7.
  world = synthetic.World(
    taste=np.array([[0.25, 0.75]]),
    cluster=np.array([0, 1] * 4),
    place=np.array([0, 0, 1, 1, 2, 2, 3, 3]),
    quality=np.zeros(8),
    duration=np.ones(8),
    successors=np.array(
      [[(i + 2 * k) % 8 for k in (1, 2, 3)] for i in range(8)]
    ),
  )
  nothing = np.zeros((1, 8), bool)
  user = np.array([0])
  first = synthetic.next_item_probabilities(
    world, user, np.array([-1]), nothing
  )
  np.testing.assert_allclose(first, [[1 / 16, 3 / 16] * 4], rtol=1e-12)
  # After item 6 the ring goes on with 0, 2, 4.
  after = synthetic.next_item_probabilities(world, user, np.array([6]), nothing)
  jump = 0.2 * np.array([1 / 16, 3 / 16] * 4)
  expected = jump + 0.8 * np.array([0.6, 0, 0.3, 0, 0.1, 0, 0, 0])
  np.testing.assert_allclose(after, expected[None], rtol=1e-12)
  # What has been seen is not seen again; the rest is scaled up.
  seen = nothing.copy()
  seen[0, 0] = True
  again = synthetic.next_item_probabilities(world, user, np.array([6]), seen)
  expected[0] = 0
  np.testing.assert_allclose(again, expected[None] / expected.sum(), rtol=1e-12)


def test_the_log_follows_the_stated_transitions(data):
  world = synthetic.make_world(SIZE, seed=3)
  user = numbers(data.interactions['user_id'], 'user')
  item = numbers(data.interactions['item_id'], 'item')
  expected = variance = observed = 0.0
  seen = np.zeros((1, 48), bool)
  for place in range(len(item)):
    fresh = place == 0 or user[place] != user[place - 1]
    if fresh:
      seen[:] = False
    else:
      probs = synthetic.next_item_probabilities(
        world, user[place : place + 1], item[place - 1 : place], seen
      )[0]
      top = probs.argmax()
      observed += item[place] == top
      expected += probs[top]
      variance += probs[top] * (1 - probs[top])
    seen[0, item[place]] = True
  # How often the likeliest item comes next, within 4 standard deviations.
  assert abs(observed - expected) < 4 * variance**0.5


def test_feedback_follows_the_stated_law(data):
  world = synthetic.make_world(SIZE, seed=3)
  events = data.interactions
  user = numbers(events['user_id'], 'user')
  item = numbers(events['item_id'], 'item')
  liking = synthetic.affinity(world, user, item)
  for name, law in (
    ('is_like', synthetic.like_probability),
    ('is_follow', synthetic.follow_probability),
  ):
    probs = law(liking)
    spread = np.sqrt((probs * (1 - probs)).sum())
    assert abs(events[name].sum() - probs.sum()) < 4 * spread
  watched = events['watch_time'].to_numpy() / world.duration[item]
  np.testing.assert_array_equal(
    watched > 0.5, events['long_view'].to_numpy() > 0.5
  )
  assert watched.min() > 0 and watched.max() < 1
  # Known points of the law: a = 1 likes every second time.
  assert synthetic.like_probability(np.array([1.0]))[0] == 0.5
  assert synthetic.follow_probability(np.array([2.0]))[0] == 0.5


def test_text_tells_topic_and_part_of_the_ring(data):
  assert data.items['title'].n_unique() == 48
  topics = data.items['categories'].list.first()
  assert topics.n_unique() == 4
  for text, topic in zip(data.items['text'], topics, strict=True):
    assert topic in text


def test_a_catalogue_too_small_for_a_user_is_refused():
  with pytest.raises(ValueError, match='at least 16'):
    synthetic.read(config.SyntheticConfig(num_items=10), seed=0)


# --- Profiles ---------------------------------------------------------------


@pytest.fixture(name='profiled', scope='module')
def fixture_profiled():
  size = dataclasses.replace(SIZE, profiles=True)
  return schema.validate(synthetic.read(size, seed=3))


def test_profiles_change_no_event_and_no_other_column(data, profiled):
  assert profiled.interactions.equals(data.interactions)
  assert profiled.users.drop('age', 'gender').equals(data.users)
  assert profiled.items.drop('categories').equals(data.items.drop('categories'))
  for with_profile, plain in zip(
    profiled.items['categories'], data.items['categories'], strict=True
  ):
    assert with_profile.to_list()[: len(plain)] == plain.to_list()
    author, topic, kind = with_profile.to_list()[len(plain) :]
    assert author.startswith('author:') and topic.startswith('tag:')
    assert kind in ('tag:hit', 'tag:niche')
  # They are drawn apart: a longer log leaves them as they are.
  size = dataclasses.replace(SIZE, profiles=True, events_per_user=23)
  again = synthetic.read(size, seed=3)
  assert not again.interactions.equals(profiled.interactions)
  assert again.users.equals(profiled.users)
  assert again.items.equals(profiled.items)


def assert_share(hits, probability):
  """Checks a share of successes within 4 standard deviations."""
  spread = (probability * (1 - probability) / len(hits)) ** 0.5
  assert abs(np.mean(hits) - probability) < 4 * spread


def test_profiles_tell_the_taste_as_often_as_stated():
  size = config.SyntheticConfig(
    num_users=4000, num_items=16, num_clusters=8, events_per_user=8,
    profiles=True,
  )  # fmt: skip
  users = synthetic.read(size, seed=5).users
  favourite = synthetic.make_world(size, seed=5).taste.argmax(axis=1)
  ages = np.array(['18-24', '25-34', '35-49', '50+'])
  genders = np.array(['female', 'male'])
  # 0.7 and a fair share of the other 0.3.
  age = users['age'].to_numpy() == ages[favourite % 4]
  gender = users['gender'].to_numpy() == genders[favourite // 4]
  assert_share(age, 0.7 + 0.3 / 4)
  assert_share(gender, 0.7 + 0.3 / 2)
  assert_share(age & gender, (0.7 + 0.3 / 4) * (0.7 + 0.3 / 2))


def test_items_tell_cluster_and_quality_as_often_as_stated():
  size = config.SyntheticConfig(
    num_users=2, num_items=4000, num_clusters=5, events_per_user=8,
    profiles=True,
  )  # fmt: skip
  items = synthetic.read(size, seed=5).items
  world = synthetic.make_world(size, seed=5)
  added = [c.to_list()[2:] for c in items['categories']]
  topics = [c.to_list()[0] for c in items['categories']]
  expected = []
  for item in range(4000):
    mine = world.quality[world.cluster == world.cluster[item]]
    better = (mine > world.quality[item]).sum()
    author = 4 * world.cluster[item] + 4 * better // len(mine)
    kind = 'hit' if better < len(mine) / 2 else 'niche'
    expected.append((f'author:{author}', f'tag:{topics[item]}', f'tag:{kind}'))
  hits = np.array(added) == np.array(expected)
  for column, values in enumerate((4 * 5, 5, 2)):
    assert_share(hits[:, column], 0.7 + 0.3 / values)
  assert len({author for author, _, _ in added}) == 20
