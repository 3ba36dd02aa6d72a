"""The rows of v1 Table 1 and of its ablations, shared by the sweeps.

Every row is the sweep's experiment with some settings changed; nothing here
depends on a data set.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import config_tree

BASE = 'OneRec-L'

_BEFORE = ('prepare', 'embed', 'tokenize', 'pretrain')
_ALIGNED = ('prepare', 'embed', 'tokenize', 'pretrain', 'reward', 'align')
_LOSSES = {
  'DPO': 'dpo',
  'IPO': 'ipo',
  'cDPO': 'cdpo',
  'rDPO': 'rdpo',
  'CPO': 'cpo',
  'SimPO': 'simpo',
  'S-DPO': 'sdpo',
}


def _row(name: str, published: str | None, **overrides: Any) -> dict[str, Any]:
  return {'name': name, 'published': published, 'overrides': overrides}


def baselines() -> list[dict[str, Any]]:
  """Item-level baselines, on the same examples."""
  return [
    _row(name, name, architecture=name.lower(), stages=_BEFORE)
    for name in ('SASRec', 'BERT4Rec', 'FDSA')
  ]


def tiger(
  name: str, published: str, *, model: dict[str, Any]
) -> dict[str, Any]:
  """TIGER: RQ-VAE codes with a 4th, dense decoder, one next item.

  The settings of the RQ-VAE are the sweep's tokenizer.rqvae.
  """
  return _row(
    name,
    published,
    stages=_BEFORE,
    data={'sessions': {'items_per_session': 1}},
    tokenizer={'quantizer': 'rqvae', 'collision': 'append'},
    model={'moe': {'enabled': False}, 'user_buckets': 2000, **model},
    # No room for a continued session; the list's length is the sweep's.
    evaluate={'decoding': {'continue_items': 0, 'num_items': 1}},
    preference={'rollout': {'num_items': 1, 'continue_items': 0}},
  )


def onerec(
  name: str, published: str | None, *, model: dict[str, Any]
) -> dict[str, Any]:
  """OneRec before alignment, at one size."""
  return _row(name, published, stages=_BEFORE, model=model)


def aligned(
  name: str, published: str | None, *, model: dict[str, Any], **overrides: Any
) -> dict[str, Any]:
  """OneRec after alignment; `overrides` are the sweep's own settings."""
  return _row(name, published, stages=_ALIGNED, model=model, **overrides)


def ipa(
  *,
  model: dict[str, Any],
  name: str = '+IPA',
  published: str | None = '+IPA',
  **preference: Any,
) -> dict[str, Any]:
  """Iterative preference alignment on the model's own beam."""
  return aligned(name, published, model=model, preference=preference)


def logged_losses(
  *, model: dict[str, Any], rounds: int, steps_per_round: int
) -> list[dict[str, Any]]:
  """Every loss on fixed pairs from the log, with IPA's number of steps.

  Chosen is the logged session, rejected another user's (S-DPO: three).
  """
  return [
    aligned(
      f'+{name}',
      f'+{name}',
      model=model,
      preference={
        'loss': loss,
        'pairs': 'logged',
        'rounds': 1,
        'num_rejected': 3 if loss == 'sdpo' else 1,
      },
      align={
        'num_steps': rounds * steps_per_round,
        'evaluate_every_steps': rounds * steps_per_round,
      },
    )
    for name, loss in _LOSSES.items()
  ]


def table_1(
  *,
  small: dict[str, Any],
  large: dict[str, Any],
  rounds: int,
  steps_per_round: int,
) -> tuple[dict[str, Any], ...]:
  """All rows of Table 1, with two sizes of TIGER and OneRec.

  Args:
    small: overrides of `model` that stand for the paper's 0.1B.
    large: for its 1B.
    rounds: of IPA.
    steps_per_round: of IPA; the other losses get as many steps in one go.
  """
  return (
    *baselines(),
    tiger('TIGER-S', 'TIGER-0.1B', model=small),
    tiger('TIGER-L', 'TIGER-1B', model=large),
    onerec('OneRec-S', 'OneRec-0.1B', model=small),
    onerec(BASE, 'OneRec-1B', model=large),
    *logged_losses(model=large, rounds=rounds, steps_per_round=steps_per_round),
    ipa(model=large),
  )


