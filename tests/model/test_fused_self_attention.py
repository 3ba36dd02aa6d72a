"""The module around the TPU kernel against its plain path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.ops import attention
from onerec_jax.ops import dropout
from onerec_jax.ops import fused_attention

_CONFIG = config_lib.ModelConfig(
  embed_dim=16, num_heads=2, head_dim=64, attention_dropout_rate=0.2
)
_LENGTH = 40


def test_the_kernels_path_is_the_plain_path(monkeypatch):
  module = attention_modules.SelfAttention(_CONFIG)
  generator = np.random.default_rng(0)
  x = jnp.asarray(generator.standard_normal((2, _LENGTH, 16)), jnp.float32)
  table = jnp.asarray(generator.standard_normal((8, 2)), jnp.float32)
  lengths = np.array([[25], [_LENGTH]])
  bias = attention_modules.TokenBias(
    jnp.asarray(np.arange(_LENGTH)[None] < lengths),
    attention.distance_bias(table, _LENGTH, max_distance=16),
  )
  seed = dropout.site_seeds(jax.random.key(3), (1,), bits='hash')[0]
  variables = jax.tree.map(
    lambda p: p.value,
    module.init(jax.random.key(0), x, bias, None),
    is_leaf=lambda p: hasattr(p, 'names'),
  )
  want = module.apply(variables, x, bias, seed)
  used = []
  kernel = functools.partial(fused_attention.self_attention, interpret=True)

  def interpreted(*args, **kwargs):
    used.append(True)
    return kernel(*args, **kwargs)

  monkeypatch.setattr(fused_attention, 'self_attention', interpreted)
  monkeypatch.setattr(attention_modules, '_FUSED_FROM', _LENGTH)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  got = module.apply(variables, x, bias, seed)
  assert used
  # Sums over 40 keys, of products in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


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
