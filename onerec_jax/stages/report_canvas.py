"""The look of every picture: colours, sizes, and from figure to PNG bytes.

No global matplotlib state outlives a call, no file is written.
"""

import functools
import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import colors
from matplotlib import figure as mpl_figure
from matplotlib import ticker

ACCENT = '#4f46e5'  # ours; predicted rewards
BEFORE = '#a5a1f2'  # ours before alignment
TRUTH = '#0f766e'  # true rewards, where a simulated world knows them
WORSE = '#b45309'  # clearly below what it is compared to
INK = '#1f2937'
MUTED = '#6b7280'
PALE = '#c7cad1'
GRID = '#e9ebef'
# JSON has whole numbers too; the type checker of the tests tells them apart.
Number = int | float
WIDTH, HEIGHT = 6.4, 3.3  # inches; readable when shrunk to a phone's width
DPI = 160
_STYLE: dict[Any, Any] = {
  'font.size': 10,
  'axes.edgecolor': PALE,
  'axes.labelcolor': MUTED,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.titlesize': 10,
  'axes.titlecolor': INK,
  'axes.titlelocation': 'left',
  'grid.color': GRID,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'text.color': INK,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'lines.linewidth': 1.8,
  'lines.solid_capstyle': 'round',
}
RAMP = colors.LinearSegmentedColormap.from_list(
  'accent', ['#f4f4ff', '#a5a1f2', ACCENT, '#272087']
)


def shades(count: int) -> list[Any]:
  """Returns accent tones, dark to light."""
  return [RAMP(v) for v in np.linspace(0.95, 0.4, count)]


def panels(
  *, height: float = HEIGHT, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[mpl_figure.Figure, list[mpl_axes.Axes]]:
  """Returns a figure with its panels, row after row.

  Args:
    height: inches.
    rows: of panels.
    columns: of panels.
    **options: of `Figure.subplots`, e.g. sharey=True.
  """
  result = mpl_figure.Figure(figsize=(WIDTH, height), layout='constrained')
  made = result.subplots(rows, columns, squeeze=False, **options)
  return result, list(made.reshape(-1))


def png(result: mpl_figure.Figure, *, source: str | None = None) -> bytes:
  """Returns the picture as a PNG file.

  Args:
    result: the figure.
    source: written into the file as it is, e.g. a digest of what was drawn.
  """
  buffer = io.BytesIO()
  # No software version or date in the file: equal runs give equal pictures.
  metadata: dict[str, Any] = {'Software': None}
  if source is not None:
    metadata['Source'] = source
  result.savefig(buffer, dpi=DPI, metadata=metadata)
  return buffer.getvalue()


def draw(make: Callable[..., bytes]) -> Callable[..., bytes]:
  """Decorator: runs `make` in the report's style."""

  @functools.wraps(make)
  def wrapped(*args: Any, **kwargs: Any) -> bytes:
    with matplotlib.rc_context(_STYLE):
      return make(*args, **kwargs)

  return wrapped


def thousands(axis: Any) -> None:
  """Writes 12000 on an axis as 12k."""
  axis.set_major_formatter(
    ticker.FuncFormatter(
      lambda v, _: f'{v / 1000:g}k' if abs(v) >= 1000 else f'{v:g}'
    )
  )


def percents(axis: Any) -> None:
  """Writes signed shares of 1 on an axis as percents."""
  axis.set_major_formatter(
    ticker.FuncFormatter(
      lambda v, _: f'{100 * v:+.4g} %'.replace('-', '−') if v else '0'
    )
  )


def name_rows(
  ax: mpl_axes.Axes, names: list[str], *, bold: tuple[str, ...] = ()
) -> None:
  """Writes names on the y axis, row 0 at the bottom, without ticks."""
  ax.set_yticks(range(len(names)), names)
  for text, name in zip(ax.get_yticklabels(), names, strict=True):
    text.set_color(INK)
    text.set_fontweight('bold' if name in bold else 'normal')
  ax.tick_params(axis='y', length=0)
  ax.grid(axis='y', visible=False)
  ax.spines['left'].set_visible(False)
