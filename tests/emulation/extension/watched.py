"""gradops' optimizers on its CUDA backend, emulated, with the eyes of the emulator on what their steps touch."""

import ctypes
from contextlib import contextmanager

import emulator
import torch
from rules import CLASSES

from gradops import _C
from gradops.distributed.shards import local_tensor

REGISTER_SLOTS = 8
WARPS = 8
PIECE = 512
SMALL_GROUPS = 8  # that fit into 4 KB of kernel parameters
MOMENTS = {name for cls in CLASSES for name in cls.rule.moment_names}
ELEMENTS = {"param", "master", "compensation", "ema", "grad"} | MOMENTS

lib = emulator.opened(_C.__file__)
lib.emulated_pieces.argtypes = [ctypes.c_void_p, ctypes.c_int64]


def memory_of(tensor):
    """All of a tensor's storage, as a numpy array whose items are of the tensor's width."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.empty(0, dtype=words).set_(tensor.detach().untyped_storage()).numpy()


def moved(reports):
    """The bytes that launches loaded and stored, of each array of elements that they touched."""
    names = ELEMENTS & {name for report in reports for name in report.traffic}
    of_names = {name: [report.traffic[name] for report in reports if name in report.traffic] for name in names}
    return {name: sum(t.load_bytes + t.store_bytes for t in traffic) for name, traffic in of_names.items()}


def element_bytes(reports):
    return sum(moved(reports).values())


@contextmanager
def watching(seed=0, **arrays):
    """`emulator.watching`, where what the host allocates meanwhile may be touched, too."""
    lib.emulated_memory(True)
    try:
        with emulator.watching(lib, seed, **arrays) as launches:
            yield launches
    finally:
        lib.emulated_memory(False)


class Watched:
    """Stands where an optimizer has its plan, on a GPU of its own, and watches each step: a fault fails it.

    Args:
        optimizer: a gradops optimizer on the CPU.
        blocks: how many of the one-pass kernel the GPU holds; of other kernels it takes twice as many.
        one_launch: whether it has cooperative launches.
        shared_slots: how many pieces each warp parks in shared memory.
        inline_params: whether gradients and rules travel as kernel parameters; else the optimizer gets more groups,
            which are empty, than fit.
        seed: of the first launch's schedule; each step takes the next one, 0 always the same.
    """

    def __init__(self, optimizer, blocks=2, one_launch=True, shared_slots=1, inline_params=True, seed=0):
        self.optimizer, self.seed, self.reports = optimizer, seed, []
        lib.emulated_gpu(blocks, shared_slots, one_launch, inline_params)
        for _ in range(0 if inline_params else SMALL_GROUPS):
            optimizer.add_param_group({"params": []})
        optimizer.engine.choice = None  # a new plan, which asks the device
        optimizer.engine.rebind()
        lib.emulated_gpu(0, 0, 0, 0)
        self.plan, optimizer.engine.plan = optimizer.engine.plan, self

    def __getattr__(self, name):
        return getattr(self.plan, name)

    def step(self, param_groups, state, settings, loss_scale, grads_scaled, found_inf):
        arrays = self.arrays(param_groups, state, loss_scale, found_inf)
        with watching(self.seed, **arrays) as launches:
            done = self.plan.step(param_groups, state, settings, loss_scale, grads_scaled, found_inf)
        self.seed += bool(self.seed and launches)
        self.reports = launches
        for launch in launches:
            assert not launch.faults, launch.faults
        return done

    def arrays(self, param_groups, state, loss_scale, found_inf):
        """What a step may touch of the caller's, by name."""
        params = [param for group in param_groups for param in group["params"]]
        rule, buffers = self.optimizer.rule, self.optimizer.engine.buffers

        def all_of(name):
            tensors = [state[param][name] for param in params if name in state.get(param, {})]
            return [memory_of(local_tensor(tensor)) for tensor in tensors]

        numbers = [memory for key in rule.number_names for memory in all_of(key)]
        numbers = {memory.ctypes.data: memory for memory in numbers}  # views of one buffer
        read = [] if found_inf is None else [found_inf]
        read += [group["lr"] for group in param_groups if isinstance(group["lr"], torch.Tensor)]
        if loss_scale is not None and loss_scale.untyped_storage().data_ptr() != buffers.scalars.data_ptr():
            read.append(loss_scale)
        return {
            "param": [memory_of(local_tensor(param)) for param in params],
            "grad": [emulator.read_only(memory_of(local_tensor(p.grad))) for p in params if p.grad is not None],
            **{name: all_of(name) for name in ("master", "compensation", "ema", *rule.moment_names)},
            "step": list(numbers.values()),
            "stats": [memory_of(buffer) for buffer in buffers.all()],
            "inputs": [emulator.read_only(memory_of(tensor)) for tensor in read],
        }
