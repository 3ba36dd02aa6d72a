"""What the stages of an aligned run leave, made up; no test by itself."""

import json
import math

import numpy as np

from onerec_jax import workdir as workdir_lib

TARGETS = ('swt', 'vtr', 'wtr', 'ltr')
_MEANS = {'reward': 0.72, 'swt': 0.1, 'vtr': 0.6, 'wtr': 0.0035, 'ltr': 0.036}


def columns(*, truth: bool) -> list[str]:
  """Column names as the stage writes them."""
  names = [f'{t}_{p}' for t in ('reward', *TARGETS) for p in ('mean', 'max')]
  return [*names, *(f'true_{n}' for n in names if truth)]


def figure(column: str, factor: float) -> dict[str, float]:
  """A figure with its ± and interval."""
  mean = _MEANS[column.removeprefix('true_').rpartition('_')[0]] * factor
  mean *= 1.4 if column.endswith('max') else 1.0
  return {
    'mean': mean, 'std': 0.08 * mean, 'low': 0.97 * mean, 'high': 1.03 * mean,
  }  # fmt: skip


# Gains of alignment; the true ltr falls: the reward model is fooled there.
_GAINS = {'reward': 0.1, 'swt': 0.06, 'vtr': 0.02, 'wtr': 0.01, 'ltr': 0.3}
_TRUE_GAINS = {**_GAINS, 'reward': 0.04, 'swt': 0.05, 'ltr': -0.1}


def gain(column: str) -> float:
  """Share by which alignment changes a column."""
  gains = _TRUE_GAINS if column.startswith('true_') else _GAINS
  return gains[column.removeprefix('true_').rpartition('_')[0]]


def method(names, *, aligned: bool) -> dict:
  """One model of `session_rewards`."""
  factors = {c: 1 + gain(c) * aligned for c in names}
  difference = {}
  for c in names:
    change = figure(c, factors[c])['mean'] - figure(c, 1.0)['mean']
    spread = 0.02 * figure(c, 1.0)['mean'] * aligned
    difference[c] = {
      'mean': change, 'low': change - spread, 'high': change + spread,
      'share_above_zero': 1.0,
    }  # fmt: skip
  return {
    'figures': {c: figure(c, factors[c]) for c in names},
    'users': 480,
    'users_without_session': 3 * aligned,
    'difference': difference,
    'legality': {'free_sessions': 0.85 + 0.05 * aligned, 'free_items': 0.97},
  }


def session_rewards(*, truth: bool = True, codes: int = 12) -> dict:
  """`session_rewards` of the stage `evaluate`."""
  rng = np.random.default_rng(0)
  names = columns(truth=truth)

  def softmax(sharpness: float, code: int) -> list[float]:
    logits = sharpness * rng.normal(size=codes)
    logits[code] = 1.5 * sharpness
    return (np.exp(logits) / np.exp(logits).sum()).tolist()

  return {
    'targets': list(TARGETS),
    'columns': names,
    'base': 'pretrained',
    'sessions_per_user': 8,
    'items_per_session': 5,
    'resamples': 20,
    'methods': {
      'onerec': method(names, aligned=True),
      'pretrained': method(names, aligned=False),
    },
    'dynamics': [
      {
        'item': f'Item <{u}>',
        'reward': 0.8,
        'codes': [3, 0, codes - 1],
        'probabilities': {
          'onerec': [softmax(1.5, 3), softmax(2.5, 0), softmax(5, codes - 1)],
          'pretrained': [softmax(1, 3), softmax(2, 0), softmax(4, codes - 1)],
        },
      }
      for u in range(4)
    ],
  }


def evaluated(**options) -> dict:
  """Result of the stage `evaluate`, as far as these sections read it."""
  return {
    'methods': {
      'onerec': {'title': 'OneRec + IPA', 'description': ''},
      'pretrained': {'title': 'OneRec, pre-trained', 'description': ''},
    },
    'session_rewards': session_rewards(**options),
  }


def reward_result() -> dict:
  """Result of the stage `reward`."""
  bins = np.linspace(0.5, 1.5, 10)
  targets = []
  for name in TARGETS:
    mean = _MEANS[name]
    targets.append(
      {
        'name': name,
        'weight': 1.0,
        'definition': f'1 if any item has {name} > 0',
        'train_known_share': 0.98,
        'train_mean_label': mean,
        'held_out': {
          'auc': {'value': 0.74, 'low': 0.72, 'high': 0.76},
          'grouped_auc': {'value': 0.61, 'low': 0.58, 'high': 0.64},
          'bce': {'value': 0.21, 'low': 0.2, 'high': 0.22},
          'bce_constant': 0.25,
          'positive_share': mean,
          'sessions': 900,
          'calibration': [
            {
              'mean_prediction': mean * b,
              'mean_label': mean * (b + 0.1 * math.sin(9 * b)),
              'count': 90,
            }
            for b in bins
          ],
        },
      }
    )
  return {
    'steps': 400,
    'num_parameters': 120_000,
    'training_seconds': 31.0,
    'targets': targets,
    'sessions': {
      'train': 9000,
      'train_users': 800,
      'held_out_judged': 900,
      'held_out_users': 90,
      'items_per_session': 5,
    },
  }


