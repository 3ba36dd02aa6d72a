"""Ahead-of-time compilation for TPU slices that nobody has to own.

Says of a training step or of decoding whether it fits, and what the compiler
made of it, on any Linux machine.  Imports JAX only when asked to compile.
"""

from onerec_jax import config as config_lib
from onerec_jax.aot import environment

# Items of the assumed catalogue; tables and tries grow with it.
NUM_ITEMS = 1_000_000


def run(
  experiment: config_lib.Experiment,
  *,
  topology: str,
  slices: int = 1,
  mode: str = 'train',
  output: str | None = None,
  serialize: str | None = None,
  num_items: int = NUM_ITEMS,
  flags: bool = True,
) -> int:
  """Compiles one program for a topology, prints and perhaps writes the report.

  Call it before anything imports JAX, which reads its environment then.

  Args:
    experiment: all settings; no data are read.
    topology: user name of a slice, e.g. 'v6e-16' or 'v5p-128'.
    slices: equal slices joined by the data-centre network.
    mode: one of `modes.MODES`.
    output: file for the report as JSON; local or gs://.
    serialize: file for the executable; local or gs://.
    num_items: size of the assumed catalogue.
    flags: whether the libtpu flags of tpu/flags are used.

  Returns:
    Exit status: 0, it fits; 2, it does not.

  Raises:
    environment.LibtpuMissing: there is no libtpu.
    ValueError: a name or a flag is unknown, or settings contradict each other.
  """
  environment.prepare()
  # Imported late: after the environment is set.
  from onerec_jax.aot import compilation
  from onerec_jax.aot import report

  result = compilation.compile_for_tpu(
    experiment,
    topology_name=topology,
    num_slices=slices,
    mode=mode,
    num_items=num_items,
    use_flags=flags,
    serialize=serialize,
  )
  report.show(result)
  if output is not None:
    report.write(result, output)
  return report.exit_status(result)
