"""Published figures that a sweep is put beside.

2502.18965 (OneRec v1), Table 1 and Figure 4, were measured on Kuaishou's own
logs by its own reward model: only order and relative gains can be compared to
ours.  2305.05065 (TIGER), Table 1, has the files and the protocol of our Amazon
recipes: its values themselves can.
"""

from collections.abc import Mapping
from typing import Any

# Columns in the order of the paper; every row gives value and ±.
COLUMNS = tuple(
  f'{target}_{part}'
  for target in ('swt', 'vtr', 'wtr', 'ltr')
  for part in ('mean', 'max')
)

# value ± of swt mean, swt max, vtr mean, vtr max, wtr mean, wtr max, ltr mean,
# ltr max.
_TABLE_1 = """
SASRec          .0375 .002 .0803 .005 .4313 .013 .5801 .013 .00294 .001 .00978 .001 .0314 .002 .0604 .004
BERT4Rec        .0336 .002 .0706 .004 .4192 .014 .5633 .013 .00281 .001 .00932 .001 .0316 .002 .0606 .004
FDSA            .0325 .002 .0683 .005 .4145 .015 .5588 .014 .00271 .001 .00921 .001 .0313 .002 .0604 .003
TIGER-0.1B      .0879 .007 .1286 .010 .5826 .016 .6625 .017 .00277 .001 .00671 .001 .0316 .004 .0541 .007
TIGER-1B        .0873 .006 .1368 .010 .5827 .015 .6776 .015 .00292 .001 .00758 .001 .0323 .004 .0579 .008
OneRec-0.1B     .0973 .010 .1501 .015 .6001 .021 .6981 .021 .00326 .001 .00870 .001 .0349 .009 .0642 .015
OneRec-1B       .0991 .008 .1529 .012 .6039 .020 .7013 .020 .00349 .001 .00919 .002 .0360 .005 .0660 .008
OneRec-1B+DPO   .1014 .010 .1595 .015 .6127 .017 .7116 .016 .00339 .001 .00896 .001 .0351 .004 .0644 .008
OneRec-1B+IPO   .0979 .003 .1528 .005 .6000 .007 .7012 .007 .00335 .001 .00905 .001 .0350 .003 .0654 .004
OneRec-1B+cDPO  .0993 .006 .1547 .008 .6030 .011 .7030 .009 .00339 .001 .00901 .001 .0355 .006 .0652 .009
OneRec-1B+rDPO  .1005 .006 .1555 .008 .6071 .014 .7059 .011 .00339 .001 .00899 .001 .0357 .004 .0657 .006
OneRec-1B+CPO   .0993 .008 .1538 .012 .6045 .021 .7029 .018 .00343 .001 .00911 .002 .0357 .008 .0659 .014
OneRec-1B+simPO .0995 .008 .1536 .013 .6047 .016 .7022 .015 .00349 .001 .00918 .001 .0360 .005 .0659 .008
OneRec-1B+S-DPO .1021 .008 .1575 .013 .6096 .016 .7070 .015 .00345 .001 .00909 .001 .0361 .004 .0659 .008
OneRec-1B+IPA   .1025 .009 .1933 .017 .6141 .020 .7646 .021 .00354 .001 .00992 .001 .0397 .004 .1203 .010
"""  # noqa: E501


def _parse(text: str) -> dict[str, dict[str, tuple[float, float]]]:
  rows = {}
  for line in text.strip().splitlines():
    name, *numbers = line.split()
    values = [float(n) for n in numbers]
    pairs = zip(values[::2], values[1::2], strict=True)
    rows[name] = dict(zip(COLUMNS, pairs, strict=True))
  return rows


# Row -> column -> (value, ±).
TABLE_1: Mapping[str, Mapping[str, tuple[float, float]]] = _parse(_TABLE_1)

BASE, IPA = 'OneRec-1B', 'OneRec-1B+IPA'
ITEM_LEVEL = ('SASRec', 'BERT4Rec', 'FDSA')