def tuned(
  all_rows: Sequence[dict[str, Any]],
  *,
  learning_rates: Mapping[str, float],
  weights: Mapping[str, float],
) -> tuple[dict[str, Any], ...]:
  """The rows with what `tuning` chose for each, by the row's name.

  An aligned row starts from the base row's pre-training.

  Args:
    all_rows: of `table_1`.
    learning_rates: of pre-training; rows that are not named keep the recipe's.
    weights: λ; rows that are not named keep the recipe's.
  """
  result = []
  for row in all_rows:
    is_aligned = 'align' in row['overrides']['stages']
    changed: dict[str, Any] = {}
    rate = learning_rates.get(BASE if is_aligned else row['name'])
    if rate is not None:
      changed['pretrain'] = {'optimizer': {'peak_learning_rate': rate}}
    if row['name'] in weights:
      changed['preference'] = {'weight': weights[row['name']]}
    overrides = config_tree.merge(row['overrides'], changed)
    result.append({**row, 'overrides': overrides})
  return tuple(result)


def tuning(
  all_rows: Sequence[dict[str, Any]],
  *,
  learning_rates: Sequence[float],
  weights: Sequence[float],
) -> tuple[dict[str, Any], ...]:
  """Every row with each of as many settings: the same effort for all.

  A row that is only pre-trained tries the learning rates, one that is aligned
  the weights λ of its loss.
  """
  tried = []
  for row in all_rows:
    is_aligned = 'align' in row['overrides']['stages']
    for value in weights if is_aligned else learning_rates:
      changed: dict[str, Any] = (
        {'preference': {'weight': value}}
        if is_aligned
        else {'pretrain': {'optimizer': {'peak_learning_rate': value}}}
      )
      tried.append(
        _row(
          f'{row["name"]} {value:g}',
          None,
          **config_tree.merge(row['overrides'], changed),
        )
      )
  return tuple(tried)


def beyond_tuning(
  *, model: dict[str, Any], weight: float
) -> tuple[dict[str, Any], ...]:
  """IPA as tuned, the first row, and with more rounds, weight or beams."""
  tried = (
    ('IPA as in the table', {}),
    ('5 rounds', {'rounds': 5}),
    ('8 rounds', {'rounds': 8}),
    ('λ = 80', {'weight': 80.0}),
    ('64 beams', {'rollout': {'num_beams': 64}}),
    ('128 beams', {'rollout': {'num_beams': 128}}),
  )
  return tuple(
    ipa(model=model, name=name, published=None, **{'weight': weight, **changed})
    for name, changed in tried
  )


def set_table_1(
  config: Any,
  *,
  title: str,
  small_model: dict[str, Any],
  large_model: dict[str, Any],
  small: bool,
) -> None:
  """Sets alignment, evaluation and rows of Table 1, the same on all data.

  Args:
    config: the recipe, with data, tokenizer, model and reward model.
    title: of the table.
    small_model: overrides of `model` that stand for the paper's 0.1B.
    large_model: for its 1B.
    small: one seed instead of three.
  """
  preference, align = config.preference, config.align
  preference.rounds = 3
  preference.sample_share = 0.1
  preference.weight = 5.0
  preference.rollout.num_beams = 32
  preference.rollout.num_items = 5
  align.batch_size = 64
  align.num_steps = 100
  align.ntp_reduction = 'mean'
  align.optimizer.peak_learning_rate = 3e-4
  align.optimizer.warmup_steps = 10
  align.log_every_steps = 50
  align.evaluate_every_steps = align.num_steps
  align.evaluate_examples = 200
  align.checkpoint_every_steps = align.num_steps
  align.keep_checkpoints = 1
  config.evaluate.decoding.num_beams = 20
  config.evaluate.sessions.max_users = 500
  config.sweep.title = title
  config.sweep.base = BASE
  config.sweep.seeds = (0,) if small else (0, 1, 2)
  config.sweep.rows = table_1(
    small=small_model,
    large=large_model,
    rounds=preference.rounds,
    steps_per_round=align.num_steps,
  )
