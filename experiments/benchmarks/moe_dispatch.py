"""Times dropless expert dispatch against its FLOP floor.

  python -m experiments.benchmarks.moe_dispatch --threads=1

The floor is the time that the experts' matrix products alone would take at the
speed of one large matmul, measured beside each form.  Every form computes the
same result.  Writes results/moe_dispatch.json.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import harness
from onerec_jax import huge_pages

_RESULT = harness.RESULTS / 'moe_dispatch.json'
_PEAK = 2048  # side of the square matmul that defines the peak
_TOP_K = 2
# (tokens, embed, hidden, experts); the fourth is the decoder of a v1 model of
# width 512 at batch 256 with m = 5, halved.
_SHAPES = (
  (4096, 128, 512, 24),
  (4096, 128, 512, 8),
  (4096, 128, 512, 64),
  (2560, 512, 1024, 24),
  (2048, 128, 256, 64),
)


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
  import jax

  wall, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(run())
  return time.perf_counter() - wall, time.process_time() - cpu


def measure(
  shape: tuple[int, int, int, int],
  *,
  rounds: int,
  forms: list[str],
  dtype: str = 'float32',
  peak_side: int = _PEAK,
) -> dict[str, Any]:
  """Returns medians over rounds of every form, forward and with gradients.

  Args:
    shape: tokens, embed, hidden, experts.
    rounds: timed ones.
    forms: 'dense', 'blocks', 'ragged'; the first is what others must equal.
    dtype: of tokens and experts; the router is float32.
    peak_side: of the square matmul that defines the peak.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from onerec_jax.ops import moe

  tokens, embed, hidden, experts = shape
  generator = np.random.default_rng(0)

  def normal(*shape: int) -> jax.Array:
    values = generator.standard_normal(shape) * shape[-2] ** -0.5
    return jnp.asarray(values, dtype)

  weights = moe.ExpertWeights(
    normal(experts, embed, hidden), None, normal(experts, hidden, embed)
  )
  x, router = normal(tokens, embed) * tokens**0.5, normal(embed, experts)
  mask = jnp.ones((tokens,), bool)

  def layer(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def apply(x, router, weights):
      routing = moe.route(
        x.astype(jnp.float32) @ router.astype(jnp.float32),
        jnp.zeros(experts),
        top_k=_TOP_K,
        gate='softmax',
        normalize=False,
      )
      return run(x, routing, weights, mask, activation=jax.nn.relu)

    return apply

  known = {
    'dense': moe.dense_experts,
    'blocks': functools.partial(moe.grouped_experts, matmul='blocks'),
    'ragged': functools.partial(moe.grouped_experts, matmul='ragged'),
  }
  square = normal(peak_side, peak_side)
  multiply = jax.jit(jnp.matmul).lower(square, square).compile()
  runs: dict[str, Callable[[], Any]] = {
    'peak': functools.partial(multiply, square, square)
  }
  args = (x, router, weights)
  outputs = {}
  for name in forms:
    apply = layer(known[name])
    forward = jax.jit(apply).lower(*args).compile()
    both = (
      jax.jit(
        jax.grad(
          lambda *a, f=apply: jnp.sum(f(*a).astype(jnp.float32) ** 2),
          argnums=(0, 1, 2),
        )
      )
      .lower(*args)
      .compile()
    )
    runs[f'{name}_forward'] = functools.partial(forward, *args)
    runs[f'{name}_gradient'] = functools.partial(both, *args)
    outputs[name] = np.asarray(forward(*args), np.float32)
  tolerance = 2e-2 if dtype == 'bfloat16' else 1e-3
  for name, y in outputs.items():
    np.testing.assert_allclose(
      y, outputs[forms[0]], rtol=tolerance, atol=0.1 * tolerance, err_msg=name
    )
  peak = runs.pop('peak')
  times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
  peaks: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
  for number in range(rounds + 1):
    for name, run in runs.items():
      # Fastest of three: the arrays of one evict another's from the caches.
      # The peak is taken beside each measurement, because the speed of a
      # shared core changes by half within seconds.
      best = min(_timed(peak) for _ in range(3))
      result = min(_timed(run) for _ in range(3))
      if number:  # the first round warms up
        peaks[name].append(best)
        times[name].append(result)
  flops = 2 * 2 * tokens * _TOP_K * embed * hidden
  report: dict[str, Any] = {
    'tokens, embed, hidden, experts': shape,
    'dtype': dtype,
    'forward_gflop': flops / 1e9,
  }
  for name in runs:
    wall, cpu = zip(*times[name], strict=True)
    work = flops * (3 if name.endswith('gradient') else 1)
    floor = work / (2 * peak_side**3)  # in units of the peak matmul
    ratios = {
      clock: [
        t[i] / (floor * p[i])
        for t, p in zip(times[name], peaks[name], strict=True)
      ]
      for i, clock in enumerate(('wall', 'cpu'))
    }
    report[name] = {
      'peak_gflops_cpu_median': 2
      * peak_side**3
      / statistics.median(p[1] for p in peaks[name])
      / 1e9,
      'cpu_seconds_median': statistics.median(cpu),
      'wall_seconds_median': statistics.median(wall),
      'times_floor_cpu_median': statistics.median(ratios['cpu']),
      'times_floor_cpu_min': min(ratios['cpu']),
      'times_floor_cpu_max': max(ratios['cpu']),
      'times_floor_wall_median': statistics.median(ratios['wall']),
      'times_floor_wall_min': min(ratios['wall']),
      'times_floor_wall_max': max(ratios['wall']),
    }
    print(
      f'{shape} {name}: {1e3 * report[name]["cpu_seconds_median"]:.0f} ms'
      ' cpu,'
      f' {report[name]["times_floor_cpu_median"]:.2f} x floor',
      flush=True,
    )
  return report


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--threads', type=int, choices=(1,))
  parser.add_argument('--forms', default='blocks,ragged,dense')
  parser.add_argument('--output', default=str(_RESULT))
  args = parser.parse_args()
  if args.threads == 1:  # before JAX counts the cores
    harness.use_one_core()
  forms = args.forms.split(',')
  results = [
    measure(
      shape,
      rounds=args.rounds,
      # The slow forms take minutes on the larger shapes.
      forms=forms if shape == _SHAPES[0] else forms[:1],
    )
    for shape in _SHAPES
  ]
  report = harness.report(
    'moe_dispatch',
    ('jax', 'jaxlib'),
    threads=args.threads or os.cpu_count(),
    results=results,
  )
  harness.write(args.output, report)


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
