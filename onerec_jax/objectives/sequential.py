"""Next-item and masked-item prediction of SASRec, BERT4Rec and FDSA.

Glue between model, loss and batch; says which places of a sequence are
predicted, and from what.
"""

import functools
from typing import Any
from typing import NamedTuple
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Int
from jaxtyping import PRNGKeyArray

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.losses import catalogue
from onerec_jax.model import layers
from onerec_jax.model import sequential
from onerec_jax.objectives import base

# Share of the training sequences in which nothing but the last item is
# hidden: BERT4Rec's published code adds one such copy to ten random ones.
_LAST_ONLY_SHARE = 1 / 11


class Frozen(TypedDict):
  """Arrays that the objective reads and never changes."""

  attributes: sequential.ItemAttributes | None  # fdsa only


class Task(NamedTuple):
  """What the model reads of a batch, and what it has to say about it."""

  items: Int[Array, 'B T']
  mask: Bool[Array, 'B T']
  hidden: Bool[Array, 'B T'] | None  # None: a causal model
  labels: Int[Array, 'B T']  # the item that the state of a place predicts
  predicted: Bool[Array, 'B T']  # True: the place carries a loss
  is_target: Bool[Array, 'B T']  # the label is one of the batch's targets


# --- What is predicted ------------------------------------------------------


def next_item_task(
  sequences: sequential.ItemSequences, *, predict_history: bool
) -> Task:
  """Returns the prediction of every item from all items before it.

  The first item of a sequence has nothing before it and is not predicted.

  Args:
    sequences: history and targets.
    predict_history: False: only targets are predicted.
  """
  chosen = sequences.mask if predict_history else sequences.is_target
  return Task(
    items=sequences.items[:, :-1],
    mask=sequences.mask[:, :-1],
    hidden=None,
    labels=sequences.items[:, 1:],
    predicted=sequences.mask[:, :-1] & chosen[:, 1:],
    is_target=sequences.is_target[:, 1:],
  )


def masked_item_task(
  sequences: sequential.ItemSequences,
  *,
  mask_share: float,
  predict_history: bool,
  key: PRNGKeyArray,
) -> Task:
  """Returns the prediction of hidden items from all others.

  Every item is hidden with probability `mask_share`; in one of 11 sequences,
  and where chance hides none, it is the last item alone, as in a
  recommendation.

  Args:
    sequences: history and targets.
    mask_share: in (0, 1).
    predict_history: False: only targets are hidden.
    key: used once.
  Reference: Sun et al. 2019, arXiv:1904.06690, section 3.6.
  """
  for_places, for_rows = jax.random.split(key)
  chosen = sequences.mask if predict_history else sequences.is_target
  shape = sequences.items.shape
  hidden = chosen & jax.random.bernoulli(for_places, mask_share, shape)
  last_only = jax.random.bernoulli(for_rows, _LAST_ONLY_SHARE, shape[:1])
  last_only |= ~jnp.any(hidden, axis=1)
  last = jnp.arange(shape[1])[None] == shape[1] - 1
  hidden = jnp.where(last_only[:, None], chosen & last, hidden)
  return Task(
    items=sequences.items,
    mask=sequences.mask,
    hidden=hidden,
    labels=sequences.items,
    predicted=hidden,
    is_target=sequences.is_target,
  )


def first_target_task(batch: batch_lib.SessionBatch) -> Task:
  """Returns the prediction of the first target from the history alone.

  Args:
    batch: masks include the example mask.
  """
  sequences = sequential.join_right(
    batch.history_items,
    batch.history_mask,
    batch.target_items[:, :1],
    batch.target_mask[:, :1],
  )
  return Task(
    items=sequences.items,
    mask=sequences.mask,
    hidden=sequences.is_target,
    labels=sequences.items,
    predicted=sequences.is_target,
    is_target=sequences.is_target,
  )


# --- The objective ----------------------------------------------------------


