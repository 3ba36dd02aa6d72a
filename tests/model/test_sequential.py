"""The item-level baselines: order, padding, masks, attributes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax.model import parameters
from onerec_jax.model import sequential

_ITEMS, _ATTRIBUTES = 9, 5
_LONGEST = 8
_CONFIG = config_lib.SequentialConfig(
  embed_dim=8, num_heads=2, num_layers=2, mlp_dim=12, dropout_rate=0.3
)
_KINDS = ('sasrec', 'bert4rec', 'fdsa')


@dataclasses.dataclass(frozen=True)
class _Case:
  model: sequential.SequenceModel
  params: Any
  attributes: sequential.ItemAttributes | None

  @functools.cached_property
  def _apply(self):
    return jax.jit(
      lambda params, *inputs: self.model.apply(
        {'params': params}, *inputs, deterministic=True
      )
    )

  def states(self, items, mask=None, hidden=None, attributes=None):
    items = jnp.asarray(items, jnp.int32)
    mask = jnp.ones(items.shape, bool) if mask is None else jnp.asarray(mask)
    if self.model.kind == 'bert4rec' and hidden is None:
      hidden = jnp.zeros(items.shape, bool)
    output = self._apply(
      self.params, items, mask, hidden, attributes or self.attributes
    )
    return np.asarray(output.states)


@functools.cache
def _case(kind, **changes):
  model = sequential.SequenceModel(
    kind,
    dataclasses.replace(_CONFIG, **changes),
    num_items=_ITEMS,
    max_length=_LONGEST,
    num_attributes=_ATTRIBUTES,
  )
  params = parameters.materialize(sequential.abstract_params(model), seed=0)
  # Larger than at the start, so that every input is felt.
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: (x + rng.normal(0, 0.3, x.shape)).astype(np.float32), params
  )
  attributes = None
  if kind == 'fdsa':
    ids = rng.integers(0, _ATTRIBUTES, (_ITEMS, 3)).astype(np.int32)
    counts = rng.integers(0, 4, (_ITEMS, 1))
    mask = np.arange(3)[None] < counts
    attributes = sequential.ItemAttributes(jnp.asarray(ids), jnp.asarray(mask))
  return _Case(model, params, attributes)


# --- Joining history and targets --------------------------------------------


def test_history_and_targets_are_joined_without_gaps():
  found = sequential.join_right(
    jnp.array([[3, 4, 9], [5, 9, 9], [9, 9, 9], [9, 6, 7]]),
    jnp.array(
      [
        [True, True, False],
        [True, False, False],
        [False] * 3,
        [False, True, True],  # padding in front is as good
      ]
    ),
    jnp.array([[1, 2], [0, 9], [8, 9], [9, 9]]),
    jnp.array([[True, True], [True, False], [True, False], [False, False]]),
  )
  np.testing.assert_array_equal(
    found.items,
    [[0, 3, 4, 1, 2], [0, 0, 0, 5, 0], [0, 0, 0, 0, 8], [0, 0, 0, 6, 7]],
  )
  np.testing.assert_array_equal(
    found.mask.astype(int),
    [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]],
  )
  np.testing.assert_array_equal(
    found.is_target.astype(int),
    [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]],
  )


# --- What a state may see ---------------------------------------------------

_SEQUENCE = np.array([[1, 2, 3, 4, 5]])


@pytest.mark.parametrize('kind', ['sasrec', 'fdsa'])
@pytest.mark.parametrize('place', [1, 4])
def test_a_causal_state_does_not_depend_on_later_items(kind, place):
  case = _case(kind)
  changed = _SEQUENCE.copy()
  changed[0, place] = 7
  before, after = case.states(_SEQUENCE), case.states(changed)
  np.testing.assert_array_equal(before[:, :place], after[:, :place])
  difference = np.abs(before - after)[0, place:].max(axis=-1)
  assert (difference > 1e-3).all()


@pytest.mark.parametrize('place', [0, 4])
def test_bert4rec_sees_both_sides(place):
  case = _case('bert4rec')
  changed = _SEQUENCE.copy()
  changed[0, place] = 7
  difference = np.abs(case.states(_SEQUENCE) - case.states(changed))
  assert (difference.max(axis=-1) > 1e-3).all()


def test_a_hidden_item_leaks_into_no_state():
  case = _case('bert4rec')
  hidden = jnp.array([[False, True, False, False, True]])
  changed = _SEQUENCE.copy()
  changed[0, [1, 4]] = [7, 8]
  np.testing.assert_array_equal(
    case.states(_SEQUENCE, hidden=hidden), case.states(changed, hidden=hidden)
  )
  open_ = case.states(_SEQUENCE)
  assert np.abs(open_ - case.states(_SEQUENCE, hidden=hidden)).max() > 1e-3


@pytest.mark.parametrize('kind', _KINDS)
def test_padding_is_the_same_as_a_shorter_sequence(kind):
  """Positions count from the end, so the states agree too."""
  case = _case(kind)
  padded = np.concatenate([[[6, 8]], _SEQUENCE], axis=1)
  mask = np.array([[False] * 2 + [True] * 5])
  np.testing.assert_allclose(
    case.states(padded, mask)[:, 2:],
    case.states(_SEQUENCE),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize('kind', _KINDS)
def test_the_order_of_items_matters(kind):
  case = _case(kind)
  turned = _SEQUENCE[:, [1, 0, 2, 3, 4]]
  difference = case.states(_SEQUENCE)[:, -1] - case.states(turned)[:, -1]
  assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize('kind', _KINDS)
def test_users_do_not_see_each_other(kind):
  case = _case(kind)
  other = np.array([[8, 8, 0, 7, 6]])
  np.testing.assert_allclose(
    case.states(np.concatenate([_SEQUENCE, other]))[:1],
    case.states(_SEQUENCE),
    rtol=1e-5,
    atol=1e-5,
  )


# --- Independent references -------------------------------------------------


def _layer_norm(x, params):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)
  return x * params['scale'] + params['bias']


def _attend(x, params, heads, causal):
  """One user, one head after the other."""
  length, dim = x.shape
  size = dim // heads
  y = np.zeros_like(x)
  for head in range(heads):
    q, k, v = (
      x @ params['qkv'][:, i, head] + params['qkv_bias'][i, head]
      for i in range(3)
    )
    scores = q @ k.T / np.sqrt(size)
    if causal:
      scores[np.triu_indices(length, 1)] = -np.inf
    weights = np.exp(scores)
    weights /= weights.sum(-1, keepdims=True)
    y += weights @ v @ params['out'][head]
  return y + params['out_bias']


def _feed_forward(x, params, function):
  hidden = function(x @ params['wi'] + params['wi_bias'])
  return hidden @ params['wo'] + params['wo_bias']


def _gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _relu(x):
  return np.maximum(x, 0)


def _double(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def test_sasrec_equals_its_equations_in_numpy():
  case = _case('sasrec')
  p = _double(case.params)
  x = p['table'][_SEQUENCE[0]] * np.sqrt(8)
  x = x + p['stack']['positions'][-5:]
  for number in range(2):
    b = p['stack'][f'blocks_{number}']
    x = x + _attend(
      _layer_norm(x, b['attention_norm']), b['attention'], 2, causal=True
    )
    x = x + _feed_forward(_layer_norm(x, b['mlp_norm']), b['mlp'], _relu)
  x = _layer_norm(x, p['stack']['end_norm'])
  np.testing.assert_allclose(case.states(_SEQUENCE)[0], x, rtol=1e-4, atol=1e-4)


def test_bert4rec_equals_its_equations_in_numpy():
  case = _case('bert4rec')
  p = _double(case.params)
  x = p['table'][_SEQUENCE[0]]
  x[3] = p['mask_item'][0]
  x = _layer_norm(x + p['stack']['positions'][-5:], p['stack']['end_norm'])
  for number in range(2):
    b = p['stack'][f'blocks_{number}']
    x = _layer_norm(
      x + _attend(x, b['attention'], 2, causal=False), b['attention_norm']
    )
    x = _layer_norm(x + _feed_forward(x, b['mlp'], _gelu), b['mlp_norm'])
  x = _gelu(x @ p['output'] + p['output_bias'])
  hidden = jnp.arange(5)[None] == 3
  np.testing.assert_allclose(
    case.states(_SEQUENCE, hidden=hidden)[0], x, rtol=1e-4, atol=1e-4
  )


def test_attribute_pooling_equals_its_equation_in_numpy():
  case = _case('fdsa')
  p = _double(case.params['pooling'])
  ids, mask = map(np.asarray, case.attributes)
  expected = np.zeros((_ITEMS, 8))
  for item in range(_ITEMS):
    rows = p['embedding'][ids[item][mask[item]]]
    weights = np.exp(rows @ p['query'])
    expected[item] = weights @ rows / max(weights.sum(), 1e-30)
  assert not mask.any(axis=1).all()  # an item without attributes: zeros
  pooling = sequential.AttributePooling(_ATTRIBUTES, 8)
  found = pooling.apply(
    {'params': case.params['pooling']},
    jnp.asarray(ids)[None],
    jnp.asarray(mask)[None],
  )
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


# --- Attributes -------------------------------------------------------------


def test_the_order_of_attributes_does_not_matter():
  case = _case('fdsa')
  ids, mask = case.attributes
  turned = sequential.ItemAttributes(ids[:, ::-1], mask[:, ::-1])
  np.testing.assert_allclose(
    case.states(_SEQUENCE, attributes=turned),
    case.states(_SEQUENCE),
    rtol=1e-5,
    atol=1e-5,
  )


def test_attributes_count_and_masked_ones_do_not():
  case = _case('fdsa')
  ids, mask = case.attributes
  masked = sequential.ItemAttributes(jnp.where(mask, ids, 4), mask)
  np.testing.assert_array_equal(
    case.states(_SEQUENCE, attributes=masked), case.states(_SEQUENCE)
  )
  other = sequential.ItemAttributes((ids + 1) % _ATTRIBUTES, mask)
  difference = case.states(_SEQUENCE, attributes=other) - case.states(_SEQUENCE)
  assert np.abs(difference).max() > 1e-3


# --- Edges ------------------------------------------------------------------


@pytest.mark.parametrize('kind', _KINDS)
def test_gradients_are_finite_without_any_item(kind):
  case = _case(kind)
  none = jnp.zeros((1, 3), bool)

  @jax.jit
  @jax.grad
  def gradient(params):
    output = case.model.apply(
      {'params': params},
      jnp.zeros((1, 3), jnp.int32),
      none,
      none,
      case.attributes,
      deterministic=True,
    )
    return jnp.sin(output.states @ output.table.T).sum()

  for value in jax.tree.leaves(gradient(case.params)):
    assert np.isfinite(value).all()


@pytest.mark.parametrize('kind', _KINDS)
def test_dropout_needs_a_key_and_follows_it(kind):
  case = _case(kind)
  items = jnp.asarray(_SEQUENCE, jnp.int32)
  real = jnp.ones(items.shape, bool)

  @jax.jit
  def states(key):
    return case.model.apply(
      {'params': case.params},
      items,
      real,
      ~real,
      case.attributes,
      deterministic=False,
      rngs={'dropout': key},
    ).states

  one = states(jax.random.key(0))
  np.testing.assert_array_equal(one, states(jax.random.key(0)))
  assert np.abs(one - states(jax.random.key(1))).max() > 1e-3


def test_a_sequence_beyond_the_known_positions_is_refused():
  with pytest.raises(ValueError, match='positions of 8'):
    _case('sasrec').states(np.ones((1, 9), np.int32))


def test_heads_that_do_not_divide_the_embedding_are_refused():
  with pytest.raises(ValueError, match=r'embed_dim=8 .*num_heads=3'):
    sequential.stack_config(
      dataclasses.replace(_CONFIG, num_heads=3), 'sasrec', _LONGEST
    )


def test_flops_by_hand():
  # Per place and block: 4 matrices 8 x 8, scores and mix over 5 places, and
  # 2 matrices 8 x 12; 2 blocks, 3 rows of 5 places, 20 scores of 8 products.
  block = 4 * 64 + 2 * 5 * 8 + 2 * 96
  found = sequential.forward_flops(
    _case('sasrec').model, rows=3, length=5, scores=20.0
  )
  assert found == 2 * (3 * 5 * 2 * block + 20 * 8)
