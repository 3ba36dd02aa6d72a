"""Cloud Storage in this process's memory, reached as gs:// without a network.

etils reads and writes gs:// through the fsspec file system 'gcs', TensorStore
through HTTP requests: both find the same objects here.  As in the real one,
folders exist only as prefixes of objects, and nothing can be appended to.
"""

import contextlib
import http.server
import io
import json
import os
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from typing import Any

import fsspec

_OBJECTS: dict[str, tuple[bytes, int]] = {}  # 'bucket/name': bytes, generation
_LOCK = threading.RLock()
_generation = 0


def objects() -> dict[str, bytes]:
  """Returns what is stored, by 'bucket/name'."""
  with _LOCK:
    return {name: value for name, (value, _) in _OBJECTS.items()}


def _put(name: str, value: bytes) -> int:
  global _generation
  with _LOCK:
    _generation += 1
    _OBJECTS[name] = (value, _generation)
    return _generation


# --- As etils sees it ---------------------------------------------------------


class _Upload(io.BytesIO):
  """Becomes an object when it is closed, and only if nothing failed."""

  def __init__(self, name: str):
    super().__init__()
    self._name = name

  def seek(self, *_: Any) -> int:
    raise OSError('An upload cannot go back.')

  def seekable(self) -> bool:
    return False

  def __exit__(self, kind: Any, *error: Any) -> None:
    if kind is not None:
      super().close()
      return
    self.close()

  def close(self) -> None:
    if not self.closed:
      _put(self._name, self.getvalue())
    super().close()


