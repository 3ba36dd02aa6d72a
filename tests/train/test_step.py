"""One train step of the real model on several meshes."""

import functools

import jax
import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.objectives import pretrain
from onerec_jax.semantic_ids import vocabulary
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib

_MODEL = config.ModelConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=1,
  decoder_layers=1,
  mlp_dim=16,
  dropout_rate=0.1,
  moe=config.MoEConfig(num_experts=8, top_k=2, expert_dim=16),
)
# eps far above rounding errors: Adam divides by |g|, so with the default eps a
# gradient that is zero up to rounding moves its parameter by ± the full rate.
_TRAIN = config.TrainConfig(
  batch_size=16,
  optimizer=config.OptimizerConfig(
    peak_learning_rate=1e-2, warmup_steps=0, eps=1e-2
  ),
  ema_decay=0.5,
)


@functools.cache
def _one_step(shape):
  """Returns (loss, state after one step, state) on a mesh."""
  count = int(np.prod(shape))
  mesh = meshes.make_mesh(config.MeshConfig(*shape), jax.devices()[:count])
  model = onerec.OneRec(
    config=_MODEL,
    vocabulary=vocabulary.Vocabulary((4, 4)),
    items_per_session=2,
    mesh=mesh,
  )
  rng = np.random.default_rng(0)
  boxes = onerec.abstract_params(model)
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=0)
  optimizer = optimizer_lib.make_optimizer(
    _TRAIN.optimizer, num_steps=10, decay=optimizer_lib.decay_mask(names)
  )
  state = state_lib.create(
    params,
    onerec.initial_router_bias(_MODEL),
    optimizer.transformation,
    ema=True,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, params),
  )

  def items(width):
    return rng.integers(0, 10, (16, width), np.int32)

  def mask(width):
    return np.arange(width) < rng.integers(1, width + 1, (16, 1))

  batch = sharding.place_batch(
    batch_lib.SessionBatch(
      example_id=np.arange(16, dtype=np.int32),
      user=np.zeros(16, np.int32),
      history_items=items(3),
      history_mask=mask(3),
      target_items=items(2),
      target_mask=mask(2),
      example_mask=np.arange(16) < 13,
    ),
    mesh,
  )
  frozen = {
    'catalogue': batch_lib.Catalogue(
      sharding.place(
        rng.integers(0, 4, (10, 2), np.int32), sharding.replicated(mesh)
      )
    )
  }
  objective = pretrain.make_objective(model, _TRAIN)
  update = step_lib.make_update(
    objective, optimizer, seed=0, ema_decay=_TRAIN.ema_decay
  )
  totals = step_lib.zero_totals(update, state, frozen, batch, mesh)
  step = step_lib.make_train_step(
    update, shardings=state_lib.shardings_of(state), mesh=mesh
  )
  new, totals = step(state, totals, frozen, batch)
  loss = totals.metrics['loss']
  return float(loss.total / loss.count), new, params


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_a_step_is_the_same_on_every_mesh(shape):
  loss, state, _ = _one_step(shape)
  expected_loss, expected, start = _one_step((1, 1, 1))
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  moved = 0.0
  for part in ('params', 'ema_params', 'model_state'):
    for got, want in zip(
      jax.tree.leaves(getattr(state, part)),
      jax.tree.leaves(getattr(expected, part)),
      strict=True,
    ):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  for got, want in zip(
    jax.tree.leaves(expected.params), jax.tree.leaves(start), strict=True
  ):
    moved = max(moved, float(np.abs(got - want).max()))
  # The step is a hundred times the tolerance: equality is not idleness.
  assert moved > 1e-3


def test_weights_moments_and_average_are_split_after_a_step():
  _, state, _ = _one_step((2, 2, 2))
  adam = next(s for s in state.opt_state if hasattr(s, 'mu'))
  for tree, parts in (
    (state.params, 2),
    (state.ema_params, 2),
    (adam.mu, 4),
    (adam.nu, 4),
  ):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    experts = [x for p, x in flat if 'experts' in str(p) and x.ndim == 4]
    assert experts, 'scanned expert weights [layers, E, D, F]'
    for weight in experts:
      # By expert = 2; the moments, which no step gathers, by fsdp = 2 as well.
      sizes = {s.data.size for s in weight.addressable_shards}
      assert sizes == {weight.size // parts}
    table = next(x for path, x in flat if 'embedding' in str(path))
    assert {s.data.shape for s in table.addressable_shards} == {
      (table.shape[0], table.shape[1] // 4)
    }
