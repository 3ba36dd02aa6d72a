"""Seconds of calls to an accelerator, and their share of its peak."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from onerec_jax import accelerators


def seconds_per_call(
  call: Callable[[], Any], *, rounds: int, calls: int
) -> dict[str, float]:
  """Returns median, least and most seconds of a call, over `rounds`.

  A round sends `calls` to the device and waits for the last, so that the host
  is hidden where it can be.
  """
  jax.block_until_ready(call())
  spent = []
  for _ in range(rounds):
    start = time.perf_counter()
    result = None
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    spent.append((time.perf_counter() - start) / calls)
  return {
    'seconds': statistics.median(spent),
    'seconds_min': min(spent),
    'seconds_max': max(spent),
  }


def utilisation(work: float, spent: float) -> float | None:
  """Returns the share of the device's bf16 peak; None: peak unknown."""
  peak = accelerators.peak_flops(jax.devices()[0].device_kind)
  return None if peak is None else work / (spent * peak)
