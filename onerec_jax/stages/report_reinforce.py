"""The report's section on reinforcement beside RSFT.

Turns what the stage `reinforce` has logged and written into tables, sentences
and pictures.  A training that was cut off shows what it has.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import group_supply
from onerec_jax.stages import predictions
from onerec_jax.stages import report_reinforce_pictures as reinforce_pictures
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

Records = Sequence[Mapping[str, Any]]


def section(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  result: Mapping[str, Any] | None,
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what the section on reinforcement shows; adds its pictures.

  Args:
    experiment: settings of the run.
    workdir: of the run; its logs are read, finished or not.
    result: of the stage `reinforce`.
    pictures: of the page.
  """
  folder = workdir.folder('reinforce')
  records = log.read_metrics(folder / log.METRICS)
  before = workdir_lib.read_json(folder / group_supply.BEFORE)
  if before:
    records = [{'step': 0, **before}, *records]
  history = workdir_lib.read_json(folder / group_supply.HISTORY) or {}
  intervals: Records = history.get('intervals') or ()
  if not result and not records and not intervals:
    return None
  reinforce_pictures.add_all(
    experiment.reinforcement, records, intervals, pictures
  )
  result = result or {}
  return {
    'summary': _summary(experiment, result, records, intervals),
    'verdict': _verdict(experiment.reinforcement, records),
    'names': [n for n in reinforce_pictures.NAMES if n in pictures.found],
    'settings': _settings(experiment, result),
    'seconds': _seconds(result, intervals),
    'last': _last(experiment.reinforcement, records),
  }


def _summary(
  experiment: config.Experiment,
  result: Mapping[str, Any],
  records: Records,
  intervals: Records,
) -> str:
  done = result.get('steps') or max((r['step'] for r in records), default=0)
  total = experiment.reinforce.num_steps
  text = f'{words.count(done)} of {words.count(total)} steps'
  groups = sum(i.get('groups', 0) for i in intervals)
  if groups:
    making = sum(_rollout_seconds(intervals).values())
    text += (
      f'; {words.count(groups)} groups of'
      f' {experiment.reinforcement.group_size:,} items, made in'
      f' {log.duration(making)}'
    )
  if not result:
    text += '; the stage is not finished'
  return text + '.'


def _verdict(settings: config.ReinforceConfig, records: Records) -> str:
  """Returns what validation said first and last."""
  parts, steps = [], set()
  for key, name, form in (
    (reinforce_pictures.LEGALITY, 'legality', words.percent),
    (f'valid/{settings.reward}_mean', 'the predicted reward', words.four),
    (f'valid/true_{settings.reward}_mean', 'the true reward', words.four),
  ):
    found = reinforce_pictures.points(records, key)
    if len(found) > 1:
      (first, before), (last, after) = found[0], found[-1]
      steps.add(first)
      verb = (
        'rose' if after > before else 'fell' if after < before else 'stayed'
      )
      parts.append(
        f'{name} {verb} from {form(before)} (step {first:,}) to {form(after)}'
        f' (step {last:,})'
      )
  if not parts:
    return ''
  return f'Free decoding for validation users: {"; ".join(parts)}.' + (
    ' Step 0 is the model before.' if 0 in steps else ''
  )


