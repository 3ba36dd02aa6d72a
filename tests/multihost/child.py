"""One process of a job; argv: what to do, port, processes, process, folder."""

import json
import pathlib
import sys
import time

import numpy as np
from etils import epath

from onerec_jax import config
from onerec_jax import distributed
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.data import examples
from onerec_jax.data import pipeline


def _epochs(path, own_rows):
  """Returns the examples that this process reads in each of two epochs."""
  distributed.run_on_main(
    lambda: examples.write_examples(
      path,
      [
        examples.UserRecord(
          user=user,
          items=np.arange(6, dtype=np.int32),
          positive=np.ones(6, bool),
          timestamps=np.arange(6),
          target_starts=np.arange(1, 2 + user % 3, dtype=np.int32),
          target_lengths=np.ones(1 + user % 3, np.int32),
        )
        for user in range(37)
      ],
    )
  )
  store = examples.ExampleStore(path)
  settings = {
    'data': config.DataConfig(history_length=4),
    'train': config.TrainConfig(
      batch_size=16, pipeline=config.PipelineConfig(windows='all')
    ),
    'seed': 3,
  }
  plan = pipeline.train_plan(store.index, **settings)
  batches = pipeline.train_batches(store, **settings, own_rows=own_rows)
  return [
    np.concatenate(
      [next(batches).example_id for _ in range(plan.batches_per_epoch)]
    ).tolist()
    for _ in range(2)
  ]


def _share(folder):
  """Returns what this process reads and receives, on a mixed mesh."""
  import jax

  # As on a pod: neighbours in the mesh are not all of one process.
  devices = np.array(jax.devices()).reshape(2, 4).T.reshape(8, 1, 1)
  mesh = jax.sharding.Mesh(devices, meshes.AXES)
  own = sharding.own_rows(mesh)(16)
  placed = sharding.place_batch(own.astype(np.int32), mesh)
  doubled = jax.jit(lambda x: 2 * x)(placed)
  start = np.full(3, jax.process_index() + 0.1)
  return {
    'own': own.tolist(),
    'epochs': _epochs(
      epath.Path(folder) / 'train.arrayrecord', sharding.own_rows(mesh)
    ),
    'gathered': sharding.gather(doubled).tolist(),
    'whole': sharding.gather(sharding.place_rows(np.arange(8), mesh)).tolist(),
    'broadcast': distributed.broadcast({'start': start})['start'].tolist(),
    'agreed': distributed.from_main(lambda: [jax.process_index(), 'é' * 300]),
  }


def _generate(folder):
  """Writes the pairs and groups of the work directory that is the folder."""
  import generated  # beside this script
  import jax

  name = f'generated_{jax.process_count()}'
  found = generated.generate(folder, folder=epath.Path(folder) / name)
  if distributed.is_main():
    np.savez(folder / f'{name}.npz', **found)


def _fail_1(folder):
  del folder
  import jax

  if jax.process_index() == 1:
    raise ValueError('the disk is full')
  time.sleep(300)


def _fail_alone(folder):
  """Process 0 fails in its turn while the other one waits."""
  del folder

  def turn():
    raise ValueError('the disk is full')

  distributed.run_on_main(turn)


def _nothing(folder):
  del folder


_ACTS = {
  'share': _share,
  'generate': _generate,
  'fail_1': _fail_1,
  'fail_alone': _fail_alone,
  'apart': _nothing,
}


def main() -> None:
  name, port, processes, process, folder = sys.argv[1:]
  if int(processes) > 1:
    distributed.initialize(
      coordinator=f'localhost:{port}',
      num_processes=int(processes),
      process_id=int(process),
    )
  workdir = pathlib.Path(folder)
  if name == 'apart':  # as if the disk were not shared
    distributed._SEEN_SECONDS = 1.0
    workdir = workdir / process
  with distributed.job(epath.Path(workdir), explain=lambda e: f'error: {e}'):
    found = _ACTS[name](workdir)
    (workdir / f'{name}_{process}.json').write_text(json.dumps(found))


if __name__ == '__main__':
  main()
