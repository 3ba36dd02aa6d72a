"""Pictures of the main results, from kept figures alone.

Each carries the digest of what was drawn, so that a picture older than its
figures is found.
"""

import hashlib
import json
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from matplotlib import axes as mpl_axes

from experiments import amazon_figures
from experiments import measured_runs
from experiments import sweep_tables
from onerec_jax.stages import report_canvas as canvas


class Picture(NamedTuple):
  """What is drawn, and how."""

  figures: Any  # JSON
  draw: Callable[[Any, str], bytes]  # (figures, digest) -> PNG

  def digest(self) -> str:
    """Returns the digest of the figures, as the file carries it."""
    text = json.dumps(self.figures, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def png(self) -> bytes:
    """Returns the file."""
    return self.draw(self.figures, self.digest())


# --- Next item --------------------------------------------------------------


def next_item() -> Picture:
  """Returns recall@10 of all methods, and how it grew with samples seen."""
  sets = [_next_item(data) for data in amazon_figures.SETS]
  return Picture([s for s in sets if s is not None], _draw_next_item)


def _next_item(data: str) -> dict[str, Any] | None:
  found = amazon_figures.read(data)
  if found is None:
    return None
  every = found.ours | found.sasrec | found.floors
  return {
    'title': f'Amazon {data}'
    + (f', {found.seeds} seeds' if found.seeds > 1 else ''),
    'rows': {name: x['recall@10'] for name, x in every.items()},
    'published': {
      f'{method}, published': amazon_figures.published_figures(data, method)[
        'recall@10'
      ]
      for method in ('TIGER', 'SASRec')
    },
    'curves': found.curves,
  }


@canvas.draw
def _draw_next_item(sets: Sequence[Mapping[str, Any]], digest: str) -> bytes:
  figure, axes = canvas.panels(
    height=3.7 * len(sets), rows=len(sets), columns=2, width_ratios=(3, 2)
  )
  for place, found in enumerate(sets):
    _draw_bars(axes[2 * place], found)
    _draw_curves(axes[2 * place + 1], found['curves'])
  return canvas.png(figure, source=digest)


def _draw_bars(ax: mpl_axes.Axes, found: Mapping[str, Any]) -> None:
  rows = [
    *((n, x['mean'], x['low'], x['high']) for n, x in found['rows'].items()),
    *((n, x, x, x) for n, x in found['published'].items()),
  ]
  rows.sort(key=lambda row: row[1])
  names, means, lows, highs = map(list, zip(*rows, strict=True))
  ours = [
    name for name in found['rows'] if name.startswith(amazon_figures.OURS)
  ]
  ax.barh(
    range(len(rows)),
    means,
    color=[
      canvas.ACCENT if name == ours[0]
      else canvas.BEFORE if name in ours
      else 'none' if name in found['published']
      else canvas.PALE
      for name in names
    ],
    edgecolor=[
      canvas.MUTED if name in found['published'] else 'none' for name in names
    ],
    height=0.66,
  )  # fmt: skip
  ax.hlines(range(len(rows)), lows, highs, color=canvas.INK, linewidth=1)
  for y, (mean, high) in enumerate(zip(means, highs, strict=True)):
    ax.annotate(
      f'{mean:.3f}', (high, y), xytext=(4, 0), textcoords='offset points',
      va='center', fontsize=8,
    )  # fmt: skip
  canvas.name_rows(ax, names, bold=tuple(ours[:1]))
  ax.tick_params(axis='y', labelsize=8)
  ax.set_xlim(0, 1.2 * max(highs))
  ax.set_title(f'{found["title"]}: recall@10, 95 %')


def _draw_curves(
  ax: mpl_axes.Axes,
  curves: Mapping[str, amazon_figures.Curve],
) -> None:
  for name, (examples, recalls) in curves.items():
    is_ours = name == amazon_figures.OURS
    color = canvas.ACCENT if is_ours else canvas.MUTED
    ax.plot(examples, recalls, color=color, label=name)
  ax.set_title('on validation users')
  ax.set_xlabel('samples seen')
  ax.set_ylim(bottom=0)
  ax.set_xlim(left=0, right=1.1 * ax.get_xlim()[1])  # room for the last label
  ax.legend(loc='lower right', fontsize=8)
  ax.grid(axis='x', visible=False)
  canvas.thousands(ax.xaxis)


# --- Alignment --------------------------------------------------------------

# Kept sweep, column, title; rows but the base and those before it.
_ALIGNED = (
  (
    'table1_synthetic_full', 'true_reward_mean', 'Sessions, against OneRec-L',
    ('+DPO', '+IPO', '+cDPO', '+rDPO', '+CPO', '+SimPO', '+S-DPO', '+IPA'),
  ),
  (
    'tr_ablations_rl', 'true_p_score_mean', 'Items, against RSFT alone',
    ('pre-trained', 'GBPO', 'GRPO', 'ECPO'),
  ),
)  # fmt: skip


def alignment() -> Picture:
  """Returns how much preference alignment moves the true reward."""
  found = []
  for name, column, title, wanted in _ALIGNED:
    run = measured_runs.read(name)
    if run is None:
      continue
    rows = {row['name']: row for row in run['sweep']['rows']}
    shares = {n: sweep_tables.shares(rows[n], column) for n in wanted}
    found.append({'title': title, 'rows': shares})
  return Picture(found, _draw_alignment)


@canvas.draw
def _draw_alignment(found: Sequence[Mapping[str, Any]], digest: str) -> bytes:
  figure, axes = canvas.panels(columns=len(found))
  for ax, part in zip(axes, found, strict=True):
    names = list(part['rows'])
    shares = list(part['rows'].values())
    best = max(part['rows'], key=lambda n: part['rows'][n][0])
    ax.barh(
      range(len(names)),
      [mean for mean, _, _ in shares],
      color=[canvas.TRUTH if n == best else canvas.PALE for n in names],
      height=0.66,
    )
    ax.hlines(
      range(len(names)),
      [low for _, low, _ in shares],
      [high for _, _, high in shares],
      color=canvas.INK,
      linewidth=1,
    )
    ax.axvline(0, color=canvas.INK, linewidth=1)
    canvas.name_rows(ax, names, bold=(best,))
    canvas.percents(ax.xaxis)
    ax.set_title(part['title'])
    ax.set_xlabel('true reward, simulated world')
  return canvas.png(figure, source=digest)


# File in measured/ -> its picture.
PICTURES: Mapping[str, Callable[[], Picture]] = {
  'next_item.png': next_item,
  'alignment.png': alignment,
}
