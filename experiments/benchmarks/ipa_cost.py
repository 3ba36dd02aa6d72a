"""Time of a round of IPA over a pretrain pass of the same samples.

  python -m experiments.benchmarks.ipa_cost --workdir=runs/ipa_cost

Simulated world of table1_synthetic.py, r_DPO = 1 %, beam 128, sessions of
five: rollouts, scoring, reference and update of a round against as many steps
of next-token prediction.  Rounds take the first one's compiled programs, so
the first is left out; what a training step costs to compile is in neither.
Writes results/ipa_cost.json.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
from typing import Any

from experiments import table1_synthetic
from onerec_jax import config as config_lib
from onerec_jax import huge_pages
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import runner

_RESULT = pathlib.Path(__file__).parent / 'results' / 'ipa_cost.json'
_ROUNDS = 4
_BATCH = 64


def experiment(steps: int) -> config_lib.Experiment:
  """Returns the run that is timed."""
  config: Any = table1_synthetic.get_config('small')
  config.name = 'ipa_cost'
  config.sweep.rows = ()
  config.model.update(table1_synthetic.LARGE_MODEL)
  config.pretrain.batch_size = config.align.batch_size = _BATCH
  config.pretrain.num_steps = config.align.num_steps = steps
  config.pretrain.evaluate_every_steps = 0
  config.align.evaluate_every_steps = 0
  config.pretrain.checkpoint_every_steps = steps
  config.align.checkpoint_every_steps = steps
  config.preference.rounds = _ROUNDS
  config.preference.sample_share = 0.01
  config.preference.rollout.num_beams = 128
  config.preference.rollout_batch_size = 16
  config.reward.num_steps = 500
  return config_lib.from_config_dict(config)


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--steps', type=int, default=300)
  arguments = parser.parse_args()
  settings = experiment(arguments.steps)
  workdir = workdir_lib.Workdir(arguments.workdir)
  stages = config_lib.V1_STAGES[: config_lib.V1_STAGES.index('align') + 1]
  runner.run_stages(settings, workdir, stages, resume=True)
  pretrain, align = workdir.result('pretrain'), workdir.result('align')
  assert pretrain is not None
  assert align is not None
  base = pretrain['training_seconds']
  rounds = [
    {**r['rollouts']['seconds'], 'update': r['training_seconds']}
    for r in align['rounds'][1:]
  ]
  split = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
  ratios = [sum(r.values()) / base for r in rounds]
  result = {
    'what': 'seconds of one round over a pretrain pass of the same samples',
    'samples': arguments.steps * _BATCH,
    'pairs': [r['rollouts']['pairs'] for r in align['rounds'][1:]],
    'beam': 128,
    'sample_share': 0.01,
    'pretrain_seconds': base,
    'round_seconds': split,
    'ratio_median': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
    'machine': f'{os.cpu_count()} CPU cores, {platform.machine()}',
    'load': os.getloadavg()[0],
    'jax': importlib.metadata.version('jax'),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }
  _RESULT.write_text(json.dumps(result, indent=1) + '\n')
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
