"""What every form of self-attention is tested with: inputs, the plain form."""

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax.ops import attention
from onerec_jax.ops import dropout

ROWS, HEADS = 8, 2


def inputs(*, length, dim):
  """Returns (queries, keys, values, distances) and mask; the first is empty."""
  generator = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  shape = (ROWS, length, HEADS, dim)
  lengths = generator.integers(1, length, ROWS)
  lengths[0] = 0  # a user without history
  mask = jnp.asarray(np.arange(length)[None] < lengths[:, None])
  arrays = (
    normal(*shape) * dim**-0.5,
    normal(*shape),
    normal(*shape),
    normal(HEADS, 2 * length - 1),
  )
  return arrays, mask


def seed():
  """Returns one of dropout."""
  return dropout.site_seeds(jax.random.key(1), (1,), bits='hash')[0]


def plain(queries, keys, values, distances, *, mask, seed, rate):
  """Returns attention with a bias [B, H, S, S] by indexing, as the formula."""
  place = np.arange(mask.shape[1])
  index = place[None, :] - place[:, None] + mask.shape[1] - 1
  return attention.attend(
    queries,
    keys,
    values,
    distances[:, index][None] + attention.key_bias(mask),
    weight_dropout=lambda w: dropout.drop(w, seed, rate=rate),
  )


def value_and_gradients(function, arrays, **options):
  """Returns ((a sum, output), gradients of the sum), compiled."""

  def total(*arrays):
    out = function(*arrays, **options)
    return jnp.sum(jnp.sin(3 * out)), out

  return jax.jit(jax.value_and_grad(total, argnums=range(4), has_aux=True))(
    *arrays
  )


def check_same(function, arrays, *, atol, **options):
  """Compares a form's output and gradients with the plain form's."""
  (_, want), want_gradients = value_and_gradients(plain, arrays, **options)
  (_, got), gradients = value_and_gradients(function, arrays, **options)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol)
  for name, a, b in zip('qkvd', gradients, want_gradients, strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
