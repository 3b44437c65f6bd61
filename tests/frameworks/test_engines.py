"""Trainers that are given an optimizer, with the change that docs/other-loops.md shows: MMEngine's and MONAI's."""

import pytest
import torch
from torch import nn

import gradops

STEPS, MAX_NORM = 6, 0.05


def make():
    """A model, its optimizer, and pictures with their classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, [(torch.randn(1, 8, 8), int(torch.randint(3, ()))) for _ in range(4 * STEPS)]


def mmengine(ours, folder):
    """Runner with its OptimWrapper, which clips where it is not ours."""
    pytest.importorskip("mmengine")
    from mmengine.model import BaseModel
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner

    model, optimizer, pictures = make()

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, images, classes, mode):
            return {"loss": nn.functional.cross_entropy(self.net(images), classes)}

    if ours:
        wrapper = OptimWrapper(gradops.wrap(optimizer, max_norm=MAX_NORM))
    else:
        wrapper = OptimWrapper(optimizer, clip_grad={"max_norm": MAX_NORM})
    loader = torch.utils.data.DataLoader(pictures, batch_size=4)
    options = {"experiment_name": f"ours-{ours}", "log_level": "ERROR"}
    Runner(
        Model(), str(folder), loader, optim_wrapper=wrapper, train_cfg={"by_epoch": True, "max_epochs": 1}, **options
    ).train()
    return model, wrapper.optimizer


def monai(ours, folder):
    """SupervisedTrainer, which does not clip: a handler of ours does it for torch's optimizer."""
    pytest.importorskip("ignite")
    pytest.importorskip("monai")
    from monai.engines import SupervisedTrainer
    from monai.engines.utils import IterationEvents

    model, optimizer, pictures = make()
    if ours:
        optimizer = gradops.wrap(optimizer, max_norm=MAX_NORM)
    pairs = [{"image": image, "label": label} for image, label in pictures]
    data = torch.utils.data.DataLoader(pairs, batch_size=4)
    trainer = SupervisedTrainer("cpu", 1, data, model, optimizer, nn.functional.cross_entropy, decollate=False)
    if not ours:
        clip = torch.nn.utils.clip_grad_norm_
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda _: clip(model.parameters(), MAX_NORM))
    trainer.run()
    return model, optimizer


@pytest.mark.parametrize("train", [mmengine, monai])
def test_training_with_the_change_equals_the_native_one(train, tmp_path):
    native, _ = train(False, tmp_path)
    mine, optimizer = train(True, tmp_path)
    assert int(optimizer.stats.steps_taken) == STEPS
    assert float(optimizer.stats.clip_coef) < 1
    begin, _, _ = make()
    for name, param in mine.named_parameters():
        torch.testing.assert_close(param, native.get_parameter(name), rtol=1e-4, atol=1e-6)
        assert not torch.equal(param, begin.get_parameter(name))
