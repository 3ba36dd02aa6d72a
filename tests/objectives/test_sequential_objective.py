"""What the item-level baselines predict, and its loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import parameters
from onerec_jax.model import sequential as model_lib
from onerec_jax.objectives import sequential

_ITEMS, _ATTRIBUTES = 12, 4
_KINDS = ('sasrec', 'bert4rec', 'fdsa')
_CONFIG = config.SequentialConfig(
  embed_dim=8, num_heads=2, num_layers=1, mlp_dim=8, dropout_rate=0.0
)


def _batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  lengths = np.array([3, 1, 0, 2, 3, 0, 1, 2])[:rows, None]
  targets = np.array([2, 1, 2, 0, 2, 1, 2, 1])[:rows, None]
  return batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.zeros(rows, np.int32),
    history_items=rng.integers(0, _ITEMS, (rows, 3), np.int32),
    history_mask=np.arange(3)[None] < lengths,
    target_items=rng.integers(0, _ITEMS, (rows, 2), np.int32),
    target_mask=np.arange(2)[None] < targets,
    example_mask=np.ones(rows, bool),
  )


def _sequences(batch):
  """The items of each row, history first, and how many are targets."""
  return [
    (
      [*h[hm].tolist(), *t[tm].tolist()],
      int(tm.sum()),
    )
    for h, hm, t, tm in zip(
      batch.history_items,
      batch.history_mask,
      batch.target_items,
      batch.target_mask,
      strict=True,
    )
  ]


@functools.cache
def _setup(kind, mesh=None, **changes):
  """(model, params, frozen)"""
  model = model_lib.SequenceModel(
    kind,
    dataclasses.replace(_CONFIG, **changes),
    num_items=_ITEMS,
    max_length=5,
    num_attributes=_ATTRIBUTES,
    mesh=mesh,
  )
  params = parameters.materialize(model_lib.abstract_params(model), seed=0)
  params['table'] = params['table'] * 20  # predictions that differ
  attributes = None
  if kind == 'fdsa':
    ids = np.arange(2 * _ITEMS).reshape(_ITEMS, 2) % _ATTRIBUTES
    attributes = model_lib.ItemAttributes(
      jnp.asarray(ids, jnp.int32), jnp.asarray(ids > 0)
    )
  return model, params, {'attributes': attributes}


@functools.cache
def _compiled(kind, reduction, smoothing, training, changes, mesh=None):
  model, _, frozen = _setup(kind, mesh, **dict(changes))
  objective = sequential.make_objective(
    model,
    config.TrainConfig(ntp_reduction=reduction, label_smoothing=smoothing),
  )

  def loss(params, frozen, batch, key):
    output = objective(params, None, frozen, batch, key if training else None)
    return output.loss.value(), output

  del frozen
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _evaluate(
  kind,
  batch,
  *,
  reduction='mean',
  smoothing=0.0,
  training=True,
  key=0,
  **changes,
):
  call = _compiled(
    kind, reduction, smoothing, training, tuple(sorted(changes.items()))
  )
  _, params, frozen = _setup(kind, **changes)
  (_, output), gradients = call(params, frozen, batch, jax.random.key(key))
  return jax.device_get((output, gradients))


# --- What is predicted ------------------------------------------------------

_JOINED = model_lib.ItemSequences(
  items=jnp.array([[0, 3, 4, 1, 2], [0, 0, 0, 0, 8], [0, 0, 0, 0, 0]]),
  mask=jnp.array([[0, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0] * 5], bool),
  is_target=jnp.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0] * 5], bool),
)


@pytest.mark.parametrize(
  ('predict_history', 'expected'),
  # 3 -> 4, 4 -> 1, 1 -> 2; 8 has nothing before it.
  [(True, [[0, 1, 1, 1], [0] * 4, [0] * 4]),
   (False, [[0, 0, 1, 1], [0] * 4, [0] * 4])],
)  # fmt: skip
def test_every_item_is_predicted_from_those_before(predict_history, expected):
  task = sequential.next_item_task(_JOINED, predict_history=predict_history)
  np.testing.assert_array_equal(task.predicted.astype(int), expected)
  np.testing.assert_array_equal(task.items[0], [0, 3, 4, 1])
  np.testing.assert_array_equal(task.labels[0], [3, 4, 1, 2])
  np.testing.assert_array_equal(task.mask[1], [False] * 4)
  np.testing.assert_array_equal(task.is_target[0], [0, 0, 1, 1])


def _mask(sequences, *, share, key=0, predict_history=True):
  task = sequential.masked_item_task(
    sequences,
    mask_share=share,
    predict_history=predict_history,
    key=jax.random.key(key),
  )
  np.testing.assert_array_equal(task.predicted, task.hidden)
  np.testing.assert_array_equal(task.items, sequences.items)
  return np.asarray(task.hidden)


def _repeated(rows):
  """The first of `_JOINED`, many times."""
  return jax.tree.map(lambda x: jnp.repeat(x[:1], rows, axis=0), _JOINED)


def test_hidden_items_are_real_and_at_least_one_of_each_sequence():
  hidden = np.concatenate([_mask(_JOINED, share=0.3, key=k) for k in range(20)])
  np.testing.assert_array_equal(hidden & ~np.tile(_JOINED.mask, (20, 1)), False)
  np.testing.assert_array_equal(
    hidden.any(axis=1), np.tile([True, True, False], 20)
  )


def test_the_last_item_alone_is_hidden_as_often_as_stated():
  hidden = _mask(_repeated(20000), share=0.5)
  only_last = hidden[:, -1] & (hidden.sum(axis=1) == 1)
  # 1/11, and of the other 10/11 those where chance takes the last alone or
  # none: 2 of 16 outcomes.  The standard deviation is 0.003.
  assert only_last.mean() == pytest.approx(1 / 11 + 10 / 11 * 2 / 16, abs=0.012)
  # Any other item: half of 10/11.
  assert hidden[:, 1].mean() == pytest.approx(0.5 * 10 / 11, abs=0.014)


def test_without_history_only_targets_are_hidden():
  hidden = _mask(_repeated(200), share=0.5, predict_history=False)
  assert not hidden[:, :3].any()
  assert hidden[:, 3:].any(axis=1).all()


def test_evaluation_hides_the_first_target_behind_the_history():
  batch = _batch()
  task = jax.jit(sequential.first_target_task)(batch)
  for row, (items, targets) in enumerate(_sequences(batch)):
    kept = items[: len(items) - max(targets - 1, 0)]
    assert np.asarray(task.items[row])[task.mask[row]].tolist() == kept
    assert task.hidden[row].tolist() == [False] * 3 + [targets > 0]
    if targets:
      assert task.labels[row, -1] == batch.target_items[row, 0]
  np.testing.assert_array_equal(task.predicted, task.hidden)


# --- The loss ---------------------------------------------------------------


def _expected_losses(kind, batch, *, predict_history, smoothing=0.0):
  """Independent: one row after the other, softmax in NumPy.

  Returns:
    per row the losses, and whether the label is a target and is hit.
  """
  model, params, frozen = _setup(kind)
  apply = jax.jit(functools.partial(model.apply, deterministic=True))
  result = []
  for items, targets in _sequences(batch):
    losses = []
    width = 4
    row = np.zeros((1, width), np.int32)
    inputs = items[:-1]
    row[0, width - len(inputs) :] = inputs
    mask = np.arange(width)[None] >= width - len(inputs)
    output = apply(
      {'params': params},
      jnp.asarray(row),
      jnp.asarray(mask),
      None,
      frozen['attributes'],
    )
    scores = np.asarray(output.states[0], np.float64) @ params['table'].T
    for place in range(1, len(items)):
      is_target = place >= len(items) - targets
      if not (is_target or predict_history):
        continue
      s = scores[width - len(inputs) + place - 1]
      log_probs = s - np.log(np.exp(s).sum())
      loss = -(1 - smoothing) * log_probs[items[place]]
      loss -= smoothing * log_probs.mean()
      losses.append((loss, is_target, s.argmax() == items[place]))
    result.append(losses)
  return result


@pytest.mark.parametrize('kind', ['sasrec', 'fdsa'])
@pytest.mark.parametrize('predict_history', [True, False])
def test_mean_loss_and_accuracy_equal_numpy(kind, predict_history):
  batch = _batch()
  rows = _expected_losses(kind, batch, predict_history=predict_history)
  flat = [entry for row in rows for entry in row]
  output, _ = _evaluate(kind, batch, predict_history=predict_history)
  expected = sum(loss for loss, _, _ in flat)
  np.testing.assert_allclose(output.loss.total, expected, rtol=1e-4)
  assert output.loss.count == len(flat)
  assert output.metrics['item_loss'] == output.loss
  accuracy = output.metrics['accuracy']
  assert accuracy.count == sum(is_target for _, is_target, _ in flat)
  assert accuracy.total == sum(hit for _, is_target, hit in flat if is_target)
  assert output.counts == {
    'examples': sum(bool(row) for row in rows), 'tokens': len(flat)
  }  # fmt: skip


def test_sum_adds_places_and_averages_examples():
  batch = _batch()
  rows = _expected_losses('sasrec', batch, predict_history=True, smoothing=0.25)
  output, _ = _evaluate('sasrec', batch, reduction='sum', smoothing=0.25)
  expected = sum(loss for row in rows for loss, _, _ in row)
  np.testing.assert_allclose(output.loss.total, expected, rtol=1e-4)
  assert output.loss.count == sum(bool(row) for row in rows)


def test_evaluation_counts_targets_only():
  batch = _batch()
  training, _ = _evaluate('sasrec', batch, predict_history=False)
  evaluation, _ = _evaluate('sasrec', batch, training=False)
  np.testing.assert_allclose(
    evaluation.loss.total, training.loss.total, rtol=1e-5
  )
  assert evaluation.loss.count == training.loss.count


def test_bert4rec_scores_hidden_places_by_its_own_state():
  """The mean over a batch equals NumPy on the states of the same task."""
  batch = _batch()
  model, params, _ = _setup('bert4rec')
  output, _ = _evaluate('bert4rec', batch, training=False)
  task = sequential.first_target_task(jax.tree.map(jnp.asarray, batch))
  found = jax.jit(functools.partial(model.apply, deterministic=True))(
    {'params': params}, task.items, task.mask, task.hidden, None
  )
  scores = np.asarray(found.states[:, -1], np.float64) @ params['table'].T
  log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
  real = batch.target_mask[:, 0]
  labels = batch.target_items[:, 0]
  expected = -log_probs[np.arange(8), labels][real]
  np.testing.assert_allclose(output.loss.total, expected.sum(), rtol=1e-4)
  assert output.loss.count == real.sum()
  hits = (scores.argmax(1) == labels)[real]
  assert output.metrics['accuracy'] == (hits.sum(), real.sum())


def test_bce_counts_one_positive_and_the_negatives():
  """With 40 draws of 11 items every loss is near its expectation."""
  batch = _batch()
  model, params, _ = _setup('sasrec')
  joined = model_lib.join_right(
    *(
      jnp.asarray(x)
      for x in (
        batch.history_items,
        batch.history_mask,
        batch.target_items,
        batch.target_mask,
      )
    )
  )
  task = sequential.next_item_task(joined, predict_history=True)
  found = jax.jit(functools.partial(model.apply, deterministic=True))(
    {'params': params}, task.items, task.mask, None, None
  )
  scores = np.asarray(found.states, np.float64) @ params['table'].T
  softplus = np.logaddexp(0, scores)
  positive = np.take_along_axis(scores, np.asarray(task.labels)[..., None], -1)[
    ..., 0
  ]
  of_positive = np.logaddexp(0, positive)
  mean_negative = (softplus.sum(-1) - of_positive) / (_ITEMS - 1)
  expected = np.logaddexp(0, -positive) + 400 * mean_negative
  real = np.asarray(task.predicted)
  output, _ = _evaluate('sasrec', batch, loss='bce', num_negatives=400)
  np.testing.assert_allclose(output.loss.total, expected[real].sum(), rtol=0.03)
  assert output.loss.count == real.sum()


def test_bce_scores_the_catalogue_in_evaluation_only():
  batch = _batch()
  exact, _ = _evaluate('sasrec', batch, training=False)
  evaluation, _ = _evaluate('sasrec', batch, training=False, loss='bce')
  training, _ = _evaluate('sasrec', batch, loss='bce')
  assert evaluation.metrics['accuracy'] == exact.metrics['accuracy']
  assert training.metrics['accuracy'] == (0, 0)  # left out of the log


def test_label_smoothing_with_bce_is_refused():
  model = _setup('sasrec', loss='bce')[0]
  with pytest.raises(ValueError, match=r"sequential\.loss='softmax'"):
    sequential.make_objective(model, config.TrainConfig(label_smoothing=0.1))


# --- Edges ------------------------------------------------------------------


@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize('loss', ['softmax', 'bce'])
def test_gradients_are_finite_without_history_and_without_rows(kind, loss):
  """The batch has rows without history, and rows without targets."""
  batch = _batch()
  output, gradients = _evaluate(kind, batch, loss=loss, dropout_rate=0.4)
  assert output.loss.count > 0
  for value in jax.tree.leaves(gradients):
    assert np.isfinite(value).all()
  assert np.any(gradients['table'])
  empty = dataclasses.replace(batch, example_mask=np.zeros(8, bool))
  output, gradients = _evaluate(kind, empty, loss=loss, dropout_rate=0.4)
  assert output.loss == (0, 0)
  for value in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(value, 0)


@pytest.mark.parametrize('kind', ['sasrec', 'fdsa'])
def test_filler_rows_change_nothing(kind):
  batch = _batch()
  batch.example_mask[5:] = False  # their masks still say True
  other = _batch(seed=1)
  for field in ('history_items', 'target_items'):
    getattr(other, field)[:5] = getattr(batch, field)[:5]
  other.example_mask[5:] = False
  a, b = _evaluate(kind, batch), _evaluate(kind, other)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
  assert a[0].counts['examples'] == 5


@pytest.mark.parametrize('kind', _KINDS)
def test_eight_devices_compute_what_one_does(kind):
  """Dropout, masks and gathers do not depend on the mesh."""
  mesh = meshes.make_mesh(config.MeshConfig(data=4, fsdp=2))
  changes = {'dropout_rate': 0.4}
  batch = _batch()
  alone, gradients_alone = _evaluate(kind, batch, **changes)
  model, params, frozen = _setup(kind, mesh, **changes)
  names = parameters.logical_names(model_lib.abstract_params(model))
  placed = sharding.place(
    params, sharding.parameter_shardings(mesh, names, params)
  )
  assert not placed['table'].sharding.is_fully_replicated
  whole = sharding.replicated(mesh)
  call = _compiled(kind, 'mean', 0.0, True, tuple(changes.items()), mesh)
  (_, output), gradients = call(
    placed,
    jax.device_put(frozen, whole),
    sharding.place_batch(batch, mesh),
    jax.device_put(jax.random.key(0), whole),
  )
  for x, y in zip(
    jax.tree.leaves((output, gradients)),
    jax.tree.leaves((alone, gradients_alone)),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
