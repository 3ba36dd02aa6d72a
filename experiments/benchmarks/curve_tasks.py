"""What cost_curves.py measures: one function per axis.

Judges nothing.  JAX is imported inside, because the curve over devices first
says how many there are.
"""

import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from experiments.benchmarks import harness

_ROUNDS = 5


class Series(NamedTuple):
  """One cost along a curve."""

  unit: str
  expected: float  # exponent
  values: list[float]


class Curve(NamedTuple):
  """What was measured along one axis."""

  x: list[int]
  series: dict[str, Series]
  notes: dict[str, Any]


def _cpu_seconds(run: Callable[[], Any], rounds: int = _ROUNDS) -> float:
  """Returns the CPU seconds of the quickest call.

  Not wall time, which on a shared machine makes cliffs of its own.
  """
  run()
  spent = []
  for _ in range(rounds):
    start = time.process_time()
    run()
    spent.append(time.process_time() - start)
  return min(spent)


# --- Curves -----------------------------------------------------------------


def items(toy: bool) -> Curve:
  """The trie: time to build, bytes, time of a search; a refresh compiles not.

  The search has no model: codes get their probabilities from a table.
  """
  import jax
  import jax.numpy as jnp

  from experiments.benchmarks import models
  from onerec_jax.decoding import beam_search
  from onerec_jax.semantic_ids import prefix_trie
  from onerec_jax.semantic_ids import trie_levels
  from onerec_jax.semantic_ids import vocabulary

  x = [500, 1000] if toy else [10**4, 10**5, 10**6, 10**7]
  codes_per_level = (64,) * 3 if toy else (8192,) * 3
  rows, beams = 4, 8 if toy else 128
  table = jax.nn.log_softmax(
    jax.random.normal(jax.random.key(0), (64, codes_per_level[0]))
  )
  build, search, per_item, bitmap, compiled = [], [], [], [], []
  for number in x:
    codes = models.item_codes(number, codes_per_level)
    start = time.process_time()
    trie = prefix_trie.PrefixTrie.build(codes, codes_per_level)
    build.append(time.process_time() - start)
    words = sum(
      level.words.nbytes
      for level in trie.levels
      if isinstance(level, trie_levels.BitmapLevel)
    )
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(trie))
    bitmap.append(float(words))
    per_item.append((whole - words) / number)
    traces = []

    def find(trie: Any, table: Any, traces: Any = traces) -> Any:
      traces.append(1)  # while tracing only, so once per compilation

      def step_fn(prefix: Any, position: Any, cache: Any) -> Any:
        del position
        tokens = vocabulary.Vocabulary(codes_per_level).last_token(prefix)
        return table[tokens % 64], cache

      return beam_search.search(
        step_fn,
        jnp.zeros((1, rows, 1, 1)),
        trie=trie,
        codes_per_level=codes_per_level,
        num_beams=beams,
      ).leaves

    jitted = jax.jit(find)

    def run(trie: Any, jitted: Any = jitted) -> Any:
      return jax.block_until_ready(jitted(trie, table))

    search.append(_cpu_seconds(lambda trie=trie, run=run: run(trie)))
    # Another catalogue, a tenth smaller, in the same room.
    fresh = models.item_codes(number * 9 // 10, codes_per_level, seed=1)
    found = run(trie.refresh(fresh))
    if not bool((found >= 0).all()):
      raise ValueError(f'{number} items: a search after the refresh found -1.')
    compiled.append(len(traces) - 1)
  return Curve(
    x,
    {
      'build': Series('s', 1.0, build),
      'search': Series('s', 0.0, search),
      'bytes per item beside the bitmap': Series('B', 0.0, per_item),
    },
    {'bitmap_bytes': bitmap, 'compilations_at_refresh': compiled},
  )


def history(toy: bool) -> Curve:
  """Training step of one user by history items; work is counted by hand.

  A compiled program's own count takes loops, such as that over blocks of
  queries, for one turn.
  """
  import jax
  import jax.numpy as jnp

  from experiments.benchmarks import models
  from onerec_jax import batch as batch_lib
  from onerec_jax import config as config_lib
  from onerec_jax.model import flops
  from onerec_jax.objectives import pretrain

  x = [8, 16] if toy else [64, 128, 256, 512, 1024, 2048, 4096]
  codes_per_level = (32 if toy else 256,) * 3
  made = models.make(
    config_lib.ModelConfig(
      moe=config_lib.MoEConfig(enabled=False),
      dropout_rate=0.0,
      attention_dropout_rate=0.0,
      scan_layers=False,
    ),
    codes_per_level,
    items_per_session=5,
  )
  objective = pretrain.make_objective(made.model, config_lib.TrainConfig())
  catalogue = batch_lib.Catalogue(
    jnp.asarray(models.item_codes(1000, codes_per_level))
  )

  def gradients(params: Any, users: Any) -> Any:
    def loss(params: Any) -> jax.Array:
      frozen = {'catalogue': catalogue}
      output = objective(params, made.router_bias, frozen, users, None)
      return output.loss.value()

    return jax.grad(loss)(params)

  work, memory, spent = [], [], []
  for number in x:
    users = jax.tree.map(
      jnp.asarray,
      models.users(
        1, history_items=number, items_per_session=5, num_items=1000
      ),
    )
    compiled = jax.jit(gradients).lower(made.params, users).compile()
    work.append(
      flops.train_flops(
        made.model.config,
        made.model.vocabulary,
        history_items=number,
        items_per_session=5,
      )
    )
    memory.append(float(harness.temporary_bytes(compiled)))
    spent.append(
      _cpu_seconds(
        lambda run=compiled, u=users: jax.block_until_ready(run(made.params, u))
      )
    )
  return Curve(
    x,
    {
      # Attention: linear layers at first, S^2 in the end.
      'FLOPs': Series('FLOP', 2.0, work),
      'temporary memory': Series('B', 2.0, memory),
      'time': Series('s', 2.0, spent),
    },
    {'tokens_per_item': 4},
  )


def experts(toy: bool) -> Curve:
  """The dropless layer by the number of experts, top-2: equal work for all."""
  import jax
  import jax.numpy as jnp

  from onerec_jax.ops import moe

  x = [4, 8] if toy else [8, 16, 24, 32, 48, 64]
  tokens, embed, hidden = (64, 16, 16) if toy else (4096, 128, 512)
  forward, backward = [], []
  for number in x:
    keys = jax.random.split(jax.random.key(0), 4)
    weights = moe.ExpertWeights(
      jax.random.normal(keys[0], (number, embed, hidden)) * embed**-0.5,
      None,
      jax.random.normal(keys[1], (number, hidden, embed)) * hidden**-0.5,
    )
    tokens_in = jax.random.normal(keys[2], (tokens, embed))
    logits = jax.random.normal(keys[3], (tokens, number))

    def layer(tokens_in: Any, weights: Any, logits: Any) -> Any:
      routing = moe.route(
        logits,
        jnp.zeros(logits.shape[1]),
        top_k=2,
        gate='softmax',
        normalize=False,
      )
      return moe.grouped_experts(
        tokens_in,
        routing,
        weights,
        jnp.ones(tokens, bool),
        activation=jax.nn.relu,
      )

    def loss(
      tokens_in: Any, weights: Any, logits: Any, layer: Any = layer
    ) -> Any:
      return jnp.sum(layer(tokens_in, weights, logits) ** 2)

    arguments = (tokens_in, weights, logits)

    for function, kept in (
      (layer, forward), (jax.grad(loss, argnums=(0, 1)), backward),
    ):  # fmt: skip
      run = jax.jit(function)
      kept.append(
        _cpu_seconds(lambda r=run, a=arguments: jax.block_until_ready(r(*a)))
      )
  return Curve(
    x,
    {
      'forward': Series('s', 0.0, forward),
      # Gradients of all experts are written, whoever was chosen.
      'gradient': Series('s', 0.5, backward),
    },
    {'tokens, embed, hidden': (tokens, embed, hidden)},
  )


def beams(toy: bool) -> Curve:
  """Constrained search of one item, TIGER's model, by beam width."""
  import jax
  import jax.numpy as jnp

  from experiments.benchmarks import models
  from experiments.benchmarks import session_beam
  from onerec_jax import batch as batch_lib
  from onerec_jax.semantic_ids import prefix_trie

  x = [4, 8] if toy else [8, 16, 32, 64, 128, 256, 512]
  sizes = session_beam.TOY if toy else session_beam.FULL
  codes_per_level = (sizes['codes'],) * sizes['levels']
  made = models.make(
    models.tiger_config(**sizes['model']), codes_per_level, items_per_session=1
  )
  codes = models.item_codes(sizes['catalogue_items'], codes_per_level)
  arguments = (
    made.params,
    made.router_bias,
    batch_lib.Catalogue(jnp.asarray(codes)),
    prefix_trie.PrefixTrie.build(codes, codes_per_level),
    jax.tree.map(
      jnp.asarray,
      models.users(
        4, history_items=20, items_per_session=1, num_items=len(codes)
      ),
    ),
  )
  spent, memory = [], []
  for number in x:
    search = session_beam.make_ours(made.model, num_beams=number, num_items=1)
    compiled = jax.jit(search).lower(*arguments).compile()
    memory.append(float(harness.temporary_bytes(compiled)))
    spent.append(
      _cpu_seconds(lambda r=compiled: jax.block_until_ready(r(*arguments)))
    )
  return Curve(
    x,
    {
      'time': Series('s', 1.0, spent),
      'temporary memory': Series('B', 1.0, memory),
    },
    {'users': 4, 'history_items': 20},
  )


def devices(toy: bool) -> Curve:
  """The training step, split over fake CPU devices: work and memory of one."""
  import jax

  jax.config.update('jax_num_cpu_devices', 8)
  from onerec_jax import config as config_lib
  from onerec_jax import meshes
  from onerec_jax.aot import programs

  x = [1, 2] if toy else [1, 2, 4, 8]
  work, memory, held = [], [], []
  for number in x:
    made = config_lib.Experiment(
      data=config_lib.DataConfig(history_length=8 if toy else 50),
      tokenizer=config_lib.TokenizerConfig(codes_per_level=32),
      model=config_lib.ModelConfig(
        embed_dim=64 if toy else 256,
        mlp_dim=64 if toy else 1024,
        # Loops hide their FLOPs from XLA's count.
        scan_layers=False,
        moe=config_lib.MoEConfig(
          num_experts=8, expert_dim=64, dispatch='dense'
        ),
      ),
      pretrain=config_lib.TrainConfig(batch_size=16 if toy else 64),
      mesh=config_lib.MeshConfig(fsdp=number),
    )
    mesh = meshes.make_mesh(made.mesh, jax.devices()[:number])
    program = programs.build(made, mesh, mode='train', num_items=1000)
    compiled = program.function.lower(*program.arguments).compile()
    analysis: Any = compiled.memory_analysis()
    work.append(_flops(compiled))
    memory.append(float(analysis.temp_size_in_bytes))
    held.append(float(analysis.argument_size_in_bytes))
  return Curve(
    x,
    {
      'FLOPs of a device': Series('FLOP', -1.0, work),
      'temporary memory of a device': Series('B', -1.0, memory),
      'state and batch of a device': Series('B', -1.0, held),
    },
    {'global_batch': 16 if toy else 64, 'mesh': 'fsdp'},
  )


def _flops(compiled: Any) -> float:
  """Returns XLA's count of one execution; loops count once."""
  return float(compiled.cost_analysis()['flops'])


CURVES: dict[str, Callable[[bool], Curve]] = {
  'items': items,
  'history': history,
  'experts': experts,
  'beams': beams,
  'devices': devices,
}
