"""Sees that training always has its groups, made from the current policy.

At the beginning of every sync interval the groups of its steps are made and
written, so that a run that goes on in the middle reads them and never makes
them from other parameters.  Files that no restart can need are deleted.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import numpy as np
from absl import logging
from etils import epath

from onerec_jax import distributed
from onerec_jax import item_rewards
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import group_batches
from onerec_jax.stages import groups as groups_lib
from onerec_jax.train import state as state_lib

FOLDER = 'groups'
HISTORY = 'rollouts.json'  # figures of all intervals, beside the folder
BEFORE = 'before.json'  # validation of the seed model
_REPORT = 'report.json'  # written last: the interval's files are whole
# Batches of users per file; a killed run makes that many again.
_BATCHES_PER_PART = 16


@runtime_checkable
class Maker(Protocol):
  """Makes groups; `groups.GroupMaker`."""

  rows: int
  industrial: item_rewards.IndustrialReward | None

  def __call__(
    self,
    numbers: np.ndarray,
    example_ids: np.ndarray,
    *,
    params: Any,
    router_bias: Any,
  ) -> tuple[group_batches.Groups, dict[str, Any]]: ...


class Policy(NamedTuple):
  """Who generates."""

  params: Any
  router_bias: Any


class GroupSupply:
  """Hands each interval's groups to the batches of a training."""

  def __init__(
    self,
    maker: Maker,
    batches: group_batches.GroupBatches,
    plan: group_batches.GroupPlan,
    folder: epath.Path,
    *,
    num_steps: int,
    sync_every_steps: int,
    checkpoint_every_steps: int,
    generator: Policy | None,
    group_size: int,
    levels: int,
    needs_advantage: bool,
    digest: str,
  ):
    """Takes the parts.

    Args:
      maker: of groups.
      batches: that are to have them.
      plan: of the same batches.
      folder: of the stage; intervals are kept in its groups/.
      num_steps: of the run.
      sync_every_steps: steps of an interval.
      checkpoint_every_steps: tells which files no restart can need.
      generator: fixed policy; None: that of the beginning of the interval.
      group_size: G.
      levels: L.
      needs_advantage: an interval whose groups teach nothing is an error.
      digest: of all that the groups depend on but the policy; files of another
        one are not taken for those of this run.
    """
    self._maker = maker
    self._batches = batches
    self._plan = plan
    self._folder = folder / FOLDER
    self._history = folder / HISTORY
    self._num_steps = num_steps
    self._interval = sync_every_steps
    self._kept_steps = 2 * checkpoint_every_steps
    self._generator = generator
    self._shape = {'group_size': group_size, 'levels': levels}
    self._needs_advantage = needs_advantage
    self._digest = digest

  def prepare(
    self, state: state_lib.TrainState, poll: Callable[[], None]
  ) -> None:
    """Loads the next batch's groups; makes them where there are none.

    Args:
      state: of the training; its step is that of the next batch.
      poll: called between batches of users; raises where the run shall stop.

    Raises:
      ValueError: the groups of a begun interval are gone, or teach nothing.
    """
    if self._batches.is_ready:
      return
    step = self._batches.next_step
    if step >= self._num_steps:
      # After the end only the batch's shape is asked for.
      self._batches.load_filler(**self._shape)
      return
    first, stop, is_new = distributed.from_main(lambda: self._choose(step))
    steps = range(first, stop)
    if is_new:
      policy = self._generator or Policy(state.params, state.model_state)
      parts = self._make(steps, policy, poll)
    else:
      files = sorted(self._path(steps).glob('part_*.npz'))
      parts = [group_batches.read(file) for file in files]
    if steps.start == step and distributed.is_main():
      self._remember(steps)
    self._batches.load(
      group_batches.concatenate([group_batches.empty(**self._shape), *parts]),
      steps,
    )
    if distributed.is_main():
      self._forget(step)

  def history(self) -> list[dict[str, Any]]:
    """Returns the figures of every interval so far, in order."""
    found = workdir_lib.read_json(self._history) or {'intervals': []}
    return found['intervals']

  # --- Which interval ---

  def _path(self, steps: range) -> epath.Path:
    name = f'steps_{steps.start:09d}_{steps.stop:09d}_{self._digest}'
    return self._folder / name

  def _intervals(self, *, whole: bool) -> Iterator[range]:
    """Yields the intervals on disk, the latest first."""
    if not self._folder.exists():
      return
    found = self._folder.glob(f'steps_*_{self._digest}')
    for path in sorted(found, reverse=True):
      _, start, stop, _ = path.name.split('_')
      if not whole or (path / _REPORT).exists():
        yield range(int(start), int(stop))

  def _choose(self, step: int) -> tuple[int, int, bool]:
    """Returns the interval a step is in, and whether it is to be made."""
    found = self._find(step)
    steps = self._new_steps(step) if found is None else found
    return steps.start, steps.stop, found is None

  def _find(self, step: int) -> range | None:
    """Returns the finished interval that a step is in."""
    return next((s for s in self._intervals(whole=True) if step in s), None)

  def _new_steps(self, step: int) -> range:
    """Returns the interval that begins at a step."""
    stop = (step // self._interval + 1) * self._interval
    goes_on = step % self._interval == 0 or any(
      # A run that was lengthened goes on where its last interval was cut off.
      s.stop == step
      for s in self._intervals(whole=True)
    )
    if not goes_on:
      raise ValueError(
        f'The groups of step {step} are gone from {self._folder}: they were'
        f' made at step {stop - self._interval}, whose policy is no longer'
        f' there. Delete {self._folder.parent} to begin anew.'
      )
    return range(step, min(stop, self._num_steps))

  # --- Making ---

  def _make(
    self, steps: range, policy: Policy, poll: Callable[[], None]
  ) -> list[group_batches.Groups]:
    """Makes and writes the groups of some steps, part by part."""
    path = self._path(steps)
    first, last = self._plan.before(steps.start), self._plan.before(steps.stop)
    size = self._maker.rows * _BATCHES_PER_PART
    parts, reports = [], []
    self._restore_window(
      distributed.from_main(lambda: self._before(steps.start))
    )
    for number, begin in enumerate(range(first, last, size)):
      file = path / f'part_{number:05d}.npz'
      report_file = path / f'{file.stem}.json'
      report = distributed.from_main(
        functools.partial(workdir_lib.read_json, report_file)
      )
      if report is not None:  # it is written after the groups
        self._restore_window(report)
        groups = group_batches.read(file)
      else:
        groups, report = self._part(
          file, range(begin, min(begin + size, last)), policy, poll
        )
        if distributed.is_main():
          workdir_lib.write_json(report_file, report)
      parts.append(groups)
      reports.append(report)
      if last - first > size:
        logging.info(
          'groups: %d of %d', min(begin + size, last) - first, last - first
        )
    sums = workdir_lib.sum_reports([r['sums'] for r in reports])
    figures = groups_lib.figures(sums) if reports else {}
    if reports and self._needs_advantage and not sums['groups_with_advantage']:
      raise ValueError(
        f'None of the {last - first} groups of steps {steps.start}..'
        f'{steps.stop - 1} teaches anything: {figures}. Without legal outputs,'
        " set reinforcement.format_weight above 0 or constrain='trie'; where"
        ' all rewards of a group are equal, raise reinforcement.group_size or'
        ' look at the stage `p_score`.'
      )
    summary = {
      'first_step': steps.start,
      'stop_step': steps.stop,
      'groups': last - first,
      'seconds': sums.get('seconds', {}),
      'figures': figures,
      'window': reports[-1]['window'] if reports else None,
    }
    if distributed.is_main():
      path.mkdir(parents=True, exist_ok=True)
      workdir_lib.write_json(path / _REPORT, summary)
    logging.info(
      'groups of steps %d..%d: %s', steps.start, steps.stop - 1, figures
    )
    return parts

  def _part(
    self,
    file: epath.Path,
    numbers: range,
    policy: Policy,
    poll: Callable[[], None],
  ) -> tuple[group_batches.Groups, dict[str, Any]]:
    """Makes and writes some groups; returns them and their sums."""
    ids = self._plan.examples(numbers.start, numbers.stop)
    parts, reports = [], []
    for begin in range(0, len(ids), self._maker.rows):
      poll()
      taken = ids[begin : begin + self._maker.rows]
      found, report = self._maker(
        numbers.start + begin + np.arange(len(taken)),
        taken,
        params=policy.params,
        router_bias=policy.router_bias,
      )
      parts.append(found)
      reports.append(report)
    groups = group_batches.concatenate(parts)
    if distributed.is_main():
      group_batches.write(file, groups)
    industrial = self._maker.industrial
    return groups, {
      'sums': workdir_lib.sum_reports(reports),
      # So that the next part goes on from the same items.
      'window': None if industrial is None else industrial.get_state(),
    }

  def _before(self, step: int) -> dict[str, Any] | None:
    """Returns the report of the interval that ends at a step."""
    for steps in self._intervals(whole=True):
      if steps.stop == step:
        return workdir_lib.read_json(self._path(steps) / _REPORT)
    return None

  def _restore_window(self, report: dict[str, Any] | None) -> None:
    industrial = self._maker.industrial
    if industrial is not None and report is not None and report['window']:
      industrial.set_state(report['window'])

  # --- Book-keeping ---

  def _remember(self, steps: range) -> None:
    """Adds an interval's figures to the history of the run."""
    report = workdir_lib.read_json(self._path(steps) / _REPORT)
    assert report is not None
    report.pop('window')
    kept = [r for r in self.history() if r['first_step'] < steps.start]
    workdir_lib.write_json(self._history, {'intervals': [*kept, report]})

  def _forget(self, step: int) -> None:
    """Deletes intervals before the checkpoint that a restart begins from.

    A checkpoint is whole when the next one is begun, so two periods after an
    interval's end there is one that does not need it.
    """
    for steps in list(self._intervals(whole=False)):
      if steps.stop + self._kept_steps < step:
        self._path(steps).rmtree()
