"""The FLOP formula against what XLA counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from onerec_jax.model import flops
from onerec_jax.model import onerec


def _counted(case):
  """FLOPs that XLA counts in one example's forward pass, layers unrolled."""
  lowered = jax.jit(
    lambda params, *inputs: (
      case.apply(params, *inputs, deterministic=True).logits
    )
  ).lower(case.params, *case.inputs)
  return lowered.cost_analysis()['flops'] / case.inputs[0].shape[0]


@pytest.mark.parametrize(
  'changes',
  [
    dict(cross_attention='projected'),
    dict(cross_attention='absorbed', mlp_activation='swiglu'),
  ],
  ids=str,
)
def test_formula_equals_xlas_count_of_an_unrolled_model(make_case, changes):
  # Wide enough for matrix products to outweigh element-wise work, which XLA
  # counts and the formula does not: within 10 %, never below.
  case = make_case(
    scan_layers=False,
    moe={'enabled': False},
    embed_dim=128,
    head_dim=64,
    mlp_dim=512,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    **changes,
  )
  formula = flops.forward_flops(
    case.model.config,
    case.model.vocabulary,
    history_items=4,
    items_per_session=2,
  )
  counted = _counted(case)
  assert 0 <= counted / formula - 1 < 0.1


def test_formula_by_hand(make_case):
  config = dataclasses.replace(
    make_case().model.config,
    encoder_layers=1,
    decoder_layers=1,
    cross_attention='projected',
  )
  vocabulary = make_case().model.vocabulary
  # D 16, H K 16, F 32; 1 user + 2 items x (3 + SEP) = 9 encoder tokens; BOS and
  # 3 codes = 4 decoder tokens; experts: top-2 of width 16, router 16 x 8.
  encoder = 9 * (4 * 2 * 16 * 16) + 2 * 2 * 9 * 9 * 16 + 9 * 2 * 2 * 16 * 32
  self_attention = 4 * (4 * 2 * 16 * 16) + 2 * 2 * 4 * 4 * 16
  cross = 4 * 2 * 2 * 16 * 16 + 9 * 2 * 2 * 16 * 16 + 2 * 2 * 4 * 9 * 16
  experts = 4 * (2 * 16 * 8 + 2 * 2 * 2 * 16 * 16)
  head = 2 * 16 * (5 + 7 + 6)
  options = dict(history_items=2, items_per_session=1)
  want = encoder + self_attention + cross + experts + head
  assert flops.forward_flops(config, vocabulary, **options) == want
  assert flops.train_flops(config, vocabulary, **options) == 3 * want
  # Each of m = 1 targets against 25 whole items.
  assert flops.train_flops(
    config, vocabulary, **options, scored_items=25
  ) == 3 * (want + 2 * 16 * 25)


def _projected(make_case):
  base = make_case().model
  config = dataclasses.replace(
    base.config,
    encoder_layers=1,
    decoder_layers=1,
    cross_attention='projected',
  )
  return config, base.vocabulary


def test_scoring_more_sessions_encodes_and_projects_once(make_case):
  config, vocabulary = _projected(make_case)
  options = dict(history_items=2, items_per_session=1)
  counts = [
    flops.score_flops(config, vocabulary, num_sessions=w, **options)
    for w in (1, 2, 3)
  ]
  assert counts[0] == flops.forward_flops(config, vocabulary, **options)
  # D 16, H K 16; 9 encoder and 4 decoder tokens; experts as by hand above.
  decoder = 4 * (4 * 2 * 16 * 16) + 2 * 2 * 4 * 4 * 16
  decoder += 4 * 2 * 2 * 16 * 16 + 2 * 2 * 4 * 9 * 16
  decoder += 4 * (2 * 16 * 8 + 2 * 2 * 2 * 16 * 16) + 2 * 16 * (5 + 7 + 6)
  assert counts[1] - counts[0] == counts[2] - counts[1] == decoder


def test_decoding_by_hand(make_case):
  config, vocabulary = _projected(make_case)
  got = flops.decode_flops(
    config, vocabulary, history_items=2, num_beams=3, num_items=2
  )
  encoder = 9 * (4 * 2 * 16 * 16) + 2 * 2 * 9 * 9 * 16 + 9 * 2 * 2 * 16 * 32
  project = 9 * 2 * 2 * 16 * 16
  # Cache of 2 x 4 tokens.  First item: 1 token of one beam, 2 of three; second:
  # the last code of the first, BOS and two codes, of three beams each.
  token = 4 * 2 * 16 * 16 + 2 * 2 * 8 * 16
  token += 2 * 2 * 16 * 16 + 2 * 2 * 9 * 16
  token += 2 * 16 * 8 + 2 * 2 * 2 * 16 * 16
  heads = 2 * 16 * (5 + 3 * (7 + 6) + 3 * (5 + 7 + 6))
  want = encoder + project + (1 + 2 * 3 + 4 * 3) * token + heads
  assert got == want


def test_auto_counts_the_cheaper_cross_attention(make_case):
  base = make_case().model
  counts = {
    kind: flops.forward_flops(
      dataclasses.replace(base.config, cross_attention=kind),
      base.vocabulary,
      history_items=50,
      items_per_session=2,
    )
    for kind in ('auto', 'absorbed', 'projected')
  }
  assert counts['auto'] == min(counts['absorbed'], counts['projected'])
  assert counts['absorbed'] != counts['projected']


def test_router_bias_starts_at_zero_for_every_layer(make_case):
  bias = onerec.initial_router_bias(make_case().model.config)
  assert bias.shape == (2, 8)
  assert not jnp.any(bias)
