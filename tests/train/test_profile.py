import gzip
import json

import pytest
from etils import epath

from onerec_jax import config
from onerec_jax.train import profile


def test_steps_are_parsed():
  assert profile.parse_steps('10:15') == (10, 15)
  assert profile.parse_steps('3:3') == (3, 3)


@pytest.mark.parametrize('text', ['10', '15:10', '0:3', 'a:b', '1:2:3', '-1:2'])
def test_other_steps_are_refused_with_an_example(text):
  with pytest.raises(ValueError, match=r'10:15') as error:
    profile.parse_steps(text)
  assert repr(text) in str(error.value)


def test_every_training_stage_gets_the_steps():
  experiment = config.Experiment()
  changed = profile.with_steps(experiment, (10, 15))
  for stage in ('pretrain', 'reward', 'align', 'p_score', 'reinforce'):
    assert getattr(changed, stage).profile_steps == (10, 15)
  assert profile.with_steps(changed, ()) == experiment


# --- Reading ------------------------------------------------------------------


def _line(pid, tid, process, thread):
  return [
    {'ph': 'M', 'pid': pid, 'name': 'process_name', 'args': {'name': process}},
    {
      'ph': 'M', 'pid': pid, 'tid': tid, 'name': 'thread_name',
      'args': {'name': thread},
    },
  ]  # fmt: skip


def _event(pid, tid, name, start, duration, **args):
  return {
    'ph': 'X', 'pid': pid, 'tid': tid, 'name': name, 'ts': start,
    'dur': duration, 'args': args,
  }  # fmt: skip


def test_the_operations_of_a_tpu_are_summed_without_those_inside():
  events = [
    *_line(1, 1, '/device:TPU:0', 'XLA Ops'),
    *_line(1, 2, '/device:TPU:0', 'Steps'),
    *_line(9, 1, '/host:CPU', 'python'),
    # A loop of 10 ms with two products of 3 ms and a copy of 2 ms in it.
    _event(1, 1, 'while.1', 0.0, 10_000.0),
    _event(1, 1, 'dot.2', 0.0, 3_000.0),
    _event(1, 1, 'copy.3', 3_000.0, 2_000.0),
    _event(1, 1, 'dot.2', 6_000.0, 3_000.0),
    _event(1, 1, 'sort.4', 10_000.0, 2_000.0),
    _event(1, 2, '17', 0.0, 12_000.0),
    _event(9, 1, 'train_step', 0.0, 50_000.0),
  ]
  rows = profile.slowest(events)
  assert [(r.name, r.calls, r.milliseconds) for r in rows] == [
    ('dot.2', 2, 6.0),
    ('copy.3', 1, 2.0),
    ('sort.4', 1, 2.0),
    ('while.1', 1, 2.0),
  ]
  assert [r.share for r in rows] == [0.5, 1 / 6, 1 / 6, 1 / 6]


def test_the_kernels_of_a_gpu_are_those_on_its_streams():
  events = [
    *_line(1, 1, '/device:GPU:0', 'Stream #13(Compute,Memset)'),
    *_line(1, 2, '/device:GPU:0', 'Stream #14(MemcpyD2H)'),
    *_line(1, 3, '/device:GPU:0', 'XLA Ops'),  # the same time once more
    *_line(2, 1, '/device:GPU:1', 'Stream #13(Compute,Memset)'),
    _event(1, 1, 'sm90_gemm', 0.0, 4_000.0),
    _event(1, 2, 'MemcpyD2H', 1_000.0, 1_000.0),
    _event(1, 3, 'fusion', 0.0, 4_000.0),
    _event(2, 1, 'sm90_gemm', 0.0, 5_000.0),
  ]
  assert [tuple(r) for r in profile.slowest(events)] == [
    ('sm90_gemm', 2, 9.0, 0.9),
    ('MemcpyD2H', 1, 1.0, 0.1),
  ]


def test_a_table_says_how_much_it_leaves_out():
  rows = [profile.Row(f'op.{i}', 1, 1.0, 0.25) for i in range(4)]
  lines = profile.table(rows, limit=1).splitlines()
  assert len(lines) == 3
  assert lines[1].split() == ['1.000', '25.0%', '1', 'op.0']
  assert lines[2].split() == ['3.000', '75.0%', '3', '3', 'others']


def _write(folder, run, host, events):
  path = folder / 'plugins' / 'profile' / run / f'{host}.trace.json.gz'
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps({'traceEvents': events})
  path.write_bytes(gzip.compress(text.encode()))
  return path


def test_the_newest_trace_is_found_below_a_stage_or_its_profile(tmp_path):
  folder = epath.Path(tmp_path)
  _write(folder / 'profile', '2026_11_22_14_56_07', 'a', [])
  newer = [
    _write(folder / 'profile', '2026_11_22_15_00_00', host, [])
    for host in ('a', 'b')
  ]
  assert profile.find_traces(folder) == newer
  assert profile.find_traces(folder / 'profile') == newer
  with pytest.raises(FileNotFoundError, match='--profile_steps=10:15'):
    profile.find_traces(folder / 'nothing')


def test_the_command_prints_a_table_for_every_host(tmp_path, capsys):
  event = _event(1, 1, 'dot.7', 0.0, 1_500.0, hlo_op='dot.7')
  for host in ('a', 'b'):
    _write(epath.Path(tmp_path), '2026_11_22_15_00_00', host, [event])
  assert profile.main([str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert out.count('1.500  100.0%        1  dot.7') == 2
  assert profile.main([]) == 2
  assert profile.main([str(tmp_path / 'nothing')]) == 2
  assert 'holds no profile' in capsys.readouterr().err


# --- Writing ------------------------------------------------------------------


def test_a_run_leaves_a_trace_of_its_steps_only(toy, tmp_path, monkeypatch):
  starts = []
  original = profile.jax.profiler.start_trace
  monkeypatch.setattr(
    profile.jax.profiler,
    'start_trace',
    lambda folder: (starts.append(folder), original(folder))[1],
  )
  toy.run(
    tmp_path,
    train=toy.config_with(
      num_steps=8, evaluate_every_steps=0, profile_steps=(3, 5)
    ),
  )
  assert len(starts) == 1
  paths = profile.find_traces(epath.Path(tmp_path))
  events = profile.read_trace(paths[0])
  # Steps 3, 4 and 5, and nothing that was compiled before.
  runs = {
    e['args']['run_id']
    for e in events
    if e.get('args', {}).get('hlo_module') == 'jit_train_step'
  }
  assert len(runs) == 3
  assert profile.slowest(events)
  # The profiler wrote to this machine first.
  assert not epath.Path(starts[0]).exists()


def test_a_run_that_fails_inside_the_window_ends_its_trace(toy, tmp_path):
  train = toy.config_with(num_steps=8, profile_steps=(2, 8))

  def fail(*_):
    raise RuntimeError('while validating')

  with pytest.raises(RuntimeError, match='while validating'):
    toy.run(
      tmp_path,
      train=toy.config_with(
        num_steps=8, profile_steps=(2, 8), evaluate_every_steps=4
      ),
      evaluate=fail,
    )
  assert profile.find_traces(epath.Path(tmp_path))
  # Another one can begin.
  toy.run(tmp_path / 'again', train=train)
  assert profile.find_traces(epath.Path(tmp_path / 'again'))


def test_a_window_that_is_never_reached_is_told(toy, tmp_path, caplog):
  train = toy.config_with(num_steps=5, profile_steps=(6, 7))
  toy.run(tmp_path, train=train)
  assert 'step 6 was not among those' in caplog.text
  assert not (tmp_path / 'profile').exists()
