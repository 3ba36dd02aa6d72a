"""Code and commands reach the workers, logs come back, over a fake ssh."""

import pathlib
import subprocess
import tarfile

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_JOB = 'jobs/run1/20260102-030405'


# --- run.sh and setup.sh ---


def test_words_reach_all_workers_as_they_were_typed(cloud):
  words = [
    'a b',
    "it's",
    '"q"',
    '$HOME',
    '`x`',
    '*',
    'a\nb',
    '',
    '\\',
    '~',
    'é',
  ]
  for index in range(2):
    cloud.add_workers(f'run1-{index}', 2, slice_id=index)
  for home in (cloud.root / 'workers').iterdir():
    cloud.install(home)
    (home / 'onerec_jax' / 'code').symlink_to(_ROOT)
  show = (
    'import os, sys; print([os.environ["LIBTPU_INIT_ARGS"], *sys.argv[1:]])'
  )
  done = cloud.run(
    *('run.sh', 'python', '-c', show, *words),
    ACCELERATOR='v6e-8',
    SLICES='2',
  )
  assert done.returncode == 0, done.stderr
  # Not the merged output, where lines of workers may be within each other.
  logs = sorted(cloud.bucket(f'{_JOB}/logs').iterdir())
  assert [log.name[:5] for log in logs] == ['s0-w0', 's0-w1', 's1-w0', 's1-w1']
  for log in logs:
    assert str(['--a=1 --b=2', *words]) in log.read_text().splitlines()
  assert done.stdout.count('[supervise] exit status 0') == 4


def test_exit_status_is_the_largest_of_all_workers(cloud):
  cloud.add_workers('run1', 4)
  for home in (cloud.root / 'workers').iterdir():
    cloud.install(home)
    (home / 'onerec_jax' / 'code').symlink_to(_ROOT)
  leave = (
    'import os, sys; sys.exit({"1": 1, "2": 5}.get(os.environ["HOME"][-1]))'
  )
  done = cloud.run('run.sh', 'python', '-c', leave)
  assert done.returncode == 5
  assert 'the largest exit status of the workers is 5' in done.stderr


def test_run_before_setup_says_so(cloud):
  # Of two slices, the second is ready.
  for index in range(2):
    cloud.add_workers(f'run1-{index}', 1, slice_id=index)
  ready = cloud.root / 'workers' / 'run1-1.0'
  cloud.install(ready)
  (ready / 'onerec_jax' / 'code').symlink_to(_ROOT)
  done = cloud.run('run.sh', 'true', ACCELERATOR='v6e-8', SLICES='2')
  assert done.returncode == 2
  assert 'no code here: tpu/setup.sh' in done.stderr


def test_detached_command_leaves_its_output_in_the_bucket(cloud, home):
  (home / 'onerec_jax' / 'code').symlink_to(_ROOT)
  done = cloud.run('run.sh', '--detach', 'echo', 'hello', ACCELERATOR='v6e-8')
  assert done.returncode == 0, done.stderr
  assert cloud.wait_for(cloud.bucket(f'{_JOB}/status/s0-w0')) == '0\n'
  (log,) = cloud.bucket(f'{_JOB}/logs').iterdir()
  assert 'hello\n' in log.read_text()


def test_setup_brings_code_and_requires_all_devices(cloud, home):
  python = home / 'onerec_jax' / 'venv' / 'bin' / 'python'
  python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {home}/asked\n')
  done = cloud.run('setup.sh', ACCELERATOR='v6e-8')
  assert done.returncode == 0, done.stderr
  assert (home / 'onerec_jax' / 'code' / 'onerec_jax' / 'main.py').exists()
  option, code = (home / 'asked').read_text().splitlines()
  assert option == '-c'
  assert code.endswith('assert jax.device_count() == 8')
  compile(code, 'asked', 'exec')

  python.write_text('#!/bin/sh\nexit 1\n')
  assert cloud.run('setup.sh', ACCELERATOR='v6e-8').returncode == 1


# --- pack.sh, install.sh, logs.sh ---


