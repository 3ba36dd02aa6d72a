"""Stage evaluate and the comparison of methods."""

import dataclasses
import io
import json

import numpy as np
import pytest
import rich.console

from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import table
from onerec_jax.stages import comparison
from onerec_jax.stages import evaluate
from onerec_jax.stages import predictions
from onerec_jax.stages import trained

NONE = metrics.NO_ITEM


@pytest.fixture(scope='module')
def outcome(tiny_run):
  """(experiment, workdir, result of the stage)."""
  experiment, workdir = tiny_run
  return experiment, workdir, evaluate.run(experiment, workdir)


def _interactions(workdir):
  frame = catalog.read_interactions(workdir.data)
  return {
    user: frame.filter((frame['user'] == user) & frame['positive'])[
      'item'
    ].to_list()
    for user in frame['user'].unique().to_list()
  }


def test_the_result_is_plain_json(outcome):
  _, _, result = outcome
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_all_methods_answer_the_same_users(outcome):
  _, workdir, result = outcome
  assert result['users'] == len(_interactions(workdir))
  assert list(result['metrics']) == [
    'onerec',
    'popularity',
    'markov',
    'markov_10',
    'cooccurrence',
    'cooccurrence_source',
  ]
  for figures in result['metrics'].values():
    for name in ('recall@1', 'recall@10', 'ndcg@5', 'mrr@10', 'hit@5'):
      value = figures[name]
      assert 0 <= value['low'] <= value['mean'] <= value['high'] <= 1


def test_metrics_equal_those_of_the_written_predictions(outcome):
  _, workdir, result = outcome
  written = catalog.read_predictions(
    workdir.root / 'evaluate' / 'predictions.parquet'
  )
  hits = [
    target in items[:10]
    for items, target in zip(
      written['items'].tolist(), written['target_items'][:, 0], strict=True
    )
  ]
  assert result['metrics']['onerec']['recall@10']['mean'] == pytest.approx(
    np.mean(hits)
  )


def test_targets_are_the_last_positives_and_nothing_seen_is_recommended(
  outcome,
):
  _, workdir, _ = outcome
  sequences = _interactions(workdir)
  written = catalog.read_predictions(
    workdir.root / 'evaluate' / 'predictions.parquet'
  )
  assert max(len(s) for s in sequences.values()) - 1 > 6  # history_length
  for row, user in enumerate(written['user'].tolist()):
    *seen, target = sequences[user]
    assert written['target_items'][row, 0] == target
    assert written['seen_items'][row] == len(seen)
    listed = [i for i in written['items'][row].tolist() if i != NONE]
    assert listed and len(listed) == len(set(listed))
    assert not set(listed) & set(seen)


def test_popularity_of_the_stage_equals_a_count_of_training_items(outcome):
  """The held-out items are counted nowhere."""
  _, workdir, result = outcome
  sequences = _interactions(workdir)
  counts = np.zeros(catalog.num_items(workdir.data))
  for items in sequences.values():
    for item in items[:-2]:  # without the validation and the test target
      counts[item] += 1
  hits = []
  for *seen, target in sequences.values():
    ranked = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    hits.append(target in [i for i in ranked if i not in seen][:5])
  assert result['metrics']['popularity']['recall@5']['mean'] == pytest.approx(
    np.mean(hits)
  )


def test_legality_and_entropy_are_in_range(outcome):
  _, _, result = outcome
  assert result['legality'] == 1.0  # the trie allows nothing else
  assert result['empty_results'] == 0
  assert len(result['entropy_per_level']) == 2
  for entropy, codes in zip(
    result['entropy_per_level'], result['codes_per_level'], strict=True
  ):
    assert 0 < entropy <= np.log(codes) + 1e-6
  assert set(result['teacher_forced']) == {
    'token_loss',
    'accuracy/level_0',
    'accuracy/level_1',
  }
  assert result['teacher_forced']['token_loss'] > 0


