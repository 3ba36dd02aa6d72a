# ruff: noqa: E501  # lines of the compiler
"""HLO texts in small, as libtpu prints them."""

import dataclasses

import pytest

from onerec_jax.aot import findings
from onerec_jax.aot import hlo

# A loop of 4 layers that gathers a weight, with a Pallas kernel whose text has
# lines that begin with braces.
_LOOP = """\
HloModule jit_step, is_scheduled=true

%body.1 (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte.1 = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-gather.7 = bf16[64,16]{1,0:T(8,128)(2,1)} all-gather(%gte.1), channel_id=3, dimensions={0}, metadata={op_name="jit(step)/encoder/while/body/dot"}
  %kernel.1 = bf16[8,16]{1,0:T(8,128)(2,1)} custom-call(%gte.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "a
}} more text
}}"}
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%gte.1, %kernel.1)
}

%cond.1 (p.1: (s32[], bf16[8,16])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %gte.2 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %constant.5 = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%gte.2, %constant.5), direction=LT
}

ENTRY %main.1 (x: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %constant.1 = s32[]{:T(128)} constant(0)
  %tuple.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) tuple(%constant.1, %x)
  %while.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%cond.1, body=%body.1
  ROOT %gte.9 = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""

_FACTS = findings.Facts(
  encoder_tokens=1024,
  embed_dim=768,
  num_heads=6,
  head_dim=128,
  channels=(768, 1024, 128),
  expert_dim=6400,
  beams=128,
)


def _entry(*lines, before=''):
  body = '\n'.join(f'  {line}' for line in lines)
  return (
    f'HloModule m, is_scheduled=true\n\n{before}\nENTRY %main (a: f32[2]) ->'
    f' f32[2] {{\n{body}\n}}\n'
  )


def test_instructions_of_a_loop_count_once_per_trip():
  module = hlo.parse(_LOOP)
  counted = {x.instruction.name: x.executions for x in hlo.schedule(module)}
  assert counted['all-gather.7'] == 4
  assert counted['while.1'] == 1
  # What follows the braces of the kernel's text is still of the body.
  assert counted['tuple.2'] == 4


def test_shapes_keep_dtype_dims_and_order():
  module = hlo.parse(_LOOP)
  (gather,) = [
    x.instruction
    for x in hlo.schedule(module)
    if x.instruction.opcode == 'all-gather'
  ]
  (shape,) = gather.shapes
  assert (shape.dtype, shape.dims, shape.order) == ('bf16', (64, 16), '1,0')
  assert gather.bytes == 2 * 64 * 16
  assert gather.operands == ('gte.1',)


def test_a_text_without_entry_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule x\n')


def test_synchronous_gathers_are_counted_with_bytes_and_trips():
  found = findings.examine(_LOOP, _FACTS)
  gather = found.collectives['all-gather']
  assert (gather.executions, gather.bytes) == (4, 4 * 2048)
  assert found.asynchronous_share('all-gather') == 0
  assert found.kernels == 4
  assert found.unknown_loops == 0


def test_start_and_done_are_one_asynchronous_collective():
  text = _entry(
    '%a = f32[16,8]{1,0} parameter(0)',
    '%s = (f32[16,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%a), channel_id=1',
    '%d = f32[64,8]{1,0} all-gather-done(%s)',
    '%r = f32[16,8]{1,0} all-gather(%a), channel_id=2',
  )
  found = findings.examine(text, _FACTS)
  gather = found.collectives['all-gather']
  # The start's tuple holds the operand, which was not gathered: 64 * 8 * 4.
  assert gather.executions == 2
  assert gather.asynchronous_bytes == 2048
  # The second one is 16 * 8 * 4 bytes large, and does not overlap.
  assert found.asynchronous_share('all-gather') == 2048 / (2048 + 512)


def test_a_chain_of_asynchronous_fusions_is_one_collective():
  parts = (
    ('fused.1', 'AsyncCollectiveStart'),
    ('async_collective_fusion.2', 'tpu_custom_call'),
    ('fused.3', 'AsyncCollectiveDone'),
  )
  before = '\n'.join(
    f"""\
