"""Share of its time that training waits for data.

  python -m experiments.benchmarks.input_pipeline --workdir=runs/input_pipeline

Trains by the stages themselves on made-up logs of MovieLens-100K's and
Beauty's sizes, with the models of quickstart.py and onerec_v1_beauty.py, once
with batches made ahead by a thread (the default) and once without.  Both see
the same batches, which their losses prove.  The first interval, which starts
the thread, is left out.  Writes results/input_pipeline.json.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import time
from typing import Any

from experiments import onerec_v1_beauty
from experiments import quickstart
from experiments import smoke
from experiments.benchmarks import harness
from onerec_jax import config as config_lib
from onerec_jax import huge_pages
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.stages import runner
from onerec_jax.train import log

STAGES: tuple[config_lib.Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain',
)  # fmt: skip
_TIMED_BATCHES = 200  # made in the calling thread, without training


def _synthetic(config: Any, *, users: int, items: int, events: int) -> None:
  """Replaces the data of a recipe by a simulated log of these sizes."""
  config.stages = STAGES
  config.data.source = 'synthetic'
  config.data.path = None
  config.data.variant = None
  config.data.synthetic.num_users = users
  config.data.synthetic.num_items = items
  config.data.synthetic.events_per_user = events
  config.embed.parts = ({'kind': 'cooccurrence', 'dim': 16},)
  config.tokenizer.collision = 'reassign'
  config.pretrain.evaluate_every_steps = 0


def experiment(
  name: str, *, prefetch: int, steps: int
) -> config_lib.Experiment:
  """Returns the run that is timed.

  Args:
    name: 'quickstart', 'beauty', or 'toy' for tests.
    prefetch: batches made ahead by a thread; 0: none.
    steps: of training, in ten logged intervals.
  """
  config: Any
  if name == 'toy':
    config = smoke.get_config('v1')
    _synthetic(config, users=60, items=60, events=20)
  elif name == 'quickstart':
    config = quickstart.get_config()
    _synthetic(config, users=943, items=1682, events=106)
  else:
    config = onerec_v1_beauty.get_config()
    _synthetic(config, users=22_363, items=12_101, events=9)
  config.name = f'input_pipeline_{name}'
  config.pretrain.num_steps = steps
  config.pretrain.log_every_steps = max(steps // 10, 1)
  config.pretrain.checkpoint_every_steps = steps
  config.pretrain.pipeline.prefetch_batches = prefetch
  return config_lib.from_config_dict(config)


def check_equal(ours: list[float], peer: list[float]) -> None:
  """Raises ValueError unless the losses are equal to the last bit."""
  if ours != peer:
    first = next(i for i, (a, b) in enumerate(zip(ours, peer)) if a != b)  # noqa: B905
    raise ValueError(
      f'With and without a thread the losses differ from interval {first} on:'
      f' {ours[first]} and {peer[first]}; the batches are not the same.'
    )


def _train(made: config_lib.Experiment, workdir: workdir_lib.Workdir) -> Any:
  """Trains from step 0 on; returns the records of the logged intervals."""
  folder = pathlib.Path(workdir.folder('pretrain'))
  if folder.exists():
    # The work directory is the benchmark's own: a training begun with other
    # settings must not be continued.
    shutil.rmtree(folder)
  runner.run_stages(made, workdir, STAGES, resume=True)
  return log.read_metrics(workdir.folder('pretrain') / log.METRICS)


def _batch_seconds(
  made: config_lib.Experiment, workdir: workdir_lib.Workdir, batches: int
) -> float:
  """Returns the median time of making one batch in the calling thread."""
  iterator = pipeline.train_batches(
    examples.ExampleStore(workdir.data / 'examples' / 'train.arrayrecord'),
    data=made.data,
    train=made.pretrain,
    seed=made.seed,
  )
  spent = []
  for _ in range(batches):
    start = time.perf_counter()
    next(iterator)
    spent.append(time.perf_counter() - start)
  return statistics.median(spent)


def measure(
  name: str, root: pathlib.Path, *, steps: int, batches: int = _TIMED_BATCHES
) -> dict[str, Any]:
  """Returns the waits of one experiment, with a thread and without.

  Args:
    name: as for `experiment`.
    root: folder of the benchmark's own.
    steps: of each training.
    batches: made without training, to time one.
  """
  workdir = workdir_lib.Workdir(root / name)
  result: dict[str, Any] = {}
  losses = {}
  for label, prefetch in (('no_thread', 0), ('thread', 4)):
    made = experiment(name, prefetch=prefetch, steps=steps)
    records = _train(made, workdir)
    losses[label] = [record['loss'] for record in records]
    later = records[1:]
    waits = [record['data_wait_share'] for record in later]
    rates = [record['steps_per_second'] for record in later]
    result[label] = {
      'wait_share_median': statistics.median(waits),
      'wait_share_max': max(waits),
      'wait_shares': waits,
      'steps_per_second_median': statistics.median(rates),
    }
    if not prefetch:
      spent = _batch_seconds(made, workdir, batches)
      result['batch_milliseconds'] = 1e3 * spent
      result['batch_size'] = made.pretrain.batch_size
      result['history_length'] = made.data.history_length
  check_equal(losses['thread'], losses['no_thread'])
  return result


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--toy', action='store_true')
  parser.add_argument(
    '--output', default=harness.RESULTS / 'input_pipeline.json'
  )
  arguments = parser.parse_args()
  # Half a minute of training each on two quiet cores.
  steps = {'toy': 10} if arguments.toy else {'quickstart': 200, 'beauty': 30}
  found = {
    name: measure(name, arguments.workdir, steps=number)
    for name, number in steps.items()
  }
  print(json.dumps(found, indent=1))
  harness.write(
    arguments.output,
    harness.report('input_pipeline', ('jax', 'grain', 'numpy'), runs=found),
  )


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
