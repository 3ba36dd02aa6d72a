"""Times beam search at TIGER's sizes against HuggingFace generate in PyTorch.

  python -m experiments.benchmarks.beam_search --rounds=7

Encoder included, 80 history tokens, 3 levels x 256 codes, float32.  HuggingFace
T5 runs `generate` with `prefix_allowed_tokens_fn` over the same catalogue; both
answers are checked to be legal and distinct.  The contenders live at once and
take turns.  Needs torch and transformers.  Writes results/beam_search.json.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import harness
from onerec_jax import huge_pages

_LEVELS, _CODES = 3, 256
_HISTORY_TOKENS = 80
_SPECIALS = 3
_RESULT = harness.RESULTS / 'beam_search.json'


def catalogue(num_items: int) -> np.ndarray:
  """Returns codes of `num_items` items, without duplicates. [num_items, 3]"""
  generator = np.random.default_rng(0)
  picked = generator.choice(_CODES**_LEVELS, num_items, replace=False)
  return np.stack(np.unravel_index(picked, (_CODES,) * _LEVELS), -1)


def histories(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns random token histories and their mask. [B, 80] each"""
  generator = np.random.default_rng(1)
  length = generator.integers(5, 21, batch_size) * 4
  shape = (batch_size, _HISTORY_TOKENS)
  tokens = _SPECIALS + generator.integers(0, _LEVELS * _CODES, shape)
  return tokens, np.arange(_HISTORY_TOKENS)[None] < length[:, None]


def prepare_ours(
  batch_size: int, num_beams: int, num_items: int, constrain: bool
) -> Callable[[], np.ndarray]:
  """Returns a function from nothing to codes [B, W, 3]."""
  import jax
  import jax.numpy as jnp

  from experiments.benchmarks import models
  from onerec_jax.decoding import beam_search
  from onerec_jax.model import encoder_input
  from onerec_jax.model import onerec
  from onerec_jax.model import parameters
  from onerec_jax.semantic_ids import prefix_trie
  from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

  # 20 items x (3 codes + SEP) = 80 tokens
  model_config = models.tiger_config(history_separator=True)
  codes_per_level = (_CODES,) * _LEVELS
  model = onerec.OneRec(
    model_config, vocabulary_lib.Vocabulary(codes_per_level), 1
  )
  params = jax.tree.map(
    jnp.asarray, parameters.materialize(onerec.abstract_params(model), seed=0)
  )
  bias = jnp.asarray(onerec.initial_router_bias(model_config))
  trie = prefix_trie.PrefixTrie.build(catalogue(num_items), codes_per_level)
  _, mask = histories(batch_size)
  history_mask = jnp.asarray(mask[:, ::4])
  generator = np.random.default_rng(1)
  history = jnp.asarray(
    generator.integers(0, _CODES, (*history_mask.shape, _LEVELS)), jnp.int32
  )

  @jax.jit
  def search(params, trie, history, history_mask):
    apply = lambda *args, method, **sizes: model.apply(  # noqa: E731
      {'params': params}, *args, method=method, **sizes
    )
    user = jnp.zeros(batch_size, jnp.int32)
    inputs = encoder_input.EncoderInput(history, history_mask, user)
    encoded = apply(inputs, method='encode')
    context = apply(
      encoded,
      jnp.zeros((batch_size, 0, _LEVELS), jnp.int32),
      jnp.zeros((batch_size, 0), bool),
      bias,
      method='start_decoding',
    )
    cache = apply(
      batch=batch_size, beams=1, length=_LEVELS, method='init_cache'
    )
    result = beam_search.search(
      lambda prefix, position, cache: apply(
        prefix, position, cache, context, bias, method='decode_step'
      ),
      cache,
      trie=trie if constrain else None,
      codes_per_level=codes_per_level,
      num_beams=num_beams,
    )
    return result.codes[:, :, 0], result.log_probs

  def run() -> np.ndarray:
    return np.asarray(search(params, trie, history, history_mask)[0])

  return run


