"""The forms of self-attention of the module, against the plain one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.model import history_encoder
from onerec_jax.ops import attention
from onerec_jax.ops import blocked_attention
from onerec_jax.ops import dropout
from onerec_jax.ops import fused_attention

_CONFIG = config_lib.ModelConfig(
  embed_dim=16, num_heads=2, head_dim=64, attention_dropout_rate=0.2
)
_LENGTH = 40


@pytest.fixture(scope='module')
def example():
  """(module applied to a seed, a seed with hashed bits)."""
  module = attention_modules.SelfAttention(_CONFIG)
  generator = np.random.default_rng(0)
  x = jnp.asarray(generator.standard_normal((2, _LENGTH, 16)), jnp.float32)
  table = jnp.asarray(generator.standard_normal((8, 2)), jnp.float32)
  lengths = np.array([[25], [_LENGTH]])
  bias = attention_modules.TokenBias(
    jnp.asarray(np.arange(_LENGTH)[None] < lengths),
    attention.distance_bias(table, _LENGTH, max_distance=16),
  )
  variables = jax.tree.map(
    lambda p: p.value,
    module.init(jax.random.key(0), x, bias, None),
    is_leaf=lambda p: hasattr(p, 'names'),
  )
  seed = dropout.site_seeds(jax.random.key(3), (1,), bits='hash')[0]
  return functools.partial(module.apply, variables, x, bias), seed


def _spied(monkeypatch, module, **options):
  """Returns a list that grows whenever the module's self_attention is used."""
  used = []
  function = functools.partial(module.self_attention, **options)

  def spy(*args, **kwargs):
    used.append(True)
    return function(*args, **kwargs)

  monkeypatch.setattr(module, 'self_attention', spy)
  return used


def test_the_kernels_path_is_the_plain_path(monkeypatch, example):
  apply, seed = example
  want = apply(seed)
  used = _spied(monkeypatch, fused_attention, interpret=True)
  monkeypatch.setattr(attention_modules, '_FUSED_FROM', _LENGTH)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  got = apply(seed)
  assert used
  # Sums over 40 keys, of products in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_path_in_blocks_is_the_plain_path(monkeypatch, example):
  apply, seed = example
  want = apply(seed)
  typed = dropout.site_seeds(jax.random.key(3), (1,), bits='threefry')[0]
  want_typed = apply(typed)
  used = _spied(monkeypatch, blocked_attention)
  monkeypatch.setitem(blocked_attention._FROM, 'cpu', _LENGTH)
  monkeypatch.setitem(blocked_attention._QUERIES, 'cpu', 16)
  got = apply(seed)
  assert used == [True]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  # Whose bits are not a function of the place: of whole arrays only.
  np.testing.assert_array_equal(apply(typed), want_typed)
  assert used == [True]


def test_distances_expand_to_the_relative_bias_of_every_pair():
  table = jnp.asarray(
    np.random.default_rng(0).standard_normal((8, 2)), jnp.float32
  )
  options = dict(bidirectional=True, num_buckets=8, max_distance=16)
  want = attention.relative_bias(
    table, attention.relative_buckets(30, 30, **options)
  )
  distances = attention.distance_bias(table, 30, max_distance=16)
  np.testing.assert_array_equal(attention.expand_distances(distances, 30), want)
  # Padding comes behind; what is inside stays.
  padded = attention.expand_distances(distances, 40)
  np.testing.assert_array_equal(padded[:, :30, :30], want)


@pytest.mark.parametrize('scan_layers', [True, False])
def test_a_loop_over_layers_makes_no_array_of_all_scores(scan_layers):
  """What all layers share, the bias, is not made for all blocks before it."""
  length = 1024
  config = config_lib.ModelConfig(
    embed_dim=8, num_heads=4, head_dim=4, mlp_dim=8, encoder_layers=2,
    dropout_rate=0.0, attention_dropout_rate=0.0, scan_layers=scan_layers,
  )  # fmt: skip
  encoder = history_encoder.HistoryEncoder(config)
  x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
  mask = jax.ShapeDtypeStruct((1, length), jnp.bool)
  boxed = jax.eval_shape(encoder.init, jax.random.key(0), x, mask, None)
  variables = nn.meta.unbox(boxed)

  def total(variables, x, mask):
    return jnp.sum(encoder.apply(variables, x, mask, None).states ** 2)

  compiled = jax.jit(jax.grad(total)).lower(variables, x, mask).compile()
  analysis = compiled.memory_analysis()
  assert analysis is not None
  assert analysis.temp_size_in_bytes < 4 * 4 * length**2 / 2
