"""A tiny catalogue, random sessions of it, and a tiny model."""

import numpy as np
import pytest

from onerec_jax import batch as batch_lib
from onerec_jax.model import onerec
from onerec_jax.semantic_ids import vocabulary

NUM_ITEMS, SIZES = 12, (4, 3)


def _sessions(seed, rows, *, history, targets=1):
  rng = np.random.default_rng(seed)

  def draw(width):
    return rng.integers(0, NUM_ITEMS, (rows, width), np.int32)

  lengths = rng.integers(1, history + 1, (rows, 1))
  return batch_lib.SessionBatch(
    example_id=np.arange(rows, dtype=np.int32),
    user=np.zeros(rows, np.int32),
    history_items=draw(history),
    history_mask=np.arange(history)[None] < lengths,
    target_items=draw(targets),
    target_mask=np.ones((rows, targets), bool),
    example_mask=np.ones(rows, bool),
  )


@pytest.fixture(scope='session')
def make_sessions():
  """Function (seed, rows, *, history, targets=1) -> SessionBatch."""
  return _sessions


@pytest.fixture(scope='session')
def codes():
  """Semantic IDs of the catalogue; levels of 4 and 3 codes. [12, 2]"""
  rng = np.random.default_rng(0)
  drawn = [rng.integers(0, size, NUM_ITEMS) for size in SIZES]
  return np.stack(drawn, axis=1).astype(np.int32)


@pytest.fixture(scope='session')
def make_model(tiny_model):
  """Function (*, items, mesh=None, **fields) -> OneRec without dropout."""

  def make(*, items, mesh=None, **fields):
    return onerec.OneRec(
      config=tiny_model(
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        scan_layers=False,
        **fields,
      ),
      vocabulary=vocabulary.Vocabulary(SIZES),
      items_per_session=items,
      mesh=mesh,
    )

  return make
