"""Stage `lifelong`: compresses users' whole histories, offline.

Reads data/ and embed/, writes lifelong/.  Interrupted and started again, it
goes on with the users that are missing.
"""

import time
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import lifelong
from onerec_jax.data import lifelong_quality
from onerec_jax.data import lifelong_shards

STAGE = 'lifelong'
# Snapshots that the quality is measured on.
_JUDGED_SNAPSHOTS = 1000


def run(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Compresses the histories and returns what is left of them.

  Returns:
    Users, snapshots, clusters per snapshot and per whole history, events per
    cluster, seconds (of this call, and per user it compressed), and the
    quality beside that of the last events; see `lifelong_quality.compare`.

  Raises:
    FileNotFoundError: a stage before has not run.
    ValueError: there is no lifelong pathway, or item vectors do not fit.
  """
  pathways, settings = experiment.model.pathways, experiment.lifelong
  path = workdir.require(workdir.embeddings, 'embed')
  with path.open('rb') as file, np.load(file) as stored:
    vectors = stored['embeddings'].astype(np.float32)
  if len(vectors) != catalog.num_items(workdir.data):
    raise ValueError(
      f'{path} has {len(vectors)} rows, {workdir.data / "items.parquet"} has'
      f' {catalog.num_items(workdir.data)} items: run the stage `embed` again.'
    )
  events = event_table.read(workdir.data)
  features = features_lib.make_features(workdir.data, events, pathways)
  plan = lifelong_shards.make_plan(
    events,
    vectors,
    settings=settings,
    pathways=pathways,
    features=features,
    seed=experiment.seed,
  )
  folder = workdir.stage(STAGE)
  start = time.monotonic()
  written = lifelong_shards.write_snapshots(
    folder,
    events,
    vectors,
    plan,
    pathways=pathways,
    features=features,
    report=_report,
  )
  seconds = time.monotonic() - start
  snapshots = lifelong.Snapshots(folder, pathways, features, events)
  if not snapshots.num_snapshots:
    logging.warning(
      'No user has lifelong.snapshot_events=%d events: the lifelong pathway is'
      ' empty. Lower it, or set model.pathways.lifelong_length=0.',
      settings.snapshot_events,
    )
  result = {
    'users': events.num_users,
    'workers': settings.workers,
    'shards_written': written.shards,
    'users_written': written.users,
    'seconds': seconds,
    'seconds_per_user': seconds / written.users if written.users else None,
    **_sizes(snapshots),
    'quality': lifelong_quality.compare(
      events,
      snapshots,
      vectors,
      length=pathways.lifelong_length,
      max_snapshots=_JUDGED_SNAPSHOTS,
      seed=experiment.seed,
    ),
  }
  logging.info('lifelong: %s', result)
  return result


def _report(done: int, total: int) -> None:
  logging.info('lifelong: shard %d of %d', done, total)


def _sizes(snapshots: lifelong.Snapshots) -> dict[str, Any]:
  """Returns figures on how far histories were compressed."""
  clusters = np.diff(snapshots.offsets)
  known = np.array(
    [snapshots.owner(n)[1] for n in range(snapshots.num_snapshots)]
  )
  if not len(clusters):
    return {'snapshots': 0, 'users_with_snapshot': 0}
  users = {snapshots.owner(n)[0] for n in range(snapshots.num_snapshots)}
  sizes = snapshots.clusters.sizes
  return {
    'snapshots': len(clusters),
    'users_with_snapshot': len(users),
    'clusters_per_snapshot': float(clusters.mean()),
    'clusters_of_the_largest': int(clusters.max()),
    'events_per_snapshot': float(known.mean()),
    'compression_ratio': float(known.sum() / clusters.sum()),
    'events_per_cluster': float(sizes.mean()),
    'largest_cluster': int(sizes.max()),
    # Those of clusters that did not fit lifelong_length are left out.
    'share_of_events_kept': float(sizes.sum() / known.sum()),
  }
