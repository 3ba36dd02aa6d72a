"""Times the group part of an IPA and an ECPO step against its FLOP bound.

  python -m experiments.benchmarks.group_step

Loss and gradient over groups of 128 outputs per user.  Ours encodes a user
once; the peer encodes him again for every output, as if outputs were samples,
and gives the same loss and gradient.  With e and d the FLOPs of encoding and
of one output, ours can take (e + G d) / (G (e + d)) of the peer's time; the
figure is that bound over the share it takes (1: the bound is reached; above:
the decoder too gains by having all outputs at once).  Next-token prediction,
in the same step, is left out.  Writes results/group_step.json.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks import models
from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax import huge_pages
from onerec_jax.losses import policy
from onerec_jax.losses import preference
from onerec_jax.model import flops
from onerec_jax.model import onerec
from onerec_jax.objectives import align
from onerec_jax.objectives import reinforce

Method = Literal['ipa', 'ecpo']

TOY: dict[str, Any] = dict(
  users=2,
  group=8,
  history_items=8,
  session_items=2,
  codes=32,
  levels=2,
  catalogue_items=500,
  model=models.TOY_SIZES,
)
FULL: dict[str, Any] = dict(
  users=2,
  group=128,
  history_items=32,
  session_items=5,
  codes=256,
  levels=3,
  catalogue_items=100_000,
  model=dict(moe=config_lib.MoEConfig(expert_dim=256)),
)


def repeat_users(
  users: batch_lib.SessionBatch, group: int
) -> batch_lib.SessionBatch:
  """Returns every user `group` times, as if each output had its own."""
  return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), users)


def ipa_loss(
  made: models.Made, *, group: int, once: bool
) -> Callable[..., jax.Array]:
  """Returns the S-DPO loss of one chosen against group - 1 sessions.

  Args:
    made: the model.
    group: sessions per user (G).
    once: whether a user is encoded once for all of them.
  """
  score = align.make_score(made.model, continue_items=0)
  settings = config_lib.PreferenceConfig(loss='sdpo', num_rejected=group - 1)
  levels = made.model.vocabulary.levels

  def loss(
    params: Any,
    catalogue: batch_lib.Catalogue,
    users: batch_lib.SessionBatch,
    items: jax.Array,
    reference: jax.Array,
  ) -> jax.Array:
    mask = jnp.ones(items.shape, bool)
    if once:
      scored = users, items, mask
    else:
      apart = (-1, 1, items.shape[2])
      scored = (
        repeat_users(users, group), items.reshape(apart), mask.reshape(apart)
      )  # fmt: skip
    log_probs = score(params, made.router_bias, catalogue, *scored)
    log_probs = log_probs.reshape(reference.shape)
    per_user = preference.preference_loss(
      log_probs,
      reference,
      levels * jnp.sum(mask, axis=2, dtype=jnp.int32),
      jnp.any(mask, axis=2),
      settings=settings,
    )
    return jnp.mean(per_user)

  return loss


def ecpo_loss(
  made: models.Made, *, group: int, once: bool
) -> Callable[..., jax.Array]:
  """Returns -J of ECPO over groups of items; arguments as `ipa_loss`."""
  encode = reinforce.make_encode(made.model)
  score = reinforce.make_score(made.model)
  settings = config_lib.ReinforceConfig(loss='ecpo', group_size=group)

  def loss(
    params: Any,
    catalogue: batch_lib.Catalogue,
    users: batch_lib.SessionBatch,
    items: jax.Array,
    rewards: jax.Array,
  ) -> jax.Array:
    present = jnp.ones(rewards.shape, bool)
    codes = catalogue.codes[items[:, :, 0]]
    if not once:
      users = repeat_users(users, group)
      codes = codes.reshape(-1, 1, codes.shape[-1])
    encoded = encode(params, made.router_bias, catalogue, users)
    log_probs = score(
      params,
      made.router_bias,
      encoded,
      codes,
      jnp.ones(codes.shape[:2], bool),
    )
    log_probs = log_probs.reshape(*rewards.shape, -1)
    advantages = policy.group_advantages(rewards, present)
    # Of the generator just synchronised: the ratio is 1, its gradient is not 0.
    old = jax.lax.stop_gradient(log_probs)
    found = policy.policy_terms(
      log_probs, old, old, advantages.values, settings=settings
    )
    return -jnp.mean(policy.group_mean(found.terms, present))

  return loss


_LOSSES: dict[Method, Callable[..., Callable[..., jax.Array]]] = {
  'ipa': ipa_loss,
  'ecpo': ecpo_loss,
}


def flop_bound(
  model: onerec.OneRec, *, group: int, history_items: int, session_items: int
) -> float:
  """Returns (e + G d) / (G (e + d)), d in the form that one output takes."""
  count = functools.partial(
    flops.score_flops,
    model.config,
    model.vocabulary,
    history_items=history_items,
    items_per_session=session_items,
  )
  encoder = count(num_sessions=0)
  one = count(num_sessions=1)
  return (encoder + group * (one - encoder)) / (group * one)


def check_equal(ours: Any, peer: Any) -> float:
  """Returns the largest difference of two (loss, gradients) over the allowed.

  Raises:
    ValueError: it is above 1.
  """
  worst = harness.check_close(ours[0], peer[0], what='loss', relative=1e-4)
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(ours[1]),
    jax.tree.leaves(peer[1]),
    strict=True,
  )
  for (path, leaf), other in pairs:
    scale = float(np.max(np.abs(other), initial=0.0))
    worst = max(
      worst,
      harness.check_close(
        leaf,
        other,
        what=f'gradient of {jax.tree_util.keystr(path)}',
        relative=1e-3,
        # Sums over 128 outputs in another order.
        absolute=1e-3 * scale + 1e-9,
      ),
    )
  return worst


def measure(
  method: Method, sizes: dict[str, Any], *, rounds: int
) -> dict[str, Any]:
  """Returns times of both forms and what of the bound is reached.

  Args:
    method: 'ipa' scores sessions, 'ecpo' single items.
    sizes: as `FULL`.
    rounds: timed calls of each.
  """
  codes_per_level = (sizes['codes'],) * sizes['levels']
  group = sizes['group']
  session_items = sizes['session_items'] if method == 'ipa' else 1
  made = models.make(
    models.tiger_config(**sizes['model']),
    codes_per_level,
    items_per_session=session_items,
  )
  codes = models.item_codes(sizes['catalogue_items'], codes_per_level)
  generator = np.random.default_rng(1)
  shape = (sizes['users'], group)
  arguments = (
    made.params,
    batch_lib.Catalogue(jnp.asarray(codes)),
    jax.tree.map(
      jnp.asarray,
      models.users(
        sizes['users'],
        history_items=sizes['history_items'],
        items_per_session=session_items,
        num_items=len(codes),
      ),
    ),
    jnp.asarray(
      generator.integers(0, len(codes), (*shape, session_items)), jnp.int32
    ),
    jnp.asarray(generator.standard_normal(shape), jnp.float32),
  )
  compiled = {
    name: jax.jit(
      jax.value_and_grad(_LOSSES[method](made, group=group, once=once))
    )
    .lower(*arguments)
    .compile()
    for name, once in (('ours', True), ('repeated', False))
  }
  answers = {n: jax.device_get(run(*arguments)) for n, run in compiled.items()}
  worst = check_equal(answers['ours'], answers['repeated'])
  results = harness.alternate(
    {
      name: functools.partial(_run, run, arguments)
      for name, run in compiled.items()
    },
    rounds=rounds,
  )
  for name, run in compiled.items():
    results[name]['temporary_bytes'] = harness.temporary_bytes(run)
  bound = flop_bound(
    made.model,
    group=group,
    history_items=sizes['history_items'],
    session_items=session_items,
  )
  ratio = harness.ratio(results['repeated'], results['ours'])
  return {
    'method': method,
    'difference_of_allowed': worst,
    'flop_bound': bound,
    'results': results,
    # Bound over the share of the time, so that more is better.
    'of_bound': {k: bound * v for k, v in ratio.items()},
    'ratio': ratio,
  }


def _run(step: Any, arguments: Any) -> None:
  jax.block_until_ready(step(*arguments))


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, choices=(1,))
  parser.add_argument('--toy', action='store_true')
  parser.add_argument(
    '--method',
    choices=tuple(_LOSSES),
    help='the other is kept as it is in the result file; default: both',
  )
  parser.add_argument(
    '--output', type=pathlib.Path, default=harness.RESULTS / 'group_step.json'
  )
  arguments = parser.parse_args()
  if arguments.threads == 1:
    harness.use_one_core()
  sizes = TOY if arguments.toy else FULL
  found: dict[str, Any] = {}
  if arguments.output.exists():
    kept = json.loads(arguments.output.read_text())
    found = {m: kept[m] for m in _LOSSES if m in kept}
  for method in [arguments.method] if arguments.method else _LOSSES:
    found[method] = measure(method, sizes, rounds=arguments.rounds)
    print(method, json.dumps(found[method]['of_bound'], indent=1))
  harness.write(
    arguments.output,
    harness.report(
      'group_step',
      ('jax', 'flax', 'numpy'),
      sizes=config_lib.to_dict(sizes),
      **found,
    ),
  )


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
