"""Routing and the equality of dense, grouped and sharded experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import expert_parallel
from onerec_jax.ops import expert_rows
from onerec_jax.ops import moe

_T, _D, _F, _E, _R = 64, 8, 16, 8, 2


def _case(gated=False, seed=0):
  generator = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  weights = moe.ExpertWeights(
    normal(_E, _D, _F) / 3,
    normal(_E, _D, _F) / 3 if gated else None,
    normal(_E, _F, _D) / 4,
  )
  mask = jnp.asarray(generator.random(_T) < 0.8)
  return normal(_T, _D), normal(_T, _E), weights, mask, normal(_T, _D)


def _loss(run, *, gate='softmax', mask, target):
  def loss(x, logits, weights):
    routing = moe.route(
      logits, jnp.zeros(_E), top_k=_R, gate=gate, normalize=False
    )
    return jnp.sum((run(x, routing, weights, mask) - target) ** 2)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def _assert_close(got, want, rtol=2e-5):
  def check(a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)

  jax.tree.map(check, got, want)


def test_router_by_hand():
  logits = jnp.log(jnp.asarray([[0.5, 0.2, 0.3]]))
  routing = moe.route(
    logits, jnp.asarray([0.0, 0.2, 0.0]), top_k=2, gate='softmax',
    normalize=False,
  )  # fmt: skip
  # 0.5, 0.4, 0.3 after the bias: experts 0 and 1, gates without the bias.
  np.testing.assert_array_equal(routing.experts, [[0, 1]])
  np.testing.assert_allclose(routing.gates, [[0.5, 0.2]], rtol=1e-6)
  sigmoid = moe.route(
    jnp.asarray([[0.0, -40.0, 40.0]]), jnp.zeros(3), top_k=2, gate='sigmoid',
    normalize=True,
  )  # fmt: skip
  np.testing.assert_array_equal(sigmoid.experts, [[2, 0]])
  np.testing.assert_allclose(sigmoid.gates, [[2 / 3, 1 / 3]], rtol=1e-6)


def test_bias_changes_selection_but_never_a_gate_value():
  _, logits, *_ = _case()
  scores = np.asarray(jax.nn.softmax(logits))
  bias = jnp.asarray(np.linspace(-1, 1, _E), jnp.float32)
  route = functools.partial(
    moe.route, logits, top_k=_R, gate='softmax', normalize=False
  )
  plain, biased = route(jnp.zeros(_E)), route(bias)
  assert (plain.experts != biased.experts).any()
  for routing in (plain, biased):
    np.testing.assert_allclose(
      routing.gates,
      np.take_along_axis(scores, np.asarray(routing.experts), 1),
      rtol=1e-6,
    )


def test_bias_gets_no_gradient():
  _, logits, *_ = _case()
  gradient = jax.grad(
    lambda b: moe.route(
      logits, b, top_k=_R, gate='sigmoid', normalize=True
    ).gates.sum()
  )(jnp.zeros(_E))
  np.testing.assert_array_equal(gradient, np.zeros(_E))


def test_ties_go_to_the_lower_expert_number():
  routing = moe.route(
    jnp.zeros((3, 5)), jnp.zeros(5), top_k=3, gate='softmax', normalize=False
  )
  np.testing.assert_array_equal(routing.experts, [[0, 1, 2]] * 3)


def test_all_zero_sigmoid_gates_have_finite_gradients():
  def total(logits):
    return moe.route(
      logits, jnp.zeros(4), top_k=2, gate='sigmoid', normalize=True
    ).gates.sum()

  gradient = jax.grad(total)(jnp.full((2, 4), -200.0))
  assert np.isfinite(gradient).all()


def test_load_counts_unmasked_tokens_only():
  experts = jnp.asarray([[0, 1], [1, 2], [0, 2]])
  load = moe.expert_load(
    experts, jnp.asarray([True, False, True]), num_experts=4
  )
  np.testing.assert_array_equal(load, [2, 1, 1, 0])


def test_dense_experts_equal_a_loop_over_tokens_in_numpy():
  x, logits, weights, mask, _ = _case(gated=True)
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  got = moe.dense_experts(x, routing, weights, mask, activation=jax.nn.silu)
  wi, wg, wo = (np.asarray(w, np.float64) for w in weights)
  want = np.zeros((_T, _D))
  for t in np.flatnonzero(mask):
    for r in range(_R):
      e, row = int(routing.experts[t, r]), np.asarray(x[t], np.float64)
      gate = row @ wg[e]
      hidden = gate / (1 + np.exp(-gate)) * (row @ wi[e])
      want[t] += float(routing.gates[t, r]) * (hidden @ wo[e])
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('matmul', ['blocks', 'ragged', 'auto'])
def test_grouped_experts_equal_dense_ones_with_gradients(gated, matmul):
  x, logits, weights, mask, target = _case(gated)
  args = dict(mask=mask, target=target)
  dense = functools.partial(moe.dense_experts, activation=jax.nn.silu)
  grouped = functools.partial(
    moe.grouped_experts, activation=jax.nn.silu, matmul=matmul
  )
  want = _loss(dense, **args)(x, logits, weights)
  got = _loss(grouped, **args)(x, logits, weights)
  _assert_close(got, want)


def test_grouped_experts_survive_one_expert_taking_everything():
  x, _, weights, mask, target = _case()
  logits = jnp.zeros((_T, _E)).at[:, 3].set(9.0).at[:, 5].set(8.0)
  args = dict(mask=mask, target=target)
  dense = functools.partial(moe.dense_experts, activation=jax.nn.relu)
  grouped = functools.partial(
    moe.grouped_experts, activation=jax.nn.relu, matmul='blocks'
  )
  want = _loss(dense, **args)(x, logits, weights)
  got = _loss(grouped, **args)(x, logits, weights)
  _assert_close(got, want)


def test_masked_tokens_neither_matter_nor_count():
  x, logits, weights, mask, _ = _case()
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  run = functools.partial(moe.grouped_experts, activation=jax.nn.relu)
  y = run(x, routing, weights, mask)
  poisoned = jnp.where(mask[:, None], x, jnp.nan)
  np.testing.assert_array_equal(run(poisoned, routing, weights, mask), y)
  np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0)


def test_permuting_tokens_permutes_outputs():
  x, logits, weights, mask, _ = _case()
  permutation = np.random.default_rng(1).permutation(_T)

  def run(x, logits, mask):
    routing = moe.route(
      logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
    )
    return moe.grouped_experts(
      x, routing, weights, mask, activation=jax.nn.relu
    )

  np.testing.assert_allclose(
    run(x[permutation], logits[permutation], mask[permutation]),
    run(x, logits, mask)[permutation],
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize('kind', ['blocks', 'ragged'])
@pytest.mark.parametrize(
  'sizes', [(300, 0, 1, 299), (0, 0, 0, 0), (256, 288, 0, 16), (0, 0, 0, 600)]
)
def test_expert_rows_equal_a_loop_over_experts_in_numpy(kind, sizes):
  # Sizes around the block sizes of the CPU path; idle rows at the end.
  generator = np.random.default_rng(0)
  x = generator.standard_normal((300, 6)).astype(np.float32)
  wi = generator.standard_normal((4, 6, 5)).astype(np.float32)
  wo = generator.standard_normal((4, 5, 6)).astype(np.float32)
  slots = generator.permutation(600)
  got = expert_rows.feed_forward(
    jnp.asarray(x),
    expert_rows.ExpertWeights(jnp.asarray(wi), None, jnp.asarray(wo)),
    expert_rows.RowOrder(
      jnp.asarray(slots, jnp.int32),
      jnp.asarray(np.argsort(slots), jnp.int32),
      jnp.asarray(sizes, jnp.int32),
    ),
    activation=jax.nn.relu,
    kind=kind,
  )
  start = 0
  for e, n in enumerate(sizes):
    rows = x[slots[start : start + n] // 2]
    want = np.maximum(rows @ wi[e], 0) @ wo[e]
    np.testing.assert_allclose(
      got[start : start + n], want, rtol=1e-4, atol=1e-4
    )
    start += n


# --- Experts on several devices ---------------------------------------------

_AXES = ('data', 'fsdp', 'expert')


def _sharded(shape, *, run=None, exchange='all_gather', factor=1.0):
  """The function (x, routing, weights, mask) -> ShardedOutput on a mesh."""
  mesh = jax.make_mesh(
    shape, _AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
  )
  return functools.partial(
    expert_parallel.sharded_experts,
    mesh=mesh,
    batch_axes=_AXES,
    expert_axis='expert',
    run=run or functools.partial(moe.grouped_experts, activation=jax.nn.relu),
    exchange=exchange,
    capacity_factor=factor,
  )


@pytest.mark.parametrize(
  ('shape', 'exchange', 'factor'),
  [
    ((8, 1, 1), 'all_gather', 1.0),
    ((1, 2, 4), 'all_gather', 1.0),
    # 8 (here 4) times the mean is room for whatever may come.
    ((1, 1, 8), 'all_to_all', 8.0),
    ((1, 2, 4), 'all_to_all', 4.0),
    # All experts are on every device: nothing to exchange.
    ((2, 4, 1), 'all_to_all', 1.0),
  ],
)
def test_sharded_experts_equal_the_dense_oracle_with_gradients(
  shape, exchange, factor
):
  x, logits, weights, mask, target = _case()
  args = dict(mask=mask, target=target)
  dense = functools.partial(moe.dense_experts, activation=jax.nn.relu)
  want = _loss(dense, **args)(x, logits, weights)
  run = _sharded(shape, exchange=exchange, factor=factor)
  got = _loss(lambda *a: run(*a).y, **args)(x, logits, weights)
  _assert_close(got, want)
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  assert run(x, routing, weights, mask).dropped == 0


def _served(experts, mask, *, devices, groups, rows):
  """NumPy: which slots [T, R] find room, device by device, slot by slot."""
  num_tokens = len(experts)
  local = num_tokens // (devices * groups)
  served = np.zeros(experts.shape, bool)
  for first in range(0, num_tokens, local):
    left = np.full(devices, rows)
    for r in range(experts.shape[1]):
      for t in range(first, first + local):
        owner = experts[t, r] * devices // _E
        if mask[t] and left[owner]:
          left[owner] -= 1
          served[t, r] = True
  return served


def test_slots_without_room_are_counted_and_add_nothing():
  # 64 tokens over (2, 1, 4): 8 per device, 16 slots, 4 per owner on average;
  # factor 1 gives 8 rows after rounding.  The logits lean to expert 0.
  x, logits, weights, mask, _ = _case()
  logits = logits.at[:, 0].add(5.0).at[:, 1].add(4.0)
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  output = _sharded((2, 1, 4), exchange='all_to_all')(x, routing, weights, mask)
  real = np.asarray(mask)
  experts = np.asarray(routing.experts)
  served = _served(experts, real, devices=4, groups=2, rows=8)
  assert output.dropped == (real[:, None] & ~served).sum() > 10
  # First choices, here mostly of expert 0, keep their place.
  assert served[real, 0].mean() > 0.95 > 0.5 > served[real, 1].mean()
  want = moe.dense_experts(
    x,
    moe.Routing(routing.experts, jnp.where(served, routing.gates, 0)),
    weights,
    mask,
    activation=jax.nn.relu,
  )
  np.testing.assert_allclose(output.y, want, rtol=1e-5, atol=1e-5)


def test_masked_tokens_take_no_room_and_pass_nothing_on():
  # All tokens want expert 0 first and 1 second, both of device 0 of 4, which
  # has room for 8 of the 16 slots of each device: exactly those of the four
  # tokens that are not masked.
  x, _, weights, _, _ = _case()
  logits = jnp.zeros((_T, _E)).at[:, 0].set(9.0).at[:, 1].set(8.0)
  mask = jnp.asarray(np.arange(_T) % 2 == 1)
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  run = _sharded((2, 1, 4), exchange='all_to_all')
  poisoned = jnp.where(mask[:, None], x, jnp.nan)
  output = run(poisoned, routing, weights, mask)
  assert output.dropped == 0
  want = moe.dense_experts(x, routing, weights, mask, activation=jax.nn.relu)
  np.testing.assert_allclose(output.y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('tokens', 'factor', 'rows'),
  [
    (100, 1.25, 32),  # 100 * 2 / 8 = 25; 31.25 -> 32
    (100, 1.0, 32),  # 25 -> 32
    (64, 1.0, 16),  # 16 is a multiple of 8
    (100, 8.0, 104),  # 200, but each token sends at most one slot here -> 100
  ],
)
def test_capacity_is_a_multiple_of_eight_and_no_more_than_needed(
  tokens, factor, rows
):
  found = expert_parallel.capacity(
    tokens, top_k=2, devices=8, experts_per_device=1, factor=factor
  )
  assert found == rows


def test_sharded_experts_name_what_does_not_divide():
  x, logits, weights, mask, _ = _case()
  routing = moe.route(
    logits, jnp.zeros(_E), top_k=_R, gate='softmax', normalize=False
  )
  run = _sharded((1, 1, 8), run=moe.dense_experts)
  with pytest.raises(ValueError, match='multiple of 8'):
    run(x[:63], moe.Routing(*(r[:63] for r in routing)), weights, mask[:63])
  few = moe.ExpertWeights(weights.wi[:6], None, weights.wo[:6])
  with pytest.raises(ValueError, match='num_experts=6'):
    run(x, routing, few, mask)
