import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import base
from onerec_jax.objectives import pretrain
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.semantic_ids import vocabulary

_NUM_ITEMS = 12


@pytest.fixture(scope='module')
def setup(codes, make_model):
  model = make_model(
    items=2,
    moe=config.MoEConfig(
      num_experts=4, top_k=2, expert_dim=8, bias_update_rate=0.1
    ),
  )
  frozen = {'catalogue': batch_lib.Catalogue(jnp.asarray(codes))}
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  return model, params, frozen


def _batch(seed=0, rows=4):
  rng = np.random.default_rng(seed)

  def items(width):
    return rng.integers(0, _NUM_ITEMS, (rows, width), np.int32)

  lengths = np.array([3, 1, 2, 3])[:rows, None]
  return batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.zeros(rows, np.int32),
    history_items=items(3),
    history_mask=np.arange(3)[None] < lengths,
    target_items=items(2),
    # The second row has one target only.
    target_mask=np.arange(2)[None] < np.array([2, 1, 2, 2])[:rows, None],
    example_mask=np.ones(rows, bool),
  )


@pytest.fixture(scope='module')
def evaluate(setup):
  """The compiled objective and its gradient, per reduction."""
  model = setup[0]
  compiled = {}

  def call(batch, *, reduction='sum', bias=None, key=True, params=None):
    if (reduction, key) not in compiled:
      objective = pretrain.make_objective(
        model, config.TrainConfig(ntp_reduction=reduction)
      )

      def loss(params, bias, batch):
        output = objective(
          params, bias, setup[2], batch, jax.random.key(0) if key else None
        )
        return output.loss.value(), output

      compiled[reduction, key] = jax.jit(jax.value_and_grad(loss, has_aux=True))
    bias = np.zeros((1, 4), np.float32) if bias is None else bias
    (_, output), gradients = compiled[reduction, key](
      setup[1] if params is None else params, bias, batch
    )
    return jax.device_get((output, gradients))

  return call


def _token_losses(setup, batch):
  """Independent: softmax in NumPy over the logits of each level."""
  model, params, frozen = setup
  codes = np.asarray(frozen['catalogue'].codes)
  arrays = (
    encoder_input.of_batch(batch, frozen['catalogue']),
    codes[batch.target_items],
    batch.target_mask,
    np.zeros((1, 4), np.float32),
  )
  apply = jax.jit(functools.partial(model.apply, deterministic=True))
  logits = np.asarray(apply({'params': params}, *arrays).logits)
  targets = codes[batch.target_items]
  sizes = model.vocabulary.codes_per_level
  losses = np.zeros(targets.shape)
  hits = np.zeros(targets.shape, bool)
  for b, i, l in np.ndindex(targets.shape):
    row = np.asarray(logits[b, i, l, : sizes[l]], np.float64)
    losses[b, i, l] = np.log(np.exp(row).sum()) - row[targets[b, i, l]]
    hits[b, i, l] = row.argmax() == targets[b, i, l]
  return losses, hits


def test_sum_adds_tokens_and_averages_examples(setup, evaluate):
  batch = _batch()
  losses, hits = _token_losses(setup, batch)
  real = batch.target_mask
  output, _ = evaluate(batch)
  np.testing.assert_allclose(
    output.loss.total / output.loss.count,
    losses[real].sum() / 4,
    rtol=1e-5,
  )
  for level in (0, 1):
    accuracy = output.metrics[f'accuracy/level_{level}']
    # 7 of the 8 target slots are real.
    assert accuracy.count == 7
    assert accuracy.total == hits[real][:, level].sum()
  assert output.counts == {'examples': 4, 'tokens': 14}


def test_mean_averages_tokens(setup, evaluate):
  batch = _batch()
  losses, _ = _token_losses(setup, batch)
  output, _ = evaluate(batch, reduction='mean')
  np.testing.assert_allclose(
    output.loss.total / output.loss.count,
    losses[batch.target_mask].mean(),
    rtol=1e-5,
  )


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('buckets', [0, 50])
def test_whole_items_add_their_cross_entropy_over_the_catalogue(
  codes, make_model, reduction, buckets
):
  model = make_model(items=2, id_buckets=buckets)
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  catalogue = batch_lib.Catalogue(jnp.asarray(codes))
  batch = _batch()
  bias = jnp.asarray(onerec.initial_router_bias(model.config))

  def run(weight, params, batch):
    objective = pretrain.make_objective(
      model,
      config.TrainConfig(ntp_reduction=reduction, item_loss_weight=weight),
    )
    found = objective(params, bias, {'catalogue': catalogue}, batch, None)
    return found.loss.value(), found

  (plain, _), (loss, found) = (
    jax.jit(functools.partial(run, w))(params, batch) for w in (0.0, 0.25)
  )
  starts = jax.jit(functools.partial(model.apply, deterministic=True))(
    {'params': params},
    encoder_input.of_batch(batch, catalogue),
    codes[batch.target_items],
    batch.target_mask,
    bias,
  ).starts
  # An item is what its tokens are, together: rows of the table.
  tokens = np.asarray(model.vocabulary.tokens(jnp.asarray(codes)))
  table = np.asarray(params['embedding'], np.float64)[tokens].sum(1)
  if buckets:
    ids = np.asarray(vocabulary.id_bucket(jnp.asarray(codes), buckets))
    table += np.asarray(params['id_embedding'])[ids]
  table /= np.sqrt(table.shape[1])
  nats, hits = [], 0
  for b, i in np.argwhere(batch.target_mask):
    row, own = table @ np.asarray(starts)[b, i], batch.target_items[b, i]
    nats.append(np.log(np.exp(row).sum()) - row[own])
    hits += (row >= row[own]).sum() == 1
  assert found.metrics['item_loss'].count == len(nats) == 7
  np.testing.assert_allclose(
    found.metrics['item_loss'].total, np.sum(nats), rtol=1e-5
  )
  assert found.metrics['accuracy/item'].total == hits
  # Four examples; two tokens for each of the seven items.
  counted = 4 if reduction == 'sum' else 14
  np.testing.assert_allclose(
    loss - plain, 0.25 * np.sum(nats) / counted, rtol=1e-4
  )
  gradients = jax.jit(jax.grad(functools.partial(run, 0.25), has_aux=True))(
    params, batch
  )[0]
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  batch.example_mask[:] = False
  assert found.loss.count == counted
  empty = jax.jit(functools.partial(run, 0.25))(params, batch)[1]
  assert empty.loss == (0, 0)
  assert empty.metrics['item_loss'] == (0, 0)


