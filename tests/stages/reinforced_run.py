"""What a run of the technical report's system leaves, made up; no test."""

import dataclasses
import json

from onerec_jax import config
from onerec_jax import workdir as workdir_lib

SETTINGS = config.ReinforceConfig(
  group_size=32, user_share=0.25, sync_every_steps=10, rsft_column='watch_time'
)
EXPERIMENT = config.Experiment(
  name='tiny',
  stages=config.TR_STAGES,
  reinforcement=SETTINGS,
  reinforce=config.TrainConfig(batch_size=64, num_steps=40),
)


def valid(step: int, *, truth: bool = True) -> dict:
  """What validation says: legality falls, then returns."""
  return {
    'valid/legality': {0: 0.97, 20: 0.6, 40: 0.955}[step],
    'valid/users_with_item': 1.0,
    'valid/p_score_mean': 0.3 + 0.001 * step,
    'valid/p_score_pass@8': 0.4 + 0.001 * step,
    'valid/p_score_pass@32': 0.5 + 0.001 * step,
    'valid/ltr_mean': 0.05,
    **({'valid/true_p_score_mean': 0.3 - 0.001 * step} if truth else {}),
  }


def records(**options) -> list[dict]:
  """metrics.jsonl of the stage; the names of objectives/reinforce.py."""
  return [
    {
      'step': step,
      'loss': 1.0,
      'token_loss': 2.0 - 0.01 * step,
      'policy/objective': 0.01,
      'policy/format_objective': 0.9,
      'policy/clip_share': 0.01 * step,
      'policy/early_clip_share': 0.002 * step,
      'policy/zero_advantage_share': 0.1,
      'policy/ratio_mean': 1.0,
      'policy/ratio_p99': 1.0 + 0.1 * step,
      'policy/ratio_max': 1.0 + 10.0 * step,
      'policy/kl_mean': 0.01,
      'policy/kl_p99': 0.2,
      'policy/kl_max': 2.0,
      'policy/log_prob': -6.0,
      'group/legality': 0.96 - 0.005 * step,
      'group/distinct_items': 30.0 - 0.1 * step,
      'group/reward': 0.31,
      'group/best_reward': 0.45,
      'group/true_reward': 0.29,
      'group/reward_std': 0.05,
      **({'valid/token_loss': 1.9} if step % 20 == 0 else {}),
      **(valid(step, **options) if step % 20 == 0 else {}),
    }
    for step in (10, 20, 30, 40)
  ]


def intervals(*, industrial: bool = False) -> list[dict]:
  """What `group_supply` keeps of every sync interval."""
  return [
    {
      'first_step': first,
      'stop_step': first + 10,
      'groups': 160,
      'seconds': {'generate': 2.0, 'log_probs': 1.0, 'score': 0.5},
      'figures': {
        'legality': 0.9,
        'reward': {
          'p_score': {'mean': 0.3 + 0.003 * first, 'best': 0.5},
          'ltr': {'mean': 0.05, 'best': 0.2},
        },
        **(
          {'industrial': {'share': 0.2, 'groups_suppressed': 0.5}}
          if industrial
          else {}
        ),
      },
    }
    for first in (0, 10, 20, 30)
  ]


def reinforce_result() -> dict:
  """Result of the stage `reinforce`, as far as the page reads it."""
  return {
    'loss': 'ecpo',
    'reward': 'p_score',
    'steps': 40,
    'rsft': {'column': 'watch_time', 'examples_before': 900, 'examples': 450},
    'training_seconds': 20.0,
    'compile_seconds': 5.0,
    'validation_seconds': 1.0,
  }


def write_training(workdir, *, made=True, **options) -> None:
  """Writes what the stage leaves while it runs."""
  folder = workdir.stage('reinforce')
  lines = ''.join(json.dumps(r) + '\n' for r in records(**options))
  (folder / 'metrics.jsonl').write_text(lines)
  workdir_lib.write_json(folder / 'before.json', valid(0, **options))
  if made:
    workdir_lib.write_json(folder / 'rollouts.json', {'intervals': intervals()})