def _settings(
  experiment: config.Experiment, result: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the settings that make the result."""
  r, train = experiment.reinforcement, experiment.reinforce
  limits = [f'ratio per {r.ratio_level}']
  if r.loss != 'gbpo':
    limits.append(f'ε = {r.clip:g}')
  if r.loss == 'ecpo':
    limits.append(f'δ = {r.early_clip:g}')
  if r.loss == 'grpo':
    limits.append(f'β = {r.kl_weight:g}')
  drawn = [f'temperature {r.temperature:g}']
  if r.sample_top_k:
    drawn.append(f'top-k {r.sample_top_k}')
  if r.sample_top_p < 1:
    drawn.append(f'top-p {r.sample_top_p:g}')
  rows = [
    _row('policy loss', r.loss.upper(), ', '.join(limits)),
    _row('reward', predictions.reward_name(r.reward)),
    _row('weights', f'λ_rl = {r.weight:g}, λ_fmt = {r.format_weight:g}'),
    _row(
      'groups',
      f'{r.group_size:,} items',
      f'for {100 * r.user_share:g} % of the samples',
    ),
    _row('rollouts', 'the best by beam search')
    if r.rollouts == 'beam'
    else _row('rollouts', 'drawn at random', ', '.join(drawn)),
    _row('constraint', 'none', 'illegal IDs are seen')
    if r.constrain == 'none'
    else _row('constraint', r.constrain),
    _row(
      'generator',
      'current policy',
      f'synchronised every {r.sync_every_steps:,} steps',
    )
    if r.generator == 'current'
    else _row('generator', 'the model before', 'off-policy'),
    _row(
      'format reward',
      f'{r.format_samples} of {r.group_size:,}',
      'at random' if r.format_choice == 'random' else 'the most probable',
    )
    if r.format_weight and r.format_samples
    else _row('format reward', 'none'),
    _row('RSFT drops', 'nothing')
    if r.rsft_column is None
    else _row(
      'RSFT drops',
      f'lowest {100 * r.rsft_drop_share:g} % of sessions',
      f'by {r.rsft_column}',
    ),
  ]
  chosen = result.get('rsft') or {}
  if 'examples_before' in chosen:
    kept, given = (
      words.count(chosen[key]) for key in ('examples', 'examples_before')
    )
    rows.append(_row('RSFT examples', f'{kept} of {given}'))
  if r.industrial.categories:
    rows.append(
      _row(
        f'suppressed: {", ".join(r.industrial.categories)}',
        f'reward × {r.industrial.factor:g}',
        f'above a share of {100 * r.industrial.target_share:g} %',
      )
    )
  rows.append(
    _row(
      'training',
      f'{train.num_steps:,} steps of {train.batch_size:,} samples',
      f'learning rate {train.optimizer.peak_learning_rate:g}',
    )
  )
  return {
    'caption': 'Settings',
    'columns': ['setting', 'value'],
    'rows': rows,
  }


def _row(name: str, text: str, small: str = '') -> dict[str, Any]:
  return {'cells': [name, words.cell(text, small)]}


def _rollout_seconds(intervals: Records) -> dict[str, float]:
  """Returns the seconds of all intervals by kind."""
  result: dict[str, float] = {}
  for interval in intervals:
    for kind, value in (interval.get('seconds') or {}).items():
      result[kind] = result.get(kind, 0.0) + value
  return result


def _seconds(
  result: Mapping[str, Any], intervals: Records
) -> dict[str, Any] | None:
  """Returns where the time went; of training only once it is finished."""
  spent = {
    f'rollouts: {kind.replace("_", "-")}': value
    for kind, value in _rollout_seconds(intervals).items()
  }
  for kind in ('training', 'compile', 'validation'):
    if words.is_known(result.get(f'{kind}_seconds')):
      spent[kind] = float(result[f'{kind}_seconds'])
  total = sum(spent.values())
  if not total:
    return None
  return {
    'caption': 'Time by kind',
    'columns': ['kind', 'time', 'share'],
    'rows': [
      {'cells': [kind, words.seconds(value), words.percent(value / total)]}
      for kind, value in spent.items()
    ],
  }


def _last(
  settings: config.ReinforceConfig, records: Records
) -> dict[str, Any] | None:
  """Returns the first and the last of what was logged of the groups."""
  rows = []
  for key, name, form in (
    ('group/legality', 'legal IDs in the groups', words.percent),
    (
      'group/distinct_items',
      f'distinct IDs per group of {settings.group_size:,}',
      lambda v: words.fixed(v, 1),
    ),
    ('group/reward_std', 'spread of the rewards in a group', words.four),
    (
      'policy/zero_advantage_share',
      'groups without spread',
      words.percent,
    ),
    ('policy/clip_share', 'clipped ratios', words.percent),
    ('policy/early_clip_share', 'early-clipped, of A < 0', words.percent),
    (
      'policy/log_prob',
      'log-probability of an output, nats',
      lambda v: words.fixed(v, 2).replace('-', '−'),
    ),
  ):
    found = reinforce_pictures.points(records, key)
    if found:
      (_, before), (_, after) = found[0], found[-1]
      rows.append({'cells': [name, form(before), form(after)]})
  if not rows:
    return None
  return {
    'caption': 'The groups at the first and at the last log line',
    'columns': ['figure', 'first', 'last'],
    'rows': rows,
  }
