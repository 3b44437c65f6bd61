"""The two halves of a sharded step on the emulated kernels: without a race, the whole step, and no byte more."""

import ctypes
import math

import emulator
import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from one_pass import PIECE, Address, EmulatedPlan, Int, _struct, library, memory_of

import gradops

# Of two processes: one chunk and more, several blocks, nothing on the second, a vector, a piece of odd size.
SHAPES = [(40, 1031), (1, 7), (3 * PIECE + 5,), (600, 30)]
BYTES = ("param", "grad", "exp_avg", "exp_avg_sq", "momentum_buffer")
Shard = _struct(
    "Shard", whole_numel=Address, is_one_unit=Address, records=Address, gathered=Address, counts=Address, processes=Int
)


@pytest.fixture(scope="module")
def lib():
    lib = library()
    lib.shard_new.argtypes, lib.shard_new.restype = [Address, Address], Address
    lib.shard_half.argtypes = [Address, Int, Address, Address, Address, Address, Int]
    lib.shard_delete.argtypes = [Address]
    return lib


class OneOfTwo(EmulatedPlan):
    """The plan of one process: a step only keeps its arguments, and `half` then launches a part of it."""

    def _run(self, *arguments):
        self.arguments = arguments

    def half(self, which, shapes, gathered):
        """Launches one half; what the process then tells the others."""
        params, param_groups, state, loss_scale, grads_scaled, found_inf = self.arguments
        spec, grads, groups = self._call(params, param_groups, loss_scale, grads_scaled, found_inf)
        lines = 3 if which > 1 else 3 + (not math.isinf(spec.cap)) + 2 * (not math.isinf(spec.agc_ratio))
        records = torch.full((lines, len(params) + 1), math.nan, dtype=torch.float64)
        whole = torch.tensor([math.prod(shape) for shape in shapes])
        one_unit = torch.tensor([len(shape) == 1 for shape in shapes], dtype=torch.uint8)
        counts = torch.ones(2, len(params), dtype=torch.bool)
        arrays = self._arrays(params, param_groups, state, counts, loss_scale, found_inf)
        arrays["inputs"] += [emulator.read_only(memory_of(tensor)) for tensor in (one_unit, gathered)]
        arrays["records"] = [memory_of(records)]
        of = Shard(*(tensor.data_ptr() for tensor in (whole, one_unit, records, gathered, counts)), 2)
        self.shard = getattr(self, "shard", None) or self.lib.shard_new(self.native, whole.data_ptr())
        with emulator.watching(self.lib, seed=self.seed, **arrays) as launches:
            if which == 0 and not math.isinf(spec.cap):
                self.lib.plan_param_stats(self.native, None)
            where = map(ctypes.addressof, (spec, of, grads, groups))
            self.lib.shard_half(self.shard, which, *where, len(groups))
        assert [launch.faults for launch in launches] == [[]] * len(launches)
        self.seed += 1
        return records, launches


def parts(tensors):
    """Those of either process, over dimension 0."""
    return [[*part] for part in zip(*(torch.tensor_split(tensor, 2) for tensor in tensors), strict=True)]


def params_of(values):
    return [value.clone().requires_grad_() for value in values]


def step_of_shards(plans, tracked):
    """One step of all processes; the launches of the first."""
    gathered, launches = torch.zeros(1, dtype=torch.float64), []
    for which in range(4 if tracked else 2):
        told = [plan.half(which, SHAPES, gathered) for plan in plans]
        gathered = torch.stack([records for records, _ in told])
        launches += told[0][1]
    return launches


CASES = {
    "clip": (gradops.AdamW, {"max_norm": 0.5}),
    "cap and tracked": (gradops.AdamW, {"max_relative_step": 0.001, "track_updates": True}),
    "rule by norms": (gradops.LARS, {"lr": 0.5, "weight_decay": 0.01, "max_norm": 1.0, "max_relative_step": 0.01}),
    "units": (gradops.AdamW, {"clip_mode": "agc", "max_norm": 0.01, "track_updates": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_whole_step_without_a_race(lib, case):
    cls, options = CASES[case]
    options = {"lr": 0.01, **options}
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    whole = cls(params_of(values), **options)
    EmulatedPlan(lib, whole, blocks=3, one_launch=False, seed=5)
    processes = [cls(params_of(part), **options) for part in parts(values)]
    plans = [OneOfTwo(lib, optimizer, blocks=3, one_launch=False, seed=9) for optimizer in processes]
    for step in range(2):
        grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for optimizer, of in zip((whole, *processes), (grads, *parts(grads)), strict=True):
            for param, grad in zip(optimizer.param_groups[0]["params"], of, strict=True):
                param.grad = grad.clone()
            optimizer.step()
        step_of_shards(plans, options.get("track_updates"))
        for index, param in enumerate(whole.param_groups[0]["params"]):
            both = torch.cat([optimizer.param_groups[0]["params"][index].detach() for optimizer in processes])
            assert_close(both, param.detach(), tol.TORCH_FLOAT32, 1.0, f"param {index} of step {step}")
        for name in ("norms", "abs_max", "clip_coef", "capped", "update_ratio", "param_rms"):
            mine, other = (getattr(optimizer.stats.cpu(), name) for optimizer in processes)
            assert_same_bits(mine, other, name)
            expected = getattr(whole.stats.cpu(), name)
            assert_close(mine.double(), expected.double(), tol.TORCH_FLOAT32, what=name)


def test_a_step_of_shards_moves_no_byte_more_than_two_launches(lib):
    values = [torch.ones(40, 1031), torch.ones(40, 3)]
    whole = gradops.AdamW(params_of(values), max_norm=0.5)
    alone = EmulatedPlan(lib, whole, blocks=3, one_launch=False, seed=5)
    shard = gradops.AdamW(params_of(values), max_norm=0.5)
    plan = OneOfTwo(lib, shard, blocks=3, one_launch=False, seed=9)
    for optimizer in (whole, shard):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.step()
    launches = []
    gathered = torch.zeros(1, dtype=torch.float64)
    for which in range(2):
        records, some = plan.half(which, [(80, 1031), (80, 3)], gathered)
        gathered = torch.stack([records, records])
        launches += some

    def moved(reports):
        return {
            name: sum(report.traffic[name].load_bytes + report.traffic[name].store_bytes for report in reports)
            for name in BYTES
            if name in reports[0].traffic
        }

    assert moved(launches) == moved(alone.reports)
    assert moved(launches)["grad"] == 2 * 4 * sum(value.numel() for value in values)
