"""Markdown tables of rewards and of what predicts them, from kept figures.

Sessions and items before and after alignment; the P-Score model.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from experiments import measured_runs
from experiments import result_tables


def session_rewards(name: str, title: str) -> str:
  """Returns the rewards of generated sessions before and after alignment."""
  run = measured_runs.read(name)
  found = run and run['stages']['evaluate'].get('session_rewards')
  if not run or not found:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  evaluated, align = run['stages']['evaluate'], run['stages']['align']
  methods = found['methods']
  recall = evaluated['difference_to_before']['recall@10']
  seconds = align['rounds'][0]['rollouts']['seconds']
  legal = [
    100 * methods[m]['legality'].get('free_sessions', 1.0)
    for m in ('pretrained', 'onerec')
  ]
  rollouts = sum(
    sum(r['rollouts']['seconds'].values()) for r in align['rounds']
  )
  return '\n'.join(
    [
      f'**{title}.** {methods["onerec"]["users"]:,} test users,'
      f' {found["sessions_per_user"]} sessions of'
      f' {found["items_per_session"]} items each, judged by the session reward'
      f' model; ± over {found["resamples"]} resamples of the users.',
      '',
      _before_and_after(evaluated['methods'], found, found['columns']),
      '',
      f'recall@10 of the next item {result_tables.interval(recall)}. Legal'
      ' sessions under'
      f' free decoding {legal[0]:.1f} % before, {legal[1]:.1f} % after.'
      f' {len(align["rounds"])} rounds: {rollouts:.0f} s of rollouts and'
      f' scoring ({seconds["generate"]:.0f} s generation in the first),'
      f' {align["training_seconds"]:.0f} s of training.',
    ]
  )


def item_rewards(name: str, title: str) -> str:
  """Returns the P-Scores of generated items before and after reinforcement."""
  run = measured_runs.read(name)
  found = run and run['stages']['evaluate'].get('item_rewards')
  if not run or not found:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  evaluated, methods = run['stages']['evaluate'], found['methods']
  recall = evaluated['difference_to_before']['recall@10']
  legal = [
    100 * methods[m]['legality']['free_items'] for m in ('pretrained', 'onerec')
  ]
  parts = ('mean', *(f'pass@{k}' for k in found['pass_at']))
  minutes = sum(stage['seconds'] for stage in run['stages'].values()) / 60
  return '\n'.join(
    [
      f'**{title}.** {methods["onerec"]["users"]:,} test users,'
      f' {found["items_per_user"]} items each, judged by the P-Score model; ±'
      f' over {found["resamples"]} resamples of the users.',
      '',
      _before_and_after(
        evaluated['methods'], found, [f'p_score_{part}' for part in parts]
      ),
      '',
      f'recall@10 of the next item {result_tables.interval(recall)}. Legal'
      ' items under'
      f' free decoding {legal[0]:.1f} % before, {legal[1]:.1f} % after.'
      f' {minutes:.0f} minutes for all stages on {run["machine"]}.'
      f' Commit {run["commit"]}.',
    ]
  )


def _before_and_after(
  titles: Mapping[str, Any], found: Mapping[str, Any], columns: Sequence[str]
) -> str:
  """Returns rewards of the pre-trained and of the final model, a row each."""
  methods, rows = found['methods'], []
  for column in columns:
    moved = methods['onerec']['difference'][column]
    rows.append(
      [
        column.replace('_', ' '),
        *(
          f'{methods[m]["figures"][column]["mean"]:.4f}'
          f' ± {methods[m]["figures"][column]["std"]:.4f}'
          for m in ('pretrained', 'onerec')
        ),
        result_tables.interval(moved),
      ]
    )
  header = [
    'reward', titles['pretrained']['title'], titles['onerec']['title'],
    'difference (95 %, paired)',
  ]  # fmt: skip
  return result_tables.markdown(header, rows)


def p_score_model(name: str, title: str) -> str:
  """Returns AUCs of the P-Score model beside the logistic regressions."""
  run = measured_runs.read(name)
  if run is None:
    return f'**{title}**: {result_tables.NOT_MEASURED}.'
  # A sweep's judge, of its first seed, or a run's own.
  result = (
    run['sweep']['reward_model'][0]
    if 'sweep' in run
    else run['stages']['p_score']
  )
  kinds = {
    'tower': 'tower',
    'p_score': 'P-Score',
    'logistic': 'logistic',
    'logistic_rates': '+ past rates',
  }
  rows = []
  for tower in result['towers']:
    found = tower['held_out']
    gains = (
      found[f'tower_over_{baseline}']['auc']
      for baseline in ('logistic', 'logistic_rates')
    )
    rows.append(
      [
        f'{tower["name"]}: {tower["definition"]}',
        *(
          f'{found[kind][metric]["value"]:.3f}'
          for metric in ('auc', 'grouped_auc')
          for kind in kinds
        ),
        *(
          f'{gain["value"]:+.4f} ({gain["low"]:+.4f} to {gain["high"]:+.4f})'
          for gain in gains
        ),
      ]
    )
  header = [
    'tower',
    *(f'{m} {kind}' for m in ('AUC', 'GAUC') for kind in kinds.values()),
    'AUC, tower over logistic (95 %)', 'over logistic + past rates',
  ]  # fmt: skip
  counts = result['impressions']
  return '\n'.join(
    [
      f'**{title}.** {counts["held_out_judged"]:,} shown items of'
      f' {counts["held_out_users_judged"]:,} held-out users. “logistic” reads'
      ' what the towers read, in linear form; “+ past rates” also the rates at'
      ' which user and item earned each label.',
      '',
      result_tables.markdown(header, rows),
      '',
      _own_lists(result['personalisation']),
    ]
  )


def _own_lists(found: Mapping[str, Any]) -> str:
  """Returns by how much lists for each user can be above one for all."""
  gains = ', '.join(
    f'{name.replace("_", "-")} {100 * gain["value"]:.1f} %'
    f' ({100 * gain["low"]:.1f} to {100 * gain["high"]:.1f})'
    for name, gain in (
      (name, figures['gain']) for name, figures in found['scores'].items()
    )
  )
  return (
    f'What knowing the user can add, by the model itself: the'
    f' {found["items_per_list"]} items that are best for each of'
    f' {found["users"]} held-out users over the {found["items_per_list"]} that'
    f' are best for all of them: {gains}.'
  )
