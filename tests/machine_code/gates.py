"""What machine code must be like. Each gate returns its complaints as sentences; none means that it passes.

Element code is found by where it stems from: functions that are applied to every element, most of them in csrc/math.
Around it stands code in which float64 is right and narrow accesses are harmless, since it runs once a chunk, a
parameter or a step.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import toolchain
from .sass import Instruction, Kernel, parse
from .toolchain import Resources

ELEMENT_RULES = {
    "csrc/math/grad_stats.h": ("clamp_grad", "add_element", "power_in_scale"),
    **{f"csrc/math/rules/{path.name}": ("update",) for path in (toolchain.ROOT / "csrc/math/rules").glob("*.h")},
    "csrc/math/lerp.h": ("lerp",),
    "csrc/math/update.h": ("update_element", "regularise", "times_sign", "left_by_rounding"),
    "csrc/math/activation_stats.h": ("deviation",),
    "csrc/cuda/grad_stats.cu": ("scale_pieces",),
    "csrc/cuda/activation_stats.cu": ("mean_of_piece", "add_values"),
}
# What may be narrower than 128 bits in an element loop: the ways of strided and misaligned tensors, and the tables,
# which are read once for many elements by files that leave the elements to vec.cuh.
NARROW = {
    "csrc/cuda/memory.cuh": ("load_struct", "store_struct"),
    "csrc/cuda/agc.cuh": ("sum_up", "coef_of"),
    "csrc/cuda/vec.cuh": ("load_scalars", "load_strided", "load_at", "store_at", "place"),
}
TABLE_READERS = ("csrc/cuda/multi_tensor.cuh", "csrc/cuda/grad_stats.cu")


@dataclass(frozen=True)
class Compiled:
    """A kernel as one architecture runs it, and how it is launched: threads and dynamic shared memory of a block, and
    how many blocks a multiprocessor must hold at once."""

    kernel: Kernel
    resources: Resources
    arch: str
    threads: int
    dynamic_shared: int
    blocks: int = 1


@cache
def read_cubin(cubin: Path, arch: str) -> dict[str, tuple[Kernel, Resources]]:
    """The kernels of a cubin, by mangled name."""
    found = toolchain.resources(cubin, arch)
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


def _relative(path: str) -> str:
    return "csrc/" + path.rpartition("/csrc/")[2]


def _places(instruction: Instruction) -> Lines:
    """Its origins, as `lines_of` writes them."""
    return frozenset((_relative(path), line) for path, line in instruction.origins)


def stems_from(instruction: Instruction, functions: dict[str, tuple[str, ...]]) -> bool:
    """Whether an instruction was inlined from one of the functions, given by file."""
    places = _places(instruction)
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
    plain = lines_of("csrc/cuda/memory.cuh", ("load", "store"))
    places = ((_relative(path), line) for path, line in instruction.origins)
    caller, _ = next((place for place in places if place not in plain), ("", 0))
    return caller in TABLE_READERS or stems_from(instruction, NARROW)


def co_resident(code: Compiled) -> Iterator[str]:
    """A cooperative grid is no larger than all multiprocessors hold at once, else its barrier would never open."""
    shared = code.resources.shared
    found = toolchain.occupancy(code.arch, code.resources.registers, shared, code.threads, code.dynamic_shared)
    if found["blocks"] < code.blocks:
        yield (
            f"less than {code.blocks} blocks of {code.threads} threads with {code.resources.registers} registers and "
            f"{shared} + {code.dynamic_shared} bytes of shared memory fit: {found}"
        )


def every_dtype_in_vectors(code: Compiled) -> Iterator[str]:
    """In vec.cuh each dtype has its own line that calls the loads or stores; 128-bit ones stem from it."""
    accesses = [i for loop in element_loops(code.kernel) for i in loop if i.is_load or i.is_store]
    seen = set()
    for number, dtype in _dtype_lines():
        own = [i for i in accesses if ("csrc/cuda/vec.cuh", number) in _places(i)]
        seen |= {dtype} if own else set()
        if own and not any(i.bits == 128 for i in own):
            yield f"no 128-bit accesses of {dtype} from vec.cuh:{number}"
    if missing := {dtype for _, dtype in _dtype_lines()} - seen:
        yield f"no accesses of {', '.join(sorted(missing))}"


@cache
def _dtype_lines() -> list[tuple[int, str]]:
    lines = (toolchain.ROOT / "csrc/cuda/vec.cuh").read_text().splitlines()
    calls = ((number, re.search(r"\b(?:load|store)_\w+<Dtype::(\w+)", line)) for number, line in enumerate(lines, 1))
    return [(number, call[1]) for number, call in calls if call]


GATES = (no_local_memory, no_doubles_in_element_code, vector_accesses, co_resident)


def complaints(code: Compiled, gates: Iterable[Callable[[Compiled], Iterator[str]]] = GATES) -> dict[str, list[str]]:
    """What each gate that does not pass says, by its name."""
    found = {gate.__name__: list(gate(code)) for gate in gates}
    return {name: sentences for name, sentences in found.items() if sentences}


def _listed(instructions: Iterable[Instruction]) -> str:
    found = sorted(instructions, key=lambda i: i.address)
    places = [
        f"{i.address:#x} {i.opcode}" + (f" ({i.origins[0][0]}:{i.origins[0][1]})" * bool(i.origins)) for i in found
    ]
    return f"{len(found)}, such as {', '.join(places[:4])}"
