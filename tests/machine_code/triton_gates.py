"""What the machine code of Triton kernels must be like; each gate returns its complaints as sentences.

A kernel has a way in vectors for full chunks, one for single elements, and tables that are read once for many elements.
On NVIDIA the accesses of the first are those with eviction hints. On AMD, where hints leave no trace, they are found by
their width and by the loops they stand in.
"""

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

from . import toolchain, triton_offline
from .sass import parse

WIDE = {
    "load": re.compile(r"LDG\.E\.E[FL]\.128|buffer_load_(dwordx4|b128)|global_load_(dwordx4|b128)"),
    "store": re.compile(r"STG\.E\.E[FL]\.128|buffer_store_(dwordx4|b128)|global_store_(dwordx4|b128)"),
}
HINTED = re.compile(r"(LDG|STG)\.E\.E[FL](\.|$)")
AMD_FLOATS = re.compile(r"(buffer|global)_(load|store)_(ushort|short|b16|u16|dword|b32)(_|$)")
LOCAL = re.compile(r"(LDL|STL)|scratch_(load|store)")
# Bytes that may be spilled: kernels are written for Triton 3.8, and 3.6 and 3.9 keep a number of some in local memory.
# With 3.7 a step that tracks its updates takes 128 registers and 16 bytes, where it takes 141 registers with 3.8.
SPILLED = {"3.7": 16, "3.8": 0}.get(".".join(triton.__version__.split(".")[:2]), 8)
# Registers of an update: with 128 four programs fit on a multiprocessor at once. Triton 3.3 takes 138 for LARS.
UPDATE_REGISTERS = 138 if triton.__version__.startswith("3.3.") else 128


@dataclass(frozen=True)
class Code:
    """A kernel as one architecture runs it; `loops` holds the opcodes of each loop, `spilled` bytes or registers."""

    arch: str
    opcodes: list[str]
    loops: list[list[str]]
    registers: int
    spilled: int


def code_of(launch, arch):
    """Compiles what a launch would."""
    compiled = launch.compile(arch)
    if arch in triton_offline.AMD:
        return amd_code(arch, compiled.asm["amdgcn"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (kernel,) = parse(toolchain.disassemble(Path(file.name)))
        (found,) = toolchain.resources(Path(file.name), arch).values()
    loops = [[i.opcode for index in loop.body for i in kernel.blocks[index].instructions] for loop in kernel.loops]
    return Code(arch, [i.opcode for i in kernel.instructions], loops, found.registers, found.stack + found.local)


def amd_code(arch, text):
    """Loops reach from a label to the last branch back to it."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {line.split(":")[0]: number for number, line in enumerate(lines) if re.match(r"\.LBB\w+:", line)}
    ends = {}
    for number, line in enumerate(lines):
        branch = re.match(r"s_c?branch\w*\s+(\.LBB\w+)", line)
        if branch and labels[branch[1]] <= number:
            ends[labels[branch[1]]] = number
    loops = [[line.split()[0] for line in lines[begin:end] if line] for begin, end in ends.items()]
    count = {key: int(re.search(rf"\.{key}:\s*(\d+)", text)[1]) for key in ("vgpr_count", "vgpr_spill_count")}
    opcodes = [line.split()[0] for line in lines if re.match(r"[a-z]\w+\s", line)]
    return Code(arch, opcodes, loops, count["vgpr_count"], count["vgpr_spill_count"])


def nothing_is_spilled(code, expected):
    if 0 < code.spilled <= SPILLED:
        return
    if code.spilled:
        yield f"{code.spilled} bytes or registers are spilled"
    if found := [opcode for opcode in code.opcodes if LOCAL.match(opcode)]:
        yield f"local memory is accessed: {dict(Counter(found))}"


def wide_accesses(code, expected):
    """At least as many 128-bit loads and stores as one turn of the vector way has."""
    for direction in ("load", "store"):
        least = expected[direction]
        found = sum(bool(WIDE[direction].match(opcode)) for opcode in code.opcodes)
        if found < least:
            yield f"{found} {direction}s of 128 bits, not {least}"


def amd_floats(loop, expected):
    """A loop's narrow accesses, without the factors of a vector's elements where those have `factors` of their own."""
    found = [opcode for opcode in loop if AMD_FLOATS.match(opcode) and opcode.startswith("buffer")]
    loads = [opcode for opcode in found if "_load_" in opcode]
    gathered = expected.get("factors") and len(loads) <= 4 * sum(bool(WIDE["store"].match(o)) for o in loop) // 3
    return [opcode for opcode in found if not gathered or opcode not in loads]


def no_scalar_main_loop(code, expected):
    """What is accessed in vectors is accessed in nothing narrower: 64 bits where a thread has no more."""
    if code.arch in triton_offline.NVIDIA:
        narrow = [o for o in code.opcodes if HINTED.match(o) and not o.endswith((".64", ".128"))]
    else:
        main = [loop for loop in code.loops if sum(bool(WIDE["store"].match(opcode)) for opcode in loop)]
        narrow = [o for loop in main for o in amd_floats(loop, expected)]
        if expected["store"] and not main:
            yield "no loop with 128-bit stores"
    if narrow:
        yield f"narrow accesses of elements in the vector way: {dict(Counter(narrow))}"


GATES = (nothing_is_spilled, wide_accesses, no_scalar_main_loop)


def complaints(code, expected):
    """What each gate that does not pass says, by its name."""
    found = {gate.__name__: list(gate(code, expected)) for gate in GATES}
    return {name: sentences for name, sentences in found.items() if sentences}
