"""TIGER's semantic IDs, with their appended level, down the pipeline."""

import os
import pathlib
import subprocess
import sys

import pytest

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import pretrain

_ROOT = pathlib.Path(__file__).parent.parent.parent


def _tiger() -> config_lib.Experiment:
  return config_lib.from_config_dict(
    {
      'name': 'tiny_tiger',
      'stages': ('prepare', 'embed', 'tokenize', 'pretrain', 'evaluate'),
      'data': {
        'synthetic': {'num_users': 40, 'num_items': 50},
        'history_length': 6,
        'sessions': {'items_per_session': 1},
      },
      'embed': {'parts': ({'kind': 'text', 'dim': 12},)},
      'tokenizer': {
        'levels': 3,
        'codes_per_level': 4,
        'quantizer': 'rqvae',
        'collision': 'append',
        'limits': {'max_collision_share': 1.0},
        'rqvae': {
          'hidden_dims': (16,),
          'latent_dim': 4,
          'batch_size': 32,
          'num_steps': 40,
        },
      },
      'model': {
        'embed_dim': 16,
        'num_heads': 2,
        'head_dim': 4,
        'encoder_layers': 1,
        'decoder_layers': 1,
        'mlp_dim': 16,
        'moe': {'enabled': False},
        # Not TIGER's: levels of unequal size, and one without a codebook.
        'normalise_over': 'catalogue',
        'code_init': 'codebook',
        'history_separator': False,
        'user_buckets': 50,
      },
      'pretrain': {
        'batch_size': 16,
        'num_steps': 6,
        'evaluate_every_steps': 6,
        'evaluate_examples': 16,
        'checkpoint_every_steps': 6,
        'pipeline': {'windows': 'all'},
      },
      'evaluate': {
        'batch_size': 16,
        'bootstrap_samples': 20,
        'decoding': {'num_beams': 8},
      },
    }
  )


@pytest.mark.slow
def test_tiger_runs_from_events_to_recommendations(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path)
  workdir.write_config(config_lib.to_dict(_tiger()))
  done = subprocess.run(
    [sys.executable, '-m', 'onerec_jax.main', 'run', f'--workdir={tmp_path}'],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  tokenized = workdir.result('tokenize')
  # Three quantized levels and the number within a bucket, so no ID is shared.
  assert len(tokenized['codes_per_level']) == 4
  before = tokenized['quantizers']['rqvae']['ids']
  assert before['collision_share'] > 0
  assert tokenized['codes_per_level'] == [4, 4, 4, before['largest_bucket']]
  assert tokenized['quality']['ids']['collision_share'] == 0
  ids = pretrain.read_semantic_ids(workdir)
  assert ids.vocabulary(50).size == 3 + 12 + before['largest_bucket'] + 50
  trained = workdir.result('pretrain')
  assert trained['steps'] == 6
  assert trained['semantic_ids'] == ids.digest()
  evaluated = workdir.result('evaluate')
  assert evaluated['legality'] == 1.0
  assert 0 < evaluated['teacher_forced']['token_loss'] < 2
  assert 0 <= evaluated['metrics']['onerec']['recall@10']['mean'] <= 1
