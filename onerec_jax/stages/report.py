"""Stage `report`: everything a run has recorded, as one page to look at.

Writes report/report.html (pictures inside, no outside references) and the
pictures beside it.  Computes no figure that a stage has not written; what has
not run is shown as such.
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import predictions
from onerec_jax.stages import report_alignment
from onerec_jax.stages import report_evaluation
from onerec_jax.stages import report_item_rewards
from onerec_jax.stages import report_items
from onerec_jax.stages import report_p_score
from onerec_jax.stages import report_page
from onerec_jax.stages import report_reinforce
from onerec_jax.stages import report_reward
from onerec_jax.stages import report_session_rewards
from onerec_jax.stages import report_training
from onerec_jax.stages import report_words as words
from onerec_jax.train import log

_TEMPLATE = 'report_template.html'


def run(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Writes the report of whatever has run.

  Returns:
    The page's path, its size and the names of its pictures.
  """
  folder = workdir.stage('report')
  pictures = words.Pictures(folder)
  results = {stage: workdir.result(stage) for stage in config.STAGES}
  results = {
    stage: result
    for stage, result in results.items()
    if result is not None or stage in (*config.BASE_STAGES, *experiment.stages)
  }
  evaluated, trained = results['evaluate'], results['pretrain']
  records = {
    stage: log.read_metrics(workdir.folder(stage) / log.METRICS)
    for stage in ('pretrain', 'reward', 'p_score')
  }
  cause = _cause(experiment)
  page = {
    'title': experiment.name,
    'subtitle': _subtitle(experiment, results['prepare']),
    'meta': _meta(experiment, results),
    'cards': _cards(evaluated, trained, cause=cause),
    'results': evaluated
    and report_evaluation.results(evaluated, pictures, cause=cause),
    'slices': evaluated and report_evaluation.slices(evaluated, pictures),
    'users': evaluated and report_evaluation.users(evaluated),
    'training': report_training.training(
      records['pretrain'], trained, pictures
    ),
    'ids': report_training.semantic_ids(workdir, results['tokenize'], pictures),
    'categories': report_items.categories(results['tokenize']),
    # Absent, not "not run", where an experiment has no such stage.
    'reward': report_reward.section(
      results.get('reward'), records['reward'], pictures
    ),
    'alignment': report_alignment.section(
      workdir, results.get('align'), pictures
    ),
    'rewards': report_session_rewards.section(evaluated, pictures),
    'dynamics': report_session_rewards.dynamics(evaluated, pictures),
    'vectors': report_items.section(
      results['embed'], report_items.training_records(workdir), pictures
    ),
    'p_score': report_p_score.section(
      results.get('p_score'), records['p_score'], pictures
    ),
    'items': report_item_rewards.section(evaluated, pictures, cause=cause),
    'reinforce': report_reinforce.section(
      experiment, workdir, results.get('reinforce'), pictures
    ),
    'data': results['prepare'] and report_training.data(results['prepare']),
    'run': {
      'stages': _stages(results),
      'settings': json.dumps(config.to_dict(experiment), indent=2),
    },
    'pictures': pictures.found,
  }
  html = report_page.render(_TEMPLATE, page)
  path = folder / 'report.html'
  path.write_text(html)
  logging.info('Report: %s', path)
  return {
    'page': path.name,
    'bytes': len(html.encode()),
    'pictures': sorted(pictures.found),
  }


def _cause(experiment: config.Experiment) -> str:
  """Returns what came between the pre-trained and the final model."""
  parts = []
  if 'align' in experiment.stages:
    parts.append('alignment')
  if 'reinforce' in experiment.stages:
    parts.append('reinforcement')
  return ' and '.join(parts or ['further training']).capitalize()


# --- Head -------------------------------------------------------------------


def _subtitle(
  experiment: config.Experiment, prepared: Mapping[str, Any] | None
) -> str:
  if not prepared:
    return f'OneRec on {experiment.data.source}'
  return (
    f'OneRec on {prepared.get("source", experiment.data.source)}:'
    f' {words.count(prepared.get("users"))} users,'
    f' {words.count(prepared.get("items"))} items,'
    f' {words.count(prepared.get("events"))} interactions'
  )


def _meta(
  experiment: config.Experiment, results: Mapping[str, Any]
) -> list[tuple[str, str]]:
  seconds = sum((r or {}).get('seconds', 0.0) for r in results.values())
  finished = [r['finished'] for r in results.values() if r and 'finished' in r]
  when = max(finished, default='')
  if not when:
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  return [
    ('finished', when[:16].replace('T', ' ') + ' UTC'),
    ('total', log.duration(float(seconds))),
    ('settings', config.digest(experiment)),
    ('commit', report_page.commit()),
    ('seed', str(experiment.seed)),
  ]


def _cards(
  evaluated: Mapping[str, Any] | None,
  trained: Mapping[str, Any] | None,
  *,
  cause: str,
) -> list[dict[str, str]]:
  cards = []
  if evaluated:
    k = evaluated['headline_k']
    ours = evaluated['metrics'][predictions.OURS]
    recall, ndcg = f'recall@{k}', f'ndcg@{k}'
    best = evaluated['best_floor']
    floor = evaluated['metrics'][best][recall]['mean']
    difference = evaluated['difference_to_best_floor'][recall]
    cards += [
      _card(
        f'Recall@{k}',
        words.four(ours[recall]['mean']),
        words.bounds(ours[recall]),
      ),
      _card(
        f'NDCG@{k}', words.four(ours[ndcg]['mean']), words.bounds(ours[ndcg])
      ),
      _card(
        'Best floor',
        words.four(floor),
        f'{evaluated["methods"][best]["title"]}, Recall@{k}',
      ),
      _card(
        'Ours minus floor',
        words.signed(difference['mean']),
        words.signed_bounds(difference),
      ),
      *(_card(**c) for c in report_session_rewards.cards(evaluated)),
      *(_card(**c) for c in report_item_rewards.cards(evaluated, cause=cause)),
    ]
  if trained:
    active = words.compact(trained.get('num_active_parameters'))
    steps = words.count(trained.get('steps'))
    cards += [
      _card(
        'Parameters',
        words.compact(trained.get('num_parameters')),
        f'{active} active per token',
      ),
      _card(
        'Training',
        log.duration(float(trained.get('training_seconds') or 0)),
        f'{steps} steps on {trained.get("device", "?")}',
      ),
    ]
  return cards


def _card(label: str, value: str, note: str) -> dict[str, str]:
  return {'label': label, 'value': value, 'note': note}


def _stages(results: Mapping[str, Any]) -> dict[str, Any]:
  rows = []
  for stage, result in results.items():
    if stage == 'report':
      continue
    if result is None:
      rows.append({'cells': [stage, 'not run', '', '']})
      continue
    rows.append(
      {
        'cells': [
          stage,
          words.seconds(result.get('seconds')),
          f'{words.count(result.get("peak_memory_mb"))} MB',
          str(result.get('digest', words.UNKNOWN)),
        ]
      }
    )
  return {
    'columns': ['stage', 'time', 'peak memory', 'settings'],
    'rows': rows,
  }
