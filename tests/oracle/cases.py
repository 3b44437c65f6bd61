"""What the tests draw: parameters of every size, dtype and layout, options, and sequences of steps."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from rules import goes_with, table_of

import gradops
from gradops.backends.native import extension

needs_native = pytest.mark.skipif(bool(extension.MISSING), reason=extension.MISSING)

# Where torch has no `param.grad_dtype`, a gradient has the dtype of its parameter.
HOLDS_OTHER_DTYPES = hasattr(torch.Tensor, "grad_dtype")
needs_other_dtypes = pytest.mark.skipif(
    not HOLDS_OTHER_DTYPES, reason="this torch refuses gradients of another dtype than the parameter's"
)

CHUNK = 8192
SHAPES = [(), (0,), (1,), (3,), (16,), (17,), (5, 7), (3, 0, 2), (2, 3, 4, 5), (31, 33), (CHUNK - 1,), (CHUNK + 1,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "transposed", "channels_last", "misaligned", "strided"]
AVERAGES = [
    None,
    gradops.WeightEma(0.6),
    gradops.WeightEma(0.75, every=2, start=1),
    gradops.WeightEma(0.9, inv_gamma=2.0, power=0.75, min_decay=0.1),
    gradops.WeightEma(0.9, tau=2.0, start=1),
]
NORM_TYPES = [2.0, 1.0, float("inf"), 3.0, 0.5]


def lay_out(values, layout):
    """The same values with other strides: dense ones, a view off the allocator's alignment, a view with gaps."""
    if layout == "transposed":
        order = tuple(reversed(range(values.dim())))
        return values.permute(order).contiguous().permute(order)
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "misaligned":
        return values.new_empty(values.numel() + 1)[1:].view(values.shape).copy_(values)
    if layout == "strided" and values.dim():
        return values.new_empty(*values.shape[:-1], 2 * values.shape[-1])[..., ::2].copy_(values)
    return values.contiguous().clone()


@dataclass(frozen=True)
class ParamCase:
    shape: tuple
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    grad_dtype: torch.dtype = torch.float32
    grad_layout: str = "contiguous"
    magnitude: float = 1.0
    requires_grad: bool = True

    def param(self, device="cpu"):
        values = torch.randn(self.shape, device=device).to(self.dtype)
        param = lay_out(values, self.layout).requires_grad_()
        param.grad_dtype = self.grad_dtype
        return param.requires_grad_(self.requires_grad)

    def grad(self, scale=1.0, device="cpu"):
        values = torch.randn(self.shape, device=device) * (self.magnitude * scale)
        return lay_out(values.to(self.grad_dtype if HOLDS_OTHER_DTYPES else self.dtype), self.grad_layout)


@st.composite
def param_cases(draw, dtypes=tuple(DTYPES), shapes=tuple(SHAPES)):
    dtype = draw(st.sampled_from(dtypes))
    return ParamCase(
        shape=draw(st.sampled_from(shapes) | st.lists(st.integers(0, 9), max_size=4).map(tuple)),
        dtype=dtype,
        layout=draw(st.sampled_from(LAYOUTS)),
        grad_dtype=draw(
            st.sampled_from([dtype, dtype, *([torch.float32, torch.bfloat16] if HOLDS_OTHER_DTYPES else [])])
        ),
        grad_layout=draw(st.sampled_from(LAYOUTS)),
        magnitude=draw(st.sampled_from([1.0, 1e-3, 30.0])),
        requires_grad=draw(st.sampled_from([True, True, False])),
    )


def group_options(cls=gradops.AdamW):
    """Hyper-parameters of one param group; every keyword both at and off its default."""
    return st.fixed_dictionaries(
        {},
        optional={
            "lr": st.sampled_from([1e-3, 0.1, torch.tensor(3e-2)]),
            "weight_decay": st.sampled_from([0.0, 0.3]),
            "maximize": st.booleans(),
            "l1": st.sampled_from([0.0, 0.2]),
            **table_of(cls).hyper,
        },
    )


def settings_of_the_step(cls=gradops.AdamW):
    """Keywords of `gradops.wrap` that the optimizer takes."""
    dynamic = gradops.DynamicLossScale(init_scale=1024.0, growth_interval=2, min_scale=256.0, max_scale=2048.0)
    settings = st.fixed_dictionaries(
        {},
        optional={
            "max_norm": st.sampled_from([None, 0.1, 1e4]),
            "norm_type": st.sampled_from(NORM_TYPES),
            "clip_value": st.sampled_from([None, 0.5]),
            "max_relative_step": st.sampled_from(
                [None, 0.05, gradops.RelativeStepCap(0.07, warmup_steps=3, floor=0.02)]
            ),
            "loss_scale": st.sampled_from([None, 96.0, dynamic]),
            "master_weights": st.booleans(),
            "moments_dtype": st.sampled_from([torch.float32, torch.bfloat16]),
            "rounding": st.sampled_from(["nearest", "kahan"]),
            "track_updates": st.booleans(),
            "l1": st.sampled_from([0.0, 0.05]),
            "ema": st.sampled_from(AVERAGES),
        },
    )
    settings = settings.filter(
        lambda drawn: not drawn.get("master_weights") or drawn.get("rounding", "nearest") == "nearest"
    )
    return settings.map(lambda drawn: drawn if goes_with(cls, drawn) else {**drawn, "norm_type": 2.0})


# What happens to a parameter's gradient in one step; mostly an ordinary one.
EVENTS = ["grad", "grad", "grad", "grad", "grad", "grad", None, None, float("inf"), float("-inf"), float("nan")]


def sequences(n_params, max_steps=5):
    step = st.lists(st.sampled_from(EVENTS), min_size=n_params, max_size=n_params)
    return st.lists(step, min_size=1, max_size=max_steps)


def draw_grad(case, event, scale=1.0, device="cpu"):
    """The gradient of one event: None, an ordinary one, or one with the given value at a random place."""
    if event is None:
        return None
    grad = case.grad(scale, device)
    if event != "grad" and grad.numel():
        place = torch.randint(grad.numel(), ()).item()
        grad[torch.unravel_index(torch.tensor(place), grad.shape) if grad.dim() else ()] = event
    return grad