def align_round(number: int, *, truth: bool = True) -> dict:
  """Result of one round of the stage `align`."""
  pairs, legal = 40 + number, 500
  rollouts = {
    'users': 50,
    'pairs': pairs,
    'skipped': {'equal_rewards': 3, 'same_session': 0},
    'candidates': 512,
    'legal': legal,
    'reward_sum': (0.70 + 0.03 * number) * legal,
    'chosen_reward_sum': (0.95 + 0.02 * number) * pairs,
    'rejected_reward_sum': 0.5 * pairs,
    'seconds': {'generate': 6.2, 'score': 1.1, 'reference': 0.9},
  }
  if truth:
    rollouts |= {
      'true_reward_sum': (0.69 + 0.01 * number) * legal,
      'true_chosen_reward_sum': 0.8 * pairs,
      'true_rejected_reward_sum': 0.6 * pairs,
    }
  return {
    'round': number,
    'steps': 30,
    'samples': 3000,
    'rollouts': rollouts,
    'final': {'preference/loss': 0.61, 'preference/accuracy': 0.7},
    'training_seconds': 12.5,
  }


def align_result(num_rounds: int = 3) -> dict:
  """Result of the stage `align`."""
  return {
    'loss': 'dpo',
    'pairs': 'beam_rm',
    'rounds': [align_round(n) for n in range(1, num_rounds + 1)],
  }


def write_rounds(workdir, num_rounds: int = 3) -> None:
  """Writes plan and log of every round."""
  rng = np.random.default_rng(1)
  for number in range(1, num_rounds + 1):
    folder = workdir.folder('align') / f'round_{number:02d}'
    folder.mkdir(parents=True, exist_ok=True)
    workdir_lib.write_json(folder / 'plan.json', {'num_steps': 30})
    lines = [
      json.dumps(
        {
          'step': step,
          'loss': 9 - 0.01 * step + rng.normal(0, 0.05),
          'token_loss': 2 - 0.002 * step + rng.normal(0, 0.01),
          'preference/loss': 0.69 - 0.004 * step + rng.normal(0, 0.01),
          'preference/accuracy': 0.5 + 0.01 * step,
          'preference/margin': 0.01 * step,
          **({'valid/reward_mean': 0.7 + 0.01 * number} if step == 30 else {}),
          **({'valid/reward_max': 0.9 + 0.02 * number} if step == 30 else {}),
        }
      )
      for step in range(2, 31, 2)
    ]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


def evaluate_result(**options) -> dict:
  """A whole result of `evaluate`: ours, ours before alignment, one floor."""
  scores = {'onerec': 0.30, 'pretrained': 0.08, 'popularity': 0.10}
  titles = {
    'onerec': 'OneRec + IPA',
    'pretrained': 'OneRec, pre-trained',
    'popularity': 'Popularity',
  }
  names = ('recall@10', 'ndcg@10', 'mrr@10')
  figures_of = {
    m: {n: {'mean': v, 'low': v - 0.02, 'high': v + 0.02} for n in names}
    for m, v in scores.items()
  }
  change = {'mean': -0.01, 'low': -0.03, 'high': 0.01}
  return {
    'split': 'test',
    'users': 500,
    'candidates': 200,
    'history_excluded': True,
    'num_beams': 20,
    'constrained': 'trie',
    'headline_k': 10,
    'methods': {
      m: {'title': t, 'description': f'about {m}'} for m, t in titles.items()
    },
    'metrics': figures_of,
    'metrics_by_id': figures_of,
    'list_quality': {m: {'coverage@10': 0.5} for m in scores},
    'best_floor': 'popularity',
    'difference_to_best_floor': {
      n: {'mean': 0.2, 'low': 0.18, 'high': 0.22} for n in names
    },
    'difference_to_before': {n: change for n in names},
    'legality': 1.0,
    'legality_by_model': {'onerec': 1.0, 'pretrained': 0.9912},
    'hypotheses': 4000,
    'empty_results': 0,
    'short_results': 0,
    'entropy_per_level': [2.0, 1.0, 0.5],
    'codes_per_level': [12, 12, 12],
    'slices': {
      'age': [{'slice': 'all', 'users': 500, 'methods': figures_of}],
    },
    'examples': [],
    'session_rewards': session_rewards(**options),
  }
