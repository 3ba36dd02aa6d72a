"""What encoder='pathways' reads of users and items, from the work directory.

Only opens files; the features are data/features.py's, the cutting of
contexts data/user_context.py's.
"""

from typing import NamedTuple

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import event_table
from onerec_jax.data import features as features_lib
from onerec_jax.data import lifelong
from onerec_jax.data import user_context


class UserPathways(NamedTuple):
  """Features of a data set and the maker of users' contexts."""

  features: features_lib.Features
  contexts: user_context.ContextMaker


def read(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> UserPathways | None:
  """Returns what the experiment's encoder reads; None with encoder='history'.

  Raises:
    FileNotFoundError: a stage has not run; says which.
    ValueError: a configured feature does not exist.
  """
  if experiment.architecture != 'onerec' or (
    experiment.model.encoder != 'pathways'
  ):
    return None
  pathways = experiment.model.pathways
  workdir.require(workdir.data / 'interactions.parquet', 'prepare')
  events = event_table.read(workdir.data)
  features = features_lib.make_features(workdir.data, events, pathways)
  snapshots = None
  if pathways.lifelong_length:
    snapshots = lifelong.Snapshots(
      workdir.folder('lifelong'), pathways, features, events
    )
  return UserPathways(
    features,
    user_context.ContextMaker(pathways, features, events, snapshots),
  )
