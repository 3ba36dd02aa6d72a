"""Runner: skip what is done, redo what changed, never mix configurations."""

import dataclasses
import gc
import json
import weakref

import pytest
from etils import epath

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import runner
from onerec_jax.train import goodput
from onerec_jax.train import profile


@pytest.fixture
def calls(monkeypatch):
  """Replaces every stage by one that records its call."""
  made: list[str] = []

  def stub(stage):
    def run(experiment, workdir):
      made.append(stage)
      return {'value': experiment.seed}

    return run

  monkeypatch.setattr(runner, 'stage_function', stub)
  return made


_REWARD = {'targets': ({'name': 'ltr', 'column': 'is_like'},)}
_V1 = config.from_config_dict(
  {'stages': config.V1_STAGES, 'reward_model': _REWARD}
)
_ALL = config.from_config_dict(
  {
    'stages': config.STAGES,
    'reward_model': _REWARD,
    'model': {'encoder': 'pathways', 'pathways': {'lifelong_length': 8}},
    'p_score_model': {'towers': ({'name': 'ltr', 'column': 'is_like'},)},
  }
)


@pytest.fixture
def workdir(tmp_path):
  return workdir_lib.Workdir(tmp_path / 'run')


def _run(experiment, workdir, stages=None, *, resume=True):
  runner.run_stages(
    experiment, workdir, stages or experiment.stages, resume=resume
  )


def test_all_stages_run_in_order_and_leave_a_result(calls, workdir):
  _run(_ALL, workdir)
  assert calls == list(config.STAGES)
  for stage in config.STAGES:
    result = workdir.result(stage)
    assert result['seconds'] >= 0
    assert result['peak_memory_mb'] > 0
    assert result['digest']


def test_a_continued_stage_took_the_time_of_all_its_processes(
  monkeypatch, workdir
):
  monkeypatch.setattr(
    runner,
    'stage_function',
    lambda stage: lambda experiment, workdir: {'earlier_seconds': 3600.0},
  )
  _run(config.Experiment(), workdir, ('prepare',))
  assert workdir.result('prepare')['seconds'] >= 3600.0


def test_stages_that_are_left_out_are_not_waited_for(calls, workdir):
  _run(config.Experiment(), workdir)
  assert calls == list(config.BASE_STAGES)


def test_a_stage_that_the_experiment_leaves_out_is_refused(calls, workdir):
  with pytest.raises(ValueError, match=r"has no 'reward': add it"):
    _run(config.Experiment(), workdir, ('reward',), resume=False)
  assert not calls


def test_changed_alignment_leaves_what_comes_before_alone(calls, workdir):
  _run(_V1, workdir)
  calls.clear()
  (workdir.folder('align') / workdir_lib.STARTED).unlink()  # not protected
  changed = dataclasses.replace(
    _V1, preference=config.PreferenceConfig(loss='ipo')
  )
  _run(changed, workdir)
  assert calls == ['align', 'evaluate', 'report']


