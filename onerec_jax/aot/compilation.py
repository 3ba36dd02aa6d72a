"""Compiles one program for a topology and gathers what is known of it.

Catches the compiler's out-of-memory error, which is a verdict; refuses flags
the compiler refuses, and says which.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import pickle
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from onerec_jax import accelerators
from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax.aot import findings
from onerec_jax.aot import flags as flags_lib
from onerec_jax.aot import programs
from onerec_jax.aot import topology

_OUT_OF_HBM = (
  'CompileTimeHbmOom',
  'Ran out of memory in memory space hbm',
  'Ran out of memory on HBM',
)
# 'Used 33G of 31G hbm' or '... (33G) exceeds available HBM (31G)'.
_USED = re.compile(
  r'([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])'
)
_UNIT = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Result:
  """What is known of a program; all figures are of one device and one call."""

  experiment: str
  mode: str
  topology: str
  slices: int
  device_kind: str
  num_devices: int
  mesh: dict[str, int]
  sizes: dict[str, int]
  num_parameters: int
  flags: dict[str, str] | None  # None: compiled without
  versions: dict[str, str]
  optimization_level: str  # of XLA; '' is its default, full optimisation
  fits: bool
  hbm_bytes: int
  # None where it does not fit, but for 'used', if the compiler said it.
  memory: dict[str, float] | None
  seconds: dict[str, float]
  model_flops: float  # all devices
  # model_flops at the peak: no program is faster.
  roofline_seconds: float
  findings: findings.Findings | None
  executable_bytes: int | None = None


def compile_for_tpu(
  experiment: config_lib.Experiment,
  *,
  topology_name: str,
  num_slices: int,
  mode: str,
  num_items: int,
  use_flags: bool,
  serialize: str | None,
) -> Result:
  """Compiles a program for slices described by libtpu; see `aot.run`."""
  described = topology.describe(topology_name, num_slices=num_slices)
  generation = described.slice.generation
  flags = flags_lib.read(generation.name) if use_flags else None
  mesh_config = dataclasses.replace(experiment.mesh, slices=num_slices)
  mesh = meshes.make_mesh(mesh_config, described.devices)
  result, compiled = compile_on_mesh(
    experiment,
    mesh,
    generation=generation,
    mode=mode,
    num_items=num_items,
    flags=flags,
  )
  result = dataclasses.replace(
    result, topology=topology_name, slices=num_slices
  )
  if serialize is not None and compiled is not None:
    size = write_executable(compiled, serialize)
    result = dataclasses.replace(result, executable_bytes=size)
  return result


def compile_on_mesh(
  experiment: config_lib.Experiment,
  mesh: Mesh,
  *,
  generation: accelerators.Generation,
  mode: str,
  num_items: int,
  flags: dict[str, str] | None,
) -> tuple[Result, Any]:
  """Returns the result and the compiled program, None where it does not fit.

  Args:
    experiment: all settings.
    mesh: devices of a topology, or real ones.
    generation: whose peak and memory are compared to.
    mode: one of `modes.MODES`.
    num_items: size of the assumed catalogue.
    flags: compiler options; None: none.

  Raises:
    ValueError: the compiler refuses a flag.
  """
  start = time.perf_counter()
  program = programs.build(experiment, mesh, mode=mode, num_items=num_items)
  lowered = program.function.lower(*program.arguments)
  seconds = {'lower': time.perf_counter() - start}
  logging.info(
    'lowered in %.0f s; compiling takes minutes for a large model',
    seconds['lower'],
  )
  start = time.perf_counter()
  compiled = memory = found = None
  try:
    with _without_cache():
      compiled = lowered.compile(
        compiler_options=dict(flags) if flags else None
      )
  except jax.errors.JaxRuntimeError as error:
    memory = oom_memory(str(error))
    if memory is None:
      refused = flags_lib.explain(str(error), flags or {}, generation.name)
      if refused is None:
        raise
      raise ValueError(refused) from error
  seconds['compile'] = time.perf_counter() - start
  if compiled is not None:
    memory = _memory(compiled)
    found = findings.examine(compiled.as_text(), _facts(experiment, program))
  peak = generation.peak_bf16_flops * mesh.size
  return (
    Result(
      experiment=experiment.name,
      mode=mode,
      topology='',
      slices=1,
      device_kind=mesh.devices.flat[0].device_kind,
      num_devices=mesh.size,
      mesh={name: int(size) for name, size in mesh.shape.items()},
      sizes=dict(program.sizes),
      num_parameters=program.num_parameters,
      flags=flags,
      versions=_versions(),
      optimization_level=os.environ.get('JAX_OPTIMIZATION_LEVEL', ''),
      fits=compiled is not None,
      hbm_bytes=generation.hbm_bytes,
      memory=memory,
      seconds=seconds,
      model_flops=program.model_flops,
      roofline_seconds=program.model_flops / peak,
      findings=found,
    ),
    compiled,
  )


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """Compiles afresh, as what is timed and written must be.

  On CPUs, what was read from the cache of compiled programs cannot be written:
  when it is read back, functions are missing (jax 0.10.2).
  """
  name = 'jax_enable_compilation_cache'
  before = bool(getattr(jax.config, name))
  jax.config.update(name, False)
  compilation_cache.reset_cache()  # whether it is used is decided once
  try:
    yield
  finally:
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def oom_memory(message: str) -> dict[str, float] | None:
  """Returns what the compiler says it would need; None: another error.

  Args:
    message: of the compiler's error.
  """
  if not any(sign in message for sign in _OUT_OF_HBM):
    return None
  found = _USED.search(message)
  if found is None:
    return {}
  used, unit, of, of_unit = found.groups()
  return {
    'used': float(used) * _UNIT[unit],
    'usable': float(of) * _UNIT[of_unit],
  }


def write_executable(compiled: Any, path: str) -> int:
  """Writes the executable with the trees of its arguments; returns its bytes.

  To load it on such a slice, with the same jax and libtpu:

    serialize_executable.deserialize_and_load(*pickle.loads(file_bytes))

  Args:
    compiled: from `compile_on_mesh`.
    path: local or gs://.
  """
  data = pickle.dumps(serialize_executable.serialize(compiled))
  file = epath.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(data)
  return len(data)


def _memory(compiled: Any) -> dict[str, float]:
  """Returns bytes by kind; 'used' is the most that is live at any time."""
  analysis = compiled.memory_analysis()
  return {
    'used': analysis.peak_memory_in_bytes,
    'arguments': analysis.argument_size_in_bytes,
    'outputs': analysis.output_size_in_bytes,
    'donated': analysis.alias_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'code': analysis.generated_code_size_in_bytes,
  }


def _facts(
  experiment: config_lib.Experiment, program: programs.Program
) -> findings.Facts:
  model = experiment.model
  return findings.Facts(
    encoder_tokens=program.sizes['encoder_tokens'],
    channels=(
      model.embed_dim, model.mlp_dim, model.head_dim,
      model.num_heads * model.head_dim,
    ),
    embed_dim=model.embed_dim,
    num_heads=model.num_heads,
    head_dim=model.head_dim,
    expert_dim=model.moe.expert_dim if model.moe.enabled else 0,
    beams=program.sizes.get('beams', 0),
  )  # fmt: skip


def _versions() -> dict[str, str]:
  result = {}
  for name in ('jax', 'jaxlib', 'libtpu'):
    try:
      result[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return result
