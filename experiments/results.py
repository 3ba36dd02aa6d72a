"""The tables of all pages, re-derived from committed result files.

  python -m experiments.results                 check that the pages are true
  python -m experiments.results --write         rewrite their tables
  python -m experiments.results --collect runs/quickstart   keep a run's figures

Runs are kept in experiments/measured/, benchmarks in experiments/benchmarks/
results/, compilations in tpu/aot/.  A table stands between <!-- results:NAME
--> and its closing twin.
"""

import argparse
import functools
import pathlib
import re
import sys
from collections.abc import Callable

from experiments import headlines
from experiments import measured_runs
from experiments import result_pictures
from experiments import result_tables
from experiments import reward_tables
from experiments import sweep_tables
from experiments.benchmarks import summary
from onerec_jax.aot import table as aot_table

_ROOT = pathlib.Path(__file__).parent.parent
_PAGES = (
  'README.md', 'experiments/README.md', 'experiments/benchmarks/README.md',
  'tpu/README.md',
)  # fmt: skip

# Sweeps with variants: what each asks.
_REPORT = {
  'rl': 'reinforcement learning',
  'format': 'format reward',
  'group_size': 'size of the group',
  'rollouts': 'beam against sampling',
  'generator': 'on- against off-policy',
  'pathways': 'pathways and features',
  'codebook': 'size of the codebooks',
  'item_input': 'semantic IDs against item ids',
}
_NEXT_ITEM = {
  ('public_benchmark', 'beauty'): 'Amazon Beauty 2014',
  ('public_benchmark', 'sports'): 'Amazon Sports and Outdoors 2014',
  ('public_benchmark', 'beauty_cpu'): 'Amazon Beauty 2014',
  ('public_benchmark', 'sports_cpu'): 'Amazon Sports and Outdoors 2014',
  ('benchmark_ablations', 'codes'): 'Amazon Beauty 2014, semantic IDs',
  ('benchmark_ablations', 'vectors'): 'Amazon Beauty 2014, item vectors',
  ('benchmark_ablations', 'experts'): 'Amazon Beauty 2014, experts',
}