def test_example_users_show_history_targets_and_list(outcome):
  _, workdir, result = outcome
  assert len(result['examples']) == 3
  users = catalog.read_users(workdir.data)['user_id'].to_list()
  ids = catalog.item_ids(workdir.data).tolist()
  for example in result['examples']:
    sequence = _interactions(workdir)[users.index(example['user_id'])]
    assert [h['item_id'] for h in example['history']] == [
      ids[i] for i in sequence[:-1][-6:]
    ]
    assert example['targets'][0]['item_id'] == ids[sequence[-1]]
    scores = [r['score'] for r in example['recommended']]
    assert scores == sorted(scores, reverse=True)


def test_lists_with_counts_stand_beside_those_without(
  outcome, with_settings, tmp_path
):
  experiment, workdir, alone = outcome
  decoding = dataclasses.replace(
    experiment.evaluate.decoding, transition_weight=0.9
  )
  place = workdir_lib.Workdir(
    tmp_path,
    folders={
      stage: workdir.folder(stage)
      for stage in ('prepare', 'embed', 'tokenize', 'pretrain')
    },
  )
  result = evaluate.run(with_settings(experiment, decoding=decoding), place)
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert list(result['metrics'])[:2] == ['onerec', 'without_transitions']
  assert result['metrics']['without_transitions'] == alone['metrics']['onerec']
  assert result['metrics']['onerec'] != alone['metrics']['onerec']
  assert result['best_floor'] == alone['best_floor']
  assert 'recall@10' in result['difference_to_before']
  assert result['methods']['onerec']['title'] == 'OneRec + transitions'
  assert result['methods']['without_transitions']['title'] == 'OneRec alone'


def test_fewer_users_are_evaluated_where_that_is_asked(tiny_run, with_settings):
  experiment, workdir = tiny_run
  result = evaluate.run(with_settings(experiment, max_examples=5), workdir)
  assert result['users'] == 5


def test_changed_model_settings_are_named_and_the_trained_ones_used(tiny_run):
  experiment, workdir = tiny_run
  model = dataclasses.replace(experiment.model, embed_dim=16)
  found = trained.load(
    dataclasses.replace(experiment, model=model), workdir, which='best'
  )
  assert found.model.config.embed_dim == 8
  assert found.differences == ['model.embed_dim: 8 -> 16']


def test_a_missing_checkpoint_names_the_stage_to_run(tiny_run, tmp_path):
  experiment, _ = tiny_run
  with pytest.raises(FileNotFoundError, match='tokenize'):
    evaluate.run(experiment, workdir_lib.Workdir(tmp_path))


def test_the_table_shows_every_method_and_the_difference(outcome):
  _, _, result = outcome
  console = rich.console.Console(file=io.StringIO(), width=200)
  predictions.print_table(result, console)
  text = console.file.getvalue()
  for method in result['methods'].values():
    assert method['title'] in text
  assert f'{result["metrics"]["onerec"]["recall@10"]["mean"]:.4f}' in text
  assert 'legal 100.0 %' in text


# --- The comparison alone ---------------------------------------------------


def _compare(lists, targets, **changes):
  num_items = 12
  settings = {
    'ours': 'onerec',
    'targets': targets,
    'target_mask': np.ones(targets.shape, bool),
    'previous': np.zeros(len(targets), int),
    'top_k': (1, 3),
    'id_of_item': np.arange(num_items),
    'train_counts': np.arange(num_items),
    'item_ids': np.arange(num_items).astype(str),
    'embeddings': None,
    'category_of_item': None,
    'samples': 50,
    'seed': 0,
    **changes,
  }
  return comparison.compare(lists, **settings)


def test_a_planted_collision_is_credited_by_id_only():
  codes = np.array(
    [[0, 0], [0, 0], [0, 1], [1, 0], *[[1, 1 + i] for i in range(8)]]
  )
  id_of_item = table.bucket_of(codes)
  # The target is item 1; ours lists its twin 0, the floor lists 1 itself.
  result = _compare(
    {'onerec': np.array([[0, 2, 3]]), 'floor': np.array([[2, 3, 1]])},
    np.array([[1]]),
    id_of_item=id_of_item,
  )
  by_item, by_id = result['metrics'], result['metrics_by_id']
  assert by_item['onerec']['recall@3']['mean'] == 0
  assert by_id['onerec']['recall@3']['mean'] == 1
  assert by_id['onerec']['recall@1']['mean'] == 1
  assert by_item['floor']['recall@3']['mean'] == 1
  assert by_item['floor']['recall@1']['mean'] == 0


