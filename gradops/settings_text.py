"""What each setting means, in the words of the docstrings of `wrap` and of the optimizers."""

import textwrap
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

from gradops.settings import Settings

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])

MEANING = {
    "max_norm": """the unscaled gradients' norm is clipped to it, as by `torch.nn.utils.clip_grad_norm_`; positive. By
        default None: no clipping.""",
    "norm_type": "p of that norm; positive, may be inf.",
    "clip_value": """each unscaled gradient element is clamped to ±clip_value before the norm is taken; positive. By
        default None: no clamping.""",
    "max_relative_step": """caps each tensor's learning rate by the size of its weights: a `RelativeStepCap`, or a
        float, the largest step as a share of the weights' RMS, for a cap without warm-up. By default None: no cap.""",
    "loss_scale": """what `optimizer.backward(loss)` multiplies the loss by and the step divides the gradients by:
        "dynamic", a `DynamicLossScale`, or a float for a fixed scale. By default None: no scaling.""",
    "guard": "a `SpikeGuard` against single steps whose norm is far out of its history. By default None: no guard.",
    "backend": """"native", "triton" or "torch" forces what runs the step. By default None: the first of
        them that can.""",
    "master_weights": """whether bfloat16 and float16 parameters have a float32 master in their state, which the step
        updates and writes, rounded, to the parameter. Other parameters are left as they are.""",
    "moments_dtype": """torch.bfloat16 stores the moments in half the memory, rounded to nearest; those of float64
        parameters are float64 all the same.""",
    "rounding": """"kahan" keeps what rounding takes off each bfloat16 and float16 parameter, in its own dtype in the
        state, and adds it to the next update: an alternative to `master_weights`. "nearest" loses it.""",
    "track_updates": """whether each step also measures how far it moved every parameter: `stats.update_ratio` and
        `stats.param_rms`, gathered while the update writes. Like every setting it may be set at run time.""",
    "l1": """weight of an L1 penalty beside the weight decay: `l1 * sign(param)` is added to the clipped gradients. A
        group's own "l1" wins over it; `gradops.no_decay_groups` makes groups without norms and biases.""",
    "clip_mode": """"norm", or "agc" for adaptive gradient clipping (Brock et al. 2021): the gradient of each unit, a
        filter or a row, is clipped to max_norm (0.01, say) times the norm of its weights, which counts as at least
        1e-3. A group with "agc": False is not clipped; the paper leaves out the last layer.""",
    "protect": """the model, a module or an iterable of them. Where a step is skipped, for an inf or NaN or by the
        guard, its buffers go back to what they were after the last applied step. Without it the forward of a NaN batch
        leaves BatchNorm's running statistics NaN for ever. Buffers of every dtype are kept, by their names, and all
        micro-batches since the last applied step are undone; it takes twice the buffers' memory. Optimizers that
        protect the same modules share what is kept. Buffers on the CPU beside parameters on a GPU are left alone. See
        `refresh_` for buffers that you edit yourself. By default None: of no module.""",
    "ema": """a `WeightEma`: each update also averages the weights, into `state[param]["ema"]`. Setting it to None drops
        the average. By default None: no average.""",
}


def arguments() -> str:
    """Every setting with its default, as lines of a docstring's `Args:`."""
    return "\n".join(_argument(field.name, repr(field.default)) for field in fields(Settings))


def with_settings(function: FunctionT) -> FunctionT:
    """Puts every setting where the function's docstring lists `**settings`."""
    place = next(line for line in (function.__doc__ or "").splitlines() if line.lstrip().startswith("**settings:"))
    margin = place[: place.index("*")]  # Python 3.13 and newer take a docstring's indentation off
    function.__doc__ = (function.__doc__ or "").replace(place, textwrap.indent(textwrap.dedent(arguments()), margin))
    return function


def _argument(name: str, default: str) -> str:
    text = f"{name}: {' '.join(MEANING[name].split())}"
    if default != "None":  # what None means has to be said
        text += f" By default {default}."
    first, others = 8 * " ", 12 * " "
    return textwrap.fill(text, 120, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
