"""Every mesh gives the loss and the gradients of one device, for every stage.

Eight CPU devices; the slices of the multislice mesh are made up.
"""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.ops import blocked_attention
from onerec_jax.train import optimizer as optimizer_lib
from onerec_jax.train import state as state_lib
from onerec_jax.train import step as step_lib


@pytest.fixture(name='stages', scope='module')
def fixture_stages(load_module):
  return load_module(pathlib.Path(__file__).parent / 'mesh_stages.py')


@pytest.mark.parametrize(
  ('stage_name', 'mesh_name', 'exchange'),
  [
    # v1 on all axes: with the train step, below.
    ('v1', 'data', 'all_gather'),
    ('v1', 'fsdp', 'all_to_all'),
    ('v1', 'by_size', 'all_to_all'),
    ('catalogue', 'slices', 'all_gather'),
    ('tr', 'slices', 'all_to_all'),
    ('tr', 'by_size', 'all_gather'),
    ('dpo', 'slices', 'all_gather'),
    ('ecpo', 'by_size', 'all_to_all'),
  ],
)
def test_loss_and_gradients_are_those_of_one_device(
  stages, stage_name, mesh_name, exchange
):
  stage = stages.STAGES[stage_name]()
  # 8 times the mean is room for all that may come.
  moe = dataclasses.replace(
    stage.model.moe, exchange=exchange, capacity_factor=8.0
  )
  stage = stage._replace(model=dataclasses.replace(stage.model, moe=moe))
  mesh, params, frozen, batch = stages.place(stage, mesh_name)
  found = stages.run(stage, params, frozen, batch, mesh)
  value, metrics, bias, gradients = stages.oracle(stage_name)
  np.testing.assert_allclose(found[0], value, rtol=1e-5)
  stages.assert_close(found[1], metrics)
  drops = found[1]['router/drop_share']
  assert drops.total == 0 < drops.count
  np.testing.assert_allclose(found[2], bias, rtol=1e-5, atol=1e-9)
  stages.assert_close(found[3], gradients)


def test_attention_in_blocks_on_a_mesh_is_plain_attention_on_one_device(
  stages, monkeypatch
):
  monkeypatch.setitem(blocked_attention._FROM, 'cpu', 1)
  monkeypatch.setitem(blocked_attention._QUERIES, 'cpu', 4)
  used = []
  plain = blocked_attention.self_attention
  monkeypatch.setattr(
    blocked_attention,
    'self_attention',
    lambda *args, **options: used.append(1) or plain(*args, **options),
  )
  stage = stages.STAGES['v1']()
  mesh, params, frozen, batch = stages.place(stage, 'slices')
  value, _, _, gradients = stages.run(stage, params, frozen, batch, mesh)
  assert used
  want_value, _, _, want_gradients = stages.oracle('v1')
  np.testing.assert_allclose(value, want_value, rtol=1e-5)
  stages.assert_close(gradients, want_gradients)


# --- Where the weights of experts go ----------------------------------------


def _gathers(text):
  """(result shape, whether in a loop) of every all-gather of an HLO module."""
  bodies = set(re.findall(r'(?:body|condition)=%?([\w.\-]+)', text))
  found, computation = [], ''
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = re.sub(r'^(ENTRY )?%?([\w.\-]+) .*', r'\2', line)
    match = re.search(r'= \(?\w+\[([\d,]*)\].* all-gather(-start)?\(', line)
    if match:
      shape = tuple(int(x) for x in match[1].split(',') if x)
      found.append((shape, computation in bodies))
  return found


def test_weights_of_experts_are_never_gathered_and_their_moments_are_split(
  stages,
):
  stage = stages.STAGES['v1']()
  mesh, _, frozen, batch = stages.place(stage, 'all_axes')
  names = parameters.logical_names(onerec.abstract_params(stage.make_model()))
  values = stages.starting_values(stage)
  optimizer = optimizer_lib.make_optimizer(
    config.OptimizerConfig(clip_norm=None), num_steps=10
  )
  state = state_lib.create(
    values,
    onerec.initial_router_bias(stage.model),
    optimizer.transformation,
    ema=False,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, values),
  )
  objective = stage.objective(stage.make_model(mesh))
  update = step_lib.make_update(objective, optimizer, seed=0, ema_decay=None)
  totals = step_lib.zero_totals(update, state, frozen, batch, mesh)
  step = step_lib.make_train_step(
    update, shardings=state_lib.shardings_of(state), mesh=mesh
  )
  compiled = step.lower(state, totals, frozen, batch).compile()
  # --- Collectives ---
  gathers = _gathers(compiled.as_text())
  assert any(inside for _, inside in gathers)  # dense weights, layer by layer
  of_experts = [
    (shape, inside)
    for shape, inside in gathers
    if {stages.WIDTH, stages.EXPERT_DIM} <= set(shape)
  ]
  # Only the updates of wi and wo, of all layers at once.
  local = (stages.LAYERS, stages.EXPERTS // 2)
  assert sorted(of_experts) == [
    ((*local, stages.WIDTH, stages.EXPERT_DIM), False),
    ((*local, stages.EXPERT_DIM, stages.WIDTH), False),
  ]
  # --- Memory ---
  experts = lambda tree: tree['decoder']['layers']['experts']['wi']  # noqa: E731
  new, totals = compiled(state, totals, frozen, batch)
  adam = next(s for s in new.opt_state if hasattr(s, 'mu'))
  shard = lambda x: x.addressable_shards[0].data.shape  # noqa: E731
  assert shard(experts(new.params)) == (*local, stages.WIDTH, stages.EXPERT_DIM)
  for moment in (adam.mu, adam.nu):
    assert shard(experts(moment)) == (
      *local,
      stages.WIDTH // 2,
      stages.EXPERT_DIM,
    )
  # --- Values: the first moment is 1 - b1 of the gradient ---
  value, _, _, gradients = stages.oracle('v1')
  np.testing.assert_allclose(totals.metrics['loss'].value(), value, rtol=1e-5)
  stages.assert_close(
    jax.tree.map(lambda m: np.asarray(m) / 0.1, adam.mu), gradients
  )
