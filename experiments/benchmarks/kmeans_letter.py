"""Compares our semantic IDs of Amazon Beauty with LETTER's published ones.

  ONEREC_DATA=... python -m experiments.benchmarks.kmeans_letter

Ours: balanced and plain residual k-means on the MiniLM text vectors, 4 levels
x 256 codes like LETTER's.  Reads amazon2014/ under ONEREC_DATA; writes
results/kmeans_letter.json.  Judges IDs only: LETTER's vectors are LLaMA's with
collaborative ones, so reconstruction is not comparable and left out for it.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

import jax
import numpy as np

from onerec_jax import config as config_lib
from onerec_jax.semantic_ids import collisions
from onerec_jax.semantic_ids import quality
from onerec_jax.semantic_ids import residual_kmeans

_RESULT = pathlib.Path(__file__).parent / 'results' / 'kmeans_letter.json'
_LEVELS, _CODES = 4, 256


def letter_codes(path: pathlib.Path) -> np.ndarray:
  """Returns LETTER's codes, row = item. int [I, 4]"""
  published = json.loads(path.read_text())
  return np.array(
    [
      [int(token[3:-1]) for token in published[str(i)]]  # '<a_183>'
      for i in range(len(published))
    ]
  )


def popularity_of(path: pathlib.Path, num_items: int) -> np.ndarray:
  """Returns training positives per item (all but each user's last two)."""
  counts = np.zeros(num_items, np.int64)
  for line in path.read_text().splitlines():
    items = [int(i) - 1 for i in line.split()[1:]]
    np.add.at(counts, items[:-2], 1)
  return counts


def main() -> None:
  if 'ONEREC_DATA' not in os.environ:
    sys.exit('Set ONEREC_DATA to the folder that holds amazon2014/.')
  folder = pathlib.Path(os.environ['ONEREC_DATA']) / 'amazon2014'
  embeddings = np.load(folder / 'Beauty.minilm-l6-v2.f16.npy').astype('f4')
  categories = [
    json.loads(line)['categories']
    for line in (folder / 'Beauty.items.jsonl').read_text().splitlines()
  ]
  popularity = popularity_of(folder / 'Beauty.sequences.txt', len(embeddings))
  sizes = (_CODES,) * _LEVELS
  table: dict[str, Any] = {
    'letter': quality.report(
      letter_codes(folder / 'Beauty.letter_semantic_ids.json'),
      codes_per_level=sizes,
      categories=categories,
    )
  }
  for quantizer in ('balanced_kmeans', 'kmeans'):
    config = config_lib.TokenizerConfig(
      levels=_LEVELS, codes_per_level=_CODES, quantizer=quantizer
    )
    begin = time.perf_counter()
    fit = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
    codes = residual_kmeans.encode(fit.codebooks, embeddings)
    seconds = time.perf_counter() - begin
    for policy in ('bucket', 'reassign'):
      resolved = collisions.resolve(
        codes,
        policy=policy,
        codebooks=fit.codebooks,
        embeddings=embeddings,
        popularity=popularity,
      )
      name = quantizer if policy == 'bucket' else f'{quantizer}_{policy}'
      table[name] = quality.report(
        resolved.ids.codes,
        codes_per_level=sizes,
        embeddings=embeddings,
        reconstructed=residual_kmeans.reconstruct(
          fit.codebooks, resolved.ids.codes
        ),
        categories=categories,
      ) | {
        'seconds_with_compile': seconds,
        'moved': resolved.moved,
        'unresolved': resolved.unresolved,
      }
  result = {
    'command': 'python -m experiments.benchmarks.kmeans_letter',
    'date': datetime.date.today().isoformat(),
    'cpu_count': os.cpu_count(),
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'numpy': np.__version__,
    },
    'data': 'Amazon Beauty 2014, 12,101 items; ours from MiniLM-L6 vectors',
    'ids': table,
  }
  _RESULT.parent.mkdir(exist_ok=True)
  _RESULT.write_text(json.dumps(result, indent=1) + '\n')
  for name, entry in table.items():
    levels = entry['levels']
    used = [round(level['utilisation'] * _CODES) for level in levels]
    entropy = [round(level['entropy_nats'], 3) for level in levels]
    cosine = [round(level['category_agreement'], 3) for level in levels[:2]]
    print(
      f'{name:25s} used {used}, entropy {entropy} nats,'
      f' {entry["ids"]["distinct"]} distinct,'
      f' {entry["ids"]["collision_share"]:.2%} of items share an ID, largest'
      f' bucket {entry["ids"]["largest_bucket"]}, category cosine {cosine}'
    )


if __name__ == '__main__':
  main()
