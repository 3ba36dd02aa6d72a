"""What gpu_window.py measures: one function per task, sizes for both machines.

Each returns plain values for a JSON file, runs in a process of its own, and
checks what it can check.  Decides neither order nor time.
"""

import functools
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import device_time
from experiments.benchmarks import group_step
from experiments.benchmarks import harness
from experiments.benchmarks import models
from experiments.benchmarks import moe_dispatch
from experiments.benchmarks import session_beam
from onerec_jax import accelerators
from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.decoding import recommend
from onerec_jax.model import flops
from onerec_jax.model import parameters
from onerec_jax.objectives import pretrain
from onerec_jax.semantic_ids import prefix_trie
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib


def _out_of_memory(error: Exception) -> bool:
  return 'RESOURCE_EXHAUSTED' in str(error) or 'ut of memory' in str(error)


# --- Device -----------------------------------------------------------------


def device(toy: bool) -> dict[str, Any]:
  """Returns what the device is and how fast its matmul and memory are."""
  side = 256 if toy else 8192
  keys = jax.random.split(jax.random.key(0), 2)
  a, b = (jax.random.normal(k, (side, side), jnp.bfloat16) for k in keys)
  matmul = jax.jit(jnp.matmul)
  product = device_time.seconds_per_call(
    lambda: matmul(a, b), rounds=5, calls=20
  )
  large = jnp.zeros((1 << 16 if toy else 1 << 30,), jnp.float32)
  copied = device_time.seconds_per_call(
    functools.partial(jax.jit(lambda x: x + 1), large), rounds=5, calls=5
  )
  kind = jax.devices()[0].device_kind
  return {
    'device_kind': kind,
    'devices': jax.device_count(),
    'platform': jax.default_backend(),
    'peak_bf16_flops': accelerators.peak_flops(kind),
    'matmul_bf16_flops': 2 * side**3 / product['seconds'],
    'copy_bytes_per_second': 2 * large.nbytes / copied['seconds'],
    'jax': jax.__version__,
  }


# --- Training ---------------------------------------------------------------

_TOY_MODEL: dict[str, Any] = models.TOY_SIZES | {
  'moe': config_lib.MoEConfig(num_experts=4, expert_dim=32)
}


class _Sizes:
  """The v1 recipe at full length, or something tiny."""

  def __init__(self, size: str, toy: bool, **changes: Any):
    if toy:
      changes = _TOY_MODEL | changes
    self.config = models.v1_paper_config(size, **changes)
    self.codes = (32,) * 3 if toy else models.V1_CODES
    self.history = 8 if toy else models.V1_HISTORY_ITEMS
    self.session = models.V1_SESSION_ITEMS
    self.items = 500 if toy else 1_000_000
    self.made = models.make(
      self.config, self.codes, items_per_session=self.session
    )
    self.item_codes = models.item_codes(self.items, self.codes)

  def users(self, rows: int) -> batch_lib.SessionBatch:
    return models.users(
      rows,
      history_items=self.history,
      items_per_session=self.session,
      num_items=self.items,
    )


def _train_once(sizes: _Sizes, rows: int, *, rounds: int) -> dict[str, Any]:
  """Times the training step of the project at one batch size."""
  made = sizes.made
  train = config_lib.TrainConfig(batch_size=rows)
  mesh = meshes.make_mesh(config_lib.MeshConfig())
  model = made.model.clone(mesh=mesh)
  objective = pretrain.make_objective(model, train)
  optimizer = optimizer_lib.make_optimizer(train.optimizer, num_steps=1000)
  whole = sharding.replicated(mesh)
  # The state is donated: a copy, so that the parameters serve the next size.
  state = state_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, made.params),
    opt_state=jax.jit(optimizer.transformation.init)(made.params),
    model_state=jnp.copy(made.router_bias),
    ema_params=None,
  )
  state = jax.device_put(state, whole)
  frozen = {
    'catalogue': batch_lib.Catalogue(
      jax.device_put(jnp.asarray(sizes.item_codes), whole)
    )
  }
  batch = sharding.place_batch(sizes.users(rows), mesh)
  update = step_lib.make_update(objective, optimizer, seed=0, ema_decay=None)
  totals = step_lib.zero_totals(update, state, frozen, batch, mesh)
  step: Any = step_lib.make_train_step(
    update, shardings=jax.tree.map(lambda _: whole, state), mesh=mesh
  )
  start = time.perf_counter()
  compiled = step.lower(state, totals, frozen, batch).compile()
  compile_seconds = time.perf_counter() - start
  carry = [state, totals]
  del state, totals

  def run() -> Any:
    carry[:] = compiled(*carry, frozen, batch)
    return carry[1]

  spent = device_time.seconds_per_call(run, rounds=rounds, calls=5)
  bad = int(carry[1].bad_step)
  if bad:
    raise ValueError(f'Step {bad} was not finite: the time means nothing.')
  work = rows * flops.train_flops(
    sizes.config,
    model.vocabulary,
    history_items=sizes.history,
    items_per_session=sizes.session,
  )
  return {
    **spent,
    'batch_size': rows,
    'mfu': device_time.utilisation(work, spent['seconds']),
    'model_flops_per_second': work / spent['seconds'],
    'samples_per_second': rows / spent['seconds'],
    'compile_seconds': compile_seconds,
    'temporary_bytes': harness.temporary_bytes(compiled),
    'token_loss': float(
      carry[1].metrics['token_loss'].total
      / carry[1].metrics['token_loss'].count
    ),
  }


