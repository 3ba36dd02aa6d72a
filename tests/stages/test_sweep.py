"""Sweeps: equal stages run once, finished rows are kept, bad rows refused."""

import dataclasses

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import prepare
from onerec_jax.stages import runner
from onerec_jax.stages import sweep
from onerec_jax.stages import sweep_table

_BEFORE = ['prepare', 'embed', 'tokenize', 'pretrain']
_ALIGNED = [*_BEFORE, 'reward', 'align']


@pytest.fixture(name='make', scope='module')
def fixture_make(tiny_experiment):
  """Function (rows, base) -> a sweep of seed 0."""
  tiny = tiny_experiment()

  def make(rows, base='before'):
    return dataclasses.replace(
      tiny,
      stages=config.V1_STAGES,
      reward_model=config.RewardModelConfig(
        targets=(config.RewardTarget(name='ltr', column='is_like'),),
        items_per_session=2,
        embed_dim=8,
        num_heads=2,
        num_layers=1,
        tower_dim=4,
        held_out_share=0.3,
      ),
      reward=dataclasses.replace(
        tiny.pretrain,
        num_steps=8,
        optimizer=config.OptimizerConfig(
          peak_learning_rate=1e-2, warmup_steps=0
        ),
      ),
      align=tiny.pretrain,
      preference=config.PreferenceConfig(
        rounds=1,
        sample_share=0.5,
        rollout_batch_size=8,
        rollout=config.DecodingConfig(num_beams=4, num_items=2),
      ),
      evaluate=dataclasses.replace(
        tiny.evaluate,
        sessions=config.SessionEvaluationConfig(
          max_users=8, num_sessions=2, resamples=3, legality_users=4
        ),
      ),
      sweep=config.SweepConfig(title='Tiny', rows=rows, base=base),
    )

  return make


def _row(name, **overrides):
  return config.SweepRow(name=name, overrides=overrides)


_ROWS = (
  _row('SASRec', architecture='sasrec', stages=_BEFORE),
  _row('before', stages=_BEFORE),
  _row('+IPA', stages=_ALIGNED),
)


@pytest.fixture(scope='module')
def finished(make, tmp_path_factory):
  experiment = make(_ROWS)
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('sweep'))
  return experiment, workdir, sweep.run(experiment, workdir)


def test_rows_with_equal_settings_share_their_stages(finished):
  _, workdir, _ = finished
  stages = sorted(p.name for p in (workdir.root / 'stages').iterdir())
  counts = {
    name: sum(s.startswith(f'{name}-') for s in stages)
    for name in ('prepare', 'embed', 'tokenize', 'pretrain', 'reward', 'align')
  }
  # SASRec pre-trains on its own; the aligned row starts from the other one.
  assert counts == {
    'prepare': 1,
    'embed': 1,
    'tokenize': 1,
    'pretrain': 2,
    'reward': 1,
    'align': 1,
  }


def test_the_table_has_every_row_and_its_difference_to_the_base(finished):
  experiment, workdir, result = finished
  assert [row['name'] for row in result['rows']] == ['SASRec', 'before', '+IPA']
  values = {}
  for row in result['rows']:
    assert (
      row['figures']['reward_max']['mean']
      >= (row['figures']['reward_mean']['mean'])
    )
    folder = workdir.root / 'rows' / sweep.slug(row['name']) / 'seed_0'
    with np.load(folder / 'users.npz') as stored:
      values[row['name']] = stored['values']
  column = result['columns'].index('true_reward_mean')
  moved = result['rows'][2]['difference']['true_reward_mean']['mean']
  expected = (values['+IPA'] - values['before'])[:, column].mean()
  assert moved == pytest.approx(expected)
  assert result['rows'][1]['difference']['ltr_max']['mean'] == 0
  assert (workdir.root / 'sweep' / 'report.html').exists()
  assert experiment.sweep.base == result['base']


def test_seconds_hold_reused_stages_and_in_all_each_stage_once(finished):
  experiment, workdir, result = finished
  stages = workdir.root / 'stages'
  everything = sum(
    workdir_lib.read_json(p / 'result.json')['seconds']
    for p in stages.iterdir()
  )
  for row, table_row in zip(_ROWS, result['rows'], strict=True):
    own = sweep.row_experiment(experiment, row, seed=0)
    shared = sweep.shared_workdir(
      own, workdir, f'{sweep.slug(row.name)}/seed_0'
    )
    answered = workdir_lib.read_json(shared.root / 'result.json')
    rests_on = [shared.result(s)['seconds'] for s in own.stages]
    measuring = answered['measuring_seconds']
    assert table_row['seconds'] == pytest.approx(sum(rests_on) + measuring)
    everything += measuring
  assert result['seconds'] == pytest.approx(everything)


def test_a_stage_that_rows_and_judge_share_counts_as_when_the_row_ran_it():
  rows = [
    {'stage_seconds': {'a': 2.0, 'b': 3.0}, 'measuring_seconds': 1.0},
    {'stage_seconds': {'a': 2.0, 'c': 5.0}, 'measuring_seconds': 1.0},
  ]
  # a, b, c, twice 1; the judge's j; made anew elsewhere, a took 9.
  assert sweep_table._seconds(rows, {'a': 9.0, 'j': 4.0}) == 2 + 3 + 5 + 2 + 4
  rows.append({'seconds': 7.0})  # without what it reused
  assert sweep_table._seconds(rows) is None


def test_a_finished_sweep_trains_nothing_again(finished, monkeypatch):
  experiment, workdir, result = finished
  wanted = runner.run_stages

  def judge_only(experiment, workdir, stages, *, resume):
    assert 'pretrain' not in stages
    wanted(experiment, workdir, stages, resume=resume)

  monkeypatch.setattr(runner, 'run_stages', judge_only)
  again = sweep.run(experiment, workdir)
  assert again['rows'] == result['rows']


def test_override_that_does_not_exist_names_the_row(make):
  row = _row('odd', model={'embed_dimm': 3})
  with pytest.raises(ValueError, match=r"row 'odd'.*model\.embed_dim'"):
    sweep.row_experiment(make((row,)), row, seed=0)


@pytest.mark.parametrize(
  ('rows', 'base', 'message'),
  [
    ((), 'before', 'must have rows'),
    ((_row('a'), _row('a')), 'a', 'different names'),
    ((_row('a'),), 'b', "sweep.base='b'"),
    (
      (config.SweepRow(name='a', published='OneRec-7B'),),
      'a',
      "'OneRec-7B' is no row of Table 1",
    ),
  ],
)
def test_a_table_that_cannot_be_is_refused(make, rows, base, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    sweep.run(make(rows, base), workdir_lib.Workdir(tmp_path))


def test_rows_must_hold_the_judges_items(finished, tmp_path):
  experiment, _, _ = finished
  row = _row('fewer', data={'synthetic': {'num_items': 29}})
  fewer = sweep.row_experiment(experiment, row, seed=0)
  workdirs = []
  for name, e in (('judge', experiment), ('row', fewer)):
    workdirs.append(workdir_lib.Workdir(tmp_path / name))
    prepare.run(e, workdirs[-1])
  sweep.check_catalogue('same', workdirs[0], workdirs[0])
  with pytest.raises(ValueError, match='which items are kept'):
    sweep.check_catalogue('fewer', workdirs[1], workdirs[0])
