"""Launch scripts: the commands they give, printed or run.

UPDATE_GOLDEN=1 rewrites tests/tpu/golden/, one file for each case.
"""

import os
import pathlib
import shlex

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_GOLDEN = pathlib.Path(__file__).parent / 'golden'

_TRAIN = (
  'python',
  '-m',
  'onerec_jax.main',
  'run',
  '--config=experiments/quickstart.py',
  '--workdir=gs://my-bucket/run1',
)
_MULTISLICE = {'ACCELERATOR': 'v5p-128', 'SLICES': '2', 'CAPACITY': 'reserved'}
_GKE = {'IMAGE': 'registry/onerec:v1', 'CLUSTER': 'cluster1'}

# name: script, arguments, settings
_CASES: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
  'create_spot': ('create.sh', (), {}),
  'create_v5e': ('create.sh', (), {'ACCELERATOR': 'v5e-256'}),
  'create_multislice_reserved': ('create.sh', (), _MULTISLICE),
  'create_direct': (
    'create.sh',
    ('--labels=team=rec',),
    {'PROVISION': 'direct', 'ACCELERATOR': 'v6e-1', 'CAPACITY': 'on-demand'},
  ),
  'create_with_everything': (
    'create.sh',
    (),
    {
      'NETWORK': 'net',
      'SUBNETWORK': 'sub',
      'SERVICE_ACCOUNT': 'a@b.c',
      'VALID_UNTIL': '12h',
      'RUNTIME_VERSION': 'my-image',
      'BUCKET': '',
    },
  ),
  'wait': ('wait.sh', (), {}),
  'wait_direct': ('wait.sh', (), {'PROVISION': 'direct'}),
  'setup': ('setup.sh', (), {'ACCELERATOR': 'v6e-8'}),
  'setup_multislice': ('setup.sh', (), _MULTISLICE),
  'run': ('run.sh', _TRAIN, {}),
  'run_detached_without_bucket': (
    'run.sh',
    ('--detach', *_TRAIN),
    {'BUCKET': '', 'FLAGS_FILE': '/dev/null'},
  ),
  'run_stop': ('run.sh', ('--stop',), {'FLAGS_FILE': '/dev/null'}),
  'submit': ('submit.sh', _TRAIN, {}),
  'submit_watch': ('submit.sh', ('--watch', *_TRAIN), _MULTISLICE),
  'logs': ('logs.sh', ('--worker=3',), {}),
  'status': ('status.sh', (), {}),
  'delete': ('delete.sh', (), {}),
  'delete_direct': ('delete.sh', (), {'PROVISION': 'direct'}),
  'gke_image': ('gke/image.sh', (), _GKE),
  'gke_jobset': ('gke/jobset.sh', _TRAIN, _GKE),
  'gke_jobset_delete': ('gke/jobset.sh', ('--delete',), _GKE),
  'gke_xpk': ('gke/xpk.sh', _TRAIN, _GKE | {'ACCELERATOR': 'v5e-16'}),
  'gke_xpk_tpu7x_reserved': (
    'gke/xpk.sh',
    _TRAIN,
    _GKE
    | {
      'ACCELERATOR': 'tpu7x-16',
      'CAPACITY': 'reserved',
      'RESERVATION': 'r1',
    },
  ),
  'gke_xpk_delete': ('gke/xpk.sh', ('--delete',), _GKE),
}


def _check_golden(name: str, text: str) -> None:
  golden = _GOLDEN / name
  if os.environ.get('UPDATE_GOLDEN'):
    golden.write_text(text)
  assert golden.exists(), f'run UPDATE_GOLDEN=1 pytest {__file__}'
  assert text == golden.read_text(), (
    f'{name} is now another; if that is meant, run UPDATE_GOLDEN=1 pytest'
    f' {__file__}'
  )


def _dry(cloud, script, args, settings) -> str:
  done = cloud.run(script, *args, DRY_RUN='1', **settings)
  assert done.returncode == 0, done.stderr
  assert cloud.entries() == [], 'a dry run called something'
  return done.stdout.replace(str(cloud.root), 'ROOT').replace(
    str(_ROOT), 'REPO'
  )


@pytest.mark.parametrize('name', _CASES)
def test_dry_run_prints_the_golden_commands(cloud, name):
  printed = _dry(cloud, *_CASES[name])
  _check_golden(f'{name}.txt', printed)


@pytest.mark.parametrize(
  'name',
  [n for n in _CASES if not n.startswith(('setup', 'logs'))],
)
def test_dry_run_prints_the_commands_that_are_run(cloud, name):
  script, args, settings = _CASES[name]
  printed = _dry(cloud, script, args, settings)
  expected = [
    words
    for line in printed.splitlines()
    # The scripts' own parts do not go through the fakes.
    if (words := shlex.split(line))[0] != 'bash'
  ]
  if name.endswith('direct'):
    cloud.play('READY')
    (cloud.root / 'resources').write_text('tpu-vm/run1')
  if name == 'submit_watch':
    # All 32 workers have ended before they are first asked for.
    for worker in range(32):
      path = cloud.bucket(f'jobs/run1/20260102-030405/status/{worker}')
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text('0\n')
  done = cloud.run(script, *args, **settings)
  assert done.returncode == 0, done.stderr
  called = [
    [
      word.replace(str(cloud.root), 'ROOT').replace(str(_ROOT), 'REPO')
      for word in argv
    ]
    for argv in cloud.calls()
  ]
  # Commands for several nodes start at the same time.
  assert sorted(called) == sorted(expected)


def test_no_golden_file_is_left_of_a_deleted_case():
  assert {p.stem for p in _GOLDEN.glob('*.txt')} == set(_CASES)


def test_without_its_fake_there_is_no_gcloud(cloud):
  (cloud.root / 'bin' / 'gcloud').unlink()
  done = cloud.run('create.sh')
  assert done.returncode != 0
  assert 'gcloud: command not found' in done.stderr
