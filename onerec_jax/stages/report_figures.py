"""Pictures of training, ranking and semantic IDs: arrays in, PNG bytes out.

No files.  A picture never invents data: the caller leaves out what a run has
not recorded.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker

from onerec_jax.stages import report_canvas as canvas

Curve = tuple[Sequence[canvas.Number], Sequence[Any]]  # steps, values


@canvas.draw
def curves(
  series: Mapping[str, Curve],
  *,
  label: str,
  x_label: str = 'training step',
  emphasis: str | None = None,
  percent: bool = False,
  breaks: Sequence[canvas.Number] = (),
) -> bytes:
  """Lines over training steps.

  Args:
    series: name -> (steps, values); names are written at the line's end.
    label: of the y axis.
    x_label: of the x axis.
    emphasis: this one in the accent colour, the others grey; None: tones.
    percent: y values are shares of 1.
    breaks: steps at which something began anew, marked by a line.
  """
  result, (ax,) = canvas.panels()
  tones = canvas.shades(len(series))
  # Four tones of one colour are hard to tell apart by tone alone.
  styles = ('-', '--', ':', '-.') if len(series) > 3 else ('-',)
  for place, (tone, (name, (steps, values))) in enumerate(
    zip(tones, series.items(), strict=True)
  ):
    colour = tone
    if emphasis is not None:
      colour = canvas.ACCENT if name == emphasis else canvas.MUTED
    few = len(steps) <= 25
    ax.plot(
      steps, values, color=colour, label=name,
      linestyle=styles[place % len(styles)],
      marker='o' if few else None, markersize=3.5,
    )  # fmt: skip
  for step in breaks:
    ax.axvline(step, color=canvas.PALE, linewidth=1, linestyle=(0, (2, 2)))
  if len(series) > 1:
    ax.legend(loc='best')
  ax.set_xlabel(x_label)
  ax.set_ylabel(label)
  ax.grid(axis='x', visible=False)
  ax.margins(x=0.02)
  canvas.thousands(ax.xaxis)
  if percent:
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    ax.set_ylim(bottom=0)
  return canvas.png(result)


@canvas.draw
def method_bars(
  rows: Sequence[tuple[str, Mapping[str, float]]],
  *,
  ours: str,
  label: str,
  before: str | None = None,
) -> bytes:
  """Horizontal bars with 95 % intervals, best first.

  Args:
    rows: (name, {'mean', 'low', 'high'}) per method.
    ours: its bar has the accent colour.
    label: of the x axis.
    before: ours before alignment, in a light accent colour.
  """
  tones = {ours: canvas.ACCENT, before: canvas.BEFORE}
  rows = sorted(rows, key=lambda r: r[1]['mean'])
  result, (ax,) = canvas.panels(height=0.75 + 0.42 * len(rows))
  means = [r[1]['mean'] for r in rows]
  bounds = [
    [max(r[1]['mean'] - r[1]['low'], 0) for r in rows],
    [max(r[1]['high'] - r[1]['mean'], 0) for r in rows],
  ]
  ax.barh(
    range(len(rows)),
    means,
    xerr=bounds,
    color=[tones.get(r[0], canvas.PALE) for r in rows],
    height=0.66,
    error_kw={'ecolor': canvas.INK, 'elinewidth': 1, 'capsize': 2.5},
  )
  for y, (name, value) in enumerate(rows):
    ax.annotate(
      f'{value["mean"]:.4f}',
      (max(value['high'], value['mean']), y),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
      fontsize=9.5,
      fontweight='bold' if name == ours else 'normal',
      color=canvas.INK if name == ours else canvas.MUTED,
    )
  canvas.name_rows(ax, [r[0] for r in rows], bold=(ours,))
  ax.set_xlim(0, 1.16 * max([r[1]['high'] for r in rows] + [1e-4]))
  ax.set_xlabel(label)
  return canvas.png(result)


@canvas.draw
def slice_bars(
  slices: Sequence[Mapping[str, Any]],
  *,
  methods: Mapping[str, str],
  metric: str,
  label: str,
  before: str | None = None,
) -> bytes:
  """Two or more methods side by side per slice, with intervals.

  Args:
    slices: rows {'slice', 'users', 'methods': {method: {metric: interval}}}.
    methods: key in the rows -> name shown; the first has the accent colour.
    metric: e.g. 'recall@10'.
    label: of the y axis.
    before: key of ours before alignment, in a light accent colour.
  """
  result, (ax,) = canvas.panels()
  tones = {next(iter(methods)): canvas.ACCENT, before: canvas.BEFORE}
  width = 0.8 / len(methods)
  for m, (method, name) in enumerate(methods.items()):
    values = [
      row['methods'].get(method, {}).get(metric, _ZERO) for row in slices
    ]
    ax.bar(
      np.arange(len(slices)) + (m - (len(methods) - 1) / 2) * width,
      [v['mean'] for v in values],
      width=0.92 * width,
      yerr=[
        [max(v['mean'] - v['low'], 0) for v in values],
        [max(v['high'] - v['mean'], 0) for v in values],
      ],
      color=tones.get(method, canvas.PALE),
      label=name,
      error_kw={'ecolor': canvas.INK, 'elinewidth': 1, 'capsize': 2.5},
    )
  ax.set_xticks(
    range(len(slices)),
    [f'{row["slice"]}\n{row["users"]:,} users' for row in slices],
  )
  ax.tick_params(axis='x', length=0, labelcolor=canvas.INK)
  ax.grid(axis='x', visible=False)
  ax.set_ylabel(label)
  ax.legend(loc='best')
  return canvas.png(result)


_ZERO = {'mean': 0.0, 'low': 0.0, 'high': 0.0}


@canvas.draw
def code_usage(
  sizes: Sequence[Sequence[int]],
  other: tuple[str, Sequence[Sequence[int]]] | None = None,
) -> bytes:
  """Items per code, codes sorted by size, one panel per level.

  Args:
    sizes: items on each code, per level.
    other: name and the same of another quantizer on the same vectors.
  """
  result, panels = canvas.panels(height=2.7, columns=len(sizes))
  top = max(max(s, default=0) for s in [*sizes, *(other[1] if other else [])])
  for level, ax in enumerate(panels):
    ordered = np.sort(np.asarray(sizes[level]))[::-1]
    places = np.arange(1, len(ordered) + 1)
    if other is not None and level < len(other[1]):
      compared = np.sort(np.asarray(other[1][level]))[::-1]
      ax.plot(
        np.arange(1, len(compared) + 1),
        compared,
        color=canvas.MUTED,
        linewidth=1.3,
        linestyle=(0, (4, 2)),
        label=other[0],
      )
    ax.fill_between(
      places, ordered, step='mid', color=canvas.ACCENT, alpha=0.18
    )
    ax.step(places, ordered, where='mid', color=canvas.ACCENT, label='this run')
    ax.set_title(f'level {level + 1}')
    ax.set_ylim(0, 1.05 * top)
    ax.set_xlim(0, len(ordered) + 1)
    ax.set_xlabel('codes by size')
    ax.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    ax.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if level:
      ax.tick_params(labelleft=False)
  panels[0].set_ylabel('items per code')
  if other is not None:
    panels[-1].legend(loc='upper right')
  return canvas.png(result)


@canvas.draw
def expert_load(load: Sequence[Sequence[Any]]) -> bytes:
  """Share of tokens per expert and layer, relative to a fair share of 1.

  Args:
    load: tokens (or shares) per expert. [layers, experts]
  """
  table = np.asarray(load, np.float64)
  table = table / np.maximum(table.mean(axis=1, keepdims=True), 1e-30)
  layers, experts = table.shape
  result, (ax,) = canvas.panels(height=1.3 + 0.34 * layers)
  image = ax.imshow(
    table, cmap=canvas.RAMP, aspect='auto', vmin=0, vmax=max(2.0, table.max())
  )
  ax.set_xticks(np.arange(experts)[:: max(1, experts // 12)])
  ax.set_yticks(range(layers), [f'layer {i + 1}' for i in range(layers)])
  ax.set_xlabel('expert')
  ax.grid(visible=False)
  ax.tick_params(length=0)
  for spine in ax.spines.values():
    spine.set_visible(False)
  bar = result.colorbar(image, ax=ax, pad=0.02)
  bar.outline.set_visible(False)  # type: ignore[operator] # wrong in the stubs
  bar.set_label('load / fair share')
  return canvas.png(result)


@canvas.draw
def entropy_bars(
  entropy: Sequence[float], codes_per_level: Sequence[int]
) -> bytes:
  """Predictive entropy of each level beside the entropy of guessing.

  Args:
    entropy: mean softmax entropy per level, nats.
    codes_per_level: number of codes; ln of it is the most there can be.
  """
  result, (ax,) = canvas.panels(height=2.7)
  places = np.arange(len(entropy))
  most = np.log(np.asarray(codes_per_level, np.float64))
  ax.bar(
    places, most, width=0.5, color=canvas.GRID, label='uniform over all codes'
  )
  ax.bar(places, entropy, width=0.5, color=canvas.ACCENT, label='model')
  for x, value in enumerate(entropy):
    ax.annotate(
      f'{value:.2f}',
      (x, value),
      xytext=(0, 4),
      textcoords='offset points',
      ha='center',
      fontsize=9.5,
      fontweight='bold',
    )
  ax.set_xticks(places, [f'level {i + 1}' for i in places])
  ax.tick_params(axis='x', length=0, labelcolor=canvas.INK)
  ax.grid(axis='x', visible=False)
  ax.set_ylabel('entropy, nats')
  ax.set_ylim(0, 1.3 * max(most.max(), max(entropy)))
  ax.legend(loc='upper right', ncols=2)
  return canvas.png(result)
