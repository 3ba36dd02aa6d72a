"""The commands and flags of main.

Dispatch, stage book-keeping and error messages; no recommender logic.
"""

import contextlib
import hashlib
import logging as python_logging
import os
import pathlib
import platform
import sys
import time
import traceback

from absl import flags
from absl import logging
from ml_collections import config_flags

from onerec_jax import config as config_lib
from onerec_jax import workdir as workdir_lib
from onerec_jax.aot import modes

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
_ITEMS = flags.DEFINE_string(
  'items',
  None,
  'recommend, export: file with the ids of the items that may be recommended,'
  ' one a line, e.g. what is in stock (default: all).',
)
_NEW_ITEMS = flags.DEFINE_string(
  'new_items',
  None,
  'add-items: table (.parquet, .csv, .tsv) with the columns item_id and title,'
  ' text or categories.',
)
_SHARE_IDS = flags.DEFINE_bool(
  'share_ids',
  True,
  'add-items: a new item takes the nearest ID that an item has, which the model'
  ' knows; --noshare_ids: one of its own, as tokenizer.collision has it.',
)
_TOP_K = flags.DEFINE_integer('top_k', 10, 'recommend, export: items per user.')
_AGAINST = flags.DEFINE_list(
  'against', None, 'compare: work directories of other runs, comma separated.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'recommend: also write .parquet, .csv or .jsonl here; export: the folder to'
  ' write; aot, compare: a .json.',
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'off'],
  'auto: one job with the other processes of a Cloud TPU pod or another cluster'
  ' that JAX knows, else alone; off: alone.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0, for processes that JAX cannot find by itself; with'
  ' --num_processes and --process_id.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Processes of the job; see --coordinator.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Of this process, from 0; see --coordinator.'
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps',
  None,
  'Training stages: FIRST:LAST, e.g. 10:15, to trace into their profile/ (read'
  ' it with python -m onerec_jax.train.profile FOLDER).',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'aot: TPU slice to compile for, e.g. v6e-16 or v5p-128.'
)
_SLICES = flags.DEFINE_integer('slices', 1, 'aot: equal slices of the job.')
_MODE = flags.DEFINE_enum(
  'mode',
  'train',
  modes.MODES,
  'aot: a step of pretrain, align or reinforce, or beam search.',
)
_NUM_ITEMS = flags.DEFINE_integer(
  'num_items', None, 'aot: items of the assumed catalogue (default: 1e6).'
)
_SERIALIZE = flags.DEFINE_string(
  'serialize', None, 'aot: file for the executable.'
)
_LIBTPU_FLAGS = flags.DEFINE_bool(
  'libtpu_flags', True, 'aot: compile with the flags of tpu/flags.'
)
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show the whole traceback of an error in the input.'
)

