"""The report's section on reinforcement beside RSFT.

Turns what the stage `reinforce` has logged and written into pictures, tables
and sentences.  A training that was cut off shows what it has.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import config
from onerec_jax.stages import predictions
from onerec_jax.stages import report_reinforce_figures as figures
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

Records = Sequence[Mapping[str, Any]]
# Names shown -> logged scalar and how its line is drawn.
Lines = Mapping[str, tuple[str, figures.Tone]]

_VALID_LEGALITY = 'valid/legality'


def section(
  experiment: config.Experiment,
  result: Mapping[str, Any] | None,
  records: Records,
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what the section on reinforcement shows; adds its pictures.

  Args:
    experiment: settings of the run.
    result: of the stage `reinforce`.
    records: of its training.
    pictures: of the page.
  """
  if not result and not records:
    return None
  settings = experiment.reinforcement
  _pictures(settings, records, pictures)
  return {
    'summary': _summary(experiment, result or {}, records),
    'verdict': _verdict(settings, records),
    'names': [n for n in _PICTURES if n in pictures.found],
    'settings': _settings(experiment),
    'seconds': _seconds(result or {}),
    'last': _last(settings, records),
  }


# --- Pictures ---------------------------------------------------------------

_PICTURES = (
  'reinforce_legality', 'reinforce_reward', 'reinforce_group_reward',
  'reinforce_clip', 'reinforce_ratio', 'reinforce_kl', 'reinforce_distinct',
  'reinforce_loss',
)  # fmt: skip


def _points(records: Records, key: str) -> list[tuple[int, float]]:
  return [(r['step'], r[key]) for r in records if words.is_known(r.get(key))]


def _add(
  records: Records,
  names: Lines,
  pictures: words.Pictures,
  picture: str,
  *,
  caption: str,
  **options: Any,
) -> None:
  """Adds the picture of what was logged; nothing if nothing was."""
  series = {}
  for name, (key, tone) in names.items():
    points = _points(records, key)
    if points:
      steps, values = zip(*points, strict=True)
      series[name] = (steps, values, tone)
  if not series:
    return
  pictures.add(
    picture,
    figures.lines(series, **options),
    alt=f'{caption} First and last values: '
    + ', '.join(
      f'{n} {v[0]:.4g} and {v[-1]:.4g}' for n, (_, v, _) in series.items()
    ),
    caption=caption,
  )


def _pictures(
  settings: config.ReinforceConfig,
  records: Records,
  pictures: words.Pictures,
) -> None:
  free = settings.constrain == 'none'
  _add(
    records,
    {
      'groups': ('group/legality', figures.LIGHT),
      'validation, free decoding': (_VALID_LEGALITY, figures.MAIN),
    },
    pictures,
    'reinforce_legality',
    caption=(
      'Legality: generated IDs that belong to an item, of validation users'
      ' (free decoding) and of the groups'
      f' ({"free decoding" if free else "decoding with the trie"}).'
    ),
    label='legal IDs',
    percent=True,
  )
  _reward_pictures(settings, records, pictures)
  _add(
    records,
    {
      'clipped': ('policy/clip_share', figures.MAIN),
      'early-clipped (A < 0)': ('policy/early_clip_share', figures.BAD),
      'groups without spread': ('policy/zero_advantage_share', figures.OTHER),
    },
    pictures,
    'reinforce_clip',
    caption=(
      'Share of the ratios that give no gradient because of ε, share of those'
      ' with A < 0 whose old policy was raised (early clip), and share of the'
      ' groups whose rewards are all equal, which teach nothing.'
    ),
    label='share',
    percent=True,
  )
  limits = {f'1 + ε = {1 + settings.clip:g}': 1 + settings.clip}
  _add(
    records,
    {
      'largest': ('policy/ratio_max', figures.BAD),
      '99th percentile': ('policy/ratio_p99', figures.MAIN),
      'mean': ('policy/ratio_mean', figures.OTHER),
    },
    pictures,
    'reinforce_ratio',
    caption=(
      'Ratio of the policy to the generator, per step, averaged between log'
      ' lines.'
    ),
    label='ratio',
    levels={} if settings.loss == 'gbpo' else limits,
  )
  _add(
    records,
    {
      'largest': ('policy/kl_max', figures.BAD),
      '99th percentile': ('policy/kl_p99', figures.MAIN),
      'mean': ('policy/kl_mean', figures.OTHER),
      'to the seed model': ('policy/reference_kl', figures.LIGHT),
    },
    pictures,
    'reinforce_kl',
    caption='KL terms of the policy against the generator, nats.',
    label='nats',
  )
  _add(
    records,
    {'distinct items': ('group/distinct_items', figures.MAIN)},
    pictures,
    'reinforce_distinct',
    caption=(
      f'Different legal IDs per group of {settings.group_size:,} outputs. A'
      ' fall means that the policy collapses.'
    ),
    label='distinct IDs',
  )
  _add(
    records,
    {
      'training': ('token_loss', figures.OTHER),
      'validation': ('valid/token_loss', figures.MAIN),
    },
    pictures,
    'reinforce_loss',
    caption=(
      'Next-token loss on the RSFT samples (nats per code), which anchors the'
      ' model.'
    ),
    label='loss',
  )


