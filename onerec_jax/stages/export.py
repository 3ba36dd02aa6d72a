"""Command `export`: a trained model as one program for serving.

Reads the work directory, writes the folder it is asked for; `exported.load`
reads that without this package's other parts.
"""

import os
from importlib import metadata
from typing import Any

import jax
import jax.export
import numpy as np
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import exported
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.decoding import catalogue_ranking
from onerec_jax.decoding import recommend as decoding
from onerec_jax.stages import added_items
from onerec_jax.stages import listed_items
from onerec_jax.stages import reinforce
from onerec_jax.stages import trained as trained_lib

_LIBRARIES = ('jax', 'jaxlib', 'flax')


def run(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  top_k: int,
  output: str | os.PathLike[str] | None,
  items: str | os.PathLike[str] | None = None,
) -> exported.Manifest:
  """Writes the model that the experiment ends with, compiled when it is loaded.

  The program answers batches of evaluate.batch_size histories under
  evaluate.decoding, on one device of any of `exported.PLATFORMS`; parameters
  have evaluate.parameter_dtype.

  Args:
    experiment: its evaluate counts; the model is the trained one.
    workdir: of a finished run.
    top_k: items of an answer.
    output: folder to write.
    items: file of the ids that may be recommended (`listed_items`); None: all.

  Returns:
    The manifest that was written.

  Raises:
    ValueError: no output, several processes, or a model that reads more of
      users than their history.
  """
  if output is None:
    raise ValueError('export needs --output, the folder to write.')
  if top_k < 1:
    raise ValueError(f'--top_k={top_k} must be at least 1.')
  workdir_lib.check_reachable(os.fspath(output))
  exported.check_folder(output)
  if jax.process_count() > 1:
    raise ValueError('export runs in one process: start it on one host alone.')
  trained = reinforce.load_final(experiment, workdir)
  trained, served = added_items.serve(trained, workdir)
  used, settings = trained.experiment, experiment.evaluate
  if items is not None:
    trained = listed_items.restrict(
      trained, items, served.item_ids, settings.decoding
    )
  if trained.contexts is not None:
    raise ValueError(
      "A model with encoder='pathways' reads the events of known users, with"
      ' their times and feedback, which an exported program does not have: use'
      ' the command recommend.'
    )
  manifest = exported.Manifest(
    format=exported.FORMAT,
    batch_size=settings.batch_size,
    history_length=used.data.history_length + settings.decoding.continue_items,
    max_excluded=_longest_history(workdir),
    top_k=top_k,
    new_user=len(catalog.read_users(workdir.data)),
    item_ids=served.item_ids.tolist(),
    dtypes=[],
    name=used.name,
    checkpoint_step=trained.step,
    semantic_ids=None if trained.router_bias is None else trained.ids.digest(),
    versions={name: metadata.version(name) for name in _LIBRARIES},
  )
  program, arrays = _export(trained, settings.decoding, manifest)
  exported.save(output, manifest, program, arrays)
  logging.info(
    'Wrote %.1f MB of arrays and a program of %.1f MB to %s',
    sum(x.nbytes for x in arrays) / 1e6,
    len(program.mlir_module_serialized) / 1e6,
    output,
  )
  return manifest


def _longest_history(workdir: workdir_lib.Workdir) -> int:
  """Returns room for the items of any user in the data."""
  events = catalog.read_interactions(workdir.data)
  users = events['user'].to_numpy()[events['positive'].to_numpy()]
  return decoding.exclusion_width(int(np.bincount(users).max()))


def _export(
  trained: trained_lib.Trained,
  settings: config.DecodingConfig,
  manifest: exported.Manifest,
) -> tuple[jax.export.Exported, list[np.ndarray]]:
  """Returns the program of one device, and the arrays it reads."""
  t = trained
  # What the model does on a CPU can be lowered for all platforms; on a TPU it
  # would take kernels that no other has.
  mesh = meshes.make_mesh(config.MeshConfig(), jax.devices('cpu')[:1])
  model = t.model.clone(mesh=mesh)
  function: Any
  state: tuple[Any, ...]
  if t.router_bias is None:
    function = catalogue_ranking.make_ranker(
      model, settings, top_k=manifest.top_k
    )
    state = (t.params, t.attributes), (t.transitions, t.allowed)
  else:
    function = decoding.make_recommender(model, settings, top_k=manifest.top_k)
    state = (
      (t.params, t.router_bias, t.catalogue, t.trie),
      (t.transitions, t.allowed),
    )
  leaves, structure = jax.tree.flatten(state)
  leaves = jax.device_get(leaves)  # of whatever mesh it was restored on
  session = (manifest.batch_size, t.experiment.data.sessions.items_per_session)

  def program(
    leaves: list[jax.Array], inputs: exported.Inputs
  ) -> tuple[jax.Array, jax.Array]:
    batch = batch_lib.SessionBatch(
      example_id=jax.numpy.arange(manifest.batch_size),
      user=inputs.user,
      history_items=inputs.items,
      history_mask=inputs.mask,
      target_items=jax.numpy.zeros(session, jax.numpy.int32),
      target_mask=jax.numpy.zeros(session, bool),
      example_mask=jax.numpy.ones(manifest.batch_size, bool),
    )
    arguments, others = structure.unflatten(leaves)
    found = function(*arguments, batch, inputs.excluded, *others)
    return found.items, found.scores

  made = jax.export.export(jax.jit(program), platforms=exported.PLATFORMS)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (leaves, exported.zeros(manifest)),
  )
  return made(*shapes), leaves
