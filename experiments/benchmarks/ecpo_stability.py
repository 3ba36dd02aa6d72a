"""Gradient norms of GRPO and ECPO while the policy leaves its generator.

  python -m experiments.benchmarks.ecpo_stability

A stress test, not a model: a table of logits over three codes per user is
trained on next-token prediction plus the policy objective, by plain gradient
descent.  What the log shows is what the reward dislikes, and few users have a
group in a step, so that between them imitation makes outputs with A < 0 far
likelier than they were when they were generated.  Groups come from the first
policy (off-policy) or from that of the last 20 steps.  Writes
results/ecpo_stability.{json,png}.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import config
from onerec_jax.losses import policy
from onerec_jax.stages import report_canvas as canvas

_RESULTS = pathlib.Path(__file__).parent / 'results'
_USERS, _CODES, _LEVELS = 16, 12, 3  # 1,728 outputs per user
_PEAKED = 4.0  # standard deviation of the first policy's logits
_USER_SHARE = 16  # one of so many users has a group in a step
_GROUP = 128  # G: the likeliest outputs of the generator
_LOGGED = 8  # outputs per user that the log holds
_LEARNING_RATE = 2.0  # per user: the loss is a mean over users
_SYNC = 20  # steps, on-policy
_LOSSES = ('grpo', 'ecpo')
_FIXED, _SYNCED = 'first policy generates', f'synchronised every {_SYNC} steps'


class Problem(NamedTuple):
  """What is learnt from."""

  logged: Float[Array, 'U O']  # probability of an output in the log
  rewards: Float[Array, 'U O']
  start: list[Array]  # logits by level: [U, K], [U, K, K], [U, K, K, K]


def make_problem(seed: int) -> Problem:
  """Returns a log of outputs that can just be generated, and are bad."""
  rng = np.random.default_rng(seed)
  shape = (_USERS,)
  start = []
  for _ in range(_LEVELS):
    shape = (*shape, _CODES)
    start.append(jnp.asarray(_PEAKED * rng.normal(size=shape), jnp.float32))
  order = np.argsort(-np.asarray(output_log_probs(start).sum(-1)), axis=1)
  rewards = rng.random((_USERS, _CODES**_LEVELS))
  logged = np.zeros(rewards.shape)
  # The log holds the rearguard of the first group, and the reward is small.
  for user in range(_USERS):
    chosen = rng.choice(order[user, _GROUP // 2 : _GROUP], _LOGGED, False)
    logged[user, chosen] = 1 / _LOGGED
    rewards[user, chosen] = 0.1 * rng.random(_LOGGED)
  return Problem(jnp.asarray(logged), jnp.asarray(rewards), start)


def output_log_probs(logits: list[Array]) -> Float[Array, 'U O L']:
  """Returns log π of every code of every output."""
  columns = []
  for level, table in enumerate(logits):
    log_probs = jax.nn.log_softmax(table)
    missing = (1,) * (_LEVELS - 1 - level)
    columns.append(
      jnp.broadcast_to(
        log_probs.reshape(*log_probs.shape, *missing),
        (_USERS, *(_CODES,) * _LEVELS),
      )
    )
  return jnp.stack(columns, -1).reshape(_USERS, -1, _LEVELS)


def _gather(
  values: Float[Array, 'U O L'], index: Int[Array, 'U G']
) -> Float[Array, 'U G L']:
  return jnp.take_along_axis(values, index[..., None], axis=1)


def train(
  problem: Problem, *, loss: str, sync: int | None, steps: int
) -> dict[str, list[float]]:
  """Returns what every step showed.

  Args:
    problem: what is learnt from.
    loss: 'grpo' (without a penalty) or 'ecpo'.
    sync: steps between rollouts; None: only the first policy generates.
    steps: of gradient descent.
  """
  settings: Any = config.ReinforceConfig(loss=loss, kl_weight=0.0)  # type: ignore[arg-type] # one of the two

  @jax.jit
  def generate(logits: list[Array]) -> tuple[Array, Array]:
    log_probs = output_log_probs(logits)
    _, index = jax.lax.top_k(log_probs.sum(-1), _GROUP)
    return index, _gather(log_probs, index)

  @jax.jit
  def step(
    logits: list[Array], index: Array, old: Array, turn: Array
  ) -> tuple[list[Array], dict[str, Array]]:
    rewards = jnp.take_along_axis(problem.rewards, index, axis=1)
    counted = jnp.ones(rewards.shape, bool)
    advantages = policy.group_advantages(rewards, counted)

    def objective(logits: list[Array]) -> tuple[Array, dict[str, Array]]:
      log_probs = output_log_probs(logits)
      imitation = -jnp.sum(problem.logged * log_probs.sum(-1), axis=1)
      found = policy.policy_terms(
        _gather(log_probs, index), old, old, advantages.values,
        settings=settings,
      )  # fmt: skip
      gain = policy.group_mean(found.terms, counted)
      probs = jnp.exp(log_probs.sum(-1))
      shown = {
        'imitation_loss': imitation.mean(),
        'reward': jnp.sum(probs * problem.rewards, axis=1).mean(),
        'ratio_max': found.ratio.max(),
        'early_clip_share': found.early_clipped.sum()
        / jnp.sum(advantages.values < 0),
      }
      has_group = jnp.arange(_USERS) % _USER_SHARE == turn % _USER_SHARE
      return jnp.mean(imitation - jnp.where(has_group, gain, 0)), shown

    gradient, shown = jax.grad(objective, has_aux=True)(logits)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))
    # The loss is a mean over users; each has a table of its own.
    rate = _LEARNING_RATE * _USERS
    moved = [x - rate * g for x, g in zip(logits, gradient, strict=True)]
    return moved, {**shown, 'gradient_norm': norm * _USERS**0.5}

  logits = problem.start
  index, old = generate(logits)
  history: dict[str, list[float]] = {}
  for number in range(steps):
    if sync is not None and number and number % sync == 0:
      index, old = generate(logits)
    logits, shown = step(logits, index, old, jnp.asarray(number))
    for name, value in shown.items():
      history.setdefault(name, []).append(float(value))
  return history


@canvas.draw
def picture(runs: dict[str, dict[str, list[float]]]) -> bytes:
  """Gradient norm, largest ratio and imitation loss of every run."""
  figure, axes = canvas.panels(height=6.6, rows=3, sharex=True)
  tones = {'grpo': canvas.WORSE, 'ecpo': canvas.ACCENT}
  for ax, (key, title) in zip(
    axes,
    (
      ('gradient_norm', 'gradient norm (per user)'),
      ('ratio_max', 'largest ratio to the generator'),
      ('imitation_loss', 'next-token loss, nats'),
    ),
    strict=True,
  ):
    for name, history in runs.items():
      loss, kind = name.split(' ', 1)
      ax.plot(
        history[key],
        color=tones[loss],
        linestyle='-' if kind == _FIXED else (0, (2, 1.5)),
        linewidth=1.4,
        label=f'{loss.upper()}, {kind}',
      )
    ax.set_title(title, fontweight='bold')
    ax.set_yscale('log')
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=2)
  axes[-1].set_xlabel('training step')
  return canvas.png(figure)


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  arguments = parser.parse_args()
  problem = make_problem(arguments.seed)
  runs = {
    f'{loss} {kind}': train(
      problem, loss=loss, sync=sync, steps=arguments.steps
    )
    for loss in _LOSSES
    for kind, sync in ((_FIXED, None), (_SYNCED, _SYNC))
  }
  figures = {
    name: {
      'gradient_norm_max': max(h['gradient_norm']),
      'gradient_norm_median': float(np.median(h['gradient_norm'])),
      'ratio_max': max(h['ratio_max']),
      'early_clip_share_mean': float(np.mean(h['early_clip_share'])),
      'last_imitation_loss': h['imitation_loss'][-1],
      'last_reward': h['reward'][-1],
      'gradient_norm': [float(f'{v:.4g}') for v in h['gradient_norm'][::5]],
    }
    for name, h in runs.items()
  }
  result = {
    'what': 'gradient norms of a softmax table under RSFT and RL',
    'users': _USERS,
    'outputs': _CODES**_LEVELS,
    'group': _GROUP,
    'learning_rate': _LEARNING_RATE,
    'users_per_group': _USER_SHARE,
    'sync_every_steps': _SYNC,
    'steps': arguments.steps,
    'seed': arguments.seed,
    'runs': figures,
    'jax': importlib.metadata.version('jax'),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }
  _RESULTS.mkdir(exist_ok=True)
  path = _RESULTS / 'ecpo_stability.json'
  path.write_text(json.dumps(result, indent=1) + '\n')
  (_RESULTS / 'ecpo_stability.png').write_bytes(picture(runs))
  for name, found in figures.items():
    print(
      f'{name}: gradient norm median {found["gradient_norm_median"]:.3g}, max'
      f' {found["gradient_norm_max"]:.3g}; ratio max {found["ratio_max"]:.3g};'
      f' reward {found["last_reward"]:.3f}; imitation'
      f' {found["last_imitation_loss"]:.3f}'
    )


if __name__ == '__main__':
  main()
