"""Groups of generated items beside the samples for next-token prediction.

`GroupPlan` says which users have a group at which step, `Groups` is what
rollouts write and training reads, `GroupBatches` puts them into batches.
Generates nothing and knows no model.
"""

import io
import math
from typing import Any
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool
from jaxtyping import Float32
from jaxtyping import Int
from jaxtyping import Int32

from onerec_jax import batch as batch_lib
from onerec_jax.data import batch_plan
from onerec_jax.data import examples
from onerec_jax.data import pipeline

# Random stream; batch_plan uses 0..2, preference_pairs 10..12, rsft 20.
_USERS = 30


class Groups(NamedTuple):
  """Generated items; a group belongs to its user by the example's id."""

  example_ids: Int[np.ndarray, ' P']  # places in the training store's starts
  codes: Int32[np.ndarray, 'P G L']  # -1: nothing was left to generate
  old_log_probs: Float32[np.ndarray, 'P G L']  # of the generator, nats
  reference_log_probs: Float32[np.ndarray, 'P G L']  # of the seed model
  rewards: Float32[np.ndarray, 'P G']
  legal: Bool[np.ndarray, 'P G']
  format_mask: Bool[np.ndarray, 'P G']
  true_rewards: Float32[np.ndarray, 'P G']  # NaN: not known


def empty(*, group_size: int, levels: int) -> Groups:
  """Returns no groups."""
  codes, flat = (0, group_size, levels), (0, group_size)
  return Groups(
    example_ids=np.zeros(0, np.int64),
    codes=np.zeros(codes, np.int32),
    old_log_probs=np.zeros(codes, np.float32),
    reference_log_probs=np.zeros(codes, np.float32),
    rewards=np.zeros(flat, np.float32),
    legal=np.zeros(flat, bool),
    format_mask=np.zeros(flat, bool),
    true_rewards=np.zeros(flat, np.float32),
  )


