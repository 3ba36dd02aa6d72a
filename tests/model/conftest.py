"""A tiny model and batch, shared by the model tests."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax.model import encoder_input
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

_HERE = pathlib.Path(__file__).parent
CODES_PER_LEVEL = (5, 7, 6)  # unequal on purpose
EXPERTS = 8
CONFIG = config_lib.ModelConfig(
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  encoder_layers=2,
  decoder_layers=2,
  mlp_dim=32,
  moe=config_lib.MoEConfig(num_experts=EXPERTS, expert_dim=16),
  dropout_rate=0.1,
  user_buckets=10,
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, its parameters, and the arguments of its __call__."""

  model: onerec.OneRec
  params: Any
  inputs: tuple[Any, ...]

  def apply(self, params, *inputs, **options):
    """`model.apply` with the flat `inputs` packed as it takes them."""
    packed = encoder_input.EncoderInput(*inputs[:3])
    return self.model.apply({'params': params}, packed, *inputs[3:], **options)

  @functools.cached_property
  def call(self):
    """jit(params, *inputs) -> OneRecOutput, without dropout."""
    return jax.jit(functools.partial(self.apply, deterministic=True))

  def output(self, **changes):
    """The output; `changes` replaces inputs by name."""
    names = (
      'history_codes',
      'history_mask',
      'user',
      'target_codes',
      'target_mask',
      'router_bias',
    )
    inputs = dict(zip(names, self.inputs, strict=True)) | changes
    return self.call(self.params, *(inputs[n] for n in names))


def _make_case(
  *,
  batch: int = 8,
  history: int = 4,
  items: int = 2,
  mesh: jax.sharding.Mesh | None = None,
  moe: dict[str, Any] | None = None,
  **changes: Any,
) -> Case:
  """Returns a case whose inputs and parameters do not depend on `changes`."""
  config = dataclasses.replace(CONFIG, **changes)
  if moe:
    config = dataclasses.replace(
      config, moe=dataclasses.replace(config.moe, **moe)
    )
  vocabulary = vocabulary_lib.Vocabulary(CODES_PER_LEVEL, config.user_buckets)
  model = onerec.OneRec(config, vocabulary, items, mesh=mesh)
  params = parameters.materialize(onerec.abstract_params(model), seed=0)
  generator = np.random.default_rng(0)

  def codes(*shape):
    return jnp.asarray(
      np.stack([generator.integers(0, n, shape) for n in CODES_PER_LEVEL], -1),
      jnp.int32,
    )

  lengths = generator.integers(1, history + 1, batch)
  target_mask = np.ones((batch, items), bool)
  target_mask[0, 1:] = False
  inputs = (
    codes(batch, history),
    jnp.asarray(np.arange(history)[None] < lengths[:, None]),
    jnp.arange(batch, dtype=jnp.int32),
    codes(batch, items),
    jnp.asarray(target_mask),
    jnp.asarray(generator.normal(0, 0.01, (2, EXPERTS)), jnp.float32),
  )
  return Case(model, params, inputs)


@pytest.fixture(scope='session')
def make_case():
  """Function (batch, history, items, mesh, moe, **model fields) -> Case."""
  return _make_case


@pytest.fixture(scope='session')
def tiny_pathways(load_module):
  """Module with a tiny encoder of pathways and its input."""
  return load_module(_HERE / 'tiny_pathways.py')


@pytest.fixture(scope='session')
def tiny_p_score(load_module):
  """Module with a tiny P-Score model, its input and its formula."""
  return load_module(_HERE / 'tiny_p_score.py')
