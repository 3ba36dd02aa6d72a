"""True rewards of the simulated world against simulation and brute force."""

import itertools
import math

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import reward_labels
from onerec_jax.data import synthetic
from onerec_jax.data import synthetic_optimum
from onerec_jax.data import synthetic_rewards

SIZE = config.SyntheticConfig(
  num_users=60, num_items=48, num_clusters=4, events_per_user=20
)
TARGETS = (
  config.RewardTarget(name='swt', column='watch_time', label='saturating_sum'),
  config.RewardTarget(name='vtr', column='long_view', label='any'),
  config.RewardTarget(name='share', column='long_view', label='mean'),
  config.RewardTarget(name='wtr', column='is_follow', label='any'),
  config.RewardTarget(name='ltr', column='is_like', label='any'),
  config.RewardTarget(name='long', column='watch_time', threshold=20.0),
  config.RewardTarget(name='likes', column='is_like', label='saturating_sum'),
)
QUANTILES = {'swt': 90.0, 'likes': 2.0, 'ltr': None}


@pytest.fixture(name='world', scope='module')
def fixture_world():
  return synthetic.make_world(SIZE, seed=3)


def some_sessions(seed=0, count=12, length=4):
  random = np.random.default_rng(seed)
  users = random.integers(0, 60, count)
  items = np.stack([random.permutation(48)[:length] for _ in range(count)])
  mask = np.ones((count, length), bool)
  mask[::3, -1] = False
  mask[1, 1:] = False
  return users, items, mask


def true_reward(world, users, items, mask, targets=TARGETS):
  return synthetic_rewards.true_reward(
    world, users, items, mask, targets=targets, quantiles=QUANTILES
  )


def two_item_world():
  """User 0 has affinity 0 for item 0 and 1 for item 1."""
  return synthetic.World(
    taste=np.array([[1.0]]),
    cluster=np.zeros(2, int),
    place=np.arange(2),
    quality=np.array([0.0, 1.0]),
    duration=np.array([60.0, 30.0]),
    successors=np.zeros((2, 3), int),
  )


def test_names_of_the_log_lead_back_to_the_world():
  data = synthetic.read(SIZE, seed=3)
  rows = synthetic_rewards.world_index(data.items['item_id'].to_list())
  np.testing.assert_array_equal(rows, np.arange(48))
  rows = synthetic_rewards.world_index(['user7', 'item12'])
  np.testing.assert_array_equal(rows, [7, 12])


@pytest.mark.parametrize('name', ['7', 'B00004', 'item', 'item-1', 'item²'])
def test_names_of_another_catalogue_are_refused(name):
  with pytest.raises(ValueError, match='simulated world'):
    synthetic_rewards.world_index(['item1', name])


def test_expected_feedback_by_hand():
  world = two_item_world()
  users, items = np.array([0]), np.array([[0, 1]])

  def expected(column):
    return synthetic_rewards.expected_value(world, users, items, column=column)

  # a = 0 and 1.  σ of a symmetric variate is 1/2 on average; the integral of
  # σ(1 + x) by the trapezoid rule, which is exact here to 1e-12.
  x = np.linspace(-12, 12, 4001)
  normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
  share = (normal / (1 + np.exp(-1 - x))).sum() * (x[1] - x[0])
  np.testing.assert_allclose(
    expected('watch_time'), [[30.0, 30 * share]], rtol=1e-9
  )
  phi = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
  np.testing.assert_allclose(expected('long_view'), [[0.5, phi]], rtol=1e-12)
  like = [[1 / (1 + math.exp(2)), 0.5]]  # σ(-2), σ(0)
  np.testing.assert_allclose(expected('is_like'), like, rtol=1e-12)
  follow = [[1 / (1 + math.exp(4)), 1 / (1 + math.exp(2))]]
  np.testing.assert_allclose(expected('is_follow'), follow, rtol=1e-12)


@pytest.mark.parametrize(
  ('column', 'threshold', 'want'),
  [
    ('is_like', 0.0, 0.5),
    ('is_like', 1.0, 0.0),
    ('is_like', -1.0, 1.0),
    ('watch_time', 0.0, 1.0),
    ('watch_time', 30.0, 0.0),  # the whole duration: never
    ('watch_time', -5.0, 1.0),
    # Half the duration: Φ(1), as for a long view.
    ('watch_time', 15.0, 0.5 * (1 + math.erf(1 / math.sqrt(2)))),
  ],
)
def test_probability_of_passing_a_threshold_by_hand(column, threshold, want):
  got = synthetic_rewards.event_probability(
    two_item_world(),
    np.array([0]),
    np.array([[1]]),
    column=column,
    threshold=threshold,
  )
  assert got[0, 0] == pytest.approx(want, rel=1e-12)


