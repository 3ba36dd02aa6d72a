"""Table and page of a sweep: what is compared, claimed and drawn."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
import rich.console

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import published
from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_claims
from onerec_jax.stages import report_sweep
from onerec_jax.stages import report_sweep_figures as figures
from onerec_jax.stages import report_sweep_pictures
from onerec_jax.stages import report_sweep_rows
from onerec_jax.stages import report_words

PNG = b'\x89PNG\r\n\x1a\n'
TARGETS = ('swt', 'vtr', 'wtr', 'ltr')
# Row -> row of Table 1 it is put beside.
ROWS = {
  'SASRec': 'SASRec',
  'BERT4Rec': 'BERT4Rec',
  'FDSA': 'FDSA',
  'TIGER small': 'TIGER-0.1B',
  'TIGER': 'TIGER-1B',
  'OneRec small': 'OneRec-0.1B',
  'OneRec': 'OneRec-1B',
  'OneRec + DPO': '+DPO',
  'OneRec + IPO': '+IPO',
  'OneRec + cDPO': '+cDPO',
  'OneRec + rDPO': '+rDPO',
  'OneRec + CPO': '+CPO',
  'OneRec + SimPO': '+simPO',
  'OneRec + S-DPO': '+S-DPO',
  'OneRec + IPA': '+IPA',
}
FEW = {'OneRec': 'OneRec-1B', 'IPA': '+IPA', 'SASRec': 'SASRec'}
BASE = 'OneRec'


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
  monkeypatch.setattr(report_canvas, 'DPI', 20)


def result(
  rows=ROWS, *, truth: bool = True, seeds: int = 3, levels=None, per_round=True
) -> dict:
  """The JSON of `sweep.run`, from the published figures.

  Args:
    rows: name -> published row or None.
    truth: whether the world is simulated.
    seeds: number of seeds.
    levels: name -> value by which predicted rewards of a row are multiplied.
    per_round: whether rounds hold true rewards.
  """
  rng = np.random.default_rng(0)
  columns = [f'{t}_{p}' for t in ('reward', *TARGETS) for p in ('mean', 'max')]
  if truth:
    columns += [f'true_{c}' for c in columns]
  means = {}
  for name, source in rows.items():
    row = published.TABLE_1[published.find(source) or published.BASE]
    scale = (levels or {}).get(name, 1.0)
    values = {c: row[c][0] * scale for c in published.COLUMNS}
    for part in ('mean', 'max'):
      values[f'reward_{part}'] = sum(values[f'{t}_{part}'] for t in TARGETS)
    for c in list(values):
      values[f'true_{c}'] = 0.5 * values[c]
    means[name] = values
  table = []
  for name, source in rows.items():
    figs, differences = {}, {}
    for c in columns:
      mean, before = means[name][c], means[BASE][c]
      half = 0.004 * before * (name != BASE)
      figs[c] = {
        'mean': mean, 'std': 0.05 * mean, 'low': 0.97 * mean,
        'high': 1.03 * mean,
      }  # fmt: skip
      differences[c] = {
        'mean': mean - before, 'low': mean - before - half,
        'high': mean - before + half, 'share_above_zero': 0.9,
      }  # fmt: skip
    aligned = '+' in (source or '')
    rounds = [
      {
        'round': t,
        'rollouts': {
          'pairs': 40, 'skipped': {'equal_rewards': 2}, 'legal': 100,
          'reward_sum': 100 * (0.7 + 0.03 * t + 0.01 * rng.normal()),
          **(
            {'true_reward_sum': 100 * (0.66 + 0.01 * t)}
            if truth and per_round
            else {}
          ),
        },
        'final': {},
      }
      for t in (1, 2, 3)
    ]  # fmt: skip
    table.append(
      {
        'name': name,
        'published': source,
        'users': 500 * seeds,
        'users_without_session': 0,
        'figures': figs,
        'difference': differences,
        'seeds': [
          {c: means[name][c] * (1 + 0.01 * rng.normal()) for c in columns}
          for _ in range(seeds)
        ],
        'legality': [
          {} if source in published.ITEM_LEVEL
          else {'free_sessions': 0.93, 'free_items': 0.985}
          for _ in range(seeds)
        ],
        'num_parameters': 1_234_567,
        'seconds': 71.5,
        'rounds': [rounds if aligned else None for _ in range(seeds)],
      }
    )  # fmt: skip
  return {
    'title': 'Table 1 on a simulated world',
    'base': BASE,
    'seeds': list(range(seeds)),
    'columns': columns,
    'sessions_per_user': 8,
    'items_per_session': 5,
    'reward_model': [
      {
        'targets': [
          {'name': t, 'definition': '', 'held_out': {'sessions': 0}}
          for t in TARGETS
        ]
      }
    ],
    'rows': table,
  }


def row_of(sweep: dict, name: str) -> dict:
  """The row of this name."""
  return next(r for r in sweep['rows'] if r['name'] == name)


def set_difference(row: dict, column: str, mean: float, half: float) -> None:
  """Overwrites one difference to the base."""
  row['difference'][column] |= {
    'mean': mean, 'low': mean - half, 'high': mean + half,
  }  # fmt: skip


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


# --- Published figures ------------------------------------------------------


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


# --- Table ------------------------------------------------------------------


@pytest.mark.parametrize('truth', [True, False])
def test_the_table_fits_a_hundred_columns_and_shows_every_figure(truth):
  text = printed(result(truth=truth))
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  assert '…' not in text
  heads = ' '.join(x for x in lines if x.startswith(' variant'))
  shown = re.findall(r'(?:true )?\w+ (?:mean|max)', heads)
  wanted = [c.replace('_', ' ') for c in result(truth=truth)['columns']]
  wanted = [c for c in wanted if not re.match('true (?!reward)', c)]
  # Every column once, but true targets; then those with differences.
  compared = report_sweep_rows.difference_columns(result(truth=truth))
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


def test_the_best_of_a_column_is_bold_and_nothing_else_is():
  sweep = result({'OneRec': 'OneRec-1B', 'IPA': '+IPA'}, truth=False)
  row_of(sweep, 'IPA')['figures']['swt_mean']['mean'] = 0.09
  text = printed(sweep, colour=True)
  bold = re.findall(r'\x1b\[1m([^\x1b]*)\x1b\[0m', text)
  table = [b for b in bold if '±' in b]
  assert '0.0991 ± 0.0050' in table  # swt mean of the base
  assert '0.1933 ± 0.0097' in table  # swt max of IPA
  assert len(table) == 10  # one per column
  dim = re.findall(r'\x1b\[2m([^\x1b]*)\x1b\[0m', text)
  assert any('paper: OneRec-1B' in d for d in dim)


def test_differences_are_those_of_the_rewards_where_truth_is_known():
  assert report_sweep_rows.difference_columns(result()) == [
    'reward_mean',
    'reward_max',
    'true_reward_mean',
    'true_reward_max',
  ]
  assert report_sweep_rows.difference_columns(result(truth=False)) == [
    'reward_mean',
    'reward_max',
    'swt_max',
    'vtr_max',
    'wtr_max',
    'ltr_max',
  ]


def test_differences_and_legality_are_told_per_row():
  sweep = result()
  row = row_of(sweep, 'OneRec + IPA')
  row['legality'] = [{'free_sessions': 0.9, 'free_items': 1.0}, {}, {
    'free_sessions': 0.8, 'free_items': 0.98,
  }]  # fmt: skip
  set_difference(row, 'reward_mean', 0.5, 0.1)
  set_difference(row_of(sweep, 'TIGER'), 'reward_mean', 0.5, 0.6)
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
  assert rows[BASE]['cells'][2] == 'base'
  assert rows[BASE]['base']


def test_an_unknown_published_row_is_told_not_raised():
  sweep = result({'OneRec': 'OneRec-1B', 'mine': 'OneRec-7B'})
  assert 'paper: OneRec-7B (unknown)' in [
    r['cells'][0]
    for r in report_sweep_rows.reward_rows(sweep, sweep['columns'])
  ]


def test_names_of_rows_are_not_markup():
  sweep = result({'OneRec': 'OneRec-1B', 'a [bold]b[/bold]': None})
  assert 'a [bold]b[/bold]' in printed(sweep, width=120)


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['a r=3%', 'a r=1 %', 'a r = 2%'], [('a', 'r', [1.0, 2.0, 3.0])]),
    (['IPA r=3%', 'IPA r=1%', 'IPA r=2%'], [('IPA', 'r', [1.0, 2.0, 3.0])]),
    (['beta=0.1', 'beta=1', 'beta=.5'], [('', 'beta', [0.1, 0.5, 1.0])]),
    (['IPA r=1%', 'IPA r=2%', 'DPO r=3%'], []),  # three of one kind
    (['OneRec 1', 'OneRec 2', 'SASRec'], []),
  ],
)
def test_rows_that_differ_in_one_number_are_a_series(names, expected):
  sweep = result({'OneRec': 'OneRec-1B', **dict.fromkeys(names)})
  found = report_sweep_rows.series(sweep)
  assert [(s['prefix'], s['key'], s['values']) for s in found] == expected


# --- Claims -----------------------------------------------------------------


def verdicts(sweep: dict) -> dict[str, str]:
  """Claim -> verdict."""
  found = report_claims.judge(sweep, report_sweep_rows.series(sweep))
  return {c.claim: c.verdict for c in found}


ORDER = 'OneRec > TIGER > item-level baselines in swt mean'


def test_the_published_figures_themselves_bear_the_claims_out():
  found = verdicts(result())
  assert found[ORDER] == 'holds'
  assert found['IPA raises swt max'] == 'holds'
  assert found['IPA raises ltr max'] == 'holds'
  assert found['IPA is the best variant in reward max'] == 'holds'
  # +2.3 %
  assert found['IPA raises true reward mean by at least 10 %'] == (
    'does not hold'
  )


def test_the_order_is_not_clear_where_intervals_overlap():
  sweep = result()
  assert verdicts(sweep)[ORDER] == 'holds'
  for name in ('TIGER', 'TIGER small'):
    set_difference(row_of(sweep, name), 'swt_mean', -0.0112, 0.02)
  assert verdicts(sweep)[ORDER] == 'not clear'
  for name in ('TIGER', 'TIGER small'):
    set_difference(row_of(sweep, name), 'swt_mean', 0.02, 0.01)
  assert verdicts(sweep)[ORDER] == 'does not hold'


@pytest.mark.parametrize(
  ('mean', 'half', 'expected'),
  [  # shares of the base's reward
    (0.12, 0.01, 'holds'),
    (0.12, 0.13, 'not clear'),  # may be nothing at all
    (0.08, 0.04, 'not clear'),  # may be 12 %
    (0.08, 0.01, 'does not hold'),
    (-0.02, 0.01, 'does not hold'),
  ],
)
def test_ten_percent_of_true_reward_are_judged_by_the_interval(
  mean, half, expected
):
  sweep = result()
  before = row_of(sweep, BASE)['figures']['true_reward_mean']['mean']
  set_difference(
    row_of(sweep, 'OneRec + IPA'),
    'true_reward_mean',
    mean * before,
    half * before,
  )
  claim = 'IPA raises true reward mean by at least 10 %'
  assert verdicts(sweep)[claim] == expected


def test_the_best_variant_names_its_place_and_rival():
  sweep = result()
  dpo = row_of(sweep, 'OneRec + DPO')
  dpo['figures']['reward_max']['mean'] = 2.0
  set_difference(dpo, 'reward_max', 1.1, 0.01)
  claim = next(
    c
    for c in report_claims.judge(sweep)
    if c.claim == 'IPA is the best variant in reward max'
  )
  assert claim.verdict == 'does not hold'
  assert 'is number 2 of 8, first OneRec + DPO 2.0000' in claim.evidence
  assert 'swt max number 1' in claim.evidence


@pytest.mark.parametrize(
  ('true', 'expected'),
  [(0.1, 'holds'), (0.0, 'not clear'), (-0.1, 'does not hold')],
)
def test_reward_hacking_is_called_by_its_name(true, expected):
  sweep = result({'OneRec': 'OneRec-1B', 'IPA': '+IPA', 'DPO': '+IPO'})
  set_difference(row_of(sweep, 'IPA'), 'reward_mean', 0.2, 0.01)
  set_difference(row_of(sweep, 'IPA'), 'true_reward_mean', true, 0.01)
  claim = 'Variants that gain predicted reward gain true reward as well'
  found = next(c for c in report_claims.judge(sweep) if c.claim == claim)
  assert found.verdict == expected
  assert 'IPA (predicted +26.9 %' in found.evidence
  assert 'DPO' not in found.evidence  # it gained nothing


def test_few_pairs_are_judged_by_the_mean_share_of_the_best():
  rows = {f'IPA r={n}%': '+IPA' for n in range(1, 6)}
  levels = {'IPA r=4%': 1.25}  # the best: 1 % reaches 80 % of it
  sweep = result({'OneRec': 'OneRec-1B', **rows}, levels=levels)
  claim = next(c for c in report_claims.judge(
    sweep, report_sweep_rows.series(sweep)
  ) if 'Pairs for 1 %' in c.claim)  # fmt: skip
  assert claim.verdict == 'does not hold'
  assert claim.evidence.startswith('80.0 % on average: swt mean 80.0 %')
  assert verdicts(result({'OneRec': 'OneRec-1B', **rows}))[claim.claim] == (
    'holds'
  )


def test_no_claim_is_judged_without_its_rows():
  assert verdicts(result({'OneRec': 'OneRec-1B', 'mine': None})) == {}


# --- Page -------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
  """Collects pictures, links and the text of a page."""

  def __init__(self, text):
    super().__init__()
    self.pictures, self.links, self.words, self.open = [], [], [], []
    self.ids = set()
    self.feed(text)
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attributes):
    found = dict(attributes)
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    if tag == 'img':
      self.pictures.append(found)
    self.links += [found[k] for k in ('href', 'src') if k in found]
    self.ids.add(found.get('id'))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self.words.append(data)


def page_of(sweep: dict, tmp_path) -> _Page:
  """The page of a sweep; its pictures lie in the same folder."""
  folder = workdir_lib.Workdir(tmp_path).stage('sweep')
  # Through JSON, as in a run.
  path = report_sweep.write(json.loads(json.dumps(sweep)), folder)
  assert path == folder / 'report.html'
  return _Page(path.read_text())


def test_the_page_is_well_formed_and_refers_to_nothing_outside(tmp_path):
  rows = {**ROWS, **{f'IPA r={n}%': None for n in range(1, 6)}}
  page = page_of(result(rows), tmp_path)
  text = (tmp_path / 'sweep' / 'report.html').read_text()
  assert page.open == []
  assert not re.search(r'https?://|file:|<script|@import|url\(', text)
  for link in page.links:
    assert link.startswith(('data:image/png;base64,', '#'))
    if link.startswith('#'):
      assert link[1:] in page.ids
  written = sorted(p.stem for p in (tmp_path / 'sweep').glob('*.png'))
  assert written == [
    *(f'dots_{t}' for t in ('ltr', 'reward', 'swt', 'true_reward')),
    'dots_vtr',
    'dots_wtr',
    'predicted_against_true',
    'rounds',
    'series_0',
  ]
  assert len(page.pictures) == len(written)
  assert all(len(p['alt']) > 20 for p in page.pictures)
  for name in rows:
    assert name in page.text
  assert 'paper: +IPA' in page.text
  assert '1,500 answers' in page.text


def test_a_small_sweep_without_truth_has_a_smaller_page(tmp_path):
  sweep = result({BASE: None, 'mine': None}, truth=False, seeds=1)
  sweep['reward_model'] = []
  for row in sweep['rows']:
    row['legality'] = []
    row['rounds'] = []
  page = page_of(sweep, tmp_path)
  assert page.open == []
  for word in ('claims', 'true', 'Settings', 'Reward model', 'paper:'):
    assert word not in page.text
  assert len(page.pictures) == 5


def test_rows_without_a_legal_session_do_not_break_the_page(tmp_path):
  sweep = result({BASE: 'OneRec-1B', 'broken': '+IPA', 'IPA': '+DPO'})
  row = row_of(sweep, 'broken')
  for kind in ('figures', 'difference'):
    for values in row[kind].values():
      values.update(dict.fromkeys(values, float('nan')))
  row['seeds'] = [dict.fromkeys(s, float('nan')) for s in row['seeds']]
  page = page_of(sweep, tmp_path)
  assert 'nan' not in page.text
  assert 'nan' not in printed(sweep)
  assert 'IPA' in page.text


def test_names_cannot_inject_markup(tmp_path):
  page_of(result({BASE: None, '<script>alert(1)</script>': None}), tmp_path)
  text = (tmp_path / 'sweep' / 'report.html').read_text()
  assert '<script>' not in text
  assert '&lt;script&gt;' in text


def test_equal_results_give_equal_pictures(tmp_path):
  for name in ('one', 'two'):
    page_of(result(FEW), tmp_path / name)
  for path in sorted((tmp_path / 'one' / 'sweep').glob('*.png')):
    other = tmp_path / 'two' / 'sweep' / path.name
    assert path.read_bytes() == other.read_bytes()


def test_rounds_need_their_true_reward_to_be_drawn(tmp_path):
  assert page_of(result(FEW), tmp_path / 'a').text.count('per round') == 1
  without = page_of(result(FEW, per_round=False), tmp_path / 'b')
  assert 'per round' not in without.text


def test_legality_over_the_steps_is_drawn_where_it_was_recorded(tmp_path):
  swept = result(FEW)
  assert 'over the steps' not in page_of(swept, tmp_path / 'a').text
  for row in swept['rows']:
    row['legality_curves'] = [None] * 3
  swept['rows'][-1]['legality_curves'] = [[[0, 0.75], [50, 0.5]]] * 3
  assert (
    'over the steps of reinforcement' in page_of(swept, tmp_path / 'b').text
  )
  html = (tmp_path / 'b' / 'sweep' / 'report.html').read_text()
  name = swept['rows'][-1]['name']
  assert f'{name}: 75.0 % to 50.0 %' in html


def test_items_are_spoken_of_as_items(tmp_path):
  swept = result(FEW)
  assert 'Rewards of generated sessions' in page_of(swept, tmp_path / 'a').text
  swept |= {'judge': 'items', 'items_per_user': 32}
  text = page_of(swept, tmp_path / 'b').text
  assert 'Rewards of generated items' in text
  assert '32 items each, scored by one P-Score model' in text


def test_a_round_is_judged_on_validation_users_where_it_was():
  rollouts = {'legal': 10, 'reward_sum': 5.0, 'true_reward_sum': 2.0}
  measured = {'valid/reward_mean': 0.7, 'valid/true_reward_mean': 0.6}
  per_round = report_sweep_pictures._per_round
  assert per_round({'rollouts': rollouts, 'final': {}}) == (0.5, 0.2)
  assert per_round({'rollouts': rollouts, 'final': measured}) == (0.7, 0.6)
  del measured['valid/true_reward_mean']
  assert per_round({'rollouts': rollouts, 'final': measured}) == (0.5, 0.2)
  assert per_round({}) == (None, None)


def test_labels_of_points_do_not_cover_each_other():
  rng = np.random.default_rng(0)
  points = [(x, y) for x, y in rng.uniform(size=(15, 2)).tolist()]
  made, (ax,) = report_canvas.panels(height=4.4)
  ax.plot(*zip(*points, strict=True), linestyle='none', marker='o')
  ax.margins(0.1)
  names = [f'OneRec + {n}' for n in range(15)]
  figures._place_labels(ax, names, points, bold=names[0])
  made.draw_without_rendering()
  boxes = [t.get_window_extent() for t in ax.texts]
  assert [t.get_text() for t in ax.texts] == names
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[:i])


def test_pictures_survive_single_and_flat_values():
  dot = figures.Dot(0.0, 0.0, 0.0, 0)
  unknown = figures.Dot(*[float('nan')] * 3, direction=0)
  made = [
    figures.dots(['a'], {'x': [dot]}, base='a'),
    figures.dots(['a', 'b'], {'x': [dot, unknown]}, base='a'),
    figures.predicted_against_true(['a'], [dot], [dot], base='a'),
    figures.rounds({'a': ([[0.1]], [[0.1]])}, label='y'),
    figures.override_lines(
      [1.0, 2.0], {'x': [figures.Dot(1, 1, 1, 0)] * 2}, label='r', published={}
    ),
  ]
  for png in made:
    assert png.startswith(PNG)


@pytest.mark.parametrize(
  ('values', 'expected'),
  [([0.19, 0.02], 4), ([0.00294], 5), ([0.0], 4), ([None], 4), ([12.5], 4)],
)
def test_small_figures_get_more_decimals(values, expected):
  assert report_words.decimals(values) == expected
