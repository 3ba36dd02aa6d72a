"""The figures of the papers, as far as their text repeats them."""

import pytest

from onerec_jax.stages import published

# --- Table 1 of OneRec ------------------------------------------------------


def test_published_rows_are_those_of_the_paper():
  assert len(published.TABLE_1) == 15
  assert all(tuple(r) == published.COLUMNS for r in published.TABLE_1.values())
  ipa, base = (published.TABLE_1[n] for n in ('OneRec-1B+IPA', 'OneRec-1B'))
  assert ipa['swt_max'] == (0.1933, 0.017)
  assert ipa['ltr_mean'] == (0.0397, 0.004)
  # The gains the paper's text gives: 4.04 and 5.43 points.
  assert ipa['swt_max'][0] - base['swt_max'][0] == pytest.approx(0.0404)
  assert ipa['ltr_max'][0] - base['ltr_max'][0] == pytest.approx(0.0543)
  # Of the models that are not aligned, SASRec has the best wtr max.
  plain = {n: r for n, r in published.TABLE_1.items() if '+' not in n}
  assert max(plain, key=lambda n: plain[n]['wtr_max']) == 'SASRec'


def test_figure_4_begins_with_the_row_of_table_1():
  ipa = published.TABLE_1[published.IPA]
  for column, values in published.FIGURE_4.items():
    assert len(values) == len(published.FIGURE_4_PERCENT)
    assert values[0] == ipa[column][0]
  for column, (first, others) in published.FIGURE_4_UNORDERED.items():
    assert first == ipa[column][0]
    assert len(others) == 4
  both = {*published.FIGURE_4, *published.FIGURE_4_UNORDERED}
  assert both == set(published.COLUMNS)


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('SASRec', 'SASRec'),
    ('onerec-1b + simpo', 'OneRec-1B+simPO'),
    ('+S-DPO', 'OneRec-1B+S-DPO'),
    ('OneRec', None),
    ('', None),
    (None, None),
  ],
)
def test_rows_of_the_paper_are_found_by_name(name, expected):
  assert published.find(name) == expected


# --- Next items -------------------------------------------------------------


def test_published_figures_are_those_of_the_papers():
  assert len(published.NEXT_ITEM) == 18
  tiger = published.NEXT_ITEM['Beauty/TIGER']
  assert tiger == {
    'recall@5': 0.0454,
    'ndcg@5': 0.0321,
    'recall@10': 0.0648,
    'ndcg@10': 0.0384,
  }
  assert published.NEXT_ITEM['Sports/SASRec']['recall@10'] == 0.0350
  # TIGER leads its own table on both sets, in every column.
  for data in ('Beauty', 'Sports'):
    table = {n: r for n, r in published.NEXT_ITEM.items() if n.startswith(data)}
    for column in published.NEXT_ITEM_COLUMNS:
      assert max(table, key=lambda n: table[n][column]) == f'{data}/TIGER'


def test_each_table_knows_its_own_rows():
  assert published.find('beauty/tiger', published.NEXT_ITEM) == 'Beauty/TIGER'
  assert published.find('Beauty/TIGER') is None
  assert published.find('+IPA', published.NEXT_ITEM) is None
  message = published.describe_unknown('x', published.NEXT_ITEM)
  assert 'Sports/S3-Rec' in message
