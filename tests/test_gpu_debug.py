"""make gpu-debug, rehearsed without a GPU."""

import pytest

from experiments import gpu_debug
from experiments import quickstart
from onerec_jax import config
from onerec_jax import workdir
from onerec_jax.train import profile


def test_it_is_the_model_of_the_quickstart():
  made = config.from_config_dict(gpu_debug.get_config())
  reference = config.from_config_dict(quickstart.get_config())
  assert made.model == reference.model
  assert made.data == reference.data
  assert made.pretrain.optimizer == reference.pretrain.optimizer
  assert made.pretrain.profile_steps[1] < made.pretrain.num_steps


@pytest.mark.slow
def test_a_rehearsal_names_its_device_and_the_two_slowest_kernels(
  tmp_path, capsys
):
  folder = tmp_path / 'run'
  arguments = ['--variant=synthetic', f'--workdir={folder}', '--num_steps=20']
  assert gpu_debug.main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith('device'))
  shown = lines[start:]
  assert shown[0].startswith('device         cpu x 8, cpu, jax ')
  assert shown[1].startswith('NO GPU         this was a rehearsal on cpu')
  assert shown[2].startswith('training       20 steps, loss ')
  kernels = [line for line in shown if line.startswith('  ')]
  assert [line.split()[0] for line in kernels] == ['1.', '2.']
  # They are those of the trace, in its order.
  stage = workdir.Workdir(folder).folder('pretrain')
  rows = profile.slowest(profile.read_trace(profile.find_traces(stage)[0]))
  assert [line.split()[-1] for line in kernels] == [r.name for r in rows[:2]]
