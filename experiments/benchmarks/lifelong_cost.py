"""Time and quality of compressing a history of 100,000 events.

  python -m experiments.benchmarks.lifelong_cost

Simulated histories, one core: hierarchical k-means and the averages of the
clusters, as the stage `lifelong` does for one snapshot, against keeping the
last 2,000 events.  Two kinds of user: `returning` takes up old interests
again, `drifting` leaves each of them for good.  Writes
results/lifelong_cost.json.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any
from typing import Literal

from experiments.benchmarks import harness
from onerec_jax import huge_pages

_RESULT = pathlib.Path(__file__).parent / 'results' / 'lifelong_cost.json'
_EVENTS = 100_000
_ITEMS = 200_000
_TOPICS = 1000
_SPREAD = 0.7  # of items around their topic, in units of the topics' spread
# A user has this many topics over his life and a few at a time.
_USER_TOPICS = 60
_SEASON_TOPICS = 8
_SEASON_EVENTS = 2000
_LATER_EVENTS = 2000
_KEPT = 2000  # clusters, and events of the truncation
_JUDGED = 2000  # events that are looked for
# (vector size, M).  M = 50 leaves more clusters than are kept; with M = 150
# nearly all of a history is.
_CASES = ((64, 50), (128, 50), (64, 150))

Kind = Literal['returning', 'drifting']


def make_items(dim: int) -> tuple[Any, Any]:
  """Returns item vectors of length 1 and the topic of each item."""
  import numpy as np

  random = np.random.default_rng(0)
  topics = random.standard_normal((_TOPICS, dim), np.float32)
  topic = np.arange(_ITEMS) % _TOPICS
  vectors = topics[topic]
  vectors += _SPREAD * random.standard_normal((_ITEMS, dim), np.float32)
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), topic


def make_history(kind: Kind, *, seed: int) -> Any:
  """Returns the items of a user: his history and what comes after it.

  The user goes through seasons of 2,000 events in which he likes 8 topics,
  drawn from the 60 of his life (returning), or from those that he has not had
  yet, as far as they last (drifting).
  """
  import numpy as np

  random = np.random.default_rng([1, seed])
  seasons = -(-(_EVENTS + _LATER_EVENTS) // _SEASON_EVENTS)
  if kind == 'returning':
    life = random.choice(_TOPICS, _USER_TOPICS, replace=False)
    chosen = [
      random.choice(life, _SEASON_TOPICS, replace=False) for _ in range(seasons)
    ]
  else:
    order = random.permutation(_TOPICS)[: seasons * _SEASON_TOPICS]
    chosen = np.array_split(order, seasons)
  topic = np.concatenate([random.choice(c, _SEASON_EVENTS) for c in chosen])
  place = random.integers(_ITEMS // _TOPICS, size=len(topic))
  return topic + place * _TOPICS


def measure(dim: int, max_cluster_size: int, *, users: int) -> dict[str, Any]:
  """Returns seconds and quality over some users of each kind."""
  import numpy as np

  from onerec_jax.data import history_clusters
  from onerec_jax.data import lifelong_quality

  vectors, _ = make_items(dim)
  random = np.random.default_rng(2)
  tags = random.integers(1, 500, (_ITEMS, 4)).astype(np.int32)
  report: dict[str, Any] = {'dim': dim, 'max_cluster_size': max_cluster_size}
  kinds: tuple[Kind, ...] = ('returning', 'drifting')
  for kind in kinds:
    seconds: dict[str, list[float]] = {'wall': [], 'cpu': []}
    clusters, quality = [], []
    for user in range(users + 1):
      items = make_history(kind, seed=user)
      past, later = items[:_EVENTS], items[_EVENTS:]
      history = history_clusters.History(
        items=past,
        timestamps=np.arange(_EVENTS, dtype=np.int64) * 60_000_000,
        exact_time=np.ones(_EVENTS, bool),
        numbers=random.exponential(10_000, (_EVENTS, 2)),
      )
      wall, cpu = time.perf_counter(), time.process_time()
      found = history_clusters.compress(
        history,
        vectors,
        (tags,),
        max_cluster_size=max_cluster_size,
        iterations=5,
        max_clusters=_EVENTS,
        random=np.random.default_rng(user),
      )
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      if not user:  # warms up
        continue
      seconds['wall'].append(wall)
      seconds['cpu'].append(cpu)
      clusters.append(len(found.sizes))
      kept = found.representatives[-_KEPT:]
      quality.append(
        [
          lifelong_quality.nearest_cosine(k, w, vectors)
          for k in (past[kept], past[found.representatives], past[-_KEPT:])
          for w in (past[random.integers(_EVENTS, size=_JUDGED)], later)
        ]
      )
    mean = np.mean(quality, axis=0).tolist()
    report[kind] = {
      'users': users,
      **{
        f'{clock}_seconds_{name}': function(values)
        for clock, values in seconds.items()
        for name, function in (('median', statistics.median), ('max', max))
      },
      'clusters': statistics.mean(clusters),
      'cosine_to_nearest_kept': {
        name: dict(zip(('history', 'later'), pair, strict=True))
        for name, pair in (
          (f'latest_{_KEPT}_clusters', mean[:2]),
          ('all_clusters', mean[2:4]),
          (f'last_{_KEPT}_events', mean[4:]),
        )
      },
    }
    print(
      f'dim {dim} M {max_cluster_size} {kind}: {json.dumps(report[kind])}',
      flush=True,
    )
  return report


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--users', type=int, default=5)
  parser.add_argument('--output', default=str(_RESULT))
  arguments = parser.parse_args()
  # Before NumPy counts the cores.
  harness.use_one_core()
  import numpy as np

  results = [measure(*case, users=arguments.users) for case in _CASES]
  report = {
    'what': f'hierarchical k-means of {_EVENTS} events, one core',
    'command': 'python -m experiments.benchmarks.lifelong_cost '
    + ' '.join(sys.argv[1:]),
    'events': _EVENTS,
    'results': results,
    'machine': f'{os.cpu_count()} CPU cores, {platform.machine()}',
    'load': os.getloadavg()[0],
    'numpy': np.__version__,
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }
  path = pathlib.Path(arguments.output)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
