"""The report's section on training."""

from etils import epath

from onerec_jax.stages import report_training
from onerec_jax.stages import report_words
from onerec_jax.train import goodput


def _rows(tmp_path, trained):
  section = report_training.training(
    [{'step': 1}], trained, report_words.Pictures(epath.Path(tmp_path))
  )
  return dict(row['cells'] for row in section['table']['rows'])


def test_the_section_says_where_the_time_of_all_processes_went(tmp_path):
  seconds = {
    'train': 900.0, 'wait': 9.0, 'rollout': 0.0, 'compile': 30.0,
    'validate': 20.0, 'checkpoint': 4.0, 'start': 25.0, 'lost': 11.0,
    'wall': 1000.0, 'earlier': 300.0,
  }  # fmt: skip
  rows = _rows(tmp_path, goodput.figures(seconds))
  assert rows == {
    'goodput, training / all time': '89.1 %',
    'time waiting for data': '1.0 %',
    'starting': '25.0 s',
    'compilation': '30.0 s',
    'validation': '20.0 s',
    'waiting for checkpoints': '4.0 s',
    'lost to restarts': '11.0 s',
  }


def test_a_run_of_an_older_version_has_fewer_rows(tmp_path):
  assert _rows(tmp_path, {'compile_seconds': 2.0}) == {'compilation': '2.0 s'}
