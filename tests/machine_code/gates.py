"""What machine code must be like. Each gate returns its complaints as sentences; none means that it passes.

Element code is found by where it stems from: the rules of csrc/math that are applied to every element. Around it stands
code in which float64 is right and narrow accesses are harmless, since it runs once a chunk, a parameter or a step.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import toolchain
from .sass import Instruction, Kernel, parse
from .toolchain import Resources

ELEMENT_RULES = {
    "csrc/math/grad_stats.h": ("clamp_grad", "add_element", "power_in_unit"),
    "csrc/math/adam_step.h": ("adam_update",),
}
# What may be narrower than 128 bits in an element loop: tensors that are strided or misaligned, and the tables, which
# are read once a piece of many elements.
NARROW = {
    "csrc/cuda/vec.cuh": (
        *("load_struct", "store_struct"),
        *("load_scalars", "load_strided", "load_at", "store_at", "place"),
    ),
    "csrc/cuda/multi_tensor.cuh": ("PieceAt", "load_dtype", "grad", "group", "of", "lanes"),
}


@dataclass(frozen=True)
class Compiled:
    """A kernel as one architecture runs it, and how it is launched: threads and dynamic shared memory of a block."""

    kernel: Kernel
    resources: Resources
    arch: str
    threads: int
    dynamic_shared: int


@cache
def read_cubin(cubin: Path) -> dict[str, tuple[Kernel, Resources]]:
    """The kernels of a cubin, by mangled name."""
    found = toolchain.resources(cubin)
    return {kernel.name: (kernel, found[kernel.name]) for kernel in parse(toolchain.disassemble(cubin))}


Lines = frozenset[tuple[str, int]]


@cache
def lines_of(name: str, functions: tuple[str, ...]) -> Lines:
    """(file, line) of every line of these functions.

    Raises:
        LookupError: a function is not there any more, so that a gate would look for nothing.
    """
    lines, missing, end = set(), set(functions), None
    for number, text in enumerate((toolchain.ROOT / name).read_text().splitlines(), 1):
        found = re.match(r"( *)GRADOPS_(?:HD|DEVICE) [^(=]*?(\w+)\(", text)
        if found and end is None and found[2] in functions:
            missing.discard(found[2])
            end = found[1] + "}"
        if end is not None:
            lines.add((name, number))
            if text == end or (text.endswith(("}", "};")) and found):
                end = None
    if missing:
        raise LookupError(f"{name} defines no {', '.join(sorted(missing))}: name its successor in {__name__}")
    return frozenset(lines)


def stems_from(instruction: Instruction, functions: dict[str, tuple[str, ...]]) -> bool:
    """Whether an instruction was inlined from one of the functions, given by file."""
    places = {("csrc/" + path.rpartition("/csrc/")[2], line) for path, line in instruction.origins}
    return any(not places.isdisjoint(lines_of(name, names)) for name, names in functions.items())


def _is_element_arithmetic(instruction: Instruction) -> bool:
    return instruction.is_float_arithmetic and stems_from(instruction, ELEMENT_RULES)


def regions(kernel: Kernel) -> Iterator[list[Instruction]]:
    """The loops that access global memory themselves, without the loops inside them that do; last, what is in none."""
    taken: set[int] = set()
    for loop in kernel.loops:
        own = [i for index in sorted(loop.body - taken) for i in kernel.blocks[index].instructions]
        if any(instruction.is_global_access for instruction in own):
            taken |= loop.body
            yield own
    yield [i for index, block in enumerate(kernel.blocks) if index not in taken for i in block.instructions]


def element_loops(kernel: Kernel) -> list[list[Instruction]]:
    """The regions that do elements' arithmetic."""
    return [region for region in regions(kernel) if any(map(_is_element_arithmetic, region))]


def no_local_memory(code: Compiled) -> Iterator[str]:
    if code.resources.stack or code.resources.local:
        yield f"{code.resources.stack} bytes of stack and {code.resources.local} of local memory a thread"
    if accesses := [i for i in code.kernel.instructions if i.is_local_access]:
        yield f"loads and stores of local memory: {_listed(accesses)}"


def no_doubles_in_element_code(code: Compiled) -> Iterator[str]:
    doubles = {i for i in code.kernel.instructions if i.is_double and stems_from(i, ELEMENT_RULES)}
    for loop in list(regions(code.kernel))[:-1]:
        if any(map(_is_element_arithmetic, loop)):
            doubles |= {i for i in code.kernel.with_subroutines(loop) if i.is_double}
    if doubles:
        yield f"float64 in element code: {_listed(doubles)}"


def vector_accesses(code: Compiled) -> Iterator[str]:
    """There are element loops with 128-bit accesses, and in those nothing is narrower without a right to be."""
    loops = [[i for i in loop if i.is_load or i.is_store] for loop in element_loops(code.kernel)]
    main = [accesses for accesses in loops if any(i.bits == 128 and not _may_be_narrow(i) for i in accesses)]
    if loops and not main:
        yield "no element loop with 128-bit accesses"
    for accesses in main:
        if narrow := [i for i in accesses if i.bits < 128 and not _may_be_narrow(i)]:
            yield f"narrow accesses in a loop of 128-bit ones: {_listed(narrow)}"


def _may_be_narrow(instruction: Instruction) -> bool:
    return stems_from(instruction, NARROW)


def co_resident(code: Compiled) -> Iterator[str]:
    """A block fits on a multiprocessor. A cooperative grid is as many blocks as do, times the multiprocessors."""
    shared = code.resources.shared
    found = toolchain.occupancy(code.arch, code.resources.registers, shared, code.threads, code.dynamic_shared)
    if found["blocks"] < 1:
        yield (
            f"no block of {code.threads} threads with {code.resources.registers} registers and {shared} + "
            f"{code.dynamic_shared} bytes of shared memory fits: {found}"
        )


GATES = (no_local_memory, no_doubles_in_element_code, vector_accesses, co_resident)


def complaints(code: Compiled) -> dict[str, list[str]]:
    """What each gate that does not pass says, by its name."""
    found = {gate.__name__: list(gate(code)) for gate in GATES}
    return {name: sentences for name, sentences in found.items() if sentences}


def _listed(instructions: Iterable[Instruction]) -> str:
    found = sorted(instructions, key=lambda i: i.address)
    places = [
        f"{i.address:#x} {i.opcode}" + (f" ({i.origins[0][0]}:{i.origins[0][1]})" * bool(i.origins)) for i in found
    ]
    return f"{len(found)}, such as {', '.join(places[:4])}"
