"""A small simulated world with a known law, for smoke runs and tests.

Every probability that generates the data can be asked for, so the best
possible recommender is known.  Nothing here imitates a real data set.
"""

import dataclasses

import numpy as np
import polars as pl
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.data import schema

_DRIFT = 0.8  # probability that the next item succeeds the last one
_SUCCESSORS = (0.6, 0.3, 0.1)  # of the 1st, 2nd, 3rd item along the ring
_MIN_EVENTS = 8
_SESSION_LENGTHS = (5, 9)  # events, upper end excluded
_START_MICROSECONDS = 1_704_067_200_000_000  # 2024-01-01 UTC
_SECOND = 1_000_000
_USERS_AT_ONCE = 1024  # bounds the [users, items] probabilities in memory
_TOPICS = (
  'cooking', 'travel', 'music', 'football', 'gardening', 'chess', 'painting',
  'sailing', 'robots', 'pets', 'history', 'dance', 'cycling', 'knitting',
  'astronomy', 'baking',
)  # fmt: skip
# Profiles: probability that a value is what the law says, else any is drawn.
_TELLING = 0.7
_AGES = ('18-24', '25-34', '35-49', '50+')
_GENDERS = ('female', 'male')
_AUTHORS = 4  # of a cluster
_MOODS = (
  'quiet', 'grand', 'odd', 'bright', 'slow', 'secret', 'daily', 'final',
  'first', 'lost',
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class World:
  """The hidden state that generates the data. U users, I items, C clusters."""

  taste: Float[np.ndarray, 'U C']  # probability of a cluster when jumping
  cluster: Int[np.ndarray, ' I']
  # Place along the cluster's ring, 0..size-1; the order in which it is seen.
  place: Int[np.ndarray, ' I']
  quality: Float[np.ndarray, ' I']  # log weight of an item when jumping
  duration: Float[np.ndarray, ' I']  # seconds
  successors: Int[np.ndarray, 'I 3']  # next items along the ring
  exploration: float = 0.0  # share of the jumps that ignore taste and quality


def make_world(size: config.SyntheticConfig, *, seed: int) -> World:
  """Draws the hidden state; the same seed gives the same world."""
  clusters = min(size.num_clusters, size.num_items)
  random = np.random.default_rng([seed, 0])
  taste = random.normal(size=(size.num_users, clusters))
  taste = np.exp(2.0 * taste)
  item = np.arange(size.num_items)
  cluster, place = item % clusters, item // clusters
  ring = np.bincount(cluster, minlength=clusters)[cluster]
  steps = np.arange(1, len(_SUCCESSORS) + 1)
  successors = (place[:, None] + steps) % ring[:, None] * clusters + (
    cluster[:, None]
  )
  return World(
    taste=taste / taste.sum(axis=1, keepdims=True),
    cluster=cluster,
    place=place,
    quality=0.7 * random.normal(size=size.num_items),
    duration=np.exp(np.log(30.0) + 0.5 * random.normal(size=size.num_items)),
    successors=successors,
    exploration=size.exploration,
  )


def next_item_probabilities(
  world: World,
  users: Int[np.ndarray, ' n'],
  last: Int[np.ndarray, ' n'],
  seen: Bool[np.ndarray, 'n I'],
) -> Float[np.ndarray, 'n I']:
  """The true probability of the next item: the best any model can know.

    p(i) ∝ [i unseen] · (0.8 · succ(i | last) + 0.2 · jump(i))
    jump(i) = (1 - x) · taste_u[c_i] · q_i + x / I

  with succ = 0.6, 0.3, 0.1 for the next three items along the ring of the
  last item's cluster, q_i the softmax of quality within the cluster and x the
  exploration.  A user's first item is always a jump.

  Args:
    world: hidden state.
    users: user indices. [n]
    last: last item seen, or -1 for none. [n]
    seen: items seen so far, never seen again. [n, I]
  """
  weight = np.exp(world.quality)
  weight /= np.bincount(world.cluster, weights=weight)[world.cluster]
  probs = world.taste[users][:, world.cluster] * weight
  probs *= 1 - world.exploration
  probs += world.exploration / len(weight)
  follows = last >= 0
  probs[follows] *= 1 - _DRIFT
  row = np.flatnonzero(follows)
  for k, share in enumerate(_SUCCESSORS):
    # add.at: in a ring of fewer than four items successors coincide.
    np.add.at(probs, (row, world.successors[last[row], k]), _DRIFT * share)
  probs[seen] = 0
  return probs / probs.sum(axis=1, keepdims=True)


def affinity(
  world: World, users: Int[np.ndarray, ' n'], items: Int[np.ndarray, ' n']
) -> Float[np.ndarray, ' n']:
  """How much a user likes an item; drives all feedback.

  a = 0.5 · log(taste_u[c_i] · C) + quality_i
  """
  clusters = world.taste.shape[1]
  share = world.taste[users, world.cluster[items]] * clusters
  return 0.5 * np.log(share) + world.quality[items]


def like_probability(
  affinities: Float[np.ndarray, ' n'],
) -> Float[np.ndarray, ' n']:
  """P(like) = σ(2a - 2)."""
  return _sigmoid(2 * affinities - 2)


def follow_probability(
  affinities: Float[np.ndarray, ' n'],
) -> Float[np.ndarray, ' n']:
  """P(follow) = σ(2a - 4)."""
  return _sigmoid(2 * affinities - 4)


def read(size: config.SyntheticConfig, *, seed: int) -> schema.Dataset:
  """Returns a simulated log; the same seed gives the same log.

  Items follow `next_item_probabilities`.  Feedback: watched share
  w = σ(a + N(0, 1)), watch_time = w · duration (seconds), long_view = [w >
  0.5], is_like and is_follow drawn with the probabilities above.  Sessions of
  5 to 8 events a minute or so apart, hours to days between them.

  With `size.profiles` users have an age group and a gender, and items an
  author and two tags beside their other categories; see `_profiles`.  Events
  are the same with and without.

  Raises:
    ValueError: the catalogue is too small for the shortest user.
  """
  if size.num_items < 2 * _MIN_EVENTS:
    raise ValueError(
      f'data.synthetic.num_items={size.num_items} must be at least'
      f' {2 * _MIN_EVENTS}.'
    )
  world = make_world(size, seed=seed)
  random = np.random.default_rng([seed, 1])
  mean = max(size.events_per_user - _MIN_EVENTS, 0)
  lengths = np.minimum(
    _MIN_EVENTS + random.poisson(mean, size.num_users), size.num_items // 2
  )
  items = np.concatenate(
    [
      _walk(world, np.arange(first, first + len(part)), part, random)
      for first in range(0, size.num_users, _USERS_AT_ONCE)
      for part in [lengths[first : first + _USERS_AT_ONCE]]
    ]
  )
  users = np.repeat(np.arange(size.num_users), lengths)
  session, timestamps = _clock(users, lengths, random)
  liking = affinity(world, users, items)
  watched = _sigmoid(liking + random.normal(size=len(users)))
  number = len(users)
  interactions = pl.DataFrame(
    {
      'user_id': _names('user', users),
      'item_id': _names('item', items),
      'timestamp': timestamps,
      'session_id': _names('session', session),
      'watch_time': (watched * world.duration[items]).astype(np.float32),
      'long_view': (watched > 0.5).astype(np.float32),
      'is_like': random.random(number) < like_probability(liking),
      'is_follow': random.random(number) < follow_probability(liking),
    }
  ).with_columns(pl.col('is_like', 'is_follow').cast(pl.Float32))
  items_table = _item_table(world)
  users_table = pl.DataFrame(
    {
      'user_id': _names('user', np.arange(size.num_users)),
      'favourite': [_topic(int(c)) for c in world.taste.argmax(axis=1)],
    }
  )
  if size.profiles:
    items_table, users_table = _profiles(
      world, items_table, users_table, np.random.default_rng([seed, 2])
    )
  return schema.Dataset(
    interactions=interactions,
    items=items_table,
    users=users_table,
    feedback=('watch_time', 'long_view', 'is_like', 'is_follow'),
    source=f'synthetic world, seed {seed}',
    has_item_table=True,
    has_user_table=True,
  )


def _walk(
  world: World,
  users: np.ndarray,
  lengths: np.ndarray,
  random: np.random.Generator,
) -> np.ndarray:
  """Draws the items of some users; flat, in user order."""
  steps = int(lengths.max())
  items = np.zeros((len(users), steps), np.int64)
  seen = np.zeros((len(users), len(world.cluster)), bool)
  last = np.full(len(users), -1)
  row = np.arange(len(users))
  for step in range(steps):
    probs = next_item_probabilities(world, users, last, seen)
    edges = np.cumsum(probs, axis=1)
    draw = random.random(len(users)) * edges[:, -1]
    last = (edges <= draw[:, None]).sum(axis=1)
    seen[row, last] = True
    items[:, step] = last
  return items[np.arange(steps) < lengths[:, None]]


def _clock(
  users: np.ndarray, lengths: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Returns session number and timestamp (us) of each event."""
  number = len(users)
  first = np.cumsum(lengths) - lengths
  place = np.arange(number) - np.repeat(first, lengths)
  length = random.integers(*_SESSION_LENGTHS, size=len(lengths))[users]
  new = place % length == 0
  pause = np.where(
    new,
    random.uniform(6 * 3600, 72 * 3600, number),
    random.uniform(20, 120, number),
  )
  pause[first] = random.uniform(0, 30 * 86_400, len(lengths))
  elapsed = np.cumsum((pause * _SECOND).astype(np.int64))
  base = (elapsed - (pause * _SECOND).astype(np.int64))[first]
  timestamps = _START_MICROSECONDS + elapsed - np.repeat(base, lengths)
  return np.cumsum(new) - 1, timestamps


def _item_table(world: World) -> pl.DataFrame:
  topics = [_topic(int(c)) for c in world.cluster]
  moods = [_MOODS[int(p) % len(_MOODS)] for p in world.place]
  parts = [f'part{int(p) // 5}' for p in world.place]
  titles = [
    f'{mood.capitalize()} {topic} {int(place) + 1}'
    for mood, topic, place in zip(moods, topics, world.place, strict=True)
  ]
  return pl.DataFrame(
    {
      'item_id': _names('item', np.arange(len(topics))),
      'title': titles,
      'text': [
        f'{title} {topic} {part}'
        for title, topic, part in zip(titles, topics, parts, strict=True)
      ],
      'categories': [[t, p] for t, p in zip(topics, parts, strict=True)],
    }
  )


def _profiles(
  world: World,
  items: pl.DataFrame,
  users: pl.DataFrame,
  random: np.random.Generator,
) -> tuple[pl.DataFrame, pl.DataFrame]:
  """Returns the tables with profiles of users and properties of items.

  Each value is the stated one with probability 0.7, else drawn uniformly from
  all values.  With c the user's likeliest cluster:
    age       _AGES[c mod 4]
    gender    _GENDERS[⌊c / 4⌋ mod 2]
  With c the item's cluster and r its place 0, 1, ... in the cluster, best
  quality first, of n:
    author    author:{4 c + ⌊4 r / n⌋}; all authors: 0 .. 4 C - 1
    tag       tag:{topic of c}; all topics
    tag       tag:hit if r < n / 2, else tag:niche
  """
  clusters = world.taste.shape[1]

  def blurred(stated: np.ndarray, values: int) -> np.ndarray:
    any_value = random.integers(values, size=len(stated))
    return np.where(random.random(len(stated)) < _TELLING, stated, any_value)

  taste = world.taste.argmax(axis=1)
  ages = blurred(taste % len(_AGES), len(_AGES))
  genders = blurred(taste // len(_AGES) % len(_GENDERS), len(_GENDERS))
  cluster = world.cluster
  order = np.lexsort((-world.quality, cluster))
  counts = np.bincount(cluster, minlength=clusters)
  first = np.cumsum(counts) - counts
  rank = np.empty(len(cluster), np.int64)
  rank[order] = np.arange(len(cluster)) - first[cluster[order]]
  part = _AUTHORS * rank // counts[cluster]
  authors = blurred(_AUTHORS * cluster + part, _AUTHORS * clusters)
  topics = blurred(cluster, clusters)
  hits = blurred((2 * rank < counts[cluster]).astype(np.int64), 2)
  added = [
    [f'author:{author}', f'tag:{_topic(topic)}', f'tag:{kind}']
    for author, topic, kind in zip(
      authors.tolist(),
      topics.tolist(),
      np.array(['niche', 'hit'])[hits].tolist(),
      strict=True,
    )
  ]
  return items.with_columns(
    pl.concat_list('categories', pl.Series('added', added)).alias('categories')
  ), users.with_columns(
    pl.Series('age', np.array(_AGES)[ages]),
    pl.Series('gender', np.array(_GENDERS)[genders]),
  )


def _topic(cluster: int) -> str:
  turn, place = divmod(cluster, len(_TOPICS))
  return _TOPICS[place] + (str(turn + 1) if turn else '')


def _names(prefix: str, numbers: np.ndarray) -> pl.Series:
  return pl.select(
    pl.format('{}{}', pl.lit(prefix), pl.Series(numbers))
  ).to_series()


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))
