"""Machine code as data: instructions with the source lines they stem from, basic blocks and loops.

Reads what `nvdisasm -c -gi` prints of a cubin. Its line comments give, for the instructions that follow, the source
line and then the lines it was inlined at, innermost first (nvcc -lineinfo).
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

_SECTION = re.compile(r"\s*\.section\s+\.text\.([^\s,]+)")
_ORIGIN = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
_LABEL = re.compile(r"([.$\w]+):$")
_INSTRUCTION = re.compile(
    r"\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(?P<guard>@!?U?P\w+)?\s*(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>.*?)\s*(;|\}|$)"
)
_TARGET = re.compile(r"`\(([^)\s]+)\)|(\.L_x_\d+)")
_ACCESS = re.compile(r"(LDG|STG|LD|ST|ATOMG|ATOM|RED|REDG)\.")
_WIDTH = re.compile(r"\.(U?[SU]?8|U?[SU]?16|64|128|256)(\.|$)")
_DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)|MUFU\.\w+64H|[FI]2[FI]\S*\.F64|FRND\S*\.F64")
_FLOAT = re.compile(r"(FADD|FMUL|FFMA|FMNMX|FSETP|FSET|MUFU|HADD|HMUL|HFMA2|HSETP|D(ADD|MUL|FMA|SETP))")


@dataclass(frozen=True)
class Instruction:
    """One instruction; `origins` are (file, line), innermost first."""

    address: int
    guarded: bool
    opcode: str
    operands: str
    origins: tuple[tuple[str, int], ...]

    @property
    def targets(self) -> list[str]:
        return [first or second for first, second in _TARGET.findall(self.operands)]

    @property
    def is_global_access(self) -> bool:
        return bool(_ACCESS.match(self.opcode))

    @property
    def is_load(self) -> bool:
        return self.opcode.startswith(("LDG.", "LD."))

    @property
    def is_store(self) -> bool:
        return self.opcode.startswith(("STG.", "ST."))

    @property
    def bits(self) -> int:
        """Width of a memory access."""
        width = _WIDTH.search(self.opcode)
        return int(width[1].lstrip("US")) if width else 32

    @property
    def is_double(self) -> bool:
        return bool(_DOUBLE.match(self.opcode))

    @property
    def is_float_arithmetic(self) -> bool:
        return bool(_FLOAT.match(self.opcode))

    @property
    def is_local_access(self) -> bool:
        return self.opcode.startswith(("LDL", "STL"))


@dataclass
class Block:
    """Instructions that run one after another, and where control goes from their end."""

    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A natural loop: its header and every block from which the header is reached again, as block numbers."""

    header: int
    body: frozenset[int]