def test_permuting_users_changes_no_mean():
  rng = np.random.default_rng(0)
  lists = {
    name: np.stack([rng.permutation(12)[:3] for _ in range(30)])
    for name in ('onerec', 'a', 'b')
  }
  targets, previous = rng.integers(0, 12, (30, 1)), rng.integers(0, 12, 30)
  order = rng.permutation(30)
  one = _compare(lists, targets, previous=previous)
  other = _compare(
    {name: items[order] for name, items in lists.items()},
    targets[order],
    previous=previous[order],
  )
  assert one['best_floor'] == other['best_floor']
  for kind in ('metrics', 'metrics_by_id'):
    for method, figures in one[kind].items():
      for name, value in figures.items():
        assert value['mean'] == pytest.approx(
          other[kind][method][name]['mean'], abs=1e-12
        )
  for name, rows in one['slices'].items():
    assert [r['users'] for r in rows] == [
      r['users'] for r in other['slices'][name]
    ]


def test_the_best_floor_is_the_one_ours_is_compared_with():
  targets = np.array([[1], [2], [3], [4]])
  hit, miss = targets.repeat(3, axis=1), np.full((4, 3), 9)
  ours = np.where(np.arange(4)[:, None] < 3, hit, miss)  # 3 of 4
  weak = np.where(np.arange(4)[:, None] < 1, hit, miss)  # 1 of 4
  good = np.where(np.arange(4)[:, None] < 2, hit, miss)  # 2 of 4
  result = _compare({'onerec': ours, 'weak': weak, 'good': good}, targets)
  assert result['best_floor'] == 'good'
  difference = result['difference_to_best_floor']['recall@3']
  assert difference['mean'] == pytest.approx(1 / 4)
  assert difference['low'] >= 0  # ours hits wherever the floor does


def test_frequency_slices_have_the_stated_borders():
  counts = np.array([0, 1, 5, 6, 20, 21, 900])
  masks = comparison.frequency_slices(counts)
  assert {name: counts[m].tolist() for name, m in masks.items()} == {
    '0': [0],
    '1-5': [1, 5],
    '6-20': [6, 20],
    '> 20': [21, 900],
  }


def test_slices_partition_the_users_and_hold_their_means():
  targets = np.array([[0], [3], [8], [8]])
  ours = np.array([[0, 1, 2], [9, 9, 9], [8, 1, 2], [1, 2, 7]])
  result = _compare(
    {'onerec': ours, 'floor': np.full((4, 3), NONE)},
    targets,
    train_counts=np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 30]),
  )
  rows = result['slices']['training frequency of the target']
  recall = {
    r['slice']: r['methods']['onerec']['recall@3']['mean']
    for r in rows
    if r['users']
  }
  assert {r['slice']: r['users'] for r in rows} == {
    '0': 1,
    '1-5': 1,
    '6-20': 2,
    '> 20': 0,
  }
  assert recall == {'0': 1.0, '1-5': 0.0, '6-20': 0.5}


@pytest.mark.parametrize(
  ('item_ids', 'expected'),
  [
    (['10', '9', '100'], [1, 0, 2]),  # by value, not as text
    (['B000000002', 'B000000001', '7806397051'], [2, 1, 0]),
    (['10', 'x'], None),
    (['b000000001', 'B000000001'], None),
  ],
)
def test_original_ids_compare_as_numbers_or_asins_only(item_ids, expected):
  numbers = comparison.order_numbers(np.array(item_ids))
  if expected is None:
    assert numbers is None
  else:
    assert numbers is not None
    np.testing.assert_array_equal(numbers, expected)


def test_order_slices_leave_out_users_without_history():
  masks = comparison.order_slices(
    np.array([0, 2, NONE, 1]),
    np.array([1, 1, 1, 1]),
    np.array([10, 20, 30]),
  )
  larger, rest = masks.values()
  np.testing.assert_array_equal(larger, [True, False, False, False])
  np.testing.assert_array_equal(rest, [False, True, False, True])