def test_second_run_only_renews_the_report(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  _run(config.Experiment(), workdir)
  assert calls == ['report']


def test_stage_cut_off_before_its_result_runs_again(calls, workdir):
  _run(config.Experiment(), workdir)
  (workdir.stage('pretrain') / workdir_lib.RESULT).unlink()
  calls.clear()
  _run(config.Experiment(), workdir)
  assert calls == ['pretrain', 'report']


def test_changed_evaluation_leaves_training_alone(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  changed = config.from_config_dict({'evaluate': {'split': 'valid'}})
  _run(changed, workdir)
  assert calls == ['evaluate', 'report']


def test_changed_mesh_reruns_nothing(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  _run(config.from_config_dict({'mesh': {'data': 1}}), workdir)
  assert calls == ['report']


def test_trained_stage_is_never_overwritten_by_other_settings(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  changed = config.from_config_dict({'tokenizer': {'levels': 4}})
  with pytest.raises(ValueError, match=r'tokenizer\.levels: 3 -> 4'):
    _run(changed, workdir)
  assert not calls, 'the tokenizer must not have been overwritten either'


def test_more_steps_continue_a_trained_stage(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  _run(config.from_config_dict({'pretrain': {'num_steps': 2000}}), workdir)
  assert calls == ['pretrain', 'evaluate', 'report']


def test_half_trained_stage_is_protected_too(calls, workdir):
  _run(config.Experiment(), workdir)
  (workdir.stage('pretrain') / workdir_lib.RESULT).unlink()
  with pytest.raises(ValueError, match='Use a new --workdir'):
    _run(config.from_config_dict({'seed': 1}), workdir)


def test_single_stage_without_its_input_names_the_input(calls, workdir):
  with pytest.raises(FileNotFoundError, match="'tokenize' needs 'embed'"):
    _run(config.Experiment(), workdir, ['tokenize'], resume=False)


def test_single_stage_runs_again_when_asked_for(calls, workdir):
  _run(config.Experiment(), workdir)
  calls.clear()
  _run(config.Experiment(), workdir, ['evaluate'], resume=False)
  assert calls == ['evaluate']


def test_resolved_config_is_stored_and_reads_back(calls, workdir):
  experiment = config.from_config_dict({'name': 'x', 'seed': 3})
  _run(experiment, workdir)
  assert config.from_config_dict(workdir.config()) == experiment


def test_result_is_written_atomically(tmp_path):
  path = workdir_lib.Workdir(tmp_path).stage('embed') / 'value.json'
  workdir_lib.write_json(path, {'a': 1})
  workdir_lib.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 2}
  assert [p.name for p in path.parent.iterdir()] == ['value.json']


def test_relative_folder_becomes_absolute_and_a_bucket_stays(
  monkeypatch, tmp_path
):
  monkeypatch.chdir(tmp_path)
  assert workdir_lib.Workdir('runs/x').root == epath.Path(tmp_path / 'runs/x')
  monkeypatch.setattr(workdir_lib.fsspec, 'get_filesystem_class', lambda _: 0)
  assert str(workdir_lib.Workdir('gs://bucket/run').root) == 'gs://bucket/run'


def test_a_bucket_without_the_package_for_it_is_refused(monkeypatch):
  def missing(name):
    raise ImportError(f'Please install {name}fs')

  monkeypatch.setattr(workdir_lib.fsspec, 'get_filesystem_class', missing)
  with pytest.raises(ValueError, match='Please install gcsfs, e'):
    workdir_lib.Workdir('gs://bucket/run')


def test_a_store_that_nobody_knows_is_not_a_local_folder():
  with pytest.raises(ValueError, match='gcs://, expected a local path or gs:'):
    workdir_lib.Workdir('gcs://bucket/run')


def test_a_profile_makes_no_other_experiment(calls, workdir):
  experiment = config.Experiment()
  _run(experiment, workdir)
  calls.clear()
  _run(profile.with_steps(experiment, (2, 3)), workdir)
  assert calls == ['report']


def test_the_next_training_begins_where_the_stage_before_ended(calls, workdir):
  before = goodput.unclaimed_since()
  _run(config.Experiment(), workdir, ('prepare',))
  assert goodput.unclaimed_since() > before


@pytest.mark.parametrize('stage', config.STAGES)
def test_each_stage_is_run_by_its_own_module(stage):
  function = runner.stage_function(stage)
  assert function.__name__ == 'run'
  assert function.__module__ == f'onerec_jax.stages.{stage}'


class _Leftover:
  """Reaches itself, so that only a search for garbage finds it."""

  def __init__(self):
    self.own = self


def test_what_a_stage_leaves_behind_is_found_as_garbage(monkeypatch, workdir):
  left = []

  def leave(experiment, workdir):
    left.append(weakref.ref(_Leftover()))
    return {}

  monkeypatch.setattr(runner, 'stage_function', lambda stage: leave)
  gc.unfreeze()
  gc.disable()
  try:
    _run(config.Experiment(), workdir, ('prepare', 'embed'))
    assert gc.get_freeze_count(), 'what was imported before is left out'
    gc.collect()
  finally:
    gc.enable()
    gc.unfreeze()
  assert [reference() for reference in left] == [None, None]
