"""The table of speeds says what was measured, and nothing else."""

import pytest

from experiments.benchmarks import harness
from experiments.benchmarks import summary
from experiments.benchmarks import summary_rows


def test_a_missed_target_is_said_and_a_met_one_too():
  entry = {
    f'{clock}_ratio_{name}': value
    for clock, value in (('cpu', 3.0), ('wall', 2.0))
    for name in ('median', 'min', 'max')
  }
  assert summary_rows.ratio_row('x', 't', entry, least=2).endswith('| yes |')
  assert summary_rows.ratio_row('x', 't', entry, least=2.5).endswith('**no** |')
  assert summary_rows.ratio_row('x', 't', entry, most=3).endswith('| yes |')
  assert summary_rows.ratio_row('x', 't', entry, most=2.5).endswith('**no** |')


def test_what_was_not_run_is_called_not_measured_and_nothing_else(monkeypatch):
  monkeypatch.setattr(harness, 'read', lambda name: {})
  rows = summary.table().splitlines()[2:]
  assert rows
  assert all(row.endswith('| not measured |  |') for row in rows)


_RATIO = {
  f'{clock}_ratio_{name}': 4.25
  for clock in ('cpu', 'wall')
  for name in ('median', 'min', 'max')
}
_MEASURED = {
  'session_beam': {
    'results': {
      'ours': {'beams_times_encoder_arrays': [], 'temporary_bytes': 2**20}
    },
    'ratio': _RATIO,
    'temporary_ratio': 7.0,
  },
  'group_step': {
    'ipa': {'of_bound': _RATIO, 'ratio': _RATIO},
    'ecpo': {'of_bound': _RATIO, 'ratio': _RATIO},
  },
  'input_pipeline': {
    'runs': {
      'beauty': {
        'thread': {'wait_share_median': 0.0425, 'wait_share_max': 0.5},
        'no_thread': {'wait_share_median': 0.1, 'wait_share_max': 0.5},
        'batch_milliseconds': 2.0,
      }
    }
  },
  'start_time': {
    'runs': {
      'quickstart': {
        'ratio': _RATIO,
        'results': {
          'cold': {'wall_seconds_median': 20.0},
          'warm': {'wall_seconds_median': 8.0},
        },
      }
    }
  },
  'gpu_window': {
    'tasks': {
      'device': {'status': 'measured', 'device_kind': 'Some GPU'},
      'train 0.1b': {'status': 'measured', 'mfu': 0.425, 'batch_size': 8},
      'train 0.1b, no remat': {'status': 'measured', 'mfu': 0.5},
      'train 1b': {'status': 'failed', 'error': 'x'},
    }
  },
}


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('session_beam', '4.25 × cpu time'),
    ('group_step', '4.25 × cpu time'),
    ('input_pipeline', '4.25%'),
    ('start_time', '8.0 s against 20.0 s'),
    ('gpu_window', '42.5% at batch 8; no remat 50.0% | yes'),
  ],
)
def test_a_result_file_becomes_a_row(monkeypatch, name, shown):
  found = {name: _MEASURED[name]}
  monkeypatch.setattr(harness, 'read', lambda name: found.get(name, {}))
  assert shown in summary.table()


def test_a_task_that_failed_on_the_gpu_is_not_measured(monkeypatch):
  found = {'gpu_window': _MEASURED['gpu_window']}
  monkeypatch.setattr(harness, 'read', lambda name: found.get(name, {}))
  (row,) = [r for r in summary.table().splitlines() if 'recipe 1b' in r]
  assert 'not measured' in row
  assert 'Some GPU' in row


def test_no_kept_result_is_a_rehearsal_or_names_a_folder():
  for path in harness.RESULTS.glob('*.json'):
    text = path.read_text()
    assert '/tmp' not in text, path
    assert '--toy' not in text, path
