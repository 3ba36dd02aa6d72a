"""The compiled functions of training and decoding, from the experiment alone.

They are the very functions that the stages run, given shapes in place of
arrays.  Reads no data, and neither trains nor decodes.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import sharding
from onerec_jax.aot import assumed
from onerec_jax.aot import modes
from onerec_jax.data import group_batches
from onerec_jax.data import preference_pairs
from onerec_jax.decoding import recommend
from onerec_jax.model import flops
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import align
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain
from onerec_jax.objectives import reinforce
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib


class Program(NamedTuple):
  """A jitted function and the shapes it is compiled for."""

  function: Any
  arguments: tuple[Any, ...]
  num_parameters: int
  model_flops: float  # of one call, all devices
  sizes: Mapping[str, int]  # what the arguments were made of, for the report


def build(
  experiment: config_lib.Experiment, mesh: Mesh, *, mode: str, num_items: int
) -> Program:
  """Returns the program of a mode.

    train   a step of the stage `pretrain`
    dpo     a step of `align`, with the pairs of its sample_share
    ecpo    a step of `reinforce`, with the groups of its user_share
    decode  beam search of one evaluation batch, evaluate.decoding

  Histories are as long as the settings allow.

  Args:
    experiment: all settings.
    mesh: devices of a topology, or real ones.
    mode: one of `modes.MODES`.
    num_items: assumed size of the catalogue.

  Raises:
    ValueError: the mode is unknown, or the settings do not fit together.
  """
  if mode not in modes.MODES:
    known = ', '.join(modes.MODES)
    raise ValueError(f'--mode={mode} is not one of {known}.')
  if experiment.architecture != 'onerec':
    raise ValueError(
      f'aot compiles OneRec; architecture={experiment.architecture!r} is an'
      ' item-level baseline, which needs no pod.'
    )
  if num_items < 1:
    raise ValueError(f'--num_items={num_items} must be at least 1.')
  builder = _Builder(experiment, mesh, num_items)
  makers: Mapping[modes.Mode, Callable[[], Program]] = {
    'train': builder.train,
    'dpo': builder.dpo,
    'ecpo': builder.ecpo,
    'decode': builder.decode,
  }
  return makers[mode]()


class _Builder:
  """What all modes share."""

  def __init__(
    self, experiment: config_lib.Experiment, mesh: Mesh, num_items: int
  ):
    e = experiment
    self._experiment = e
    self._mesh = mesh
    self._num_items = num_items
    self._whole = sharding.replicated(mesh)
    self._users = assumed.Users(e, sharding.batch_sharding(mesh))
    self._codes = assumed.codes_per_level(e.tokenizer)
    sizes = None
    if e.model.encoder == 'pathways':
      sizes = assumed.feature_sizes(e.model.pathways, num_items)
    self._model = onerec.OneRec(
      config=e.model,
      vocabulary=vocabulary_lib.Vocabulary(self._codes, e.model.user_buckets),
      items_per_session=e.data.sessions.items_per_session,
      dropout_bits=e.pretrain.dropout_bits,
      mesh=mesh,
      sizes=sizes,
    )
    boxes = onerec.abstract_params(self._model)
    self._names = parameters.logical_names(boxes)
    shapes = parameters.shapes(boxes)
    self._params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      sharding.parameter_shardings(mesh, self._names, shapes),
    )
    bias = onerec.initial_router_bias(e.model)
    self._bias = jax.ShapeDtypeStruct(
      bias.shape, bias.dtype, sharding=self._whole
    )
    self._catalogue = assumed.catalogue(
      e.model,
      levels=len(self._codes),
      num_items=num_items,
      sharding=self._whole,
    )

  # --- Modes ---

  def train(self) -> Program:
    e = self._experiment
    return self._step(
      'pretrain',
      e.pretrain,
      pretrain.make_objective(self._model, e.pretrain),
      {'catalogue': self._catalogue},
      self._sessions('pretrain', e.pretrain),
    )

  def dpo(self) -> Program:
    e, preference = self._experiment, self._experiment.preference
    samples = e.align.num_steps * e.align.batch_size
    rows = preference_pairs.rows_per_step(
      max(round(preference.sample_share * samples), 1),
      num_steps=e.align.num_steps,
      multiple=self._mesh.size,
    )
    continued = preference.rollout.continue_items
    items = preference.rollout.num_items
    candidates = 1 + preference.num_rejected
    batch = batch_lib.PreferenceBatch(
      session=self._sessions('align', e.align),
      pairs=self._users.pairs(
        rows, candidates=candidates, items=items, continued=continued
      ),
    )
    scored = rows * flops.score_flops(
      e.model,
      self._model.vocabulary,
      history_items=e.data.history_length,
      items_per_session=continued + items,
      num_sessions=candidates,
    )
    return self._step(
      'align',
      e.align,
      align.make_objective(self._model, e.align, preference),
      {'catalogue': self._catalogue, 'reference_bias': self._bias},
      batch,
      scored=scored,
      sizes={'pairs': rows, 'candidates': candidates},
    )

  def ecpo(self) -> Program:
    e, settings = self._experiment, self._experiment.reinforcement
    plan = group_batches.GroupPlan(
      1,  # examples: says which users, not how many
      batch_size=e.reinforce.batch_size,
      user_share=settings.user_share,
      seed=e.seed,
    )
    rows = plan.padded_rows(self._mesh.size)
    batch = batch_lib.ReinforceBatch(
      session=self._sessions('reinforce', e.reinforce),
      groups=self._users.groups(
        rows, group_size=settings.group_size, levels=len(self._codes)
      ),
    )
    scored = rows * flops.score_flops(
      e.model,
      self._model.vocabulary,
      history_items=e.data.history_length,
      items_per_session=1,
      num_sessions=settings.group_size,
    )
    return self._step(
      'reinforce',
      e.reinforce,
      reinforce.make_objective(self._model, e.reinforce, settings),
      {'catalogue': self._catalogue},
      batch,
      scored=scored,
      sizes={'groups': rows, 'group_size': settings.group_size},
    )

  def decode(self) -> Program:
    e, settings = self._experiment, self._experiment.evaluate
    decoding = settings.decoding
    rows = settings.batch_size
    sharding.check_batch_size(self._mesh, rows, 'evaluate.batch_size')
    top_k = max(settings.top_k)
    # Users have seen what the encoder reads; longer lists cost next to nothing.
    excluded = recommend.exclusion_width(e.data.history_length)
    arguments = (
      self._params,
      self._bias,
      self._catalogue,
      assumed.trie(
        self._codes, num_items=self._num_items, sharding=self._whole
      ),
      self._users.sessions(
        rows,
        items=e.data.sessions.items_per_session,
        continued=decoding.continue_items,
      ),
      self._users.array(rows, excluded),
    )
    if decoding.transition_weight:
      arguments += (
        assumed.transitions(num_items=self._num_items, sharding=self._whole),
      )
    return Program(
      function=recommend.make_recommender(self._model, decoding, top_k=top_k),
      arguments=arguments,
      num_parameters=parameters.count(self._params),
      model_flops=rows
      * flops.decode_flops(
        e.model,
        self._model.vocabulary,
        history_items=e.data.history_length,
        num_beams=decoding.num_beams,
        num_items=decoding.num_items,
        continue_items=decoding.continue_items,
      ),
      sizes=self._lengths(rows)
      | {'beams': decoding.num_beams, 'generated_items': decoding.num_items},
    )

  # --- Parts ---

  def _sessions(
    self, stage: str, train: config_lib.TrainConfig
  ) -> batch_lib.SessionBatch:
    """Returns the samples for next-token prediction."""
    sharding.check_batch_size(
      self._mesh, train.batch_size, f'{stage}.batch_size'
    )
    return self._users.sessions(
      train.batch_size,
      items=self._experiment.data.sessions.items_per_session,
    )

  def _step(
    self,
    stage: str,
    train: config_lib.TrainConfig,
    objective: base.Objective,
    frozen: Any,
    batch: Any,
    *,
    scored: float = 0.0,
    sizes: Mapping[str, int] | None = None,
  ) -> Program:
    """Returns a training step, as loop.train compiles it.

    Args:
      stage: its name.
      train: its settings.
      objective: its loss.
      frozen: what the objective reads beside.
      batch: of one step.
      scored: FLOPs of forward passes beside next-token prediction.
      sizes: for the report.
    """
    e = self._experiment
    optimizer = optimizer_lib.make_optimizer(
      train.optimizer,
      num_steps=train.num_steps,
      decay=optimizer_lib.decay_mask(self._names),
    )
    state = state_lib.abstract(
      self._params,
      self._bias,
      optimizer.transformation,
      ema=train.ema_decay is not None,
      mesh=self._mesh,
    )
    update = step_lib.make_update(
      objective, optimizer, seed=e.seed, ema_decay=train.ema_decay
    )
    totals = step_lib.abstract_totals(update, state, frozen, batch)
    totals = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole),
      totals,
    )
    function = step_lib.make_train_step(
      update, shardings=state_lib.shardings_of(state), mesh=self._mesh
    )
    trained = flops.train_flops(
      e.model,
      self._model.vocabulary,
      history_items=e.data.history_length,
      items_per_session=e.data.sessions.items_per_session,
    )
    return Program(
      function=function,
      arguments=(state, totals, frozen, batch),
      num_parameters=parameters.count(self._params),
      model_flops=train.batch_size * trained + 3 * scored,
      sizes=self._lengths(train.batch_size) | dict(sizes or {}),
    )

  def _lengths(self, rows: int) -> dict[str, int]:
    e = self._experiment
    return {
      'batch_size': rows,
      'history_items': e.data.history_length,
      'encoder_tokens': flops.encoder_tokens(
        e.model,
        self._model.vocabulary,
        history_items=e.data.history_length,
      ),
      'num_items': self._num_items,
    }


def argument_bytes(arguments: Any) -> int:
  """Returns the bytes of a program's arguments on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(arguments)
  )
