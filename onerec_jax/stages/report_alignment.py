"""The report's section on preference alignment.

Turns what the stage `align` and its rounds have written into tables,
sentences and pictures; computes nothing but ratios.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from etils import epath

from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import report_alignment_figures as figures
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_words as words
from onerec_jax.train import log


def section(
  workdir: workdir_lib.Workdir,
  result: Mapping[str, Any] | None,
  pictures: words.Pictures,
) -> dict[str, Any] | None:
  """Returns what the section on alignment shows; adds its pictures.

  Rounds that are still in training show their curves.
  """
  rounds: list[Mapping[str, Any]] = list((result or {}).get('rounds') or ())
  folders = _round_folders(workdir.folder('align'))
  for folder in folders[len(rounds) :]:  # the stage itself was cut off
    found = workdir_lib.read_json(folder / workdir_lib.RESULT)
    if found is not None:
      rounds.append(found)
  training = _training_records(folders)
  if not rounds and not any(records for _, records in training):
    return None
  _training_pictures(training, pictures)
  if rounds:
    _reward_picture(rounds, pictures)
    _seconds_picture(rounds, pictures)
  return {
    'summary': _alignment_summary(result, rounds),
    'rounds': _round_table(rounds),
    'skips': _skip_table(rounds),
  }


def _round_folders(folder: epath.Path) -> list[epath.Path]:
  return sorted(folder.glob('round_*')) if folder.exists() else []


def _training_records(
  folders: Sequence[epath.Path],
) -> list[tuple[int, list[dict[str, Any]]]]:
  """Returns every round's first step, counted over all rounds, and records."""
  found, offset = [], 0
  for folder in folders:
    records = log.read_metrics(folder / log.METRICS)
    found.append((offset, records))
    plan = workdir_lib.read_json(folder / 'plan.json') or {}
    last = max((r['step'] for r in records), default=0)
    offset += plan.get('num_steps', last)
  return found


def _training_pictures(
  training: Sequence[tuple[int, Sequence[Mapping[str, Any]]]],
  pictures: words.Pictures,
) -> None:
  several = len(training) > 1
  note = ' Dotted lines: a new round, with a new reference.' if several else ''
  report_curves.add_curves(
    training,
    {'preference': 'preference/loss'},
    pictures,
    'preference_loss',
    caption=f'Preference loss per pair.{note}',
    label='loss',
  )
  report_curves.add_curves(
    training,
    {'accuracy': 'preference/accuracy'},
    pictures,
    'preference_accuracy',
    caption=(
      'Pairs whose chosen session has the higher implicit reward, before the'
      ' step that learns from them.'
    ),
    label='accuracy',
    percent=True,
  )
  report_curves.add_curves(
    training,
    {'margin': 'preference/margin'},
    pictures,
    'preference_margin',
    caption='Implicit reward of the chosen minus that of the rejected.',
    label='margin',
  )
  report_curves.add_curves(
    training,
    {'training': 'loss'},
    pictures,
    'align_loss',
    caption='Whole loss: next tokens plus preference.',
    label='loss',
  )
  report_curves.add_curves(
    training,
    {
      'best session': 'valid/reward_max',
      'mean session': 'valid/reward_mean',
      'best session, true': 'valid/true_reward_max',
      'mean session, true': 'valid/true_reward_mean',
    },
    pictures,
    'align_reward',
    caption='Reward of sessions generated for validation users.',
    connected=True,
    label='reward',
  )


_KINDS = {
  'chosen': 'chosen_reward_sum',
  'candidates': 'reward_sum',
  'rejected': 'rejected_reward_sum',
}


def round_means(
  rollouts: Mapping[str, Any], *, prefix: str = ''
) -> dict[str, float | None]:
  """Returns the mean reward of candidates, chosen and rejected sessions.

  Args:
    rollouts: statistics of one round: sums and their counts.
    prefix: 'true_' for the sums by the simulated world's law.
  """
  counts = {
    'chosen': rollouts.get('pairs'),
    'candidates': rollouts.get('legal'),
    'rejected': rollouts.get('pairs'),
  }
  means = {}
  for name, key in _KINDS.items():
    total, count = rollouts.get(prefix + key), counts[name]
    means[name] = total / count if words.is_known(total) and count else None
  return means


def _reward_picture(
  rounds: Sequence[Mapping[str, Any]], pictures: words.Pictures
) -> None:
  predicted, true = (
    _mean_series(rounds, prefix=prefix) for prefix in ('', 'true_')
  )
  if not predicted:  # logged pairs are not scored
    return
  pictures.add(
    'round_rewards',
    figures.round_rewards(predicted, true, label='reward'),
    alt='Mean reward per round: '
    + '; '.join(
      f'{name}{kind} {", ".join(words.fixed(v, 3) for v in values)}'
      for kind, series in (('', predicted), (' (true)', true))
      for name, values in series.items()
    ),
    caption=(
      'Mean predicted reward (Σ ω r) of the sessions that the model generated'
      ' at the start of each round, and of the pairs chosen from them.'
      + (' Teal: their true reward.' if true else '')
    ),
  )


