"""Top-k of a beam search's scores: `lax.top_k`, and in two stages.

One task of gpu_window.py: for some shapes XLA sorts whole rows.  The second
form is exact too; its time decides whether the search should use it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks import device_time


def by_chunks(
  scores: jax.Array, k: int, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the k largest of each row and their places, best first.

  They lie in the k chunks with the largest maxima, so that only the maxima and
  those chunks are sorted: n / chunk + k chunk numbers in place of n.  Equal
  scores in the order of their places, as lax.top_k.

  Args:
    scores: [B, n], n a multiple of `chunk`, at least k chunks.
    k: how many.
    chunk: numbers whose maximum is taken; sqrt(n / k) sorts least.
  """
  rows, length = scores.shape
  parts = scores.reshape(rows, length // chunk, chunk)
  _, best = lax.top_k(jnp.max(parts, axis=2), k)
  # Rising, so that candidates stay in the order of their places.
  best = jnp.sort(best, axis=1)
  kept = jnp.take_along_axis(parts, best[:, :, None], axis=1)
  values, index = lax.top_k(kept.reshape(rows, -1), k)
  first = jnp.take_along_axis(best, index // chunk, axis=1)
  return values, first * chunk + index % chunk


def chunk_of(length: int, k: int) -> int:
  """Returns the power of two next below sqrt(n / k) that fits."""
  chunk = 1
  while 4 * chunk * chunk <= length // k:
    chunk *= 2
  return chunk


def measure(toy: bool) -> dict[str, Any]:
  """Times both forms at the shapes of 128 and 512 beams over 8192 codes."""
  shapes = (
    [(2, 8 * 64, 8)]
    if toy
    else [(64, 128 * 8192, 128), (16, 512 * 8192, 512), (64, 128 * 256, 128)]
  )
  found = {}
  for rows, length, k in shapes:
    # Few different values: equal ones must come in the same order.
    scores = jax.random.randint(
      jax.random.key(0), (rows, length), 0, 1 << 20
    ).astype(jnp.float32)
    chunk = chunk_of(length, k)
    runs = {
      'library': jax.jit(functools.partial(lax.top_k, k=k)),
      'chunks': jax.jit(functools.partial(by_chunks, k=k, chunk=chunk)),
    }
    answers = {n: jax.device_get(run(scores)) for n, run in runs.items()}
    for ours, theirs in zip(*answers.values(), strict=True):
      np.testing.assert_array_equal(ours, theirs)
    entry: dict[str, Any] = {
      name: device_time.seconds_per_call(
        functools.partial(run, scores), rounds=2 if toy else 5, calls=3
      )
      for name, run in runs.items()
    }
    entry['chunk'] = chunk
    entry['speed_of_chunks'] = (
      entry['library']['seconds'] / entry['chunks']['seconds']
    )
    found[f'{rows} x {length}, k {k}'] = entry
  return found
