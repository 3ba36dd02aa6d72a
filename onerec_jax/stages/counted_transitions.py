"""Reads what followed what in training, for lists that counts take part in."""

import jax
from jax.sharding import Mesh

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.decoding import transitions


def read(
  decoding: config.DecodingConfig, workdir: workdir_lib.Workdir, mesh: Mesh
) -> transitions.Transitions | None:
  """Returns the transitions of the training split, whole on every device.

  They are those of the floor 'Co-occurrence by source'.

  Args:
    decoding: its transition_weight says whether they are read.
    workdir: with prepared data.
    mesh: where they are placed.

  Returns:
    None: they are not read.
  """
  if not decoding.transition_weight:
    return None
  # Not needed by most, and slow to import.
  from onerec_jax.data import baselines

  sequences = catalog.training_sequences(workdir.data)
  floor = baselines.source_cooccurrence(
    sequences.offsets,
    sequences.items,
    num_items=catalog.num_items(workdir.data),
  )
  counts = floor.transitions
  assert counts is not None
  counts.eliminate_zeros()
  found = transitions.Transitions.of_rows(
    counts.indptr,
    counts.indices,
    counts.data,
    history_items=floor.history_items,
    history_decay=floor.history_decay,
  )
  whole = sharding.replicated(mesh)
  return jax.tree.map(lambda x: sharding.place(x, whole), found)
