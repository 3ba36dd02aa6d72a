"""The stage `align` on a tiny world: pairs, rounds, restarts and refusals."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import pipeline
from onerec_jax.data import preference_pairs
from onerec_jax.stages import align
from onerec_jax.stages import evaluate
from onerec_jax.stages import pretrain
from onerec_jax.stages import reward
from onerec_jax.stages import reward_model
from onerec_jax.stages import rollouts
from onerec_jax.stages import trained
from onerec_jax.train import contract
from onerec_jax.train import preemption

_TARGETS = (
  config.RewardTarget(name='swt', column='watch_time', label='saturating_sum'),
  config.RewardTarget(name='ltr', column='is_like'),
)
_TRAIN = config.TrainConfig(
  batch_size=8,
  num_steps=4,
  log_every_steps=2,
  evaluate_every_steps=4,
  evaluate_examples=8,
  checkpoint_every_steps=2,
)


def _experiment(tiny, **preference):
  settings = {
    'rounds': 2,
    'sample_share': 0.5,  # 16 pairs a round
    'rollout_batch_size': 8,
    'rollout': config.DecodingConfig(num_beams=4, num_items=2),
    **preference,
  }
  return config.validate(
    dataclasses.replace(
      tiny,
      stages=config.V1_STAGES,
      reward_model=config.RewardModelConfig(
        targets=_TARGETS,
        items_per_session=2,
        embed_dim=8,
        num_heads=2,
        num_layers=1,
        tower_dim=4,
        held_out_share=0.3,
      ),
      reward=_TRAIN,
      align=_TRAIN,
      preference=config.PreferenceConfig(**settings),
      evaluate=dataclasses.replace(
        tiny.evaluate,
        sessions=config.SessionEvaluationConfig(
          max_users=10, num_sessions=3, resamples=4, legality_users=4
        ),
      ),
    )
  )


@pytest.fixture(scope='module')
def ready(tiny_run, copied, tmp_path_factory):
  """(experiment, workdir) up to and including a reward model."""
  tiny, source = tiny_run
  experiment = _experiment(tiny)
  workdir = copied(source, tmp_path_factory.mktemp('align') / 'run')
  workdir.finish('reward', reward.run(experiment, workdir))
  return experiment, workdir


@pytest.fixture(scope='module')
def aligned(copied, ready, tmp_path_factory):
  experiment, source = ready
  workdir = copied(source, tmp_path_factory.mktemp('aligned') / 'run')
  result = align.run(experiment, workdir)
  workdir.finish('align', result)
  return experiment, workdir, result


def _final_params(experiment, workdir):
  folder = align.last_round_folder(experiment, workdir)
  model = trained.load(experiment, workdir, which='latest', folder=folder)
  return jax.device_get(model.params)


def test_every_round_reports_its_pairs_and_changes_the_model(aligned):
  experiment, workdir, result = aligned
  assert [r['round'] for r in result['rounds']] == [1, 2]
  assert result['earlier_seconds'] == 0.0
  for found in result['rounds']:
    made = found['rollouts']
    assert made['users'] == 16  # half of 4 steps of 8 samples
    assert made['pairs'] + sum(made['skipped'].values()) == made['users']
    assert made['chosen_reward_sum'] > made['rejected_reward_sum']
    assert 'preference/loss' in found['final']
    assert 'valid/reward_mean' in found['final']
  before = jax.device_get(
    trained.load(experiment, workdir, which='latest').params
  )
  after = _final_params(experiment, workdir)
  assert not np.allclose(before['embedding'], after['embedding'])


def test_pairs_hold_the_reference_and_the_rewards_of_their_own_user(aligned):
  experiment, workdir, _ = aligned
  (chunk,) = (align.round_folder(workdir, 1) / 'rollouts').glob('*.npz')
  pairs = preference_pairs.read(chunk)
  model = trained.load(experiment, workdir, which='latest')
  judge = reward_model.load(experiment, workdir, model.ids, model.mesh)
  store = pretrain.open_examples(experiment, workdir, 'train')
  users = pipeline.session_batch(
    store,
    pairs.example_ids,
    history_length=experiment.data.history_length,
    items_per_session=1,
  )
  scored = judge.score(
    users.history_items, users.history_mask, pairs.items, pairs.mask
  )
  np.testing.assert_allclose(scored, pairs.predictions, atol=1e-5)
  assert (pairs.rewards[:, 0] > pairs.rewards[:, 1]).all()
  # Seen items are not generated again.
  for row, seen in enumerate(pipeline.seen_items(store, users)):
    assert not set(seen.tolist()) & set(pairs.items[row].ravel().tolist())


def test_the_second_round_starts_from_and_refers_to_the_first(aligned):
  experiment, workdir, _ = aligned
  # Policy = reference at its first step: the loss is ln 2 on its first pairs.
  first, second = (
    preference_pairs.read(path)
    for number in (1, 2)
    for path in (align.round_folder(workdir, number) / 'rollouts').glob('*.npz')
  )
  assert not np.array_equal(first.example_ids, second.example_ids)
  policy = trained.load(
    experiment,
    workdir,
    which='latest',
    folder=align.round_folder(workdir, 1),
  )
  maker = rollouts.Rollouts(
    policy,
    reward_model.load(experiment, workdir, policy.ids, policy.mesh),
    experiment.preference,
    pretrain.open_examples(experiment, workdir, 'train'),
    history_length=experiment.data.history_length,
  )
  again, _ = maker.make(
    policy,
    second.example_ids,
    workdir.root / 'again',
    key=(0,),
    poll=lambda: None,
  )
  np.testing.assert_array_equal(again.items, second.items)
  np.testing.assert_allclose(
    again.reference_log_probs, second.reference_log_probs, rtol=1e-5
  )


def test_a_killed_run_ends_with_the_same_bits(copied, ready, aligned, tmp_path):
  experiment, source = ready
  _, whole, _ = aligned
  workdir = copied(source, tmp_path / 'run')
  calls = iter(range(1000))

  class Killed(Exception):
    pass

  original = rollouts.Rollouts._beam_pairs

  def dies(self, *args):
    if next(calls) == 3:  # the second round's second batch of users
      raise Killed
    return original(self, *args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rollouts.Rollouts, '_beam_pairs', dies)
    with pytest.raises(Killed):
      align.run(experiment, workdir)
  result = align.run(experiment, workdir)
  # The first round was made before; the second had not begun to train.
  assert result['earlier_seconds'] == result['rounds'][0]['wall_seconds'] > 0
  for a, b in zip(
    jax.tree.leaves(_final_params(experiment, workdir)),
    jax.tree.leaves(_final_params(experiment, whole)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_evaluation_shows_before_and_after(aligned):
  experiment, workdir, _ = aligned
  result = evaluate.run(experiment, workdir)
  assert result['methods']['onerec']['title'] == 'OneRec + IPA'
  assert result['best_floor'] not in ('onerec', 'pretrained')
  moved = result['difference_to_before']['recall@10']['mean']
  scores = result['metrics']
  expected = (
    scores['onerec']['recall@10']['mean']
    - scores['pretrained']['recall@10']['mean']
  )
  assert moved == pytest.approx(expected)
  found = result['session_rewards']
  assert list(found['methods']) == ['onerec', 'pretrained']
  figures = found['methods']['onerec']['figures']
  assert figures['reward_max']['mean'] >= figures['reward_mean']['mean']
  # The simulated world tells the truth beside the reward model.
  assert 0 < figures['true_reward_mean']['mean'] < 2
  assert set(found['methods']['onerec']['legality']) == {
    'free_sessions',
    'free_items',
  }
  entry = found['dynamics'][0]
  for levels in entry['probabilities'].values():
    assert [sum(level) for level in levels] == pytest.approx([1, 1], abs=1e-4)
    assert len(entry['codes']) == len(levels)


def test_logged_pairs_need_no_reward_model(copied, tiny_run, ready, tmp_path):
  experiment = _experiment(
    tiny_run[0], pairs='logged', rounds=1, loss='sdpo', num_rejected=3
  )
  experiment = dataclasses.replace(
    experiment,
    stages=tuple(s for s in experiment.stages if s != 'reward'),
  )
  config.validate(experiment)
  workdir = copied(ready[1], tmp_path / 'run')
  shutil.rmtree(workdir.folder('reward'))
  result = align.run(experiment, workdir)
  made = result['rounds'][0]['rollouts']
  assert made['pairs'] + made['skipped']['same_session'] == 16
  (chunk,) = (align.round_folder(workdir, 1) / 'rollouts').glob('*.npz')
  pairs = preference_pairs.read(chunk)
  assert pairs.items.shape[1] == 4  # the logged session and three others
  lengths = pairs.mask.sum(axis=2)
  assert (lengths == lengths[:, :1]).all()


def test_a_model_of_other_settings_cannot_be_the_reference(
  copied, ready, tmp_path
):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')
  wider = dataclasses.replace(
    experiment, model=dataclasses.replace(experiment.model, mlp_dim=16)
  )
  with pytest.raises(contract.Mismatch, match=r'model\.mlp_dim: 8 -> 16'):
    align.run(wider, workdir)


def test_devices_that_do_not_make_the_mesh_are_refused(copied, ready, tmp_path):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')
  other = dataclasses.replace(experiment, mesh=config.MeshConfig(fsdp=3))
  with pytest.raises(ValueError, match='does not cover 8 devices'):
    align.run(other, workdir)


def test_a_begun_round_cannot_be_lengthened(aligned):
  experiment, workdir, _ = aligned
  longer = dataclasses.replace(
    experiment, align=dataclasses.replace(experiment.align, num_steps=8)
  )
  with pytest.raises(contract.Mismatch, match=r'align\.num_steps=4'):
    align.run(longer, workdir)


def test_candidates_that_are_all_equal_are_an_error(copied, ready, tmp_path):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')

  def constant(self, history_items, history_mask, items, mask):
    del self, history_items, history_mask, mask
    return np.full((*items.shape[:2], len(_TARGETS)), 0.5, np.float32)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(reward_model.RewardModel, 'score', constant)
    with pytest.raises(ValueError, match="'equal_rewards': 16"):
      align.run(experiment, workdir)


def test_sigterm_while_pairs_are_made_stops_at_once(copied, ready, tmp_path):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(preemption.StopSignal, 'requested', lambda self: True)
    with pytest.raises(preemption.Preempted):
      align.run(experiment, workdir)
  assert not list(align.round_folder(workdir, 1).glob('rollouts/*.npz'))
