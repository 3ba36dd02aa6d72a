"""Evaluation with rounded parameters; training never starts from them."""

import jax
import jax.numpy as jnp

from onerec_jax.stages import align
from onerec_jax.stages import evaluate
from onerec_jax.stages import reinforce


def _dtypes(trained):
  return {x.dtype for x in jax.tree.leaves(trained.params)}


def test_what_is_evaluated_is_rounded_and_what_is_trained_on_is_not(
  tiny_run, with_settings
):
  experiment, workdir = tiny_run
  rounded = with_settings(experiment, parameter_dtype='bfloat16')
  assert _dtypes(reinforce.load_final(rounded, workdir)) == {
    jnp.dtype('bfloat16')
  }
  # What alignment and reinforcement begin with.
  assert _dtypes(align.load_final(rounded, workdir)) == {jnp.dtype('float32')}


def test_a_rounded_model_is_evaluated(tiny_run, with_settings):
  experiment, workdir = tiny_run
  exact = evaluate.run(experiment, workdir)
  rounded = evaluate.run(
    with_settings(experiment, parameter_dtype='bfloat16'), workdir
  )
  assert rounded['legality'] == exact['legality'] == 1.0
  # bf16 keeps 8 bits: the loss moves a little, and does move.
  before, after = (
    found['teacher_forced']['token_loss'] for found in (exact, rounded)
  )
  assert 0 < abs(after - before) < 0.02 * before
