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
import json
import pathlib
import statistics

from experiments.benchmarks import harness
from experiments.benchmarks import train_step
from onerec_jax import huge_pages
from onerec_jax.data import batch_plan
from onerec_jax.data import examples

_RESULT = harness.RESULTS / 'train_epoch.json'


def batches_per_length(
  workdir: pathlib.Path, batch_size: int, buckets: tuple[int, ...]
) -> dict[int, int]:
  """Returns how many batches of an epoch are padded to each length."""
  plan = batch_plan.BatchPlan(
    examples.read_index(workdir / 'data' / 'examples' / 'train.arrayrecord'),
    batch_size=batch_size,
    history_length=buckets[-1],
    stride=1,
    length_buckets=buckets,
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
  parser.add_argument(
    '--buckets',
    default='4,7,10,14,20',
    help='lengths, items; the last is that of the peer',
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, choices=(1,))
  arguments = parser.parse_args()
  buckets = tuple(int(b) for b in arguments.buckets.split(','))
  counts = batches_per_length(arguments.workdir, arguments.batch_size, buckets)
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
  result = harness.report(
    'train_epoch',
    train_step.PACKAGES,
    batches_per_length=counts,
    results=results,
    speed_over_torch=ratio,
  )
  harness.write(_RESULT, result)
  print(json.dumps(ratio, indent=1))


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
