"""How cost grows with items, history, experts, beams and devices: any cliff?

  python -m experiments.benchmarks.cost_curves
  python -m experiments.benchmarks.cost_curves --curves=items,beams

CPU times where a time means something; FLOPs of long histories by count, memory
of the compiled program for them, both of it for (fake) devices, which share the
cores of one machine.
Between two neighbouring points a cost grows as x^e; e above the expected
exponent by more than a half is called a cliff.  Every curve has a process of
its own.  Writes results/cost_curves.json and .png.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import curve_tasks
from experiments.benchmarks import harness
from onerec_jax import huge_pages

# e may be so much above what is expected: noise, and steps of powers of two.
_CLIFF = 0.5


def steepest(
  x: Sequence[float], y: Sequence[float]
) -> tuple[float, float, float]:
  """Returns the largest exponent between neighbours, and where it is.

    e = log(y_2 / y_1) / log(x_2 / x_1)

  Args:
    x: rising.
    y: positive.
  """
  pairs = itertools.pairwise(zip(x, y, strict=True))
  return max(
    (math.log(y2 / y1) / math.log(x2 / x1), x1, x2)
    for (x1, y1), (x2, y2) in pairs
  )


def verdict(x: Sequence[float], series: curve_tasks.Series) -> str:
  """Returns in words whether a series has a cliff."""
  found, before, after = steepest(x, series.values)
  text = f'at most x^{found:.2f} between neighbours, expected x^'
  text += f'{series.expected:g}'
  if found > series.expected + _CLIFF:
    return f'CLIFF from {before:g} to {after:g}: {text}'
  return f'no cliff: {text}'


# --- Output -----------------------------------------------------------------


def as_json(curve: curve_tasks.Curve) -> dict[str, Any]:
  """Returns a curve with its verdicts, for the result file."""
  return {
    'x': curve.x,
    'series': {
      name: {**series._asdict(), 'verdict': verdict(curve.x, series)}
      for name, series in curve.series.items()
    },
    **curve.notes,
  }


def draw(curves: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
  """Draws every series over its first point, on logarithmic axes."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot
  from matplotlib import ticker

  figure, axes = pyplot.subplots(
    1, len(curves), figsize=(4 * len(curves), 3.6), squeeze=False
  )
  for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
    for label, series in curve['series'].items():
      values = series['values']
      axis.plot(
        curve['x'], [v / values[0] for v in values], marker='o', label=label
      )
    ends = [curve['x'][0], curve['x'][-1]]
    axis.plot(ends, [1, ends[1] / ends[0]], ':', color='gray', label='linear')
    axis.set_xscale('log')
    axis.set_yscale('log')
    axis.set_xlabel(name)
    axis.set_xticks(curve['x'], [f'{x:.4g}' for x in curve['x']], rotation=45)
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:g}'))
    for side in (axis.xaxis, axis.yaxis):
      side.set_minor_formatter(ticker.NullFormatter())
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
  axes[0][0].set_ylabel('cost over that of the first point')
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _serve(connection: Any, name: str, toy: bool) -> None:
  connection.send(as_json(curve_tasks.CURVES[name](toy)))


def _measure(name: str, toy: bool) -> dict[str, Any]:
  """Runs one curve in a process of its own."""
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe(duplex=False)
  child = context.Process(target=_serve, args=(there, name, toy))
  child.start()
  there.close()
  try:
    found = here.recv()
  except EOFError as error:
    raise RuntimeError(f'The process of the curve {name!r} failed.') from error
  finally:
    child.join()
  return found


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--curves',
    default=','.join(curve_tasks.CURVES),
    help='others are kept as they are in the result file',
  )
  parser.add_argument('--toy', action='store_true')
  parser.add_argument(
    '--output', type=pathlib.Path, default=harness.RESULTS / 'cost_curves.json'
  )
  arguments = parser.parse_args()
  curves: dict[str, Any] = {}
  if arguments.output.exists():
    curves = json.loads(arguments.output.read_text())['curves']
  for name in arguments.curves.split(','):
    curves[name] = _measure(name, arguments.toy)
    for label, series in curves[name]['series'].items():
      print(f'{name}, {label}: {series["verdict"]}', flush=True)
    curves = {n: curves[n] for n in curve_tasks.CURVES if n in curves}
    harness.write(
      arguments.output,
      harness.report('cost_curves', ('jax', 'flax', 'numpy'), curves=curves),
    )
  draw(curves, arguments.output.with_suffix('.png'))


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
