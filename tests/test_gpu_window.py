"""A window on a GPU is used whole, and rehearsed without one."""

import copy
import inspect
import json
import subprocess
import sys

import pytest

from experiments import onerec_v1_paper
from experiments.benchmarks import gpu_window
from experiments.benchmarks import models
from onerec_jax import config as config_lib


class _Window:
  """Runs tasks that take the minutes they should, on a clock of its own."""

  def __init__(self, failing=()):
    self.now = 0.0
    self.ran = []
    self.saved = []
    self._failing = failing

  def run(self, task, toy, limit):
    del toy
    self.ran.append(task.name)
    self.now += min(60 * task.minutes, limit)
    failed = task.name in self._failing
    return {'status': 'failed' if failed else 'measured'}

  def go(self, minutes, done):
    return gpu_window.run_window(
      gpu_window.TASKS,
      minutes=minutes,
      toy=False,
      done=done,
      save=lambda done: self.saved.append(copy.deepcopy(done)),
      run=self.run,
      clock=lambda: self.now,
    )


def test_two_windows_do_everything_once_and_the_failed_again_at_last():
  names = [task.name for task in gpu_window.TASKS]
  first = _Window(failing=names[:1])
  done = first.go(minutes=12, done={})
  assert first.ran == [name for name in names if name in done]
  assert 0 < len(first.ran) < len(names)
  assert first.now <= 12 * 60
  assert [len(saved) for saved in first.saved] == [
    *range(1, len(first.ran) + 1)
  ]
  second = _Window()
  second.go(minutes=60, done=done)
  missing = [name for name in names if name not in first.ran]
  assert second.ran == [*missing, names[0]]
  assert all(task['status'] == 'measured' for task in done.values())


def test_a_task_without_time_leaves_room_for_a_shorter_one():
  window = _Window()
  window.go(minutes=2.6, done={})
  minutes = {task.name: task.minutes for task in gpu_window.TASKS}
  assert sum(minutes[name] for name in window.ran) <= 2.6
  assert window.ran == ['device', 'train 1b']


def test_every_task_has_a_function_that_takes_its_settings():
  functions = gpu_window.functions()
  assert {t.function for t in gpu_window.TASKS} == set(functions)
  for task in gpu_window.TASKS:
    inspect.signature(functions[task.function]).bind(True, **task.settings)
    if task.function == 'train':  # takes any field of the model
      changed = {k: v for k, v in task.settings.items() if k != 'batch_sizes'}
      models.v1_paper_config(**changed)


def test_a_rehearsal_has_every_function_once():
  tasks = gpu_window.rehearsed(gpu_window.TASKS)
  assert [t.function for t in tasks].count('train') == 1
  assert {t.function for t in tasks} == set(gpu_window.functions())
  assert tasks[0].name == 'device'


def test_the_planned_minutes_are_about_a_window():
  # 28 planned minutes at most: those that come last are the least valuable.
  assert sum(t.minutes for t in gpu_window.TASKS) <= 28


def test_a_task_that_raises_is_part_of_the_result():
  sent = []

  class Connection:
    send = staticmethod(sent.append)

  gpu_window._child(Connection(), gpu_window.Task('x', 1, 'nonsense'), True)
  assert sent[0]['status'] == 'failed'
  assert 'nonsense' in sent[0]['error']


def test_a_task_that_takes_too_long_is_stopped():
  task = gpu_window.Task('device', 1, 'device')
  outcome = gpu_window.run_in_process(task, True, 0.01)
  assert outcome['status'] == 'failed'
  assert 'no result within' in outcome['error']


def test_a_rehearsal_is_never_taken_for_a_measurement(tmp_path):
  path = tmp_path / 'r.json'
  assert gpu_window.earlier(path, toy=False) == {}
  path.write_text(json.dumps({'toy': True, 'tasks': {'a': {}}}))
  assert gpu_window.earlier(path, toy=True) == {'a': {}}
  with pytest.raises(ValueError, match='--output'):
    gpu_window.earlier(path, toy=False)


def test_the_gpu_tasks_need_no_library_that_may_be_missing_there():
  missing = (
    'ml_collections', 'grain', 'array_record', 'polars', 'tensorboardX',
    'orbax', 'torch', 'transformers', 'faiss',
  )  # fmt: skip
  code = (
    f'import sys; sys.modules.update(dict.fromkeys({missing!r}))\n'
    'from experiments.benchmarks import gpu_window\n'
    'gpu_window.functions()'
  )
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


@pytest.mark.parametrize('size', ['0.1b', '1b'])
def test_the_gpu_models_are_those_of_the_recipe(size):
  recipe = config_lib.from_config_dict(onerec_v1_paper.get_config(size))
  assert models.v1_paper_config(size) == recipe.model
  codes = recipe.tokenizer.codes_per_level
  assert (codes,) * recipe.tokenizer.levels == models.V1_CODES
  assert recipe.data.history_length == models.V1_HISTORY_ITEMS
  assert recipe.data.sessions.items_per_session == models.V1_SESSION_ITEMS
