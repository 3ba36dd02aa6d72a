"""How the paper's claims came out in a sweep, as computed sentences.

Reads the JSON of `sweep`.  A claim holds, does not hold, or is not clear:
where the intervals of the differences to the base row overlap.  Judges no
claim whose rows are missing.
"""

import itertools
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

from onerec_jax.stages import published
from onerec_jax.stages import report_words as words

Verdict = Literal['holds', 'does not hold', 'not clear']
Row = Mapping[str, Any]

_VERDICTS: Mapping[int, Verdict] = {
  1: 'holds',
  0: 'not clear',
  -1: 'does not hold',
}
# What IPA must add to the true reward of the simulated world.
_TRUE_GAIN = 0.10
# 2502.18965, Figure 4: 1 % of pairs gives this share of the best on average.
_R_DPO_SHARE = 0.95


class Claim(NamedTuple):
  """A claim with what was measured."""

  claim: str
  verdict: Verdict
  evidence: str


def judge(
  result: Mapping[str, Any],
  series: Sequence[Mapping[str, Any]] = (),
) -> list[Claim]:
  """Returns all claims that the rows of a sweep can speak to.

  Args:
    result: of `sweep`.
    series: {'key', 'values', 'rows'} of rows that differ in one number.
  """
  found = {}
  for row in result['rows']:
    name = published.find(row.get('published'))
    if name is not None:
      found.setdefault(name, row)
  base = next(r for r in result['rows'] if r['name'] == result['base'])
  return [
    *_order(result, base, found),
    *_alignment_gains(result, base, found),
    *_best_variant(result, base, found),
    *_no_hacking(result, base),
    *_few_pairs(result, series),
  ]


def compare(a: Row, b: Row, column: str, *, base: Row) -> int:
  """Returns 1 if a is clearly above b in a column, -1 below, 0 not clear.

  By the intervals of the differences to the base row, which are paired over
  users: two rows are apart if these intervals are.
  """
  ours, theirs = (_difference(r, column, base=base) for r in (a, b))
  if ours is None or theirs is None:
    return 0
  return int(ours[0] > theirs[1]) - int(ours[1] < theirs[0])


def _difference(
  row: Row, column: str, *, base: Row
) -> tuple[float, float] | None:
  """Returns the bounds of row - base; None: not known."""
  if row['name'] == base['name']:
    return 0.0, 0.0
  found = row['difference'].get(column) or {}
  if not all(words.is_known(found.get(k)) for k in ('low', 'high')):
    return None
  return float(found['low']), float(found['high'])


def _mean(row: Row, column: str) -> float:
  value = row['figures'][column]['mean']
  return float(value) if words.is_known(value) else -float('inf')


def _named(row: Row, column: str) -> str:
  return f'{row["name"]} {words.fixed(row["figures"][column]["mean"])}'


def _columns(result: Mapping[str, Any], *wanted: str) -> list[str]:
  """Returns the columns that exist, each with its true twin."""
  both = [c for w in wanted for c in (w, f'true_{w}')]
  return [c for c in both if c in result['columns']]


def label(column: str) -> str:
  """Returns 'true swt mean' for 'true_swt_mean'."""
  return column.replace('_', ' ')


def _first_target(result: Mapping[str, Any]) -> str:
  return 'swt' if 'swt_mean' in result['columns'] else 'reward'


# --- Claims -----------------------------------------------------------------


def _order(
  result: Mapping[str, Any], base: Row, found: Mapping[str, Row]
) -> Iterator[Claim]:
  """OneRec > TIGER > SASRec, BERT4Rec, FDSA in mean swt."""
  for column in _columns(result, f'{_first_target(result)}_mean'):
    groups = [
      [r for n, r in found.items() if n.startswith('OneRec') and '+' not in n],
      [r for n, r in found.items() if n.startswith('TIGER')],
      [r for n, r in found.items() if n in published.ITEM_LEVEL],
    ]
    best = [max(g, key=lambda r: _mean(r, column)) for g in groups if g]
    if len(best) < 2 or not groups[0]:
      continue
    pairs = list(itertools.pairwise(best))
    signs = [compare(a, b, column, base=base) for a, b in pairs]
    ordered = all(_mean(a, column) > _mean(b, column) for a, b in pairs)
    if ordered and min(signs) > 0:
      verdict = 'holds'
    elif min(signs) < 0:
      verdict = 'does not hold'
    else:
      verdict = 'not clear'
    names = ['OneRec', 'TIGER', 'item-level baselines']
    kept = [n for n, g in zip(names, groups, strict=True) if g]
    yield Claim(
      f'{" > ".join(kept)} in {label(column)}',
      verdict,
      'Best of each kind: ' + ', '.join(_named(r, column) for r in best) + '.',
    )


