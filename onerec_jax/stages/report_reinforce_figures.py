"""Pictures of reinforcement and of generated items: arrays in, PNG bytes out.

Predicted rewards are indigo, true ones teal; what was before is light.  No
files; a picture never invents data.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from matplotlib import axes as mpl_axes
from matplotlib import ticker

from onerec_jax.stages import report_canvas as canvas

TRUTH_BEFORE = '#8cc7c0'  # true rewards before training went on
# A panel whose largest value is so many times the smallest has a log axis.
_LOG_RANGE = 30.0


class Tone(NamedTuple):
  """How a line is drawn."""

  colour: str
  dashed: bool = False


PREDICTED, TRUE = Tone(canvas.ACCENT), Tone(canvas.TRUTH)
PREDICTED_BEST = Tone(canvas.ACCENT, dashed=True)
TRUE_BEST = Tone(canvas.TRUTH, dashed=True)
MAIN, LIGHT = Tone(canvas.ACCENT), Tone(canvas.BEFORE)
OTHER = Tone(canvas.MUTED)
BAD = Tone(canvas.WORSE)


@canvas.draw
def pass_at(
  sizes: Sequence[int],
  panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
  *,
  before: str | None,
) -> bytes:
  """Best reward of the first K items over K, one panel per kind of reward.

  Args:
    sizes: K, ascending.
    panels: 'predicted' or 'true' -> model -> {'mean', 'low', 'high'} per K.
    before: model in the light colour.
  """
  result, axes = canvas.panels(columns=len(panels))
  for ax, (kind, models) in zip(axes, panels.items(), strict=True):
    dark, light = (
      (canvas.TRUTH, TRUTH_BEFORE)
      if kind == 'true'
      else (canvas.ACCENT, canvas.BEFORE)
    )
    for name, values in models.items():
      tone = light if name == before else dark
      means, low, high = (
        [_known(v[key]) for v in values] for key in ('mean', 'low', 'high')
      )
      ax.fill_between(sizes, low, high, color=tone, alpha=0.16, linewidth=0)
      ax.plot(sizes, means, color=tone, marker='o', markersize=4, label=name)
    ax.set_xscale('log')
    ax.set_xticks(list(sizes), [str(k) for k in sizes])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    if len(sizes) == 1:  # a log axis of no width
      ax.set_xlim(sizes[0] / 2, sizes[0] * 2)
    ax.grid(axis='x', visible=False)
    ax.set_xlabel('K, items')
    ax.set_title(kind, fontweight='bold')
    if any(len(m) > 1 for m in panels.values()):
      ax.legend(loc='upper left', fontsize=8.5)
      ax.margins(y=0.22)  # room for it
  axes[0].set_ylabel('P-Score of the best')
  return canvas.png(result)


@canvas.draw
def lines(
  series: Mapping[str, tuple[Sequence[canvas.Number], Sequence[Any], Tone]],
  *,
  label: str,
  percent: bool = False,
  levels: Mapping[str, float] | None = None,
) -> bytes:
  """Lines over training steps in given colours, on a log axis where needed.

  Args:
    series: name -> steps, values, how it is drawn.
    label: of the y axis.
    percent: y values are shares of 1, from 0.
    levels: name -> height of a thin line to compare with.
  """
  result, (ax,) = canvas.panels()
  for name, height in (levels or {}).items():
    ax.axhline(height, color=canvas.PALE, linewidth=1, linestyle=(0, (2, 2)))
    ax.annotate(
      name,
      (1.0, height),
      xycoords=('axes fraction', 'data'),
      xytext=(-2, 2),
      textcoords='offset points',
      ha='right',
      fontsize=8.5,
      color=canvas.MUTED,
    )
  for name, (steps, values, tone) in series.items():
    ax.plot(
      steps,
      [_known(v) for v in values],
      color=tone.colour,
      linestyle=(0, (3, 1.5)) if tone.dashed else '-',
      marker='o' if len(steps) <= 25 else None,
      markersize=3.5,
      label=name,
    )
  if len(series) > 1:
    ax.legend(loc='best')
  ax.set_xlabel('training step')
  ax.set_ylabel(label)
  ax.grid(axis='x', visible=False)
  ax.margins(x=0.02)
  canvas.thousands(ax.xaxis)
  shown = [v for _, values, _ in series.values() for v in values]
  if percent:
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    known = [v for v in map(_known, shown) if math.isfinite(v)]
    ax.set_ylim(0, 1.08 * max(known, default=1.0) or 1.0)
  elif _spans(shown):
    _log_axis(ax)
  return canvas.png(result)


def _known(value: Any) -> float:
  return math.nan if value is None else float(value)


def _spans(values: Sequence[Any]) -> bool:
  """Returns whether values lie so far apart that some lines would be flat."""
  known = [v for v in map(_known, values) if math.isfinite(v)]
  if not known or min(known) <= 0:
    return False
  return max(known) > _LOG_RANGE * min(known)


def _log_axis(ax: mpl_axes.Axes) -> None:
  ax.set_yscale('log')
  ax.yaxis.set_major_formatter(
    ticker.FuncFormatter(
      lambda v, _: f'{v:g}' if 1e-3 <= v < 1e5 else f'{v:.0e}'
    )
  )
