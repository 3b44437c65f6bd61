"""What the compiled kernels promise, read from their machine code; no GPU is needed.

Each gate is first shown kernels with a planted fault (machine_code/planted.cu) and must complain of exactly that.
"""

import functools
import shutil

import pytest
from machine_code import gates, sass, toolchain

import gradops
from gradops.backends import choose

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=f"not found: {', '.join(toolchain.missing())}")

THREADS = 512
ON_CHIP = 64 * 1024

PLANTED = {
    "good_kernel": set(),
    "chunked_kernel": set(),
    "parking_kernel": set(),
    "spilling_kernel": {"no_local_memory"},
    "local_array_kernel": {"no_local_memory"},
    "double_kernel": {"no_doubles_in_element_code"},
    "double_sum_kernel": {"no_doubles_in_element_code"},
    "double_call_kernel": {"no_doubles_in_element_code"},
    "scalar_kernel": {"vector_accesses"},
    "scalar_load_kernel": {"vector_accesses"},
    "scalar_store_kernel": {"vector_accesses"},
    "greedy_kernel": {"co_resident"},
}


SOURCES = sorted((toolchain.ROOT / "csrc" / "cuda").rglob("*.cu"))
COMPILED = [(source, arch) for source in SOURCES for arch in toolchain.ARCHS]
# Most of a minute for a rule and an architecture: `make test-all` has them all.
QUICK = [(source, "90") for source in SOURCES if source.parent.name != "rules" or source.stem == "adam"]
# Work of a row or of a step only.
WITHOUT_ELEMENTS = (
    "plan_rows",
    "plan_averages_kernel",
    "update_loss_scale_kernel",
    "write_updates_kernel",
    "decide_units_kernel",
    "record_rows_kernel",
    "merge_rows_kernel",
    "decide_without_grads_kernel",
    "record_updates_kernel",
    "write_shared_updates_kernel",
)


BUILT_HERE = [
    pytest.param(*case, id=f"{case[0].stem}-sm_{case[1]}", marks=[pytest.mark.slow] * (case not in QUICK))
    for case in COMPILED
]


@functools.cache
def planted(arch):
    return gates.read_cubin(toolchain.compile_cubin(toolchain.HERE / "planted.cu", arch), arch)


@pytest.mark.parametrize("arch", toolchain.ARCHS)
def test_every_planted_kernel_is_examined(arch):
    assert planted(arch).keys() == PLANTED.keys()


@pytest.mark.parametrize("arch", toolchain.ARCHS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_by_its_gate_and_by_no_other(name, arch):
    code = gates.Compiled(*planted(arch)[name], arch, THREADS, ON_CHIP)
    assert gates.complaints(code).keys() == PLANTED[name]


LISTING = """
	.section	.text.kernel,"ax",@progbits
	//## File "/x/csrc/math/inner.h", line 7 inlined at "/x/csrc/cuda/outer.cu", line 9
	//## File "/x/csrc/cuda/outer.cu", line 9
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   BRX R2 -0x20                    (*"BRANCH_TARGETS .L_x_1,.L_x_2"*);
.L_x_1:
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   BRA.DIV UR4, `(.L_x_2) ;
        /*0040*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*0050*/                   CALL.REL.NOINC `($first) ;
        /*0060*/               @P1 EXIT ;
        /*0070*/                   BRA P2, `(.L_x_0) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   BRA `(.L_x_3) ;
$first:
        /*00a0*/                   CALL.REL.NOINC `($second) ;
        /*00b0*/                   RET.REL.NODEC R2 `(kernel) ;
$second:
        /*00c0*/                   DADD R2, R2, R4 ;
        /*00d0*/                   RET.REL.NODEC R2 `(kernel) ;
"""


def test_loops_branches_and_subroutines_of_a_listing():
    """Two nested loops, entered by a jump table; the last one cannot be reached."""
    (kernel,) = sass.parse(LISTING)
    first = [
        [hex(kernel.blocks[index].instructions[0].address) for index in sorted(loop.body)] for loop in kernel.loops
    ]
    assert first == [["0x20"], ["0x10", "0x20", "0x30", "0x40", "0x50", "0x70"]]
    assert kernel.instructions[0].origins == (("/x/csrc/math/inner.h", 7), ("/x/csrc/cuda/outer.cu", 9))
    called = kernel.with_subroutines([i for i in kernel.instructions if i.address == 0x50])
    assert [i.opcode for i in called] == ["CALL.REL.NOINC", "CALL.REL.NOINC", "RET.REL.NODEC", "DADD", "RET.REL.NODEC"]


def test_a_gate_does_not_look_for_a_function_that_is_gone():
    with pytest.raises(LookupError, match="no_such_rule"):
        gates.lines_of("csrc/math/rules/adam.h", ("update", "no_such_rule"))


@pytest.mark.parametrize("arch", toolchain.ARCHS)
def test_too_much_shared_memory_is_caught(arch):
    code = gates.Compiled(*planted(arch)["good_kernel"], arch, THREADS, 228 * 1024)
    assert gates.complaints(code).keys() == {"co_resident"}


@pytest.mark.parametrize(("arch", "kib"), [("80", 163), ("90", 227), ("100", 227), ("120", 99)])
def test_a_block_may_take_all_shared_memory_but_the_drivers(arch, kib):
    fits = functools.partial(toolchain.occupancy, arch, 128, 0, THREADS)
    assert fits(kib * 1024)["blocks"] == 1
    assert fits(kib * 1024 + 1)["blocks"] == 0
    assert fits(0)["blocks"] == 1


def launched(name, kernel, resources, arch):
    """A kernel of csrc/cuda as it is launched: the one-launch step parks all it can, the others nothing."""
    form = toolchain.launch_form(arch)
    shared = form["shared_bytes" if "one_pass_step_kernel" in name else "state_bytes"]
    return gates.Compiled(kernel, resources, arch, form["threads"], shared)


def complain(cubin, arch):
    """What the gates say of a cubin's kernels, one line each."""
    found = []
    for name, (kernel, resources) in gates.read_cubin(cubin, arch).items():
        wanted = gates.GATES if is_without_elements(name) else (*gates.GATES, gates.every_dtype_in_vectors)
        complaints = gates.complaints(launched(name, kernel, resources, arch), wanted)
        found += [f"{name}: {gate}: {sentence}" for gate, sentences in complaints.items() for sentence in sentences]
    return found


def is_without_elements(name):
    return any(kernel in name for kernel in WITHOUT_ELEMENTS)


@pytest.mark.parametrize(("source", "arch"), BUILT_HERE)
def test_kernels_pass_every_gate(source, arch):
    found = complain(toolchain.compile_cubin(source, arch), arch)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("source", "arch"), BUILT_HERE)