def train(
  toy: bool, *, size: str, batch_sizes: tuple[int, ...], **changes: Any
) -> dict[str, Any]:
  """Returns the training step of a recipe at several batch sizes.

  Args:
    toy: a tiny model.
    size: of the recipe.
    batch_sizes: those that do not fit are reported as such.
    **changes: fields of the model that differ from the recipe.
  """
  sizes = _Sizes(size, toy, **changes)
  found: dict[str, Any] = {}
  for rows in (4,) if toy else batch_sizes:
    try:
      found[f'batch {rows}'] = _train_once(sizes, rows, rounds=2 if toy else 5)
    except Exception as error:
      if not _out_of_memory(error):
        raise
      found[f'batch {rows}'] = {'out_of_memory': True}
  timed = [entry for entry in found.values() if 'seconds' in entry]
  if not timed:
    raise ValueError(f'None of the batch sizes {batch_sizes} fits the device.')
  best = max(timed, key=lambda entry: entry['model_flops_per_second'])
  return {
    'size': size,
    'changes': changes,
    'num_parameters': parameters.count(sizes.made.params),
    'mfu': best['mfu'],
    'batch_size': best['batch_size'],
    'batches': found,
  }


# --- Decoding ---------------------------------------------------------------


def decode(toy: bool, *, size: str, num_beams: int, rows: int) -> Any:
  """Returns users per second of constrained session beam search."""
  sizes = _Sizes(size, toy)
  rows = 2 if toy else rows
  decoding = config_lib.DecodingConfig(
    num_beams=8 if toy else num_beams, num_items=sizes.session
  )
  trie = prefix_trie.PrefixTrie.build(sizes.item_codes, sizes.codes)
  made = sizes.made
  arguments = (
    made.params,
    made.router_bias,
    batch_lib.Catalogue(jnp.asarray(sizes.item_codes)),
    trie,
    jax.tree.map(jnp.asarray, sizes.users(rows)),
  )
  recommender: Any = recommend.make_recommender(
    made.model, decoding, top_k=min(decoding.num_beams, 100)
  )
  compiled = recommender.lower(*arguments).compile()
  answer = compiled(*arguments)
  if int(answer.legal.sum()) != int(answer.generated.sum()):
    raise ValueError('Constrained decoding generated an illegal ID.')
  spent = device_time.seconds_per_call(
    lambda: compiled(*arguments), rounds=2 if toy else 5, calls=2
  )
  work = rows * flops.decode_flops(
    sizes.config,
    made.model.vocabulary,
    history_items=sizes.history,
    num_beams=decoding.num_beams,
    num_items=decoding.num_items,
  )
  return {
    **spent,
    'size': size,
    'num_beams': decoding.num_beams,
    'num_items': decoding.num_items,
    'batch_size': rows,
    'catalogue_items': sizes.items,
    'users_per_second': rows / spent['seconds'],
    'mfu': device_time.utilisation(work, spent['seconds']),
    'temporary_bytes': harness.temporary_bytes(compiled),
  }


# --- Experts ----------------------------------------------------------------


def experts(toy: bool) -> dict[str, Any]:
  """Returns the dropless layer's time over its FLOP floor, bf16.

  Widths of the 1b recipe; so many tokens that a call takes milliseconds.
  """
  shapes = (
    [(64, 32, 32, 4)] if toy else [(32768, 768, 6400, e) for e in (8, 24, 64)]
  )
  return {
    'results': [
      moe_dispatch.measure(
        shape,
        rounds=1 if toy else 9,
        forms=['ragged'],
        dtype='bfloat16',
        peak_side=256 if toy else 8192,
      )
      for shape in shapes
    ]
  }


# --- What has a CPU benchmark too -------------------------------------------


def beams_against_tiled(toy: bool) -> dict[str, Any]:
  """Returns session_beam.py's figures at the shapes of a GPU."""
  sizes = session_beam.TOY if toy else session_beam.FULL | {'batch_size': 8}
  return session_beam.measure(sizes, rounds=2 if toy else 9)


def groups_against_bound(toy: bool) -> dict[str, Any]:
  """Returns group_step.py's figures at the shapes of a GPU."""
  sizes = group_step.TOY if toy else group_step.FULL | {'users': 8}
  rounds = 2 if toy else 9
  return {
    'ipa': group_step.measure('ipa', sizes, rounds=rounds),
    'ecpo': group_step.measure('ecpo', sizes, rounds=rounds),
  }


def train_against_peer(toy: bool) -> dict[str, Any]:
  """Returns TIGER's training step against HuggingFace T5, both on the GPU."""
  from experiments.benchmarks import train_step

  rows = 4 if toy else 1024
  place = 'cpu' if toy else 'cuda'
  runs = {
    'torch': train_step.prepare_torch(rows, place=place)[0],
    'ours': train_step.prepare_ours(rows)[0],
  }
  return _by_turns(runs, 'torch', toy) | {'batch_size': rows}


def beam_against_peer(toy: bool) -> dict[str, Any]:
  """Returns constrained beam search against `generate`, both on the GPU."""
  from experiments.benchmarks import beam_search

  rows, beams = (2, 4) if toy else (32, 50)
  place = 'cpu' if toy else 'cuda'
  runs = {
    'torch': beam_search.prepare_torch(rows, beams, 12_000, True, place=place),
    'ours': beam_search.prepare_ours(rows, beams, 12_000, True),
  }
  for name, run in runs.items():
    beam_search.check_answer(name, run(), num_beams=beams, num_items=12_000)
  return _by_turns(runs, 'torch', toy) | {
    'batch_size': rows, 'num_beams': beams,
  }  # fmt: skip


def _by_turns(
  runs: Mapping[str, Callable[[], Any]], peer: str, toy: bool
) -> dict[str, Any]:
  results = harness.alternate(runs, rounds=1 if toy else 7, warmup=2)
  return {
    'results': results,
    'ratio': harness.ratio(results[peer], results['ours']),
  }
