"""Table of a sweep: what stands in it, and what is compared."""

import io
import re

import pytest
import rich.console

from onerec_jax.stages import report_sweep
from onerec_jax.stages import report_sweep_rows
from onerec_jax.stages import report_words


def printed(sweep: dict, *, width: int = 100, colour: bool = False) -> str:
  """What print_table writes."""
  console = rich.console.Console(
    width=width,
    file=io.StringIO(),
    force_terminal=colour,
    color_system='standard' if colour else None,
  )
  report_sweep.print_table(sweep, console)
  return console.file.getvalue()


@pytest.mark.parametrize('truth', [True, False])
def test_the_table_fits_a_hundred_columns_and_shows_every_figure(
  made_sweep, truth
):
  text = printed(made_sweep.result(truth=truth))
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  assert '…' not in text
  heads = ' '.join(x for x in lines if x.startswith(' variant'))
  shown = re.findall(r'(?:true )?\w+ (?:mean|max)', heads)
  wanted = [
    c.replace('_', ' ') for c in made_sweep.result(truth=truth)['columns']
  ]
  wanted = [c for c in wanted if not re.match('true (?!reward)', c)]
  # Every column once, but true targets; then those with differences.
  compared = report_sweep_rows.difference_columns(
    made_sweep.result(truth=truth)
  )
  assert sorted(shown) == sorted(
    wanted + [c.replace('_', ' ') for c in compared]
  )
  assert '0.1933 ± 0.0097' in text  # ours: std is 5 % of the mean
  assert '0.1933 ± 0.017' in text  # the paper's
  below = lines[
    next(
      i for i, x in enumerate(lines) if 'OneRec + IPA ' in x and '0.1933' in x
    )
    + 1
  ]
  assert below.split()[:2] == ['paper:', '+IPA']


def test_the_best_of_a_column_is_bold_and_nothing_else_is(made_sweep):
  sweep = made_sweep.result({'OneRec': 'OneRec-1B', 'IPA': '+IPA'}, truth=False)
  made_sweep.row_of(sweep, 'IPA')['figures']['swt_mean']['mean'] = 0.09
  text = printed(sweep, colour=True)
  bold = re.findall(r'\x1b\[1m([^\x1b]*)\x1b\[0m', text)
  table = [b for b in bold if '±' in b]
  assert '0.0991 ± 0.0050' in table  # swt mean of the base
  assert '0.1933 ± 0.0097' in table  # swt max of IPA
  assert len(table) == 10  # one per column
  dim = re.findall(r'\x1b\[2m([^\x1b]*)\x1b\[0m', text)
  assert any('paper: OneRec-1B' in d for d in dim)


def test_differences_are_those_of_the_rewards_where_truth_is_known(made_sweep):
  assert report_sweep_rows.difference_columns(made_sweep.result()) == [
    'reward_mean',
    'reward_max',
    'true_reward_mean',
    'true_reward_max',
  ]
  assert report_sweep_rows.difference_columns(
    made_sweep.result(truth=False)
  ) == [
    'reward_mean',
    'reward_max',
    'swt_max',
    'vtr_max',
    'wtr_max',
    'ltr_max',
  ]


def test_differences_and_legality_are_told_per_row(made_sweep):
  sweep = made_sweep.result()
  row = made_sweep.row_of(sweep, 'OneRec + IPA')
  row['legality'] = [{'free_sessions': 0.9, 'free_items': 1.0}, {}, {
    'free_sessions': 0.8, 'free_items': 0.98,
  }]  # fmt: skip
  made_sweep.set_difference(row, 'reward_mean', 0.5, 0.1)
  made_sweep.set_difference(
    made_sweep.row_of(sweep, 'TIGER'), 'reward_mean', 0.5, 0.6
  )
  rows = {
    r['cells'][0]: r
    for r in report_sweep_rows.difference_rows(sweep, ['reward_mean'])
  }
  assert rows['OneRec + IPA']['cells'] == [
    'OneRec + IPA',
    '85.0 % / 99.0 %',
    {'text': '+0.5000', 'small': '+0.4000 to +0.6000', 'best': True},
  ]
  assert not rows['TIGER']['cells'][2]['best']  # the interval holds 0
  assert rows['SASRec']['cells'][1] == '–'
  assert rows[made_sweep.BASE]['cells'][2] == 'base'
  assert rows[made_sweep.BASE]['base']


def test_an_unknown_published_row_is_told_not_raised(made_sweep):
  sweep = made_sweep.result({'OneRec': 'OneRec-1B', 'mine': 'OneRec-7B'})
  assert 'paper: OneRec-7B (unknown)' in [
    r['cells'][0]
    for r in report_sweep_rows.reward_rows(sweep, sweep['columns'])
  ]


def test_rows_without_a_legal_session_do_not_break_the_table(made_sweep):
  assert 'nan' not in printed(made_sweep.with_broken_row())


def test_names_of_rows_are_not_markup(made_sweep):
  sweep = made_sweep.result({'OneRec': 'OneRec-1B', 'a [bold]b[/bold]': None})
  assert 'a [bold]b[/bold]' in printed(sweep, width=120)


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['a r=3%', 'a r=1 %', 'a r = 2%'], [('a', 'r', [1.0, 2.0, 3.0])]),
    (['IPA r=3%', 'IPA r=1%', 'IPA r=2%'], [('IPA', 'r', [1.0, 2.0, 3.0])]),
    (['A, m = 1', 'A, m = 2', 'A, m = 5'], [('A', 'm', [1.0, 2.0, 5.0])]),
    (['beta=0.1', 'beta=1', 'beta=.5'], [('', 'beta', [0.1, 0.5, 1.0])]),
    (['IPA r=1%', 'IPA r=2%', 'DPO r=3%'], []),  # three of one kind
    (['OneRec 1', 'OneRec 2', 'SASRec'], []),
  ],
)
def test_rows_that_differ_in_one_number_are_a_series(
  made_sweep, names, expected
):
  sweep = made_sweep.result({'OneRec': 'OneRec-1B', **dict.fromkeys(names)})
  found = report_sweep_rows.series(sweep)
  assert [(s['prefix'], s['key'], s['values']) for s in found] == expected


@pytest.mark.parametrize(
  ('values', 'expected'),
  [([0.19, 0.02], 4), ([0.00294], 5), ([0.0], 4), ([None], 4), ([12.5], 4)],
)
def test_small_figures_get_more_decimals(values, expected):
  assert report_words.decimals(values) == expected
