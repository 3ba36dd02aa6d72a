"""Stands for gcloud, kubectl, xpk, docker, ssh and curl's metadata server.

Run by wrappers that conftest.py puts first on PATH.  Logs each argv as a line
of JSON; buckets and workers are folders below $FAKE; queued resources play the
states of $FAKE/states, one a call, the last for ever.  Standard library only.
"""

import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys

_FAKE = pathlib.Path(os.environ['FAKE'])


def _local(path: str) -> str:
  """The folder that stands for a gs:// path."""
  return path.replace('gs://', f'{_FAKE}/bucket/', 1)


def _fail(message: str, status: int = 1) -> int:
  print(f'ERROR: (fake) {message}', file=sys.stderr)
  return status


def _next_state() -> int:
  path = _FAKE / 'states'
  states = path.read_text().split()
  if len(states) > 1:
    path.write_text('\n'.join(states[1:]))
  if states[0] in ('NOT_FOUND', 'UNREACHABLE'):
    return _fail(f'{states[0]}: no answer about the resource')
  print(states[0])
  return 0


def _storage(verb: str, args: list[str]) -> int:
  options = [a for a in args if a.startswith('--')]
  paths = [a for a in args if not a.startswith('--')]
  if verb == 'buckets':
    print((_FAKE / 'location').read_text())
    return 0
  if verb == 'cp':
    *sources, target = map(_local, paths)
    pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
    if target.endswith('/'):
      pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    for source in sources:
      if source == '-':
        pathlib.Path(target).write_text(sys.stdin.read())
      else:
        shutil.copy(source, target)
    return 0
  found = sorted(path for p in paths for path in glob.glob(_local(p)))
  if not found:
    return _fail(f'{paths} matched no objects')
  for path in found:
    if verb == 'ls':
      print(path.replace(f'{_FAKE}/bucket/', 'gs://', 1))
    else:
      start = next((o for o in options if o.startswith('--range=')), '=0-')
      offset = int(start.split('=')[1].rstrip('-'))
      sys.stdout.write(pathlib.Path(path).read_text()[offset:])
  return 0


def _workers(node: str) -> list[pathlib.Path]:
  return sorted((_FAKE / 'workers').glob(f'{node}.*'))


def _ssh(args: list[str]) -> int:
  """Runs --command on all workers of the node, as gcloud does."""
  command = next(a for a in args if a.startswith('--command=')).split('=', 1)[1]
  started = [
    subprocess.Popen(
      ['bash', '-c', command],
      cwd=home,
      env={
        **{k: v for k, v in os.environ.items() if k in ('PATH', 'FAKE')},
        'HOME': str(home),
        'METADATA_URL': f'file://{home}/metadata',
        'RESTART_SECONDS': '0',
      },
    )
    for home in _workers(args[0])
  ]
  statuses = [process.wait() for process in started]
  # The real one gives the first failure, not the largest.
  return next((s for s in statuses if s), 0)


def _scp(args: list[str]) -> int:
  source, target = args[0], args[1]
  node, name = target.split(':')
  for home in _workers(node):
    shutil.copy(source, home / name)
  return 0


def _delete(name: str) -> int:
  path = _FAKE / 'resources'
  there = path.read_text().split()
  if name not in there:
    return _fail(f'NOT_FOUND: Resource {name} was not found')
  path.write_text('\n'.join(n for n in there if n != name))
  print(f'Deleted {name}.')
  return 0


def _create(name: str, args: list[str]) -> int:
  """With $FAKE/ends (CREATION [STATUS...]) the job ends at that creation."""
  path = _FAKE / 'resources'
  path.write_text(f'{path.read_text()}\n{name}')
  ends = _FAKE / 'ends'
  if ends.exists():
    creation, *statuses = ends.read_text().split()
    ends.write_text(' '.join([str(int(creation) - 1), *statuses]))
    if int(creation) == 1:
      job = next(a for a in args if a.startswith('--metadata=')).split('=')[2]
      folder = pathlib.Path(_local(job)) / 'status'
      folder.mkdir()
      for worker, status in enumerate(statuses):
        (folder / f's0-w{worker}').write_text(f'{status}\n')
  return 0


def _gcloud(args: list[str]) -> int:
  if args[0] == 'storage':
    return _storage(args[1], args[2:])
  kind, verb, rest = args[2], args[3], args[4:]
  if verb == 'describe' and '--format=yaml(state)' in rest:
    print('state: all about it', file=sys.stderr)
    return 0
  if verb == 'describe':
    return _next_state()
  if verb == 'delete':
    return _delete(f'{kind}/{rest[0]}')
  if verb == 'create':
    return _create(f'{kind}/{rest[0]}', rest)
  if verb == 'ssh':
    return _ssh(rest)
  if verb == 'scp':
    return _scp(rest)
  return 0


def main() -> int:
  tool, args = sys.argv[1], sys.argv[2:]
  stdin = sys.stdin.read() if args[-2:] == ['-f', '-'] else None
  entry = {'argv': [tool, *args]} | ({'stdin': stdin} if stdin else {})
  with (_FAKE / 'log').open('a') as log:
    log.write(json.dumps(entry) + '\n')
  return _gcloud(args) if tool == 'gcloud' else 0


if __name__ == '__main__':
  sys.exit(main())