def _reward_pictures(
  settings: config.ReinforceConfig,
  records: Records,
  pictures: words.Pictures,
) -> None:
  target = settings.reward
  name = predictions.reward_name(target)
  best = _best_of(records, target)
  _add(
    records,
    {
      'mean': (f'valid/{target}_mean', figures.PREDICTED),
      'mean, true': (f'valid/true_{target}_mean', figures.TRUE),
      **(
        {
          best: (f'valid/{target}_{best}', figures.PREDICTED_BEST),
          f'{best}, true': (f'valid/true_{target}_{best}', figures.TRUE_BEST),
        }
        if best
        else {}
      ),
    },
    pictures,
    'reinforce_reward',
    caption=(
      f'{name} of items generated for validation users. Indigo: predicted,'
      ' teal: true, where a simulated world knows it.'
    ),
    label=name,
  )
  _add(
    records,
    {
      'best': ('group/best_reward', figures.PREDICTED_BEST),
      'mean': ('group/reward', figures.PREDICTED),
      'mean, true': ('group/true_reward', figures.TRUE),
    },
    pictures,
    'reinforce_group_reward',
    caption='Rewards of the legal items of the groups that were learnt from.',
    label='reward',
  )


def _best_of(records: Records, target: str) -> str:
  """Returns 'pass@32' for the largest K that was logged; '' without any."""
  start = f'valid/{target}_pass@'
  sizes = {
    int(key.removeprefix(start))
    for record in records
    for key in record
    if key.startswith(start)
  }
  return f'pass@{max(sizes)}' if sizes else ''


# --- Words and tables -------------------------------------------------------


def _summary(
  experiment: config.Experiment,
  result: Mapping[str, Any],
  records: Records,
) -> str:
  done = result.get('steps') or max((r['step'] for r in records), default=0)
  total = experiment.reinforce.num_steps
  text = f'{words.count(done)} of {words.count(total)} steps'
  making, training = (
    sum(part.values()) for part in (_rollout_seconds(result), _train(result))
  )
  if making or training:
    text += (
      f'; making the groups took {log.duration(making)}, training'
      f' {log.duration(training)}'
    )
  if not result:
    text += '; the stage is not finished'
  return text + '.'


def _verdict(settings: config.ReinforceConfig, records: Records) -> str:
  """Returns what validation said first and last."""
  parts = []
  for key, name, form in (
    (_VALID_LEGALITY, 'legality', words.percent),
    (f'valid/{settings.reward}_mean', 'the predicted reward', words.four),
    (f'valid/true_{settings.reward}_mean', 'the true reward', words.four),
  ):
    points = _points(records, key)
    if len(points) > 1:
      (first, before), (last, after) = points[0], points[-1]
      verb = (
        'rose' if after > before else 'fell' if after < before else 'stayed'
      )
      parts.append(
        f'{name} {verb} from {form(before)} (step {first:,}) to {form(after)}'
        f' (step {last:,})'
      )
  if not parts:
    return ''
  return f'Of validation users, {"; ".join(parts)}.'