# --- Sessions ---------------------------------------------------------------


def simulated_labels(world, users, items, mask, draws):
  """Labels [draws, n, X] of simulated feedback, made as for training."""
  random = np.random.default_rng(1)
  length = items.shape[1]
  liking = synthetic.affinity(
    world, np.repeat(users, length), items.reshape(-1)
  ).reshape(items.shape)
  shape = (draws, *items.shape)
  watched = 1 / (1 + np.exp(-liking - random.normal(size=shape)))
  feedback = {
    'watch_time': watched * world.duration[items],
    'long_view': (watched > 0.5).astype(float),
    'is_like': (random.random(shape) < 1 / (1 + np.exp(2 - 2 * liking))) * 1.0,
    'is_follow': (random.random(shape) < 1 / (1 + np.exp(4 - 2 * liking)))
    * 1.0,
  }
  lengths = np.tile(mask.sum(axis=1), draws)
  windows = reward_labels.Windows(np.arange(len(lengths)) * length, lengths)
  labels = [
    reward_labels.window_labels(
      feedback[t.column].reshape(-1),
      windows,
      t,
      quantile=QUANTILES.get(t.name),
    ).reshape(draws, len(users))
    for t in TARGETS
  ]
  return np.stack(labels, axis=2), feedback


def test_true_reward_is_the_mean_of_simulated_labels(world):
  users, items, mask = some_sessions()
  draws = 20_000
  labels, _ = simulated_labels(world, users, items, mask, draws)
  got = true_reward(world, users, items, mask)
  # 4.5 standard errors: 84 comparisons.  Beside it 5 of the draws, for events
  # so rare that none was drawn, and 2e-3 of the Sobol points.
  error = 4.5 * labels.std(axis=0) / math.sqrt(draws) + 5 / draws
  error[:, [0, 6]] += 2e-3
  assert (np.abs(got - labels.mean(axis=0)) < error).all()
  # The sums do saturate, and the expectation of the minimum is not the
  # minimum of the expectation.
  assert 0.02 < (labels[..., 0] == 1).mean() < 0.6


def test_session_feedback_is_the_mean_of_simulated_feedback(world):
  users, items, mask = some_sessions()
  draws = 20_000
  _, feedback = simulated_labels(world, users, items, mask, draws)
  got = synthetic_rewards.session_feedback(world, users, items, mask)
  count = mask.sum(axis=1)
  total = {k: (v * mask).sum(axis=2) for k, v in feedback.items()}
  wants = {
    'watch_time': total['watch_time'],
    'any_long_view': total['long_view'] > 0,
    'any_like': total['is_like'] > 0,
    'any_follow': total['is_follow'] > 0,
    'long_view_share': total['long_view'] / count,
    'like_share': total['is_like'] / count,
    'follow_share': total['is_follow'] / count,
  }
  assert set(wants) == set(got._fields)
  for name, want in wants.items():
    error = 4.5 * want.std(axis=0) / math.sqrt(draws)
    assert (np.abs(getattr(got, name) - want.mean(axis=0)) < error).all(), name


def test_the_generated_log_earns_its_true_reward(world):
  events = synthetic.read(SIZE, seed=3).interactions
  users = synthetic_rewards.world_index(events['user_id'].to_list())
  items = synthetic_rewards.world_index(events['item_id'].to_list())
  for column in synthetic_rewards.COLUMNS:
    expected = synthetic_rewards.expected_value(
      world, users, items[:, None], column=column
    )[:, 0]
    logged = events[column].to_numpy().astype(float)
    spread = (logged - expected).std() * math.sqrt(len(logged))
    assert abs((logged - expected).sum()) < 4 * spread, column


def test_masked_items_have_no_influence(world):
  users, items, mask = some_sessions()
  mask[:] = [True, True, False, False]
  got = true_reward(world, users, items, mask)
  want = true_reward(world, users, items[:, :2], mask[:, :2])
  exact = np.array([1, 2, 3, 4, 5])
  np.testing.assert_allclose(got[:, exact], want[:, exact], rtol=1e-12)
  np.testing.assert_allclose(got, want, atol=3e-3)  # other Sobol points
  items[:, 2:] = 0
  np.testing.assert_array_equal(true_reward(world, users, items, mask), got)


