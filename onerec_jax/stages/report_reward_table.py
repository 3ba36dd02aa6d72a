"""Tables of rewards per model, before and after training went on.

Text only: one form for whatever was judged, sessions or single items.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax.stages import predictions
from onerec_jax.stages import report_words as words

Found = Mapping[str, Any]  # one comparison of the stage `evaluate`


def base_of(found: Found) -> str | None:
  """Returns the model that ours is compared to; None if there is no other."""
  base = found['base']
  return base if base != predictions.OURS and base in found['methods'] else None


def order(found: Found) -> list[str]:
  """Returns the models, the one before first."""
  base = found['base']
  return [m for m in found['methods'] if m == base] + [
    m for m in found['methods'] if m != base
  ]


def titles(evaluated: Mapping[str, Any], found: Found) -> dict[str, str]:
  """Returns how the page calls every model."""
  known = evaluated.get('methods') or {}
  return {m: (known.get(m) or {}).get('title', m) for m in found['methods']}


def percents(share: float) -> str:
  """Returns a change as signed percents."""
  return f'{100 * share:+.1f} %'.replace('-', '−')


def changes(found: Found) -> dict[str, dict[str, float]]:
  """Returns our differences as shares of the mean before, where it is > 0.

  A column whose difference or interval is not known is left out.
  """
  base = base_of(found)
  if base is None:
    return {}
  result = {}
  for column in found['columns']:
    difference = found['methods'][predictions.OURS]['difference'].get(column)
    before = found['methods'][base]['figures'][column]['mean']
    bounds = [(difference or {}).get(k) for k in ('mean', 'low', 'high')]
    if (
      words.is_known(before) and before > 0 and all(map(words.is_known, bounds))
    ):
      result[column] = {
        k: v / before
        for k, v in zip(('mean', 'low', 'high'), bounds, strict=True)
      }
  return result


def moved(found: Found, column: str) -> str:
  """Returns '+0.0100, +5.0 %; 95 % interval +0.0040 to +0.0160'."""
  difference = found['methods'][predictions.OURS]['difference'][column]
  before = found['methods'][found['base']]['figures'][column]['mean']
  return (
    f'{words.difference(difference)}, {words.relative(difference, before)};'
    f' 95 % interval {words.difference_bounds(difference)}'
  )


def table(
  found: Found,
  shown: Mapping[str, str],
  columns: Sequence[str],
  *,
  caption: str,
  name: Callable[[str], str],
  left_out: tuple[str, str],
) -> dict[str, Any]:
  """Returns one row per reward, one column per model.

  Args:
    found: the comparison.
    shown: title of every model.
    columns: the rewards.
    caption: of the table; users and resamples are added.
    name: from a column to what its row is called.
    left_out: key of the number of users without a figure, and what they lack.
  """
  models, base = order(found), base_of(found)
  ours = found['methods'][predictions.OURS]
  rows = []
  for column in columns:
    cells = {m: found['methods'][m]['figures'][column] for m in models}
    digits = words.decimals(c['mean'] for c in cells.values())
    row: list[Any] = [
      name(column),
      *(
        words.cell(
          words.fixed(c['mean'], digits), words.plus_minus(c['std'], digits)
        )
        for c in cells.values()
      ),
    ]
    if base is not None:
      difference = ours['difference'][column]
      row += [
        words.cell(
          words.difference(difference, digits),
          words.difference_bounds(difference, digits),
        ),
        words.relative(difference, cells[base]['mean']),
      ]
    rows.append({'cells': row})
  key, lacked = left_out
  without = [
    f'{shown[m]}: {found["methods"][m][key]:,}'
    for m in models
    if found['methods'][m].get(key)
  ]
  return {
    'sticky': True,
    'caption': (
      f'{caption}; {words.count(ours.get("users"))} users, ± over'
      f' {words.count(found.get("resamples"))} resamples'
      + (f'; users without {lacked}: {", ".join(without)}' if without else '')
    ),
    'columns': [
      'reward',
      *(shown[m] for m in models),
      *(('difference', 'relative') if base is not None else ()),
    ],
    'rows': rows,
  }
