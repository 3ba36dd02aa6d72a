"""How the report writes numbers, and where its pictures are collected.

Text only; knows no stage.
"""

import base64
from collections.abc import Mapping
from typing import Any

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