def test_filler_rows_change_nothing(evaluate):
  short, long = _batch(rows=3), _batch(rows=4)
  for theirs, ours in zip(
    jax.tree.leaves(long), jax.tree.leaves(short), strict=True
  ):
    theirs[:3] = ours
  long.example_mask[3] = False  # its masks still say True
  a, gradient_a = evaluate(short)
  b, gradient_b = evaluate(long)
  del a.metrics['padding_share'], b.metrics['padding_share']
  for x, y in zip(
    jax.tree.leaves((a, gradient_a)),
    jax.tree.leaves((b, gradient_b)),
    strict=True,
  ):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_the_order_of_examples_does_not_matter(evaluate):
  batch = _batch()
  turned = jax.tree.map(lambda x: x[::-1].copy(), batch)
  a, b = evaluate(batch)[0], evaluate(turned)[0]
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)


def test_a_batch_of_fillers_has_no_loss_and_finite_gradients(evaluate):
  batch = _batch()
  batch.example_mask[:] = False
  output, gradients = evaluate(batch)
  assert output.loss == (0, 0)
  assert all(not np.any(g) for g in jax.tree.leaves(gradients))
  np.testing.assert_array_equal(output.model_state, np.zeros((1, 4)))


def test_training_moves_the_router_bias_against_the_load(evaluate):
  output, _ = evaluate(_batch())
  share = output.metrics['router/load']
  # 7 real items of L + 1 = 3 tokens, 2 experts each.
  assert share.total.sum() == 42
  np.testing.assert_array_equal(share.count, np.full((1, 4), 42))
  # proportional rule: b += u (mean - c) / mean, u = 0.1, mean = 42 / 4.
  np.testing.assert_allclose(
    output.model_state, 0.1 * (10.5 - share.total) / 10.5, rtol=1e-5
  )
  violation = output.metrics['router/max_violation_batch']
  np.testing.assert_allclose(
    violation.total, share.total.max() / 10.5 - 1, rtol=1e-5
  )


def test_evaluation_keeps_the_router_bias(evaluate):
  bias = np.array([[0.5, -0.5, 0.1, 0.0]], np.float32)
  output, _ = evaluate(_batch(), bias=bias, key=False)
  np.testing.assert_array_equal(output.model_state, bias)


def test_padding_share_counts_history_slots(evaluate):
  # Lengths 3, 1, 2, 3 of 12 slots.
  padding = evaluate(_batch())[0].metrics['padding_share']
  assert (padding.total, padding.count) == (3, 12)


def test_mean_ignores_what_is_masked_even_if_not_finite():
  values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
  where = jnp.array([True, False, True, False])
  mean = base.mean_of(values, where)
  assert (float(mean.total), float(mean.count)) == (4.0, 2.0)
  gradient = jax.grad(lambda v: base.mean_of(v, where).total)(values)
  np.testing.assert_array_equal(gradient, [1.0, 0.0, 1.0, 0.0])


def test_over_the_catalogue_only_the_codes_of_items_share_the_probability(
  setup,
):
  model, params, frozen = setup
  codes = np.asarray(frozen['catalogue'].codes)
  batch = _batch(seed=1)
  objective = pretrain.make_objective(
    model.clone(
      config=dataclasses.replace(model.config, normalise_over='catalogue')
    ),
    config.TrainConfig(ntp_reduction='mean'),
  )
  bias = np.zeros((1, 4), np.float32)
  with pytest.raises(ValueError, match=r'make_frozen\(model'):
    jax.jit(functools.partial(objective, key=None))(params, bias, frozen, batch)
  sizes = model.vocabulary.codes_per_level
  trie = prefix_trie.PrefixTrie.build(codes, sizes)
  output = jax.jit(functools.partial(objective, key=None))(
    params, bias, {**frozen, 'trie': trie}, batch
  )
  logits = jax.jit(functools.partial(model.apply, deterministic=True))(
    {'params': params},
    encoder_input.of_batch(batch, frozen['catalogue']),
    codes[batch.target_items],
    batch.target_mask,
    bias,
  ).logits
  losses, left_out = [], 0
  for b, i in np.argwhere(batch.target_mask):
    own = codes[batch.target_items[b, i]]
    for l in range(2):
      known = sorted({c[l] for c in codes.tolist() if c[:l] == list(own[:l])})
      row = np.asarray(logits[b, i, l], np.float64)
      losses.append(np.log(np.exp(row[known]).sum()) - row[own[l]])
      left_out += sizes[l] - len(known)
  assert left_out  # else all codes would do
  np.testing.assert_allclose(output.loss.value(), np.mean(losses), rtol=1e-5)
