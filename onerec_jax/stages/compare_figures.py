"""The picture of `compare`: differences with intervals, all users and slices.

Reads the JSON of `compare_runs`; computes no figure.
"""

import itertools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from matplotlib import ticker

from onerec_jax.stages import report_canvas as canvas
from onerec_jax.stages import report_words as words

ALL_USERS = 'all users'
_TONES = {1: canvas.ACCENT, 0: canvas.MUTED, -1: canvas.WORSE}
_INCHES_PER_ROW = 0.27
_WIDER = 1.4


@canvas.draw
def differences(result: Mapping[str, Any], metrics: Sequence[str]) -> bytes:
  """One row of panels per other run, one column per metric, zero as a line.

  Right of the line the first run is better.

  Args:
    result: of `compare_runs.compare`.
    metrics: names, e.g. 'recall@10'.
  """
  first, *others = result['runs']
  names = [f'{ALL_USERS} ({result["users"]:,})'] + [
    f'{title}: {row["slice"]} ({row["users"]:,})'
    for title, rows in result['slices'].items()
    for row in rows
  ]
  height = (0.75 + _INCHES_PER_ROW * len(names)) * len(others)
  figure, panels = canvas.panels(
    height=height, rows=len(others), columns=len(metrics), sharey=True
  )
  figure.set_figwidth(_WIDER * canvas.WIDTH)  # names of slices are long
  places = itertools.product(enumerate(others), metrics)
  for ax, ((number, other), metric) in zip(panels, places, strict=True):
    found = [result['differences'][number][metric]] + [
      row['differences'][number][metric]
      for rows in result['slices'].values()
      for row in rows
    ]
    ax.axvline(0, color=canvas.INK, linewidth=0.9, linestyle=(0, (3, 2)))
    for y, value in enumerate(found[::-1]):
      tone = _TONES[words.direction(value)]
      ax.plot([value['low'], value['high']], [y, y], color=tone, linewidth=2)
      ax.plot(value['mean'], y, color=tone, marker='o', markersize=5)
    if ax in panels[:: len(metrics)]:
      canvas.name_rows(ax, names[::-1], bold=(names[0],))
    ax.tick_params(axis='y', length=0)
    ax.spines['left'].set_visible(False)
    ax.set_title(
      f'{words.label(metric)}, {_short(first, other)} − {_short(other, first)}',
      fontweight='bold',
    )
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis='y', visible=True)
  return canvas.png(figure)


def _short(run: Mapping[str, Any], beside: Mapping[str, Any]) -> str:
  """Returns the model's title, or the folder if `beside` has the same one."""
  if run['title'] != beside['title']:
    return run['title']
  return run['path'].rstrip('/').rsplit('/', 1)[-1]
