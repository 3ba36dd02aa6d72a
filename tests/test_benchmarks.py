"""The benchmarks' harness, checks and curves; times are never asserted."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import beam_search
from experiments.benchmarks import cost_curves
from experiments.benchmarks import curve_tasks
from experiments.benchmarks import group_step
from experiments.benchmarks import harness
from experiments.benchmarks import input_pipeline
from experiments.benchmarks import models
from experiments.benchmarks import session_beam
from experiments.benchmarks import start_time
from experiments.benchmarks import top_k_forms
from onerec_jax.model import onerec
from onerec_jax.semantic_ids import vocabulary

# --- Harness ----------------------------------------------------------------


def test_contenders_take_turns_and_the_order_turns_around():
  calls = []
  results = harness.alternate(
    {name: lambda name=name: calls.append(name) for name in 'ab'},
    rounds=2,
    warmup=1,
  )
  # One round before; then an untimed call in front of each timed one.
  assert ''.join(calls) == 'ba' + 'aabb' + 'bbaa'
  assert len(results['a']['wall_seconds']) == 2


def test_a_ratio_is_taken_round_by_round():
  slow = {'wall_seconds': [2.0, 9.0, 4.0], 'cpu_seconds': [1.0, 1.0, 1.0]}
  fast = {'wall_seconds': [1.0, 3.0, 4.0], 'cpu_seconds': [1.0, 2.0, 4.0]}
  found = harness.ratio(slow, fast)
  # 2, 3, 1 and 1, 1/2, 1/4; of the medians it would be 4 / 3 and 1 / 2.
  assert found['wall_ratio_median'] == 2.0
  assert (found['wall_ratio_min'], found['wall_ratio_max']) == (1.0, 3.0)
  assert found['cpu_ratio_median'] == 0.5


def test_a_large_array_of_a_program_is_found():
  text = 'ROOT %a = f32[4,128]{1,0} fusion(s32[7]{0} %b, bf16[1,600]{1,0} %c)'
  assert harness.large_arrays(text, elements=512) == ['1,600', '4,128']
  assert harness.large_arrays(text, elements=601) == []


@pytest.mark.parametrize('peer', [[1.0, 2.1], [1.0, np.nan], [1.0]])
def test_values_that_differ_are_not_timed(peer):
  harness.check_close([1.0, 2.0], [1.0, 2.001], what='x', relative=1e-3)
  with pytest.raises(ValueError, match='x'):
    harness.check_close([1.0, 2.0], peer, what='x', relative=1e-3)


def test_a_result_file_names_machine_date_and_versions(tmp_path):
  made = harness.report('name', ('jax',), figure=3)
  harness.write(tmp_path / 'a' / 'r.json', made)
  found = json.loads((tmp_path / 'a' / 'r.json').read_text())
  assert found['figure'] == 3
  assert {'command', 'date', 'cores', 'load_average', 'versions'} <= set(found)
  assert {'python', 'jax'} <= set(found['versions'])


# --- Checks of the contenders -----------------------------------------------


def test_session_beams_that_differ_are_refused():
  codes = np.zeros((1, 4, 2, 3), np.int32)
  totals = np.full((1, 4), -5.0)
  assert session_beam.check_equal((codes, totals), (codes, totals)) == {
    'same_sessions': 1.0,
    'difference_of_allowed': 0.0,
  }
  with pytest.raises(ValueError, match=r'75\.0%'):
    other = codes.copy()
    other[0, 1, 1, 2] = 1
    session_beam.check_equal((other, totals), (codes, totals))
  with pytest.raises(ValueError, match='log-probabilities'):
    session_beam.check_equal((codes, totals - 0.01), (codes, totals))


def test_a_gradient_that_differs_is_refused():
  ours = np.float32(1.0), {'w': np.ones(3, np.float32)}
  group_step.check_equal(ours, ours)
  with pytest.raises(ValueError, match=r"gradient of \['w'\]"):
    group_step.check_equal(ours, (ours[0], {'w': np.array([1.0, 1.0, 1.1])}))
  with pytest.raises(ValueError, match='loss'):
    group_step.check_equal(ours, (np.float32(1.1), ours[1]))


def test_an_illegal_or_repeated_beam_is_refused():
  codes = beam_search.catalogue(100)[None, :5]
  assert beam_search.check_answer('x', codes, num_beams=5, num_items=100) == 1.0
  illegal = codes.copy()
  illegal[0, 0] = (illegal[0, 0] + 1) % 256
  with pytest.raises(ValueError, match=r'80\.0% of them legal'):
    beam_search.check_answer('x', illegal, num_beams=5, num_items=100)
  codes[0, 1] = codes[0, 0]
  with pytest.raises(ValueError, match='4 distinct IDs of 5'):
    beam_search.check_answer('x', codes, num_beams=5, num_items=100)


def test_other_batches_or_another_loss_are_refused():
  input_pipeline.check_equal([1.0, 2.0], [1.0, 2.0])
  with pytest.raises(ValueError, match='interval 1'):
    input_pipeline.check_equal([1.0, 2.0], [1.0, 2.0000001])
  start_time.check_equal([{'loss': 1.0}, {'loss': 1.0}])
  with pytest.raises(ValueError, match='different losses'):
    start_time.check_equal([{'loss': 1.0}, {'loss': 1.5}])


# --- Rehearsals -------------------------------------------------------------


def test_our_session_beam_has_no_array_of_beams_times_encoder_and_tiles_have():
  found = session_beam.measure(session_beam.TOY, rounds=1)
  results = found['results']
  assert results['ours']['beams_times_encoder_arrays'] == []
  assert results['tiled']['beams_times_encoder_arrays']
  assert found['temporary_ratio'] > 1
  assert found['same_sessions'] == 1.0


def test_a_group_step_equals_the_one_that_encodes_per_output():
  found = group_step.measure('ecpo', group_step.TOY, rounds=1)
  assert found['difference_of_allowed'] <= 1
  assert set(found['results']) == {'ours', 'repeated'}
  for key, value in found['of_bound'].items():
    assert value == found['flop_bound'] * found['ratio'][key]


def test_the_bound_of_a_group_is_that_of_the_formula():
  # One layer each, D = H K = 4, no experts, 2 tokens of history.
  config = models.tiger_config(
    embed_dim=4, num_heads=1, head_dim=4, encoder_layers=1, decoder_layers=1,
    mlp_dim=4, history_separator=False, cross_attention='absorbed',
  )  # fmt: skip
  model = onerec.OneRec(config, vocabulary.Vocabulary((5,)), 1)
  # Of a token: 4 matrices of 4 x 4 and two of the feed-forward; T^2 twice.
  encoder = 2 * (2 * 4 * 16 + 2 * 2 * 16) + 2 * 2 * 2 * 2 * 4
  # Two tokens (BOS and the code), cross-attention with folded matrices.
  own = 2 * (2 * 4 * 16 + 2 * 2 * 16) + 2 * 2 * 2 * 2 * 4
  cross = 2 * (2 * 2 * 16) + 2 * 2 * 2 * 16 + 2 * 2 * 2 * 2 * 4
  decoder = own + cross + 2 * 4 * 5
  bound = group_step.flop_bound(
    model, group=8, history_items=2, session_items=1
  )
  assert bound == pytest.approx(
    (encoder + 8 * decoder) / (8 * (encoder + decoder)), rel=1e-12
  )


def test_a_refresh_of_the_catalogue_compiles_nothing():
  found = cost_curves.as_json(curve_tasks.items(True))
  assert found['compilations_at_refresh'] == [0, 0]
  per_item = found['series']['bytes per item beside the bitmap']['values']
  assert max(per_item) <= 12


def test_made_up_ids_are_different_and_fit_their_levels():
  for number, levels in ((60, (4, 4, 4)), (1000, (512, 512, 512))):
    codes = models.item_codes(number, levels)
    assert codes.shape == (number, 3)
    assert len(np.unique(codes, axis=0)) == number
    assert codes.max() < levels[0]
    assert codes.min() >= 0


def test_top_k_by_chunks_is_that_of_whole_rows_and_keeps_the_order_of_ties():
  generator = np.random.default_rng(0)
  for values in (3, 1000):  # three different scores: nearly all are ties
    scores = generator.integers(0, values, (4, 256)).astype(np.float32)
    scores[0] = -np.inf
    expected = np.argsort(-scores, axis=1, kind='stable')[:, :7]
    best, index = top_k_forms.by_chunks(jnp.asarray(scores), 7, chunk=8)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(
      best, np.take_along_axis(scores, expected, axis=1)
    )


def test_chunks_sort_least_near_the_square_root():
  # sqrt(1048576 / 128) = 90.5 and sqrt(256) = 16.
  assert top_k_forms.chunk_of(128 * 8192, 128) == 64
  assert top_k_forms.chunk_of(256, 1) == 16


# --- Curves -----------------------------------------------------------------


def test_a_cliff_is_a_jump_between_neighbours():
  x = [1, 10, 100]

  def judge(expected, values):
    return cost_curves.verdict(x, curve_tasks.Series('s', expected, values))

  assert judge(1.0, [1, 10, 100]).startswith('no cliff: at most x^1.00')
  # Over the whole range it is linear too.
  assert judge(1.0, [1, 1, 100]).startswith('CLIFF from 10 to 100')
  assert judge(0.0, [5, 50, 50]).startswith('CLIFF from 1 to 10')
  assert judge(-1.0, [8, 0.8, 0.5]).startswith('CLIFF from 10 to 100')


def test_the_picture_is_drawn(tmp_path):
  series = curve_tasks.Series('s', 1.0, [1.0, 2.0, 4.0])
  curve = curve_tasks.Curve([1, 2, 4], {'time': series}, {'note': 1})
  cost_curves.draw({'items': cost_curves.as_json(curve)}, tmp_path / 'c.png')
  assert (tmp_path / 'c.png').read_bytes()[1:4] == b'PNG'
