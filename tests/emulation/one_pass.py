"""gradops optimizers whose steps run on the emulated CUDA kernels: the real optimizer, with another plan behind it."""

import ctypes
import math
from pathlib import Path

import emulator
import torch

from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import relative_step_cap, with_l1

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
REGISTER_SLOTS = 8
WARPS = 8
PIECE = 512

Int, Real, Address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def _struct(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def _same(kind, names):
    return dict.fromkeys(names.split(), kind)


View = _struct("View", data=Address, layout=Address, dtype=Int)
MOMENTS, HYPERS = 3, 7  # csrc/tensors.h's and csrc/math/update.h's
SLOTS = ("param", "rounded", "compensation", "ema", "grad", *range(MOMENTS))
Row = _struct(
    "Row", views=View * len(SLOTS), step=Address, scalar=Address, **_same(Int, "numel group unit_run unit_count")
)
Group = _struct(
    "Group",
    **_same(Real, "lr weight_decay l1"),
    own=Real * HYPERS,
    **_same(Int, "decoupled maximize"),
    lr_tensor=Address,
    lr_is_double=Int,
)
Step = _struct(
    "Step",
    **_same(Real, "max_norm norm_type clip_value cap floor agc_ratio"),
    **_same(Int, "warmup_steps moves_loss_scale track_updates"),
    **_same(Real, "growth_factor backoff_factor"),
    growth_interval=Int,
    **_same(Real, "min_scale max_scale ratio z_score lr_cut lr_growth min_lr_factor"),
    **_same(Int, "guards skips history guard_warmup_steps"),
    **_same(Address, "loss_scale found_inf"),
    **_same(Int, "grads_scaled inline_params"),
    ema=Real * 7,
    **_same(Address, "scalars counters norms abs_max nonfinite capped update_ratio param_rms"),
)


def library(**kwargs):
    kernels = sorted({*(CSRC / "cuda").rglob("*.cu")} - {CSRC / "cuda" / "launch.cu"})
    rules = [
        CSRC / "host" / "update_rules.cpp",
        CSRC / "cpu" / "isa.cpp",
        *sorted((CSRC / "cpu" / "rules").glob("*.cpp")),
    ]
    own = sorted(HERE.glob("test_*.cu"))
    lib = emulator.load([*own, *kernels, *rules], flags=[f"-I{CSRC}"], **kwargs)
    lib.plan_new.argtypes = [ctypes.c_char_p, Address, Int, Int, Int, Int]
    lib.plan_new.restype = Address
    lib.plan_delete.argtypes = lib.plan_pieces.argtypes = lib.plan_chunks.argtypes = [Address]
    lib.plan_longest_share.argtypes = [Address]
    for function in (lib.plan_pieces, lib.plan_chunks, lib.plan_longest_share):
        function.restype = Int
    lib.plan_step.argtypes = [Address, Address, Address, Address, Int]
    lib.plan_param_stats.argtypes = [Address, Address]
    return lib


def memory_of(tensor):
    """All of a tensor's storage, as a numpy array whose items are of the tensor's width."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.empty(0, dtype=words).set_(tensor.untyped_storage()).numpy()


class EmulatedPlan:
    """Stands where an optimizer has its `_C.StepPlan`: follows the tensors as that does, and steps on the emulator.

    Args:
        optimizer: a gradops optimizer on the CPU; its plan is replaced.
        blocks: how many of them a launch has.
        one_launch: the cooperative form, else two launches.
        shared_slots: how many pieces each warp parks in shared memory.
        inline_params: whether gradients and rules travel as kernel parameters.
        seed: of the first launch's schedule; each step takes the next one, 0 always the same.
    """

    def __init__(self, lib, optimizer, blocks=2, one_launch=True, shared_slots=1, inline_params=True, seed=0):
        self.lib, self.optimizer, self.real = lib, optimizer, optimizer.engine.plan
        self.form = (blocks, int(one_launch), shared_slots)
        self.inline_params, self.seed = inline_params, seed
        self.layouts = {}
        self.squares = {}  # of which parameter's bits the kernels know the sums: pointer and version
        self.native, self.key = None, None
        self.reports = []
        optimizer.engine.plan = self

    def __getattr__(self, name):
        return getattr(self.real, name)

    def __del__(self):
        if self.native:
            self.lib.plan_delete(self.native)

    def refresh(self):
        self.squares.clear()

    def step(self, param_groups, state, _, loss_scale, grads_scaled, found_inf):
        params = [param for group in param_groups for param in group["params"]]
        for param, group in ((p, g) for g in param_groups for p in g["params"]):
            needed = [*self.optimizer.rule.number_names, *self.optimizer.rule.moments_of(group)]
            if param.dtype != torch.float32:
                needed += ["master"] * self.optimizer.master_weights
                needed += ["compensation"] * (self.optimizer.rounding == "kahan")
            needed += ["ema"] * (self.optimizer.ema is not None)
            if param.grad is not None and any(name not in state.get(param, {}) for name in needed):
                return False
        if any(param.grad is not None for param in params):
            self._link(param_groups, state)
            self._run(params, param_groups, state, loss_scale, grads_scaled, found_inf)
        return True

    def _link(self, param_groups, state):
        """Makes a new table when anything that it holds has changed."""
        rows = [
            self._row(param, state.get(param, {}), index, group)
            for index, group in enumerate(param_groups)
            for param in group["params"]
        ]
        table = (Row * len(rows))(*rows)
        if bytes(table) == self.key:
            return
        if self.native:
            self.lib.plan_delete(self.native)
        rule = self.optimizer.rule.name.encode()
        self.native = self.lib.plan_new(rule, ctypes.addressof(table), len(rows), *self.form)
        self.key = bytes(table)
        self.squares.clear()

    def _row(self, param, state, index, group):
        order = sorted(range(param.dim()), key=lambda dim: -param.stride(dim))
        rule, used = self.optimizer.rule, self.optimizer.rule.moments_of(group)
        moments = [state.get(name) if name in used else None for name in rule.moment_names]
        updated, rounded = (state["master"], param) if "master" in state else (param, None)
        tensors = (updated, rounded, state.get("compensation"), state.get("ema"), param.grad, *moments)
        views = {slot: self._view(tensor, order) for slot, tensor in zip(SLOTS, tensors, strict=False)}
        views["grad"].data = None
        step, scalar, *_ = (*(address_of(state.get(key)) for key in rule.number_names), None)
        units = units_of(param, order) if group.get("agc", True) else (1, 0)
        return Row(views_of(views), step, scalar, param.numel(), index, *units)

    def _view(self, tensor, order):
        if tensor is None:
            return View(None, None, 0)
        walked = tensor.detach().permute(order)
        layout = None
        if not walked.is_contiguous():
            words = [len(order), *(word for pair in zip(walked.shape, walked.stride(), strict=True) for word in pair)]
            layout = self.layouts.setdefault(tuple(words), torch.tensor(words)).data_ptr()
        return View(tensor.data_ptr(), layout, DTYPES.index(tensor.dtype))

    def _run(self, params, param_groups, state, loss_scale, grads_scaled, found_inf):
        spec, grads, groups = self._call(params, param_groups, loss_scale, grads_scaled, found_inf)
        measures = not math.isinf(spec.cap) or self.optimizer.rule.needs_norms
        marked = torch.tensor([self._squares_of(param) is None for param in params], dtype=torch.uint8)
        arrays = self._arrays(params, param_groups, state, marked, loss_scale, found_inf)
        with emulator.watching(self.lib, seed=self.seed, **arrays) as launches:
            if measures and marked.any():
                self.lib.plan_param_stats(self.native, marked.data_ptr())
            self.lib.plan_step(
                self.native, ctypes.addressof(spec), ctypes.addressof(grads), ctypes.addressof(groups), len(groups)
            )
        self.seed += bool(self.seed)
        self.reports = launches
        for launch in launches:
            assert not launch.faults, launch.faults
        if measures:
            self.squares.update((param, (param.data_ptr(), param._version)) for param in params)

    def _call(self, params, param_groups, loss_scale, grads_scaled, found_inf):
        """The settings, gradients and groups as the kernels' host side takes them."""
        grads = (Address * len(params))(*(address_of(param.grad) for param in params))
        groups = with_l1(param_groups, self.optimizer.l1)
        groups = (Group * len(groups))(*(group_of(self.optimizer.rule, group) for group in groups))
        spec = spec_of(self.optimizer)
        spec.loss_scale, spec.found_inf = address_of(loss_scale), address_of(found_inf)
        spec.grads_scaled, spec.inline_params = int(grads_scaled), int(self.inline_params)
        return spec, grads, groups

    def _squares_of(self, param):
        known = self.squares.get(param)
        return known if known == (param.data_ptr(), param._version) else None

    def _arrays(self, params, param_groups, state, marked, loss_scale, found_inf):
        def all_of(name):
            return [memory_of(state[param][name]) for param in params if name in state.get(param, {})]

        numbers = [memory for key in self.optimizer.rule.number_names for memory in all_of(key)]
        numbers = {memory.ctypes.data: memory for memory in numbers}  # views of one buffer
        buffers = self.optimizer.engine.buffers
        read = [t for t in (marked, found_inf, *self.layouts.values()) if t is not None]
        read += [group["lr"] for group in param_groups if isinstance(group["lr"], torch.Tensor)]
        if loss_scale is not None and loss_scale.untyped_storage().data_ptr() != buffers.scalars.data_ptr():
            read.append(loss_scale)
        return {
            "param": [memory_of(param.detach()) for param in params],
            "grad": [emulator.read_only(memory_of(p.grad)) for p in params if p.grad is not None],
            **{name: all_of(name) for name in ("master", "compensation", "ema", *self.optimizer.rule.moment_names)},
            "step": list(numbers.values()),
            "stats": [memory_of(buffer) for buffer in buffers.all()],
            "inputs": [emulator.read_only(memory_of(tensor)) for tensor in read],
        }


def views_of(views):
    """A row's, by slot: its name, or the number of a moment."""
    return (View * len(SLOTS))(*(views.get(slot, View(None, None, 0)) for slot in SLOTS))


def address_of(tensor):
    """None for None; an empty tensor has an address that nothing reads."""
    return None if tensor is None else tensor.data_ptr() or 16


def units_of(param, order):
    """How many elements of a unit follow each other in that order of the dimensions, and how many units there are."""
    if param.dim() <= 1:
        return max(1, param.numel()), 1
    return math.prod(param.shape[dim] for dim in order[order.index(0) + 1 :]), param.shape[0]


def group_of(rule, group):
    lr = group["lr"]
    on_device = isinstance(lr, torch.Tensor)
    numbers = (math.nan if on_device else lr, float(group["weight_decay"]), group["l1"])
    own = (Real * HYPERS)(*rule.hyper_of(group))
    flags = int(rule.decouples(group)), int(group["maximize"])
    is_double = int(on_device and lr.dtype == torch.float64)
    return Group(*numbers, own, *flags, lr.data_ptr() if on_device else None, is_double)


def spec_of(optimizer):
    """The settings of an optimizer, and where its stats lie."""

    def or_inf(value):
        return math.inf if value is None else value

    cap = relative_step_cap(optimizer.max_relative_step)
    policy = optimizer.loss_scale
    policy = DynamicLossScale() if policy == "dynamic" else policy
    moves = isinstance(policy, DynamicLossScale)
    spec = Step(or_inf(optimizer.max_norm), optimizer.norm_type, or_inf(optimizer.clip_value))
    spec.cap = spec.agc_ratio = math.inf
    if optimizer.clip_mode == "agc":
        spec.max_norm, spec.agc_ratio = math.inf, spec.max_norm
    if cap is not None:
        spec.cap, spec.floor, spec.warmup_steps = cap.cap, cap.floor, cap.warmup_steps
    spec.moves_loss_scale, spec.track_updates = int(moves), int(optimizer.track_updates)
    for name in ("growth_factor", "backoff_factor", "growth_interval", "min_scale", "max_scale") if moves else ():
        setattr(spec, name, getattr(policy, name))
    guard = optimizer.guard
    spec.guards = int(guard is not None)
    for name in ("ratio", "z_score", "lr_cut", "lr_growth", "min_lr_factor", "skips", "history") if guard else ():
        setattr(spec, name, getattr(guard, name))
    spec.guard_warmup_steps = guard.warmup_steps if guard else 1
    if optimizer.ema is not None:
        spec.ema = (Real * 7)(*optimizer.ema.numbers)
    names = ("scalars", "counters", "norms", "abs_max", "nonfinite", "capped", "update_ratio", "param_rms")
    for name, buffer in zip(names, optimizer.engine.buffers.all(), strict=True):
        setattr(spec, name, buffer.data_ptr())
    return spec
