"""Pictures of a sweep: rows of figures in, PNG bytes out.

Against the base row: indigo above, grey not clearly different, brown below.
Where predicted and true share a panel, the true are teal.  No files.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
from matplotlib import axes as mpl_axes
from matplotlib import ticker

from onerec_jax.stages import report_canvas as canvas

_TONES = {1: canvas.ACCENT, 0: canvas.MUTED, -1: canvas.WORSE}


class Dot(NamedTuple):
  """One row of one column."""

  mean: canvas.Number
  low: canvas.Number  # 95 % interval
  high: canvas.Number
  direction: int  # against the base: 1 above, 0 not clear, -1 below
  seeds: Sequence[canvas.Number] = ()  # means of single seeds


@canvas.draw
def dots(
  names: Sequence[str],
  columns: Mapping[str, Sequence[Dot]],
  *,
  base: str,
) -> bytes:
  """One panel per column: rows with intervals, seeds and the base's line.

  Args:
    names: of the rows, top to bottom.
    columns: title -> one dot per row.
    base: name of the row that the others are compared to.
  """
  result, panels = canvas.panels(
    height=0.65 + 0.27 * len(names), columns=len(columns), sharey=True
  )
  order = list(names)[::-1]
  for ax, (title, found) in zip(panels, columns.items(), strict=True):
    ax.axvline(
      found[list(names).index(base)].mean,
      color=canvas.INK,
      linewidth=0.9,
      linestyle=(0, (3, 2)),
    )
    for y, dot in enumerate(found[::-1]):
      tone = canvas.INK if order[y] == base else _TONES[dot.direction]
      ax.plot([dot.low, dot.high], [y, y], color=tone, linewidth=2)
      if len(dot.seeds) > 1:
        ax.plot(
          dot.seeds, [y] * len(dot.seeds), color=tone, linestyle='none',
          marker='|', markersize=7, markeredgewidth=1, alpha=0.6,
        )  # fmt: skip
      ax.plot(dot.mean, y, color=tone, marker='o', markersize=5)
    if ax is panels[0]:
      canvas.name_rows(ax, order, bold=(base,))
    ax.tick_params(axis='y', length=0)
    ax.spines['left'].set_visible(False)
    ax.set_title(title, fontweight='bold')
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4 if len(columns) < 3 else 2))
    ax.tick_params(axis='x', labelsize=8.5)
    ax.grid(axis='y', visible=True)
  return canvas.png(result)


# --- Predicted against true -------------------------------------------------


@canvas.draw
def predicted_against_true(
  names: Sequence[str],
  predicted: Sequence[Dot],
  true: Sequence[Dot],
  *,
  base: str,
) -> bytes:
  """True over predicted reward, changes against the base as shares of it.

  Args:
    names: of the rows.
    predicted: change of the predicted reward per row, as a share of 1.
    true: the same of the true reward.
    base: its row is the origin.
  """
  result, (ax,) = canvas.panels(height=4.4)
  for x, y in zip(predicted, true, strict=True):
    tone = _TONES[y.direction]
    ax.plot([x.low, x.high], [y.mean] * 2, color=tone, linewidth=1, alpha=0.5)
    ax.plot([x.mean] * 2, [y.low, y.high], color=tone, linewidth=1, alpha=0.5)
    ax.plot(x.mean, y.mean, color=tone, marker='o', markersize=5.5)
  ax.axhline(0, color=canvas.PALE, linewidth=1, zorder=0.9)
  ax.axvline(0, color=canvas.PALE, linewidth=1, zorder=0.9)
  ends = [v for d in (*predicted, *true) for v in (d.low, d.high)]
  low, high = min(ends), max(ends)
  ax.plot(
    [low, high], [low, high], color=canvas.MUTED, linewidth=1,
    linestyle=(0, (4, 2)), zorder=0.9,
  )  # fmt: skip
  ax.margins(0.1)
  canvas.percents(ax.xaxis)
  canvas.percents(ax.yaxis)
  ax.set_xlabel(f'predicted reward against {base}')
  ax.set_ylabel('true reward')
  _place_labels(
    ax,
    names,
    [(x.mean, y.mean) for x, y in zip(predicted, true, strict=True)],
    bold=base,
  )
  return canvas.png(result)


_PLACES = [
  (dx, dy, across)
  for radius in (6, 14, 24, 36)
  for dx, dy, across in (
    (radius, 0, 'left'),
    (-radius, 0, 'right'),
    (0, radius, 'center'),
    (0, -radius, 'center'),
    (radius, radius, 'left'),
    (radius, -radius, 'left'),
    (-radius, radius, 'right'),
    (-radius, -radius, 'right'),
  )
]


def _place_labels(
  ax: mpl_axes.Axes,
  names: Sequence[str],
  points: Sequence[tuple[canvas.Number, canvas.Number]],
  *,
  bold: str,
) -> None:
  """Writes every name near its point, where it covers least.

  Greedy: the first place that is free, else the one with the least overlap
  with points, earlier names and what lies outside the panel.
  """
  figure = ax.get_figure(root=True)
  assert figure is not None
  figure.draw_without_rendering()
  frame = ax.get_window_extent()
  pixels = [ax.transData.transform(p) for p in points]
  half = 5 * figure.dpi / 72
  taken = [
    np.array([x - half, y - half, x + half, y + half]) for x, y in pixels
  ]
  for name, point in zip(names, points, strict=True):
    best, found, least = _PLACES[0], taken[0], np.inf
    for place in _PLACES:
      text = _annotate(ax, name, point, place, bold=name == bold)
      box = text.get_window_extent()
      text.remove()
      corners = np.array([box.x0, box.y0, box.x1, box.y1])
      outside = (
        max(frame.x0 - box.x0, 0)
        + max(box.x1 - frame.x1, 0)
        + max(frame.y0 - box.y0, 0)
        + max(box.y1 - frame.y1, 0)
      )
      cost = sum(_overlap(corners, t) for t in taken) + 1e3 * outside
      if cost < least:
        best, least, found = place, cost, corners
      if not cost:
        break
    _annotate(ax, name, point, best, bold=name == bold)
    taken.append(found)


def _annotate(
  ax: mpl_axes.Axes,
  name: str,
  point: tuple[canvas.Number, canvas.Number],
  place: tuple[int, int, str],
  *,
  bold: bool,
) -> Any:
  dx, dy, across = place
  far = max(abs(dx), abs(dy)) > 10
  return ax.annotate(
    name,
    point,
    xytext=(dx, dy),
    textcoords='offset points',
    ha=across,
    va='center' if not dy else ('bottom' if dy > 0 else 'top'),
    fontsize=8.5,
    fontweight='bold' if bold else 'normal',
    arrowprops={'arrowstyle': '-', 'color': canvas.MUTED, 'linewidth': 0.6}
    if far
    else None,
  )


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the shared area of two boxes (x0, y0, x1, y1)."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  return float(max(width, 0) * max(height, 0))


@canvas.draw
def rounds(
  rows: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], *, label: str
) -> bytes:
  """Predicted and true reward per round, one panel per row.

  Args:
    rows: name -> predicted and true reward per round; one seed after the
      other is one line: [seeds, rounds].
    label: of the y axis.
  """
  columns = min(len(rows), 3)
  lines = -(-len(rows) // columns)
  result, panels = canvas.panels(
    height=0.75 + 1.75 * lines, rows=lines, columns=columns, sharey=True
  )
  for place, (ax, (name, (predicted, true))) in enumerate(
    zip(panels, rows.items(), strict=False)
  ):
    for colour, series, what in (
      (canvas.ACCENT, predicted, 'predicted'),
      (canvas.TRUTH, true, 'true'),
    ):
      for seed, values in enumerate(series):
        ax.plot(
          range(1, len(values) + 1),
          values,
          color=colour,
          linewidth=1.5,
          marker='o',
          markersize=3.5,
          label=what if not seed and not place else None,
        )
    ax.set_title(name, fontsize=9.5)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    ax.grid(axis='x', visible=False)
    ax.margins(x=0.1)
  for ax in panels[len(rows) :]:
    ax.set_visible(False)
  result.supxlabel('round', fontsize=10, color=canvas.MUTED)
  result.supylabel(label, fontsize=10, color=canvas.MUTED)
  result.legend(loc='outside upper right', ncols=2)
  return canvas.png(result)


# --- Overrides --------------------------------------------------------------


@canvas.draw
def override_lines(
  values: Sequence[canvas.Number],
  columns: Mapping[str, Sequence[Dot]],
  *,
  label: str,
  published: Mapping[str, Sequence[canvas.Number]],
) -> bytes:
  """Figures over a setting, relative to its first value; one panel each.

  Args:
    values: of the setting, ascending.
    columns: title -> one dot per value; not relative yet.
    label: of the x axis.
    published: title -> published figures at the same values; a dashed line.
  """
  across = min(len(columns), 4)
  down = -(-len(columns) // across)
  result, panels = canvas.panels(
    height=0.75 + 1.75 * down, rows=down, columns=across, sharey=True
  )
  lines = {}
  for ax, (title, found) in zip(panels, columns.items(), strict=False):
    first = found[0].mean
    ax.axhline(0, color=canvas.PALE, linewidth=1)
    if title in published:
      known = published[title]
      (lines['published'],) = ax.plot(
        values,
        [v / known[0] - 1 for v in known],
        color=canvas.MUTED,
        linewidth=1.2,
        linestyle=(0, (4, 2)),
      )
    ax.fill_between(
      values,
      [d.low / first - 1 for d in found],
      [d.high / first - 1 for d in found],
      color=canvas.ACCENT,
      alpha=0.14,
      linewidth=0,
    )
    (lines['ours'],) = ax.plot(
      values,
      [d.mean / first - 1 for d in found],
      color=canvas.ACCENT,
      marker='o',
      markersize=4,
    )
    ax.set_title(title, fontsize=9.5)
    ax.set_xticks(values, [f'{v:g}' for v in values])
    ax.grid(axis='x', visible=False)
    canvas.percents(ax.yaxis)
    ax.tick_params(labelsize=8.5)
  for ax in panels[len(columns) :]:
    ax.set_visible(False)
  result.supxlabel(label, fontsize=10, color=canvas.MUTED)
  if 'published' in lines:
    result.legend(
      list(lines.values()), list(lines), loc='outside upper right', ncols=2
    )
  return canvas.png(result)
