"""The loops of MONAI's tutorials and of segmentation_models_pytorch, with the change that docs/other-loops.md shows."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import gradops

STEPS, BAD_STEP, MAX_NORM = 6, 3, 0.05
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@dataclass
class Task:
    """What both loops train; the batches are made anew by `make`."""

    model: torch.nn.Module
    groups: list[dict[str, Any]]
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    loss: Any


def monai():
    """A 3D U-Net on a volume with a ball, as MONAI's transforms hand it over: a MetaTensor."""
    pytest.importorskip("monai")
    from monai.data import MetaTensor
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet
    from monai.optimizers import generate_param_groups

    torch.manual_seed(0)
    model = UNet(3, 1, 1, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    axis = torch.linspace(-1, 1, 16)
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    masks = [(distance < radius).float()[None, None] for radius in torch.linspace(0.3, 0.9, STEPS)]
    batches = [(MetaTensor(mask + 0.3 * torch.randn_like(mask)), MetaTensor(mask)) for mask in masks]
    groups = generate_param_groups(model, [lambda net: net.model[0]], ["select"], [0.01])
    return Task(model, groups, batches, DiceCELoss(sigmoid=True))


def smp():
    """A 2D U-Net on pictures with a square, its encoder at a lower rate."""
    package = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = package.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(16, 8, 8))
    masks = torch.zeros(STEPS, 4, 1, 32, 32)
    for step in range(STEPS):
        masks[step, :, :, step : step + 12, 4:24] = 1
    batches = [(mask.expand(-1, 3, -1, -1) + 0.3 * torch.randn(4, 3, 32, 32), mask) for mask in masks]
    dice, bce = package.losses.DiceLoss("binary"), package.losses.SoftBCEWithLogitsLoss()
    decoder = [*model.decoder.parameters(), *model.segmentation_head.parameters()]
    groups = [{"params": list(model.encoder.parameters()), "lr": 1e-3}, {"params": decoder}]
    return Task(model, groups, batches, lambda outputs, mask: dice(outputs, mask) + bce(outputs, mask))


def losses_of(task, step):
    """The loop: one epoch, in which one batch is bad."""
    schedule = torch.optim.lr_scheduler.PolynomialLR(step.optimizer, STEPS, power=0.9)
    losses = []
    for number, (inputs, masks) in enumerate(task.batches):
        loss = task.loss(task.model(inputs), masks) * (math.inf if number == BAD_STEP else 1.0)
        step(loss)
        step.optimizer.zero_grad()
        schedule.step()
        losses.append(torch.as_tensor(loss.detach()))
    return torch.stack(losses)


class Step:
    """Torch's scaler and clipping, or with a gradops scaler one that does without the clipping's pass."""

    def __init__(self, task, optimizer, scaler):
        self.model, self.optimizer, self.scaler = task.model, optimizer, scaler

    def __call__(self, loss):
        self.scaler.scale(loss).backward()
        if not isinstance(self.scaler, gradops.GradScaler):
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @property
    def scale(self):
        return self.scaler.get_scale()


class OwnScaleStep:
    """The optimizer's own loss scale."""

    def __init__(self, task, optimizer):
        self.optimizer = optimizer

    def __call__(self, loss):
        self.optimizer.backward(loss)
        self.optimizer.step()

    @property
    def scale(self):
        return float(self.optimizer.stats.loss_scale)


def native(task, make):
    return Step(task, make(task.groups), torch.amp.GradScaler("cpu", init_scale=1024.0))


def with_scaler(task, make):
    optimizer = gradops.wrap(make(task.groups), max_norm=MAX_NORM)
    return Step(task, optimizer, gradops.GradScaler("cpu", init_scale=1024.0))


def with_own_scale(task, make):
    return OwnScaleStep(
        task, gradops.wrap(make(task.groups), max_norm=MAX_NORM, loss_scale=gradops.DynamicLossScale(1024.0))
    )


def adamw(groups):
    return torch.optim.AdamW(groups, lr=2e-3, weight_decay=1e-2, eps=1e-4)


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.99, nesterov=True, weight_decay=3e-5)


@pytest.mark.parametrize("change", [with_scaler, with_own_scale])
@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("make_task", [monai, smp])
def test_loop_with_the_change_equals_the_native_one(make_task, make, change):
    task, native_task = make_task(), make_task()
    step, native_step = change(task, make), native(native_task, make)
    losses, native_losses = losses_of(task, step), losses_of(native_task, native_step)
    torch.testing.assert_close(losses, native_losses, **CLOSE)
    assert [number for number, loss in enumerate(losses) if not math.isfinite(loss)] == [BAD_STEP]
    assert step.scale == native_step.scale == 512.0
    assert int(step.optimizer.stats.steps_skipped) == 1
    assert float(step.optimizer.stats.clip_coef) < 1
    for (name, mine), theirs in zip(task.model.named_parameters(), native_task.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)