_COMMANDS = (
  *config_lib.STAGES,
  'run',
  'sweep',
  'compare',
  'recommend',
  'add-items',
  'export',
  'validate-data',
  'aot',
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
  if command == 'aot':
    _compile_ahead_of_time(experiment)
    return
  if workdir is None:
    raise ValueError(f'{command} needs --workdir, e.g. runs/{experiment.name}')

  if command == 'compare':
    from onerec_jax.stages import compare_runs

    compare_runs.run(workdir, _AGAINST.value or (), output=_OUTPUT.value)
    return

  # Imported late: reading a recipe or an error must not wait for JAX.
  from onerec_jax import distributed

  distributed.initialize(
    'off' if _DISTRIBUTED.value == 'off' else 'auto',
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
  )
  if not distributed.is_main():
    logging.set_verbosity(logging.WARNING)
  with distributed.job(workdir.root, explain=_explanation):
    _execute(command, experiment, workdir)


def _compile_ahead_of_time(experiment: config_lib.Experiment) -> None:
  """Exits with 2 if the program does not fit."""
  from onerec_jax import aot

  if _TOPOLOGY.value is None:
    raise ValueError(
      'aot needs --topology with the name of a TPU slice, e.g. v6e-16.'
    )
  status = aot.run(
    experiment,
    topology=_TOPOLOGY.value,
    slices=_SLICES.value,
    mode=_MODE.value,
    output=_OUTPUT.value,
    serialize=_SERIALIZE.value,
    num_items=_NUM_ITEMS.value or aot.NUM_ITEMS,
    flags=_LIBTPU_FLAGS.value,
  )
  if status:
    sys.exit(status)


def _execute(
  command: str,
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
) -> None:
  """Runs a command that needs JAX."""
  from onerec_jax import distributed

  _use_compile_cache(workdir)
  if _PROFILE_STEPS.value is not None:
    from onerec_jax.train import profile

    experiment = profile.with_steps(
      experiment, profile.parse_steps(_PROFILE_STEPS.value)
    )
  if command == 'recommend':
    from onerec_jax.stages import recommend

    recommend.run(
      experiment,
      workdir,
      users=_USERS.value,
      history=_HISTORY.value,
      top_k=_TOP_K.value,
      output=_OUTPUT.value,
      items=_ITEMS.value,
    )
    return
  if command == 'export':
    from onerec_jax.stages import export

    export.run(
      experiment,
      workdir,
      top_k=_TOP_K.value,
      output=_OUTPUT.value,
      items=_ITEMS.value,
    )
    return
  # Of several processes the first keeps the books.
  alone = workdir.exclusive if distributed.is_main() else contextlib.nullcontext
  with alone():
    _write(command, experiment, workdir)


def _write(
  command: str,
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
) -> None:
  """Runs a command that writes into the work directory."""
  if command == 'sweep':
    from onerec_jax.stages import sweep

    sweep.run(experiment, workdir)
    return

  if command == 'add-items':
    from onerec_jax.stages import added_items

    added_items.run(
      experiment,
      workdir,
      path=_NEW_ITEMS.value,
      share_ids=_SHARE_IDS.value,
    )
    return

  from onerec_jax.stages import runner

  stages: tuple[config_lib.Stage, ...] = experiment.stages
  if command != 'run':
    stages = tuple(s for s in config_lib.STAGES if s == command)
  start = time.perf_counter()
  runner.run_stages(experiment, workdir, stages, resume=command == 'run')
  logging.info(
    '%s finished in %.0f s. Everything is in %s',
    command,
    time.perf_counter() - start,
    workdir.root,
  )


def _use_compile_cache(workdir: workdir_lib.Workdir) -> None:
  """Keeps compiled programs between runs, unless JAX was told where itself.

  Every round of alignment, every restart and every row of a sweep compiles the
  same programs again.  Programs are bound to the processor they were made on,
  so its features name the folder.  Of several processes the first alone writes
  (JAX's rule), so theirs is in the work directory that all of them see.
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
  # A spot VM loses its disk, and with it all that was compiled.
  remote = jax.default_backend() == 'tpu' and '://' in os.fspath(workdir.root)
  if jax.process_count() > 1 or remote:
    folder = workdir.root / f'.compiled-{name}'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _raised_by_us(error: BaseException) -> bool:
  """Whether the innermost frame of `error` is this package's own code."""
  frames = traceback.extract_tb(error.__traceback__)
  package = pathlib.Path(__file__).parent
  return bool(frames) and pathlib.Path(frames[-1].filename).is_relative_to(
    package
  )


def _explanation(error: BaseException) -> str | None:
  """Returns one line for an error in the input; None: show the traceback."""
  expected = isinstance(error, ValueError | FileNotFoundError)
  if not expected or _TRACEBACK.value or not _raised_by_us(error):
    return None
  return f'error: {error}'


def main(argv: list[str]) -> None:
  """Runs the command; an input error prints its message and exits with 2."""
  logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().setFormatter(None)
  # JAX reports every backend that is not there.
  python_logging.getLogger('jax._src.xla_bridge').setLevel('WARNING')
  try:
    _main(argv)
  except (ValueError, FileNotFoundError) as error:
    explanation = _explanation(error)
    if explanation is None:
      raise
    print(explanation, file=sys.stderr)
    sys.exit(2)