def _settings(experiment: config.Experiment) -> dict[str, Any]:
  """Returns the settings that make the result."""
  r, train = experiment.reinforcement, experiment.reinforce
  loss = f'{r.loss.upper()}, ratio per {r.ratio_level}'
  if r.loss != 'gbpo':
    loss += f', ε = {r.clip:g}'
  if r.loss == 'ecpo':
    loss += f', δ = {r.early_clip:g}'
  if r.loss == 'grpo':
    loss += f', β = {r.kl_weight:g}'
  rollouts = 'the best by beam search'
  if r.rollouts == 'sample':
    rollouts = f'drawn at temperature {r.temperature:g}'
    if r.sample_top_k:
      rollouts += f', top-k {r.sample_top_k}'
    if r.sample_top_p < 1:
      rollouts += f', top-p {r.sample_top_p:g}'
  generator = 'the pre-trained model (off-policy)'
  if r.generator == 'current':
    generator = (
      f'current policy, synchronised every {r.sync_every_steps:,} steps'
    )
  form = 'none'
  if r.format_weight and r.format_samples:
    kind = 'at random' if r.format_choice == 'random' else 'the most probable'
    form = f'{r.format_samples} of {r.group_size:,}, {kind}'
  kept = 'all examples'
  if r.rsft_column is not None:
    kept = (
      f'without the lowest {100 * r.rsft_drop_share:g} % of the sessions by'
      f' {r.rsft_column}'
    )
  industrial = 'none'
  if r.industrial.categories:
    industrial = (
      f'{", ".join(r.industrial.categories)}: reward times'
      f' {r.industrial.factor:g} above a share of'
      f' {100 * r.industrial.target_share:g} %'
    )
  rows = [
    ('policy loss', loss),
    ('reward', predictions.reward_name(r.reward)),
    ('weights', f'λ_rl = {r.weight:g}, λ_fmt = {r.format_weight:g}'),
    (
      'groups',
      f'{r.group_size:,} items for {100 * r.user_share:g} % of the samples',
    ),
    ('rollouts', rollouts),
    (
      'rollouts’ constraint',
      'none (illegal IDs are seen)' if r.constrain == 'none' else r.constrain,
    ),
    ('generator', generator),
    ('format reward', form),
    ('suppressed categories', industrial),
    ('RSFT samples', kept),
    (
      'training',
      f'{train.num_steps:,} steps of {train.batch_size:,} samples, learning'
      f' rate {train.optimizer.peak_learning_rate:g}',
    ),
  ]
  return {
    'caption': 'Settings',
    'columns': ['setting', 'value'],
    'rows': [{'cells': row} for row in rows],
  }


def _rollout_seconds(result: Mapping[str, Any]) -> dict[str, float]:
  found = (result.get('rollouts') or {}).get('seconds') or {}
  return {k: float(v) for k, v in found.items() if words.is_known(v)}


def _train(result: Mapping[str, Any]) -> dict[str, float]:
  value = result.get('training_seconds')
  return {'training': float(value)} if words.is_known(value) else {}


def _seconds(result: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns where the time went; None before the stage is finished."""
  making, training = _rollout_seconds(result), _train(result)
  spent = {f'rollouts: {k.replace("_", " ")}': v for k, v in making.items()}
  spent |= training
  total = sum(spent.values())
  if not total:
    return None
  return {
    'caption': 'Time by kind; the share is of rollouts and training',
    'columns': ['kind', 'time', 'share'],
    'rows': [
      {'cells': [k, words.seconds(v), words.percent(v / total)]}
      for k, v in spent.items()
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
    ('policy/log_prob', 'log-probability of an output, nats', words.four),
  ):
    points = _points(records, key)
    if points:
      (_, before), (_, after) = points[0], points[-1]
      rows.append({'cells': [name, form(before), form(after)]})
  if not rows:
    return None
  return {
    'caption': 'The groups at the first and at the last log line',
    'columns': ['figure', 'first', 'last'],
    'rows': rows,
  }
