"""The pictures of reinforcement: from what was logged to what is drawn.

Computes nothing but ratios; leaves out what was not recorded.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from onerec_jax import config
from onerec_jax.stages import predictions
from onerec_jax.stages import report_curves
from onerec_jax.stages import report_reinforce_figures as figures
from onerec_jax.stages import report_words as words

Records = Sequence[Mapping[str, Any]]
# Names shown -> logged scalar and how its line is drawn.
Lines = Mapping[str, tuple[str, figures.Tone]]

LEGALITY = 'valid/legality'

NAMES = (
  'reinforce_legality', 'reinforce_reward', 'reinforce_group_reward',
  'reinforce_components', 'reinforce_clip', 'reinforce_ratio', 'reinforce_kl',
  'reinforce_distinct', 'reinforce_loss', 'reinforce_industrial',
)  # fmt: skip


def points(records: Records, key: str) -> list[tuple[int, float]]:
  """Returns step and value of every record in which a scalar is known."""
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
    found = points(records, key)
    if found:
      steps, values = zip(*found, strict=True)
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


def add_all(
  settings: config.ReinforceConfig,
  records: Records,
  intervals: Records,
  pictures: words.Pictures,
) -> None:
  """Adds every picture that something was recorded for.

  Args:
    settings: of the reinforcement.
    records: of the training; step 0: validation before it.
    intervals: figures of the groups by the interval they were made for.
    pictures: of the page.
  """
  made = [_flat(i) for i in intervals]
  free = settings.constrain == 'none'
  _add(
    records,
    {
      'groups': ('group/legality', figures.OTHER),
      'validation, free decoding': (LEGALITY, figures.MAIN),
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
  _component_pictures(made, pictures)
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


# --- Per interval -----------------------------------------------------------


def _flat(interval: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an interval's figures as a record of its first step."""
  found = interval.get('figures') or {}
  return {
    'step': interval['first_step'],
    **{
      f'reward/{name}': value.get('mean')
      for name, value in (found.get('reward') or {}).items()
    },
    **{
      f'industrial/{name}': value
      for name, value in (found.get('industrial') or {}).items()
    },
  }


def _component_pictures(made: Records, pictures: words.Pictures) -> None:
  """Adds all rewards of the generated items, and what was suppressed."""
  first: dict[str, float] = {}
  shares: list[dict[str, Any]] = []
  for record in made:
    shares.append({'step': record['step']})
    for key, value in record.items():
      if key.startswith('reward/') and words.is_known(value):
        first.setdefault(key, value)
        if first[key]:
          shares[-1][key] = value / first[key]
  report_curves.add_curves(
    [(0, shares)],
    {  # the fused score first, whatever the order in the file
      predictions.reward_name(key.removeprefix('reward/')): key
      for key in sorted(first, key=lambda k: k != 'reward/p_score')
    },
    pictures,
    'reinforce_components',
    caption=(
      'Predicted rewards of the items of the groups, as multiples of those of'
      ' the first groups: the fused score and every objective.'
    ),
    label='multiple',
  )
  _add(
    made,
    {
      'share of generated items': ('industrial/share', figures.MAIN),
      'groups with lowered rewards': (
        'industrial/groups_suppressed',
        figures.OTHER,
      ),
    },
    pictures,
    'reinforce_industrial',
    caption=(
      'Suppressed categories: their share of the last generated items, and the'
      ' share of groups in which it was above the target.'
    ),
    label='share',
    percent=True,
  )
