import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir
from onerec_jax.train import checkpoints
from onerec_jax.train import contract


def _mesh(*shape):
  count = int(np.prod(shape))
  return meshes.make_mesh(config.MeshConfig(*shape), jax.devices()[:count])


def _restore(root, **changes):
  return checkpoints.restore_for_evaluation(
    workdir.Workdir(root).folder('pretrain'),
    **{'which': 'latest', 'mesh': _mesh(1, 1, 1), **changes},
  )


_EXPERIMENT = config.Experiment(name='toy')


def test_best_and_latest_are_restored_from_the_work_directory(toy, tmp_path):
  values = iter([0.1, 0.9])
  result = toy.run(
    tmp_path / 'pretrain',
    experiment=_EXPERIMENT,
    evaluate=lambda *_: {'valid/recall@10': next(values, 0.0)},
    best_metric='valid/recall@10',
    best_mode='max',
    train=toy.config_with(num_steps=30),
  )
  latest = _restore(tmp_path)
  assert latest.step == 30
  assert latest.experiment == _EXPERIMENT
  assert latest.ids_digest == '0123'
  np.testing.assert_array_equal(latest.params['w'], result.state.params['w'])
  np.testing.assert_array_equal(latest.model_state, 30.0)
  best = _restore(tmp_path, which='best')
  assert best.step == 20
  np.testing.assert_array_equal(best.model_state, 20.0)
  assert np.any(np.asarray(best.params['w']) != latest.params['w'])


def test_the_average_is_restored_if_there_is_one(toy, tmp_path):
  result = toy.run(tmp_path / 'pretrain', train=toy.config_with(ema_decay=0.9))
  params = _restore(tmp_path).params
  np.testing.assert_array_equal(params['w'], result.state.ema_params['w'])
  assert np.any(np.asarray(params['w']) != result.state.params['w'])


def test_best_without_validation_is_the_latest(toy, tmp_path):
  toy.run(tmp_path / 'pretrain', train=toy.config_with(evaluate_every_steps=0))
  assert _restore(tmp_path, which='best').step == 20


@pytest.fixture
def state_on(toy):
  """Function: mesh -> state with one split matrix, contract, the matrix."""
  value = np.arange(16 * 6, dtype=np.float32).reshape(16, 6)
  params, names = {'a': {'w': value}}, {'a': {'w': ('embed', 'mlp')}}

  def make(mesh):
    return *toy.start_of(
      params, names, np.zeros((2, 3), np.float32), mesh
    ), value

  return make


