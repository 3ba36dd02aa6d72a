"""Stage `reward` on the simulated world, and the model it leaves behind."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import reward_examples
from onerec_jax.objectives import reward as objective_lib
from onerec_jax.semantic_ids import table
from onerec_jax.stages import prepare
from onerec_jax.stages import reward
from onerec_jax.stages import reward_model
from onerec_jax.train import contract

_CLUSTERS, _NUM_ITEMS, _HISTORY, _SESSION = 6, 60, 12, 4
_EXPERIMENT = config.validate(
  config.Experiment(
    data=config.DataConfig(
      source='synthetic',
      synthetic=config.SyntheticConfig(
        num_users=300, num_items=_NUM_ITEMS, num_clusters=_CLUSTERS
      ),
      history_length=_HISTORY,
      sessions=config.SessionsConfig(items_per_session=2),
    ),
    reward_model=config.RewardModelConfig(
      targets=(
        config.RewardTarget(
          name='swt', column='watch_time', label='saturating_sum'
        ),
        config.RewardTarget(name='ltr', column='is_like', weight=2.0),
      ),
      items_per_session=_SESSION,
      held_out_share=0.25,
      embed_dim=16,
      num_heads=2,
      num_layers=1,
      tower_dim=8,
    ),
    reward=config.TrainConfig(
      batch_size=64,
      num_steps=200,
      optimizer=config.OptimizerConfig(
        peak_learning_rate=5e-3, warmup_steps=20, schedule='cosine'
      ),
      evaluate_every_steps=50,
      checkpoint_every_steps=200,
    ),
    evaluate=config.EvaluateConfig(batch_size=64, bootstrap_samples=100),
  )
)


def _ids(num_items, turn=0):
  """The first code is the item's cluster, as a good tokenizer has it."""
  item = np.arange(num_items)
  codes = np.stack([(item + turn) % _CLUSTERS, item // _CLUSTERS], axis=1)
  return table.from_codes(
    codes.astype(np.int32),
    codes_per_level=(_CLUSTERS, _NUM_ITEMS // _CLUSTERS + 1),
    popularity=np.ones(num_items),
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(workdir, ids, result) of a finished stage."""
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('reward_run'))
  prepare.run(_EXPERIMENT, workdir)
  ids = _ids(catalog.num_items(workdir.data))
  workdir.stage('tokenize')
  catalog.write_semantic_ids(
    workdir.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  return workdir, ids, reward.run(_EXPERIMENT, workdir)


@pytest.fixture(scope='module')
def loaded(trained):
  workdir, ids, _ = trained
  mesh = meshes.make_mesh(config.MeshConfig())
  return reward_model.load(_EXPERIMENT, workdir, ids, mesh, batch_size=5)


def _with_reward_model(**changes):
  model = dataclasses.replace(_EXPERIMENT.reward_model, **changes)
  return dataclasses.replace(_EXPERIMENT, reward_model=model)


# --- Training -----------------------------------------------------------------


def test_likes_and_watch_time_of_new_users_are_predicted(trained):
  result = trained[2]
  assert [t['name'] for t in result['targets']] == ['swt', 'ltr']
  for target in result['targets']:
    quality = target['held_out']
    # Some 75 users of 8 sessions: the interval is about 0.05 to each side.
    assert quality['auc']['value'] > 0.56, target['name']
    assert quality['bce']['value'] < quality['bce_constant'], target['name']


def test_the_result_says_what_was_learnt_and_from_what(trained):
  workdir, ids, result = trained
  json.dumps(result, allow_nan=False)
  assert result['steps'] == 200
  assert result['semantic_ids'] == ids.digest()
  assert result['checkpoint_step'] == result['best_step']
  swt, ltr = result['targets']
  parts = {
    part: reward_examples.open_part(
      workdir.folder('reward') / 'examples',
      part,
      model=_EXPERIMENT.reward_model,
    )
    for part in ('train', 'held_out')
  }
  labels = parts['train'].labels
  np.testing.assert_allclose(
    [swt['train_mean_label'], ltr['train_mean_label']],
    labels.mean(axis=0),
    rtol=1e-5,
  )
  # 5 % of the training sums reach the quantile.
  assert np.mean(labels[:, 0] == 1) == pytest.approx(0.05, abs=0.01)
  assert swt['quantile'] > 0 and ltr['quantile'] is None
  assert ltr['definition'] == '1 if any item has is_like > 0'
  assert 'median' in swt['positive_rule']
  sessions = result['sessions']
  assert sessions['train'] == len(labels)
  assert sessions['train_users'] + sessions['held_out_users'] == 300
  assert sessions['held_out_users'] == 75
  # Short sessions are not judged.
  index = parts['held_out'].store.index
  whole = index.target_lengths == _SESSION
  assert 0 < sessions['held_out_judged'] == whole.sum() < index.num_examples
  for target in result['targets']:
    held_out = target['held_out']
    assert held_out['sessions'] == whole.sum()
    assert sum(b['count'] for b in held_out['calibration']) == whole.sum()


def test_other_settings_of_later_stages_do_not_need_a_new_reward_model(trained):
  workdir, _, result = trained
  changed = dataclasses.replace(
    _EXPERIMENT,
    preference=config.PreferenceConfig(beta=0.7),
    model=config.ModelConfig(embed_dim=8),
  )
  again = reward.run(changed, workdir)  # finished: only judged again
  assert again['targets'] == result['targets']
  other = _with_reward_model(tower_dim=9)
  with pytest.raises(contract.Mismatch, match=r'reward_model\.tower_dim'):
    reward.run(other, workdir)


# --- Bad input ----------------------------------------------------------------


def test_a_column_that_is_not_there_is_refused_with_those_that_are(trained):
  target = config.RewardTarget(name='str', column='is_share')
  with pytest.raises(ValueError, match='is_share') as error:
    reward.run(_with_reward_model(targets=(target,)), trained[0])
  assert 'is_like' in str(error.value)


def test_few_labels_and_rare_events_are_warned_of(trained, monkeypatch):
  model = _EXPERIMENT.reward_model
  folder = trained[0].folder('reward') / 'examples'
  parts = [
    reward_examples.open_part(folder, part, model=model)
    for part in ('train', 'held_out')
  ]
  few, rare = parts[0].labels.copy(), parts[0].labels.copy()
  few[99:, 1] = np.nan
  rare[:, 1] = np.arange(len(rare)) < 99
  warned = []
  monkeypatch.setattr(
    reward.logging, 'warning', lambda text, *args: warned.append(text % args)
  )
  for labels in (parts[0].labels, few, rare):
    reward._report_labels(
      model,
      reward_examples.Written(
        parts[0]._replace(labels=labels), parts[1], (1.0, None), 0, 0
      ),
    )
  assert len(warned) == 2
  assert warned[0].startswith('label ltr is known for 99 training sessions')
  assert f'label ltr: 99 of {len(rare)} training sessions' in warned[1]


# --- The model that other stages use ------------------------------------------


def _candidates(users=7, history=_HISTORY):
  random = np.random.default_rng(0)
  items = random.integers(0, _NUM_ITEMS - 5, (users, 3, _SESSION))
  mask = np.ones(items.shape, bool)
  mask[1, 2, 1:] = False
  lengths = random.integers(1, history + 1, users)
  return {
    'history_items': random.integers(0, _NUM_ITEMS - 5, (users, history)),
    'history_mask': np.arange(history) < lengths[:, None],
    'items': items,
    'mask': mask,
  }


def test_scores_are_those_of_the_model_on_one_device(trained, loaded):
  ids = trained[1]
  case = _candidates()
  got = loaded.score(**case)
  assert got.shape == (7, 3, 2)
  assert np.isfinite(got).all()
  alone = reward_model.make_model(_EXPERIMENT, ids, None)
  params = jax.tree.map(np.asarray, loaded._params)
  want = objective_lib.make_scorer(alone)(params, ids.codes, *case.values())
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_scoring_compiles_once_for_any_number_of_users(loaded, monkeypatch):
  shapes = []
  score = loaded._score

  def record(params, codes, *arrays):
    shapes.append([x.shape for x in arrays])
    return score(params, codes, *arrays)

  monkeypatch.setattr(loaded, '_score', record)
  case = _candidates(users=19, history=2 * _HISTORY)
  whole = loaded.score(**case)
  # Five users at once, rounded up to the eight devices.
  assert len(shapes) == 3
  assert shapes[0] == [(8, _HISTORY)] * 2 + [(8, 3, _SESSION)] * 2
  part = loaded.score(**{name: x[3:6] for name, x in case.items()})
  assert shapes == shapes[:1] * 4
  np.testing.assert_allclose(part, whole[3:6], rtol=1e-5)
  nobody = loaded.score(**{name: x[:0] for name, x in case.items()})
  assert nobody.shape == (0, 3, 2)


def test_only_the_latest_behaviours_are_read_wherever_padding_lies(loaded):
  case = _candidates(history=_HISTORY + 5)
  case['history_mask'][:] = np.random.default_rng(1).random((7, 17)) < 0.9
  assert (case['history_mask'].sum(axis=1) > _HISTORY).any()
  latest = np.zeros((7, _HISTORY), int)
  mask = np.zeros((7, _HISTORY), bool)
  for row in range(7):
    items = case['history_items'][row][case['history_mask'][row]][-_HISTORY:]
    latest[row, : len(items)] = items
    mask[row, : len(items)] = True
  np.testing.assert_array_equal(
    loaded.score(**case),
    loaded.score(**{**case, 'history_items': latest, 'history_mask': mask}),
  )


def test_items_of_minus_one_are_padding_and_empty_candidates_have_no_score(
  loaded,
):
  case = _candidates()
  want = loaded.score(**case)
  case['items'][~case['mask']] = -1
  case['mask'][1, 2] = True
  np.testing.assert_array_equal(loaded.score(**case), want)
  case['items'][4, 0] = -1
  got = loaded.score(**case)
  assert np.isnan(got[4, 0]).all()
  assert np.isfinite(np.delete(got.reshape(21, 2), 12, axis=0)).all()


def test_items_beyond_the_catalogue_are_refused(loaded):
  case = _candidates()
  case['items'][0, 0, 0] = _NUM_ITEMS
  with pytest.raises(ValueError, match='items holds item 60'):
    loaded.score(**case)


def test_what_the_scores_mean_is_told(loaded, trained):
  assert loaded.names == ('swt', 'ltr')
  np.testing.assert_array_equal(loaded.weights, [1.0, 2.0])
  assert loaded.aggregate == 'zscore_sum'
  assert loaded.config == _EXPERIMENT.reward_model
  assert loaded.step == trained[2]['best_step']


def test_a_model_is_built_from_the_settings_it_was_trained_with(trained):
  workdir, ids, _ = trained
  mesh = meshes.make_mesh(config.MeshConfig())
  other = _with_reward_model(embed_dim=32, num_layers=3)
  model = reward_model.load(other, workdir, ids, mesh)
  assert model.config == _EXPERIMENT.reward_model


def test_a_reward_model_of_other_ids_is_refused(trained):
  workdir, ids, _ = trained
  mesh = meshes.make_mesh(config.MeshConfig())
  other = _ids(ids.num_items, turn=1)
  with pytest.raises(contract.Mismatch, match='does not fit') as error:
    reward_model.load(_EXPERIMENT, workdir, other, mesh)
  for text in (ids.digest(), other.digest(), "run the stage 'reward'"):
    assert text in str(error.value)


def test_a_missing_reward_model_names_the_stage(tmp_path, trained):
  mesh = meshes.make_mesh(config.MeshConfig())
  with pytest.raises(FileNotFoundError, match="'reward'"):
    reward_model.load(
      _EXPERIMENT, workdir_lib.Workdir(tmp_path), trained[1], mesh
    )
