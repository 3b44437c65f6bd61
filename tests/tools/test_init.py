"""Initialisation: sizes of activations are kept, and residual blocks begin as their shortcut."""

import math

import pytest
import torch
from torch import nn

import gradops
from gradops.model.init import NORMS
from gradops.model.residual import last_norms


def gain(layer, weights_per_output):
    return layer.weight.std().item() * math.sqrt(weights_per_output)


class Block(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d, shortcut=False, between=nn.Identity, dynamic=False):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.between, self.dynamic = between(), dynamic
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), norm(8)) if shortcut else nn.Identity()

    def forward(self, x):
        if self.dynamic and x.sum() > 1e9:
            return x
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(self.shortcut(x) + self.between(branch))


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.relu(self.norm(x)))


class Sum(nn.Module):
    """Two branches of the same length are no residual block; nor is a normalised sum, nor one behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.norm = (nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x):
        both = self.left(x) + self.right(x)
        return both + torch.relu(self.norm(both))


def zeroed(model):
    gradops.init_cnn_(model)
    norms = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, NORMS)]
    assert all(layer.weight.unique().tolist() in ([0.0], [1.0]) for _, layer in norms)
    return [name for name, layer in norms if not layer.weight.any()]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), math.sqrt(2)),
        (nn.LeakyReLU(0.3), math.sqrt(2 / 1.09)),
        (nn.PReLU(init=0.5), math.sqrt(2 / 1.25)),
        (nn.Tanh(), 5 / 3),
        (nn.SELU(), 0.75),
    ],
)
def test_gain_is_that_of_the_activation_defined_next(activation, expected):
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Dropout(), activation, nn.Conv2d(128, 4, 1))
    gradops.init_cnn_(model)
    assert gain(model[0], 64 * 9) == pytest.approx(expected, rel=0.02)
    assert not model[0].bias.any()


def test_last_layer_has_gain_one_and_hidden_functions_that_of_the_argument():
    model = nn.Sequential(nn.Linear(500, 500), nn.Linear(500, 400))
    gradops.init_cnn_(model, nonlinearity="tanh")
    assert gain(model[0], 500) == pytest.approx(5 / 3, rel=0.02)
    assert gain(model[1], 500) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("layer", "weights_per_output"),
    [
        (nn.ConvTranspose2d(128, 32, 3), 128 * 9),
        (nn.Conv2d(128, 256, 3, groups=4), 32 * 9),
        (nn.Conv1d(256, 128, 5), 256 * 5),
    ],
)
def test_fan_is_the_number_of_weights_behind_an_output(layer, weights_per_output):
    gradops.init_cnn_(nn.Sequential(layer, nn.ReLU()))
    assert gain(layer, weights_per_output) == pytest.approx(math.sqrt(2), rel=0.02)


def test_activations_keep_their_size_through_forty_layers():
    torch.manual_seed(0)
    layers = [part for _ in range(40) for part in (nn.Linear(256, 256), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(512, 256)
    assert model(x).std(dim=0).mean() < 1e-6
    assert 0.2 < gradops.init_cnn_(model)(x).square().mean().sqrt() < 5


def test_reparametrised_weight_is_initialised():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(500, 400))
    gradops.init_cnn_(nn.Sequential(layer, nn.ReLU()))
    assert gain(layer, 500) == pytest.approx(math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda channels: nn.GroupNorm(2, channels)])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("between", [nn.Identity, nn.Dropout])
def test_last_norm_of_a_branch_is_zero_and_the_block_begins_as_its_shortcut(norm, shortcut, between):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Block(norm, shortcut, between))
    assert zeroed(model) == ["2.norm2"]
    x = torch.randn(2, 8, 4, 4)
    model.eval()
    torch.testing.assert_close(model[2](x), torch.relu(model[2].shortcut(x)))


def test_every_block_is_found_where_another_cannot_be_traced():
    model = nn.Sequential(Block(), nn.Sequential(Block(dynamic=True), Block()), PreActivation(), Sum())
    assert zeroed(model) == ["0.norm2", "1.1.norm2"]


def test_no_gradient_is_zero_for_ever_in_a_block_that_begins_as_its_shortcut():
    model = gradops.init_cnn_(nn.Sequential(nn.Conv2d(3, 8, 1), Block(), PreActivation()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6)).square().sum().backward()
        optimizer.step()
    assert all(param.grad.any() for name, param in model.named_parameters() if name.endswith("weight"))


def test_known_networks_have_one_zero_norm_per_block():
    models = pytest.importorskip("torchvision").models
    for name, blocks in (("resnet18", 8), ("resnet50", 16)):
        model = gradops.init_cnn_(getattr(models, name)())
        assert len(last_norms(model, NORMS)) == blocks
        ends = [getattr(part, "bn3", part.bn2) for part in model.modules() if hasattr(part, "bn2")]
        assert len(ends) == blocks
        assert not any(norm.weight.any() for norm in ends)
        assert model.bn1.weight.all()


def test_norms_without_weights_and_zero_last_bn_off_are_left_alone():
    model = nn.Sequential(Block(lambda channels: nn.BatchNorm2d(channels, affine=False)), nn.InstanceNorm2d(8), Block())
    assert gradops.init_cnn_(model, zero_last_bn=False) is model
    assert model[2].norm2.weight.all()
    gradops.init_cnn_(model)
    assert not model[2].norm2.weight.any()


def test_unknown_nonlinearity_is_refused_before_anything_changes():
    model = nn.Linear(3, 3)
    weight = model.weight.clone()
    with pytest.raises(ValueError, match="hardswoosh"):
        gradops.init_cnn_(model, nonlinearity="hardswoosh")
    assert torch.equal(model.weight, weight)
