"""Initialisation of CNNs: Kaiming's, by the non-linearity that follows; residual blocks that begin as identities."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from gradops.model.residual import last_norms

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
# As torch.nn.init.calculate_gain calls them. It has no gain for SiLU, GELU and their like; relu's is the nearest, since
# they too let positive values pass and hold negative ones back.
_NONLINEARITIES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.ELU), "relu"),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU), "leaky_relu"),
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SELU: "selu",
}


@torch.no_grad()
def init_cnn_(model: nn.Module, nonlinearity: str = "relu", zero_last_bn: bool = True) -> nn.Module:
    """Initialises convolutions and linear layers so that activations keep their size from layer to layer.

    Weights are normal with `torch.nn.init.kaiming_normal_`, by fan-in and by the gain of the activation module that is
    defined next; other layers without parameters may stand between. If the next layer with parameters is defined before
    any activation, the activation is assumed to be a function that no module shows, and `nonlinearity` names it. The
    model's last layer has no activation. Biases become 0, normalisations 1 and 0. With `zero_last_bn` the normalisation
    that ends a residual branch gets weight 0, so that the block begins as its shortcut; `torch.fx` finds it, and blocks
    that it cannot trace keep 1. A branch that ends in anything else keeps its weights: a ReLU behind zeros would pass
    no gradient, ever.

    Source: He et al. 2015, Delving Deep into Rectifiers; Goyal et al. 2017, Accurate, Large Minibatch SGD, section 5.1.

    Args:
        model: initialised in place.
        nonlinearity: name for `torch.nn.init.calculate_gain`, where no module follows that has one.
        zero_last_bn: whether residual branches begin at zero.

    Returns:
        The model.

    Raises:
        ValueError: torch knows no gain for `nonlinearity`.
    """
    nn.init.calculate_gain(nonlinearity)  # type: ignore[arg-type]
    # A layer or activation that is used in several places is defined in each of them.
    layers = [module for _, module in model.named_modules(remove_duplicate=False)]
    for place, layer in enumerate(layers):
        if isinstance(layer, _WEIGHTED):
            _init_weight(layer, *_following(layers[place + 1 :], nonlinearity))
        elif isinstance(layer, NORMS) and getattr(layer, "weight", None) is not None:
            nn.init.ones_(layer.weight)
        else:
            continue
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    for norm in last_norms(model, NORMS) if zero_last_bn else ():
        if getattr(norm, "weight", None) is not None:
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
    return model


def _following(layers: list[nn.Module], nonlinearity: str) -> tuple[str, float]:
    """The name and the negative slope of what comes after a layer."""
    for layer in layers:
        name = _NONLINEARITIES.get(type(layer))
        if isinstance(layer, nn.LeakyReLU):
            return "leaky_relu", layer.negative_slope
        if isinstance(layer, nn.PReLU):
            return "leaky_relu", float(layer.weight.mean())
        if name is not None:
            return name, 0.0
        if isinstance(layer, _WEIGHTED):
            return nonlinearity, 0.01
    return "linear", 0.0


def _init_weight(layer: nn.Module, nonlinearity: str, slope: float) -> None:
    # torch.nn.init takes a weight's second dimension for its inputs, which are a transposed convolution's first.
    mode = "fan_out" if isinstance(layer, _TRANSPOSED) else "fan_in"
    weight = torch.empty_like(layer.weight)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(weight, a=slope, mode=mode, nonlinearity=nonlinearity)  # type: ignore[arg-type]
    if parametrize.is_parametrized(layer, "weight"):
        layer.weight = weight
    else:
        layer.weight.copy_(weight)  # type: ignore[operator]
