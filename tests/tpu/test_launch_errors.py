"""What is wrong is said in one line, with what to type, before any creation."""

import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_TRAIN = ('python', 'train.py')


@pytest.mark.parametrize(
  ('script', 'settings', 'message'),
  [
    ('create.sh', {'PROJECT': ''}, 'PROJECT is not set. Put PROJECT=... into'),
    ('create.sh', {'ZONE': ''}, 'ZONE is not set'),
    ('create.sh', {'ZONE': 'us-east5'}, 'ZONE=us-east5: expected a zone such'),
    ('create.sh', {'NAME': 'My_Run'}, 'NAME=My_Run: expected at most 40'),
    ('create.sh', {'SLICES': '0'}, 'SLICES=0: expected a number of slices'),
    ('create.sh', {'CAPACITY': 'free'}, 'expected spot, reserved or on-demand'),
    ('create.sh', {'BUCKET': 'my-bucket'}, 'expected gs://bucket'),
    (
      'create.sh',
      {'ACCELERATOR': 'v6e-17'},
      "unknown ACCELERATOR 'v6e-17'. Did you mean v6e-1",
    ),
    (
      'create.sh',
      {'ACCELERATOR': 'tpu7x-16'},
      'tpu7x-16 is rented through GKE only: tpu/gke/jobset.sh',
    ),
    (
      'create.sh',
      {'SLICES': '2', 'PROVISION': 'direct'},
      'Several come from a queued resource: PROVISION=queued',
    ),
    ('submit.sh', {'BUCKET': ''}, 'BUCKET is not set'),
    (
      'run.sh',
      {'FLAGS_FILE': '/nowhere'},
      'For no flags: FLAGS_FILE=/dev/null',
    ),
    ('logs.sh', {}, 'no log matches gs://my-bucket/jobs/run1/*/logs/s0-w0-*'),
    ('gke/jobset.sh', {}, 'IMAGE is not set'),
    (
      'gke/jobset.sh',
      {'IMAGE': 'i', 'CAPACITY': 'reserved'},
      'needs its name: RESERVATION=',
    ),
    ('gke/xpk.sh', {'IMAGE': 'i'}, 'CLUSTER is not set'),
  ],
)
def test_wrong_setting_ends_with_2_and_says_what_to_type(
  cloud, script, settings, message
):
  words = _TRAIN if script in ('submit.sh', 'run.sh') else ()
  if script.startswith('gke/'):
    words = _TRAIN
  done = cloud.run(script, *words, **settings)
  assert done.returncode == 2
  assert message in done.stderr
  assert 'line ' not in done.stderr, 'an error of bash, not of ours'
  assert not any('create' in entry['argv'] for entry in cloud.entries())


@pytest.mark.parametrize(
  ('script', 'args', 'message'),
  [
    ('run.sh', (), 'no command. Example: tpu/run.sh python -m'),
    ('run.sh', ('--detatch', 'x'), 'unknown option --detatch'),
    ('run.sh', ('--stop', 'x'), '--stop takes no command, got: x'),
    ('submit.sh', ('--watch',), 'no command. Example: tpu/submit.sh'),
    ('submit.sh', ('--wacth', 'x'), 'unknown option --wacth'),
    ('logs.sh', ('--job=3',), 'unknown option --job=3'),
    ('wait.sh', ('now',), 'takes no arguments, got: now'),
    ('delete.sh', ('run1',), 'takes no arguments, got: run1'),
    ('supervise.sh', (), 'no command. Usage: tpu/supervise.sh'),
    ('gke/jobset.sh', ('--redner', 'x'), 'unknown option --redner'),
    ('gke/jobset.sh', (), 'no command. Example: tpu/gke/jobset.sh'),
    ('gke/xpk.sh', (), 'no command. Example: tpu/gke/xpk.sh'),
  ],
)
def test_wrong_argument_ends_with_2_and_calls_nothing(
  cloud, script, args, message
):
  done = cloud.run(script, *args)
  assert done.returncode == 2
  assert message in done.stderr
  assert cloud.entries() == []


@pytest.mark.parametrize('script', ['create.sh', 'submit.sh'])
@pytest.mark.parametrize('location', ['US-CENTRAL1', 'US'])
def test_bucket_of_another_region_is_refused_before_anything_is_made(
  cloud, script, location
):
  (cloud.root / 'location').write_text(location)
  done = cloud.run(script, *(_TRAIN if script == 'submit.sh' else ()))
  assert done.returncode == 2
  assert f'is in {location.lower()}, the TPUs are in us-east5' in done.stderr
  assert 'buckets create gs://NEW --location=us-east5' in done.stderr
  assert len(cloud.calls()) == 1


def test_bucket_of_another_region_can_be_accepted(cloud):
  (cloud.root / 'location').write_text('US')
  assert cloud.run('create.sh', BUCKET_REGION='any').returncode == 0
  assert not any('buckets' in argv for argv in cloud.calls())


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('SPOT=1', ':2: unknown setting SPOT. Known: PROJECT'),
    ('NAME = run2', ':2: expected KEY=value without blanks'),
    ('export NAME=run2', ':2: expected KEY=value without blanks'),
    ('NAME=$(touch x)', ':2: expected KEY=value without blanks'),
  ],
)
def test_wrong_line_of_the_settings_file_is_named(cloud, line, message):
  (cloud.root / 'settings').write_text(f'# settings\n{line}\n')
  done = cloud.run('delete.sh')
  assert done.returncode == 2
  assert message in done.stderr
  assert cloud.entries() == []


def test_environment_wins_over_the_settings_file(cloud):
  (cloud.root / 'settings').write_text(
    'NAME=other\nSLICES=2  # two of them\nCAPACITY=on-demand'
  )
  done = cloud.run('create.sh', DRY_RUN='1')
  assert 'create run1 ' in done.stdout
  assert '--node-count=2' in done.stdout
  assert '--spot' not in done.stdout


def test_example_settings_are_valid(cloud):
  example = str(_ROOT / 'tpu' / 'env.example')
  done = cloud.run('create.sh', DRY_RUN='1', TPU_ENV=example)
  assert done.returncode == 0, done.stderr


def test_every_setting_is_explained_in_the_example():
  library = (_ROOT / 'tpu' / 'lib.sh').read_text()
  names = library.split('SETTINGS=(')[1].split(')')[0].split()
  example = (_ROOT / 'tpu' / 'env.example').read_text()
  assert len(names) > 15
  missing = [n for n in names if f'\n{n}=' not in example.replace('#', '')]
  assert not missing
