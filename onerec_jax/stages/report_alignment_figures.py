"""Pictures of reward model and alignment: arrays in, PNG bytes out.

Predicted rewards are indigo, true ones teal.  No files; a picture never
invents data: the caller leaves out what a run has not recorded.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker

from onerec_jax.stages import report_canvas as canvas

# Bars of one softmax that a panel still shows apart.
MAX_CODES = 64


@canvas.draw
def calibration(
  towers: Sequence[tuple[str, Sequence[Mapping[str, canvas.Number]]]],
) -> bytes:
  """Mean label against mean prediction in bins, one panel per tower.

  Args:
    towers: name and bins {'mean_prediction', 'mean_label', 'count'}.
  """
  columns = 3 if len(towers) in (3, 5, 6) else min(len(towers), 2)
  rows = -(-len(towers) // columns)
  result, panels = canvas.panels(
    height=0.5 + (2.25 if columns < 3 else 1.9) * rows,
    rows=rows,
    columns=columns,
  )
  for ax, (name, bins) in zip(panels, towers, strict=False):
    predicted = [b['mean_prediction'] for b in bins]
    labels = [b['mean_label'] for b in bins]
    top = 1.08 * max(*predicted, *labels, 1e-6)
    ax.plot(
      [0, top], [0, top], color=canvas.MUTED, linewidth=1, linestyle=(0, (4, 2))
    )
    ax.plot(predicted, labels, color=canvas.ACCENT, marker='o', markersize=3.5)
    ax.set_xlim(0, top)
    ax.set_ylim(0, top)
    ax.set_aspect('equal')
    ax.set_title(name, fontweight='bold')
    for axis in (ax.xaxis, ax.yaxis):
      axis.set_major_locator(ticker.MaxNLocator(3))
      axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
    ax.tick_params(labelsize=8.5)
  for ax in panels[len(towers) :]:
    ax.set_visible(False)
  result.supxlabel('mean prediction', fontsize=10, color=canvas.MUTED)
  result.supylabel('mean label', fontsize=10, color=canvas.MUTED)
  return canvas.png(result)


@canvas.draw
def relative_changes(
  predicted: Mapping[str, Mapping[str, canvas.Number]],
  true: Mapping[str, Mapping[str, canvas.Number]],
  *,
  label: str,
) -> bytes:
  """Dots with 95 % intervals around a line at no change.

  Args:
    predicted: reward -> {'mean', 'low', 'high'} as shares of the value before.
    true: the same of true rewards, in the same row; may be empty.
    label: of the x axis.
  """
  names = list(dict.fromkeys([*predicted, *true]))[::-1]
  apart = 0.19 if true else 0.0
  result, (ax,) = canvas.panels(
    height=0.75 + (0.5 if true else 0.34) * len(names)
  )
  ax.axvline(0, color=canvas.INK, linewidth=1)
  shown = [*predicted.values(), *true.values()]
  for colour, found, shift in (
    (canvas.ACCENT, predicted, apart),
    (canvas.TRUTH, true, -apart),
  ):
    for name, value in found.items():
      y = names.index(name) + shift
      ends = [value['low'], value['high']]
      ax.plot(ends, [y, y], color=colour, linewidth=2.2)
      ax.plot(value['mean'], y, color=colour, marker='o', markersize=5.5)
      ax.annotate(
        f'{100 * value["mean"]:+.1f} %'.replace('-', '−'),
        (max(value['high'], 0), y),
        xytext=(7, 0),
        textcoords='offset points',
        va='center',
        fontsize=8.5 if true else 9.5,
        color=colour if true else canvas.INK,
      )
  if true:
    for y in range(len(names) - 1):
      ax.axhline(y + 0.5, color=canvas.GRID, linewidth=0.8)
  canvas.name_rows(ax, names)
  ax.set_ylim(-0.6, len(names) - 0.4)
  low = min(0.0, *(v['low'] for v in shown))
  high = max(0.0, *(v['high'] for v in shown))
  # Room for the number right of the interval.
  room = max(high - low, 1e-4)
  ax.set_xlim(low - 0.05 * room, high + 0.2 * room)
  canvas.percents(ax.xaxis)
  ax.set_xlabel(label)
  return canvas.png(result)


@canvas.draw
def round_rewards(
  predicted: Mapping[str, Sequence[canvas.Number | None]],
  true: Mapping[str, Sequence[canvas.Number | None]],
  *,
  label: str,
) -> bytes:
  """Mean rewards of what was generated, per round of alignment.

  Args:
    predicted: 'chosen', 'candidates', 'rejected' -> value per round.
    true: the same by the world's law; may be empty.
    label: of the y axis.
  """
  result, (ax,) = canvas.panels()
  styles = {'chosen': 'o', 'candidates': 's', 'rejected': 'v'}
  count = 0
  for colour, series, kind in (
    (canvas.ACCENT, predicted, ''),
    (canvas.TRUTH, true, ', true'),
  ):
    for name, values in series.items():
      count = max(count, len(values))
      ax.plot(
        range(1, len(values) + 1),
        _gaps(values),
        color=colour,
        marker=styles.get(name, 'o'),
        markersize=5,
        linestyle='-' if name == 'candidates' else (0, (3, 1.5)),
        linewidth=2 if name == 'candidates' else 1.3,
        label=f'{name}{kind}',
      )
  _round_axis(ax, count)
  ax.set_ylabel(label)
  ax.legend(loc='center left', bbox_to_anchor=(1.0, 0.5))
  return canvas.png(result)


def _gaps(values: Sequence[canvas.Number | None]) -> list[float]:
  return [math.nan if v is None else v for v in values]


def _round_axis(ax: Any, count: int) -> None:
  ax.set_xticks(range(1, count + 1))
  ax.set_xlim(0.7, count + 0.3)
  ax.set_xlabel('round')
  ax.grid(axis='x', visible=False)


@canvas.draw
def seconds_bars(rounds: Sequence[Mapping[str, canvas.Number]]) -> bytes:
  """Where the time of each round went, as stacked bars.

  Args:
    rounds: kind -> seconds; the same kinds in all rounds.
  """
  kinds = list(rounds[0])
  result, (ax,) = canvas.panels(height=1.15 + 0.42 * len(rounds))
  names = [f'round {i + 1}' for i in range(len(rounds))][::-1]
  left = np.zeros(len(rounds))
  tones = canvas.shades(max(len(kinds) - 1, 1))
  for place, kind in enumerate(kinds):
    values = np.array([r.get(kind, 0.0) for r in rounds[::-1]])
    # Training last and grey: it is what remains beside making the pairs.
    last = place == len(kinds) - 1
    ax.barh(
      range(len(rounds)),
      values,
      left=left,
      height=0.62,
      color=canvas.PALE if last else tones[place],
      label=kind,
    )
    left += values
  for y, total in enumerate(left):
    ax.annotate(
      f'{total:,.0f} s' if total >= 10 else f'{total:.1f} s',
      (total, y),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
      fontsize=9.5,
    )
  canvas.name_rows(ax, names)
  ax.set_xlim(0, 1.14 * max(left.max(), 1e-3))
  ax.set_xlabel('seconds')
  result.legend(loc='outside upper left', ncols=len(kinds), handlelength=1)
  return canvas.png(result)


def entropy(probabilities: Sequence[canvas.Number]) -> float:
  """Returns -Σ p ln p in nats; probabilities of 0 add nothing."""
  p = np.asarray(probabilities, np.float64)
  p = p[p > 0]
  return float(-(p * np.log(p)).sum())


@canvas.draw
def code_probabilities(
  models: Mapping[str, Sequence[Sequence[canvas.Number]]], codes: Sequence[int]
) -> bytes:
  """Softmax over the codes of each level per model, one item's code marked.

  A level of more than 64 codes shows those with the highest probability in
  any model, in the order of their numbers.

  Args:
    models: name -> level -> probability of every code; before, then after.
    codes: the item's code on each level, given the codes before it.
  """
  levels = len(codes)
  result, panels = canvas.panels(
    height=0.5 + 1.6 * len(models),
    rows=len(models),
    columns=levels,
    sharex='col',
    sharey='col',
  )
  tones = [canvas.BEFORE, canvas.ACCENT]
  for row, (name, probabilities) in enumerate(models.items()):
    for level, code in enumerate(codes):
      ax = panels[row * levels + level]
      shown = _shown_codes([m[level] for m in models.values()], code)
      values = np.asarray(probabilities[level], np.float64)[shown]
      # Room for the text above the highest bar of all models.
      ax.set_ylim(0, 1.3 * max(*(max(m[level]) for m in models.values()), 1e-6))
      colours = [canvas.PALE] * len(shown)
      place = int(np.searchsorted(shown, code))
      colours[place] = tones[-1] if row or len(models) == 1 else tones[0]
      # Thin bars would vanish between pixels.
      ax.bar(range(len(shown)), values, width=1.0, color=colours)
      ax.plot(
        place, values[place], marker='v', color=canvas.INK, markersize=4.5,
        clip_on=False,
      )  # fmt: skip
      nats = entropy(probabilities[level])
      ax.set_title(
        f'level {level + 1}: H = {nats:.2f} nats'
        if levels <= 3
        else f'H = {nats:.2f} nats',
        fontsize=10,
      )
      ax.annotate(
        f'p = {values[place]:.3f}',
        (0.98, 0.97),
        xycoords='axes fraction',
        ha='right',
        va='top',
        fontsize=10,
        fontweight='bold',
      )
      ax.margins(x=0.02)
      ax.grid(axis='x', visible=False)
      ax.set_xticks([place], [f'code {code}'])
      ax.tick_params(axis='both', labelsize=9.5)
      ax.yaxis.set_major_locator(ticker.MaxNLocator(3))
      if level == 0:
        ax.set_ylabel(name, color=canvas.INK, fontsize=10)
  return canvas.png(result)


def _shown_codes(
  models: Sequence[Sequence[canvas.Number]], code: int
) -> np.ndarray:
  """Returns the numbers of the codes to be drawn, ascending."""
  best = np.max(np.asarray(models, np.float64), axis=0)
  best[code] = np.inf
  return np.sort(np.argsort(-best, kind='stable')[:MAX_CODES])