def concatenate(parts: list[Groups]) -> Groups:
  """Returns the groups of all parts, in order."""
  return Groups(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def write(path: epath.Path, groups: Groups) -> None:
  """Writes an .npz so that a reader sees no file or a whole one."""
  buffer = io.BytesIO()
  np.savez(buffer, **groups._asdict())
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.parent / f'.{path.name}.partial'
  temporary.write_bytes(buffer.getvalue())
  temporary.replace(path)


def read(path: epath.Path) -> Groups:
  """Returns what `write` wrote."""
  with np.load(io.BytesIO(path.read_bytes())) as arrays:
    return Groups(**{name: arrays[name] for name in Groups._fields})


# --- Who has a group, and when ----------------------------------------------


class GroupPlan:
  """Which users have a group at which step, for all steps of a run.

  Before step t come ⌈t r⌉ groups, r = user_share * batch_size: the first step
  has one, and so has every step if r >= 1.  Group j is of example j of a
  random order of all examples, which begins anew when it is through.

  Args:
    num_examples: training examples.
    batch_size: global.
    user_share: share of the samples whose user has a group, in (0, 1].
    seed: of the order.

  Raises:
    ValueError: user_share is out of range.
  """

  def __init__(
    self, num_examples: int, *, batch_size: int, user_share: float, seed: int
  ):
    if not 0 < user_share <= 1:
      raise ValueError(
        f'reinforcement.user_share={user_share} must lie in (0, 1].'
      )
    self._num_examples = num_examples
    self._rate = user_share * batch_size
    self._seed = seed

  @property
  def rows_per_step(self) -> int:
    """Most groups of any step."""
    # 0.07 * 100 is a little more than 7.
    return math.ceil(round(self._rate, 6))

  def padded_rows(self, multiple: int) -> int:
    """Returns the room for groups in every batch, filler included."""
    return -(-self.rows_per_step // multiple) * multiple

  def before(self, step: int) -> int:
    """Returns the number of groups of all steps before `step`."""
    return math.ceil(round(step * self._rate, 6))

  def examples(self, first: int, last: int) -> Int[np.ndarray, ' n']:
    """Returns the examples of the groups first..last-1, by their numbers."""
    numbers = np.arange(first, last)
    passes = numbers // self._num_examples
    result = np.zeros(len(numbers), np.int64)
    for number in np.unique(passes):
      ids = np.arange(self._num_examples)
      key = (self._seed, int(number), _USERS)
      bits = batch_plan.random_bits(ids, key=key)
      order = np.argsort(bits, kind='stable')
      here = passes == number
      result[here] = order[numbers[here] % self._num_examples]
    return result


# --- Batches ----------------------------------------------------------------


class GroupBatches:
  """Endless batches of samples, each with its step's groups.

  Groups are handed over for a range of steps by `load`.  Every step has room
  for the same number of groups; what it lacks is filler.

  Args:
    sessions: the samples, e.g. `pipeline.train_batches`.
    store: that the groups' example ids refer to.
    plan: which groups belong to which step.
    history_length: of the groups' users, items.
    multiple: rows per step are a multiple of this, for the mesh.
    own_rows: from the rows of a step to those that this process makes.
  """

  def __init__(
    self,
    sessions: Any,
    store: examples.ExampleStore,
    plan: GroupPlan,
    *,
    history_length: int,
    multiple: int,
    own_rows: batch_plan.OwnRows = np.arange,
  ):
    self._sessions = sessions
    self._store = store
    self._plan = plan
    self._history_length = history_length
    self.rows_per_step = plan.padded_rows(multiple)
    self._mine = own_rows(self.rows_per_step)
    self._next = 0
    self._groups: Groups | None = None
    self._steps = range(0)

  @property
  def next_step(self) -> int:
    """The step that the next batch is for, counted from 0."""
    return self._next

  @property
  def is_ready(self) -> bool:
    """Whether the next batch's groups are loaded."""
    return self._next in self._steps

  def load(self, groups: Groups, steps: range) -> None:
    """Takes the groups of some steps; those loaded before are forgotten.

    Args:
      groups: all groups of these steps, in the order of the plan.
      steps: that follow each other.

    Raises:
      ValueError: it is not as many groups as the plan has.
    """
    wanted = self._plan.before(steps.stop) - self._plan.before(steps.start)
    if len(groups.example_ids) != wanted:
      raise ValueError(
        f'{len(groups.example_ids)} groups for steps {steps.start}..'
        f'{steps.stop - 1}, which need {wanted}: they were made with another'
        ' reinforcement.user_share or batch_size.'
      )
    self._groups, self._steps = groups, steps

  def load_filler(self, *, group_size: int, levels: int) -> None:
    """Lets the next batch have no groups: one whose values nobody reads."""
    self._groups = empty(group_size=group_size, levels=levels)
    self._steps = range(self._next, self._next + 1)

  def __next__(self) -> batch_lib.ReinforceBatch:
    groups, step = self._groups, self._next
    if groups is None or not self.is_ready:
      raise ValueError(
        f'No groups are loaded for step {step}: call load before each batch.'
      )
    sessions = next(self._sessions)
    self._next += 1
    base = self._plan.before(self._steps.start)
    first = self._plan.before(step) - base
    last = self._plan.before(step + 1) - base
    last = min(last, len(groups.example_ids))
    chosen = np.full(self.rows_per_step, -1)
    chosen[: max(last - first, 0)] = np.arange(first, last)
    return batch_lib.ReinforceBatch(
      session=sessions, groups=self._batch(groups, chosen[self._mine])
    )

  def _batch(
    self, groups: Groups, chosen: Int[np.ndarray, ' R']
  ) -> batch_lib.GroupBatch:
    """Returns the groups at these places; -1 makes a filler row."""
    real = chosen >= 0

    def rows(values: np.ndarray, filler: Any) -> np.ndarray:
      shape = (len(chosen), *values.shape[1:])
      result = np.full(shape, filler, values.dtype)
      result[real] = values[chosen[real]]
      return result

    return batch_lib.GroupBatch(
      session=pipeline.session_batch(
        self._store,
        rows(groups.example_ids, -1),
        history_length=self._history_length,
        items_per_session=1,
      ),
      codes=rows(groups.codes, -1),
      old_log_probs=rows(groups.old_log_probs, 0),
      reference_log_probs=rows(groups.reference_log_probs, 0),
      rewards=rows(groups.rewards, 0),
      legal=rows(groups.legal, False),
      format_mask=rows(groups.format_mask, False),
      true_rewards=rows(groups.true_rewards, math.nan),
    )

  def without_groups(
    self, sessions: batch_lib.SessionBatch, *, group_size: int, levels: int
  ) -> batch_lib.ReinforceBatch:
    """Returns samples as a batch of the usual shape, with filler groups."""
    filler = np.full(self.rows_per_step, -1)
    nothing = empty(group_size=group_size, levels=levels)
    return batch_lib.ReinforceBatch(
      session=sessions, groups=self._batch(nothing, filler[self._mine])
    )

  def get_state(self) -> dict[str, Any]:
    """Returns where the iterator stands; JSON-able.  Groups are not in it."""
    return {'sessions': self._sessions.get_state(), 'next_step': self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from `get_state`; the groups are to be loaded again."""
    self._sessions.set_state(state['sessions'])
    self._next = state['next_step']
