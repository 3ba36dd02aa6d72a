"""What a checkpoint was made with, and whether a run may continue from it.

Says which setting differs and refuses other semantic IDs, other parameters
and settings that change what a step computes.  No arrays, no files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from onerec_jax import config

# Settings that may change between a run and its continuation: they say how
# long, where and how often, but not what is computed at a step.
_FREE = (
  'name',
  'stages',
  'mesh',
  'evaluate',
  '{stage}.num_steps',
  '{stage}.log_every_steps',
  '{stage}.evaluate_every_steps',
  '{stage}.evaluate_examples',
  '{stage}.checkpoint_every_steps',
  '{stage}.keep_checkpoints',
  '{stage}.profile_steps',
  '{stage}.pipeline.prefetch_batches',
)


# Top-level settings that a training stage does not read.
_REWARDS = ('reward_model', 'reward', 'preference', 'align')
_REINFORCEMENT = ('reinforcement', 'reinforce', 'sweep')
_GENERATOR = ('architecture', 'sequential', 'pretrain')
_AFTER_ITEMS = (
  *_GENERATOR, 'model', 'lifelong', *_REWARDS, 'p_score_model', 'p_score',
  *_REINFORCEMENT,
)  # fmt: skip
_UNREAD = {
  'embed': ('tokenizer', *_AFTER_ITEMS),
  'tokenize': _AFTER_ITEMS,
  'pretrain': (*_REWARDS, 'p_score_model', 'p_score', *_REINFORCEMENT),
  'reward': (
    *_GENERATOR, 'model', 'lifelong', 'preference', 'align', 'p_score_model',
    'p_score', *_REINFORCEMENT,
  ),
  'align': ('p_score_model', 'p_score', *_REINFORCEMENT),
  # Reads the features of model.pathways.
  'p_score': (*_GENERATOR, 'lifelong', *_REWARDS, *_REINFORCEMENT),
  'reinforce': ('sweep',),
}  # fmt: skip


class Mismatch(ValueError):
  """A checkpoint that does not belong to the present settings or IDs."""


@dataclasses.dataclass(frozen=True)
class Contract:
  """What a checkpoint was made with; stored in each of them."""

  stage: str
  experiment: Mapping[str, Any]  # config.to_dict
  semantic_ids: str | None  # digest of the table item -> codes
  # 'a/b/kernel' -> {'shape', 'dtype', 'axes'}: enough to restore the
  # parameters on any mesh without building the model.
  parameters: Mapping[str, Any]


def make_contract(
  *,
  stage: str,
  experiment: config.Experiment | None,
  semantic_ids: str | None,
  params: Any,
  names: Any | None = None,
) -> Contract:
  """Returns the contract of a run.

  Args:
    stage: name of the training stage.
    experiment: resolved settings; None: a run without any (tests).
    semantic_ids: digest of the semantic-ID table, or None.
    params: nested dict of arrays.
    names: logical axes per parameter; None: whole everywhere.
  """
  flat = flatten(params)
  axes = flatten(names) if names is not None else {}
  return Contract(
    stage=stage,
    experiment=config.to_dict(experiment) if experiment else {},
    semantic_ids=semantic_ids,
    parameters={
      path: {
        'shape': list(x.shape),
        'dtype': str(x.dtype),
        'axes': list(axes.get(path, (None,) * len(x.shape))),
      }
      for path, x in flat.items()
    },
  )


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a nested dictionary as one of 'a/b/c' keys."""
  result: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      result.update(flatten(value, f'{prefix}{key}/'))
    else:
      result[f'{prefix}{key}'] = value
  return result


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the inverse of `flatten`."""
  result: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, name = path.split('/')
    node = result
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return result


# --- What differs -----------------------------------------------------------


def differences(saved: Any, now: Any, path: str = '') -> list[str]:
  """Returns 'path: saved -> now' for every setting that differs.

  Args:
    saved: nested dictionaries (`config.to_dict`) from the checkpoint.
    now: those of the present run.
    path: prefix of the reported paths.
  """
  if isinstance(saved, Mapping) and isinstance(now, Mapping):
    return [
      line
      for key in sorted({*saved, *now})
      for line in differences(
        saved.get(key), now.get(key), f'{path}.{key}' if path else key
      )
    ]
  return [] if saved == now else [f'{path}: {saved!r} -> {now!r}']


def split_differences(
  saved: Mapping[str, Any], now: Mapping[str, Any], *, stage: str
) -> tuple[list[str], list[str]]:
  """Returns the differences a run may continue with, and all others.

  Args:
    saved: `config.to_dict` of the run so far.
    now: of its continuation.
    stage: the training stage.
  """
  free = tuple(path.format(stage=stage) for path in _FREE)
  free += _UNREAD.get(stage, ())
  harmless, refused = [], []
  for line in differences(saved, now):
    allowed = any(line.startswith((f'{f}:', f'{f}.')) for f in free)
    (harmless if allowed else refused).append(line)
  return harmless, refused


def check_semantic_ids(saved: str | None, now: str | None, where: str) -> None:
  """Raises Mismatch unless the parameters were trained with these IDs.

  Args:
    saved: digest in the checkpoint.
    now: digest of the table in the work directory.
    where: the checkpoint, for the error.
  """
  if saved != now:
    raise Mismatch(
      f'{where} was trained with semantic IDs {saved}, but the work directory'
      f' now holds semantic IDs {now}: the same tokens mean other items. Put'
      ' back the tokenizer it was trained with, or use a new --workdir and'
      ' train again.'
    )


def check_contract(saved: Contract, now: Contract, where: str) -> list[str]:
  """Returns the harmless differences of settings; raises on the others.

  Raises:
    Mismatch: other semantic IDs, other parameters, or settings that change
      what a training step computes.
  """
  check_semantic_ids(saved.semantic_ids, now.semantic_ids, where)
  harmless, refused = split_differences(
    saved.experiment, now.experiment, stage=now.stage
  )
  old, new = (
    {p: (v['shape'], v['dtype']) for p, v in c.parameters.items()}
    for c in (saved, now)
  )
  parameters = differences(old, new)
  if refused or parameters:
    text = '\n  '.join(refused + [f'parameter {p}' for p in parameters])
    raise Mismatch(
      f'{where} was made with other settings (checkpoint -> now):\n  {text}\n'
      'Undo the changes to continue this run, or use a new --workdir (or'
      f' delete {where}) to train anew.'
    )
  return harmless
