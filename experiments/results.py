"""The tables of all pages, re-derived from committed result files.

  python -m experiments.results                 check that the pages are true
  python -m experiments.results --write         rewrite their tables
  python -m experiments.results --collect runs/quickstart   keep a run's figures

Runs are kept in experiments/measured/, benchmarks in experiments/benchmarks/
results/, compilations in tpu/aot/.  A table stands between <!-- results:NAME
--> and its closing twin.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable

from experiments import headlines
from experiments import measured_runs
from experiments import result_tables
from experiments import sweep_tables
from experiments.benchmarks import summary
from onerec_jax.aot import table as aot_table

_ROOT = pathlib.Path(__file__).parent.parent
_PAGES = (
  'README.md', 'experiments/README.md', 'experiments/benchmarks/README.md',
  'tpu/README.md',
)  # fmt: skip

_BLOCKS: dict[str, Callable[[], str]] = {
  'headlines': headlines.table,
  'quickstart': lambda: result_tables.ranking(
    'quickstart', 'MovieLens-100K, `make quickstart`'
  ),
  'beauty': lambda: result_tables.ranking(
    'onerec_amazon_beauty',
    'Amazon Beauty 2014',
    recipe='onerec_amazon.py:beauty',
  ),
  'beauty_slices': lambda: result_tables.slices(
    'onerec_amazon_beauty', 'Amazon Beauty 2014'
  ),
  'sasrec_beauty': lambda: result_tables.ranking(
    'sasrec_beauty',
    'Amazon Beauty 2014, SASRec with full softmax',
    recipe='sasrec_amazon.py:beauty',
  ),
  'sports': lambda: result_tables.ranking(
    'onerec_amazon_sports',
    'Amazon Sports and Outdoors 2014',
    recipe='onerec_amazon.py:sports',
  ),
  'sasrec_sports': lambda: result_tables.ranking(
    'sasrec_sports',
    'Amazon Sports and Outdoors 2014, SASRec with full softmax',
    recipe='sasrec_amazon.py:sports',
  ),
  'kuairand': lambda: result_tables.ranking(
    'onerec_v1_kuairand', 'KuaiRand-Pure'
  ),
  'quickstart_sessions': lambda: result_tables.session_rewards(
    'quickstart', 'MovieLens-100K, sessions before and after alignment'
  ),
  'table1_synthetic': lambda: sweep_tables.table_1(
    'table1_synthetic_full', 'Simulated world'
  ),
  'table1_kuairand': lambda: sweep_tables.table_1(
    'table1_kuairand_small', 'KuaiRand-Pure, `:small`'
  ),
  'ipa_share': lambda: sweep_tables.sessions(
    'ipa_ablations_r_dpo',
    'Simulated world, share of samples with a pair',
    recipe='ipa_ablations.py:r_dpo',
  ),
  'ipa_scale': lambda: sweep_tables.sessions(
    'ipa_ablations_scale',
    'Simulated world, model size',
    recipe='ipa_ablations.py:scale',
  ),
  'ipa_settings': lambda: sweep_tables.sessions(
    'table1_synthetic_ipa',
    'Simulated world, IPA beyond the tuning',
    recipe='table1_synthetic.py:ipa',
  ),
  'item_alignment': lambda: result_tables.item_alignment(
    'item_alignment_beauty', 'Amazon Beauty 2014, item alignment'
  ),
  'tr_rl': lambda: sweep_tables.item_sweep(
    'tr_ablations_rl', 'Simulated world, reinforcement learning'
  ),
  'tr_format': lambda: sweep_tables.item_sweep(
    'tr_ablations_format', 'Simulated world, format reward'
  ),
  'tr_group_size': lambda: sweep_tables.item_sweep(
    'tr_ablations_group_size', 'Simulated world, size of the group'
  ),
  'tr_rollouts': lambda: sweep_tables.item_sweep(
    'tr_ablations_rollouts', 'Simulated world, beam against sampling'
  ),
  'tr_generator': lambda: sweep_tables.item_sweep(
    'tr_ablations_generator', 'Simulated world, on- against off-policy'
  ),
  'tr_pathways': lambda: sweep_tables.item_sweep(
    'tr_ablations_pathways', 'Simulated world, pathways and features'
  ),
  'tr_codebook': lambda: sweep_tables.item_sweep(
    'tr_ablations_codebook', 'Simulated world, size of the codebooks'
  ),
  'tr_item_input': lambda: sweep_tables.item_sweep(
    'tr_ablations_item_input', 'Simulated world, semantic IDs against item ids'
  ),
  'tr_kuairand_pathways': lambda: sweep_tables.item_sweep(
    'onerec_tr_kuairand_pathways', 'KuaiRand-Pure, pathways and features'
  ),
  'tr_kuairand_next_item': lambda: sweep_tables.next_item(
    'onerec_tr_kuairand_pathways_next_item',
    'KuaiRand-Pure, pathways and features, next item',
    recipe='onerec_tr_kuairand.py:pathways_next_item',
    slices=False,
  ),
  'tr_kuairand_p_score': lambda: result_tables.p_score_model(
    'onerec_tr_kuairand_full', 'KuaiRand-Pure, P-Score model'
  ),
  'tr_kuairand': lambda: result_tables.item_rewards(
    'onerec_tr_kuairand_full', 'KuaiRand-Pure, before and after ECPO'
  ),
  'tr_movielens': lambda: result_tables.item_rewards(
    'onerec_tr_movielens', 'MovieLens-100K, before and after ECPO'
  ),
  'public_benchmark_beauty': lambda: sweep_tables.next_item(
    'public_benchmark_beauty',
    'Amazon Beauty 2014',
    recipe='public_benchmark.py:beauty',
  ),
  'public_benchmark_sports': lambda: sweep_tables.next_item(
    'public_benchmark_sports',
    'Amazon Sports and Outdoors 2014',
    recipe='public_benchmark.py:sports',
  ),
  'public_benchmark_small': lambda: sweep_tables.next_item(
    'public_benchmark_small',
    'Amazon Beauty 2014, few steps',
    recipe='public_benchmark.py:small',
  ),
  'ablation_codes': lambda: sweep_tables.next_item(
    'benchmark_ablations_codes',
    'Amazon Beauty 2014, semantic IDs',
    recipe='benchmark_ablations.py:codes',
  ),
  'ablation_vectors': lambda: sweep_tables.next_item(
    'benchmark_ablations_vectors',
    'Amazon Beauty 2014, item vectors',
    recipe='benchmark_ablations.py:vectors',
  ),
  'ablation_experts': lambda: sweep_tables.next_item(
    'benchmark_ablations_experts',
    'Amazon Beauty 2014, experts',
    recipe='benchmark_ablations.py:experts',
  ),
  'sessions_kuairand': lambda: sweep_tables.sessions(
    'session_ablations_kuairand',
    'KuaiRand-Pure, length of the session',
    recipe='session_ablations.py:kuairand',
  ),
  'sessions_movielens': lambda: sweep_tables.sessions(
    'session_ablations_movielens',
    'MovieLens-100K, length of the session',
    recipe='session_ablations.py:movielens',
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


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--write', action='store_true')
  parser.add_argument('--collect', type=pathlib.Path, metavar='WORKDIR')
  arguments = parser.parse_args()
  if arguments.collect:
    print(f'wrote {measured_runs.collect(arguments.collect)}')
    return
  stale = stale_pages(write=arguments.write)
  verb = 'rewrote' if arguments.write else 'out of date'
  print('\n'.join(f'{verb}: {name}' for name in stale) or 'all tables are true')
  sys.exit(bool(stale) and not arguments.write)


if __name__ == '__main__':
  main()