def make_objective(
  model: sequential.SequenceModel, train: config.TrainConfig
) -> base.Objective:
  """Returns the training objective of an item-level baseline.

    sum:  mean over examples of Σ of the losses of its predicted places
    mean: mean over all predicted places of the batch

  'softmax' is the cross-entropy over the whole catalogue, 'bce' the binary
  one against items drawn uniformly.  Training predicts history and targets
  (config predict_history) or targets; evaluation (no key) predicts targets:
  sasrec and fdsa all of them, each from the true items before it, bert4rec
  the first one, from the history.

  Metrics: 'item_loss' (nats per predicted place), 'accuracy' (share of the
  predicted targets that no other item outscores; not in training with bce,
  which never scores the catalogue) and 'padding_share'.

  Args:
    model: the model; its parameters are the objective's.
    train: reduction, label smoothing.

  Raises:
    ValueError: settings that contradict each other.
  """
  settings = model.config
  if settings.loss == 'bce' and train.label_smoothing:
    raise ValueError(
      f'label_smoothing={train.label_smoothing} has no meaning with'
      " sequential.loss='bce': set it to 0, or sequential.loss='softmax'."
    )
  if settings.loss == 'bce' and model.num_items < 2:
    raise ValueError(
      "sequential.loss='bce' needs an item that is not the positive one, but"
      f' the catalogue has {model.num_items}.'
    )
  if not 0 < settings.mask_share < 1:
    raise ValueError(
      f'sequential.mask_share={settings.mask_share} must lie in (0, 1).'
    )

  def objective(
    params: Any,
    model_state: Any,
    frozen: Frozen,
    batch: batch_lib.SessionBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    training = key is not None
    key = jax.random.key(0) if key is None else key
    for_dropout, for_task, for_negatives = jax.random.split(key, 3)
    batch = _without_fillers(batch)
    task = _task(model, batch, for_task if training else None)
    output = model.apply(
      {'params': params},
      task.items,
      task.mask,
      task.hidden,
      frozen['attributes'],
      deterministic=not training,
      rngs={'dropout': for_dropout} if training else None,
    )
    assert isinstance(output, sequential.SequenceOutput)
    scored_target = task.predicted & task.is_target
    if settings.loss == 'softmax':
      losses, hits = _over_catalogue(
        model,
        output,
        task.labels,
        task.predicted,
        label_smoothing=train.label_smoothing,
      )
    else:
      losses = _against_negatives(model, output, task.labels, for_negatives)
      if training:
        hits = scored_target = jnp.zeros_like(task.predicted)
      else:
        hits = _over_catalogue(model, output, task.labels, scored_target)[1]
    item_loss = base.mean_of(losses, task.predicted)
    counted = jnp.any(task.predicted, axis=1)
    loss = item_loss
    if train.ntp_reduction == 'sum':
      kept = jnp.where(task.predicted, losses, 0)
      loss = base.mean_of(jnp.sum(kept, axis=1), counted)
    metrics = {
      'item_loss': item_loss,
      'accuracy': base.mean_of(hits, scored_target),
      'padding_share': base.mean_of(
        ~batch.history_mask, jnp.ones_like(batch.history_mask)
      ),
    }
    counts = {
      'examples': jnp.sum(counted, dtype=jnp.float32),
      'tokens': item_loss.count,
    }
    return base.LossOutput(loss, metrics, model_state, counts)

  return objective


def _without_fillers(batch: batch_lib.SessionBatch) -> batch_lib.SessionBatch:
  """Returns the batch with everything masked in filler rows."""
  real = batch.example_mask[:, None]
  return batch_lib.SessionBatch(
    example_id=batch.example_id,
    user=batch.user,
    history_items=batch.history_items,
    history_mask=batch.history_mask & real,
    target_items=batch.target_items,
    target_mask=batch.target_mask & real,
    example_mask=batch.example_mask,
  )


def _task(
  model: sequential.SequenceModel,
  batch: batch_lib.SessionBatch,
  key: PRNGKeyArray | None,
) -> Task:
  """Returns what is predicted; a key of None means evaluation."""
  settings = model.config
  if model.kind == 'bert4rec' and key is None:
    return first_target_task(batch)
  sequences = sequential.join_right(
    batch.history_items,
    batch.history_mask,
    batch.target_items,
    batch.target_mask,
  )
  if model.kind == 'bert4rec':
    assert key is not None
    return masked_item_task(
      sequences,
      mask_share=settings.mask_share,
      predict_history=settings.predict_history,
      key=key,
    )
  predict_history = settings.predict_history and key is not None
  return next_item_task(sequences, predict_history=predict_history)


def _over_catalogue(
  model: sequential.SequenceModel,
  output: sequential.SequenceOutput,
  labels: Int[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns cross-entropy and hit of the masked-in places. [B, T] each"""
  shards = 1 if model.mesh is None else model.mesh.size
  result = catalogue.softmax_loss(
    output.states.reshape(-1, output.states.shape[-1]),
    output.table,
    output.bias,
    labels.reshape(-1),
    mask.reshape(-1),
    chunk_size=catalogue.rows_at_once(model.num_items, devices=shards),
    label_smoothing=label_smoothing,
    spread=functools.partial(layers.shard_batch, mesh=model.mesh),
  )
  return result.loss.reshape(labels.shape), result.hit.reshape(labels.shape)


def _against_negatives(
  model: sequential.SequenceModel,
  output: sequential.SequenceOutput,
  labels: Int[Array, 'B T'],
  key: PRNGKeyArray,
) -> jax.Array:
  """Returns the binary loss of every place, padding included. [B, T]"""
  negatives = catalogue.draw_negatives(
    labels,
    num_items=model.num_items,
    num_negatives=model.config.num_negatives,
    key=key,
  )
  positive = jnp.einsum('btd,btd->bt', output.states, output.table[labels])
  negative = jnp.einsum('btd,btnd->btn', output.states, output.table[negatives])
  return catalogue.binary_loss(
    positive + output.bias[labels], negative + output.bias[negatives]
  )
