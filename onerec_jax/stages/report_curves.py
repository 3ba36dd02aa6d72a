"""Curves of what training has logged, over one run or several rounds."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import report_figures as figures
from onerec_jax.stages import report_words as words

Records = Sequence[Mapping[str, Any]]


def add_curves(
  training: Sequence[tuple[int, Records]],
  names: Mapping[str, str],
  pictures: words.Pictures,
  picture: str,
  *,
  caption: str,
  connected: bool = False,
  **options: Any,
) -> None:
  """Adds the picture of what was logged; nothing if nothing was.

  Args:
    training: first step and records of every round, in order.
    names: name shown -> logged scalar.
    pictures: of the page.
    picture: name of the file.
    caption: of the picture; its text form gives the last values as well.
    connected: one line over all rounds, whose figures can be compared.
    **options: of `report_figures.curves`.
  """
  series = {}
  for name, key in names.items():
    steps, values = [], []
    for offset, records in training:
      points = [
        (offset + r['step'], float(r[key]))
        for r in records
        if isinstance(r.get(key), int | float)
      ]
      if (
        points and steps and not connected
      ):  # no line from one round to the next
        steps.append(points[0][0])
        values.append(math.nan)
      steps += [p[0] for p in points]
      values += [p[1] for p in points]
    if steps:
      series[name] = (steps, values)
  if not series:
    return
  pictures.add(
    picture,
    figures.curves(
      series,
      breaks=[offset for offset, records in training if offset and records],
      **options,
    ),
    alt=f'{caption} Last values: '
    + ', '.join(f'{n} {s[1][-1]:.4g}' for n, s in series.items()),
    caption=caption,
  )
