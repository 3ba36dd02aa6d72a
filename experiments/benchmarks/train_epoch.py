"""Samples per second over a real epoch: length buckets against padding.

  python -m experiments.benchmarks.train_epoch --workdir=runs/beauty

HuggingFace T5 pads every history to 20 items; ours pads a batch to the bucket
that its plan of the epoch gives it.  Steps of all contenders take turns as in
train_step.py; an epoch is the planned number of batches of each length times
its step.  Needs the stage `prepare` of a run, torch and transformers.  Writes
results/train_epoch.json.
"""

import argparse
import collections
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics

from experiments.benchmarks import train_step
from onerec_jax.data import batch_plan
from onerec_jax.data import examples

_RESULT = pathlib.Path(__file__).parent / 'results' / 'train_epoch.json'
_BUCKETS = (5, 10, 20)


def batches_per_length(
  workdir: pathlib.Path, batch_size: int
) -> dict[int, int]:
  """Returns how many batches of an epoch are padded to each length."""
  plan = batch_plan.BatchPlan(
    examples.read_index(workdir / 'data' / 'examples' / 'train.arrayrecord'),
    batch_size=batch_size,
    history_length=_BUCKETS[-1],
    stride=1,
    length_buckets=_BUCKETS,
    seed=0,
  )
  lengths = (
    plan(number).history_length for number in range(plan.batches_per_epoch)
  )
  return dict(collections.Counter(lengths))


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--batch_size', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, choices=(1,))
  arguments = parser.parse_args()
  counts = batches_per_length(arguments.workdir, arguments.batch_size)
  ours = {length: f'ours_{length}' for length in counts}
  results = train_step.measure(
    ['torch', *ours.values()],
    batch_size=arguments.batch_size,
    rounds=arguments.rounds,
    warmup=1,
    threads=arguments.threads,
  )
  ratio = {}
  for clock in ('wall', 'cpu'):
    key = f'{clock}_seconds'
    each = []
    for number in range(arguments.rounds):
      peer = sum(counts.values()) * results['torch'][key][number]
      epoch = sum(n * results[ours[k]][key][number] for k, n in counts.items())
      each.append(peer / epoch)
    ratio[f'{clock}_ratio_median'] = statistics.median(each)
    ratio[f'{clock}_ratio_min'] = min(each)
    ratio[f'{clock}_ratio_max'] = max(each)
  report = {
    'command': f'python -m experiments.benchmarks.train_epoch --rounds='
    f'{arguments.rounds} --batch_size={arguments.batch_size}'
    + (' --threads=1' if arguments.threads else ''),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'batches_per_length': counts,
    'cores': os.cpu_count(),
    'load_average': os.getloadavg(),
    'versions': {'python': platform.python_version()}
    | {
      name: importlib.metadata.version(name)
      for name in ('jax', 'flax', 'optax', 'torch', 'transformers')
    },
    'results': results,
    'speed_over_torch': ratio,
  }
  _RESULT.write_text(json.dumps(report, indent=1) + '\n')
  print(json.dumps(ratio, indent=1))


if __name__ == '__main__':
  main()