def _alignment_gains(
  result: Mapping[str, Any], base: Row, found: Mapping[str, Row]
) -> Iterator[Claim]:
  """IPA against the base, per column of the paper's headline."""
  ipa = found.get(published.IPA)
  if ipa is None or ipa['name'] == base['name']:
    return
  for column in _columns(
    result, 'reward_mean', 'reward_max', 'swt_max', 'ltr_max'
  ):
    difference = ipa['difference'][column]
    before = base['figures'][column]['mean']
    sign = words.direction(difference)
    claim = f'IPA raises {label(column)}'
    verdict = _VERDICTS[sign]
    if column == 'true_reward_mean' and words.is_known(before) and before > 0:
      claim += f' by at least {_TRUE_GAIN:.0%}'.replace('%', ' %')
      if difference['high'] < _TRUE_GAIN * before:
        verdict = 'does not hold'
      elif sign > 0 and difference['mean'] < _TRUE_GAIN * before:
        verdict = 'not clear'
    digits = words.decimals([before])
    yield Claim(
      claim,
      verdict,
      f'{ipa["name"]} − {base["name"]}: {words.difference(difference, digits)}'
      f' ({words.relative(difference, before)}; 95 % interval'
      f' {words.difference_bounds(difference, digits)})'
      + _published_gain(column)
      + '.',
    )


def _published_gain(column: str) -> str:
  if column not in published.COLUMNS:
    return ''
  before, after = (
    published.TABLE_1[n][column][0] for n in (published.BASE, published.IPA)
  )
  gain = {'mean': after - before}
  digits = words.decimals([before])
  return (
    f'; published {words.difference(gain, digits)}'
    f' ({words.relative(gain, before)})'
  )


def _best_variant(
  result: Mapping[str, Any], base: Row, found: Mapping[str, Row]
) -> Iterator[Claim]:
  """IPA is the best of the aligned variants in max reward."""
  ipa = found.get(published.IPA)
  others = [r for n, r in found.items() if '+' in n and n != published.IPA]
  if ipa is None or not others:
    return
  maxima = [c for c in published.COLUMNS if c.endswith('_max')]
  for column in _columns(result, 'reward_max'):
    ranked = sorted([ipa, *others], key=lambda r: -_mean(r, column))
    place = ranked.index(ipa) + 1
    rival = ranked[1] if place == 1 else ranked[0]
    sign = compare(ipa, rival, column, base=base)
    verdict = _VERDICTS[sign]
    evidence = (
      f'{_named(ipa, column)} is number {place} of {len(ranked)},'
      f' {"next" if place == 1 else "first"} {_named(rival, column)}'
    )
    prefix = 'true_' if column.startswith('true_') else ''
    places = {
      c: 1 + sum(_mean(o, prefix + c) > _mean(ipa, prefix + c) for o in others)
      for c in maxima
      if prefix + c in result['columns']
    }
    if places:
      evidence += '; by target: ' + ', '.join(
        f'{label(c)} number {p}' for c, p in places.items()
      )
    yield Claim(
      f'IPA is the best variant in {label(column)}', verdict, evidence + '.'
    )


def _no_hacking(result: Mapping[str, Any], base: Row) -> Iterator[Claim]:
  """No row gains predicted reward and loses true reward."""
  columns = _columns(result, 'reward_mean')
  if len(columns) < 2:
    return
  predicted, true = columns
  gained = [
    r
    for r in result['rows']
    if compare(r, base, predicted, base=base) > 0
    and '+' in (published.find(r.get('published')) or '')
  ]
  if not gained:
    return
  fooled = [r for r in gained if compare(r, base, true, base=base) < 0]
  unclear = [r for r in gained if compare(r, base, true, base=base) == 0]

  def shown(rows: Sequence[Row]) -> str:
    return ', '.join(
      f'{r["name"]} (predicted'
      f' {words.relative(r["difference"][predicted], _mean(base, predicted))},'
      f' true {words.relative(r["difference"][true], _mean(base, true))})'
      for r in rows
    )

  yield Claim(
    'Variants that gain predicted reward gain true reward as well',
    'does not hold' if fooled else 'not clear' if unclear else 'holds',
    '; '.join(
      f'{text}: {shown(rows)}'
      for text, rows in (
        ('true reward clearly lower', fooled),
        ('true reward not clearly higher', unclear),
        (
          'both higher',
          [r for r in gained if r not in fooled and r not in unclear],
        ),
      )
      if rows
    )
    + '.',
  )


def _few_pairs(
  result: Mapping[str, Any], series: Sequence[Mapping[str, Any]]
) -> Iterator[Claim]:
  """1 % of pairs reaches 95 % of the best figures on average."""
  columns = [c for c in published.COLUMNS if c in result['columns']]
  for found in series:
    if (
      found['key'] not in ('r', 'r_DPO')
      or found['values'][0] != 1
      or not columns
    ):
      continue
    shares = {}
    for column in columns:
      best = max(_mean(row, column) for row in found['rows'])
      if best > 0:
        shares[column] = _mean(found['rows'][0], column) / best
    if not shares:
      continue
    mean = sum(shares.values()) / len(shares)
    yield Claim(
      'Pairs for 1 % of the samples reach 95 % of the best on average',
      'holds' if mean >= _R_DPO_SHARE else 'does not hold',
      f'{100 * mean:.1f} % on average: '
      + ', '.join(f'{label(c)} {100 * s:.1f} %' for c, s in shares.items())
      + '.',
    )
