"""Real TPU programs, by libtpu in a process of its own."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from onerec_jax.aot import environment

# The first whose SparseCore flags compile; 0.0.42 (jax 0.10.2) crashes on them.
_OLDEST = (0, 0, 50)


def _why_not():
  problem = environment.missing()
  if problem is not None:
    return problem
  found = importlib.metadata.version('libtpu')
  if tuple(int(part) for part in found.split('.')[:3]) < _OLDEST:
    return f'libtpu {found} is older than 0.0.50, install jax 0.12 with it'
  return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))

# Scores of 264 tokens would be an array if the kernel were not used.
_PROGRAM = """
import sys
from onerec_jax import aot, config
values = {
  'name': 'tiny',
  'model': {
    'embed_dim': 256, 'num_heads': 2, 'head_dim': 128, 'encoder_layers': 2,
    'decoder_layers': 2, 'mlp_dim': 384, 'compute_dtype': 'bfloat16',
    'remat': True, 'moe': {'num_experts': 8, 'expert_dim': 640},
  },
  'data': {
    'history_length': int(sys.argv[6]), 'sessions': {'items_per_session': 2},
  },
  'tokenizer': {'codes_per_level': 512},
  'mesh': {'data': 1, 'expert': int(sys.argv[4])},
  'pretrain': {'batch_size': int(sys.argv[5]), 'evaluate_every_steps': 0},
  'evaluate': {
    'batch_size': 8, 'decoding': {'num_beams': 16, 'num_items': 2},
  },
}
sys.exit(aot.run(
  config.from_config_dict(values), topology=sys.argv[1], mode=sys.argv[2],
  output=sys.argv[3], num_items=20_000,
))
"""


def _compile(tmp_path, topology, mode, *, expert=8, batch_size=64, history=66):
  path = tmp_path / 'report.json'
  done = subprocess.run(
    [
      sys.executable, '-c', _PROGRAM, topology, mode, str(path), str(expert),
      str(batch_size), str(history),
    ],
    env={
      **os.environ,
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
      'JAX_OPTIMIZATION_LEVEL': 'O1',
      'JAX_NUM_CPU_DEVICES': '1',
      'XLA_FLAGS': '',
    },
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert path.exists(), done.stderr[-3000:]
  return done.returncode, json.loads(path.read_text()), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
  ('topology', 'mode'), [('v6e-8', 'train'), ('v5e-8', 'decode')]
)
def test_a_tiny_model_compiles_as_it_should(tmp_path, topology, mode):
  status, report, text = _compile(tmp_path, topology, mode)
  assert status == 0, text
  found = report['findings']
  assert report['fits']
  assert found['kernels'] > 0
  assert not found['score_arrays']
  assert not found['beam_state_arrays']
  assert not found['expert_weight_gathers']
  assert not found['wide_float_sorts']
  assert not found['unknown_loops']


@pytest.mark.slow
def test_a_history_too_long_for_the_kernel_is_taken_in_blocks(tmp_path):
  # 2,080 tokens: no array of 2,080 x 2,080 scores.
  status, report, text = _compile(
    tmp_path, 'v6e-8', 'train', batch_size=8, history=520
  )
  assert status == 0, text
  assert report['sizes']['encoder_tokens'] >= 2048
  assert not report['findings']['score_arrays']


@pytest.mark.slow
def test_what_does_not_fit_is_a_verdict_and_a_status(tmp_path):
  status, report, text = _compile(
    tmp_path, 'v5e-1', 'train', expert=1, batch_size=65536
  )
  assert status == 2
  assert not report['fits']
  assert report['memory']['used'] > report['hbm_bytes']
  assert 'OUT OF MEMORY' in text
