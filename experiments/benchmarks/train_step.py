"""Times one training step at TIGER's shapes against HuggingFace T5 in PyTorch.

  python -m experiments.benchmarks.train_step --rounds=9

Both processes live at once and take turns, step by step, on the same padded
batch with dropout 0.1, float32 and Adam; needs torch and transformers.  The
models have equal parameter counts.  Writes results/train_step.json.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import harness
from onerec_jax import huge_pages

# TIGER (arXiv:2305.05065): 20 items x 4 codes and a user token in, BOS and 4
# codes out.
_ITEMS, _LEVELS, _CODES, _USERS = 20, 4, 256, 2000
_RESULT = harness.RESULTS / 'train_step.json'
PACKAGES = ('jax', 'flax', 'optax', 'torch', 'transformers')


def make_batch(batch_size: int, items: int = _ITEMS) -> dict[str, np.ndarray]:
  """Returns random users with items/4 to `items` history items, padded."""
  generator = np.random.default_rng(0)
  length = generator.integers(-(-items // 4), items + 1, batch_size)
  shape = (batch_size, items, _LEVELS)
  return {
    'history_codes': generator.integers(0, _CODES, shape, np.int32),
    'history_mask': np.arange(items)[None] < length[:, None],
    'user': np.arange(batch_size, dtype=np.int32),
    'target_codes': generator.integers(
      0, _CODES, (batch_size, 1, _LEVELS), np.int32
    ),
    'target_mask': np.ones((batch_size, 1), bool),
  }


def _timer(run: Callable[[], float]) -> tuple[float, float, float]:
  wall, cpu = time.perf_counter(), time.process_time()
  loss = run()
  return time.perf_counter() - wall, time.process_time() - cpu, loss


def prepare_ours(
  batch_size: int, *, items: int = _ITEMS, **changes: Any
) -> tuple[Callable[[], float], dict[str, Any]]:
  """Returns a function that does one step of OneRec, and what it is."""
  import jax
  import jax.numpy as jnp
  import optax

  from experiments.benchmarks import models
  from onerec_jax.losses import likelihood
  from onerec_jax.model import encoder_input
  from onerec_jax.model import flops
  from onerec_jax.model import onerec
  from onerec_jax.model import parameters
  from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

  fields: dict[str, Any] = dict(
    dropout_rate=0.1, history_separator=False, user_buckets=_USERS
  )
  model_config = models.tiger_config(**(fields | changes))
  vocabulary = vocabulary_lib.Vocabulary((_CODES,) * _LEVELS, _USERS)
  model = onerec.OneRec(model_config, vocabulary, 1)
  params = jax.tree.map(
    jnp.asarray, parameters.materialize(onerec.abstract_params(model), seed=0)
  )
  optimizer = optax.adam(2e-4)
  batch = {k: jnp.asarray(v) for k, v in make_batch(batch_size, items).items()}
  bias = jnp.asarray(onerec.initial_router_bias(model_config))

  def step(params, opt_state, number):
    key = jax.random.fold_in(jax.random.key(0), number)

    def loss(params):
      output: Any = model.apply(
        {'params': params},
        encoder_input.EncoderInput(
          batch['history_codes'], batch['history_mask'], batch['user']
        ),
        batch['target_codes'],
        batch['target_mask'],
        bias,
        deterministic=False,
        rngs={'dropout': key},
      )
      tokens = likelihood.next_code_loss(
        output.logits,
        batch['target_codes'],
        batch['target_mask'],
        codes_per_level=vocabulary.codes_per_level,
      )
      return jnp.mean(tokens.loss)

    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  start = time.perf_counter()
  compiled = (
    jax.jit(step, donate_argnums=(0, 1))
    .lower(params, optimizer.init(params), jnp.asarray(0))
    .compile()
  )
  compile_seconds = time.perf_counter() - start
  memory: Any = compiled.memory_analysis()
  about = {
    'parameters': parameters.count(params),
    'train_gflops': flops.train_flops(
      model_config,
      vocabulary,
      history_items=items,
      items_per_session=1,
    )
    * batch_size
    / 1e9,
    'compile_seconds': compile_seconds,
    'temporary_mib': memory.temp_size_in_bytes / 2**20,
  }
  state = [params, optimizer.init(params), 0]
  del params

  def run() -> float:
    *state[:2], value = compiled(*state[:2], jnp.asarray(state[2]))
    state[2] += 1
    return float(value)

  return run, about


def prepare_torch(
  batch_size: int, *, place: str = 'cpu', compiled: bool = False
) -> tuple[Callable[[], float], dict[str, Any]]:
  """Returns a function that does one step of HuggingFace T5, and what it is.

  Args:
    batch_size: of the step.
    place: 'cpu' or 'cuda'.
    compiled: by torch.compile, which takes a minute at the first step.
  """
  import torch  # pyright: ignore[reportMissingImports] # an optional peer
  import transformers  # pyright: ignore[reportMissingImports] # an optional peer

  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=3 + _LEVELS * _CODES + _USERS,
    d_model=128,
    d_kv=64,
    d_ff=1024,
    num_layers=4,
    num_decoder_layers=4,
    num_heads=6,
    dropout_rate=0.1,
    feed_forward_proj='relu',
    decoder_start_token_id=1,
    pad_token_id=0,
    eos_token_id=2,
  )
  # On a GPU as JAX multiplies float32 there.
  torch.set_float32_matmul_precision('highest' if place == 'cpu' else 'high')
  model = transformers.T5ForConditionalGeneration(config).train().to(place)
  optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, fused=True)
  batch = make_batch(batch_size)
  offsets = 3 + np.arange(_LEVELS) * _CODES
  history = (batch['history_codes'] + offsets).reshape(batch_size, -1)
  user = 3 + _LEVELS * _CODES + batch['user'] % _USERS
  tokens = np.concatenate([user[:, None], history], 1)
  mask = np.concatenate(
    [
      np.ones((batch_size, 1), bool),
      np.repeat(batch['history_mask'], _LEVELS, 1),
    ],
    1,
  )
  # Four codes and EOS: five decoder tokens, as many as ours (BOS, four codes).
  labels = np.concatenate(
    [batch['target_codes'][:, 0] + offsets, np.full((batch_size, 1), 2)], 1
  )
  inputs = dict(
    input_ids=torch.from_numpy(np.where(mask, tokens, 0)).long(),
    attention_mask=torch.from_numpy(mask).long(),
    labels=torch.from_numpy(labels).long(),
  )
  inputs = {name: value.to(place) for name, value in inputs.items()}
  forward = torch.compile(model) if compiled else model

  def run() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = forward(**inputs).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())

  return run, {
    'parameters': sum(p.numel() for p in model.parameters()),
    'attention': model.config._attn_implementation,
    'threads': torch.get_num_threads(),
  }


def _serve(
  connection: Any, name: str, batch_size: int, threads: int | None
) -> None:
  """Child process: times a step per request, behind an untimed one.

  A process that slept through the others' turns finds its memory paged out
  or out of the caches; a training does not sleep.
  """
  if threads == 1:
    harness.use_one_core()
  if name in ('torch', 'torch_compiled'):
    run, about = prepare_torch(batch_size, compiled=name == 'torch_compiled')
  else:
    run, about = prepare_ours(batch_size, **_variant(name))
  connection.send(about)
  while connection.recv():
    run()
    connection.send(_timer(run))


_VARIANTS: dict[str, dict[str, Any]] = {
  'ours': {},
  'ours_projected': {'cross_attention': 'projected'},
  'ours_scanned': {'scan_layers': True},
  'ours_no_dropout': {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0},
}


def _variant(name: str) -> dict[str, Any]:
  """Returns what `name` changes; 'ours_12' pads histories to 12 items."""
  if name in _VARIANTS:
    return _VARIANTS[name]
  items = name.removeprefix('ours_')
  if not items.isdigit():
    raise ValueError(
      f'No contender is named {name!r}: there are torch, torch_compiled,'
      f' {", ".join(_VARIANTS)} and ours_N, padded to N items.'
    )
  return {'items': int(items)}


def measure(
  names: list[str],
  *,
  batch_size: int,
  rounds: int,
  warmup: int,
  threads: int | None,
) -> dict[str, Any]:
  """Returns wall and CPU seconds per step of every contender, in turns."""
  context = multiprocessing.get_context('spawn')
  children = {}
  for name in names:
    here, there = context.Pipe()
    child = context.Process(
      target=_serve, args=(there, name, batch_size, threads)
    )
    child.start()
    children[name] = (child, here, here.recv())
  times: dict[str, list[tuple[float, float, float]]] = {n: [] for n in names}
  for number in range(warmup + rounds):
    # The order turns around every round, so that drift hits all alike.
    for name in names if number % 2 else names[::-1]:
      _, pipe, _ = children[name]
      pipe.send(True)
      result = pipe.recv()
      if number >= warmup:
        times[name].append(result)
        print(
          f'{name} {result[0]:.3f} s wall {result[1]:.3f} s cpu', flush=True
        )
  for child, pipe, _ in children.values():
    pipe.send(False)
    child.join()

  def summary(name: str) -> dict[str, Any]:
    spent = harness.seconds([(wall, cpu) for wall, cpu, _ in times[name]])
    return children[name][2] | {
      **spent,
      'samples_per_second': batch_size / spent['wall_seconds_median'],
      'last_loss': times[name][-1][2],
    }

  return {name: summary(name) for name in names}


def ratios(results: dict[str, Any], peer: str) -> dict[str, Any]:
  """Returns the speed of every contender over the peer's, round by round."""
  return {
    name: harness.ratio(results[peer], result)
    for name, result in results.items()
    if name != peer
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--batch_size', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--warmup', type=int, default=1)
  parser.add_argument(
    '--threads',
    type=int,
    choices=(1,),
    help='1: each step on one core; torch spins while it waits for a busy core,'
    ' so that only this compares fairly on a shared machine. Default: all.',
  )
  parser.add_argument('--contenders', default='torch,ours')
  parser.add_argument('--output', default=str(_RESULT))
  args = parser.parse_args()
  names = args.contenders.split(',')
  results = measure(
    names,
    batch_size=args.batch_size,
    rounds=args.rounds,
    warmup=args.warmup,
    threads=args.threads,
  )
  counts = {results[name]['parameters'] for name in names}
  if len(counts) > 1:
    raise ValueError(f'The models differ in size: {counts} parameters.')
  peers = [name for name in names if name.startswith('torch')]
  result = harness.report(
    'train_step',
    PACKAGES,
    batch_size=args.batch_size,
    threads=args.threads or os.cpu_count(),
    results=results,
    **{f'speed_over_{peer}': ratios(results, peer) for peer in peers},
  )
  for peer in peers:
    print(json.dumps(result[f'speed_over_{peer}'], indent=1))
  harness.write(args.output, result)


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
