"""The model as a whole: causality, padding, decoding, equal implementations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.model import history_encoder
from onerec_jax.model import onerec
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

_SIZES = (5, 7, 6)  # of conftest.py
_EXPERTS = 8
_L = len(_SIZES)


@pytest.fixture(scope='module')
def case(make_case):
  return make_case()


def _loss(case):
  """jit(params, *inputs) -> (loss, load), gradients."""

  def loss(params, *inputs):
    output = case.apply(params, *inputs, deterministic=True)
    real = jnp.where(output.logits > -1e29, jnp.sin(output.logits), 0)
    mask = inputs[4]
    return (real * mask[:, :, None, None]).sum(), output.router.load

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _assert_trees_close(got, want, rtol):
  def check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

  jax.tree.map(check, got, want)


def _real(logits):
  return [np.asarray(logits)[:, :, l, :n] for l, n in enumerate(_SIZES)]


def test_logits_are_masked_beyond_each_levels_codes(case):
  logits = np.asarray(case.output().logits)
  assert logits.shape == (8, 2, _L, max(_SIZES))
  for level, size in enumerate(_SIZES):
    assert np.abs(logits[:, :, level, :size]).max() < 1e3
    assert (logits[:, :, level, size:] < -1e29).all()


@pytest.mark.parametrize(('item', 'level'), [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_a_target_code_never_changes_earlier_logits(case, item, level):
  target = case.inputs[3]
  changed = target.at[:, item, level].set((target[:, item, level] + 1) % 5)
  mask = jnp.ones_like(case.inputs[4])
  before = np.asarray(case.output(target_mask=mask).logits)
  after = np.asarray(case.output(target_codes=changed, target_mask=mask).logits)
  flat = lambda x: x.reshape(len(x), -1, x.shape[-1])  # noqa: E731
  first_affected = item * _L + level + 1  # the code is an input only after it
  np.testing.assert_array_equal(
    flat(before)[:, :first_affected], flat(after)[:, :first_affected]
  )
  if first_affected < 2 * _L:
    assert (flat(before) != flat(after))[:, first_affected:].any()


def test_more_history_padding_changes_no_logit(case):
  codes, mask = case.inputs[:2]
  longer = jnp.pad(codes, ((0, 0), (0, 3), (0, 0)), constant_values=2)
  wider = case.output(
    history_codes=longer, history_mask=jnp.pad(mask, ((0, 0), (0, 3)))
  )
  np.testing.assert_allclose(
    wider.logits, case.output().logits, rtol=1e-5, atol=1e-5
  )


def test_codes_of_masked_history_items_do_not_matter(case):
  codes, mask = case.inputs[:2]
  other = jnp.where(mask[..., None], codes, (codes + 1) % 5)
  np.testing.assert_array_equal(
    case.output(history_codes=other).logits, case.output().logits
  )


def test_history_and_user_and_order_do_matter(case):
  base = case.output().logits
  codes = case.inputs[0]
  full = jnp.ones_like(case.inputs[1])
  assert (case.output(history_codes=(codes + 1) % 5).logits != base).any()
  assert (case.output(user=case.inputs[2] + 1).logits != base).any()
  forward = case.output(history_mask=full).logits
  backward = case.output(history_mask=full, history_codes=codes[:, ::-1]).logits
  assert np.abs(np.asarray(forward - backward)).max() > 1e-3


def test_padding_before_the_prefix_changes_no_prediction(make_case):
  case = make_case(items=2)
  model, variables = case.model, {'params': case.params}
  target, bias = case.inputs[3], case.inputs[5]

  @functools.partial(jax.jit, static_argnums=0)
  def first_level(padding, codes):
    encoded = case.apply(case.params, *case.inputs[:3], method='encode')
    mask = jnp.broadcast_to(
      jnp.arange(padding + 1)[None] >= padding, (8, padding + 1)
    )
    context = model.apply(
      variables, encoded, codes, mask, bias, method='start_decoding'
    )
    log_probs, _ = model.apply(
      variables,
      jnp.zeros((8, 1, 0), jnp.int32),
      jnp.asarray(0),
      model.init_cache(batch=8, beams=1, length=_L + 1),
      context,
      bias,
      method='decode_step',
    )
    return log_probs

  plain = first_level(0, target[:, :1])
  padded = first_level(1, target[:, ::-1])
  np.testing.assert_allclose(plain, padded, rtol=1e-5, atol=1e-5)
  assert (plain != first_level(0, target[:, 1:])).any()


def test_history_tokens_by_hand():
  vocabulary = vocabulary_lib.Vocabulary((5, 7, 6), 10)
  codes = jnp.asarray([[[4, 6, 0], [1, 1, 1]]], jnp.int32)
  mask = jnp.asarray([[True, False]])
  tokens, token_mask = history_encoder.history_tokens(
    vocabulary, codes, mask, jnp.asarray([0]), separator=True
  )
  # User 0 hashes to bucket 0 = 3 + 18; levels start at 3, 8 and 15; SEP is 2.
  np.testing.assert_array_equal(tokens, [[21, 7, 14, 15, 2, 0, 0, 0, 0]])
  np.testing.assert_array_equal(token_mask, [[True] * 5 + [False] * 4])


def test_user_buckets_are_used_evenly():
  vocabulary = vocabulary_lib.Vocabulary((5, 7, 6), 10)
  tokens, _ = history_encoder.history_tokens(
    vocabulary,
    jnp.zeros((2000, 1, 3), jnp.int32),
    jnp.ones((2000, 1), bool),
    jnp.arange(2000),
    separator=True,
  )
  counts = np.bincount(np.asarray(tokens[:, 0]) - 21, minlength=10)
  # Binomial(2000, 0.1): 200 +- 13; 5 sigma.
  assert np.abs(counts - 200).max() < 67


def test_all_masked_history_has_finite_loss_and_gradient(make_case):
  case = make_case(user_buckets=0)
  inputs = list(case.inputs)
  inputs[1] = jnp.zeros_like(inputs[1])
  (loss, _), gradients = _loss(case)(case.params, *inputs)
  assert np.isfinite(loss)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  # Nothing to read: padding length and content cannot leak.
  logits = case.call(case.params, *inputs).logits
  inputs[0] = (inputs[0][:, :2] + 1) % 5
  inputs[1] = inputs[1][:, :2]
  np.testing.assert_allclose(
    case.call(case.params, *inputs).logits, logits, rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(
  ('items', 'prefix', 'dense', 'id_buckets'),
  [(1, 0, True, 0), (2, 0, False, 64), (3, 2, False, 0), (3, 1, True, 64)],
)
def test_incremental_decoding_equals_teacher_forcing(
  make_case, items, prefix, dense, id_buckets
):
  case = make_case(
    items=items, moe={'enabled': not dense}, id_buckets=id_buckets
  )
  model, variables = case.model, {'params': case.params}
  target, bias = case.inputs[3], case.inputs[5]
  # Two beams: the target, and the target with other codes.
  beams = jnp.stack([target, (target + 1) % 5], axis=1)

  @jax.jit
  def step(prefix, position, cache, context):
    return model.apply(
      variables, prefix, position, cache, context, bias, method='decode_step'
    )

  encoded = case.apply(case.params, *case.inputs[:3], method='encode')
  # Both beams begin with the same items, given as a prefix.
  beams = beams.at[:, 1, :prefix].set(target[:, :prefix])
  context = model.apply(
    variables,
    encoded,
    target[:, :prefix],
    jnp.ones((8, prefix), bool),
    bias,
    method='start_decoding',
  )
  cache = model.init_cache(batch=8, beams=2, length=(items - prefix) * (_L + 1))
  got = []
  for i in range(prefix, items):
    for j in range(_L + 1):
      position = jnp.asarray((i - prefix) * (_L + 1) + j)
      log_probs, cache = step(beams[:, :, i, :j], position, cache, context)
      if j < _L:
        got.append(log_probs)
  got = jnp.stack(got, axis=2).reshape(8, 2, items - prefix, _L, -1)
  everything = jnp.ones_like(case.inputs[4])  # decoding knows no padding
  for beam in range(2):
    logits = case.output(
      target_codes=beams[:, beam], target_mask=everything
    ).logits
    want = jax.nn.log_softmax(logits, axis=-1)[:, prefix:]
    for a, b in zip(_real(got[:, beam]), _real(want), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
  'changes',
  [
    dict(scan_layers=False, cross_attention='projected'),
    dict(remat=True, cross_attention='absorbed', moe={'dispatch': 'dense'}),
  ],
  ids=str,
)
def test_equal_implementations_have_equal_loss_load_and_gradients(
  make_case, changes
):
  want_case = make_case()
  want = _loss(want_case)(want_case.params, *want_case.inputs)
  case = make_case(**changes)
  got = _loss(case)(want_case.params, *want_case.inputs)
  _assert_trees_close(got, want, 5e-5)


@pytest.mark.parametrize('shape', [(2, 1, 4), (1, 2, 4)])
def test_sharded_model_equals_one_device_with_gradients(make_case, case, shape):
  want = _loss(case)(case.params, *case.inputs)
  mesh = jax.make_mesh(
    shape,
    ('data', 'fsdp', 'expert'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  batch = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(mesh.axis_names)
  )
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  inputs = (
    *(jax.device_put(x, batch) for x in case.inputs[:5]),
    jax.device_put(case.inputs[5], whole),
  )
  params = jax.device_put(case.params, whole)
  sharded = make_case(mesh=mesh)
  got = _loss(sharded)(params, *inputs)
  _assert_trees_close(got, want, 5e-5)


def test_load_counts_every_token_of_real_items_once_per_slot(case):
  # m (L + 1) tokens per item that is not masked, s^L included, R = 2 slots.
  real_items = int(case.inputs[4].sum())
  load = np.asarray(case.output().router.load)
  assert load.shape == (2, _EXPERTS)
  np.testing.assert_array_equal(load.sum(1), real_items * (_L + 1) * 2)


def test_router_bias_moves_load_and_gets_no_gradient(case):
  pushed = case.output(router_bias=case.inputs[5].at[:, 3].add(10.0)).router
  real_tokens = int(case.inputs[4].sum()) * (_L + 1)
  np.testing.assert_array_equal(pushed.load[:, 3], [real_tokens] * 2)

  def total(bias):
    return case.call(case.params, *case.inputs[:5], bias).logits.sum()

  np.testing.assert_array_equal(
    jax.grad(total)(case.inputs[5]), np.zeros((2, _EXPERTS))
  )


def test_apply_returns_no_changed_state(case):
  # Frozen at evaluation: the bias is an argument and nothing writes to it.
  output, state = case.apply(
    case.params, *case.inputs, deterministic=True, mutable=True
  )
  assert set(state) == {'params'}
  assert set(output._fields) == {'logits', 'starts', 'router'}


def test_bfloat16_is_close_to_float32(make_case, case):
  half = make_case(compute_dtype='bfloat16')
  logits = half.output().logits
  assert logits.dtype == jnp.float32
  for got, want in zip(_real(logits), _real(case.output().logits), strict=True):
    # Logits are O(1); a router tie may flip an expert for a few tokens.
    close = np.isclose(got, want, rtol=2e-2, atol=6e-2)
    assert close.mean() > 0.95


def test_bfloat16_gradients_reach_float32_parameters(make_case):
  case = make_case(compute_dtype='bfloat16')
  _, gradients = _loss(case)(case.params, *case.inputs)
  for g in jax.tree.leaves(gradients):
    assert g.dtype == jnp.float32
    assert np.isfinite(g).all()


@pytest.mark.parametrize('bits', ['hash', 'threefry'])
def test_dropout_is_repeatable_differs_by_key_and_is_off_when_deterministic(
  make_case, bits
):
  case = make_case()
  model = onerec.OneRec(
    case.model.config, case.model.vocabulary, 2, dropout_bits=bits
  )
  case = dataclasses.replace(case, model=model)

  @functools.partial(jax.jit, static_argnames='deterministic')
  def run(key, deterministic=False):
    return case.apply(
      case.params,
      *case.inputs,
      deterministic=deterministic,
      rngs={'dropout': key},
    ).logits

  first, second = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(run(first), run(first))
  assert (run(first) != run(second)).any()
  np.testing.assert_array_equal(
    run(first, deterministic=True), run(second, deterministic=True)
  )


def test_dropout_is_the_same_scanned_and_unrolled(make_case):
  logits = []
  for scan in (True, False):
    case = make_case(scan_layers=scan)
    run = jax.jit(
      lambda key, case=case: (
        case.apply(
          case.params,
          *case.inputs,
          deterministic=False,
          rngs={'dropout': key},
        ).logits
      )
    )
    logits.append(run(jax.random.key(0)))
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'changes',
  [
    dict(
      tie_head=False,
      history_separator=False,
      mlp_activation='swiglu',
      moe={
        'activation': 'swiglu',
        'gate': 'sigmoid',
        'normalize_top_k': True,
      },
    ),
    dict(mlp_activation='gelu', moe={'enabled': False}),
  ],
  ids=str,
)
def test_other_settings_give_finite_logits_and_reach_every_parameter(
  make_case, changes
):
  case = make_case(**changes)
  (loss, _), gradients = _loss(case)(case.params, *case.inputs)
  assert np.isfinite(loss)
  for path, g in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0, path