def changed(**settings) -> config.Experiment:
  """The experiment with other settings of reinforcement."""
  return dataclasses.replace(
    EXPERIMENT, reinforcement=dataclasses.replace(SETTINGS, **settings)
  )


def figure(mean: float) -> dict:
  return {'mean': mean, 'std': 0.01, 'low': mean - 0.01, 'high': mean + 0.01}


def evaluate_result() -> dict:
  """Result of `evaluate`: ours, ours before, one floor, items of both."""
  titles = {'onerec': 'OneRec + ECPO', 'pretrained': 'OneRec, pre-trained'}
  titles['popularity'] = 'Popularity'
  scores = {
    m: {f'{n}@10': figure(0.2) for n in ('recall', 'ndcg', 'mrr')}
    for m in titles
  }
  columns = {'p_score_mean': 0.1, 'p_score_pass@8': 0.2}
  columns |= {f'true_{c}': 0.0 for c in columns}

  def items(after: int) -> dict:
    return {
      'figures': {c: figure(0.5 + gain * after) for c, gain in columns.items()},
      'difference': {c: figure(gain * after) for c, gain in columns.items()},
      'users': 50,
      'users_without_session': 0,
      'legality': {'free_items': 0.9},
    }

  return {
    'split': 'test',
    'users': 50,
    'candidates': 120,
    'history_excluded': True,
    'num_beams': 20,
    'constrained': 'trie',
    'headline_k': 10,
    'methods': {m: {'title': t, 'description': ''} for m, t in titles.items()},
    'metrics': scores,
    'metrics_by_id': scores,
    'list_quality': {m: {'coverage@10': 0.5} for m in titles},
    'best_floor': 'popularity',
    'difference_to_best_floor': scores['onerec'],
    'difference_to_before': scores['onerec'],
    'legality': 1.0,
    'hypotheses': 400,
    'empty_results': 0,
    'short_results': 0,
    'entropy_per_level': [2.0, 1.0],
    'codes_per_level': [12, 12],
    'slices': {},
    'examples': [],
    'session_rewards': None,
    'item_rewards': {
      'targets': ['p_score'],
      'columns': list(columns),
      'base': 'pretrained',
      'items_per_user': 8,
      'pass_at': [8],
      'resamples': 20,
      'methods': {'onerec': items(1), 'pretrained': items(0)},
    },
  }


def p_score_result() -> dict:
  """Result of `p_score` with a tower that nothing is known of."""
  return {
    'steps': 10,
    'towers': [{'name': 'ltr', 'held_out': {}}],
    'impressions': {},
  }


def embed_result() -> dict:
  """Result of `embed` with an alignment."""
  vectors = {
    name: {'valid': {'examples': 5, 'hit@10': hit, 'ndcg@10': 0.1}}
    for name, hit in (('unaligned', 0.1), ('aligned', 0.2))
  }
  return {
    'alignment': {
      'pairs': {'user_to_item': 3, 'item_to_item': 1},
      'captions': {'used': False},
      'training': {'steps': 10, 'final': {}},
      'quality': {
        'vectors': vectors,
        'aligned_over_unaligned': {
          'valid': {'ratio': 2.0, 'low': 1.5, 'high': 2.5}
        },
        'neighbours': [
          {'item': 'A <b>', 'unaligned': ['B'], 'aligned': ['C', 'D']}
        ],
      },
    },
  }


def write_logs(workdir) -> None:
  """Writes the logs of all trainings, as an interrupted run leaves them."""
  write_training(workdir)
  (workdir.stage('p_score') / 'metrics.jsonl').write_text(
    '{"step": 5, "loss": 2.0}\n{"step": 10, "lo'
  )
  folder = workdir.stage('embed') / 'alignment' / 'abc'
  folder.mkdir(parents=True)
  (folder / 'metrics.jsonl').write_text('{"step": 5, "contrastive": 2.0}\n')