%{name} (p.{n}: f32[16,8]) -> f32[64,8] {{
  %p.{n} = f32[16,8]{{1,0}} parameter(0)
  %g.{n} = f32[64,8]{{1,0}} all-gather(%p.{n}), channel_id=9, dimensions={{0}}
  ROOT %c.{n} = f32[64,8]{{1,0}} custom-call(%g.{n}), custom_call_target="{target}"
}}
"""
    for n, (name, target) in enumerate(parts)
  )
  text = _entry(
    '%a = f32[16,8]{1,0} parameter(0)',
    *(
      f'%f.{n} = f32[64,8]{{1,0}} fusion(%a), kind=kCustom, calls=%{name}'
      for n, (name, _) in enumerate(parts)
    ),
    before=before,
  )
  found = findings.examine(text, _FACTS)
  assert found.collectives['all-gather'].executions == 1
  assert found.asynchronous_share('all-gather') == 1
  # The Pallas kernel that it runs beside is in the same fusion.
  assert found.kernels == 1


def test_a_fused_reduce_scatter_is_synchronous():
  before = """\
%all-reduce-scatter.1 (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0} parameter(0)
  %r = f32[64,8]{1,0} all-reduce(%p), channel_id=9
  ROOT %s = f32[16,8]{1,0} dynamic-slice(%r)
}
"""
  text = _entry(
    '%a = f32[64,8]{1,0} parameter(0)',
    '%f = f32[16,8]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1',
    before=before,
  )
  scatter = findings.examine(text, _FACTS).collectives['reduce-scatter']
  assert (scatter.bytes, scatter.asynchronous_bytes) == (64 * 8 * 4, 0)


def test_calls_of_the_sparse_core_are_asynchronous():
  # Both computations end with the name of their thread; all channels are 1.
  before = """\
%called.1 (p: bf16[16,8]) -> bf16[64,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  ROOT %g = bf16[64,8]{1,0} all-gather(%p), channel_id=1, dimensions={0}
}, execution_thread="sparsecore"

