import json

import numpy as np
import pytest
from etils import epath

from onerec_jax import batch
from onerec_jax.train import log


def test_utilisation_is_the_share_of_the_peak():
  # Half of 197 TFLOP/s on 4 chips for 2 s.
  flops = 0.5 * 197e12 * 4 * 2.0
  got = log.utilisation(flops, 2.0, device_kind='TPU v5e', num_devices=4)
  np.testing.assert_allclose(got, 0.5)
  assert log.utilisation(1.0, 1.0, device_kind='cpu', num_devices=1) is None


def test_max_violation_averages_layers():
  # Layer 0: 6 of mean 3 -> 1.0; layer 1 is balanced -> 0.
  load = np.array([[6.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
  np.testing.assert_allclose(log.max_violation(load), 0.5)


def test_summaries_divide_once_and_leave_out_what_was_not_counted():
  got = log.summarize(
    {
      'loss': batch.Mean(np.float32(6), np.float32(4)),
      'gradient_norm': batch.Mean(np.float32(0), np.float32(0)),
      'router/load': batch.Mean(np.array([[3.0, 1.0]]), np.array([[4.0, 4.0]])),
    }
  )
  assert got == {
    'loss': 1.5,
    'router/load': [[0.75, 0.25]],
    'router/max_violation': 0.5,
  }


def _writer(folder, resume_step):
  return log.MetricsWriter(epath.Path(folder), resume_step=resume_step)


def _steps(folder):
  return [r['step'] for r in log.read_metrics(epath.Path(folder) / log.METRICS)]


def test_resuming_drops_later_steps_and_a_line_cut_off_by_a_kill(tmp_path):
  writer = _writer(tmp_path, 0)
  for step in (10, 20, 30):
    writer.write(step, {'loss': 1.0 / step})
  writer.close()
  path = tmp_path / log.METRICS
  path.write_text(path.read_text() + '{"step": 40, "lo')
  assert _steps(tmp_path) == [10, 20, 30]
  writer = _writer(tmp_path, 20)
  writer.write(30, {'loss': 0.5})
  writer.close()
  assert _steps(tmp_path) == [10, 20, 30]
  assert path.read_text().endswith('}\n')


def test_a_damaged_line_inside_is_named(tmp_path):
  path = epath.Path(tmp_path) / log.METRICS
  path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r'metrics.jsonl:2 is not a JSON'):
    log.read_metrics(path)


def test_records_are_json_even_when_a_figure_is_not_finite(tmp_path):
  writer = _writer(tmp_path, 0)
  writer.write(1, {'loss': float('nan'), 'mfu': None, 'load': [[1.0, 0.5]]})
  writer.close()
  line = (tmp_path / log.METRICS).read_text()
  assert json.loads(line) == {
    'step': 1,
    'loss': None,
    'mfu': None,
    'load': [[1.0, 0.5]],
  }


def test_other_processes_write_nothing(tmp_path):
  writer = log.MetricsWriter(epath.Path(tmp_path), resume_step=0, enabled=False)
  writer.write(1, {'loss': 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_the_progress_line_reads_well():
  line = log.progress_line(
    50,
    200,
    {
      'loss': 2.5,
      'steps_per_second': 4.0,
      'examples_per_second': 1024.0,
      'data_wait_share': 0.031,
      'valid/recall@10': 0.1234,
    },
    eta_seconds=3725.0,
  )
  assert line == (
    'step 50/200 · loss 2.5000 · 4.00 steps/s · 1024 examples/s ·'
    ' valid/recall@10 0.1234 · data wait 3 % · ETA 1:02:05'
  )