def _mean_series(
  rounds: Sequence[Mapping[str, Any]], *, prefix: str
) -> dict[str, list[float | None]]:
  """Returns `round_means` of all rounds; kinds that are known in one."""
  means = [round_means(r.get('rollouts') or {}, prefix=prefix) for r in rounds]
  series = {name: [m[name] for m in means] for name in _KINDS}
  return {n: s for n, s in series.items() if any(v is not None for v in s)}


def _seconds(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the seconds of one round by kind, training last."""
  rollouts = (found.get('rollouts') or {}).get('seconds') or {}
  return {
    'generate': rollouts.get('generate', 0.0),
    'score': rollouts.get('score', 0.0),
    'reference': rollouts.get('reference', 0.0),
    'training': found.get('training_seconds') or 0.0,
  }


def _seconds_picture(
  rounds: Sequence[Mapping[str, Any]], pictures: words.Pictures
) -> None:
  spent = [_seconds(r) for r in rounds]
  pictures.add(
    'round_seconds',
    figures.seconds_bars(spent),
    alt='Seconds per round: '
    + '; '.join(
      ', '.join(f'{kind} {value:.1f}' for kind, value in s.items())
      for s in spent
    ),
    caption=(
      'Time of a round: generating candidates, scoring them, the reference'
      ' log-probabilities of the pairs, and training.'
    ),
  )


def _alignment_summary(
  result: Mapping[str, Any] | None, rounds: Sequence[Mapping[str, Any]]
) -> str:
  pairs = sum((r.get('rollouts') or {}).get('pairs', 0) for r in rounds)
  samples = sum(r.get('samples', 0) for r in rounds)
  text = f'{len(rounds)} round(s) done'
  if result:
    source = {
      'beam_rm': 'best and worst of the model’s own beam by the reward model',
      'logged': 'the logged session against sessions of other users',
    }
    kind = source.get(result.get('pairs', ''), result.get('pairs'))
    text += f'; loss {result.get("loss")}, pairs: {kind}'
  if samples:
    text += (
      f'; {pairs:,} pairs for {samples:,} training samples'
      f' ({100 * pairs / samples:.2g} %)'
    )
  making = sum(sum(list(_seconds(r).values())[:-1]) for r in rounds)
  training = sum(_seconds(r)['training'] for r in rounds)
  if training:
    text += (
      f'. Making the pairs took {log.duration(making)}, training'
      f' {log.duration(training)}'
    )
  return text + '.'


def _round_table(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  rows = []
  for number, found in enumerate(rounds, 1):
    rollouts = found.get('rollouts') or {}
    means = round_means(rollouts)
    candidates = rollouts.get('candidates')
    legal = rollouts.get('legal', 0) / candidates if candidates else None
    final = found.get('final') or {}
    rows.append(
      {
        'cells': [
          str(found.get('round', number)),
          words.count(rollouts.get('users')),
          words.count(rollouts.get('pairs')),
          words.percent(legal, 2),
          *(words.fixed(means[k]) for k in ('candidates', *_PAIR)),
          words.fixed(final.get('preference/loss')),
          words.percent(final.get('preference/accuracy')),
          *(f'{s:,.1f} s' for s in _seconds(found).values()),
        ]
      }
    )
  return {
    'caption': (
      'Legal: candidates that are items of the catalogue the user has not'
      ' seen; rewards: mean predicted reward of candidates, chosen and'
      ' rejected sessions; loss and accuracy: of the pairs in the last step'
    ),
    'columns': [
      'round', 'users', 'pairs', 'legal', 'reward', *_PAIR, 'loss', 'accuracy',
      'generate', 'score', 'reference', 'training',
    ],
    'rows': rows,
  }  # fmt: skip


_PAIR = ('chosen', 'rejected')


def _skip_table(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Returns users without a pair by reason; None if there are none."""
  skipped = [
    (found.get('rollouts') or {}).get('skipped') or {} for found in rounds
  ]
  reasons = [
    name
    for name in dict.fromkeys(n for s in skipped for n in s)
    if any(s.get(name) for s in skipped)
  ]
  if not reasons:
    return None
  return {
    'caption': 'Users without a pair, by reason',
    'columns': ['round', *(r.replace('_', ' ') for r in reasons)],
    'rows': [
      {
        'cells': [
          str(found.get('round', number)),
          *(words.count(s.get(r, 0)) for r in reasons),
        ]
      }
      for number, (found, s) in enumerate(zip(rounds, skipped, strict=True), 1)
    ],
  }
