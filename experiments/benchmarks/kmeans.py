"""Times balanced k-means against faiss and k-means-constrained.

  python -m experiments.benchmarks.kmeans

Same points (Zipf mixture), same initial centroids, same number of assignments;
the contenders take turns in one process.  Compiling is left out and reported
as first_call_seconds.  Needs faiss-cpu and k-means-constrained
(experiments/benchmarks/requirements.txt).  Writes results/kmeans.json.
"""

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import cast

# Threads of a library that waits must not burn the cores of the next one.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import huge_pages
from onerec_jax.semantic_ids import balanced_kmeans
from onerec_jax.semantic_ids import kmeans

_RESULT = pathlib.Path(__file__).parent / 'results' / 'kmeans.json'
_PACKAGES = ('faiss-cpu', 'jax', 'jaxlib', 'k-means-constrained', 'numpy')


class Outcome(NamedTuple):
  centroids: np.ndarray
  labels: np.ndarray | None  # None: the nearest centroid's


def zipf_mixture(num_points: int, dim: int, *, seed: int) -> np.ndarray:
  """Returns points around 1000 centres whose weights fall as 1/rank."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(1000, dim))
  share = 1 / np.arange(1, 1001)
  chosen = rng.choice(1000, num_points, p=share / share.sum())
  noise = rng.normal(size=(num_points, dim))
  return (centres[chosen] + noise).astype(np.float32)


def inertia(points: np.ndarray, labels: np.ndarray, num_clusters: int) -> float:
  """Returns the mean squared distance to the mean of the own cluster."""
  counts = np.bincount(labels, minlength=num_clusters)
  sums = np.zeros((num_clusters, points.shape[1]))
  np.add.at(sums, labels, points)
  means = sums / np.maximum(counts, 1)[:, None]
  return float(((points - means[labels]) ** 2).sum(1).mean())


# --- Contenders -------------------------------------------------------------


def ours(
  points: np.ndarray, start: np.ndarray, iterations: int, rule: str
) -> Callable[[], Outcome]:
  """Returns a run of one of our rules; checks balance at every iteration."""
  rules: dict[str, kmeans.Assign] = {
    'rounds': balanced_kmeans.assign_in_rounds,
    'sequential': balanced_kmeans.assign_sequentially,
    'lloyd': lambda p, c: kmeans.nearest(p, c).labels,
  }
  num_points, num_clusters = len(points), len(start)
  allowed = {num_points // num_clusters, -(-num_points // num_clusters)}
  on_device = jnp.asarray(points), jnp.asarray(start)

  def fit(assign: kmeans.Assign) -> Outcome:
    fitted = kmeans.iterate(
      *on_device,
      assign=assign,
      max_iterations=iterations,
      tolerance=-1.0,  # never stop for a small change: equal iterations
    )
    return Outcome(np.asarray(fitted.centroids), np.asarray(fitted.labels))

  def assign_checked(p: jax.Array, c: jax.Array) -> jax.Array:
    labels = rules[rule](p, c)
    sizes = np.bincount(np.asarray(labels), minlength=num_clusters)
    if rule != 'lloyd' and set(sizes.tolist()) - allowed:
      raise AssertionError(f'{rule}: sizes {sizes.min()}..{sizes.max()}')
    return labels

  fit(assign_checked)
  return lambda: fit(rules[rule])


def faiss_kmeans(
  points: np.ndarray, start: np.ndarray, iterations: int
) -> Callable[[], Outcome]:
  """Returns a run of faiss.Kmeans on all points (it subsamples by itself)."""
  import faiss  # pyright: ignore[reportMissingImports] # an optional peer

  def run() -> Outcome:
    model = faiss.Kmeans(
      points.shape[1],
      len(start),
      niter=iterations,
      max_points_per_centroid=len(points),
    )
    model.train(points, init_centroids=start)
    return Outcome(np.asarray(model.centroids), None)

  return run


def constrained(
  points: np.ndarray, start: np.ndarray, iterations: int
) -> Callable[[], Outcome]:
  """Returns a run of k-means-constrained with the same cluster sizes."""
  from k_means_constrained import KMeansConstrained  # pyright: ignore[reportMissingImports] # an optional peer

  def run() -> Outcome:
    # It assigns once more than max_iter, to match its last centroids.
    model = KMeansConstrained(
      n_clusters=len(start),
      size_min=len(points) // len(start),
      size_max=-(-len(points) // len(start)),
      init=cast(Any, start.astype(np.float64)),  # annotated as str
      n_init=1,
      max_iter=iterations - 1,
      tol=0,
    ).fit(points.astype(np.float64))
    return Outcome(
      np.asarray(model.cluster_centers_), np.asarray(model.labels_)
    )

  return run


# --- Measurement ------------------------------------------------------------


def compare(
  prepare: dict[str, Callable[[], Callable[[], Outcome]]],
  points: np.ndarray,
  num_clusters: int,
  rounds: int,
) -> dict[str, Any]:
  """Runs contenders in turns; returns medians and ranges of seconds."""
  runs: dict[str, Callable[[], Outcome]] = {}
  result: dict[str, Any] = {}
  for name, make in prepare.items():
    begin = time.perf_counter()
    runs[name] = make()
    result[name] = {
      'first_call_seconds': round(time.perf_counter() - begin, 3),
      'wall': [],
      'cpu': [],
    }
  outcomes: dict[str, Outcome] = {}
  for _ in range(rounds):
    for name, run in runs.items():
      wall, cpu = time.perf_counter(), time.process_time()
      outcomes[name] = run()
      result[name]['cpu'].append(time.process_time() - cpu)
      result[name]['wall'].append(time.perf_counter() - wall)
      print(f'{name}: {result[name]["wall"][-1]:.2f} s', flush=True)
  for name, entry in result.items():
    for clock in ('wall', 'cpu'):
      seconds = entry.pop(clock)
      entry[f'{clock}_seconds'] = {
        'median': statistics.median(seconds),
        'least': min(seconds),
        'most': max(seconds),
      }
    centroids, found = outcomes[name]
    if found is None:
      found = np.asarray(
        kmeans.nearest(jnp.asarray(points), jnp.asarray(centroids)).labels
      )
    sizes = np.bincount(found, minlength=num_clusters)
    entry['inertia'] = inertia(points, found, num_clusters)
    entry['sizes'] = [int(sizes.min()), int(sizes.max())]
  return result


def against_faiss(iterations: int, rounds: int) -> dict[str, Any]:
  """100,000 x 128 to 256 clusters; faiss does not balance."""
  points = zipf_mixture(100_000, 128, seed=0)
  start = points[np.random.default_rng(1).choice(len(points), 256, False)]
  result = compare(
    {
      'faiss': lambda: faiss_kmeans(points, start, iterations),
      'rounds': lambda: ours(points, start, iterations, 'rounds'),
      'lloyd': lambda: ours(points, start, iterations, 'lloyd'),
      'sequential': lambda: ours(points, start, iterations, 'sequential'),
    },
    points,
    256,
    rounds,
  )
  for name in ('rounds', 'lloyd', 'sequential'):
    entry = result[name]
    for clock in ('wall', 'cpu'):
      mine, peer = (
        e[f'{clock}_seconds']['median'] for e in (entry, result['faiss'])
      )
      entry[f'{clock}_over_faiss'] = mine / peer
    entry['inertia_over_lloyd'] = entry['inertia'] / result['lloyd']['inertia']
  return {'points': [100_000, 128], 'clusters': 256, **result}


def against_constrained(iterations: int, rounds: int) -> dict[str, Any]:
  """20,000 x 128 to 256 clusters; the peer solves a min-cost flow."""
  points = zipf_mixture(20_000, 128, seed=0)
  start = points[np.random.default_rng(1).choice(len(points), 256, False)]
  result = compare(
    {
      'constrained': lambda: constrained(points, start, iterations),
      'rounds': lambda: ours(points, start, iterations, 'rounds'),
      'sequential': lambda: ours(points, start, iterations, 'sequential'),
    },
    points,
    256,
    rounds,
  )
  peer = result['constrained']
  for name in ('rounds', 'sequential'):
    entry = result[name]
    for clock in ('wall', 'cpu'):
      entry[f'constrained_{clock}_over_ours'] = (
        peer[f'{clock}_seconds']['median'] / entry[f'{clock}_seconds']['median']
      )
    entry['inertia_over_constrained'] = entry['inertia'] / peer['inertia']
  return {'points': [20_000, 128], 'clusters': 256, **result}


def _peak_megabytes() -> float:
  """Returns this process's peak memory; ru_maxrss would include its parent."""
  status = pathlib.Path('/proc/self/status').read_text()
  line = next(l for l in status.splitlines() if l.startswith('VmHWM'))
  return int(line.split()[1]) / 1e3