def prepare_torch(
  batch_size: int,
  num_beams: int,
  num_items: int,
  constrain: bool,
  *,
  place: str = 'cpu',
) -> Callable[[], np.ndarray]:
  """Returns a function from nothing to codes [B, W, 3], run on `place`."""
  import torch  # pyright: ignore[reportMissingImports] # peer, not a dependency
  import transformers  # pyright: ignore[reportMissingImports] # peer

  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=_SPECIALS + _LEVELS * _CODES,
    d_model=128,
    d_kv=64,
    d_ff=1024,
    num_layers=4,
    num_decoder_layers=4,
    num_heads=6,
    feed_forward_proj='relu',
    decoder_start_token_id=1,
    pad_token_id=0,
    eos_token_id=None,  # every answer has exactly three codes
  )
  # On a GPU as JAX multiplies float32 there.
  torch.set_float32_matmul_precision('highest' if place == 'cpu' else 'high')
  model = transformers.T5ForConditionalGeneration(config).eval().to(place)
  tokens, mask = histories(batch_size)
  inputs = torch.from_numpy(np.where(mask, tokens, 0)).long().to(place)
  attention = torch.from_numpy(mask).long().to(place)
  offsets = _SPECIALS + np.arange(_LEVELS) * _CODES
  # The usual trie of the peers: a dictionary from prefix to allowed tokens.
  allowed: dict[tuple[int, ...], set[int]] = {}
  for row in (catalogue(num_items) + offsets).tolist():
    for l in range(_LEVELS):
      allowed.setdefault(tuple(row[:l]), set()).add(row[l])
  lists = {prefix: sorted(nexts) for prefix, nexts in allowed.items()}
  level_tokens = [list(range(o, o + _CODES)) for o in offsets]

  def trie_tokens(_: int, sequence: Any) -> list[int]:
    return lists[tuple(sequence[1:].tolist())]

  def free_tokens(_: int, sequence: Any) -> list[int]:
    return level_tokens[len(sequence) - 1]

  def run() -> np.ndarray:
    with torch.inference_mode():
      out = model.generate(
        inputs,
        attention_mask=attention,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=_LEVELS,
        min_new_tokens=_LEVELS,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=trie_tokens if constrain else free_tokens,
      )
    codes = out[:, 1 : 1 + _LEVELS].cpu().numpy() - offsets
    return codes.reshape(batch_size, num_beams, _LEVELS)

  return run


def check_answer(
  name: str,
  codes: np.ndarray,
  *,
  num_beams: int,
  num_items: int,
  constrain: bool = True,
) -> float:
  """Returns the share of the codes that are legal.

  Raises:
    ValueError: an ID comes twice, or (constrained) one is not legal.
  """
  place = [_CODES**2, _CODES, 1]
  answers = codes.astype(np.int64) @ place
  distinct = min(len(np.unique(row)) for row in answers)
  legal = float(np.isin(answers, catalogue(num_items) @ place).mean())
  if distinct != num_beams or (constrain and legal != 1.0):
    raise ValueError(
      f'{name} returned {distinct} distinct IDs of {num_beams}, {legal:.1%}'
      ' of them legal.'
    )
  return legal


# name: (framework, items in the trie, constrained)
_CONTENDERS: dict[str, tuple[str, int, bool]] = {
  'torch_trie': ('torch', 12_000, True),
  'ours_trie': ('ours', 12_000, True),
  'ours_free': ('ours', 12_000, False),
  'ours_trie_1e4': ('ours', 10_000, True),
  'ours_trie_1e5': ('ours', 100_000, True),
  'ours_trie_1e6': ('ours', 1_000_000, True),
  # 6 in 10 of all codes there are.
  'ours_trie_1e7': ('ours', 10_000_000, True),
}


