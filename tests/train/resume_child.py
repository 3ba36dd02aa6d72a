"""Runs the stage `pretrain`, possibly killing itself; used by test_resume.

  python resume_child.py WORKDIR OUTPUT.npz [fetch:N | save:N]

fetch:N dies before batch N is handed out, save:N while the checkpoint of step
N is being written.
"""

import os
import signal
import sys
import types

import jax
import numpy as np

from onerec_jax import config
from onerec_jax import workdir
from onerec_jax.data import pipeline
from onerec_jax.stages import pretrain
from onerec_jax.stages import training_setup
from onerec_jax.train import checkpoints
from onerec_jax.train import loop


def experiment() -> config.Experiment:
  """Returns a tiny experiment with every piece of state there is."""
  return config.Experiment(
    data=config.DataConfig(
      source='synthetic',
      synthetic=config.SyntheticConfig(num_users=40, num_items=30),
      history_length=6,
      sessions=config.SessionsConfig(items_per_session=2),
    ),
    model=config.ModelConfig(
      embed_dim=16,
      num_heads=2,
      head_dim=8,
      encoder_layers=1,
      decoder_layers=1,
      mlp_dim=16,
      dropout_rate=0.1,
      scan_layers=False,
      moe=config.MoEConfig(
        num_experts=4, top_k=2, expert_dim=16, dispatch='dense'
      ),
    ),
    pretrain=config.TrainConfig(
      batch_size=16,
      num_steps=20,
      ema_decay=0.9,
      log_every_steps=3,
      evaluate_every_steps=0,
      checkpoint_every_steps=5,
      optimizer=config.OptimizerConfig(
        name='adamw', schedule='cosine', weight_decay=0.01, warmup_steps=4
      ),
      pipeline=config.PipelineConfig(length_buckets=(3, 6)),
    ),
  )


def die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def kill_at(place: str, number: int) -> None:
  """Makes this process die at a moment of the run."""
  if place == 'fetch':
    make = pipeline.train_batches

    class Batches:
      def __init__(self, inner):
        self.inner = inner
        self.get_state = inner.get_state
        self.set_state = inner.set_state

      def __next__(self):
        if self.get_state()['next_index'] == number:
          die()
        return next(self.inner)

    pipeline.train_batches = lambda *a, **k: Batches(make(*a, **k))
    return
  save = checkpoints.Checkpointer.save

  def save_and_die(self, step, *args, **kwargs):
    save(self, step, *args, **kwargs)
    if step == number:
      die()

  checkpoints.Checkpointer.save = save_and_die


def main(folder: str, output: str, kill: str | None = None) -> None:
  if kill:
    place, number = kill.split(':')
    kill_at(place, int(number))
  train, results = loop.train, []

  def keep(*args):
    results.append(train(*args))
    return results[-1]

  training_setup.loop = types.SimpleNamespace(train=keep)
  pretrain.run(experiment(), workdir.Workdir(folder))
  leaves = jax.tree.leaves(jax.device_get(results[-1].state))
  np.savez(output, *leaves)


if __name__ == '__main__':
  main(*sys.argv[1:])
