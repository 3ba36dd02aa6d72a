"""Test set-up: eight CPU devices, no silent rank promotion, quick compiles.

And what tests of several folders share: the smallest model and experiment,
modules beside the tests, records of a training without its times.
"""

import dataclasses
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from typing import Any

# Must be set before the first JAX array exists.
_CACHE = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'jax'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Compiling is most of the time of the tests.  Slower code takes a third of it;
# the pipeline of v1 compiles as for a user (tests/pipelines).
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if importlib.metadata.version('jax').startswith('0.10.'):
  # Later ones end the process: they do not know the first.  With the second
  # all devices meet in their collectives in one order; else some wait for each
  # other for ever where there are fewer cores than devices.
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_cpu_use_fusion_emitters=false'
    ' --xla_cpu_enable_concurrency_optimized_scheduler=false',
  )
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

from onerec_jax import config as config_lib  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

_DEFAULT_DATA = pathlib.Path(__file__).parent.parent.parent / 'shared' / 'data'


# What takes longest starts first, or one process would be left with it at the
# end while the other has nothing to do.
_FIRST = (
  'pipelines/test_pipeline_tr.py',
  'pipelines/test_pipeline_v1.py',
  'multihost/test_two_processes.py',
  'train/test_resume.py',
)
_HERE = pathlib.Path(__file__).parent
assert all((_HERE / name).exists() for name in _FIRST), _FIRST


def pytest_configure(config: pytest.Config) -> None:
  # xdist would begin with the files of most tests; the longest have one.
  if hasattr(config.option, 'loadscopereorder'):
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  def place(item: pytest.Item) -> int:
    name = item.path.relative_to(_HERE).as_posix()
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)

  items.sort(key=place)


def pytest_collection_finish() -> None:
  # What was imported is never freed: a full collection need not look at it, and
  # with what JAX keeps of every program it is a tenth of the time of the tests.
  gc.freeze()
  gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope='session')
def real_data_root() -> pathlib.Path:
  """Folder of the real data sets; the test is skipped where it is absent."""
  root = pathlib.Path(os.environ.get('ONEREC_DATA', _DEFAULT_DATA))
  if not root.is_dir():
    pytest.skip(
      f'no real data: ONEREC_DATA={root} is not a folder; set ONEREC_DATA to'
      ' the folder that holds amazon2014/ and kuairand_pure/'
    )
  return root


@pytest.fixture(scope='session')
def load_module():
  """Function (path) -> its module, as test folders are no packages."""

  def load(path: pathlib.Path):
    name = f'{path.parent.name}_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module

  return load


# Ends of the names of figures that are of the clock.
_TIMES = (
  'per_second', 'data_wait_share', 'compile_seconds', 'goodput',
  'wall_seconds', 'mfu',
)  # fmt: skip


@pytest.fixture(scope='session')
def without_times():
  """Function (records of metrics.jsonl) -> them without what a clock says."""

  def remove(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
      {k: v for k, v in record.items() if not k.endswith(_TIMES)}
      for record in records
    ]

  return remove


def _tiny_model(**fields: Any) -> config_lib.ModelConfig:
  sizes: dict[str, Any] = dict(
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    encoder_layers=1,
    decoder_layers=1,
    mlp_dim=8,
    moe=config_lib.MoEConfig(enabled=False),  # halves the compilation
  )
  return config_lib.ModelConfig(**(sizes | fields))


@pytest.fixture(scope='session')
def tiny_model():
  """Function (**fields) -> the smallest ModelConfig, with these fields."""
  return _tiny_model


def _tiny_experiment(**sections: Any) -> config_lib.Experiment:
  experiment = config_lib.Experiment(
    name='tiny',
    data=config_lib.DataConfig(
      source='synthetic',
      synthetic=config_lib.SyntheticConfig(
        num_users=20, num_items=30, num_clusters=3, events_per_user=9
      ),
      sessions=config_lib.SessionsConfig(items_per_session=2),
      history_length=6,
    ),
    embed=config_lib.EmbedConfig(
      (config_lib.EmbedPart(kind='categories', dim=4),)
    ),
    tokenizer=config_lib.TokenizerConfig(
      levels=2,
      codes_per_level=6,
      collision='reassign',
      limits=config_lib.TokenizerLimits(0.1, None, 1.0),
    ),
    model=_tiny_model(),
    sequential=config_lib.SequentialConfig(
      embed_dim=8, num_layers=1, mlp_dim=8
    ),
    pretrain=config_lib.TrainConfig(
      batch_size=8,
      num_steps=2,
      log_every_steps=2,
      evaluate_every_steps=0,
      checkpoint_every_steps=2,
    ),
    evaluate=config_lib.EvaluateConfig(batch_size=8, bootstrap_samples=20),
  )
  return dataclasses.replace(experiment, **sections)


@pytest.fixture(scope='session')
def tiny_experiment():
  """Function (**sections) -> the smallest Experiment, with these sections."""
  return _tiny_experiment