_of = functools.partial
_BLOCKS: dict[str, Callable[[], str]] = {
  'headlines': headlines.table,
  'quickstart': _of(
    result_tables.ranking, 'quickstart', 'MovieLens-100K, `make quickstart`'
  ),
  'tiger_beauty': _of(
    result_tables.ranking,
    'tiger_beauty',
    'Amazon Beauty 2014, TIGER, the beginning of its training',
    recipe='tiger_amazon.py:beauty',
    model='TIGER',
  ),
  'quickstart_sessions': _of(
    reward_tables.session_rewards,
    'quickstart',
    'MovieLens-100K, sessions before and after alignment',
  ),
  'table1_synthetic': _of(
    sweep_tables.table_1, 'table1_synthetic_full', 'Simulated world'
  ),
  'table1_kuairand': _of(
    sweep_tables.table_1, 'table1_kuairand_small', 'KuaiRand-Pure, `:small`'
  ),
  'ipa_share': _of(
    sweep_tables.sessions,
    'ipa_ablations_r_dpo',
    'Simulated world, share of samples with a pair',
    recipe='ipa_ablations.py:r_dpo',
  ),
  'ipa_scale': _of(
    sweep_tables.sessions,
    'ipa_ablations_scale',
    'Simulated world, model size',
    recipe='ipa_ablations.py:scale',
  ),
  'ipa_settings': _of(
    sweep_tables.sessions,
    'table1_synthetic_ipa',
    'Simulated world, IPA beyond the tuning',
    recipe='table1_synthetic.py:ipa',
  ),
  'item_alignment': _of(
    result_tables.item_alignment,
    'item_alignment_beauty',
    'Amazon Beauty 2014, item alignment',
  ),
  'tr_kuairand_pathways': _of(
    sweep_tables.item_sweep,
    'onerec_tr_kuairand_pathways',
    'KuaiRand-Pure, pathways and features',
    recipe='onerec_tr_kuairand.py:pathways',
  ),
  'tr_kuairand_next_item': _of(
    sweep_tables.next_item,
    'onerec_tr_kuairand_pathways_next_item',
    'KuaiRand-Pure, pathways and features, next item',
    recipe='onerec_tr_kuairand.py:pathways_next_item',
    slices=False,
  ),
  'tr_kuairand_p_score': _of(
    reward_tables.p_score_model,
    'onerec_tr_kuairand_full',
    'KuaiRand-Pure, P-Score model',
  ),
  'tr_kuairand': _of(
    reward_tables.item_rewards,
    'onerec_tr_kuairand_full',
    'KuaiRand-Pure, before and after ECPO',
  ),
  'tr_movielens': _of(
    reward_tables.item_rewards,
    'onerec_tr_movielens',
    'MovieLens-100K, before and after ECPO',
  ),
  **{
    f'tr_{variant}': _of(
      sweep_tables.item_sweep,
      f'tr_ablations_{variant}',
      f'Simulated world, {what}',
      recipe=f'tr_ablations.py:{variant}',
    )
    for variant, what in _REPORT.items()
  },
  **{
    f'{file}_{variant}': _of(
      sweep_tables.next_item,
      f'{file}_{variant}',
      title,
      recipe=f'{file}.py:{variant}',
    )
    for (file, variant), title in _NEXT_ITEM.items()
  },
  **{
    f'sessions_{variant}': _of(
      sweep_tables.sessions,
      f'session_ablations_{variant}',
      f'{data}, length of the session',
      recipe=f'session_ablations.py:{variant}',
    )
    for variant, data in {
      'kuairand': 'KuaiRand-Pure',
      'movielens': 'MovieLens-100K',
    }.items()
  },
  'cold_items': _of(
    result_tables.cold_items,
    'cold_items_beauty',
    'Amazon Beauty 2014, new items',
  ),
  'tokenizer': result_tables.tokenizer,
  'speed': summary.table,
  'aot': aot_table.of_recipes,
}

# --- Pages ------------------------------------------------------------------


def render(text: str) -> str:
  """Returns the page with every results block written anew."""

  def replace(match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in _BLOCKS:
      raise SystemExit(f'No table is named {name!r}: there are {[*_BLOCKS]}.')
    return (
      f'<!-- results:{name} -->\n{_BLOCKS[name]()}\n<!-- /results:{name} -->'
    )

  return re.sub(
    r'<!-- results:(\w+) -->\n.*?<!-- /results:\1 -->',
    replace,
    text,
    flags=re.DOTALL,
  )


def stale_pages(*, write: bool) -> list[str]:
  """Returns the pages whose tables differ from the files; may rewrite them."""
  stale = []
  for name in _PAGES:
    path = _ROOT / name
    text = path.read_text()
    fresh = render(text)
    if fresh != text:
      stale.append(name)
      if write:
        path.write_text(fresh)
  return stale


def stale_pictures(*, write: bool) -> list[str]:
  """Returns the pictures of other figures than those kept; may redraw them."""
  stale = []
  for name, make in result_pictures.PICTURES.items():
    path, picture = measured_runs.FOLDER / name, make()
    drawn = path.read_bytes() if path.exists() else b''
    if picture.digest().encode() not in drawn:
      stale.append(path.name)
      if write:
        path.write_bytes(picture.png())
  return stale


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--write', action='store_true')
  parser.add_argument('--collect', type=pathlib.Path, metavar='WORKDIR')
  arguments = parser.parse_args()
  if arguments.collect:
    print(f'wrote {measured_runs.collect(arguments.collect)}')
    return
  write = arguments.write
  stale = stale_pages(write=write) + stale_pictures(write=write)
  verb = 'rewrote' if arguments.write else 'out of date'
  print('\n'.join(f'{verb}: {name}' for name in stale) or 'all is true')
  sys.exit(bool(stale) and not write)


if __name__ == '__main__':
  main()