%called.2 (p.2: bf16[64,8]) -> bf16[16,8] {
  %p.2 = bf16[64,8]{1,0} parameter(0)
  ROOT %r = bf16[16,8]{1,0} reduce-scatter(%p.2), channel_id=1, dimensions={0}
}, execution_thread="sparsecore"
"""
  text = _entry(
    '%a = bf16[16,8]{1,0} parameter(0)',
    '%g.call-start = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%called.1',
    '%g.call-update = ((bf16[16,8]{1,0}), bf16[64,8]{1,0}) call-update(%g.call-start, %a)',
    '%g.call-done = bf16[64,8]{1,0} call-done(%g.call-update)',
    '%r.call-start = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%called.2',
    '%r.call-done = bf16[16,8]{1,0} call-done(%r.call-start)',
    before=before,
  )
  found = findings.examine(text, _FACTS).collectives
  for kind in ('all-gather', 'reduce-scatter'):
    assert found[kind].executions == 1
    assert found[kind].asynchronous_bytes == found[kind].bytes == 64 * 8 * 2


def test_a_reduce_scatter_counts_what_goes_in():
  text = _entry(
    '%a = f32[64,8]{1,0} parameter(0)',
    '%r = f32[16,8]{1,0} reduce-scatter(%a), channel_id=1, dimensions={0}',
  )
  scatter = findings.examine(text, _FACTS).collectives['reduce-scatter']
  assert scatter.bytes == 64 * 8 * 4


def test_expert_matrices_are_told_from_tokens():
  text = _entry(
    '%a = bf16[12,768,6400]{2,1,0} parameter(0)',
    '%g = bf16[24,768,6400]{2,1,0} all-gather(%a), channel_id=1, metadata={op_name="jit(s)/decoder/experts/convert"}',
    '%u = f32[24,768,6400]{2,1,0} all-gather(%a), channel_id=2, metadata={op_name="jit(s)/select_n"}',
    '%t = bf16[4096,768]{1,0} all-gather(%a), channel_id=3, metadata={op_name="jit(s)/decoder/experts/all_gather"}',
  )
  found = findings.examine(text, _FACTS)
  assert [f.what for f in found.expert_weight_gathers] == ['bf16[24,768,6400]']
  assert [f.what for f in found.expert_update_gathers] == ['f32[24,768,6400]']


def test_scores_are_found_and_hidden_units_of_that_width_are_not():
  text = _entry(
    '%a = f32[8,6,1024,1024]{3,2,1,0} parameter(0)',
    '%s = f32[8,6,1024,1024]{3,2,1,0} fusion(%a), kind=kLoop, calls=%c',
    '%h = bf16[256,1024,1024]{2,1,0} fusion(%a), kind=kLoop, calls=%c',
    '%p = f32[1,6,1024,1024]{3,2,1,0} fusion(%a), kind=kLoop, calls=%c',
  )
  found = findings.examine(text, _FACTS)
  assert [f.what for f in found.score_arrays] == ['f32[8,6,1024,1024]']


def test_the_position_bias_of_all_heads_is_no_array_of_scores():
  text = _entry(
    '%a = f32[8,512,512]{2,1,0} parameter(0)',
    '%bias = f32[6,512,512]{2,1,0} fusion(%a), kind=kLoop, calls=%c',
    '%scores = f32[8,512,512]{2,1,0} fusion(%a), kind=kLoop, calls=%c',
  )
  facts = dataclasses.replace(_FACTS, encoder_tokens=512)
  found = findings.examine(text, facts)
  assert [f.what for f in found.score_arrays] == ['f32[8,512,512]']


def test_encoder_states_per_beam_are_found_and_their_scores_are_not():
  text = _entry(
    '%a = bf16[8,1024,6,128]{3,2,1,0} parameter(0)',
    # 8 users x 128 beams.
    '%k = bf16[1024,1024,6,128]{3,2,1,0} broadcast(%a), dimensions={1,2,3}',
    '%s = f32[8,6,128,1024]{3,2,1,0} fusion(%a), kind=kOutput, calls=%c',
    '%o = bf16[4,8,1024,6,128]{4,3,2,1,0} fusion(%a), kind=kOutput, calls=%c',
  )
  found = findings.examine(text, _FACTS)
  assert [f.what for f in found.beam_state_arrays] == ['bf16[1024,1024,6,128]']


def test_a_sort_of_all_scores_is_told_from_that_of_the_best():
  text = _entry(
    '%a = f32[8,8192]{1,0} parameter(0)',
    '%t = (f32[8,128]{1,0}, s32[8,128]{1,0}) custom-call(%a), custom_call_target="TopK"',
    '%b = (f32[8,128]{1,0}, s32[8,128]{1,0}) sort(%a, %a), dimensions={1}, to_apply=%c',
    '%f = (f32[8,8192]{1,0}, s32[8,8192]{1,0}) sort(%a, %a), dimensions={1}, to_apply=%c',
    '%i = (s32[9000]{0}, s32[9000]{0}) sort(%a, %a), dimensions={0}, to_apply=%c',
  )
  found = findings.examine(text, _FACTS)
  assert len(found.sorts) == 3
  assert [f.what for f in found.wide_float_sorts] == ['f32[8,8192] s32[8,8192]']
  assert found.top_k_calls == 1


def test_only_copies_that_change_the_layout_count():
  text = _entry(
    '%a = bf16[256,1024,768]{2,1,0:T(8,128)(2,1)} parameter(0)',
    '%same = bf16[256,1024,768]{2,1,0:T(8,128)(2,1)S(1)} copy(%a)',
    '%other = bf16[256,1024,768]{1,2,0:T(8,128)(2,1)} copy(%a)',
  )
  found = findings.examine(text, _FACTS)
  assert found.relayout_bytes == 256 * 1024 * 768 * 2
  assert len(found.relayout_copies) == 1


def test_traffic_between_slices_is_counted_apart():
  text = _entry(
    '%a = f32[64,8]{1,0} parameter(0)',
    '%k = token[] after-all()',
    '%s = (f32[64,8]{1,0}, u32[], token[]) send(%a, %k), channel_id=1, is_host_transfer=true',
    '%d = token[] send-done(%s), channel_id=1, is_host_transfer=true',
  )
  found = findings.examine(text, _FACTS)
  assert found.collectives['send'].bytes == 64 * 8 * 4
  assert found.asynchronous_share() is None
