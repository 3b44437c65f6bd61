"""What Triton makes of the kernels, compiled as a launch would compile them for GPUs that are not here.

Each gate is first shown kernels with a planted fault (machine_code/planted_triton.py).
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machine_code import toolchain
from quick import slow_but

pytest.importorskip("triton", minversion="3.3")
from machine_code import planted_triton, triton_gates, triton_offline
from rules import EVERY_CASE

import gradops
from gradops import SpikeGuard
from gradops.backends.triton import activations as triton_activations
from gradops.backends.triton import rules as triton_rules
from gradops.backends.triton import step as triton_step

NEEDS = [name for name in ("nvdisasm", "cuobjdump") if toolchain.find_binary(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(NEEDS), reason=f"not found: {', '.join(NEEDS)}"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
ARCHS = (*triton_offline.NVIDIA, *triton_offline.AMD)
# Parameter and gradient; the others are combinations of the same loads.
DTYPES = {"float32": (torch.float32, torch.float32), "bfloat16": (torch.bfloat16, torch.bfloat16)}
QUICK = [("90", "float32"), ("90", "bfloat16"), ("gfx942", "float32")]
CASES = [
    pytest.param(arch, dtype, marks=() if (arch, dtype) in QUICK else pytest.mark.slow, id=f"{arch}-{dtype}")
    for arch in ARCHS
    for dtype in DTYPES
]
SLOW_BUT_90 = slow_but(["90"], ARCHS)
PLANTED = {
    "good_kernel": set(),
    "scalar_kernel": {"wide_accesses", "no_scalar_main_loop"},
    "scalar_store_kernel": {"wide_accesses", "no_scalar_main_loop"},
    "spilling_kernel": {"nothing_is_spilled"},
}


def per_thread(arch):
    """Elements of a tile that one thread takes."""
    return 1024 // (triton_step.OPTIONS["num_warps"] * triton_offline.target_of(arch).warp_size)


def wide(arch, *sizes):
    """128-bit accesses of one turn, for tensors with elements of these sizes."""
    return sum(per_thread(arch) * size // 16 for size in sizes)


@functools.cache
def launches(dtype, **settings):
    return {launch.kernel.__name__: launch for launch in triton_offline.launches_of(*DTYPES[dtype], **settings)}


@pytest.mark.parametrize("arch", ["90", "gfx942"])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_by_its_gate_and_by_no_other(name, arch):
    arguments = {"table": torch.zeros(4, dtype=torch.int64), "n": 7}
    launch = triton_offline.Launch(getattr(planted_triton, name), 1, arguments, triton_step.OPTIONS)
    expected = {"load": wide(arch, 4, 4), "store": wide(arch, 4)}
    assert triton_gates.complaints(triton_gates.code_of(launch, arch), expected).keys() == PLANTED[name]


@pytest.mark.parametrize(("arch", "dtype"), CASES)
def test_update_takes_full_chunks_in_vectors_and_spills_nothing(arch, dtype):
    code = triton_gates.code_of(launches(dtype)["update_step_kernel"], arch)
    size = DTYPES[dtype][0].itemsize
    expected = {"load": wide(arch, size, size, 4, 4), "store": wide(arch, size, 4, 4)}
    assert not triton_gates.complaints(code, expected)
    assert code.registers <= 128, "fewer than four programs fit on a multiprocessor at once"


# Bytes of the elements that are loaded and stored.
LOW_PRECISION = {
    "master": ("bfloat16", {"master_weights": True}, (2, 4, 4, 4), (4, 2, 4, 4)),
    "kahan": ("bfloat16", {"rounding": "kahan"}, (2, 2, 2, 4, 4), (2, 2, 4, 4)),
    "moments": ("float32", {"moments_dtype": torch.bfloat16}, (4, 4, 2, 2), (4, 2, 2)),
}


@pytest.mark.parametrize("arch", slow_but(["90"], ["90", "gfx942"]))
@pytest.mark.parametrize(("dtype", "settings", "loads", "stores"), LOW_PRECISION.values(), ids=LOW_PRECISION)
def test_masters_and_bfloat16_moments_are_updated_in_vectors(arch, dtype, settings, loads, stores):
    code = triton_gates.code_of(launches(dtype, **settings)["update_step_kernel"], arch)
    assert not triton_gates.complaints(code, {"load": wide(arch, *loads), "store": wide(arch, *stores)})
    assert code.registers <= 128, "fewer than four programs fit on a multiprocessor at once"


@pytest.mark.parametrize(("arch", "dtype"), CASES)
def test_gradients_are_measured_in_vectors_and_nothing_is_spilled(arch, dtype):
    code = triton_gates.code_of(launches(dtype)["grad_stats_kernel"], arch)
    tiles = 8
    expected = {"load": tiles * wide(arch, DTYPES[dtype][1].itemsize), "store": 0}
    assert not triton_gates.complaints(code, expected)
    # All loads of a chunk are on their way at once: three programs on a multiprocessor keep 96 KiB of them.
    assert code.registers <= 168, "fewer than three programs fit on a multiprocessor at once"


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_every_option_compiles_for_every_device(arch):
    guarded = {"guard": SpikeGuard(), "loss_scale": "dynamic"}
    capped = {"max_relative_step": 0.1, "track_updates": True}
    clipped = {"clip_mode": "agc", "max_norm": 0.01, "clip_value": 1.0}
    for options in ({"norm_type": 3.0, "clip_value": 1.0}, capped, guarded, clipped):
        for launch in triton_offline.launches_of(torch.float16, torch.float32, amsgrad=True, **options):
            assert not list(triton_gates.nothing_is_spilled(triton_gates.code_of(launch, arch), {}))


def test_tracked_updates_are_gathered_in_the_same_accesses():
    code = triton_gates.code_of(launches("float32", track_updates=True)["update_step_kernel"], "90")
    assert not triton_gates.complaints(code, {"load": wide("90", 4, 4, 4, 4), "store": wide("90", 4, 4, 4)})
    assert code.registers <= 168, "fewer than three programs fit on a multiprocessor at once"


@pytest.mark.parametrize("settings", [{}, {"track_updates": True}, {"clip_mode": "agc", "max_norm": 0.01}], ids=str)
def test_beta1_of_0_takes_the_same_accesses_and_spills_nothing(settings):
    code = triton_gates.code_of(launches("float32", beta1=0.0, **settings)["update_step_kernel"], "90")
    expected = {"load": wide("90", 4, 4, 4, 4), "store": wide("90", 4, 4, 4), "factors": "clip_mode" in settings}
    assert not triton_gates.complaints(code, expected)
    assert code.registers <= 168, "fewer than three programs fit on a multiprocessor at once"


@pytest.mark.parametrize("arch", SLOW_BUT_90)
def test_activations_are_measured_without_a_spill(arch):
    with triton_offline.recorded() as found:
        triton_activations.activation_stats(torch.zeros(3, 4096), 1e-3)
    (launch,) = found
    assert not list(triton_gates.nothing_is_spilled(triton_gates.code_of(launch, arch), {}))


def test_guarded_measuring_spills_nothing_and_is_as_wide_as_unguarded():
    code = triton_gates.code_of(launches("float32", guard=SpikeGuard())["grad_stats_kernel"], "90")
    assert not triton_gates.complaints(code, {"load": 8 * wide("90", 4), "store": 0})
    assert code.registers <= 168


@pytest.mark.parametrize("arch", SLOW_BUT_90)
def test_units_are_measured_without_a_spill_and_clipped_in_the_same_accesses(arch):
    found = launches("float32", clip_mode="agc", max_norm=0.01)
    assert list(found) == ["grad_stats_kernel", "unit_coefs_kernel", "update_step_kernel"]
    assert not list(triton_gates.nothing_is_spilled(triton_gates.code_of(found["unit_coefs_kernel"], arch), {}))
    code = triton_gates.code_of(found["update_step_kernel"], arch)
    expected = {"load": wide(arch, 4, 4, 4, 4), "store": wide(arch, 4, 4, 4), "factors": True}
    assert not triton_gates.complaints(code, expected)
    assert code.registers <= 168, "fewer than three programs fit on a multiprocessor at once"


def every_variant():
    """Of every rule; by its name and number a rule and a group."""
    found = {}
    for cls, options in EVERY_CASE:
        rule, group = cls.rule, cls([torch.zeros(1)], **options).param_groups[0]
        variant = triton_rules.load(rule).variant_of(rule.hyper_of(group))
        found.setdefault(f"{rule.name}-{variant}", (rule, group))
    return found


VARIANTS = every_variant()


@pytest.mark.parametrize("arch", SLOW_BUT_90)
@pytest.mark.parametrize(("rule", "group"), VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_updated_in_vectors_and_spills_nothing(rule, group, arch):
    *_, update = triton_offline.launches_of_rule(rule, group, *DTYPES["float32"])
    moments = [4] * len(rule.moments_of(group))
    code = triton_gates.code_of(update, arch)
    assert not triton_gates.complaints(code, {"load": wide(arch, 4, 4, *moments), "store": wide(arch, 4, *moments)})
    assert code.registers <= triton_gates.UPDATE_REGISTERS, "fewer than four programs fit on a multiprocessor at once"


@pytest.mark.parametrize("arch", SLOW_BUT_90)
@pytest.mark.parametrize(("rule", "group"), VARIANTS.values(), ids=VARIANTS)
def test_rates_bounded_by_gradients_are_planned_without_a_spill(rule, group, arch):
    found = triton_offline.launches_of_rule(rule, group, *DTYPES["float32"], max_relative_step=0.1)
    planned = [launch for launch in found if launch.kernel.__name__ == "plan_rows_kernel"]
    assert (len(found), len(planned)) == ((2, 0) if rule.scale_free else (3, 1))
    for launch in planned:
        assert not list(triton_gates.nothing_is_spilled(triton_gates.code_of(launch, arch), {}))


SHARDED = {
    "cap": (
        {"max_relative_step": 0.1, "guard": SpikeGuard(), "loss_scale": "dynamic"},
        ["grad_stats_kernel", "decide_kernel", "plan_rows_kernel", "update_step_kernel"],
    ),
    "units": (
        {"clip_mode": "agc", "max_norm": 0.01, "track_updates": True},
        ["grad_stats_kernel", "unit_norms_kernel", "decide_kernel", "unit_coefs_kernel", "update_step_kernel"],
    ),
}


@pytest.mark.parametrize("arch", SLOW_BUT_90)
@pytest.mark.parametrize(("settings", "names"), SHARDED.values(), ids=SHARDED)
def test_what_is_launched_between_measuring_and_updating_shards_spills_nothing(arch, settings, names):
    found = launches("float32", shards=True, **settings)
    assert list(found) == names
    for name in names[1:-1]:
        assert not list(triton_gates.nothing_is_spilled(triton_gates.code_of(found[name], arch), {}))


@pytest.mark.parametrize("arch", SLOW_BUT_90)
@pytest.mark.parametrize("gradients", slow_but([False], [True, False]))
def test_shards_are_updated_in_the_same_accesses_where_they_have_gradients(arch, gradients):
    found = launches("float32", shards=True, gradients=gradients, track_updates=True)
    assert list(found) == ["grad_stats_kernel", "decide_kernel", "update_step_kernel"]
    codes = {name: triton_gates.code_of(launch, arch) for name, launch in found.items()}
    assert not [spill for code in codes.values() for spill in triton_gates.nothing_is_spilled(code, {})]
    if gradients:
        expected = {"load": wide(arch, 4, 4, 4, 4), "store": wide(arch, 4, 4, 4)}
        assert not triton_gates.complaints(codes["update_step_kernel"], expected)


@pytest.mark.parametrize("settings", [{}, {"max_relative_step": 0.1}])
def test_a_first_step_is_two_launches(settings):
    assert list(launches("float32", **settings)) == ["grad_stats_kernel", "update_step_kernel"]


NAME_OF_CODE = """
from gradops.backends.triton.triton_before_3_5 import name_by_sources_before_3_5
from gradops.backends.triton.update_step import update_step_kernel
name_by_sources_before_3_5(update_step_kernel)
print(update_step_kernel.cache_key)
"""


def test_compiled_code_is_found_again_only_while_the_constants_are_what_they_were(tmp_path):
    def name_with(words, folder):
        package = tmp_path / folder / "gradops"
        shutil.copytree(Path(gradops.__file__).parent, package, symlinks=True)
        source = package / "backends/triton/rows.py"
        text = source.read_text()
        assert text.count("ROW_WORDS = tl.constexpr(18)") == 1
        source.write_text(text.replace("ROW_WORDS = tl.constexpr(18)", f"ROW_WORDS = tl.constexpr({words})"))
        command = [sys.executable, "-c", NAME_OF_CODE]
        return subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=True).stdout

    assert name_with(18, "as it is") == name_with(18, "elsewhere") != name_with(19, "changed")