# Figure 4: IPA with r_DPO = 1, 2, 3, 4, 5 % of the samples.
FIGURE_4_PERCENT = (1.0, 2.0, 3.0, 4.0, 5.0)
FIGURE_4: Mapping[str, tuple[float, ...]] = {
  'swt_mean': (0.1025, 0.1020, 0.1038, 0.1082, 0.1099),
  'wtr_mean': (0.00354, 0.00352, 0.00349, 0.00340, 0.00352),
  'ltr_mean': (0.0397, 0.0399, 0.0429, 0.0435, 0.0456),
}
# Of these only the value at 1 % has a place; the labels of 2..5 % are in no
# certain order.
FIGURE_4_UNORDERED: Mapping[str, tuple[float, frozenset[float]]] = {
  'swt_max': (0.1933, frozenset({0.2076, 0.2087, 0.2222, 0.2133})),
  'vtr_mean': (0.6141, frozenset({0.6107, 0.6087, 0.6032, 0.6068})),
  'vtr_max': (0.7646, frozenset({0.7319, 0.7385, 0.7594, 0.7514})),
  'wtr_max': (0.00992, frozenset({0.01115, 0.01080, 0.01007, 0.01072})),
  'ltr_max': (0.1203, frozenset({0.1376, 0.1544, 0.1559, 0.1463})),
}


# Columns of TIGER's Table 1: leave-one-out, all items ranked.
NEXT_ITEM_COLUMNS = ('recall@5', 'ndcg@5', 'recall@10', 'ndcg@10')

_TIGER_TABLE_1 = """
Beauty/P5        .0163 .0107 .0254 .0136
Beauty/Caser     .0205 .0131 .0347 .0176
Beauty/HGN       .0325 .0206 .0512 .0266
Beauty/GRU4Rec   .0164 .0099 .0283 .0137
Beauty/BERT4Rec  .0203 .0124 .0347 .0170
Beauty/FDSA      .0267 .0163 .0407 .0208
Beauty/SASRec    .0387 .0249 .0605 .0318
Beauty/S3-Rec    .0387 .0244 .0647 .0327
Beauty/TIGER     .0454 .0321 .0648 .0384
Sports/P5        .0061 .0041 .0095 .0052
Sports/Caser     .0116 .0072 .0194 .0097
Sports/HGN       .0189 .0120 .0313 .0159
Sports/GRU4Rec   .0129 .0086 .0204 .0110
Sports/BERT4Rec  .0115 .0075 .0191 .0099
Sports/FDSA      .0182 .0122 .0288 .0156
Sports/SASRec    .0233 .0154 .0350 .0192
Sports/S3-Rec    .0251 .0161 .0385 .0204
Sports/TIGER     .0264 .0181 .0400 .0225
"""

# Data set and method -> column -> value.
NEXT_ITEM: Mapping[str, Mapping[str, float]] = {
  name: dict(zip(NEXT_ITEM_COLUMNS, map(float, values), strict=True))
  for name, *values in map(str.split, _TIGER_TABLE_1.strip().splitlines())
}


def find(
  name: str | None, table: Mapping[str, Mapping[str, Any]] = TABLE_1
) -> str | None:
  """Returns the row of a table that `name` means, or None.

  Case and blanks do not matter; '+IPA' is short for 'OneRec-1B+IPA'.

  Args:
    name: as a recipe gives it.
    table: TABLE_1 or NEXT_ITEM.
  """
  wanted = ''.join((name or '').split()).lower()
  if wanted.startswith('+'):
    wanted = BASE.lower() + wanted
  return {row.lower(): row for row in table}.get(wanted)


def describe_unknown(
  name: str, table: Mapping[str, Mapping[str, Any]] = TABLE_1
) -> str:
  """Returns what to write where `name` is no row of a table."""
  source = 'Table 1' if table is TABLE_1 else "TIGER's Table 1"
  return f'{name!r} is no row of {source}; its rows are {list(table)}'