def test_archive_holds_the_working_tree_and_nothing_ignored(cloud):
  tree = cloud.root / 'tree'
  (tree / 'tpu').mkdir(parents=True)
  for name in ('lib.sh', 'pack.sh'):
    (tree / 'tpu' / name).write_text((_ROOT / 'tpu' / name).read_text())
  (tree / '.gitignore').write_text('data/\n')
  (tree / 'data').mkdir()
  (tree / 'data' / 'big').write_text('x')
  (tree / 'gone.py').write_text('committed, then deleted')
  git = ['git', '-c', 'user.name=t', '-c', 'user.email=t@t', '-C', str(tree)]
  subprocess.run([*git, 'init', '--quiet'], check=True)
  subprocess.run([*git, 'add', '.'], check=True)
  subprocess.run([*git, 'commit', '--quiet', '-m', 'first'], check=True)
  (tree / 'gone.py').unlink()
  (tree / 'new file.py').write_text('not committed')
  archive = cloud.root / 'made' / 'code.tar.gz'
  done = subprocess.run(
    ['bash', str(tree / 'tpu' / 'pack.sh'), str(archive)],
    env=cloud.environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  with tarfile.open(archive) as packed:
    assert sorted(packed.getnames()) == [
      *('.gitignore', 'new file.py', 'tpu/lib.sh', 'tpu/pack.sh')
    ]


@pytest.mark.parametrize(
  ('usable', 'made_by'),
  [
    (True, 'python3 -m venv'),
    (False, 'python3 -m uv venv --seed --python 3.12'),
  ],
)
def test_environment_is_made_by_a_python_that_the_program_supports(
  cloud, usable, made_by
):
  home = cloud.root / 'home'
  if not usable:
    (cloud.root / 'bin' / 'python3').write_text('#!/bin/sh\nexit 1\n')
  done = cloud.run('install.sh', DRY_RUN='1')
  assert done.returncode == 0, done.stderr
  venv = home / 'onerec_jax' / 'venv'
  assert f'{made_by} {venv}\n' in done.stdout
  assert done.stdout.splitlines()[-1] == (
    f'{venv}/bin/python -m pip install --quiet --disable-pip-version-check'
    f' -r {_ROOT}/tpu/requirements.txt'
  )


def test_environment_is_made_once_for_the_same_requirements(cloud):
  home = cloud.root / 'home'
  cloud.install(home)
  assert cloud.run('install.sh', DRY_RUN='1').stdout == ''
  (home / 'onerec_jax' / 'venv' / 'installed').write_text('others')
  assert 'pip install' in cloud.run('install.sh', DRY_RUN='1').stdout


def test_logs_shows_the_newest_of_the_worker(cloud):
  for job, name, text in [
    ('20260101-000000', 's0-w1-20260109-000000', 'older job'),
    ('20260102-000000', 's0-w1-20260102-000000', 'first boot'),
    ('20260102-000000', 's0-w1-20260102-010000', 'second boot'),
    ('20260102-000000', 's1-w1-20260102-020000', 'other slice'),
  ]:
    path = cloud.bucket(f'jobs/run1/{job}/logs/{name}.log')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert cloud.run('logs.sh', '--worker=1').stdout == 'second boot'


def test_followed_log_prints_what_is_added_and_goes_to_the_next_boot(cloud):
  folder = cloud.bucket(f'{_JOB}/logs')
  folder.mkdir(parents=True)
  (folder / 's0-w0-1.log').write_text('one\n')
  following = subprocess.Popen(
    ['bash', str(_ROOT / 'tpu' / 'logs.sh'), '--follow'],
    env={
      **cloud.environment,
      **{'NAME': 'run1', 'BUCKET': 'gs://my-bucket', 'POLL_SECONDS': '0'},
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  try:
    assert following.stdout is not None
    assert following.stdout.readline() == 'one\n'
    for line in ('two\n', 'three\n'):
      with (folder / 's0-w0-1.log').open('a') as log:
        log.write(line)
      assert following.stdout.readline() == line
    (folder / 's0-w0-2.log').write_text('second boot\n')
    assert following.stdout.readline() == 'second boot\n'
  finally:
    following.kill()
    following.wait()
    assert following.stdout is not None
    following.stdout.close()
