"""Page of a sweep."""

import json
import re

import pytest

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report_sweep

pytestmark = pytest.mark.usefixtures('coarse_pictures')


@pytest.fixture
def page_of(read_page):
  """Function: result, folder -> the sweep's page; it lies in the folder."""

  def make(sweep, root):
    folder = workdir_lib.Workdir(root).stage('sweep')
    # Through JSON, as in a run.
    path = report_sweep.write(json.loads(json.dumps(sweep)), folder)
    assert path == folder / 'report.html'
    return read_page(path.read_text())

  return make


def test_the_page_is_well_formed_and_refers_to_nothing_outside(
  made_sweep, page_of, tmp_path
):
  rows = {**made_sweep.ROWS, **{f'IPA r={n}%': None for n in range(1, 6)}}
  page = page_of(made_sweep.result(rows), tmp_path)
  text = (tmp_path / 'sweep' / 'report.html').read_text()
  assert page.open == []
  assert not re.search(r'https?://|file:|<script|@import|url\(', text)
  assert all(x.startswith(('data:image/png;base64,', '#')) for x in page.links)
  assert page.jumps == page.sections
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
  assert 'paper: +IPA' in page.text and 'in grey the published' in page.text
  assert '1,500 answers' in page.text


def test_a_small_sweep_without_truth_has_a_smaller_page(
  made_sweep, page_of, tmp_path
):
  sweep = made_sweep.result(
    {made_sweep.BASE: None, 'mine': None}, truth=False, seeds=1
  )
  sweep['reward_model'] = []
  for row in sweep['rows']:
    row['legality'] = []
    row['rounds'] = []
  page = page_of(sweep, tmp_path)
  assert page.open == []
  words = 'claims', 'true', 'Settings', 'Reward model', 'paper:', 'published'
  for word in words:
    assert word not in page.text
  assert len(page.pictures) == 5


def test_rows_without_a_legal_session_do_not_break_the_page(
  made_sweep, page_of, tmp_path
):
  page = page_of(made_sweep.with_broken_row(), tmp_path)
  assert 'nan' not in page.text
  assert 'IPA' in page.text


def test_names_cannot_inject_markup(made_sweep, page_of, tmp_path):
  page_of(
    made_sweep.result(
      {made_sweep.BASE: None, '<script>alert(1)</script>': None}
    ),
    tmp_path,
  )
  text = (tmp_path / 'sweep' / 'report.html').read_text()
  assert '<script>' not in text
  assert '&lt;script&gt;' in text


def test_equal_results_give_equal_pictures(made_sweep, page_of, tmp_path):
  for name in ('one', 'two'):
    page_of(made_sweep.result(made_sweep.FEW), tmp_path / name)
  for path in sorted((tmp_path / 'one' / 'sweep').glob('*.png')):
    other = tmp_path / 'two' / 'sweep' / path.name
    assert path.read_bytes() == other.read_bytes()


def test_rounds_need_their_true_reward_to_be_drawn(
  made_sweep, page_of, tmp_path
):
  assert (
    page_of(made_sweep.result(made_sweep.FEW), tmp_path / 'a').text.count(
      'per round'
    )
    == 1
  )
  without = page_of(
    made_sweep.result(made_sweep.FEW, per_round=False), tmp_path / 'b'
  )
  assert 'per round' not in without.text


def test_legality_over_the_steps_is_drawn_where_it_was_recorded(
  made_sweep, page_of, tmp_path
):
  swept = made_sweep.result(made_sweep.FEW)
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


def test_items_are_spoken_of_as_items(made_sweep, page_of, tmp_path):
  swept = made_sweep.result(made_sweep.FEW)
  assert 'Rewards of generated sessions' in page_of(swept, tmp_path / 'a').text
  swept |= {'judge': 'items', 'items_per_user': 32}
  text = page_of(swept, tmp_path / 'b').text
  assert 'Rewards of generated items' in text
  assert '32 items each, scored by one P-Score model' in text