def test_the_order_of_the_items_does_not_matter(world):
  users, items, mask = some_sessions()
  got = true_reward(world, users, items[:, ::-1], mask[:, ::-1])
  np.testing.assert_allclose(
    got, true_reward(world, users, items, mask), rtol=1e-12, atol=3e-3
  )


def test_a_session_without_items_has_no_reward(world):
  users, items, mask = some_sessions()
  mask[5] = False
  got = true_reward(world, users, items, mask)
  np.testing.assert_array_equal(
    np.isnan(got), np.repeat(np.arange(12)[:, None] == 5, 7, axis=1)
  )
  feedback = synthetic_rewards.session_feedback(world, users, items, mask)
  assert all(np.isnan(f[5]) and np.isfinite(f[4]) for f in feedback)


def test_targets_that_the_world_does_not_know_are_refused(world):
  session = some_sessions()
  unknown = config.RewardTarget(name='share', column='is_share')
  with pytest.raises(ValueError, match="no feedback column 'is_share'"):
    true_reward(world, *session, targets=(unknown,))
  late = config.RewardTarget(
    name='ltr', column='is_like', label='saturating_sum'
  )
  with pytest.raises(ValueError, match='its quantile is None'):
    true_reward(world, *session, targets=(late,))


# --- The optimum ------------------------------------------------------------


def target(name):
  return next(t for t in TARGETS if t.name == name)


@pytest.mark.parametrize(
  ('names', 'least'),
  [
    (('share',), 1.0),
    (('ltr',), 1.0),
    (('long',), 1.0),
    (('vtr', 'wtr', 'ltr', 'share'), 1.0),
    # Not exact (see the docstring); 0.95 without the variances.
    (('swt',), 0.998),
    (('swt', 'vtr', 'wtr', 'ltr'), 0.998),
    (('swt', 'likes', 'long'), 0.998),
  ],
)
def test_best_sessions_reach_the_best_of_all_sessions(names, least):
  world = synthetic.make_world(
    config.SyntheticConfig(num_users=8, num_items=16, num_clusters=4), seed=5
  )
  targets = tuple(target(n) for n in names)
  weights = np.array([t.weight for t in targets])
  quantiles = {'swt': 45.0, 'likes': 1.5}  # the best sessions saturate
  exclude = np.random.default_rng(6).random((8, 16)) < 0.3
  users = np.arange(8)
  chosen = synthetic_optimum.best_sessions(
    world,
    users,
    num_items=3,
    targets=targets,
    quantiles=quantiles,
    exclude=exclude,
  )
  ordered = np.sort(chosen, axis=1)
  assert (np.diff(ordered, axis=1) > 0).all()
  assert not np.take_along_axis(exclude, chosen, axis=1).any()
  for user in users:
    allowed = np.flatnonzero(~exclude[user])
    every = np.array(list(itertools.combinations(allowed, 3)))
    rewards = synthetic_rewards.true_reward(
      world,
      np.full(len(every), user),
      every,
      every >= 0,
      targets=targets,
      quantiles=quantiles,
    )
    place = (every == ordered[user]).all(axis=1).argmax()
    total = rewards @ weights
    assert total[place] >= least * total.max() - 1e-12


def test_the_logged_sessions_leave_room_for_alignment(world):
  events = synthetic.read(SIZE, seed=3).interactions
  users = synthetic_rewards.world_index(events['user_id'].to_list())
  items = synthetic_rewards.world_index(events['item_id'].to_list())
  shown = np.array([items[users == u][-5:] for u in range(60)])
  everyone = np.arange(60)
  best = synthetic_optimum.best_sessions(
    world,
    everyone,
    num_items=5,
    targets=TARGETS[:5],
    quantiles=QUANTILES,
  )
  mask = np.ones((60, 5), bool)
  gain = true_reward(world, everyone, best, mask) / true_reward(
    world, everyone, shown, mask
  ).mean(axis=0)
  assert (gain.mean(axis=0)[:5] > 1.05).all()


def test_a_catalogue_that_is_used_up_is_refused(world):
  exclude = np.zeros((2, 48), bool)
  exclude[1, 3:] = True
  with pytest.raises(ValueError, match='has 3 items left of 48'):
    synthetic_optimum.best_sessions(
      world,
      np.arange(2),
      num_items=4,
      targets=TARGETS,
      quantiles=QUANTILES,
      exclude=exclude,
    )
