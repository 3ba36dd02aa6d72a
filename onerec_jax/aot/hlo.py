"""Scheduled HLO of a TPU program as instructions with execution counts.

Parses the text of `compiled.as_text()`; what the instructions mean for
training and decoding is findings.py.  No JAX.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from collections.abc import Mapping

# Bytes per element; what is not listed (tokens, opaque) counts 0.
_ITEM_BYTES = {
  'pred': 1.0, 's4': 0.5, 'u4': 0.5, 's8': 1.0, 'u8': 1.0, 'f8e4m3fn': 1.0,
  'f8e5m2': 1.0, 'f8e4m3b11fnuz': 1.0, 's16': 2.0, 'u16': 2.0, 'bf16': 2.0,
  'f16': 2.0, 's32': 4.0, 'u32': 4.0, 'f32': 4.0, 's64': 8.0, 'u64': 8.0,
  'f64': 8.0, 'c64': 8.0,
}  # fmt: skip

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
# A brace alone, or with the thread of a SparseCore's computation; the text of a
# Pallas kernel has lines that begin with '}}'.
_END = re.compile(r'^\}(, execution_thread="\w+")?\s*$')
_INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$'
)
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_CALLED = re.compile(
  r'(calls|to_apply|body|condition|true_computation|false_computation)'
  r'=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array of a result."""

  dtype: str
  dims: tuple[int, ...]
  layout: str  # '1,0:T(8,128)', '' where not printed

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes without the padding of tiles."""
    return _ITEM_BYTES.get(self.dtype, 0.0) * self.elements

  @property
  def order(self) -> str:
    """Minor-to-major order, without tiling and memory space."""
    return self.layout.split(':')[0]

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  shapes: tuple[Shape, ...]  # of the result; several for a tuple
  operands: tuple[str, ...]  # names
  text: str  # all behind the opcode's parenthesis
  called: Mapping[str, tuple[str, ...]]  # attribute -> computations

  @property
  def bytes(self) -> float:
    return sum(shape.bytes for shape in self.shapes)

  def attribute(self, name: str) -> str | None:
    """Returns the value of `name=...` or `name="..."`; None: absent."""
    found = re.search(rf'\b{name}="?([^",\s]+)', self.text)
    return found.group(1) if found else None

  @property
  def op_name(self) -> str:
    """Where in the program it comes from, as JAX wrote it."""
    found = re.search(r'op_name="([^"]*)"', self.text)
    return found.group(1) if found else ''

  @property
  def estimated_cycles(self) -> int:
    """XLA's own cost estimate of one execution; 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
    return int(found.group(1)) if found else 0


@dataclasses.dataclass(frozen=True)
class Module:
  """A parsed program."""

  entry: str
  computations: Mapping[str, tuple[Instruction, ...]]


@dataclasses.dataclass(frozen=True)
class Executed:
  """An instruction of the schedule with its place."""

  instruction: Instruction
  computation: str
  executions: float  # per call of the program; loops multiplied


def parse(text: str) -> Module:
  """Returns the computations of an HLO text.

  Raises:
    ValueError: there is no ENTRY computation.
  """
  computations: dict[str, tuple[Instruction, ...]] = {}
  entry = name = None
  lines: list[Instruction] = []
  for line in text.splitlines():
    begins = _COMPUTATION.match(line)
    if begins:
      name, lines = begins.group(2), []
      if begins.group(1):
        entry = name
    elif name is not None and _END.match(line):
      computations[name] = tuple(lines)
      name = None
    elif name is not None:
      instruction = _parse_line(line)
      if instruction is not None:
        lines.append(instruction)
  if entry is None:
    raise ValueError('The HLO text has no ENTRY computation.')
  return Module(entry, computations)


def _parse_line(line: str) -> Instruction | None:
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  name, result, opcode, rest = found.groups()
  called: dict[str, tuple[str, ...]] = {}
  for attribute, computation in _CALLED.findall(rest):
    called[attribute] = (*called.get(attribute, ()), computation)
  branches = _BRANCHES.search(rest)
  if branches:
    called['branches'] = tuple(
      part.strip().lstrip('%') for part in branches.group(1).split(',')
    )
  arguments = rest[: _closing(rest)]
  return Instruction(
    name=name,
    opcode=opcode,
    shapes=_shapes(result),
    operands=tuple(re.findall(r'%([\w.\-]+)', arguments)),
    text=rest,
    called=called,
  )


def _closing(text: str) -> int:
  """Returns the place of the parenthesis that ends the operands."""
  depth = 0
  for place, letter in enumerate(text):
    if letter == '(':
      depth += 1
    elif letter == ')':
      if not depth:
        return place
      depth -= 1
  return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
  return tuple(
    Shape(dtype, tuple(int(d) for d in dims.split(',') if d), layout or '')
    for dtype, dims, layout in _ARRAY.findall(text)
  )


# --- Executions -------------------------------------------------------------


def schedule(module: Module) -> Iterator[Executed]:
  """Yields what is executed, in order, with how often.

  Bodies of loops and branches are entered, each branch as if it were always
  taken; fusions are not: what is inside them has no buffer of its own.  A
  loop whose trip count cannot be read counts once.
  """
  yield from _walk(module, module.entry, 1.0, ())


def _walk(
  module: Module, name: str, executions: float, inside: tuple[str, ...]
) -> Iterator[Executed]:
  if name in inside:  # HLO has no recursion; a damaged text might
    return
  for instruction in module.computations.get(name, ()):
    yield Executed(instruction, name, executions)
    called = instruction.called
    times = executions
    if instruction.opcode == 'while':
      times *= trip_count(module, instruction) or 1
      entered = called.get('body', ())
    elif instruction.opcode == 'conditional':
      entered = (
        *called.get('branches', ()),
        *called.get('true_computation', ()),
        *called.get('false_computation', ()),
      )
    elif instruction.opcode == 'call':
      entered = called.get('to_apply', ())
    else:
      entered = ()
    for computation in entered:
      yield from _walk(module, computation, times, (*inside, name))


def trip_count(module: Module, loop: Instruction) -> int | None:
  """Returns how often a `while` runs; None: it cannot be read.

  From known_trip_count, which TPU texts lack, or from a condition that
  compares a counter that starts at 0 with one constant.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
  if known:
    return int(known.group(1))
  (condition,) = loop.called.get('condition', ('',))
  lines = module.computations.get(condition, ())
  compares = [i for i in lines if i.opcode == 'compare']
  constants = {
    i.name: int(i.text.split(')')[0])
    for i in lines
    if i.opcode == 'constant' and re.match(r'-?\d+\)', i.text)
  }
  if len(compares) != 1 or 'direction=LT' not in compares[0].text:
    # The comparison may be wrapped into a fusion or a call of its own.
    if len(constants) == 1 and any(i.opcode == 'fusion' for i in lines):
      return next(iter(constants.values()))
    return None
  values = [constants[n] for n in compares[0].operands if n in constants]
  return values[0] if len(values) == 1 else None
