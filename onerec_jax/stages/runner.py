"""Runs stages in order, skips finished ones and never mixes configurations.

Knows what each stage depends on; a stage is skipped when its result.json
carries the digest of exactly those settings.  Of several processes the first
decides and keeps the books, and alone runs stages that train nothing.
"""

import dataclasses
import datetime
import functools
import gc
import resource
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from absl import logging

from onerec_jax import config as config_lib
from onerec_jax import distributed
from onerec_jax import workdir as workdir_lib
from onerec_jax.train import contract
from onerec_jax.train import goodput
from onerec_jax.train import profile

# (experiment, workdir) -> what its result.json shall say.  Where it continued
# what killed processes had begun, 'earlier_seconds' is the time they took.
StageFunction = Callable[
  [config_lib.Experiment, workdir_lib.Workdir], dict[str, Any]
]


@dataclasses.dataclass(frozen=True)
class StageSpec:
  """What the outcome of a stage depends on, and where it runs."""

  settings: Callable[[config_lib.Experiment], tuple[Any, ...]]
  # Stages whose outcome it reads, as far as the experiment has them.
  after: tuple[config_lib.Stage, ...]
  # Costly results are never overwritten by another configuration.
  protected: bool = False
  # Whether it is work for the devices of all processes; else process 0 does it
  # on its own ones while the others wait.
  on_all: Callable[[config_lib.Experiment], bool] = lambda e: True


# The mesh is in no stage's settings: it changes speed, not results.
SPECS: dict[config_lib.Stage, StageSpec] = {
  'prepare': StageSpec(lambda e: (e.seed, e.data), (), on_all=lambda e: False),
  'embed': StageSpec(
    lambda e: (e.seed, e.embed),
    ('prepare',),
    on_all=lambda e: e.embed.alignment.enabled,
  ),
  'tokenize': StageSpec(
    lambda e: (e.seed, e.tokenizer),
    ('embed',),
  ),
  'lifelong': StageSpec(
    lambda e: (e.seed, e.lifelong, e.model.pathways),
    ('embed',),
    on_all=lambda e: False,
  ),
  'pretrain': StageSpec(
    lambda e: (
      e.seed,
      e.architecture,
      e.model if e.architecture == 'onerec' else e.sequential,
      e.pretrain,
    ),
    ('tokenize', 'lifelong'),
    protected=True,
  ),
  'reward': StageSpec(
    lambda e: (e.seed, e.reward_model, e.reward),
    ('tokenize',),
    protected=True,
  ),
  'align': StageSpec(
    lambda e: (e.seed, e.preference, e.align),
    ('pretrain', 'reward'),
    protected=True,
  ),
  'p_score': StageSpec(
    lambda e: (e.seed, e.p_score_model, e.p_score, e.model.pathways),
    ('tokenize',),
    protected=True,
  ),
  'reinforce': StageSpec(
    lambda e: (e.seed, e.reinforcement, e.reinforce),
    ('pretrain', 'align', 'p_score'),
    protected=True,
  ),
  'evaluate': StageSpec(
    lambda e: (e.seed, e.evaluate),
    ('pretrain', 'reward', 'align', 'p_score', 'reinforce'),
  ),
  'report': StageSpec(lambda e: (), ('evaluate',), on_all=lambda e: False),
}
# Stages that an experiment may leave out.
_OPTIONAL: tuple[config_lib.Stage, ...] = (
  'lifelong', 'reward', 'align', 'p_score', 'reinforce',
)  # fmt: skip


def stage_function(stage: config_lib.Stage) -> StageFunction:
  """Imports a stage and returns what runs it.

  Only where it runs: a training need not wait for the libraries of texts and
  pictures, which take longer to import than its own.
  """
  match stage:
    case 'prepare':
      from onerec_jax.stages import prepare

      return prepare.run
    case 'embed':
      from onerec_jax.stages import embed

      return embed.run
    case 'tokenize':
      from onerec_jax.stages import tokenize

      return tokenize.run
    case 'lifelong':
      from onerec_jax.stages import lifelong

      return lifelong.run
    case 'pretrain':
      from onerec_jax.stages import pretrain

      return pretrain.run
    case 'reward':
      from onerec_jax.stages import reward

      return reward.run
    case 'align':
      from onerec_jax.stages import align

      return align.run
    case 'p_score':
      from onerec_jax.stages import p_score

      return p_score.run
    case 'reinforce':
      from onerec_jax.stages import reinforce

      return reinforce.run
    case 'evaluate':
      from onerec_jax.stages import evaluate

      return evaluate.run
    case 'report':
      from onerec_jax.stages import report

      return report.run


def run_stage(
  stage: config_lib.Stage,
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
) -> dict[str, Any]:
  """Runs one stage and returns what its result.json shall say."""
  run = stage_function(stage)
  if not gc.get_freeze_count():
    # What was imported stays.  Looking for garbage in it, again and again while
    # a step is traced, takes a fifth of the time of tracing.  Only before the
    # first stage: what a stage leaves behind must be found.
    gc.freeze()
  return run(experiment, workdir)


