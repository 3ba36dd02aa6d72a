"""Models, users and catalogues that the benchmarks time; all made up.

Needs no data, no recipe and no ml_collections, so that it runs wherever JAX
and Flax are.  Parameters are random: a time does not depend on them.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

# TIGER (arXiv:2305.05065), T5's 4.8 M parameters; its decoder is dense.
_TIGER: dict[str, Any] = dict(
  embed_dim=128,
  num_heads=6,
  head_dim=64,
  encoder_layers=4,
  decoder_layers=4,
  mlp_dim=1024,
  moe=config_lib.MoEConfig(enabled=False),
  scan_layers=False,
)

# Of a model that is to run at all, in seconds.
TOY_SIZES: dict[str, Any] = dict(
  embed_dim=32,
  num_heads=2,
  head_dim=16,
  encoder_layers=1,
  decoder_layers=1,
  mlp_dim=32,
)


def tiger_config(**changes: Any) -> config_lib.ModelConfig:
  """Returns TIGER's sizes, with some fields changed."""
  return config_lib.ModelConfig(**(_TIGER | changes))


# The v1 recipes of onerec_v1_paper.py that fit one accelerator; a test holds
# the two together.  embed_dim, heads, layers of each stack, mlp_dim, expert_dim
_V1_PAPER = {
  '0.1b': (384, 3, 4, 1536, 1024),
  '1b': (768, 6, 4, 1024, 6400),
}
V1_CODES = (8192,) * 3
V1_HISTORY_ITEMS = 256
V1_SESSION_ITEMS = 5


def v1_paper_config(size: str, **changes: Any) -> config_lib.ModelConfig:
  """Returns the model of onerec_v1_paper.py:`size`, some fields changed."""
  embed, heads, depth, mlp, expert = _V1_PAPER[size]
  fields: dict[str, Any] = dict(
    embed_dim=embed,
    num_heads=heads,
    head_dim=128,
    encoder_layers=depth,
    decoder_layers=depth,
    mlp_dim=mlp,
    moe=config_lib.MoEConfig(num_experts=24, expert_dim=expert),
    remat=True,
    compute_dtype='bfloat16',
  )
  return config_lib.ModelConfig(**(fields | changes))


class Made(NamedTuple):
  """A model with random parameters on the device."""

  model: onerec.OneRec
  params: Any
  router_bias: jax.Array


def make(
  config: config_lib.ModelConfig,
  codes_per_level: tuple[int, ...],
  *,
  items_per_session: int,
) -> Made:
  """Returns the model of `config` with parameters drawn on the device."""
  vocabulary = vocabulary_lib.Vocabulary(codes_per_level, config.user_buckets)
  model = onerec.OneRec(config, vocabulary, items_per_session)
  return Made(
    model,
    draw(onerec.abstract_params(model)),
    jnp.asarray(onerec.initial_router_bias(config)),
  )


def draw(boxes: Any) -> Any:
  """Returns random values for a tree of `parameters.Parameter` boxes.

  On the device: NumPy would take half a minute for 1e9 of them.
  """
  leaves, tree = jax.tree.flatten(
    boxes, is_leaf=lambda x: isinstance(x, parameters.Parameter)
  )

  def make_all(key: jax.Array) -> list[jax.Array]:
    keys = jax.random.split(key, len(leaves))
    return [
      jnp.ones(box.value.shape, jnp.float32)
      if box.initializer.kind == 'ones'
      else box.initializer.stddev
      * jax.random.normal(k, box.value.shape, jnp.float32)
      for box, k in zip(leaves, keys, strict=True)
    ]

  return tree.unflatten(jax.jit(make_all)(jax.random.key(0)))


def item_codes(
  num_items: int, codes_per_level: tuple[int, ...], *, seed: int = 0
) -> np.ndarray:
  """Returns different random semantic IDs. [num_items, L]"""
  generator = np.random.default_rng(seed)
  total = int(np.prod(codes_per_level, dtype=np.int64))
  if 4 * num_items > total:
    picked = generator.choice(total, num_items, replace=False)
  else:
    # Drawing some more and dropping what came twice: no array of `total`.
    picked = np.unique(generator.integers(0, total, num_items * 3 // 2))
    picked = generator.permutation(picked)[:num_items]
  return np.stack(np.unravel_index(picked, codes_per_level), -1).astype(
    np.int32
  )


def users(
  rows: int,
  *,
  history_items: int,
  items_per_session: int,
  num_items: int,
  full: bool = True,
  seed: int = 0,
) -> batch_lib.SessionBatch:
  """Returns random users, as NumPy arrays.

  Args:
    rows: number of users (B).
    history_items: padded history length (N).
    items_per_session: target items (M).
    num_items: of the catalogue.
    full: whether all histories are full, else from a quarter of it on.
    seed: of the draw.
  """
  generator = np.random.default_rng(seed)
  length = np.full(rows, history_items)
  if not full:
    length = generator.integers(-(-history_items // 4), history_items + 1, rows)
  items = generator.integers(0, num_items, (rows, history_items), np.int32)
  mask = np.arange(history_items)[None] < length[:, None]
  return batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.arange(rows, dtype=np.int32),
    history_items=np.where(mask, items, 0),
    history_mask=mask,
    target_items=generator.integers(
      0, num_items, (rows, items_per_session), np.int32
    ),
    target_mask=np.ones((rows, items_per_session), bool),
    example_mask=np.ones(rows, bool),
  )