def _serve(
  connection: Any,
  names: list[str],
  batch_size: int,
  num_beams: int,
  threads: int | None,
) -> None:
  """Child process, one per framework: times a contender per request.

  Behind an untimed call, as in train_step.py.
  """
  if threads == 1:
    harness.use_one_core()
  runs = {}
  about = {}
  for name in names:
    framework, num_items, constrain = _CONTENDERS[name]
    prepare = prepare_torch if framework == 'torch' else prepare_ours
    start = time.perf_counter()
    runs[name] = prepare(batch_size, num_beams, num_items, constrain)
    codes = runs[name]()
    first = time.perf_counter() - start
    legal = check_answer(
      name,
      codes,
      num_beams=num_beams,
      num_items=num_items,
      constrain=constrain,
    )
    about[name] = {
      'items': num_items,
      'constrained': constrain,
      'legal_share': legal,
      'prepare_and_first_call_seconds': first,
    }
  connection.send(about)
  while name := connection.recv():
    runs[name]()
    wall, cpu = time.perf_counter(), time.process_time()
    runs[name]()
    times = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    connection.send((*times, memory))


def measure(
  names: list[str],
  *,
  batch_size: int,
  num_beams: int,
  rounds: int,
  warmup: int,
  threads: int | None,
) -> dict[str, dict[str, Any]]:
  """Returns wall and CPU seconds per call of every contender, in turns."""
  context = multiprocessing.get_context('spawn')
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(_CONTENDERS[name][0], []).append(name)
  pipes, children, results = {}, [], {}
  for members in groups.values():
    here, there = context.Pipe()
    child = context.Process(
      target=_serve, args=(there, members, batch_size, num_beams, threads)
    )
    child.start()
    children.append((child, here))
    results.update(here.recv())
    pipes.update({name: here for name in members})
  times: dict[str, list[tuple[float, float]]] = {n: [] for n in names}
  for number in range(warmup + rounds):
    # The order turns around every round, so that drift hits all alike.
    for name in names if number % 2 else names[::-1]:
      pipes[name].send(name)
      wall, cpu, memory = pipes[name].recv()
      if number >= warmup:
        times[name].append((wall, cpu))
        results[name]['process_peak_mib'] = memory
        print(f'{name} {wall:.3f} s wall {cpu:.3f} s cpu', flush=True)
  for child, here in children:
    here.send('')
    child.join()
  for name in names:
    results[name] |= harness.seconds(times[name])
    spent = results[name]['wall_seconds_median']
    results[name]['users_per_second'] = batch_size / spent
  return results


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--num_beams', type=int, default=50)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--warmup', type=int, default=1)
  parser.add_argument('--threads', type=int, choices=(1,))
  parser.add_argument('--contenders', default=','.join(_CONTENDERS))
  parser.add_argument('--output', default=str(_RESULT))
  args = parser.parse_args()
  names = args.contenders.split(',')
  load = os.getloadavg()
  results = measure(
    names,
    batch_size=args.batch_size,
    num_beams=args.num_beams,
    rounds=args.rounds,
    warmup=args.warmup,
    threads=args.threads,
  )
  ratios = {
    f'{slow} / {fast}': harness.ratio(results[slow], results[fast])
    for slow, fast in (
      ('torch_trie', 'ours_trie'),
      *((n, 'ours_free') for n in names if n.startswith('ours_trie')),
    )
    if slow in names and fast in names
  }
  packages = ['jax', 'flax', 'numpy']
  if any(_CONTENDERS[n][0] == 'torch' for n in names):
    packages += ['torch', 'transformers']
  result = harness.report(
    'beam_search',
    packages,
    batch_size=args.batch_size,
    num_beams=args.num_beams,
    threads=args.threads or os.cpu_count(),
    load_average_before=load,
    results=results,
    ratios=ratios,
  )
  print(json.dumps(ratios, indent=1))
  harness.write(args.output, result)


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
