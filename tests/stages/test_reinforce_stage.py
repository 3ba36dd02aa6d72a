"""The stage `reinforce` on a tiny world: groups, restarts and refusals."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax.data import group_batches
from onerec_jax.data import rsft
from onerec_jax.stages import group_supply
from onerec_jax.stages import groups
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import p_score
from onerec_jax.stages import pretrain
from onerec_jax.stages import reinforce
from onerec_jax.stages import trained
from onerec_jax.train import contract
from onerec_jax.train import log

_TRAIN = config.TrainConfig(
  batch_size=8,
  num_steps=4,
  optimizer=config.OptimizerConfig(warmup_steps=1, peak_learning_rate=1e-2),
  log_every_steps=1,
  evaluate_every_steps=4,
  evaluate_examples=8,
  checkpoint_every_steps=1,
)


def _experiment(tiny, *, train=_TRAIN, **reinforcement):
  settings = {
    'group_size': 12,
    'user_share': 0.5,  # four groups a step
    'sync_every_steps': 2,
    'rollout_batch_size': 8,
    'format_samples': 3,
    'rsft_column': 'watch_time',
    **reinforcement,
  }
  return config.validate(
    dataclasses.replace(
      tiny,
      stages=config.TR_STAGES,
      p_score_model=config.PScoreConfig(
        towers=(
          config.PScoreTower('lvtr', column='long_view'),
          config.PScoreTower('ltr', column='is_like'),
        ),
        held_out_share=0.3,
        embed_dim=4,
        num_heads=1,
        history_length=6,
        search_items=3,
        tower_dims=(4,),
        fusion_dims=(4,),
      ),
      p_score=_TRAIN,
      reinforcement=config.ReinforceConfig(**settings),
      reinforce=train,
      evaluate=dataclasses.replace(
        tiny.evaluate,
        p_score=config.ItemEvaluationConfig(
          max_users=8, num_items=12, pass_at=(2, 12), legality_users=4
        ),
      ),
    )
  )


@pytest.fixture(scope='module')
def ready(tiny_run, copied, tmp_path_factory):
  """(experiment, workdir) up to and including a P-Score model."""
  tiny, source = tiny_run
  experiment = _experiment(tiny)
  workdir = copied(source, tmp_path_factory.mktemp('reinforce') / 'run')
  workdir.finish('p_score', p_score.run(experiment, workdir))
  return experiment, workdir


@pytest.fixture(scope='module')
def reinforced(copied, ready, tmp_path_factory):
  experiment, source = ready
  workdir = copied(source, tmp_path_factory.mktemp('reinforced') / 'run')
  result = reinforce.run(experiment, workdir)
  workdir.finish('reinforce', result)
  return experiment, workdir, result


def _final(experiment, workdir):
  return jax.device_get(reinforce.load_final(experiment, workdir).params)


def test_the_model_changes_and_all_that_matters_is_reported(reinforced):
  experiment, workdir, result = reinforced
  assert result['steps'] == 4
  assert result['rsft']['examples'] < result['rsft']['examples_before']
  rollouts = result['rollouts']
  assert rollouts['groups'] == 16
  assert [r['first_step'] for r in rollouts['intervals']] == [0, 2]
  assert set(rollouts['seconds']) == {'generate', 'log_probs', 'score'}
  figures = rollouts['intervals'][0]['figures']
  assert 0 < figures['legality'] < 1
  assert set(figures['reward']) == {'p_score', 'lvtr', 'ltr'}
  assert 0 < figures['true_reward']['p_score']['mean'] < 1
  final = result['final']
  for name in (
    'token_loss', 'policy/ratio_p99', 'policy/kl_max', 'policy/clip_share',
    'policy/early_clip_share', 'policy/zero_advantage_share',
    'group/legality', 'group/distinct_items', 'group/reward',
    'group/true_reward', 'valid/legality', 'valid/p_score_mean',
    'valid/ltr_pass@2', 'valid/true_p_score_mean', 'valid/token_loss',
  ):  # fmt: skip
    assert np.isfinite(final[name]), name
  assert set(result['before']) >= {'valid/legality', 'valid/p_score_mean'}
  before = jax.device_get(
    trained.load(experiment, workdir, which='latest').params
  )
  after = _final(experiment, workdir)
  assert not np.allclose(before['embedding'], after['embedding'])


def test_on_policy_ratios_begin_at_one(reinforced):
  _, workdir, result = reinforced
  records = log.read_metrics(workdir.folder('reinforce') / log.METRICS)
  assert [r['step'] for r in records] == [1, 2, 3, 4]
  largest = [r['policy/ratio_max'] for r in records]
  # Steps 1 and 3 are taken on groups of their own parameters.
  assert largest[0] == pytest.approx(1, abs=1e-4)
  assert largest[2] == pytest.approx(1, abs=1e-4)
  assert largest[1] > 1.001 and largest[3] > 1.001
  assert result['curves']['group/legality'] == [
    [r['step'], r['group/legality']] for r in records
  ]


def test_rewards_are_those_of_the_groups_own_users(reinforced):
  experiment, workdir, _ = reinforced
  # The last interval's file is still there.
  folder = workdir.folder('reinforce') / group_supply.FOLDER
  (path,) = folder.glob('steps_000000002_*/part_*.npz')
  found = group_batches.read(path)
  judge = item_evaluation.make_judge(
    experiment, workdir, split='valid', max_users=1
  )
  store = rsft.choose_examples(
    pretrain.open_examples(experiment, workdir, 'train'),
    workdir.data,
    sessions=experiment.data.sessions,
    column='watch_time',
    drop_share=0.5,
    seed=experiment.seed,
  ).store
  users = store.index.users[store.example_rows[found.example_ids]]
  codes = pretrain.read_semantic_ids(workdir).codes
  # Of items with an ID of their own, so that no bucket is in the way.
  item = np.full((*found.legal.shape,), -1)
  for i, code in enumerate(codes.tolist()):
    if codes.tolist().count(code) == 1:
      item[(found.codes == code).all(axis=2)] = i
  scores, true = groups.ItemScorer(judge.model, judge.truth)(
    users.astype(np.int64),
    store.index.starts[found.example_ids].astype(np.int64),
    item,
  )
  shown = (item >= 0) & (found.rewards > 0)
  assert shown.sum() > 20
  np.testing.assert_allclose(
    found.rewards[shown], scores[..., 0][shown], rtol=1e-4
  )
  np.testing.assert_allclose(
    found.true_rewards[shown], true[..., 0][shown], rtol=1e-5
  )
  assert (found.rewards[~found.legal] == 0).all()
  assert (found.format_mask.sum(axis=1) == 3).all()


def test_a_run_killed_in_an_interval_ends_with_the_same_bits(
  copied, ready, reinforced, tmp_path, monkeypatch
):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')

  class Killed(Exception):
    pass

  original = group_batches.GroupBatches.__next__

  def dies(self):
    if self.next_step == 3:
      raise Killed
    return original(self)

  with monkeypatch.context() as patch:
    patch.setattr(group_batches.GroupBatches, '__next__', dies)
    with pytest.raises(Killed):
      reinforce.run(experiment, workdir)

  # What the second interval began with is no longer there: it is read.
  def never(self, *args, **kwargs):
    raise AssertionError('groups were made again')

  with monkeypatch.context() as patch:
    patch.setattr(groups.GroupMaker, '__call__', never)
    again = reinforce.run(experiment, workdir)
  _, whole, result = reinforced
  assert again['rollouts']['groups'] == result['rollouts']['groups']
  for a, b in zip(
    jax.tree.leaves(_final(experiment, workdir)),
    jax.tree.leaves(_final(experiment, whole)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_a_model_of_other_settings_cannot_be_reinforced(
  copied, ready, tmp_path
):
  experiment, source = ready
  wider = dataclasses.replace(
    experiment, model=dataclasses.replace(experiment.model, mlp_dim=16)
  )
  with pytest.raises(contract.Mismatch, match=r'model\.mlp_dim: 8 -> 16'):
    reinforce.run(wider, copied(source, tmp_path / 'run'))


def test_without_a_p_score_model_it_says_which_stage_to_run(
  copied, ready, tmp_path
):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')
  shutil.rmtree(workdir.folder('p_score'))
  with pytest.raises(FileNotFoundError, match="'p_score'"):
    reinforce.run(experiment, workdir)


def test_groups_that_teach_nothing_stop_the_run(
  copied, ready, tmp_path, monkeypatch
):
  experiment, source = ready
  workdir = copied(source, tmp_path / 'run')
  experiment = dataclasses.replace(
    experiment,
    reinforcement=dataclasses.replace(
      experiment.reinforcement, format_weight=0.0
    ),
    reinforce=dataclasses.replace(experiment.reinforce, evaluate_every_steps=0),
  )

  def equal(self, users, positions, items):
    # Seen items earn 0 as well, which would be a difference.
    scores = np.zeros((*items.shape, 3))
    return scores, scores

  monkeypatch.setattr(groups.ItemScorer, '__call__', equal)
  with pytest.raises(ValueError, match='None of the 8 groups of steps 0'):
    reinforce.run(experiment, workdir)


def test_curves_hold_what_was_logged_of_policy_groups_and_validation():
  records = [
    {'step': 1, 'loss': 2.0, 'policy/kl_max': 0.5, 'router/load': [1.0]},
    {'step': 2, 'policy/kl_max': 0.25, 'valid/legality': 1.0},
    {'step': 3, 'policy/kl_max': None},
  ]
  assert reinforce.curves(records) == {
    'policy/kl_max': [[1, 0.5], [2, 0.25]],
    'valid/legality': [[2, 1.0]],
  }