def test_what_is_written_later_is_what_was_handed_over(
  state_on, tmp_path, monkeypatch
):
  # JSON is written in the background; here only once the loop has gone on.
  gone_on = threading.Event()
  data, progress = {'next': [3]}, {'seconds': {'train': 1.0}}
  dumps = json.dumps

  def late(value, *args, **kwargs):
    if value in ({'iterator': data}, progress):
      assert gone_on.wait(60)
    return dumps(value, *args, **kwargs)

  monkeypatch.setattr(json, 'dumps', late)
  start, agreed, _ = state_on(_mesh(1, 1, 1))
  folder = workdir.Workdir(tmp_path).stage('pretrain')
  with checkpoints.Checkpointer(folder, agreed, keep=1) as saver:
    saver.save(0, start, data=data, progress=progress, best_step=None)
    data['next'][0], progress['seconds']['train'] = 4, 2.0
    gone_on.set()
    saver.wait()
    saved = saver.restore(start)
  assert saved.data == {'next': [3]}
  assert saved.progress == {'seconds': {'train': 1.0}}


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 8, 1), (1, 2, 1)])
def test_parameters_are_restored_on_another_mesh(state_on, tmp_path, shape):
  start, agreed, value = state_on(_mesh(2, 2, 2))
  folder = workdir.Workdir(tmp_path).stage('pretrain')
  with checkpoints.Checkpointer(folder, agreed, keep=1) as saver:
    saver.save(5, start, data={}, progress={}, best_step=None)
  restored = _restore(tmp_path, mesh=_mesh(*shape))
  kernel = restored.params['a']['w']
  np.testing.assert_array_equal(kernel, value)
  assert {s.data.shape for s in kernel.addressable_shards} == {
    (16 // int(np.prod(shape)), 6)
  }
  assert restored.experiment is None


def test_training_continues_on_another_mesh(state_on, tmp_path):
  start, agreed, value = state_on(_mesh(2, 2, 2))
  folder = workdir.Workdir(tmp_path).stage('pretrain')
  with checkpoints.Checkpointer(folder, agreed, keep=1) as saver:
    saver.save(5, start, data={'next_index': 5}, progress={}, best_step=None)
  other, _, _ = state_on(_mesh(1, 4, 1))
  with checkpoints.Checkpointer(folder, agreed, keep=1) as saver:
    saved = saver.restore(other)
  assert saved.data == {'next_index': 5}
  for got, like in zip(
    jax.tree.leaves(saved.state), jax.tree.leaves(other), strict=True
  ):
    assert got.sharding == like.sharding
  np.testing.assert_array_equal(saved.state.params['a']['w'], value)


def test_a_checkpoint_holds_separate_items(toy, tmp_path):
  toy.run(tmp_path, train=toy.config_with(ema_decay=0.9))
  items = {p.name for p in (tmp_path / 'checkpoints' / '20').iterdir()}
  assert {
    'params',
    'ema',
    'opt',
    'model_state',
    'config',
    'data',
    'progress',
  } <= items


def test_no_checkpoint_says_what_to_run(tmp_path):
  with pytest.raises(FileNotFoundError, match="run the stage 'pretrain'"):
    _restore(tmp_path)
  (tmp_path / 'pretrain' / 'checkpoints').mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
    _restore(tmp_path)


def test_a_half_written_checkpoint_is_not_seen(toy, tmp_path):
  toy.run(tmp_path / 'pretrain')
  # What a kill during a write leaves behind.
  folder = tmp_path / 'pretrain' / 'checkpoints'
  (folder / '25.orbax-checkpoint-tmp').mkdir()
  assert _restore(tmp_path).step == 20
  assert int(toy.run(tmp_path / 'pretrain').state.step) == 20


def test_other_semantic_ids_are_refused(toy, tmp_path):
  toy.run(tmp_path / 'pretrain')
  with pytest.raises(contract.Mismatch) as error:
    _restore(tmp_path, ids_digest='4567')
  assert 'semantic IDs 0123' in str(error.value)
  assert 'semantic IDs 4567' in str(error.value)
  assert 'new --workdir' in str(error.value)
  with pytest.raises(contract.Mismatch, match='semantic IDs 4567'):
    toy.run(
      tmp_path / 'pretrain', digest='4567', train=toy.config_with(num_steps=30)
    )
  assert _restore(tmp_path, ids_digest='0123').step == 20


def test_other_settings_are_listed_and_refused(toy, tmp_path):
  toy.run(tmp_path, experiment=_EXPERIMENT)
  other = dataclasses.replace(
    _EXPERIMENT,
    seed=1,
    model=dataclasses.replace(_EXPERIMENT.model, embed_dim=256),
  )
  with pytest.raises(contract.Mismatch) as error:
    toy.run(tmp_path, experiment=other, train=toy.config_with(num_steps=30))
  assert 'model.embed_dim: 128 -> 256' in str(error.value)
  assert 'seed: 0 -> 1' in str(error.value)
  assert 'num_heads' not in str(error.value)


def test_a_longer_run_may_continue(toy, tmp_path):
  toy.run(tmp_path, experiment=_EXPERIMENT)
  longer = dataclasses.replace(
    _EXPERIMENT,
    pretrain=dataclasses.replace(_EXPERIMENT.pretrain, num_steps=5000),
    mesh=config.MeshConfig(data=1),
  )
  result = toy.run(
    tmp_path, experiment=longer, train=toy.config_with(num_steps=30)
  )
  assert int(result.state.step) == 30


def test_other_parameters_are_refused_by_name():
  def made(width):
    return contract.make_contract(
      stage='pretrain',
      experiment=None,
      semantic_ids=None,
      params={'a': {'w': np.zeros((2, width), np.float32)}},
    )

  with pytest.raises(contract.Mismatch) as error:
    contract.check_contract(made(3), made(4), 'here')
  assert 'parameter a/w' in str(error.value)
  assert '[2, 3]' in str(error.value)
  assert '[2, 4]' in str(error.value)


def test_a_setting_that_only_begins_like_a_free_one_is_not_free():
  def made(**changes):
    return contract.Contract(
      stage='pretrain',
      experiment={'pretrain': {'num_steps': 1}, **changes},
      semantic_ids=None,
      parameters={},
    )

  with pytest.raises(contract.Mismatch, match='meshwork'):
    contract.check_contract(made(meshwork=1), made(meshwork=2), 'here')
  notes = contract.check_contract(
    made(mesh={'data': 1}), made(mesh={'data': 2}), 'here'
  )
  assert notes == ['mesh.data: 1 -> 2']


def test_saving_does_not_wait_for_the_disk_nor_see_later_steps(toy, tmp_path):
  # Step 5 is written in the background while steps 6.. donate its arrays.
  toy.run(
    tmp_path / 'pretrain',
    train=toy.config_with(
      num_steps=9, checkpoint_every_steps=5, evaluate_every_steps=0
    ),
  )
  (tmp_path / 'exact').mkdir()
  exact = toy.run(
    tmp_path / 'exact',
    train=toy.config_with(num_steps=5, evaluate_every_steps=0),
  )
  shutil.rmtree(tmp_path / 'pretrain' / 'checkpoints' / '9')
  restored = _restore(tmp_path)
  assert restored.step == 5
  np.testing.assert_array_equal(restored.params['w'], exact.state.params['w'])
