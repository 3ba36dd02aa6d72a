"""The encoder's self-attention as the model does it, against a library's.

One task of gpu_window.py; decides whether a fused kernel is worth a second code
path.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import device_time
from experiments.benchmarks import harness
from onerec_jax.ops import attention

# (q, k, v [B, S, H, K], bias [H, S, S]) -> [B, S, H, K]
_Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def _gradients(form: _Attend, mask: jax.Array, cotangent: jax.Array) -> Any:
  """Returns the compiled value and gradients of an attention."""

  def loss(
    queries: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array
  ) -> jax.Array:
    out = form(queries, keys, values, bias)
    kept = jnp.where(mask[..., None, None], out, 0)
    return jnp.sum(kept.astype(jnp.float32) * cotangent)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


def measure(toy: bool) -> dict[str, Any]:
  """Times the encoder's attention: as it is, and by cuDNN.

  bf16, relative positions as a bias with its gradient, padding, no dropout,
  forward and backward.
  """
  rows, length, dim = (2, 64, 16) if toy else (64, 1024, 128)
  heads = (2,) if toy else (3, 6)
  return {
    'rows, length, head_dim': (rows, length, dim),
    **{
      f'heads {h}': _attention_of(rows, length, h, dim, toy=toy) for h in heads
    },
  }


def _attention_of(
  rows: int, length: int, heads: int, dim: int, *, toy: bool
) -> dict[str, Any]:
  keys = jax.random.split(jax.random.key(0), 5)
  shape = (rows, length, heads, dim)
  q, k, v, cotangent = (
    jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:4]
  )
  bias = jax.random.normal(keys[4], (heads, length, length), jnp.float32)
  generator = np.random.default_rng(0)
  lengths = jnp.asarray(
    generator.integers(length // 4, length + 1, rows), jnp.int32
  )
  mask = jnp.arange(length)[None] < lengths[:, None]

  def ours(q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
    return attention.attend(q, k, v, bias[None] + attention.key_bias(mask))

  def library(q: Any, k: Any, v: Any, bias: Any) -> jax.Array:
    return jax.nn.dot_product_attention(
      q,
      k,
      v,
      bias[None].astype(q.dtype),
      scale=1.0,
      key_value_seq_lengths=lengths,
      implementation='xla' if toy else 'cudnn',
    )

  arguments = (q * dim**-0.5, k, v, bias)
  entry: dict[str, Any] = {}
  values = {}
  forms: dict[str, _Attend] = {'ours': ours, 'library': library}
  for name, form in forms.items():
    try:
      run = functools.partial(_gradients(form, mask, cotangent), *arguments)
      values[name] = np.asarray(jax.device_get(run()[1][0]), np.float32)
      entry[name] = device_time.seconds_per_call(
        run, rounds=2 if toy else 5, calls=10
      )
    except Exception as error:  # cuDNN refuses some shapes; that is a result
      entry[name] = {'error': str(error)[:500]}
  if len(values) == 2:
    entry['difference_of_allowed'] = harness.check_close(
      values['library'],
      values['ours'],
      what='gradient of the queries',
      relative=5e-2,
      # The library reads the bias in bf16.
      absolute=5e-2 * float(np.abs(values['ours']).max()),
    )
    entry['speed_of_library'] = (
      entry['ours']['seconds'] / entry['library']['seconds']
    )
  return entry