class Kernel:
    """One text section of a cubin: a kernel and the subroutines it calls."""

    def __init__(self, name: str, instructions: list[Instruction], labels: dict[str, int]):
        self.name = name
        self.instructions = instructions
        self._labels = labels

    @property
    def text(self) -> list[str]:
        """The instructions, without where they stem from."""
        return [f"{i.guarded} {i.opcode} {i.operands}" for i in self.instructions]

    def with_subroutines(self, instructions: list[Instruction]) -> list[Instruction]:
        """The instructions and those of every subroutine that they call, directly or not."""
        starts = sorted(start for label, start in self._labels.items() if not label.startswith(".L"))
        found, pending, known = list(instructions), list(instructions), set()
        while pending:
            call = pending.pop()
            targets = set(call.targets) - known if call.opcode.startswith("CALL") else set()
            known |= targets
            for start in (self._labels[name] for name in targets if not name.startswith(".L")):
                end = next((later for later in starts if later > start), len(self.instructions))
                found += self.instructions[start:end]
                pending += self.instructions[start:end]
        return found

    @cached_property
    def blocks(self) -> list[Block]:
        """Basic blocks in the order of their addresses; the first is where the kernel is entered."""
        starts = {0, *self._labels.values()}
        starts |= {after for i, after in zip(self.instructions, range(1, 10**9), strict=False) if _ends_block(i)}
        cuts = sorted(start for start in starts if start < len(self.instructions))
        blocks = [
            Block(self.instructions[begin:end])
            for begin, end in zip(cuts, [*cuts[1:], len(self.instructions)], strict=True)
        ]
        number = {cut: index for index, cut in enumerate(cuts)}
        for index, block in enumerate(blocks):
            last = block.instructions[-1]
            if _branches(last):
                block.successors += [number[self._labels[t]] for t in last.targets if self._labels.get(t) in number]
            if _falls_through(last) and index + 1 < len(blocks):
                block.successors.append(index + 1)
        return blocks

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, one a header, smallest first."""
        dominators = self._dominators()
        predecessors = defaultdict(set)
        for index in dominators:
            for successor in self.blocks[index].successors:
                predecessors[successor].add(index)
        bodies: dict[int, set[int]] = defaultdict(set)
        for index in dominators:
            for header in self.blocks[index].successors:
                if header in dominators[index]:
                    bodies[header] |= _reaching(index, header, predecessors)
        return sorted((Loop(header, frozenset(body)) for header, body in bodies.items()), key=lambda lp: len(lp.body))

    def _dominators(self) -> dict[int, set[int]]:
        """For each block that can be reached from the entry: the blocks that every way to it passes."""
        order, seen, stack = [], {0}, [0]
        while stack:
            index = stack.pop()
            order.append(index)
            for successor in self.blocks[index].successors:
                if successor not in seen:
                    seen.add(successor)
                    stack.append(successor)
        predecessors = defaultdict(list)
        for index in order:
            for successor in self.blocks[index].successors:
                predecessors[successor].append(index)
        dominators = {index: set(seen) for index in order}
        dominators[0], changed = {0}, True
        while changed:
            changed = False
            for index in sorted(seen - {0}):
                now = set.intersection(*(dominators[p] for p in predecessors[index])) | {index}
                changed |= now != dominators[index]
                dominators[index] = now
        return dominators


def _reaching(start: int, header: int, predecessors: dict[int, set[int]]) -> set[int]:
    """The header, and the blocks from which `start` is reached without passing it."""
    body, stack = {header}, [start]
    while stack:
        index = stack.pop()
        if index not in body:
            body.add(index)
            stack.extend(predecessors[index])
    return body


# BSYNC is not among them: it stands before the label that its BSSY names. WARPSYNC's label follows it, too.
def _branches(instruction: Instruction) -> bool:
    """Whether control may go to a label of this section. A call of a label is a jump; other calls return."""
    name = instruction.opcode
    if name.startswith("CALL"):
        return any(target.startswith(".L_x") for target in instruction.targets)
    return name.startswith(("BRA", "BRX", "JMP", "JMX"))


def _falls_through(instruction: Instruction) -> bool:
    final = instruction.opcode.startswith(("BRA", "BRX", "JMP", "JMX", "EXIT", "RET", "KILL"))
    # BRA may have a second, uniform predicate among its operands; BRA.DIV is taken where a warp has parted.
    predicate = re.match(r"!?U?P\d", instruction.operands) is not None
    return not final or instruction.guarded or predicate or instruction.opcode.startswith("BRA.DIV")


def _ends_block(instruction: Instruction) -> bool:
    return _branches(instruction) or instruction.opcode.startswith(("EXIT", "RET", "KILL"))


def parse(text: str) -> list[Kernel]:
    """The kernels in what `nvdisasm -c -gi` printed."""
    kernels: list[Kernel] = []
    origins: list[tuple[str, int]] = []
    in_chain = False
    for line in text.splitlines():
        if section := _SECTION.match(line):
            kernels.append(Kernel(section[1], [], {}))
            origins = []
        elif origin := _ORIGIN.match(line):
            origins = [*origins, (origin[1], int(origin[2]))] if in_chain else [(origin[1], int(origin[2]))]
            in_chain = "inlined at" in line
        elif kernels and (found := _INSTRUCTION.match(line)):
            kernels[-1].instructions.append(
                Instruction(
                    int(found[1], 16), found["guard"] is not None, found["opcode"], found["operands"], tuple(origins)
                )
            )
        elif kernels and (label := _LABEL.match(line)):
            kernels[-1]._labels[label[1]] = len(kernels[-1].instructions)
    return kernels
