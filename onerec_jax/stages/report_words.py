"""How the report writes numbers, and where its pictures are collected.

Text only; knows no stage.
"""

import base64
import math
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from onerec_jax.train import log

UNKNOWN = '–'


def number(value: Any, form: str) -> str:
  """Returns `value` in a format, a dash where it is not known."""
  return UNKNOWN if value is None else format(value, form)


def four(value: float | None) -> str:
  """Returns four decimals."""
  return number(value, '.4f')


def compact(value: Any) -> str:
  """Returns 2431232 as '2.43 M'."""
  if value is None:
    return UNKNOWN
  for size, unit in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return str(value)


def signed(value: float) -> str:
  """Returns four decimals with their sign."""
  return f'{value:+.4f}'.replace('-', '−')


def bounds(interval: Mapping[str, float]) -> str:
  """Returns the interval as two numbers."""
  return f'{interval["low"]:.3f}–{interval["high"]:.3f}'


def signed_bounds(interval: Mapping[str, float]) -> str:
  """Returns the interval of a difference as two signed numbers."""
  return f'{signed(interval["low"])} to {signed(interval["high"])}'


def count(value: Any) -> str:
  """Returns a whole number with separators."""
  return number(None if value is None else int(value), ',d')


def percent(value: float | None, digits: int = 1) -> str:
  """Returns a share of 1 as percents."""
  return UNKNOWN if value is None else f'{100 * value:.{digits}f} %'


def seconds(value: float | None) -> str:
  """Returns a duration in seconds."""
  return UNKNOWN if value is None else f'{value:,.1f} s'


def duration(value: float | None) -> str:
  """Returns seconds as hours, minutes and seconds."""
  return UNKNOWN if value is None else log.duration(value)


def is_known(value: Any) -> bool:
  """Returns whether a figure exists: JSON holds null or NaN where not."""
  return value is not None and math.isfinite(value)


def decimals(values: Iterable[Any]) -> int:
  """Returns how many decimals a column needs: 4, more for small figures."""
  top = max((abs(v) for v in values if is_known(v)), default=0.0)
  return 4 if top <= 0 else min(max(4, 2 - math.floor(math.log10(top))), 8)


def fixed(value: Any, digits: int = 4) -> str:
  """Returns a figure with `digits` decimals."""
  return f'{value:.{digits}f}' if is_known(value) else UNKNOWN


def plus_minus(spread: Any, digits: int = 4) -> str:
  """Returns '± 0.0090'."""
  return f'± {fixed(spread, digits)}'


def difference(interval: Mapping[str, Any], digits: int = 4) -> str:
  """Returns a difference with its sign."""
  if not is_known(interval['mean']):
    return UNKNOWN
  return f'{interval["mean"]:+.{digits}f}'.replace('-', '−')


def difference_bounds(interval: Mapping[str, Any], digits: int = 4) -> str:
  """Returns the interval of a difference as two signed numbers."""
  low, high = interval['low'], interval['high']
  if not is_known(low) or not is_known(high):
    return UNKNOWN
  return f'{low:+.{digits}f} to {high:+.{digits}f}'.replace('-', '−')


def cell(text: str, small: str, *, best: bool = False) -> dict[str, Any]:
  """Returns a table's cell: a figure with its spread, small, below it."""
  known = text != UNKNOWN and UNKNOWN not in small
  return {'text': text, 'small': small if known else '', 'best': best}


def relative(interval: Mapping[str, Any], base: Any) -> str:
  """Returns a difference as signed percents of `base`."""
  if not is_known(interval['mean']) or not is_known(base) or not base:
    return UNKNOWN
  return f'{100 * interval["mean"] / base:+.1f} %'.replace('-', '−')


def direction(interval: Mapping[str, Any]) -> int:
  """Returns 1 or -1 if a difference excludes 0, else 0."""
  if not is_known(interval['low']) or not is_known(interval['high']):
    return 0
  return int(interval['low'] > 0) - int(interval['high'] < 0)


def label(metric: str) -> str:
  """Returns 'Recall@10' for 'recall@10', 'NDCG@5' for 'ndcg@5'."""
  name, _, k = metric.partition('@')
  name = name.replace('_', ' ')
  shown = name.upper() if name in ('ndcg', 'mrr') else name.capitalize()
  return f'{shown}@{k}' if k else shown


class Pictures:
  """Collects pictures for the page and writes each as a file as well."""

  def __init__(self, folder: Any):
    self._folder = folder
    self.found: dict[str, dict[str, str]] = {}

  def add(self, name: str, png: bytes, *, alt: str, caption: str) -> None:
    (self._folder / f'{name}.png').write_bytes(png)
    self.found[name] = {
      'data': base64.b64encode(png).decode(),
      'alt': alt,
      'caption': caption,
    }
