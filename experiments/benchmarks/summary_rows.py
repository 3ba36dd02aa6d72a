"""Lines of the benchmarks' table, and whether a target is met."""

from collections.abc import Mapping
from typing import Any

NOT_MEASURED = 'not measured'


def row(
  what: str, target: str, value: str | None, met: bool | None = None
) -> str:
  """Returns a line of the table; a value of None was not measured."""
  judged = '' if met is None or value is None else ('yes' if met else '**no**')
  return f'| {what} | {target} | {value or NOT_MEASURED} | {judged} |'


def spread(entry: Mapping[str, Any], clock: str) -> str:
  """Returns median and range of the round-by-round ratio of a clock."""
  return (
    f'{entry[f"{clock}_ratio_median"]:.2f} × {clock} time'
    f' ({entry[f"{clock}_ratio_min"]:.2f}–{entry[f"{clock}_ratio_max"]:.2f})'
  )


def _medians(entry: Mapping[str, Any]) -> tuple[float, float]:
  return entry['cpu_ratio_median'], entry['wall_ratio_median']


def ratio_row(
  what: str,
  target: str,
  entry: Mapping[str, Any] | None,
  *,
  least: float | None = None,
  most: float | None = None,
  note: str = '',
) -> str:
  """Returns the row of a ratio of two times, to be at least or at most."""
  if not entry:
    return row(what, target, None)
  both = _medians(entry)
  met = all(
    (least is None or ratio >= least) and (most is None or ratio <= most)
    for ratio in both
  )
  value = f'{spread(entry, "cpu")}; {spread(entry, "wall")}{note}'
  return row(what, target, value, met)


def floor(result: Mapping[str, Any], form: str, clock: str) -> tuple[str, Any]:
  """Returns the row's text and whether both directions are within 1.5."""
  parts, met = [], True
  for direction in ('forward', 'gradient'):
    entry = result.get(f'{form}_{direction}')
    if entry:
      key = f'times_floor_{clock}'
      median = entry[f'{key}_median']
      parts.append(
        f'{direction} {median:.2f} × ({entry[f"{key}_min"]:.2f}–'
        f'{entry[f"{key}_max"]:.2f})'
      )
      met = met and median <= 1.5
  return '; '.join(parts), met