def test_a_step_reads_and_writes_its_elements_in_a_loop_that_the_gates_see(source, arch):
    """A gate that finds no element loop has nothing to say."""
    for name, (kernel, _) in gates.read_cubin(toolchain.compile_cubin(source, arch), arch).items():
        loops = gates.element_loops(kernel)
        assert bool(loops) != is_without_elements(name), name
        stores = any(
            updating in name
            for updating in ("one_pass_step", "update_kernel", "update_units", "update_alone", "scale_grads")
        )
        assert any(i.is_store and i.bits == 128 for loop in loops for i in loop) or not stores, name


# In the kernels themselves: where, what is replaced by what, and the gate that must see it.
FAULTS = {
    "half_the_registers": ("cuda/one_pass_step.cuh", "(kThreads, 1)", "(kThreads, 3)", "no_local_memory"),
    "float64_denominator": ("math/rules/adam.h", "sqrtf(second_moment)", "sqrt(1.0 * second_moment)", "element_code"),
    "no_tensor_is_aligned": ("cuda/vec.cuh", "bool aligned =", "bool aligned = false &&", "vector_accesses"),
    "float16_is_scalar": (
        *("cuda/vec.cuh", "load_contiguous<Dtype::kFloat16, kHalves>(from, half, lanes, policy, x)"),
        *("load_scalars<Dtype::kFloat16, kHalves>(from, half, lanes, x)", "every_dtype_in_vectors"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_kernels_is_caught(fault, tmp_path):
    name, old, new, gate = FAULTS[fault]
    csrc = shutil.copytree(toolchain.ROOT / "csrc", tmp_path / "csrc")
    text = (csrc / name).read_text()
    assert old in text
    (csrc / name).write_text(text.replace(old, new))
    cubin = toolchain.compile_cubin(csrc / "cuda" / "rules" / "adam.cu", "100", csrc)
    assert f"{gate}: " in "\n".join(complain(cubin, "100"))


def extension_cubins(folder):
    """The machine code in the extension that is imported here, by architecture."""
    cubins = toolchain.extract_cubins(gradops._C.__file__, folder)
    return [(cubin, toolchain.arch_of(cubin)) for cubin in cubins]


@pytest.mark.parametrize("compiled", [QUICK, pytest.param(COMPILED, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_extension_holds_machine_code_that_passes_every_gate(compiled, tmp_path):
    """It has no line numbers to tell element code by, so its instructions must be those that were read above."""
    if reason := choose.missing("native", "cuda"):
        pytest.skip(reason)
    cubins = extension_cubins(tmp_path)
    held = {
        (name, arch): kernel.text
        for cubin, arch in cubins
        if arch in toolchain.ARCHS
        for name, (kernel, _) in gates.read_cubin(cubin, arch).items()
    }
    read = {
        (name, arch): kernel.text
        for source, arch in compiled
        if arch in {arch for _, arch in held}
        for name, (kernel, _) in gates.read_cubin(toolchain.compile_cubin(source, arch), arch).items()
    }
    assert held
    assert compiled is QUICK or held.keys() == read.keys()
    assert [key for key, text in read.items() if held.get(key) != text] == []