def _large(connection: Any, num_points: int, dim: int, clusters: int) -> None:
  """Child process: one balanced iteration, so that its memory is its own."""
  points = np.random.default_rng(0).standard_normal(
    (num_points, dim), dtype=np.float32
  )
  before = _peak_megabytes()
  wall, cpu = time.perf_counter(), time.process_time()
  labels = np.asarray(
    balanced_kmeans.assign_in_rounds(
      jnp.asarray(points), jnp.asarray(points[:clusters])
    )
  )
  sizes = np.bincount(labels, minlength=clusters)
  connection.send(
    {
      'points': [num_points, dim],
      'clusters': clusters,
      'wall_seconds_with_compile': time.perf_counter() - wall,
      'cpu_seconds_with_compile': time.process_time() - cpu,
      'sizes': [int(sizes.min()), int(sizes.max())],
      'points_megabytes': points.nbytes / 1e6,
      'peak_megabytes_before': before,
      'peak_megabytes': _peak_megabytes(),
      'all_distances_would_be_megabytes': num_points * clusters * 4 / 1e6,
    }
  )


def large(num_points: int, dim: int, clusters: int) -> dict[str, Any]:
  """Peak memory of one balanced assignment at the papers' codebook size."""
  context = multiprocessing.get_context('spawn')
  parent, child = context.Pipe()
  process = context.Process(
    target=_large, args=(child, num_points, dim, clusters)
  )
  process.start()
  child.close()
  result = parent.recv()
  process.join()
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--iterations', type=int, default=10)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--constrained_rounds', type=int, default=2)
  parser.add_argument('--large_points', type=int, default=1_000_000)
  parser.add_argument(
    '--parts', nargs='+', default=['faiss', 'constrained', 'large']
  )
  arguments = parser.parse_args()
  for package in _PACKAGES:
    try:
      importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      sys.exit(
        f'{package} is not installed. Run `pip install -r requirements.txt -r'
        ' experiments/benchmarks/requirements.txt` first.'
      )
  result = json.loads(_RESULT.read_text()) if _RESULT.exists() else {}
  parts: dict[str, Callable[[], dict[str, Any]]] = {
    'faiss': lambda: against_faiss(arguments.iterations, arguments.rounds),
    'constrained': lambda: against_constrained(
      arguments.iterations, arguments.constrained_rounds
    ),
    'large': lambda: {
      **large(arguments.large_points, 64, 8192),
      'iterations': 1,
    },
  }
  for part in arguments.parts:
    result[part] = {
      'command': ' '.join(
        ['python -m experiments.benchmarks.kmeans', *sys.argv[1:]]
      ),
      'date': datetime.date.today().isoformat(),
      'cpu_count': os.cpu_count(),
      'machine': platform.machine(),
      'load_before': os.getloadavg()[0],
      'python': platform.python_version(),
      'versions': {p: importlib.metadata.version(p) for p in _PACKAGES},
      'iterations': arguments.iterations,
      **parts[part](),
    }
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result[part], indent=1))


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