class FakeBucket(fsspec.AbstractFileSystem):
  """A flat object store."""

  protocol = ('gcs', 'gs')

  def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
    path = self._strip_protocol(path).rstrip('/')
    found: dict[str, dict[str, Any]] = {}
    stored = objects()
    if path in stored:
      found[path] = self._entry(path, len(stored[path]))
    for name, value in stored.items():
      if name.startswith(path + '/'):
        rest = name[len(path) + 1 :]
        child = f'{path}/{rest.split("/")[0]}'
        found[child] = (
          self._entry(child, None)
          if '/' in rest
          else self._entry(child, len(value))
        )
    if not found:
      raise FileNotFoundError(path)
    return list(found.values()) if detail else sorted(found)

  def _entry(self, name: str, size: int | None) -> dict[str, Any]:
    return {
      'name': name,
      'size': size or 0,
      'type': 'directory' if size is None else 'file',
    }

  def info(self, path: str, **_: Any) -> dict[str, Any]:
    path = self._strip_protocol(path).rstrip('/')
    stored = objects()
    if path in stored:
      return self._entry(path, len(stored[path]))
    if any(name.startswith(path + '/') for name in stored):
      return self._entry(path, None)
    raise FileNotFoundError(path)

  def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
    """Does nothing: a folder without objects does not exist."""

  def makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Does nothing."""

  def rmdir(self, path: str) -> None:
    """Does nothing."""

  def rm_file(self, path: str) -> None:
    with _LOCK:
      if self._strip_protocol(path) not in _OBJECTS:
        raise FileNotFoundError(path)
      del _OBJECTS[self._strip_protocol(path)]

  _rm = rm_file

  def rm(
    self, path: str, recursive: bool = False, maxdepth: int | None = None
  ) -> None:
    path = self._strip_protocol(path).rstrip('/')
    if not recursive:
      self.rm_file(path)
      return
    with _LOCK:
      inside = [n for n in _OBJECTS if n == path or n.startswith(path + '/')]
      if not inside:
        raise FileNotFoundError(path)
      for name in inside:
        del _OBJECTS[name]

  def cp_file(self, path1: str, path2: str, **_: Any) -> None:
    path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
    stored = objects()
    if path1 in stored:  # folders are no objects
      _put(path2, stored[path1])

  def _open(self, path: str, mode: str = 'rb', **_: Any) -> Any:
    path = self._strip_protocol(path)
    if mode == 'rb':
      stored = objects()
      if path not in stored:
        raise FileNotFoundError(path)
      return io.BytesIO(stored[path])
    if mode == 'wb':
      return _Upload(path)
    raise ValueError(f'Cloud Storage has no mode {mode!r}')


# --- As TensorStore sees it ---------------------------------------------------


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_: Any) -> None:
    pass

  def _answer(self, status: int, body: bytes = b'', **headers: str) -> None:
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('content-length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _json(self, value: Any) -> None:
    self._answer(
      200, json.dumps(value).encode(), content_type='application/json'
    )

  def _parts(self) -> tuple[str, str, dict[str, str]]:
    """Returns bucket, object name ('' in listings) and query."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    rest = url.path.split('/b/', 1)[1]
    bucket, _, name = rest.partition('/o')
    return bucket, urllib.parse.unquote(name.removeprefix('/')), query

  def _metadata(self, bucket: str, name: str) -> dict[str, str]:
    value, generation = _OBJECTS[f'{bucket}/{name}']
    return {
      'name': name,
      'bucket': bucket,
      'size': str(len(value)),
      'generation': str(generation),
      'metageneration': '1',
      'timeCreated': '2026-01-01T00:00:00Z',
      'updated': '2026-01-01T00:00:00Z',
    }

  def do_GET(self) -> None:
    bucket, name, query = self._parts()
    with _LOCK:
      if not name:
        first, last = query.get('startOffset', ''), query.get('endOffset')
        prefix = bucket + '/' + query.get('prefix', '')
        names = sorted(
          n.removeprefix(bucket + '/') for n in _OBJECTS if n.startswith(prefix)
        )
        self._json(
          {
            'items': [
              self._metadata(bucket, n)
              for n in names
              if n >= first and (last is None or n < last)
            ]
          }
        )
        return
      found = _OBJECTS.get(f'{bucket}/{name}')
    if found is None:
      self._answer(404)
      return
    value, generation = found
    if query.get('ifGenerationNotMatch') == str(generation):
      self._answer(304)
      return
    if query.get('ifGenerationMatch', str(generation)) != str(generation):
      self._answer(412)
      return
    headers = {'x_goog_generation': str(generation)}
    wanted = self.headers.get('range')
    if wanted is None:
      self._answer(200, value, **headers)
      return
    first, _, last = wanted.removeprefix('bytes=').partition('-')
    start = int(first) if first else max(len(value) - int(last), 0)
    end = len(value) if not first or not last else int(last) + 1
    part = value[start:end]
    span = f'bytes {start}-{start + len(part) - 1}/{len(value)}'
    self._answer(206, part, content_range=span, **headers)

  def do_POST(self) -> None:
    bucket, _, query = self._parts()
    value = self.rfile.read(int(self.headers['content-length']))
    name = query['name']
    with _LOCK:
      _, now = _OBJECTS.get(f'{bucket}/{name}', (b'', 0))
      if query.get('ifGenerationMatch', str(now)) != str(now):
        self._answer(412)
        return
      _put(f'{bucket}/{name}', value)
      self._json(self._metadata(bucket, name))

  def do_DELETE(self) -> None:
    bucket, name, query = self._parts()
    with _LOCK:
      _, now = _OBJECTS.get(f'{bucket}/{name}', (b'', 0))
      if query.get('ifGenerationMatch', str(now)) != str(now):
        self._answer(412)
        return
      gone = _OBJECTS.pop(f'{bucket}/{name}', None)
    self._answer(204 if gone else 404)


class _Client:
  """What Orbax asks of google.cloud.storage: is this bucket a flat one?"""

  def get_bucket(self, name: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(hierarchical_namespace_enabled=False)


def _modules() -> dict[str, types.ModuleType]:
  cloud = types.ModuleType('google.cloud')
  storage = types.ModuleType('google.cloud.storage')
  vars(storage)['Client'] = _Client
  vars(cloud)['storage'] = storage
  return {'google.cloud': cloud, 'google.cloud.storage': storage}


@contextlib.contextmanager
def mounted() -> Iterator[str]:
  """Makes gs:// work; yields the address of an empty bucket."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  changed = {
    'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{server.server_port}',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'nobody',
    'EPATH_USE_TF': 'false',
  }
  before = {name: os.environ.get(name) for name in changed}
  os.environ.update(changed)
  modules = _modules()
  hidden = {name: sys.modules.get(name) for name in modules}
  sys.modules.update(modules)
  for protocol in FakeBucket.protocol:
    fsspec.register_implementation(protocol, FakeBucket, clobber=True)
  with _LOCK:
    _OBJECTS.clear()
  try:
    yield 'gs://bucket'
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
    for name, module in hidden.items():
      if module is None:
        del sys.modules[name]
      else:
        sys.modules[name] = module
    server.shutdown()
    server.server_close()
    thread.join()
