"""Command line: `python -m onerec_jax.main COMMAND --config=F --workdir=W`.

COMMAND is a stage (prepare, embed, tokenize, pretrain, reward, align, evaluate,
report), `run` for all stages the experiment lists, `sweep` for all rows of its
table, `recommend`, or `validate-data`.
Dispatch, stage book-keeping and error messages; no recommender logic.
"""

import hashlib
import logging as python_logging
import os
import pathlib
import platform
import sys
import time
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment file, e.g. experiments/quickstart.py. Override a field with'
  ' --config.model.embed_dim=64. Without it, the workdir’s own config.json is'
  ' used.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run (local or gs://).'
)
_USERS = flags.DEFINE_list(
  'users', None, 'recommend: user ids as in the raw data, comma separated.'
)
_HISTORY = flags.DEFINE_list(
  'history', None, 'recommend: item ids of one new user, oldest first.'
)
_TOP_K = flags.DEFINE_integer('top_k', 10, 'recommend: items per user.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'recommend: also write .parquet, .csv or .jsonl here.'
)
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show the whole traceback of an error in the input.'
)

_COMMANDS = (
  *config_lib.STAGES,
  'run',
  'sweep',
  'recommend',
  'validate-data',
)


def _experiment(
  workdir: workdir_lib.Workdir | None,
) -> config_lib.Experiment:
  """Returns the experiment of --config, or the one stored in the workdir."""
  if _CONFIG.value is not None:
    return config_lib.from_config_dict(_CONFIG.value)
  if workdir is None:
    raise ValueError(
      'Nothing to run: pass --config=experiments/quickstart.py, or --workdir'
      ' with the folder of an earlier run.'
    )
  stored = workdir.config()
  if stored is None:
    raise FileNotFoundError(
      f'{workdir.root / workdir_lib.CONFIG} is missing. Pass'
      ' --config=experiments/quickstart.py (or another experiment file).'
    )
  return config_lib.from_config_dict(stored)


def _main(argv: list[str]) -> None:
  if len(argv) != 2 or argv[1] not in _COMMANDS:
    raise ValueError(
      f'Expected one command out of {", ".join(_COMMANDS)}; got'
      f' {" ".join(argv[1:]) or "none"}. Example: python -m onerec_jax.main run'
      ' --config=experiments/quickstart.py --workdir=runs/quickstart'
    )
  command = argv[1]
  workdir = workdir_lib.Workdir(_WORKDIR.value) if _WORKDIR.value else None
  experiment = _experiment(workdir)

  if command == 'validate-data':
    from onerec_jax.data import validation

    print(validation.describe(experiment.data))
    return
  if workdir is None:
    raise ValueError(f'{command} needs --workdir, e.g. runs/{experiment.name}')

  # Imported late: reading a recipe or an error must not wait for JAX.
  from onerec_jax.stages import runner

  _use_compile_cache()

  if command == 'recommend':
    from onerec_jax.stages import recommend

    recommend.run(
      experiment,
      workdir,
      users=_USERS.value,
      history=_HISTORY.value,
      top_k=_TOP_K.value,
      output=_OUTPUT.value,
    )
    return
  if command == 'sweep':
    from onerec_jax.stages import sweep

    sweep.run(experiment, workdir)
    return
  stages = experiment.stages if command == 'run' else (command,)
  start = time.perf_counter()
  runner.run_stages(experiment, workdir, stages, resume=command == 'run')
  logging.info(
    '%s finished in %.0f s. Everything is in %s',
    command,
    time.perf_counter() - start,
    workdir.root,
  )


def _use_compile_cache() -> None:
  """Keeps compiled programs between runs, unless JAX was told where itself.

  Every round of alignment, every restart and every row of a sweep compiles the
  same programs again.  Programs are bound to the processor they were made on,
  so its features name the folder.
  """
  import jax

  from onerec_jax.data import fetch

  if os.environ.get('JAX_COMPILATION_CACHE_DIR') is not None:
    return
  features = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    lines = cpuinfo.read_text().splitlines()
    features += next((line for line in lines if line.startswith('flags')), '')
  name = hashlib.sha256(features.encode()).hexdigest()[:8]
  folder = fetch.cache_folder() / f'compiled-{name}'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _raised_by_us(error: BaseException) -> bool:
  """Whether the innermost frame of `error` is this package's own code."""
  frames = traceback.extract_tb(error.__traceback__)
  package = pathlib.Path(__file__).parent
  return bool(frames) and pathlib.Path(frames[-1].filename).is_relative_to(
    package
  )


def main(argv: list[str]) -> None:
  """Runs the command; an input error prints its message and exits with 2."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().setFormatter(None)
  # JAX reports every backend that is not there.
  python_logging.getLogger('jax._src.xla_bridge').setLevel('WARNING')
  try:
    _main(argv)
  except (ValueError, FileNotFoundError) as error:
    if _TRACEBACK.value or not _raised_by_us(error):
      raise
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def entry_point() -> None:
  """Console script `onerec`."""
  app.run(main)


if __name__ == '__main__':
  entry_point()
