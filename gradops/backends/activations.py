"""The operator activation_stats where no native code was built for the device."""

from torch import Tensor

from gradops.backends import choose
from gradops.backends.checks import check_tensor
from gradops.backends.torch import activations as torch_activations


def activation_stats(x: Tensor, near_zero: float) -> tuple[Tensor, Tensor]:
    """See `gradops.ops`; the signature is the operator's schema where no native code defines it."""
    if not near_zero >= 0:
        raise ValueError(f"near_zero must not be negative, got {near_zero}")
    check_tensor(x, x.device, "x", "activation_stats")
    if x.device.type in choose.TRITON_DEVICES and not choose.missing("triton", x.device.type):
        from gradops.backends.triton import activations as triton_activations

        return triton_activations.activation_stats(x, near_zero)
    return torch_activations.activation_stats(x, near_zero)
