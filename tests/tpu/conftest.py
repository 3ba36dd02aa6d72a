"""A cloud that is not there: the launch scripts meet fake commands only.

PATH holds the fakes and the few tools that the scripts use, so that a real
gcloud on the machine cannot be found, and CLOUDSDK_CONFIG is an empty folder.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parent.parent.parent
_FAKES = ('gcloud', 'kubectl', 'xpk', 'docker', 'ssh', 'scp', 'gsutil')
_TOOLS = (
  *(
    'awk',
    'bash',
    'cat',
    'cp',
    'curl',
    'cut',
    'date',
    'dirname',
    'env',
    'git',
    'grep',
  ),
  *('gzip', 'head', 'hostname', 'kill', 'mkdir', 'mktemp', 'rm', 'sed'),
  *('setsid', 'sha256sum', 'sleep', 'sort', 'tail', 'tar', 'tee', 'wc', 'seq'),
)
SETTINGS = {
  'PROJECT': 'my-project',
  'ZONE': 'us-east5-b',
  'NAME': 'run1',
  'ACCELERATOR': 'v6e-16',
  'BUCKET': 'gs://my-bucket',
  'POLL_SECONDS': '0',
}


# Adds 0, 1, 2, ... as a training loop would: saves after SIGTERM, goes on from
# what was saved.  At step 5 of its first run it says so and waits for SIGTERM.
_PROGRAM = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
saved = folder / 'saved.json'
step, total = json.loads(saved.read_text()) if saved.exists() else (0, 0)
first, stop = step == 0, []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
while step < 10:
  total, step = total + step, step + 1
  if step == 5 and first and len(sys.argv) == 2:
    (folder / 'ready').write_text(str(os.getpid()))
    while not stop:
      time.sleep(0.01)
  if stop:
    saved.write_text(json.dumps([step, total]))
    print('saved at step', step)
    sys.exit(42)
(folder / 'total').write_text(str(total))
print('total', total)
"""


@dataclasses.dataclass
class Cloud:
  """Fake commands and what they were called with.

  Attributes:
    root: states, resources, location (of the bucket), log; folders bucket/ and
      workers/NODE.N, the homes.
    environment: of the scripts, all of it.
  """

  root: pathlib.Path
  environment: dict[str, str]

  def run(
    self, script: str, *args: str, **settings: str
  ) -> subprocess.CompletedProcess[str]:
    """Runs tpu/SCRIPT with SETTINGS, changed by `settings`."""
    return subprocess.run(
      ['bash', str(_ROOT / 'tpu' / script), *args],
      env={**self.environment, **SETTINGS, **settings},
      cwd=self.root,
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def calls(self) -> list[list[str]]:
    """Logged argv; fails where there is none, as then the fakes are not met."""
    entries = self.entries()
    assert entries, 'no fake command was called'
    return [entry['argv'] for entry in entries]

  def entries(self) -> list[dict]:
    """Lines of the log: argv, and stdin where it was read."""
    log = self.root / 'log'
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]

  def play(self, *states: str) -> None:
    """States that `describe` gives, one a call; the last again and again."""
    (self.root / 'states').write_text('\n'.join(states))

  def add_workers(self, node: str, number: int, *, slice_id: int = 0) -> None:
    """Makes the homes and the metadata of a node's workers."""
    for worker in range(number):
      metadata = self.root / 'workers' / f'{node}.{worker}' / 'metadata'
      metadata.mkdir(parents=True)
      (metadata / 'agent-worker-number').write_text(str(worker))
      (metadata / 'tpu-env').write_text(
        f"WORKER_ID: '{worker}'\nMEGASCALE_SLICE_ID: '{slice_id}'\n"
      )

  def install(self, home: pathlib.Path) -> None:
    """Makes a virtual environment that counts as installed."""
    programs = home / 'onerec_jax' / 'venv' / 'bin'
    programs.mkdir(parents=True)
    python = programs / 'python'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    requirements = b''.join(
      path.read_bytes()
      for path in (_ROOT / 'requirements.txt', _ROOT / 'tpu/requirements.txt')
    )
    done = subprocess.run(
      ['sha256sum'], input=requirements, capture_output=True, check=True
    )
    (programs.parent / 'installed').write_bytes(done.stdout)

  def wait_for(self, path: pathlib.Path) -> str:
    """Content of a file that another process is about to write."""
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
      assert time.monotonic() < deadline, f'{path} was never written'
      time.sleep(0.01)
    return path.read_text()

  def bucket(self, path: str) -> pathlib.Path:
    """The folder that stands for gs://my-bucket/path."""
    return self.root / 'bucket' / 'my-bucket' / path


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Cloud:
  """Fresh fakes: one active queued resource, an empty bucket, no workers."""
  tools = tmp_path / 'bin'
  tools.mkdir()
  for name in _TOOLS:
    found = shutil.which(name)
    assert found, f'{name} is missing on this machine; install it'
    (tools / name).symlink_to(found)
  fake = pathlib.Path(__file__).with_name('fake_cloud.py')
  (tools / 'python3').write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
  for name in _FAKES:
    (tools / name).write_text(
      f'#!/bin/sh\nexec {sys.executable} -S -E {fake} {name} "$@"\n'
    )
  for path in tools.iterdir():
    if not path.is_symlink():
      path.chmod(0o755)
  for folder in ('bucket', 'workers', 'tmp', 'home', 'gcloud-config'):
    (tmp_path / folder).mkdir()
  (tmp_path / 'states').write_text('ACTIVE')
  (tmp_path / 'location').write_text('US-EAST5')
  (tmp_path / 'resources').write_text('queued-resources/run1')
  (tmp_path / 'settings').write_text('')
  (tmp_path / 'flags').write_text(
    'LIBTPU_INIT_ARGS+=" --a=1"  # first\nLIBTPU_INIT_ARGS+=" --b=2"  # next\n'
  )
  return Cloud(
    root=tmp_path,
    environment={
      'PATH': str(tools),
      'FAKE': str(tmp_path),
      'HOME': str(tmp_path / 'home'),
      'TMPDIR': str(tmp_path / 'tmp'),
      'CLOUDSDK_CONFIG': str(tmp_path / 'gcloud-config'),
      'SUBMISSION': '20260102-030405',
      # Not the developer's own tpu/env.
      'TPU_ENV': str(tmp_path / 'settings'),
      # The shipped flags may change without changing what is tested here.
      'FLAGS_FILE': str(tmp_path / 'flags'),
      'LANG': os.environ.get('LANG', 'C.UTF-8'),
    },
  )


@pytest.fixture
def home(cloud) -> pathlib.Path:
  """Home of the only worker of run1, with a program at home/program.py."""
  cloud.add_workers('run1', 1)
  home = cloud.root / 'workers' / 'run1.0'
  cloud.install(home)
  (home / 'program.py').write_text(_PROGRAM)
  return home
