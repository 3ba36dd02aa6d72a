"""A trained model with its catalogue, as evaluate and recommend need it.

Read from the work directory alone, on whatever devices there are.  Trains
nothing and writes nothing.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.decoding import catalogue_ranking
from onerec_jax.decoding import recommend as decoding
from onerec_jax.decoding import transitions as transitions_lib
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.model import sequential as sequence_model
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain as onerec_objective
from onerec_jax.objectives import sequential as sequential_objective
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import table
from onerec_jax.stages import counted_transitions
from onerec_jax.stages import pretrain
from onerec_jax.stages import sequential
from onerec_jax.stages import training_setup
from onerec_jax.stages import user_pathways
from onerec_jax.train import checkpoints
from onerec_jax.train import contract


class Trained(NamedTuple):
  """A model and the catalogue it speaks of, placed on `mesh`."""

  # The settings it was trained with; their `architecture` says what it is.
  experiment: config.Experiment
  model: Any  # onerec.OneRec or model.sequential.SequenceModel
  params: Any
  router_bias: Any  # f32 [layers, E]; None: an item-level baseline
  # Where `tokenize` has not run, as item-level baselines allow: every item is
  # its own ID.
  ids: table.SemanticIds
  catalogue: batch_lib.Catalogue  # on the mesh
  trie: prefix_trie.PrefixTrie
  attributes: sequence_model.ItemAttributes | None  # fdsa only
  # Where evaluate.decoding has counts take part in lists.
  transitions: transitions_lib.Transitions | None
  contexts: examples.Contexts | None  # what it reads of users; pathways only
  # Items that may be recommended, bool [num_items]; None: all.
  allowed: jax.Array | None
  mesh: Mesh
  step: int
  differences: list[str]  # settings that changed since it was trained


class Answers(NamedTuple):
  """Ranked items of the users of one whole batch, as NumPy arrays."""

  items: np.ndarray  # int [B, K]; -1 fills
  scores: np.ndarray  # float [B, K]; log-probability, nats
  # float [B, L]; of the code given its prefix, nats; item-level baselines
  # have no codes: [B, 0]
  entropy: np.ndarray
  generated: np.ndarray  # int [B]; hypotheses, or items that were ranked
  legal: np.ndarray  # int [B]; of these, the ones that are items


def load(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  *,
  which: Literal['best', 'latest'],
  folder: epath.Path | None = None,
  parameter_dtype: Literal['float32', 'bfloat16'] = 'float32',
) -> Trained:
  """Restores the checkpoint and everything needed to decode.

  The model is built from the settings stored in the checkpoint; where those
  of `experiment` differ, the differences are logged.

  Args:
    experiment: present settings.
    workdir: of the run.
    which: checkpoint to take.
    folder: of the training; None: that of the stage `pretrain`.
    parameter_dtype: of the parameters in memory; training needs 'float32'.

  Raises:
    FileNotFoundError: a stage has not run; says which.
    contract.Mismatch: the semantic IDs are not those of the training.
    ValueError: a baseline was trained on another catalogue.
  """
  if experiment.architecture == 'onerec':
    ids = pretrain.read_semantic_ids(workdir)
  else:
    ids = _ids_if_any(workdir)
  stages = [pretrain.STAGE]
  if folder is None:
    folder = workdir.folder(pretrain.STAGE)
  else:  # what it was trained with besides
    stages += ['reward', 'preference', 'align', 'p_score', 'reinforce']
  mesh = make_mesh(experiment.mesh)
  restored = checkpoints.restore_for_evaluation(
    folder, which=which, mesh=mesh, dtype=parameter_dtype
  )
  used = restored.experiment or experiment
  where = f'{folder / checkpoints.FOLDER / str(restored.step)}'
  pathways = user_pathways.read(used, workdir)
  if used.architecture == 'onerec':
    contract.check_semantic_ids(restored.ids_digest, ids.digest(), where)
    model = pretrain.make_model(used, ids, mesh, pathways)
    attributes = None
    settings = ('embed', 'tokenizer', 'model')
  else:
    catalogue = sequential.read_catalogue(used, workdir)
    model = sequential.make_model(used, catalogue, mesh)
    attributes = catalogue.attributes
    sequential.check_fits(model, restored.params, where)
    settings = ('sequential',)
  differences = [
    line
    for line in contract.differences(
      config.to_dict(used), config.to_dict(experiment)
    )
    if line.startswith(('architecture', 'data', *settings, *stages))
  ]
  for line in differences:
    logging.warning('differs from the training, which counts: %s', line)
  place = whole_on(mesh)
  return Trained(
    experiment=used,
    model=model,
    params=restored.params,
    router_bias=restored.model_state,
    ids=ids,
    catalogue=pretrain.make_catalogue(ids, mesh, pathways),
    trie=place(
      prefix_trie.PrefixTrie.build(
        ids.codes, ids.codes_per_level, rank_in_bucket=ids.rank_in_bucket
      )
    ),
    attributes=place(attributes),
    transitions=counted_transitions.read(
      experiment.evaluate.decoding, workdir, mesh
    ),
    contexts=None if pathways is None else pathways.contexts,
    allowed=None,
    mesh=mesh,
    step=restored.step,
    differences=differences,
  )


def _ids_if_any(workdir: workdir_lib.Workdir) -> table.SemanticIds:
  """Returns the semantic IDs, or one code per item where there are none."""
  if (workdir.tokenizer / 'semantic_ids.parquet').exists():
    return pretrain.read_semantic_ids(workdir)
  num_items = catalog.num_items(workdir.data)
  return table.SemanticIds(
    np.arange(num_items, dtype=np.int32)[:, None],
    (num_items,),
    np.zeros(num_items, np.int32),
  )


def whole_on(mesh: Mesh) -> Callable[[Any], Any]:
  """Returns what puts a tree of arrays whole onto every device."""
  whole = sharding.replicated(mesh)
  return functools.partial(jax.tree.map, lambda x: sharding.place(x, whole))


def check_model(
  trained: Trained, experiment: config.Experiment, purpose: str
) -> None:
  """Raises unless a training can start from `trained`.

  Raises:
    contract.Mismatch: the configured model is not the trained one.
    ValueError: the devices do not make the configured mesh, for which `load`
      takes another one.
  """
  meshes.sizes_of(experiment.mesh, jax.device_count())
  changed = contract.differences(
    config.to_dict(trained.experiment.model),
    config.to_dict(experiment.model),
    'model',
  )
  # What is not a matter of shapes and probabilities may change.
  if [c for c in changed if not c.startswith('model.dropout_rate')]:
    raise contract.Mismatch(
      f'The model of step {trained.step} was trained with other settings and'
      f' cannot be {purpose} (checkpoint -> now):\n  '
      + '\n  '.join(changed)
      + '\nUndo the changes, or pre-train again in a new --workdir.'
    )


def make_setup(
  trained: Trained,
  *,
  stage: str,
  experiment: config.Experiment,
  train: config.TrainConfig,
) -> training_setup.Setup:
  """Returns step 0 of a training of OneRec that starts from a trained one."""
  return training_setup.make_setup(
    stage=stage,
    experiment=experiment,
    train=train,
    mesh=trained.mesh,
    names=parameters.logical_names(onerec.abstract_params(trained.model)),
    params=jax.tree.map(np.asarray, sharding.gather(trained.params)),
    model_state=np.asarray(sharding.gather(trained.router_bias)),
    semantic_ids=trained.ids.digest(),
  )


def make_mesh(wanted: config.MeshConfig) -> Mesh:
  """Returns the configured mesh, or all devices as data where it cannot be."""
  try:
    return meshes.make_mesh(wanted)
  except ValueError as error:
    logging.info('%s Evaluating on all %d devices.', error, jax.device_count())
    return meshes.make_mesh(config.MeshConfig())


# --- Teacher forcing --------------------------------------------------------


def teacher_forced(
  trained: Trained, batches: Iterable[batch_lib.SessionBatch]
) -> dict[str, float]:
  """Returns loss and accuracies given the true items and codes before.

  Args:
    trained: from `load`.
    batches: NumPy, with targets; this process's rows of each.

  Returns:
    OneRec: 'token_loss' (nats) and 'accuracy/level_l' per code; baselines:
    'item_loss' (nats) and 'accuracy' per target item.
  """
  objective = _objective(trained)
  frozen: Any = {'attributes': trained.attributes}
  if trained.experiment.architecture == 'onerec':
    frozen = onerec_objective.make_frozen(
      trained.model, trained.catalogue, trained.trie
    )

  @jax.jit
  def step(params: Any, state: Any, frozen: Any, batch: Any):
    return objective(params, state, frozen, batch, None).metrics

  total: dict[str, batch_lib.Mean] = {}
  for batch in batches:
    placed = sharding.place_batch(batch, trained.mesh)
    found = sharding.gather(
      step(trained.params, trained.router_bias, frozen, placed)
    )
    for name, value in found.items():
      if np.ndim(value.total) == 0:
        total[name] = total[name] + value if name in total else value
  return {
    name: float(value.total) / max(float(value.count), 1e-9)
    for name, value in total.items()
    if name in ('token_loss', 'item_loss') or name.startswith('accuracy')
  }


def _objective(trained: Trained) -> base.Objective:
  train = trained.experiment.pretrain
  if trained.experiment.architecture == 'onerec':
    return onerec_objective.make_objective(trained.model, train)
  return sequential_objective.make_objective(trained.model, train)


# --- Ranking ----------------------------------------------------------------


class Recommender:
  """Answers batches of users; compiled once for one shape of batch."""

  def __init__(
    self,
    trained: Trained,
    settings: config.DecodingConfig,
    *,
    top_k: int,
    batch_size: int,
    max_excluded: int,
  ):
    """Prepares decoding.

    Args:
      trained: from `load`.
      settings: beams, constraint, exclusions, weight of counts; of these,
        baselines know the last two.
      top_k: items per user (K).
      batch_size: rows wanted per call.
      max_excluded: most items that any user will exclude.
    """
    self._trained = trained
    self._is_baseline = trained.experiment.architecture != 'onerec'
    make = decoding.make_recommender
    if self._is_baseline:
      make = catalogue_ranking.make_ranker
    self._function = make(trained.model, settings, top_k=top_k)
    shards = trained.mesh.size
    # Of all processes.  Every device gets the same number of rows.
    self.batch_size = -(-batch_size // shards) * shards
    self._excluded = decoding.exclusion_width(max_excluded)

  def __call__(
    self, batch: batch_lib.SessionBatch, seen: Sequence[np.ndarray]
  ) -> Answers:
    """Returns the lists of a batch, filler rows included.

    Args:
      batch: users, this process's rows of `batch_size`.
      seen: items each of these rows must not get again, oldest first; they
        count only if decoding.exclude_history.
    """
    excluded = decoding.exclusion_array(seen, width=self._excluded)
    t = self._trained
    placed, excluded = sharding.place_batch((batch, excluded), t.mesh)
    if self._is_baseline:
      return self._rank(placed, excluded)
    result = sharding.gather(
      self._function(
        t.params,
        t.router_bias,
        t.catalogue,
        t.trie,
        placed,
        excluded,
        t.transitions,
        t.allowed,
      )
    )
    return Answers(
      items=np.asarray(result.items, np.int64),
      scores=np.asarray(result.scores, np.float64),
      entropy=np.asarray(result.hypotheses.entropy, np.float64),
      generated=np.asarray(result.generated),
      legal=np.asarray(result.legal),
    )

  def _rank(self, placed: Any, excluded: Any) -> Answers:
    t = self._trained
    result = sharding.gather(
      self._function(
        t.params, t.attributes, placed, excluded, t.transitions, t.allowed
      )
    )
    listed = np.asarray(result.valid).sum(axis=1)
    return Answers(
      items=np.asarray(result.items, np.int64),
      scores=np.asarray(result.scores, np.float64),
      entropy=np.zeros((len(listed), 0)),
      generated=listed,
      legal=listed,
    )