def inputs(
  experiment: config_lib.Experiment, stage: config_lib.Stage
) -> tuple[config_lib.Stage, ...]:
  """Returns the stages that `stage` of this experiment reads."""
  return tuple(
    s
    for s in SPECS[stage].after
    if s not in _OPTIONAL or s in experiment.stages
  )


def stage_digest(
  experiment: config_lib.Experiment, stage: config_lib.Stage
) -> str:
  """Returns the hash of all settings that `stage` and its inputs depend on."""
  experiment = profile.with_steps(experiment, ())  # a trace is no outcome
  spec = SPECS[stage]
  upstream = [stage_digest(experiment, s) for s in inputs(experiment, stage)]
  parts = [config_lib.to_dict(s) for s in spec.settings(experiment)]
  return config_lib.digest((*upstream, *map(str, parts)))


def _check_protected(
  experiment: config_lib.Experiment, workdir: workdir_lib.Workdir
) -> None:
  """Raises if a costly stage in the workdir belongs to other settings.

  Checked before any stage runs: re-tokenizing, say, would already make a
  trained checkpoint useless.
  """
  for stage, spec in SPECS.items():
    started = workdir.started(stage) if spec.protected else None
    if started is None:
      continue
    if started['digest'] == stage_digest(experiment, stage):
      continue
    _, changed = contract.split_differences(
      started['config'], config_lib.to_dict(experiment), stage=stage
    )
    if not changed:  # e.g. more steps: the run goes on
      continue
    raise ValueError(
      f'{workdir.folder(stage)} was trained with other settings:\n  '
      + '\n  '.join(changed)
      + '\nUse a new --workdir for the new settings, or delete'
      f' {workdir.folder(stage)} to start over.'
    )


def run_stages(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  stages: Sequence[config_lib.Stage],
  *,
  resume: bool,
) -> None:
  """Runs `stages` in order and writes their result.json.

  Args:
    experiment: validated settings.
    workdir: where everything is read and written.
    stages: names, in pipeline order.
    resume: skip stages that are complete for these settings.

  Raises:
    ValueError: the workdir holds a trained stage of other settings.
    FileNotFoundError: an input of a stage is missing.
  """
  for stage in stages:
    if stage not in experiment.stages:  # its settings were not checked
      raise ValueError(
        f'stages={experiment.stages} has no {stage!r}: add it to the experiment'
        ' file.'
      )
  resolved = config_lib.to_dict(experiment)

  def begin() -> None:
    _check_protected(experiment, workdir)
    workdir.write_config(resolved)

  distributed.from_main(begin)
  for number, stage in enumerate(stages, 1):
    title = f'[{number}/{len(stages)}] {stage}'
    run_it = functools.partial(
      _begin, experiment, workdir, stage, resolved, resume=resume
    )
    if not distributed.from_main(run_it):
      logging.info('%s: already complete, skipped', title)
      continue
    logging.info('%s', title)
    start = time.perf_counter()
    if SPECS[stage].on_all(experiment):
      result = run_stage(stage, experiment, workdir)
      distributed.from_main(
        functools.partial(_finish, experiment, workdir, stage, result, start)
      )
    else:
      distributed.run_on_main(
        lambda stage=stage, start=start: _finish(
          experiment,
          workdir,
          stage,
          run_stage(stage, experiment, workdir),
          start,
        )
      )
    goodput.claim()
    logging.info('%s: done in %.1f s', title, time.perf_counter() - start)


def _begin(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  stage: config_lib.Stage,
  resolved: dict[str, Any],
  *,
  resume: bool,
) -> bool:
  """Marks a stage as begun; False: it is complete and shall be skipped."""
  digest = stage_digest(experiment, stage)
  done = workdir.result(stage)
  if resume and stage != 'report' and done and done['digest'] == digest:
    return False
  for needed in inputs(experiment, stage):
    before = workdir.result(needed)
    if before is None or before['digest'] != stage_digest(experiment, needed):
      raise FileNotFoundError(
        f'Stage {stage!r} needs {needed!r} with the same settings, and'
        f' {workdir.folder(needed)} does not hold it. Run `python -m'
        f' onerec_jax.main run --config=... --workdir={workdir.root}`, which'
        ' runs what is missing.'
      )
  workdir.begin(stage, digest=digest, config=resolved)
  return True


def _finish(
  experiment: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  stage: config_lib.Stage,
  result: dict[str, Any],
  start: float,
) -> None:
  """Writes a stage's result.json.

  Its 'seconds' are those of all processes that worked on the stage, as far as
  a training's book (train/goodput.py) has them.
  """
  usage = resource.getrusage(resource.RUSAGE_SELF)
  workdir.finish(
    stage,
    {
      **result,
      'digest': stage_digest(experiment, stage),
      'seconds': round(
        result.get('earlier_seconds', 0.0) + time.perf_counter() - start, 2
      ),
      # Linux reports kilobytes; the peak of the process so far.
      'peak_memory_mb': round(usage.ru_maxrss / 1024),
      'finished': datetime.datetime.now(datetime.UTC).isoformat(
        timespec='seconds'
      ),
    },
  )
