"""What a scheduled TPU program does that matters for training and decoding.

Collectives and how many of their bytes hide behind computation, sorts, arrays
of scores, copies that only change a layout.  Judges text; no JAX.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from collections.abc import Mapping

from onerec_jax.aot import hlo

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'ragged-all-to-all', 'collective-permute', 'collective-broadcast',
)  # fmt: skip
# Between slices: what crosses the data-centre network.
TRANSFERS = ('send', 'recv')
# Copies and sorts that are listed one by one.
_LISTED = 8
# Arrays smaller than this are no burden, whatever their shape.
_SMALL_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Facts:
  """Sizes of the program on one device, to recognise arrays by."""

  encoder_tokens: int  # S
  embed_dim: int  # D
  num_heads: int  # H
  head_dim: int  # K
  channels: tuple[int, ...]  # of dense activations: D, hidden units, heads
  expert_dim: int = 0  # F of one expert; 0: no experts
  beams: int = 0  # W; 0: no beam search


@dataclasses.dataclass
class Collective:
  """All executions of one kind, per device and call of the program."""

  executions: float = 0.0
  bytes: float = 0.0  # of the larger side: what is gathered, or was scattered
  asynchronous_executions: float = 0.0
  asynchronous_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Found:
  """One instruction that is reported by itself."""

  what: str  # shape
  where: str  # the operation's name in the program
  executions: float
  bytes: float  # of one execution


@dataclasses.dataclass(frozen=True)
class Findings:
  """What `examine` found; bytes are per device and call."""

  collectives: Mapping[str, Collective]
  # All-gathers of expert matrices where tokens should move instead.
  expert_weight_gathers: tuple[Found, ...]
  # The same once per step behind the optimizer, whose state is split (ZeRO).
  expert_update_gathers: tuple[Found, ...]
  sorts: tuple[Found, ...]  # of any kind, the widest first
  wide_float_sorts: tuple[Found, ...]  # of more scores than there are beams
  top_k_calls: float  # TopK kernels, which do not sort their input
  score_arrays: tuple[Found, ...]  # S x S for each row of the batch
  beam_state_arrays: tuple[Found, ...]  # encoder states repeated per beam
  relayout_copies: tuple[Found, ...]  # the largest
  relayout_bytes: float
  kernels: float  # executions of Pallas (Mosaic) kernels
  estimated_cycles: float  # XLA's; collectives and kernels have none
  unknown_loops: int  # counted as if they ran once

  def asynchronous_share(self, *kinds: str) -> float | None:
    """Returns the share of the bytes of `kinds` (default: all) that overlap."""
    chosen = [c for k, c in self.collectives.items() if k in (kinds or KINDS)]
    total = sum(c.bytes for c in chosen)
    return sum(c.asynchronous_bytes for c in chosen) / total if total else None


def examine(text: str, facts: Facts) -> Findings:
  """Returns the findings of a program.

  Args:
    text: scheduled HLO, `compiled.as_text()`.
    facts: sizes to recognise arrays by.
  """
  module = hlo.parse(text)
  executed = list(hlo.schedule(module))
  collectives, gathers = _collectives(module, executed, facts)
  updates = [g for g in gathers if 'experts' not in g.where]
  copies = [
    _found(x) for x in executed if _is_relayout(module, x) and x.executions
  ]
  copies.sort(key=lambda f: -f.bytes * f.executions)
  sorts = [_found(x) for x in executed if x.instruction.opcode == 'sort']
  sorts.sort(key=lambda f: -f.bytes)
  arrays = [x for x in executed if _makes_array(x.instruction)]
  return Findings(
    collectives=collectives,
    expert_weight_gathers=tuple(g for g in gathers if g not in updates),
    expert_update_gathers=tuple(updates),
    sorts=tuple(sorts),
    wide_float_sorts=tuple(
      _found(x)
      for x in executed
      if x.instruction.opcode == 'sort' and _is_wide(x.instruction, facts)
    ),
    top_k_calls=_calls(module, executed, ('TopK', 'PartialReduce')),
    score_arrays=_distinct(
      x for x in arrays if _has_scores(x.instruction, facts)
    ),
    beam_state_arrays=_distinct(
      x for x in arrays if _has_beam_states(x.instruction, facts)
    ),
    relayout_copies=tuple(copies[:_LISTED]),
    relayout_bytes=math.fsum(f.bytes * f.executions for f in copies),
    kernels=_calls(module, executed, ('tpu_custom_call',)),
    estimated_cycles=math.fsum(
      x.instruction.estimated_cycles * x.executions
      for x in executed
      # XLA prints absurd estimates for a few fusions.
      if x.instruction.estimated_cycles < 1e12
    ),
    unknown_loops=sum(
      x.instruction.opcode == 'while'
      and hlo.trip_count(module, x.instruction) is None
      for x in executed
    ),
  )


# --- Collectives ------------------------------------------------------------


def _collectives(
  module: hlo.Module, executed: Iterable[hlo.Executed], facts: Facts
) -> tuple[dict[str, Collective], list[Found]]:
  result: dict[str, Collective] = collections.defaultdict(Collective)
  gathers = []
  for x in executed:
    found = _collective(module, x)
    if found is None:
      continue
    kind, inner, overlaps = found
    size = _moved(module, inner, kind)
    entry = result[kind]
    entry.executions += x.executions
    entry.bytes += x.executions * size
    if overlaps:
      entry.asynchronous_executions += x.executions
      entry.asynchronous_bytes += x.executions * size
    if kind == 'all-gather' and _is_expert_weight(inner, facts):
      gathers.append(_found(dataclasses.replace(x, instruction=inner)))
  return dict(result), gathers


def _collective(
  module: hlo.Module, x: hlo.Executed
) -> tuple[str, hlo.Instruction, bool] | None:
  """Returns kind, the collective itself, and whether it overlaps."""
  instruction = x.instruction
  opcode = instruction.opcode
  if opcode in KINDS or opcode in TRANSFERS:
    return opcode, instruction, opcode in TRANSFERS
  if opcode.endswith('-start') and opcode.removesuffix('-start') in KINDS:
    return opcode.removesuffix('-start'), instruction, True
  if opcode not in ('async-start', 'call-start', 'fusion'):
    return None
  inner = _inside(module, instruction)
  if inner is None:
    return None
  kind = inner.opcode.removesuffix('-start')
  if opcode != 'fusion':
    return kind, inner, True
  # An asynchronous fusion is a chain: it starts, runs beside matrix products in
  # fusions of their own, and is done.  Each part holds the same collective.
  (name,) = instruction.called['calls']
  targets = {
    line.attribute('custom_call_target') for line in module.computations[name]
  }
  if 'AsyncCollectiveStart' in targets:
    return kind, inner, True
  if 'AsyncCollectiveDone' in targets or name.startswith('async_collective'):
    return None
  if 'reduce-scatter' in name:  # an all-reduce of which each keeps a slice
    kind = 'reduce-scatter'
  return kind, inner, False


def _inside(
  module: hlo.Module, instruction: hlo.Instruction, depth: int = 3
) -> hlo.Instruction | None:
  """Returns the collective of a computation that `instruction` runs."""
  for name in (
    *instruction.called.get('calls', ()),
    *instruction.called.get('to_apply', ()),
  ):
    for line in module.computations.get(name, ()):
      if line.opcode.removesuffix('-start') in KINDS:
        return line
      if depth and line.opcode in ('fusion', 'call', 'async-start'):
        found = _inside(module, line, depth - 1)
        if found is not None:
          return found
  return None


def _moved(module: hlo.Module, inner: hlo.Instruction, kind: str) -> float:
  """Returns the bytes of the larger side of a collective on one device."""
  given = 0.0
  for lines in module.computations.values():
    if inner in lines:
      sizes = {line.name: line.bytes for line in lines}
      given = sum(sizes.get(name, 0.0) for name in inner.operands)
      break
  made = inner.bytes
  if inner.opcode.endswith('-start') and given:
    made -= given  # its result holds the operands too
  if kind in TRANSFERS:
    return given or made
  return max(given, made)


def _is_expert_weight(inner: hlo.Instruction, facts: Facts) -> bool:
  """Whether a matrix of an expert is moved (and not its tokens)."""
  if not facts.expert_dim:
    return False
  matrix = {facts.embed_dim, facts.expert_dim}
  return any(
    (matrix <= set(shape.dims) and 'expert' in inner.op_name + inner.text)
    or (matrix <= set(shape.dims) and len(shape.dims) > 2)
    for shape in inner.shapes
  )


# --- Arrays -----------------------------------------------------------------


def _makes_array(instruction: hlo.Instruction) -> bool:
  """Whether the result is memory of its own, not a view or an argument."""
  return instruction.opcode not in (
    'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'constant',
    'conditional', 'call', 'optimization-barrier',
  )  # fmt: skip


def _has_scores(instruction: hlo.Instruction, facts: Facts) -> bool:
  """Whether it is an array of S x S scores of rows of the batch.

  The position bias, [H, S, S], is shared by all rows and does not count.
  """
  s = facts.encoder_tokens
  # Where a width is S too, [B, S, S] may be hidden units, but not [B, H, S, S].
  least = 4 if s in facts.channels else 2
  return any(
    shape.dims.count(s) > 1
    and sum(size > 1 for size in shape.dims) >= least
    and shape.elements > facts.num_heads * s * s
    for shape in instruction.shapes
  )


def _has_beam_states(instruction: hlo.Instruction, facts: Facts) -> bool:
  """Whether encoder states, keys or values exist once per beam.

  Scores, [.., W, S], do not count: they have no channels.
  """
  if facts.beams < 2:
    return False
  for shape in instruction.shapes:
    dims = collections.Counter(shape.dims)
    tokens = collections.Counter([facts.encoder_tokens])
    if tokens - dims:
      continue
    rest = dims - tokens
    for channels in (facts.head_dim, facts.embed_dim):
      if not rest[channels]:
        continue
      others = rest - collections.Counter([channels])
      if any(size % facts.beams == 0 for size in others.elements()):
        return True
  return False


def _is_relayout(module: hlo.Module, x: hlo.Executed) -> bool:
  instruction = x.instruction
  if instruction.opcode not in ('copy', 'transpose') or not instruction.shapes:
    return False
  if instruction.bytes < _SMALL_BYTES:
    return False
  if instruction.opcode == 'transpose':
    return True
  lines = module.computations[x.computation]
  operand = next((i for i in lines if i.name == instruction.operands[0]), None)
  if operand is None or len(operand.shapes) != 1:
    return False
  return operand.shapes[0].order != instruction.shapes[0].order


def _is_wide(instruction: hlo.Instruction, facts: Facts) -> bool:
  """Whether floats are sorted along an axis longer than the beam.

  The last step of a TopK kernel sorts the beams it has found, and no more.
  """
  found = re.search(r'dimensions=\{(\d+)\}', instruction.text)
  key = instruction.shapes[0]
  if not found or not key.dtype.startswith(('f', 'bf')):
    return False
  return key.dims[int(found.group(1))] > max(facts.beams, 1)


def _calls(
  module: hlo.Module, executed: Iterable[hlo.Executed], targets: Iterable[str]
) -> float:
  """Returns how often custom calls run, those that a collective joins too."""
  targets = tuple(targets)

  def calls(instruction: hlo.Instruction) -> bool:
    lines: Iterable[hlo.Instruction] = (instruction,)
    if instruction.opcode == 'fusion':
      (name,) = instruction.called['calls']
      lines = module.computations.get(name, ())
    return any(
      line.opcode == 'custom-call'
      and line.attribute('custom_call_target') in targets
      for line in lines
    )

  return math.fsum(x.executions for x in executed if calls(x.instruction))


def _found(x: hlo.Executed) -> Found:
  instruction = x.instruction
  return Found(
    what=' '.join(str(shape) for shape in instruction.shapes),
    where=instruction.op_name,
    executions=x.executions,
    bytes=instruction.bytes,
  )


def _distinct(executed: Iterable[hlo.Executed]) -> tuple[Found, ...]:
  """Returns the largest arrays, those of equal shape counted together."""
  result: dict[str, Found] = {}
  for x in executed:
    one = _found(x)
    if one.what in result:
      both = result[one.what].executions + one.executions
      one = dataclasses.replace(result[one.what], executions=both)
    result[one.what] = one
  return tuple(sorted(result.values(), key=lambda f: -f.bytes)[:_LISTED])
