"""The quickstart on one GPU, short, with a profile: is the machine all right?

  make gpu-debug

Trains the model of experiments/quickstart.py for 300 steps, evaluates it and
names the device and the two slowest kernels.  Expect a loss that falls by more
than a fifth.  Without a GPU it is a rehearsal on the CPU, and says so;
`python -m experiments.gpu_debug --variant=synthetic` needs no data set.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import logging

from experiments import quickstart
from experiments import smoke
from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import predictions
from onerec_jax.stages import runner
from onerec_jax.train import log
from onerec_jax.train import profile

VARIANTS = ('quickstart', 'synthetic')
_KERNELS = 2  # named


def get_config(variant: str = 'quickstart') -> ml_collections.ConfigDict:
  if variant not in VARIANTS:
    raise ValueError(f'gpu_debug:{variant} is not one of {VARIANTS}.')
  made: Any = quickstart if variant == 'quickstart' else smoke
  config = made.get_config()
  config.name = f'gpu_debug_{variant}'
  config.stages = ('prepare', 'embed', 'tokenize', 'pretrain', 'evaluate')
  config.pretrain.num_steps = 300
  config.pretrain.log_every_steps = 50
  config.pretrain.evaluate_every_steps = 300
  config.pretrain.checkpoint_every_steps = 300
  if variant == 'synthetic':
    config.pretrain.evaluate_examples = 64
    config.evaluate.max_examples = 64
    config.evaluate.bootstrap_samples = 100
    config.evaluate.decoding.num_beams = 10
  # After the compilation, before the last log line.
  config.pretrain.profile_steps = (110, 120)
  return config


def describe(workdir: workdir_lib.Workdir) -> str:
  """Returns what a finished run says of its device.

  Args:
    workdir: with the stages of `get_config`.
  """
  trained = workdir.result('pretrain') or {}
  evaluated = workdir.result('evaluate') or {}
  records = log.read_metrics(workdir.folder('pretrain') / log.METRICS)
  losses = [r['loss'] for r in records if r.get('loss') is not None]
  rates = [r['steps_per_second'] for r in records if 'steps_per_second' in r]
  platform = jax.default_backend()
  lines = [
    f'device         {trained["device"]} x {len(jax.devices())}, {platform},'
    f' jax {jax.__version__}',
  ]
  if platform != 'gpu':
    lines.append(
      f'NO GPU         this was a rehearsal on {platform}; on a machine with'
      " one: python -m pip install 'jax[cuda13]'"
    )
  lines += [
    f'training       {trained["steps"]} steps, loss {losses[0]:.3f} ->'
    f' {losses[-1]:.3f}, {max(rates):.1f} steps/s at best',
    f'goodput        {100 * trained["goodput"]:.0f} %, start'
    f' {trained["start_seconds"]:.1f} s, compilation'
    f' {trained["compile_seconds"]:.1f} s',
  ]
  recall = evaluated['metrics'][predictions.OURS]['recall@10']
  lines.append(
    f'recall@10      {recall["mean"]:.4f}'
    f' ({recall["low"]:.4f} to {recall["high"]:.4f})'
  )
  folder = workdir.folder('pretrain')
  rows = profile.slowest(profile.read_trace(profile.find_traces(folder)[0]))
  lines.append('slowest        of the profiled steps:')
  lines += [
    f'  {place}. {row.share:6.1%} {row.milliseconds:10.3f} ms in'
    f' {row.calls} calls  {row.name}'
    for place, row in enumerate(rows[:_KERNELS], 1)
  ]
  lines.append(f'all of them    python -m onerec_jax.train.profile {folder}')
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment and prints `describe`; returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m experiments.gpu_debug')
  parser.add_argument('--variant', choices=VARIANTS, default=VARIANTS[0])
  parser.add_argument('--workdir', default=os.path.join('runs', 'gpu_debug'))
  parser.add_argument('--num_steps', type=int, default=None)
  flags = parser.parse_args(arguments)
  logging.set_verbosity(logging.INFO)
  config: Any = get_config(flags.variant)
  if flags.num_steps is not None:
    config.pretrain.num_steps = flags.num_steps
    config.pretrain.evaluate_every_steps = flags.num_steps
    config.pretrain.checkpoint_every_steps = flags.num_steps
    config.pretrain.profile_steps = (
      max(flags.num_steps - 10, 1), max(flags.num_steps - 5, 1),
    )  # fmt: skip
  experiment = config_lib.from_config_dict(config)
  workdir = workdir_lib.Workdir(flags.workdir)
  runner.run_stages(experiment, workdir, experiment.stages, resume=True)
  print(describe(workdir))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
