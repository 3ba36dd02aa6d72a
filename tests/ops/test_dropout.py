"""Counter-hash dropout: exactness, and statistics of its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.ops import dropout

_RATE = 0.1


def _seeds(n, *, key=0, bits='hash'):
  return dropout.site_seeds(jax.random.key(key), (n,), bits=bits)


def _masks(shape, *, sites=1, key=0, rate=_RATE):
  seeds = _seeds(sites, key=key)
  masks = jax.vmap(lambda s: dropout.keep_mask(s, shape, rate=rate))(seeds)
  return np.asarray(masks)


def _correlation(a, b):
  a, b = (x.astype(np.float64).reshape(-1) for x in (a, b))
  return np.corrcoef(a, b)[0, 1]


@pytest.mark.parametrize('bits', ['hash', 'threefry'])
def test_kept_elements_are_scaled_and_the_rest_is_zero(bits):
  seed = _seeds(1, bits=bits)[0]
  x = jnp.arange(1.0, 1001.0).reshape(10, 100)
  y = np.asarray(dropout.drop(x, seed, rate=_RATE))
  mask = np.asarray(dropout.keep_mask(seed, (10, 100), rate=_RATE))
  # Binomial(1000, 0.1) has standard deviation 9.5: 100 +- 60 is 6 sigma.
  assert 40 < (~mask).sum() < 160
  np.testing.assert_allclose(y, np.where(mask, x / 0.9, 0), rtol=1e-6)


def test_no_seed_or_zero_rate_is_the_identity():
  x = jnp.arange(6.0)
  assert dropout.drop(x, None, rate=0.5) is x
  assert dropout.drop(x, _seeds(1)[0], rate=0.0) is x


@pytest.mark.parametrize('bits', ['hash', 'threefry'])
def test_backward_pass_uses_the_same_mask(bits):
  seed = _seeds(1, bits=bits)[0]
  x = jnp.ones((7, 33))
  gradient = jax.grad(lambda x: dropout.drop(x, seed, rate=0.5).sum())(x)
  np.testing.assert_array_equal(gradient, dropout.drop(x, seed, rate=0.5))


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.5])
def test_share_of_kept_elements_is_one_minus_rate(rate):
  masks = _masks((512, 512), sites=16, rate=rate)
  n = masks.size
  sigma = np.sqrt(rate * (1 - rate) / n)
  assert abs(masks.mean() - (1 - rate)) < 5 * sigma
  # Each single mask as well: 16 of them, 5 sigma.
  each = masks.reshape(16, -1).mean(1)
  assert np.abs(each - (1 - rate)).max() < 5 * sigma * 4


def test_rows_and_columns_show_the_binomial_spread():
  # Regular masks (a bare Weyl sequence, say) have far too even row sums.
  masks = _masks((512, 512), sites=8)
  for axis in (1, 2):
    counts = masks.sum(axis)
    variance = counts.var() / (512 * _RATE * (1 - _RATE))
    # Sample variance of 4096 binomials: 1 +- 0.022 (one sigma).
    assert abs(variance - 1) < 0.12


@pytest.mark.parametrize('shape', [(256, 256), (6, 81, 81), (64, 1024)])
def test_neighbours_in_any_axis_are_uncorrelated(shape):
  masks = _masks(shape, sites=8)
  for axis in range(1, masks.ndim):
    for lag in (1, 2, 3, 4, 8, 16, 32):
      if lag >= masks.shape[axis]:
        continue
      length = masks.shape[axis]
      a = np.take(masks, range(length - lag), axis)
      b = np.take(masks, range(lag, length), axis)
      assert abs(_correlation(a, b)) < 5 / np.sqrt(a.size), (axis, lag)


def test_pairs_of_rows_and_columns_are_uncorrelated():
  mask = _masks((256, 4096))[0].astype(np.float64)
  for m in (mask, mask.reshape(4096, 256).T):
    m = (m - m.mean(1, keepdims=True)) / m.std(1, keepdims=True)
    correlation = m @ m.T / m.shape[1]
    off = correlation[~np.eye(256, dtype=bool)]
    # 32640 pairs of N(0, 1/4096): the largest is about 4.2 sigma.
    assert np.abs(off).max() < 5.5 / np.sqrt(4096)
    assert abs(off.std() * np.sqrt(4096) - 1) < 0.05


def test_four_corners_of_rectangles_are_independent():
  # XOR-linear or additive generators fail: the fourth corner is a function of
  # the other three.
  mask = _masks((1024, 1024), rate=0.5)[0]
  sign = np.where(mask, 1.0, -1.0)
  for dy, dx in ((1, 1), (2, 4), (16, 32), (128, 256), (512, 512)):
    product = (
      sign[:-dy, :-dx] * sign[dy:, :-dx] * sign[:-dy, dx:] * sign[dy:, dx:]
    )
    assert abs(product.mean()) < 5 / np.sqrt(product.size), (dy, dx)


def test_sites_and_steps_are_uncorrelated():
  sites = _masks((4096,), sites=64)
  steps = np.concatenate([_masks((4096,), key=key) for key in range(64)])
  base = jax.random.key(7)
  folded = np.stack(
    [
      dropout.keep_mask(
        dropout.site_seeds(jax.random.fold_in(base, s), (1,), bits='hash')[0],
        (4096,),
        rate=_RATE,
      )
      for s in range(16)
    ]
  )
  for masks in (sites, steps, folded):
    correlation = np.corrcoef(masks.astype(np.float64))
    off = correlation[~np.eye(len(masks), dtype=bool)]
    assert np.abs(off).max() < 5.5 / np.sqrt(4096)


def test_shifted_sites_share_no_stretch_of_mask():
  # A counter generator with additive seeds would repeat a site's mask in
  # another site, displaced.
  a, b = _masks((1 << 15,), sites=2).astype(np.float64) - (1 - _RATE)
  spectrum = np.fft.rfft(a) * np.conj(np.fft.rfft(b))
  correlation = np.fft.irfft(spectrum) / (_RATE * (1 - _RATE) * len(a))
  assert np.abs(correlation).max() < 6 / np.sqrt(len(a))


def test_mask_is_the_same_on_eight_devices():
  mesh = jax.make_mesh(
    (8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  x = np.ones((16, 40), np.float32)
  seed = _seeds(1)[0]
  run = jax.jit(lambda x: dropout.drop(x, seed, rate=0.5))
  np.testing.assert_array_equal(run(jax.device_put(x, spec)), run(x))


def test_dropout_keeps_bfloat16():
  x = jnp.ones((64,), jnp.bfloat16)
  y = dropout.drop(x, _seeds(1)[0], rate=0.5)
  assert y.dtype == jnp.bfloat16
  assert set(np.unique(np.asarray(y, np.float32))) == {0.0, 2.0}
